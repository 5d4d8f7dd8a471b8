"""Names of cells, and results that are brought back to them."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import scdataloader as scd
from scdataloader.testing import MemorySource

GENES = [f"ENSG{i:011d}" for i in range(4)]


def values(number):
    """Counts of five cells that no other source has."""
    return (10_000 * (number + 1) + 10 * np.arange(5)[:, None] + np.arange(4)).astype(np.float32)


def write(folder, name, number, suffix="h5ad"):
    made = ad.AnnData(csr_matrix(values(number)), var=pd.DataFrame(index=GENES))
    made.obs_names = [f"{name}-{i}" for i in range(5)]
    path = str(folder / f"{name}.{suffix}")
    made.write_zarr(path) if suffix == "zarr" else made.write_h5ad(path)
    return path


@pytest.fixture
def collection(tmp_path):
    """Cells of a h5ad file, a zarr folder, a shuffled store of two sources and a source without names."""
    stored = [write(tmp_path, "s", 2), write(tmp_path, "t", 3)]
    scd.convert(stored, tmp_path / "st.cells", layout="shuffled", n_processes=1, progress=False)
    unnamed = MemorySource("unnamed", values(4), GENES, {})
    data = [write(tmp_path, "a", 0), write(tmp_path, "z", 1, "zarr"), str(tmp_path / "st.cells"), unnamed]
    return scd.Collection.open(data)


def names_by_content(collection):
    """The name of each row of the collection, by the values of its cell."""
    expected = {}
    for number, name in enumerate("azst"):
        expected |= {tuple(cell): f"{name}-{i}" for i, cell in enumerate(values(number))}
    expected |= {tuple(cell): str(i) for i, cell in enumerate(values(4))}
    return [expected[tuple(cell)] for cell in collection.read(np.arange(len(collection))).to_scipy().toarray()]


def test_names_are_those_of_the_cells(collection):
    names = names_by_content(collection)
    rows = np.random.default_rng(0).integers(0, 25, 60)
    assert collection.obs_names(rows).tolist() == [names[row] for row in rows]
    collection.close()
    assert collection.obs_names(np.arange(25)).tolist() == names
    with pytest.raises(IndexError, match="25"):
        collection.obs_names(np.array([25]))


def test_names_of_selected_cells(tmp_path):
    path = write(tmp_path, "a", 0)
    cells = ad.read_h5ad(path)
    cells.obs["keep"] = [False, True, False, True, True]
    cells.write_h5ad(path)
    selected = scd.Collection.open(path, where={"keep": True})
    assert selected.obs_names(np.array([2, 0])).tolist() == ["a-4", "a-1"]


def test_predictions_name_their_cells(collection, tmp_path):
    rows = np.array([7, 0, 24])
    results = {"label": ["x", None, "y"], "score": np.float32([0.5, 1, 2]), "z": np.arange(6.0).reshape(3, 2)}
    scd.write_predictions(tmp_path / "out" / "p.parquet", collection, rows, results)
    table = pd.read_parquet(tmp_path / "out" / "p.parquet")
    assert list(table.columns) == ["row", "source", "obs_name", "label", "score", "z"]
    assert table["row"].tolist() == rows.tolist()
    assert table["source"].tolist() == ["z.zarr", "a.h5ad", "unnamed"]
    assert table["obs_name"].tolist() == collection.obs_names(rows).tolist()
    assert table["label"].tolist() == ["x", None, "y"]
    assert np.stack(table["z"].to_numpy()).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_nothing_is_overwritten_or_left_half_written(collection, tmp_path):
    (tmp_path / "kept.parquet").write_text("mine")
    with pytest.raises(FileExistsError, match=r"kept\.parquet exists; name another file"):
        scd.write_predictions(tmp_path / "kept.parquet", collection, [0], {"x": [1]})
    for results, message in [({"x": [1, 2]}, "2 values of 'x' for 1 cells"), ({"row": [1]}, "a column 'row'")]:
        with pytest.raises(ValueError, match=message):
            scd.write_predictions(tmp_path / "p.parquet", collection, [0], results)
    assert not list(tmp_path.glob("p.parquet*"))


@pytest.mark.parametrize("collate", ["sparse", scd.SelectedGenes(how="random expressed", n_genes=2), scd.Dense()])
@pytest.mark.parametrize("transforms", [None, scd.Log1p()])
def test_batches_have_the_names_when_asked_for(collection, collate, transforms):
    dm = scd.DataModule(
        [part.source for part in collection.parts], batch_size=7, collate=collate, transforms=transforms, obs_names=True
    )
    for batch in dm.predict_dataloader():
        assert batch["obs_names"] == dm.collection.obs_names(batch["row"].numpy()).tolist()


def test_items_have_the_names_when_asked_for(tmp_path):
    paths = [write(tmp_path, "a", 0), write(tmp_path, "b", 1)]
    items = scd.CellDataset(paths, obs_names=True)
    assert [item["obs_names"] for item in items.__getitems__([7, 0, 4])] == ["b-2", "a-0", "a-4"]
    assert "obs_names" not in scd.CellDataset(paths)[0]
