"""Conversion: what goes into a store comes out of it, to the last bit; and what cannot is refused by name."""

import concurrent.futures
import json
import logging
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from cells import MemorySource, named_values
from conversions import Stored, check, counted, tables, tree, write_files
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import H5_COMPRESSIONS, coordinates, make, stored_as, write_h5ad, write_zarr

import scdataloader
from scdataloader.cli import main
from scdataloader.conversion import convert
from scdataloader.errors import NotCountsError, StoreFormatError, StoreWriteError
from scdataloader.sources import open_source
from scdataloader.sources.locate import open_sources
from scdataloader.store import claim, plan, tasks
from scdataloader.store.claim import claimed
from scdataloader.store.plan import split_cells
from scdataloader.store.reader import Store

LARGEST = (1 << 32) - 1


def here(data, out, **options):
    """Convert in this process, in shards of a few cells."""
    return convert(data, out, **{"n_processes": 1, "cells_per_shard": 5, "progress": False} | options)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(tasks, "_CELLS_PER_BLOCK", 3)
    monkeypatch.setattr(tasks, "_SECONDS_PER_NOTE", 0.0)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "atlas.cells"


# --- what comes out ---------------------------------------------------------------------------------------------------

DTYPES = ("u1", "i2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")


@st.composite
def matrices(draw, dtypes, n_genes):
    """Any counts that the dtype can hold, up to 2^32 - 1; any genes, in any order, some of them twice."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    most = LARGEST if dtype.kind == "f" else min(LARGEST, int(np.iinfo(dtype).max))
    most = {2: 2048, 4: 1 << 24}.get(dtype.itemsize, most) if dtype.kind == "f" else most
    value = st.one_of(st.integers(0, min(most, 300)), st.sampled_from([0, min(most, 65_536), most]))
    row = st.lists(st.tuples(st.integers(0, n_genes - 1), value), max_size=12)
    rows = draw(st.lists(row, min_size=1, max_size=9))
    if not draw(st.booleans()):  # genes that are there once
        rows = [list(dict(row).items()) for row in rows]
    else:  # sums that fit
        rows = [[(gene, min(value, most // 16)) for gene, value in row] for row in rows]
    indptr = np.cumsum([0, *map(len, rows)])
    genes = np.array([gene for row in rows for gene, _ in row], np.int32)
    values = np.array([value for row in rows for _, value in row], np.int64).astype(dtype)
    if dtype.itemsize == 2 and dtype.kind == "f":
        values = values.astype(np.float32)  # as sources give them
    return sp.csr_matrix((values, genes, indptr), (len(rows), n_genes))


@st.composite
def sources(draw):
    n_genes = draw(st.sampled_from([1, 40, 2000]))
    made = []
    for number in range(draw(st.integers(1, 3))):
        x = draw(matrices(DTYPES, n_genes))
        obs, var = tables(x.shape[0], n_genes, draw(st.integers(0, 1)))
        made.append(Stored(f"s{number}", x, var, obs, mapped=draw(st.booleans())))
    return made


@given(made=sources(), layout=st.sampled_from(["source", "shuffled", "grouped:kind"]), per_shard=st.integers(1, 20))
@settings(max_examples=60)
def test_every_source_comes_back_from_every_layout(tmp_path_factory, made, layout, per_shard):
    folder = tmp_path_factory.mktemp("law")
    check(here(made, folder / "a.cells", layout=layout, cells_per_shard=per_shard), made)
    shutil.rmtree(folder)


@given(data=st.data(), appended=st.booleans())
@settings(max_examples=20)
def test_any_float32_comes_back(tmp_path_factory, data, appended):
    folder = tmp_path_factory.mktemp("law")
    bits = data.draw(st.lists(st.integers(0, LARGEST), min_size=6, max_size=40))
    values = np.array(bits, np.uint32).view(np.float32)
    x = sp.csr_matrix((values, np.arange(len(bits), dtype=np.int32), [0, 2, 2, len(bits)]), (3, 50))
    obs, var = tables(3, 50, 0)
    made = [Stored("floats", x, var, obs), counted("counts", 4, 50, 1)]
    store = here(made[: 2 - appended], folder / "a.cells", values="any")
    if appended:
        store = here(made[1:], folder / "a.cells", values="any", append=True)
    check(store, made)
    assert {source.counts for source in store.sources} == {"float32"}
    shutil.rmtree(folder)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint16", "float16"])
@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize("how", ["contiguous", "gzip", "v2", "v3 sharded"])
def test_files_of_every_kind(tmp_path, out, dtype, kind, how):
    x = coordinates(dtype)
    adata = make(stored_as(x.astype("float32") if dtype == "float16" and kind != "dense" else x, kind))
    if how in H5_COMPRESSIONS:
        path = write_h5ad(tmp_path / "a.h5ad", adata, H5_COMPRESSIONS[how])
    else:
        path = write_zarr(tmp_path / "a.zarr", adata, how)
    with pytest.warns(UserWarning, match="CSC") if kind == "csc" else _nothing():
        store = here(path, out, cells_per_shard=25)
    found = store.to_anndata()
    np.testing.assert_array_equal(found.X.toarray(), x)
    pd.testing.assert_frame_equal(found.obs, ad.read_zarr(path).obs if path.is_dir() else ad.read_h5ad(path).obs)
    pd.testing.assert_frame_equal(found.var, adata.var)


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@pytest.mark.parametrize("how", ["contiguous", "gzip"])
@pytest.mark.parametrize("dtype", ["uint32", "int64", "float64"])
def test_counts_that_float32_has_not(tmp_path, out, how, dtype):
    x = np.zeros((4, 6), dtype)
    x[1, 2], x[3, 5], x[3, 0] = (1 << 24) + 1, LARGEST, 7
    for name, matrix in (("sparse", sp.csr_matrix(x)), ("dense", x)):
        path = write_h5ad(tmp_path / f"{name}.h5ad", make(matrix), H5_COMPRESSIONS[how])
        found = here(path, tmp_path / f"{name}.cells").to_anndata()
        np.testing.assert_array_equal(found.X.toarray(), x.astype(np.int64))


@pytest.mark.filterwarnings("ignore:Transforming to str index")
def test_a_source_of_the_users_own_needs_no_more_than_the_protocol(out):
    values = named_values(11, 30)
    source = MemorySource("own", values, [f"g{i}" for i in range(30)])
    del source.obs_columns, source.matrix, source.uns_organism
    found = here([source], out).to_anndata()
    np.testing.assert_array_equal(found.X.toarray(), values)
    assert list(found.obs.columns) == []


def test_columns_keep_their_dtypes_categories_and_order(out):
    n = 12
    source = counted("a", n, 5, 0)
    codes = np.arange(n) % 3 - 1
    source.table = source.table.assign(
        ordered=pd.Categorical.from_codes(codes, ["low", "Mid", "high", "never"][:3], ordered=True),
        unused=pd.Categorical.from_codes(codes, ["z", "a", "never"]),
        numbers=pd.Categorical.from_codes(codes, [5, 1, 3]),
        shares=pd.Categorical.from_codes(codes, np.array([2.5, -1, 0], "f4"), ordered=True),
        flags=pd.Categorical.from_codes(codes.clip(max=0), [True, False]),
        none=pd.Categorical.from_codes(np.full(n, -1), np.array([], object)),
        small=np.arange(n).astype("u1"),
        half=np.arange(n).astype("f4") + np.nan,
        flag=np.arange(n) % 2 == 0,
        text=[f"é{i}" for i in range(n)],
        whole=pd.array([None, 1, 2] * 4, dtype="Int16"),
        maybe=pd.array([None, True, False] * 4, dtype="boolean"),
        when=pd.date_range("2020-01-01", periods=n),
    )
    source.var = source.var.assign(kind=pd.Categorical(["b", "a", "b", "a", "a"], categories=["b", "a", "c"]))
    for layout in ("source", "shuffled"):
        store = here([source], out.with_suffix(f".{layout}"), layout=layout)
        found = store.to_anndata()
        pd.testing.assert_frame_equal(found.obs, source.table)
        pd.testing.assert_frame_equal(found.var, source.var)
        assert store.sources[0].obs_columns == list(source.table.columns)
        read = store.sources[0].obs(["flags", "row"])
        assert list(read["flags"].cat.categories) == [True, False]


def test_each_gene_list_is_kept_once(out):
    made = [counted(f"s{i}", 4, 30, seed) for i, seed in enumerate([0, 0, 1, 0])]
    made[3].var = made[3].var.assign(length=1)
    store = here(made, out)
    assert len(list((out / "var").iterdir())) == len(store.manifest.genes) == 3
    check(store, made)
    again = counted("again", 4, 30, 1)
    check(here([again], out, append=True), [*made, again])
    assert len(list((out / "var").iterdir())) == 3


def test_organisms_come_along(tmp_path, out):
    adata = make(sp.csr_matrix(coordinates()))
    adata.uns["organism"] = "mouse"
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert here(tmp_path / "a.h5ad", out).sources[0].uns_organism == "mouse"


def test_a_cell_without_values_and_a_source_without_cells(out):
    empty = counted("empty", 0, 7, 0)
    made = [empty, counted("a", 3, 7, 1), replace(empty, name="empty too")]
    made[1].x = sp.csr_matrix(made[1].x.shape, dtype=np.float32)
    check(here(made, out), made)
    with pytest.raises(ValueError, match="there is no cell in empty"):
        here([empty], out.with_name("b.cells"))


def test_a_store_is_a_source_of_another(tmp_path, out):
    made = [counted("a", 13, 40, 0, dtype=np.int64), counted("b", 8, 30, 1)]
    made[0].x.data[3] = LARGEST
    first = here(made, out)
    check(here(out, tmp_path / "b.cells"), made)
    assert tree(out) == tree(tmp_path / "b.cells")
    shuffled = here(first.sources, tmp_path / "c.cells", layout="shuffled")
    check(shuffled, made)
    # from there the cells come in the order in which that store has them
    back = here(tmp_path / "c.cells", tmp_path / "d.cells")
    for number in range(2):
        rows = shuffled.sources[number].obs(["row"])["row"].to_numpy()
        expected = made[number].x[rows].toarray()
        np.testing.assert_array_equal(back.to_anndata(number).X.toarray(), expected)
        pd.testing.assert_frame_equal(back.to_anndata(number).obs, made[number].table.iloc[rows])


def test_the_path_of_a_store_opens_all_its_sources(tmp_path, out):
    paths = write_files(tmp_path)
    here(paths, out)
    found = open_sources([paths[0], out])
    assert [source.name for source in found] == ["0.h5ad", "0.h5ad", "1.h5ad"]
    out.rename(tmp_path / "renamed")
    assert len(open_sources(str(tmp_path / "renamed"))) == 2
    with pytest.raises(StoreFormatError, match="no store"):
        (tmp_path / "empty.cells").mkdir()
        open_sources(tmp_path / "empty.cells")


def test_floats_are_no_counts_from_a_store_either(out):
    here([counted("a", 3, 5, 0)], out, values="any")
    with pytest.raises(NotCountsError, match=r"atlas.cells was made .* \(a\): pass values='any'"):
        open_sources(out)
    assert len(open_sources(out, values="any")) == 1


def test_mapped_files_take_no_memory_for_long(tmp_path, out):
    """The pages of a mapped file are given back block by block."""
    given = []

    class Watched(type(open_source(write_files(tmp_path)[0]))):
        def release(self):
            super().release()
            given.append(self.name)

    source = Watched.open(tmp_path / "0.h5ad")
    here([source], out)
    assert given == ["0.h5ad"] * 6  # 13 cells in three shards, three cells at a time


# --- executors --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of libraries in processes of their own
def test_other_executors_write_the_same(tmp_path, out):
    paths = write_files(tmp_path)
    expected = tree(here(paths, out).path)
    convert(paths, tmp_path / "b.cells", n_processes=2, cells_per_shard=5, progress=False)
    assert tree(tmp_path / "b.cells") == expected
    with ThreadPoolExecutor(3) as executor:
        convert(paths, tmp_path / "c.cells", executor=executor, cells_per_shard=5, progress=False)
    assert tree(tmp_path / "c.cells") == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_dask_cluster_writes_the_same(tmp_path, out):
    distributed = pytest.importorskip("distributed")
    paths = write_files(tmp_path)
    expected = tree(here(paths, out).path)
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor()
        convert(paths, tmp_path / "b.cells", executor=executor, cells_per_shard=5, progress=False)
        source = counted("bad", 13, 40, 0)
        source.x.data[70] = -1
        with pytest.raises(NotCountsError, match="bad: -1.0 at cell"):
            convert([source], tmp_path / "c.cells", executor=executor, cells_per_shard=5, progress=False)
    assert tree(tmp_path / "b.cells") == expected


def test_an_executor_and_a_number_of_processes(out):
    with pytest.raises(ValueError, match="not both"), ThreadPoolExecutor(1) as executor:
        convert([counted("a", 3, 5, 0)], out, executor=executor, n_processes=2)
    with pytest.raises(ValueError, match="n_processes must be 1 or more, not 0"):
        convert([counted("a", 3, 5, 0)], out, n_processes=0)


def _die(*_):
    os._exit(9)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_worker_that_is_killed(tmp_path, out, monkeypatch):
    class Deadly(Stored):
        def __reduce__(self):
            return _die, (1,)

    source = counted("a", 12, 5, 0)
    with pytest.raises(RuntimeError, match="ended without a word: it was killed, perhaps for want of memory"):
        convert([Deadly(source.name, source.x, source.var, source.table)], out, n_processes=2, cells_per_shard=5)
    assert not out.exists()


# --- going on ---------------------------------------------------------------------------------------------------------


def test_what_was_finished_is_kept_and_not_done_again(tmp_path, out, caplog):
    made = [counted("a", 13, 40, 0, mapped=False), counted("b", 12, 40, 1, mapped=False)]
    expected = tree(here(made, tmp_path / "whole.cells").path)
    made[1].fails_at = 9
    with pytest.raises(OSError, match="fell off the table") as failed:
        here(made, out)
    notes = " ".join(failed.value.__notes__)
    assert "while cells 8 to 10 of b were read" in notes
    assert f"5 of 6 shards are finished and were kept in {out}: give the same command again to go on" in notes
    assert not list(out.rglob("*.partial"))
    assert not list(out.rglob("*.progress"))
    assert not (out / "conversion.lock").exists()
    with pytest.raises(StoreFormatError, match="if its conversion was interrupted, give the same command again"):
        Store.open(out)
    made[0].n_read, made[1].n_read, made[1].fails_at = 0, 0, None
    caplog.set_level(logging.INFO)
    here(made, out)
    assert (made[0].n_read, made[1].n_read) == (0, 2)
    assert tree(out) == expected
    assert "25 cells (21 of them by an earlier try)" in caplog.text


def test_a_shard_that_is_not_as_long_as_it_was_is_written_again(tmp_path, out):
    made = [counted("a", 12, 40, 0, mapped=False, fails_at=11)]
    with pytest.raises(OSError, match="table"):
        here(made, out)
    with (out / "shards" / "00000.cells").open("r+b") as file:
        file.truncate(100)
    (out / "shards" / "00001.json").write_text("{}")
    made[0].fails_at = None
    check(here(made, out), made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layout": "shuffled"}, "layout is 'shuffled', there it is 'source'"),
        ({"cells_per_shard": 6}, "cells_per_shard is 6, there it is 5"),
        ({"values": "any"}, "kind is 'float32', there it is 'counts'"),
    ],
)
def test_other_options_do_not_go_on(out, change, said):
    source = counted("a", 12, 40, 0, mapped=False, fails_at=11)
    with pytest.raises(OSError, match="table"):
        here([source], out)
    before = tree(out)
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        here([source], out, **change)
    assert "Give the command of that one again to finish it, or delete the folder to give it up" in str(refused.value)
    assert tree(out) == before


def test_sources_that_changed_or_are_others_do_not_go_on(out):
    made = [counted("a", 12, 40, 0, mapped=False, fails_at=11), counted("b", 6, 40, 1)]
    with pytest.raises(OSError, match="table"):
        here(made, out)
    before = tree(out)
    changed = counted("a", 12, 40, 5)
    with pytest.raises(ValueError, match="a has changed since"):
        here([changed, made[1]], out)
    with pytest.raises(ValueError, match="b was a there"):
        here(made[::-1], out)
    with pytest.raises(ValueError, match="1 sources were named, there it is 2"):
        here(made[:1], out)
    assert tree(out) == before


def test_a_failure_before_anything_is_finished_leaves_nothing(out):
    source = counted("a", 4, 40, 0, mapped=False, fails_at=3)
    with pytest.raises(OSError, match="table") as failed:
        here([source], out)
    assert "nothing of it was kept" in failed.value.__notes__
    assert not out.exists()
    source.fails_at = None
    check(here([source], out), [source])
    before = tree(out)
    with pytest.raises(OSError, match="table"):
        here([counted("b", 4, 40, 1, mapped=False, fails_at=3)], out, append=True)
    assert tree(out) == before


def test_a_plan_that_is_none(out):
    out.mkdir()
    (out / "conversion.json").write_text('{"version": 7}')
    with pytest.raises(StoreFormatError, match="no plan of a conversion of this release"):
        here([counted("a", 4, 40, 0)], out)


def test_the_same_again_is_nothing_to_do(tmp_path, out, caplog):
    paths = write_files(tmp_path)
    here(paths, out)
    before, stamps = tree(out), {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    caplog.set_level(logging.INFO)
    here(paths, out, cells_per_shard=7)
    assert f"{out} has all of these sources already, 21 cells; nothing to do" in caplog.text
    assert tree(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps
    for change in ({"layout": "shuffled"}, {"values": "any"}):
        with pytest.raises(FileExistsError, match="is a store already, of other sources or with other options"):
            here(paths, out, **change)
    with pytest.raises(FileExistsError, match="add to it with append"):
        here(paths[:1], out)
    assert tree(out) == before


# --- appending --------------------------------------------------------------------------------------------------------


def test_appending(tmp_path, out):
    made = [counted("a", 13, 40, 0), counted("b", 8, 40, 0), counted("c", 6, 30, 2)]
    here(made[:1], out)
    before = {name: content for name, content in tree(out).items() if name != "manifest.json"}
    store = here(made[1:], out, append=True)
    check(store, made)
    assert before.items() <= tree(out).items()
    here(made[1:], out, append=True)
    here(made[2:], out, append=True)  # the store ends with it
    assert [source.name for source in Store.open(out).sources] == ["a", "b", "c"]


def test_a_reader_sees_the_old_store_until_all_is_there(out):
    first, second = counted("a", 6, 40, 0), counted("b", 12, 40, 1, mapped=False, fails_at=11)
    here([first], out)
    with pytest.raises(OSError, match="table"):
        here([second], out, append=True)
    found = Store.open(out)
    assert [source.name for source in found.sources] == ["a"]
    np.testing.assert_array_equal(found.to_anndata().X.toarray(), first.x.toarray())
    here([first], out)  # nothing to do, whatever is unfinished
    with pytest.raises(ValueError, match=r"c was b there.*or delete its conversion.json to give it up"):
        here([counted("c", 6, 40, 1)], out, append=True)
    (out / "conversion.json").unlink()
    third = counted("c", 6, 40, 1)
    check(here([third], out, append=True), [first, third])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"sources": [0]}, ValueError, "has a already, as a"),
        ({"sources": [2, 0]}, ValueError, "has a already, as a"),
        (
            {"sources": [2], "layout": "shuffled"},
            ValueError,
            "has the layout 'source', which appended cells get as well",
        ),
        ({"sources": [2], "values": "any"}, ValueError, "holds counts, and float32 are to be appended"),
    ],
)
def test_what_cannot_be_appended(out, options, error, said):
    made = [counted(name, 6, 40, seed) for seed, name in enumerate("abc")]
    here(made[:2], out)
    before = tree(out)
    with pytest.raises(error, match=said):
        here([made[i] for i in options.pop("sources")], out, append=True, **options)
    assert tree(out) == before


def test_there_has_to_be_a_store_to_append_to(out):
    with pytest.raises(FileNotFoundError, match="no store in .*atlas.cells to append to; leave append out"):
        here([counted("a", 6, 40, 0)], out, append=True)
    assert not out.exists()
    with pytest.raises(OSError, match="table"):
        here([counted("a", 12, 40, 0, mapped=False, fails_at=11)], out)
    with pytest.raises(FileNotFoundError, match="its first conversion is unfinished: finish that first"):
        here([counted("b", 6, 40, 1)], out, append=True)


# --- one at a time ----------------------------------------------------------------------------------------------------


def _hold(folder, ready):
    with claimed(Path(folder)):
        ready.set()
        threading.Event().wait()


def test_one_conversion_at_a_time(out, monkeypatch):
    monkeypatch.setattr(claim, "_PATIENCE", 0.2)
    source = counted("a", 6, 40, 0)
    here([source], out)
    with claimed(out), pytest.raises(RuntimeError, match="another conversion is writing into .*atlas.cells"):
        here([counted("b", 6, 40, 1)], out, append=True)
    assert not (out / "conversion.lock").exists()
    here([counted("b", 6, 40, 1)], out, append=True)


@pytest.mark.slow
def test_a_killed_conversion_holds_no_lock(out):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(out), ready))
    holder.start()
    assert ready.wait(60)
    holder.kill()
    holder.join()
    assert (out / "conversion.lock").exists()
    here([counted("a", 6, 40, 0)], out)
    assert not (out / "conversion.lock").exists()


def test_a_task_of_an_earlier_conversion_does_not_write(out, monkeypatch):
    with claimed(out) as old:
        pass
    with pytest.raises(claim.ConversionStoppedError), old.shared():
        pass
    with claimed(out), pytest.raises(claim.ConversionStoppedError, match="has been stopped"), old.shared():
        pass
    with claimed(out) as current, current.shared():
        current.check()
        # while a task of it lives, no other one begins
        monkeypatch.setattr(claim, "_PATIENCE", 0.1)
        with pytest.raises(RuntimeError, match="tasks of one that was interrupted"), claimed(out):
            pass


def test_where_files_cannot_be_locked_conversions_run_all_the_same(out, monkeypatch):
    def no_locks(*_):
        raise OSError(claim.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(claim.fcntl, "flock", no_locks)
    made = [counted("a", 6, 40, 0)]
    check(here(made, out), made)


def test_an_interruption_stops_the_tasks(tmp_path, out, monkeypatch):
    """As Ctrl-C does, while the first of three shards is under way."""
    started = threading.Event()

    class Slow(Stored):
        def _read_stored(self, rows):
            if rows[0]:
                started.set()
                threading.Event().wait(0.05)
            return super()._read_stored(rows)

    def wait(*args, **kwargs):
        if started.is_set() and not raised:
            raised.append(True)
            raise KeyboardInterrupt
        return concurrent.futures.wait(*args, **kwargs | {"timeout": 0.01})

    raised = []
    source = counted("a", 300, 40, 0)
    source = Slow(source.name, source.x, source.var, source.table, mapped=False)
    monkeypatch.setattr("scdataloader.store.pool.wait", wait)
    with pytest.raises(KeyboardInterrupt) as stopped:
        here([source], out, cells_per_shard=100)
    assert "nothing of it was kept" in stopped.value.__notes__
    assert not out.exists()
    assert source.n_read < 20


# --- bad input --------------------------------------------------------------------------------------------------------


def _bad(value, dtype=np.float64):
    source = counted("bad.h5ad", 9, 40, 0, dtype=dtype)
    source.x[7, 3] = value
    source.x = sp.csr_matrix(source.x)
    return source


@pytest.mark.filterwarnings("ignore:Changing the sparsity structure")
@pytest.mark.parametrize(
    ("source", "values", "error", "said"),
    [
        (lambda: _bad(-1.0), "counts", NotCountsError, "-1.0 at cell 7, gene 3 (ENSG00000000018) is no count"),
        (lambda: _bad(0.5), "counts", NotCountsError, "0.5 at cell 7, gene 3 (ENSG00000000018) is no count"),
        (lambda: _bad(np.nan), "counts", NotCountsError, "nan at cell 7"),
        (lambda: _bad(LARGEST + 1, np.int64), "counts", ValueError, "is more than the 4,294,967,295 that a count"),
        (lambda: _bad(0.1), "any", ValueError, "0.1 at cell 7, gene 3 (ENSG00000000018) is no float32 number"),
        (lambda: _bad((1 << 24) + 1, np.int64), "any", ValueError, "16777217 at cell 7, gene 3"),
    ],
)
def test_values_that_cannot_be_kept(out, source, values, error, said):
    with pytest.raises(error, match=re.escape(f"bad.h5ad: {said}" if said[0] != "i" else said)):
        here([source()], out, values=values, cells_per_shard=9)
    assert not out.exists()


def test_a_gene_number_out_of_range(out):
    source = counted("bad", 9, 40, 0)
    source.x.indices[-1] = 40
    with pytest.raises(ValueError, match=r"bad, among cells 6 to 8: cell 2 has a gene number outside 0 … 39"):
        here([source], out, cells_per_shard=9)


def test_gene_ids_that_are_there_twice(out):
    source = counted("twice", 4, 5, 0)
    source.var.index = ["a", "b", "a", "c", "b"]
    with pytest.raises(
        ValueError, match=r"twice has 2 gene ids more than once, a, b among them.*var_names_make_unique"
    ):
        here([source], out)
    assert not out.exists()


def test_two_sources_that_are_the_same(tmp_path, out):
    (path,) = write_files(tmp_path, (5,))
    shutil.copy(path, tmp_path / "copy.h5ad")
    with pytest.raises(ValueError, match=r"copy.h5ad and 0.h5ad hold the same \(fingerprint [0-9a-f]+\)"):
        here([path, tmp_path / "copy.h5ad"], out)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ({"mixed": ["a", 1, None, 2.5]}, "a: obs column 'mixed' (object) cannot be kept in a parquet file"),
        (
            {"when": pd.Categorical(pd.date_range("2020", periods=4))},
            "the categories of obs column 'when' are datetime",
        ),
        ({"__row__": range(4)}, "a has an obs column '__row__', a name that stores use: rename it"),
        ({"lists": [[1], ["a"], [], None]}, "obs column 'lists'"),
    ],
)
def test_columns_that_cannot_be_kept(out, column, said):
    source = counted("a", 4, 5, 0)
    source.table = source.table.assign(**column)
    with pytest.raises(ValueError, match=re.escape(said)):
        here([source], out)
    assert not out.exists()


def test_a_gene_column_of_the_stores_own_name(out):
    source = counted("a", 4, 5, 0)
    source.var = source.var.assign(__position__=1)
    with pytest.raises(ValueError, match="a has a var column '__position__', a name that stores use: rename it"):
        here([source], out)


def test_an_obs_of_another_length(out):
    source = counted("a", 4, 5, 0)
    source.table = source.table.iloc[:3]
    with pytest.raises(ValueError, match="a has 4 cells, but 3 rows in its obs"):
        here([source], out)


@pytest.mark.parametrize("layout", ["shufled", "grouped:", "grouped"])
def test_a_layout_that_is_none(out, layout):
    with pytest.raises(
        ValueError, match=f"layout must be one of source, shuffled, grouped:<obs column>; not '{layout}'"
    ):
        here([counted("a", 4, 5, 0)], out, layout=layout)


def test_shards_of_no_cells(out):
    with pytest.raises(ValueError, match="cells_per_shard must be 1 or more, not 0"):
        here([counted("a", 4, 5, 0)], out, cells_per_shard=0)


def test_a_folder_of_something_else(tmp_path, out):
    out.write_text("a file")
    with pytest.raises(FileExistsError, match="is a file; a store is a folder"):
        here([counted("a", 4, 5, 0)], out)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(FileExistsError, match=r"has 1 files or folders in it, cat.jpg among them, and is neither"):
        here([counted("a", 4, 5, 0)], tmp_path / "photos")
    assert os.listdir(tmp_path / "photos") == ["cat.jpg"]


def test_a_damaged_store_is_not_added_to(out):
    here([counted("a", 12, 5, 0)], out)
    (out / "shards" / "00001.cells").unlink()
    with pytest.raises(StoreFormatError, match="00001.cells is missing"):
        here([counted("b", 12, 5, 1)], out, append=True)


def test_shards_hold_no_more_values_than_they_can(monkeypatch):
    sizes = np.array([1, 5, 5, 1, 1, 8, 0, 2])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    assert split_cells(8, 3, offsets, 9) == [(0, 2), (2, 5), (5, 8)]
    assert split_cells(0, 3, offsets[:1], 9) == []
    monkeypatch.setattr(plan, "_MOST_VALUES", 10)
    assert split_cells(8, 8, offsets, 9) == [(0, 2), (2, 5), (5, 8)]
    assert split_cells(8, 8, None, 4) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert split_cells(3, 8, None, 40) == [(0, 1), (1, 2), (2, 3)]


# --- no room ----------------------------------------------------------------------------------------------------------

SMALL = """
import resource, sys
from pathlib import Path
from conversions import write_files
from scdataloader.cli import main
from scdataloader.store import pool
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(["convert", *sys.argv[4:], "--out", sys.argv[3], "--processes", "1", "--cells_per_shard", "50"]))
"""


def _limited(folder, limit, out, *options):
    return subprocess.run(
        [sys.executable, "-c", SMALL, str(folder), str(limit), str(out), *map(str, options)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["source", "shuffled"])
def test_a_disk_that_fills_up(tmp_path, out, layout):
    """Files may not grow beyond a limit: the first shards fit, the one after them does not."""
    paths = write_files(tmp_path, (60, 300), n_genes=400)
    expected = tree(convert(paths, tmp_path / "whole.cells", layout=layout, n_processes=1, cells_per_shard=50).path)
    limit = max(len(content) for name, content in expected.items() if name.startswith("shards")) - 200
    options = ("--layout", layout, *paths)
    failed = _limited(tmp_path, limit, out, *options)
    assert failed.returncode == 2
    said = failed.stderr.splitlines()[-1]
    assert re.fullmatch(
        rf"error: cannot write {out}/\S+\.cells: File too large; (\d of 8 shards are finished and were kept in "
        rf"{out}\S*: give the same command again to go on|nothing of it was kept)",
        said,
    )
    if "kept in" in said:
        with pytest.raises(StoreFormatError, match="no store"):
            Store.open(out)
        assert not list(out.rglob("*.partial"))
    convert(paths, out, layout=layout, n_processes=1, cells_per_shard=50)
    assert tree(out) == expected


@pytest.mark.slow
def test_no_room_for_the_very_first_file(tmp_path, out):
    paths = write_files(tmp_path)
    failed = _limited(tmp_path, 100, out, *paths)
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1] == f"error: cannot write {out}/conversion.json: File too large"
    assert not out.exists()


def test_no_room_for_a_table_leaves_the_old_store(tmp_path, out, monkeypatch):
    made = [counted("a", 6, 40, 0), counted("b", 6, 40, 1)]
    here(made[:1], out)
    before = tree(out)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for name in ("opened_atomically", "file_record"):
        with monkeypatch.context() as patched:
            patched.setattr(f"scdataloader.store.table_writer.{name}", full)
            with pytest.raises(
                StoreWriteError, match=r"cannot write \S+: No space left on device; nothing of it"
            ) as error:
                here(made[1:], out, append=True)
        assert error.value.errno == 28
        assert tree(out) == before
    with monkeypatch.context() as patched:
        patched.setattr("scdataloader.store.layout.Manifest.save", full)
        with pytest.raises(StoreWriteError, match=r"2 of 2 shards are finished and were kept"):
            here(made[1:], out, append=True)
    assert [source.name for source in Store.open(out).sources] == ["a"]
    check(here(made[1:], out, append=True), made)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreWriteError, match=r"cannot write .*/file/a.cells: Not a directory"):
        here([counted("a", 6, 40, 0)], tmp_path / "file" / "a.cells")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, out, capsys):
    paths = write_files(tmp_path)
    command = ["convert", *paths, "--out", str(out), "--processes", "1"]
    assert main(command) == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"{out}: 21 cells, [\d,]+ values, 0.0\d+ GB, \d\.\d\d bytes per value, in \d+\.\d s \([\d,]+ cells/s\)", said
    )
    assert main(command) == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith("21 cells; nothing to do")
    assert main(["convert", paths[0], "--out", str(out)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {out} is a store already")
    write_files(tmp_path / "more" if (tmp_path / "more").mkdir() is None else tmp_path, (0, 0, 5))
    assert main(["convert", str(tmp_path / "more" / "2.h5ad"), "--out", str(out), "--append", "--processes", "1"]) == 0
    assert Store.open(out).n_obs == 26
    assert main(["convert", "gone.h5ad", "--out", str(tmp_path / "b.cells")]) == 2
    assert "gone.h5ad does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_when_asked_for(tmp_path, out, capsys, monkeypatch, terminal):
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    command = ["convert", *write_files(tmp_path), "--out", str(out), "--processes", "1", "--layout", "shuffled"]
    assert main([*command, "--progress"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    if terminal:
        assert "converting" in shown.err
        assert "ordering" in shown.err
        assert "21/21 cells" in shown.err
    else:
        assert re.search(r"\nconverting: 21/21 cells, [\d,]+ cells/s, 0:00:00 left\n", shown.err)
        assert re.search(r"\nordering: 21/21 cells, [\d,]+ cells/s, 0:00:00 left\n", shown.err)
    assert main([*command[:-2], "--layout", "shuffled", "--out", str(tmp_path / "b.cells")]) == 0
    assert "21/21" not in capsys.readouterr().err


def test_help_names_all_options(capsys):
    with pytest.raises(SystemExit) as done:
        main(["convert", "--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--append", "--layout", "--processes", "--dask", "--cells_per_shard", "--values", "--counts"):
        assert option in shown


def test_the_command_wants_dask_for_dask(tmp_path, out, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["convert", *write_files(tmp_path), "--out", str(out), "--dask", "tcp://x:1"]) == 2
    assert "pip install 'scdataloader[dask]'" in capsys.readouterr().err


def test_an_interrupted_command_says_what_was_kept(tmp_path, out, capsys, monkeypatch):
    def interrupted(*_, **__):
        error = KeyboardInterrupt()
        error.add_note("3 of 8 shards are finished")
        raise error

    monkeypatch.setattr("scdataloader.conversion.write_store", interrupted)
    with pytest.raises(SystemExit) as done:
        main(["convert", *write_files(tmp_path), "--out", str(out)])
    assert done.value.code == 130
    assert capsys.readouterr().err.splitlines()[-2:] == ["interrupted", "3 of 8 shards are finished"]


def test_convert_is_a_public_name(tmp_path, out):
    store = scdataloader.convert(write_files(tmp_path), out, n_processes=1, progress=False)
    assert isinstance(store, Store)
    assert json.loads((out / "manifest.json").read_text())["layout"] == "source"
    assert pq.read_metadata(out / "obs" / "00000.parquet").num_rows == 13
