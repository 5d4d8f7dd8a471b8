"""Collections of annbatch and the folders of its predecessors: order, marks, unsorted rows, and every door."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

import scdataloader as scd
from scdataloader.errors import SourceChangedError, SourceFormatError
from scdataloader.sources.locate import open_sources
from scdataloader.store.export import export
from scdataloader.testing import check_source
from tests.conftest import ROOT
from tests.sources.source_files import coordinates

PEER = ROOT.parent / "shared" / "formats"
N_OBS, N_VARS = 9, 300
N_DATASETS = 12


def dataset(number: int) -> ad.AnnData:
    """A dataset whose rows are not sorted by gene, as those of collections of several files; values name all three."""
    x = sp.csr_matrix(coordinates("float32", N_OBS, N_VARS))
    x.data += 10_000 * number
    for start, stop in zip(x.indptr[:-1], x.indptr[1:], strict=True):
        order = np.random.default_rng(start).permutation(stop - start)
        x.indices[start:stop], x.data[start:stop] = x.indices[start:stop][order], x.data[start:stop][order]
    paths = pd.Categorical(
        [f"in/{i % 2}.h5ad" for i in range(N_OBS)], categories=["in/0.h5ad", "in/1.h5ad", "in/2.h5ad"]
    )
    obs = pd.DataFrame({"src_path": paths}, index=[f"cell{number}-{i}" for i in range(N_OBS)])
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(N_VARS)]))


def write_dataset(path: Path, adata: ad.AnnData) -> None:
    """One dataset as annbatch writes it: sharded, gene numbers as small as possible."""
    adata.write_zarr(path)
    group = zarr.open_group(path)
    for name, values in (("data", adata.X.data), ("indices", adata.X.indices.astype(np.uint16))):
        del group["X"][name]
        group["X"].create_array(name, data=values, chunks=(64,), shards=(256,))
    zarr.consolidate_metadata(path)


def write_collection(folder: Path, kind: str) -> Path:
    """A collection of `N_DATASETS` datasets of one of the three kinds."""
    folder.mkdir()
    for number in range(N_DATASETS):
        if kind == "h5ad":
            dataset(number).write_h5ad(folder / f"dataset_{number}.h5ad", compression="gzip")
        else:
            name = f"dataset_{number}" if kind == "zarr" else f"chunk_{number}.zarr"
            write_dataset(folder / name, dataset(number))
    if kind == "zarr":
        attributes = {"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"}
        (folder / "zarr.json").write_text(
            json.dumps({"attributes": attributes, "zarr_format": 3, "node_type": "group"})
        )
    return folder


@pytest.fixture(scope="module")
def collections(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("collections")
    return {kind: write_collection(folder / f"{kind}.zarr", kind) for kind in ("zarr", "h5ad", "chunks")}


@pytest.mark.parametrize("kind", ["zarr", "h5ad", "chunks"])
def test_datasets_are_sources_in_order(collections, kind):
    selections = open_sources(collections[kind])
    assert [selection.source.obs_names()[0] for selection in selections] == [f"cell{i}-0" for i in range(N_DATASETS)]
    for number in (2, 11):
        check_source(selections[number].source, expected=dataset(number))
    collection = scd.Collection.open(collections[kind])
    rows = np.array([106, 3, 3, 21, 10])
    wanted = sp.vstack([dataset(int(row) // N_OBS).X[row % N_OBS] for row in rows]).toarray()
    assert np.array_equal(collection.read(rows).to_scipy().toarray(), wanted)
    assert collection.read(rows).to_scipy().has_canonical_format


@pytest.mark.parametrize("chunk", [64, 700, 5000])
@pytest.mark.parametrize("index", ["uint16", "int64"])
def test_cells_are_aligned_in_their_chunks(tmp_path, chunk, index):
    """Cells in one or several chunks, empty or repeated; genes in another order, dropped or twice; antibodies."""
    adata = dataset(0)
    adata.var_names = [*adata.var_names[:-2], adata.var_names[5], adata.var_names[-1]]  # one gene twice
    adata.var["feature_types"] = ["Antibody Capture" if i % 50 == 7 else "Gene Expression" for i in range(N_VARS)]
    adata.write_zarr(tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr")["X"]
    for name, values in (("data", adata.X.data), ("indices", adata.X.indices.astype(index))):
        del group[name]
        group.create_array(name, data=values, chunks=(chunk,), shards=(4 * chunk,))
    zarr.consolidate_metadata(tmp_path / "a.zarr")
    source = scd.open_source(tmp_path / "a.zarr")
    rows = np.array([8, 0, 3, 3, 7, 1, 0, 2])
    assert source.stored_sizes(rows).tolist() == np.diff(adata.X.indptr)[rows].tolist()
    check_source(source)
    dense = pd.DataFrame(adata.X.toarray()[:, adata.var["feature_types"] == "Gene Expression"])
    dense.columns = adata.var_names[adata.var["feature_types"] == "Gene Expression"]
    dense = dense.T.groupby(level=0).sum().T
    for genes in (list(dense.columns), list(dense.columns[::-1]), list(dense.columns[3:200])):
        batch = scd.Collection.open(source, genes=scd.GeneAlignment(vocabulary=genes, organisms="human")).cells(rows)
        assert batch.x.to_scipy().has_canonical_format
        assert np.array_equal(batch.x.to_scipy().toarray(), dense[genes].to_numpy()[rows])
        assert np.array_equal(batch.depth, dense.sum(1).to_numpy()[rows])


def test_faults_in_a_chunk_name_the_cell(tmp_path):
    for fault in (-1, N_VARS):
        adata, folder = dataset(0), tmp_path / f"{fault}.zarr"
        adata.write_zarr(folder)
        group = zarr.open_group(folder)["X"]
        indices = adata.X.indices.astype(np.int64)
        indices[adata.X.indptr[4]] = fault
        del group["indices"], group["data"]
        for name, values in (("data", adata.X.data), ("indices", indices)):
            group.create_array(name, data=values, chunks=(1000,))
        zarr.consolidate_metadata(folder)
        collection = scd.Collection.open(folder)
        collection.read(np.array([3, 5]))
        with pytest.raises(SourceFormatError, match="gene number outside 0 to 299 in cell 4"):
            collection.read(np.array([3, 4]))


def test_the_file_of_a_cell_is_a_column(collections):
    collection = scd.Collection.open(collections["zarr"])
    files = collection.obs(["src_path"])["src_path"][7:11].tolist()
    assert files == [f"in/{i}.h5ad" for i in (1, 0, 0, 1)]
    sampling = scd.Sampling(by="src_path", num_samples=96)
    dm = scd.DataModule(collections["zarr"], labels=["src_path"], sampling=sampling)
    dm.setup("fit")
    codes = np.concatenate([np.asarray(batch["labels"])[:, 0] for batch in dm.train_dataloader()])
    assert set(codes) == {0, 1}  # of three categories, two are used


def test_conversion_and_export(collections, tmp_path):
    scd.convert(collections["zarr"], tmp_path / "a.cells", n_processes=1, progress=False)
    paths = export(tmp_path / "a.cells", tmp_path / "out", source=3, progress=False)
    adata, wanted = ad.read_h5ad(paths[0]), dataset(3)
    assert np.array_equal(adata.X.toarray(), wanted.X.toarray())
    assert adata.obs["src_path"].tolist() == wanted.obs["src_path"].tolist()


def test_unfinished_collections_are_refused(collections, tmp_path):
    copy = shutil.copytree(collections["zarr"], tmp_path / "copy.zarr")
    shutil.rmtree(copy / "dataset_7")
    with pytest.raises(SourceFormatError, match=r"copy\.zarr has no dataset 7, expected 0 to the last"):
        scd.Collection.open(copy)
    shutil.copytree(collections["zarr"] / "dataset_7", copy / "dataset_7")
    for metadata in ('{"attributes": {}, "zarr_format": 3}', "{", None):
        if metadata is None:
            (copy / "zarr.json").unlink()
        else:
            (copy / "zarr.json").write_text(metadata)
        with pytest.raises(SourceFormatError, match=r"unfinished collection of annbatch: zarr\.json does not mark it"):
            scd.Collection.open(copy)
    assert len(scd.Collection.open(copy / "dataset_3")) == N_OBS


@pytest.mark.parametrize("kind", ["zarr", "h5ad", "chunks"])
def test_collections_without_their_first_dataset_are_refused(collections, tmp_path, kind):
    name = {"zarr": "dataset_{}", "h5ad": "dataset_{}.h5ad", "chunks": "chunk_{}.zarr"}[kind]
    for number in (2, 5):
        original = collections[kind] / name.format(number)
        (shutil.copytree if original.is_dir() else shutil.copy)(original, tmp_path / original.name)
    with pytest.raises(SourceFormatError, match="has no dataset 0, 1, 3, 4, expected 0 to the last"):
        scd.Collection.open(tmp_path)
    assert len(scd.Collection.open([tmp_path / name.format(number) for number in (2, 5)])) == 2 * N_OBS


def test_a_dataset_that_was_not_completed_is_named(collections, tmp_path):
    copy = shutil.copytree(collections["zarr"], tmp_path / "copy.zarr")
    shutil.rmtree(copy / "dataset_11" / "var")
    with pytest.raises(SourceFormatError, match=r"copy\.zarr/dataset_11.* var"):
        scd.Collection.open(copy)


def test_an_appended_collection_is_another_one(collections, tmp_path):
    copy = shutil.copytree(collections["zarr"], tmp_path / "copy.zarr")
    before = scd.Collection.open(copy)
    before.read(np.arange(9, 12))
    shutil.rmtree(copy / "dataset_1")
    write_dataset(copy / "dataset_1", dataset(1)[:5].copy())  # annbatch rewrites every dataset in place
    with pytest.raises(SourceChangedError, match="dataset_1 has changed since it was opened"):
        before.read(np.arange(9, 12))
    assert len(scd.Collection.open(copy)) == N_DATASETS * N_OBS - 4
    assert scd.Collection.open(copy).fingerprint != before.fingerprint


@pytest.fixture
def peer() -> Path:
    if not PEER.is_dir():
        pytest.skip(f"no collections of the peer: {PEER} does not exist")
    return PEER / "annbatch"


@pytest.mark.parametrize("name", ["shuffled", "grouped", "appended"])
def test_collections_of_the_peer(peer, name):
    truth = np.load(peer / f"{name}.truth.npz")
    wanted = sp.csr_matrix((truth["data"], truth["indices"], truth["indptr"]), shape=truth["shape"])
    obs = pd.read_parquet(peer / f"{name}.truth.obs.parquet")
    selections = open_sources(peer / f"{name}.zarr")
    first = 0
    for selection in selections:
        source = selection.source
        cells = slice(first, first + source.n_obs)
        adata = ad.AnnData(
            wanted[cells], obs=obs[cells][["src_path", "group"]], var=pd.DataFrame(index=truth["var_names"])
        )
        check_source(source, expected=adata)
        first += source.n_obs
    assert first == len(obs)
    collection = scd.Collection.open(
        peer / f"{name}.zarr", genes=scd.GeneAlignment(organisms="human", vocabulary=list(truth["var_names"]))
    )
    rows = np.random.default_rng(0).permutation(len(obs))
    assert np.array_equal(collection.read(rows).to_scipy().toarray(), wanted[rows].toarray())


def test_other_layouts_of_the_peer(peer):
    human = scd.GeneAlignment(organisms="human")
    in_h5, in_zarr = (scd.Collection.open(peer / name, genes=human) for name in ("h5", "shuffled.zarr"))
    rows = np.arange(150)
    assert in_h5.obs_names(rows).tolist() == in_zarr.obs_names(rows).tolist()
    assert np.array_equal(in_h5.read(rows).to_scipy().toarray(), in_zarr.read(rows).to_scipy().toarray())
    single = scd.open_source(peer / "single.zarr")
    assert single.n_obs == 60
    check_source(single)
