"""CellDataset gives, item for item, what lamindb's MappedCollection gives, but for what its docstring names."""

from __future__ import annotations

import inspect
import itertools
import math
import pickle
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix
from torch.utils.data import DataLoader

from scdataloader.errors import SourceFormatError
from scdataloader.integrations.mapped_collection import CellDataset


@pytest.fixture(scope="module")
def mapped(lamin):
    """The class to compare with."""
    from lamindb.core import MappedCollection

    return MappedCollection


def make(
    seed: int, genes: list[str], labels: list[str], *, dense: bool = False, value_type: type = np.float32
) -> ad.AnnData:
    """Cells whose values name their own file, row and gene: ``seed.RRGG`` times 10,000."""
    rng = np.random.default_rng(seed)
    n, g = 23, len(genes)
    values = seed * 10_000 + np.arange(n)[:, None] * 100 + np.array([int(gene[1:]) for gene in genes])
    values = (values * (rng.random((n, g)) < 0.4)).astype(value_type)
    values[7] = 0
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(labels, n), categories=[*labels, f"unused{seed}"]),
            "donor": rng.choice(["d1", "d2", f"d{seed}"], n),
            "stage": rng.integers(0, 4, n),
            "depth": values.sum(1).astype(np.float32),
            "healthy": rng.random(n) < 0.5,
        },
        index=[f"cell{seed}_{i}" for i in range(n)],
    )
    # a string column that anndata does not turn into a categorical: every value once
    obs["barcode"] = [f"{seed}-{i}" for i in range(n)]
    adata = ad.AnnData(values if dense else csr_matrix(values), obs=obs, var=pd.DataFrame(index=genes))
    adata.raw = ad.AnnData(csr_matrix(np.hstack([values, values + 1])), obs=obs)
    adata.layers["doubled"] = adata.X * 2
    adata.obsm["pca"] = rng.normal(size=(n, 3))
    adata.obsm["sparse"] = csr_matrix(rng.poisson(0.5, (n, 4)).astype(np.int64))
    return adata


GENES = [f"g{i}" for i in range(12)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Sets of files: same genes everywhere, and other genes in another order; CSR, dense and zarr in each."""
    folder = tmp_path_factory.mktemp("dataset")
    sets = {
        "equal": [GENES, GENES, GENES],
        "different": [GENES, GENES[8:1:-1], [*GENES[3:], "g20", "g19"]],
    }
    paths = {}
    for name, genes in sets.items():
        first, second, third = (folder / f"{name}{i}" for i in range(3))
        paths[name] = [first.with_suffix(".h5ad"), second.with_suffix(".h5ad"), third.with_suffix(".zarr")]
        make(1, genes[0], ["B cell", "T cell"]).write_h5ad(paths[name][0], compression="gzip")
        make(2, genes[1], ["T cell", "NK cell", "unknown"], dense=True, value_type=np.int64).write_h5ad(paths[name][1])
        make(3, genes[2], ["A cell", "T cell"], value_type=np.float64).write_zarr(paths[name][2])
    return paths


def assert_same_value(ours, theirs, what: str) -> None:
    if isinstance(theirs, np.ndarray):
        assert isinstance(ours, np.ndarray), what
        assert ours.dtype == theirs.dtype, what
        np.testing.assert_array_equal(ours, theirs, err_msg=what)
    else:
        assert type(ours) is type(theirs), f"{what}: {type(ours)} is not {type(theirs)}"
        assert ours == theirs or (math.isnan(ours) and math.isnan(theirs)), f"{what}: {ours!r} is not {theirs!r}"


def assert_same_items(ours, theirs) -> None:
    for i, (item, expected) in enumerate(zip(ours, theirs, strict=True)):
        assert list(item) == list(expected), i
        for key, value in expected.items():
            assert_same_value(item[key], value, f"item {i}, {key}")


def assert_same(paths, mapped, **arguments) -> None:
    """Equal lengths, shapes, genes, encoders, and items: one by one, and in a batch in another order with repeats."""
    ours = CellDataset(paths, **arguments)
    theirs = mapped(paths, **arguments)
    assert len(ours) == len(theirs)
    for name in MEMBERS:
        assert plain(getattr(ours, name)) == plain(getattr(theirs, name)), name
    assert ours.encoders == getattr(theirs, "encoders", {})
    expected = [theirs[i] for i in range(len(theirs))]
    assert_same_items([ours[i] for i in range(len(ours))], expected)
    order = np.random.default_rng(0).integers(-len(ours), len(ours), 3 * len(ours)).tolist()
    assert_same_items(ours.__getitems__(order), [expected[i] for i in order])
    theirs.close()
    ours.close()
    assert ours.closed is theirs.closed is True


MEMBERS = [
    *("n_obs", "n_vars", "shape", "original_shapes", "n_obs_list", "n_vars_list", "indices_list", "indices"),
    *("storage_idx", "join_vars", "var_joint", "var_list", "var_indices", "path_list", "layers_keys", "obs_keys"),
    *("obsm_keys", "encode_labels", "unknown_label", "parallel", "filtered", "closed"),
]


def plain(value):
    if isinstance(value, np.ndarray | pd.Index):
        return value.tolist()
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


OBS = ["cell_type", "donor", "stage", "depth", "healthy", "barcode"]


@pytest.mark.parametrize("genes", ["equal", "different"])
@pytest.mark.parametrize("join", ["inner", "outer", None])
@pytest.mark.parametrize("layers_keys", [None, "X", "doubled", "raw.X", ["doubled", "X", "raw.X"]])
@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_matrices(files, mapped, genes, join, layers_keys, dtype) -> None:
    assert_same(files[genes], mapped, layers_keys=layers_keys, join=join, dtype=dtype)


@pytest.mark.parametrize("obsm_keys", ["pca", ["sparse", "pca"]])
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_obsm(files, mapped, obsm_keys, dtype) -> None:
    assert_same(files["different"], mapped, obsm_keys=obsm_keys, dtype=dtype)


ENCODINGS = [True, False, [], ["cell_type", "stage"], ["barcode", "healthy"]]
UNKNOWNS = [None, "unknown", "not a label"]


@pytest.mark.parametrize(("encode", "unknown"), list(itertools.product(ENCODINGS, UNKNOWNS)))
def test_labels(files, mapped, encode, unknown) -> None:
    assert_same(files["equal"], mapped, obs_keys=OBS, encode_labels=encode, unknown_label=unknown)


def test_one_unknown_label_per_key(files, mapped) -> None:
    unknown = {"cell_type": "unknown", "donor": "d1"}
    assert_same(files["equal"], mapped, obs_keys=OBS, unknown_label=unknown)
    assert_same(files["equal"], mapped, obs_keys="donor", unknown_label={"donor": "d2"})


@pytest.mark.parametrize(
    "obs_filter",
    [
        {"cell_type": "T cell"},
        {"cell_type": ["T cell", "A cell"], "stage": (1, 2)},
        {"donor": ["d1"], "healthy": True},
        {"barcode": ["1-3", "3-0", "nowhere"]},
        {"donor": "nobody"},
    ],
)
def test_filter(files, mapped, obs_filter) -> None:
    assert_same(files["different"], mapped, obs_keys=["cell_type", "barcode"], obs_filter=obs_filter)


def test_arguments_and_members_are_those_of_mapped_collection(files, mapped) -> None:
    ours, theirs = (
        [(one.name, one.kind, one.default) for one in inspect.signature(kind.__init__).parameters.values()]
        for kind in (CellDataset, mapped)
    )
    assert ours[:-1] == theirs  # and obs_names, by keyword only
    arguments = ["X", OBS, "pca", ("donor", ["d1", "d2"]), "outer", True, "unknown", True, True, "float64"]
    ours, theirs = (kind(files["different"], *arguments) for kind in (CellDataset, mapped))
    assert {name for name in {*dir(theirs)} - {*dir(ours)} if not name.startswith("_")} == {"storages", "conns"}
    assert_same_items([ours[i] for i in range(len(ours))], [theirs[i] for i in range(len(theirs))])
    assert ours.torch_worker_init_fn(0) is None


def test_methods_on_genes(files, mapped) -> None:
    for paths, join in itertools.product(files.values(), ["inner", None]):
        ours, theirs = (kind(paths, join=join) for kind in (CellDataset, mapped))
        for ascending in (True, False):
            assert ours.check_vars_sorted(ascending) == theirs.check_vars_sorted(ascending)
        for genes in (GENES, pd.Index(GENES[::-1])):
            assert ours.check_vars_non_aligned(genes) == theirs.check_vars_non_aligned(genes)
        assert ours.original_shapes == theirs.original_shapes  # the genes have been read
        theirs.close()


@pytest.mark.parametrize("obs_filter", [None, {"healthy": True}])
def test_merged_labels_and_categories(files, mapped, obs_filter) -> None:
    with CellDataset(files["different"], obs_filter=obs_filter) as ours:
        theirs = mapped(files["different"], obs_keys=OBS, obs_filter=obs_filter)
        for key in OBS:
            assert_same_value(ours.get_merged_labels(key), theirs.get_merged_labels(key), key)
            assert ours.get_merged_categories(key) == theirs.get_merged_categories(key)
        theirs.close()


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_names_of_cells(tmp_path: Path, mapped, suffix) -> None:
    """``_index``, which MappedCollection has only where the index has no name, and the index's own name."""
    paths = [tmp_path / f"{name}{suffix}" for name in ("plain", "named")]
    for number, path in enumerate(paths):
        adata = make(number + 1, GENES, ["T cell"])
        adata.obs.index.name = "bc" if number else None
        adata.write_h5ad(path) if suffix == ".h5ad" else adata.write_zarr(path)
    assert_same(paths[:1], mapped, obs_keys=["_index", "donor"])
    assert_same(
        paths[:1], mapped, obs_keys="_index", encode_labels=False, obs_filter={"_index": ["cell1_3", "cell1_0"]}
    )
    assert_same(paths[1:], mapped, obs_keys=["bc"], encode_labels=False)
    with CellDataset(paths, obs_keys=["_index", "bc"], encode_labels=["bc"]) as dataset:
        assert [dataset[i]["_index"] for i in (0, 23)] == ["cell1_0", "cell2_0"]
        assert [dataset[i]["bc"] for i in (0, 23)] == [-1, 0]


def test_one_file(files, mapped) -> None:
    for path in files["different"]:
        assert_same([path], mapped, obs_keys=OBS, obsm_keys="pca")
    np.testing.assert_array_equal(CellDataset(files["equal"][0])[3]["X"], CellDataset([files["equal"][0]])[3]["X"])


def test_every_encoding_of_an_obs_column(tmp_path: Path, mapped) -> None:
    adata = ad.AnnData(np.eye(4, dtype=np.float32), var=pd.DataFrame(index=GENES[:4]))
    adata.obs = pd.DataFrame(
        {
            "nullable_integer": pd.array([3, 1, 2, 1], dtype="Int64"),
            "nullable_bool": pd.array([True, False, True, True], dtype="boolean"),
            "ordered": pd.Categorical([5, 7, 5, 9], categories=[9, 7, 5], ordered=True),
            "small": np.array([1, 2, 3, 4], dtype=np.int8),
        },
        index=list("abcd"),
    )
    for path in (tmp_path / "a.h5ad", tmp_path / "a.zarr"):
        adata.write_h5ad(path) if path.suffix == ".h5ad" else adata.write_zarr(path)
        for encode in (True, False):
            assert_same([path], mapped, obs_keys=list(adata.obs), encode_labels=encode)


@pytest.mark.parametrize("scaler", [None, 10.0])
@pytest.mark.parametrize(
    "keys", ["cell_type", "stage", "depth", "healthy", ["cell_type", "stage"], ["barcode", "donor"]]
)
@pytest.mark.parametrize("obs_filter", [None, {"healthy": True}])
def test_label_weights(files, mapped, keys, scaler, obs_filter) -> None:
    ours = CellDataset(files["different"], obs_filter=obs_filter)
    theirs = mapped(files["different"], obs_keys=OBS, obs_filter=obs_filter)
    np.testing.assert_array_equal(ours.get_label_weights(keys, scaler), theirs.get_label_weights(keys, scaler))
    assert ours.get_label_weights(keys, scaler, return_categories=True) == theirs.get_label_weights(
        keys, scaler, return_categories=True
    )
    theirs.close()


# ------------------------------------------------------------------- where it differs from MappedCollection, on purpose


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of which the second lacks ``tissue``, and the first misses some of its values."""
    folder = tmp_path_factory.mktemp("lacking")
    first, second = make(1, GENES, ["T cell"]), make(2, GENES, ["T cell"])
    first.obs["tissue"] = pd.Categorical(["lung", None, "liver", *["lung"] * 20])
    first.obs["score"] = [np.nan, 2.5, *[1.5] * 21]
    second.obs["score"] = 0.5
    paths = [folder / "first.h5ad", folder / "second.h5ad"]
    for adata, path in zip([first, second], paths, strict=True):
        adata.write_h5ad(path)
    return paths


def test_a_label_that_is_missing_is_unknown(lacking) -> None:
    with CellDataset(lacking, obs_keys=["tissue", "score"]) as dataset:
        assert dataset.encoders == {"tissue": {"liver": 0, "lung": 1}, "score": {0.5: 0, 1.5: 1, 2.5: 2}}
        items = dataset.__getitems__([0, 1, 2, 23, 45])
    assert [item["tissue"] for item in items] == [1, -1, 0, -1, -1]
    assert [item["score"] for item in items] == [-1, 2, 1, 0, 0]
    with CellDataset(lacking, obs_keys=["tissue", "score"], encode_labels=False) as dataset:
        items = dataset.__getitems__([0, 1, 23])
    nan = pytest.approx(np.nan, nan_ok=True)
    assert [item["tissue"] for item in items] == ["lung", nan, nan]
    assert [item["score"] for item in items] == [nan, 2.5, 0.5]


def test_every_batch_collates_though_a_file_lacks_a_label(lacking) -> None:
    loader = DataLoader(CellDataset(lacking, obs_keys="tissue"), batch_size=46)
    (batch,) = loader
    assert batch["tissue"].tolist() == [1, -1, 0, *[1] * 20, *[-1] * 23]


def test_there_is_a_weight_for_every_cell_though_a_file_lacks_the_label(lacking) -> None:
    dataset = CellDataset(lacking)
    weights = dataset.get_label_weights("tissue")
    assert len(weights) == len(dataset)
    np.testing.assert_allclose(weights, [1 / 21, 1 / 24, 1, *[1 / 21] * 20, *[1 / 24] * 23])
    assert dataset.get_label_weights("tissue", return_categories=True) == pytest.approx(
        {"lung": 1 / 21, "nan": 1 / 24, "liver": 1}
    )


def test_a_filter_on_missing_labels_selects_the_file_that_lacks_them(lacking) -> None:
    assert len(CellDataset(lacking, obs_filter={"tissue": np.nan})) == 1 + 23
    assert len(CellDataset(lacking, obs_filter={"tissue": [np.nan, "liver"]})) == 2 + 23
    assert len(CellDataset(lacking, obs_filter={"tissue": "liver"})) == 1


def test_a_file_that_lacks_a_layer_leaves_it_out(tmp_path: Path, files, mapped) -> None:
    adata = make(5, GENES, ["T cell"])
    del adata.layers["doubled"], adata.obsm["pca"], adata.raw
    adata.write_h5ad(tmp_path / "bare.h5ad")
    assert_same(
        [files["equal"][0], tmp_path / "bare.h5ad"],
        mapped,
        layers_keys=["X", "doubled", "raw.X"],
        obsm_keys=["pca", "sparse"],
    )


# ----------------------------------------------------------------------------------------------------------- processes


def same_batches(dataset: CellDataset, workers: int, context: str | None) -> list:
    loader = DataLoader(
        dataset, batch_size=10, num_workers=workers, multiprocessing_context=context, collate_fn=keep_items
    )
    return [item for batch in loader for item in batch]


def keep_items(items: list) -> list:
    return items


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers(files, mapped, context) -> None:
    arguments = {"obs_keys": OBS, "obsm_keys": "pca", "layers_keys": ["X", "raw.X"]}
    dataset = CellDataset(files["different"], **arguments)
    _ = dataset[0], dataset[-1]  # with its files open, as after a look at the data
    theirs = mapped(files["different"], **arguments)
    expected = [theirs[i] for i in range(len(theirs))]
    theirs.close()
    assert_same_items(same_batches(dataset, 2, context), expected)
    assert_same_items(same_batches(dataset, 0, None), expected)


def test_pickle_keeps_no_handle_and_closed_files_open_again(files) -> None:
    dataset = CellDataset(files["different"], obs_keys=OBS)
    before = dataset.__getitems__(list(range(len(dataset))))
    copied = pickle.loads(pickle.dumps(dataset))
    dataset.close()
    assert_same_items(copied.__getitems__(list(range(len(copied)))), before)
    assert_same_items(dataset.__getitems__(list(range(len(dataset)))), before)


@pytest.mark.parametrize(("dense", "arrays"), [(False, ["/X/data", "/X/indices"]), (True, ["/X"])])
def test_a_batch_does_not_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense, arrays) -> None:
    import h5py

    # lzf is decoded by HDF5 alone
    adata = make(1, GENES, ["T cell"], dense=dense, value_type=np.float64)
    adata.write_h5ad(tmp_path / "a.h5ad", compression="lzf")
    dataset = CellDataset(tmp_path / "a.h5ad")
    dataset.close()
    dataset._files[0]._stored(dataset._matrices[0]["X"].stored)
    reads = []
    read = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, *key: reads.append(self.name) or read(self, *key))
    dataset.__getitems__(list(range(22, -1, -1)))
    assert sorted(reads) == arrays


# ---------------------------------------------------------------------------------------------- real files, and lamindb


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_real_files(real_data: Path, mapped, join) -> None:
    paths = [real_data / "human_placenta_cl22.h5ad", real_data / "human_gut_scp1884.h5ad"]
    ours, theirs = (made(paths, obs_keys=["donor_id"], join=join) for made in (CellDataset, mapped))
    assert ours.shape == theirs.shape
    assert ours.encoders == theirs.encoders
    rows = np.random.default_rng(0).permutation(len(ours))[:200].tolist()
    assert_same_items(ours.__getitems__(rows), [theirs[row] for row in rows])
    np.testing.assert_array_equal(ours.get_label_weights("donor_id"), theirs.get_label_weights("donor_id"))
    theirs.close()


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("mouse_brain_merfish", ["cell_type_ontology_term_id", "brain_section_label"]),
        ("human_cd4_perturb", ["genetic_perturbation_strategy"]),
        ("worm_l2", ["cao_cell_type", "plate"]),
        ("mouse_10x10k_unlabelled", None),
    ],
)
def test_each_real_file(real_data: Path, mapped, name, keys) -> None:
    path = real_data / f"{name}.h5ad"
    ours, theirs = (made([path], obs_keys=keys) for made in (CellDataset, mapped))
    rows = np.random.default_rng(0).integers(0, len(ours), 300).tolist()
    assert_same_items(ours.__getitems__(rows), [theirs[row] for row in rows])
    theirs.close()


def test_a_registered_collection(lamin, files) -> None:
    artifacts = [lamin.Artifact(path, key=f"dataset/{path.name}").save() for path in reversed(files["different"])]
    collection = lamin.Collection(artifacts, key="dataset/all").save()
    theirs = collection.mapped(obs_keys=OBS, join="outer")
    expected = [theirs[i] for i in range(len(theirs))]
    theirs.close()
    for data in (collection, "lamindb:dataset/all", artifacts):
        ours = CellDataset(data, obs_keys=OBS, join="outer")
        assert_same_items(ours.__getitems__(list(range(len(ours)))), expected)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"join": "left"}, ValueError, "join must be .* got 'left'"),
        ({"obs_keys": "donor", "encode_labels": ["stage"]}, ValueError, r"encode_labels names \['stage'\]"),
        ({"obs_keys": "donor", "unknown_label": {"stage": "1"}}, ValueError, r"unknown_label names \['stage'\]"),
        ({"obs_keys": "celltype"}, KeyError, "no file has the obs column 'celltype'; there are .*cell_type"),
        ({"obs_filter": {"celltype": "x"}}, KeyError, "no file has the obs column 'celltype'"),
        ({"layers_keys": ["X", "counts"]}, KeyError, "no file has 'counts'.*layers/doubled"),
        ({"obsm_keys": "umap"}, KeyError, "no file has 'obsm_umap'.*obsm/pca"),
    ],
)
def test_arguments_that_cannot_be_met(files, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        CellDataset(files["equal"], **arguments)


def test_files_that_cannot_be_used(tmp_path: Path, files) -> None:
    with pytest.raises(ValueError, match="no data"):
        CellDataset([])
    with pytest.raises(FileNotFoundError, match=r"missing\.h5ad"):
        CellDataset([tmp_path / "missing.h5ad"])
    (tmp_path / "text.h5ad").write_text("not an AnnData")
    with pytest.raises(SourceFormatError, match=r"text\.h5ad is not an HDF5 file"):
        CellDataset([tmp_path / "text.h5ad"])
    by_columns = make(1, GENES, ["T cell"])
    by_columns.X = csc_matrix(by_columns.X)
    by_columns.write_h5ad(tmp_path / "csc.h5ad")
    with pytest.raises(ValueError, match=r"X in .*csc\.h5ad is stored as csc"):
        CellDataset([tmp_path / "csc.h5ad"])
    make(1, ["g30", "g31"], ["T cell"]).write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(ValueError, match=r"share no gene .*g30.*join='outer'"):
        CellDataset([files["equal"][0], tmp_path / "other.h5ad"])
    twice = make(1, GENES, ["T cell"])
    twice.var_names = [*GENES[:-1], GENES[0]]
    twice.write_h5ad(tmp_path / "twice.h5ad")
    with pytest.raises(ValueError, match=r"twice\.h5ad names genes more than once \(\['g0'\]\)"):
        CellDataset([files["equal"][0], tmp_path / "twice.h5ad"])


def test_indices_out_of_range(files) -> None:
    dataset = CellDataset(files["equal"])
    assert_same_items([dataset[-1]], [dataset[len(dataset) - 1]])
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError, match=f"cell {index} is out of range, the dataset has 69 cells"):
            dataset[index]
    with pytest.raises(TypeError):
        dataset[0:2]  # type: ignore[index]
