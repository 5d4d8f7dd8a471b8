"""SCDL archives: the laws of a source for every dtype, genes with and without ids, damage, and every door."""

from __future__ import annotations

import logging
import shutil
from itertools import pairwise
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scdataloader as scd
from scdataloader.commands.main import main
from scdataloader.errors import NotCountsError, SourceChangedError, SourceFormatError
from scdataloader.sources import open_scdl
from scdataloader.store.export import export
from scdataloader.testing import check_source
from tests.conftest import ROOT
from tests.sources.scdl_files import (
    CODES,
    N_OBS,
    cell_table,
    gene_tables,
    matrices,
    two_blocks,
    write_archive,
)

PEER = ROOT.parent / "shared" / "formats"
INPUTS = ("cd4", "gut", "placenta")


@pytest.fixture
def archive(tmp_path) -> Path:
    return two_blocks(tmp_path / "cells")


def expected(block: int, dtype: str = "float32") -> ad.AnnData:
    """The cells of a block of `two_blocks`."""
    first = block * N_OBS[0]
    obs = cell_table()[first : first + N_OBS[block]].set_axis([str(first + i) for i in range(N_OBS[block])])
    var = gene_tables()[block].set_index("var_feature_id", drop=False).rename_axis(None)
    return ad.AnnData(sp.csr_matrix(matrices(dtype)[block], dtype=np.float32), obs=obs, var=var)


# --- the laws of a source ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", CODES)
def test_blocks_are_sources(tmp_path, dtype):
    path = two_blocks(tmp_path / "cells", dtype)
    sources = open_scdl(path)
    assert [source.name for source in sources] == ["cells/block_0", "cells/block_1"]
    for block, source in enumerate(sources):
        check_source(source, expected=expected(block, dtype))
        assert source.counts == "X"


@pytest.mark.parametrize(("indices", "indptr"), [("uint8", "uint16"), ("uint16", "uint64"), ("uint32", "uint32")])
def test_gene_numbers_and_offsets_of_any_width(tmp_path, indices, indptr):
    path = two_blocks(tmp_path / "cells", indices=indices, indptr=indptr)
    for block, source in enumerate(open_scdl(path)):
        check_source(lambda: open_scdl(path)[block], expected=expected(block))  # noqa: B023
        assert source.matrix.indices.base is not None  # mapped, not copied


def test_rows_that_are_not_sorted(tmp_path):
    x = matrices()[0]
    for start, stop in pairwise(x.indptr):
        x.indices[start:stop], x.data[start:stop] = x.indices[start:stop][::-1], x.data[start:stop][::-1]
    (source,) = open_scdl(write_archive(tmp_path / "cells", [x], gene_tables()[:1]))
    assert (source.read(np.arange(13)).to_scipy() != matrices()[0]).nnz == 0
    check_source(source)


def test_an_archive_of_one_block_is_named_by_its_folder(tmp_path):
    path = write_archive(tmp_path / "cells", matrices()[:1], gene_tables()[:1])
    (source,) = open_scdl(path)
    assert (source.name, source.path, source.obs_columns) == ("cells", path, [])
    assert list(source.obs_names()[:3]) == ["0", "1", "2"]


def test_the_names_of_cells_that_an_archive_keeps(tmp_path):
    names = pd.DataFrame({"obs_feature_id": [f"cell{i}" for i in range(13)]})
    (source,) = open_scdl(write_archive(tmp_path / "cells", matrices()[:1], gene_tables()[:1], [names]))
    assert list(source.obs_names()) == list(names["obs_feature_id"])
    assert source.obs_columns == []


def test_nothing_is_written(archive):
    def tree():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in archive.rglob("*")}

    before = tree()
    for path in archive.rglob("*"):
        path.chmod(0o444 if path.is_file() else 0o555)
    collection = scd.Collection.open(archive)
    assert len(collection) == sum(N_OBS)
    collection.read(np.arange(22))
    assert tree() == before


def test_an_archive_that_changes(archive):
    source = open_scdl(archive)[1]
    state = source.file_state()
    source.read(np.arange(9))
    data = np.fromfile(archive / "data.npy", np.float32)
    data[:-1].tofile(archive / "data.npy")
    assert source.file_state() != state
    with pytest.raises(SourceChangedError, match=r"data\.npy"):
        source.read(np.arange(9))


# --- names of genes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["gene_ids", "anything", "feature_name"])
def test_columns_that_name_genes(tmp_path, column):
    sources = open_scdl(two_blocks(tmp_path / "cells", column=column))
    assert [list(source.var.index[:1]) for source in sources] == [["ENSG00000000000"], ["ENSG00000000023"]]
    assert list(sources[0].var.columns) == ["length", column]


def test_genes_without_names(tmp_path):
    path = two_blocks(tmp_path / "cells", column=None)
    with pytest.raises(SourceFormatError, match=r"cells has no gene ids \(columns: length\).*genes="):
        open_scdl(path)
    for block, ids in enumerate(gene_tables()):
        adata = ad.AnnData(np.ones((1, len(ids))), var=pd.DataFrame(index=ids["var_feature_id"]))
        adata.write_h5ad(tmp_path / f"{block}.h5ad")
        (tmp_path / f"{block}.txt").write_text("\n".join(ids["var_feature_id"]))
    for genes in ("*.h5ad", "0.txt,1.txt"):
        given = ",".join(str(tmp_path / one) for one in genes.split(","))
        collection = scd.Collection.open(f"scdl:{path}?genes={given}")
        assert (len(collection), collection.n_genes) == (22, 31)
        column = collection.read(np.arange(22)).to_scipy()[:, 5].toarray().ravel()
        assert np.array_equal(column[:13], matrices()[0][:, 5].toarray().ravel())
        assert np.array_equal(column[13:], matrices()[1][:, 24 - 1 - 5].toarray().ravel())
    with pytest.raises(SourceFormatError, match="lists of 31 genes, expected lists of 31, 24"):
        open_scdl(path, genes=tmp_path / "0.h5ad")


def test_ids_as_a_list_or_a_column(tmp_path):
    path = write_archive(tmp_path / "cells", matrices()[:1], gene_tables("names")[:1])
    (by_column,) = open_scdl(path, genes="names")
    ids = [f"gene {i}" for i in range(31)]
    (by_list,) = open_scdl(path, genes=ids)
    assert (by_column.var.index[30], by_list.var.index[30]) == ("ENSG00000000030", "gene 30")
    with pytest.raises(SourceFormatError, match=r"'?nams'? gives lists of 1 genes.*columns length, names"):
        open_scdl(path, genes="nams")


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_header_that_ends_early(archive):
    header = (archive / "header.sch").read_bytes()
    for size in range(len(header) - 4):
        (archive / "header.sch").write_bytes(header[:size])
        with pytest.raises(SourceFormatError, match=r"cells is damaged.*header\.sch"):
            open_scdl(archive)


def test_archives_that_are_not_complete(archive, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "version.json").write_text('"0.1.3"')
    with pytest.raises(SourceFormatError, match=r"begun is not a complete SCDL archive: header\.sch"):
        scd.Collection.open(tmp_path / "begun")
    for name in ("data.npy", "col_ptr.npy", "row_ptr.npy", "var_features/cumulative_sum_index.npy"):
        copy = shutil.copytree(archive, tmp_path / "copy")
        (copy / name).unlink()
        said = "" if "/" in name else f": {name} is missing"
        with pytest.raises(SourceFormatError, match=f"copy is damaged, or was not completed{said}"):
            scd.Collection.open(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(0, 88, "begins with b'XCDL'"), (4, 1, "schema 1 and storage 1"), (11, 2, "schema 0 and storage 2")],
)
def test_other_headers(archive, at, value, message):
    header = bytearray((archive / "header.sch").read_bytes())
    header[at] = value
    (archive / "header.sch").write_bytes(header)
    with pytest.raises(SourceFormatError, match=message):
        open_scdl(archive)


def test_arrays_that_contradict_each_other(archive, tmp_path):
    few = [table[:20] if i == 0 else table for i, table in enumerate(gene_tables())]
    raw = write_archive(tmp_path / "raw", matrices(), few)
    with pytest.raises(SourceFormatError, match=r"gene numbers up to 30, its table dataframe_0\.parquet has 20 genes"):
        open_scdl(raw)
    offsets = np.fromfile(archive / "row_ptr.npy", np.uint32)
    for at, value in ((0, 1), (22, 10**6), (13, 10**5)):
        damaged = offsets.copy()
        damaged[at] = value
        damaged.tofile(archive / "row_ptr.npy")
        with pytest.raises(SourceFormatError, match=r"row_ptr\.npy runs from"):
            open_scdl(archive)
    damaged = offsets.copy()
    damaged[3] = damaged[9]
    damaged.tofile(archive / "row_ptr.npy")
    with pytest.raises(SourceFormatError, match="offsets"):
        open_scdl(archive)[0].read(np.arange(3))
    (archive / "var_features" / "dataframe_0.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceFormatError, match=r"dataframe_0\.parquet cannot be read"):
        open_scdl(archive)


def test_counts_that_the_writer_lost(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    x = matrices("uint8")[0]
    open_scdl(write_archive(tmp_path / "a", [x], gene_tables()[:1]))
    assert "counts over 255 were lost if there were any" in caplog.text
    x.data[3:5] = 0  # 256 and 512
    open_scdl(write_archive(tmp_path / "b", [x], gene_tables()[:1]))
    assert "counts over 255 were lost (2 stored values are 0)" in caplog.text
    caplog.clear()
    open_scdl(two_blocks(tmp_path / "c", "uint16"))
    assert not caplog.text


def test_values_that_are_not_counts(tmp_path):
    x = matrices()[0]
    x.data[4] = 0.5
    path = write_archive(tmp_path / "cells", [x], gene_tables()[:1])
    with pytest.raises(NotCountsError, match=r"0\.5 at cell"):
        scd.Collection.open(path)
    assert scd.Collection.open(path, values="any").read(np.arange(13)).to_scipy().data.min() == 0.5


# --- every door -------------------------------------------------------------------------------------------------------


def cells(batch) -> list[tuple[int, tuple[float, ...]]]:
    return [(int(row), tuple(x.tolist())) for row, x in zip(batch["row"], batch["x"], strict=True)]


def test_training_resumes_on_other_ranks(archive):
    collection = scd.Collection.open(archive)
    rows = np.arange(22)
    whole = collection.read(rows).to_scipy().toarray()
    assert whole[13 + 2].sum() == matrices()[1][2].sum()
    sampling = scd.Sampling(num_samples=64)
    dm = scd.DataModule(archive, labels=["kind"], sampling=sampling, collate=scd.Dense(), batch_size=8)
    dm.setup("fit")
    for batch in dm.train_dataloader():
        for row, x in cells(batch):
            assert np.array_equal(x, whole[row])
        unknown = np.asarray(batch["row"]) % 5 == 0
        assert np.array_equal(np.asarray(batch["labels"])[:, 0] == -1, unknown)

    def loader(rank=0, world_size=1):
        return scd.Loader(
            collection, _Stream(), scd.Dense(), batch_size=8 // world_size, rank=rank, world_size=world_size
        )

    one = [cell for batch in loader() for cell in cells(batch)]
    started = loader()
    passing = iter(started)
    for _ in range(3):
        next(passing)
    state = started.state_dict()
    ranks = [loader(rank, 2) for rank in range(2)]
    for each in ranks:
        each.load_state_dict(state)
    steps = zip(*ranks, strict=True)
    assert [cell for step in steps for batch in step for cell in cells(batch)] == one[24:]


class _Stream:
    num_samples = 64

    def draw(self, epoch, start, stop):
        return (7 * np.arange(start, stop) + 3 * epoch) % 22


def test_conversion_and_export(archive, tmp_path):
    store = scd.convert(archive, tmp_path / "cells.cells", n_processes=1, progress=False)
    assert store.n_obs == 22
    for block, path in enumerate(export(tmp_path / "cells.cells", tmp_path / "out", progress=False)):
        adata, wanted = ad.read_h5ad(path), expected(block)
        assert (adata.X != wanted.X).nnz == 0
        assert list(adata.var_names) == list(wanted.var_names)
        assert adata.obs["number"].tolist() == wanted.obs["number"].tolist()
        assert list(adata.obs_names) == list(wanted.obs_names)


def test_inspect(archive, capsys):
    assert main(["inspect", str(archive), "--by", "kind"]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("cells/block_0", "cells/block_1", "kind 1"))


def test_options_of_the_converter_of_archives(tmp_path, monkeypatch):
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    for block, folder in ((0, "in"), (1, "in/deeper")):
        expected(block).write_h5ad(tmp_path / folder / f"{block}.h5ad")
    monkeypatch.chdir(tmp_path)
    options = "--data-path in --save-path out.cells --num-workers 1 --use-mp --data-dtype float32 --use-X-not-raw"
    assert main(["convert", *options.split(), "--paginated-load-cutoff", "10000", "--load-block-row-size=1000"]) == 0
    collection = scd.Collection.open("out.cells")
    assert len(collection) == 22
    assert main(["convert", "--save-path", "other.cells"]) == 2


# --- archives of the peer ---------------------------------------------------------------------------------------------


@pytest.fixture
def peer() -> Path:
    if not PEER.is_dir():
        pytest.skip(f"no archives of the peer: {PEER} does not exist")
    return PEER


@pytest.mark.parametrize(
    ("name", "inputs"), [("single", ["placenta"]), ("ragged", INPUTS), ("cli", INPUTS), ("neighbours", None)]
)
def test_archives_of_the_peer(peer, name, inputs):
    genes = None if inputs is None else [peer / "inputs" / f"{one}.h5ad" for one in inputs]
    sources = open_scdl(peer / "scdl" / name, genes=genes)
    truth = np.load(peer / "scdl" / f"{name}.truth.npz")
    first = 0
    for source, original in zip(sources, inputs or ["cd4"], strict=True):
        adata = ad.read_h5ad(peer / "inputs" / f"{original}.h5ad")
        read = source.read(np.arange(source.n_obs))
        begin, end = truth["indptr"][first], truth["indptr"][first + source.n_obs]
        assert np.array_equal(read.data, truth["data"][begin:end])
        assert np.array_equal(read.indices, truth["indices"][begin:end])
        assert (read.to_scipy() != adata.X).nnz == 0
        assert list(source.var.index) == list(adata.var_names)
        check_source(source)
        for column in source.obs_columns:
            got, wanted = source.obs([column])[column], adata.obs[column]
            assert np.array_equal(got.isna(), wanted.isna())
            assert (got.dropna().to_numpy() == wanted.dropna().to_numpy()).all(), column
        first += source.n_obs
    assert first == len(truth["indptr"]) - 1


def test_a_collection_of_a_ragged_archive_of_the_peer(peer):
    genes = ",".join(str(peer / "inputs" / f"{name}.h5ad") for name in INPUTS)
    data = f"scdl:{peer / 'scdl' / 'ragged'}?genes={genes}"
    collection = scd.Collection.open(data, genes=scd.GeneAlignment(organisms="human", min_overlap=0))
    original = scd.Collection.open(genes.split(","), genes=scd.GeneAlignment(organisms="human", min_overlap=0))
    rows = np.arange(210)
    assert collection.vocabulary.ids == original.vocabulary.ids
    assert (collection.read(rows).to_scipy() != original.read(rows).to_scipy()).nnz == 0
