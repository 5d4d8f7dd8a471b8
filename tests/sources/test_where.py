"""Cells selected by values of their columns of obs."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scdataloader as scd
from scdataloader.testing import MemorySource, named_values

GENES = [f"ENSG{i:011d}" for i in range(5)]
PRIMARY = np.array([True, False, True, False, False, True])
TYPES = ["T", "B", "T", "T", "B", None]


def cells(seed, obs):
    made = ad.AnnData(sp.csr_matrix(named_values(6, 5, seed=seed)), var=pd.DataFrame(index=GENES))
    made.obs = pd.DataFrame(obs, index=[f"c{seed}_{i}" for i in range(6)])
    return made


@pytest.fixture(params=["h5ad", "zarr", "store", "memory"])
def data(request, tmp_path):
    """Two sources: ``is_primary_data`` is a bool in the first and text in the second."""
    obs = [
        {"is_primary_data": PRIMARY, "type": pd.Categorical(TYPES), "n": np.arange(6.0)},
        {"is_primary_data": np.where(PRIMARY, "True", "False"), "type": pd.Categorical(["NK"] * 6), "n": np.arange(6)},
    ]
    if request.param == "memory":
        return [MemorySource(f"{i}", named_values(6, 5, seed=i), GENES, of_source) for i, of_source in enumerate(obs)]
    paths = []
    for i, of_source in enumerate(obs):
        paths.append(str(tmp_path / f"{i}.{'zarr' if request.param == 'zarr' else 'h5ad'}"))
        made = cells(i, of_source)
        made.write_zarr(paths[-1]) if request.param == "zarr" else made.write_h5ad(paths[-1])
    if request.param == "store":
        scd.convert(paths, tmp_path / "both.cells", n_processes=1, progress=False)
        return str(tmp_path / "both.cells")
    return paths


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"is_primary_data": [True]}, [0, 2, 5, 6, 8, 11]),
        ({"is_primary_data": "true"}, [0, 2, 5, 6, 8, 11]),
        ({"is_primary_data": False}, [1, 3, 4, 7, 9, 10]),
        ({"is_primary_data": True, "type": ["T", "NK"]}, [0, 2, 6, 8, 11]),
        ({"type": "B"}, [1, 4]),
        ({"n": [1, 5]}, [1, 5, 7, 11]),
    ],
)
def test_cells_with_the_values_are_selected(data, where, rows):
    everything = scd.Collection.open(data)
    selected = scd.Collection.open(data, where=where)
    assert len(selected) == len(rows)
    expected = everything.cells(np.array(rows))
    got = selected.cells(np.arange(len(rows)))
    assert np.array_equal(got.x.to_scipy().toarray(), expected.x.to_scipy().toarray())
    assert selected.obs(["n"])["n"].tolist() == everything.obs(["n"])["n"][rows].tolist()
    assert len({part.source.name for part in selected.parts}) == len({row // 6 for row in rows})


def test_training_uses_the_selected_cells(data):
    dm = scd.DataModule(data, labels="type", where={"is_primary_data": True}, batch_size=2)
    assert dm.classes == {"type": 2}
    assert sorted(row for batch in dm.train_dataloader() for row in batch["row"].tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ({"is_primary": True}, KeyError, "no source has the obs column 'is_primary' of where.*'is_primary_data'"),
        ({"type": "NKK"}, LookupError, "no cell has 'NKK' in the obs column 'type'.*'NK'"),
        ({"is_primary_data": False, "n": 0}, LookupError, "no cell has all of"),
        ({"type": []}, TypeError, "names no value for 'type'"),
        ("is_primary_data", TypeError, "must map columns of obs to values"),
    ],
)
def test_what_selects_nothing_is_refused_by_name(data, where, error, message):
    with pytest.raises(error, match=message):
        scd.Collection.open(data, where=where)


def test_a_value_or_a_column_that_some_lack_is_reported(tmp_path, caplog):
    lacking = MemorySource("lacking", named_values(6, 5, seed=1), GENES, {"other": np.arange(6)})
    has = MemorySource("has", named_values(6, 5, seed=0), GENES, {"type": pd.Categorical(TYPES)})
    assert len(scd.Collection.open([has, lacking], where={"type": ["T", "monocyte"]})) == 3
    assert "no cell has 'monocyte' in the obs column 'type'" in caplog.text
    assert "sources without the obs column 'type': lacking" in caplog.text
