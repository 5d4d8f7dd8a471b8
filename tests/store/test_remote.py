"""Stores behind a URL: the same as on this machine, whatever the server and the cache do; else an error."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import resource
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

pytest.importorskip("obstore")

from benchmarks.range_server import RangeServer
from scdataloader.collection.collection import Collection
from scdataloader.commands.main import main
from scdataloader.errors import SourceChangedError, StoreFormatError
from scdataloader.runtime import buckets, options, sparse
from scdataloader.runtime.buckets import Bucket
from scdataloader.runtime.mirror import Mirror
from scdataloader.runtime.sparse import CONTENT, DATA, STATE
from scdataloader.sampling.options import Sampling
from scdataloader.store import paged_index
from scdataloader.store.export import to_anndata
from scdataloader.store.manifest import file_record
from scdataloader.store.reader import Store
from scdataloader.store.tables import Table, write_table
from scdataloader.training.datamodule import DataModule
from scdataloader.types import CSRRows
from tests.sources.source_files import make, stored_as
from tests.store.conversions import here

N_OBS, N_VARS = 2_400, 500
MORE = {"layers": ["spliced"], "obsm": ["X_pca"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores in several layouts; a value names its row and column."""
    made = tmp_path_factory.mktemp("stores")
    x = 1 + np.arange(N_OBS * N_VARS).reshape(N_OBS, N_VARS) % 60_000
    x[np.random.default_rng(0).random(x.shape) < 0.6] = 0
    adata = make(stored_as(x.astype(np.float32), "csr"), spliced=stored_as((x // 2).astype(np.float32), "csr"))
    adata.obsm["X_pca"] = np.arange(2.0 * N_OBS).reshape(-1, 2).astype(np.float32)
    here(adata, made / "plain.cells", cells_per_shard=700, **MORE)
    here(adata, made / "compact.cells", cells_per_shard=700, compact=True, **MORE)
    here([adata[:1500], adata[1500:]], made / "shuffled.cells", cells_per_shard=700, layout="shuffled", **MORE)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder) as made:
        yield made


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: RangeServer) -> Path:
    """An empty cache and a server without faults for each test."""
    monkeypatch.setenv("SCDATALOADER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(buckets, "RETRY_S", 3)
    server.set()
    return tmp_path / "cache"


def same(read: CSRRows, expected: CSRRows) -> None:
    for part in ("indptr", "indices", "data"):
        assert_array_equal(getattr(read, part), getattr(expected, part))


@pytest.mark.parametrize("name", ["plain.cells", "shuffled.cells", "compact.cells"])
def test_a_url_is_read_as_a_folder(server: RangeServer, folder: Path, name: str) -> None:
    far, near = Collection.open(f"{server.url}/{name}"), Collection.open(folder / name)
    rows = np.random.default_rng(1).integers(0, N_OBS, 900)
    same(far.read(rows), near.read(rows))
    assert far.fingerprint == near.fingerprint
    assert far.obs(["kind", "number"]).equals(near.obs(["kind", "number"]))
    assert_array_equal(far.obs_names(rows), near.obs_names(rows))
    assert_array_equal(far.nnz(), near.nnz())
    for one, other in zip(Store.open(f"{server.url}/{name}").sources, Store.open(folder / name).sources, strict=True):
        assert str(one.path) == f"{server.url}/{name}/{other.name}"
        own = rows[rows < one.n_obs]
        same(one.read(own), other.read(own))
        assert_array_equal(one.read_stored(own).data, other.read_stored(own).data)
        same(one.read_matrix("layers/spliced", own), other.read_matrix("layers/spliced", own))
        assert_array_equal(one.read_matrix("obsm/X_pca", own), other.read_matrix("obsm/X_pca", own))
        assert one.var.equals(other.var)
        assert (to_anndata(one.store, one.number).X != to_anndata(other.store, other.number).X).nnz == 0


def test_what_is_in_the_cache_is_not_fetched_again(server: RangeServer, folder: Path) -> None:
    rows, near = np.arange(0, N_OBS, 7), Collection.open(folder / "plain.cells")
    for again in (False, True, True):
        before = server.counts()
        same(Collection.open(f"{server.url}/plain.cells").read(rows), near.read(rows))
        n = server.counts()["GET"] - before["GET"]
        assert n == 1 if again else n > 3, n  # the manifest


def test_columns_are_fetched_alone(tmp_path: Path) -> None:
    n, path = 60_000, "obs/00000.parquet"
    obs = pd.DataFrame({"kind": pd.Categorical(["a", "b"] * (n // 2)), "noise": np.random.default_rng(0).random(n)})
    (tmp_path / "obs").mkdir()
    write_table(tmp_path, path, obs, "cells")
    record = file_record(tmp_path, path)
    with RangeServer(tmp_path) as server:
        table = Table(tmp_path, record, Mirror(Bucket.open(server.url), "1", {path: record.n_bytes}))
        assert list(table.labels()) == ["kind", "noise"]
        assert table.read(["kind"]).equals(obs[["kind"]])
        assert server.counts()["bytes"] < 150_000
        assert table.read(["noise"]).equals(obs[["noise"]])
        assert server.counts()["bytes"] > 480_000


@pytest.fixture
def by_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the index of a shard by pages, however small it is."""
    monkeypatch.setattr(paged_index, "PAGE_COST", 0)


@pytest.mark.parametrize("fault", ["short", "wrong", "code_500", "reset", "cut", "slow"])
@pytest.mark.parametrize("cost", [0, paged_index.PAGE_COST])
def test_failing_answers_never_give_a_wrong_cell(
    server: RangeServer, folder: Path, fault: str, cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged_index, "PAGE_COST", cost)
    server.set(**{fault: 0.2}, seed=3, slow_s=0.1, only="shards")
    far, near = Collection.open(f"{server.url}/plain.cells"), Collection.open(folder / "plain.cells")
    assert far.obs(["kind", "number"]).equals(near.obs(["kind", "number"]))
    rng = np.random.default_rng(0)
    for _ in range(8):
        rows = rng.integers(0, N_OBS, 60)
        same(far.read(rows), near.read(rows))
    assert server.counts()[fault] > 3


def test_wrong_columns_are_fetched_again(server: RangeServer, folder: Path) -> None:
    near = Collection.open(folder / "plain.cells").obs(["kind", "number", "text"])
    for seed in range(6):
        server.set(wrong=0.5, seed=seed, only="obs")
        found = Store.open(f"{server.url}/plain.cells").sources[0]
        with suppress(StoreFormatError):  # five wrong answers in a row
            assert found.obs(["kind", "number", "text"]).equals(near)
        found.store.mirror.forget_file("obs/00000.parquet")


@pytest.mark.usefixtures("by_pages")
def test_the_pages_of_an_index_that_are_needed_are_fetched(tmp_path: Path) -> None:
    n = 40_000
    x = stored_as((1 + np.arange(2 * n).reshape(n, 2)).astype(np.float32), "csr")
    here(make(x), tmp_path / "a.cells", cells_per_shard=n)
    near = Collection.open(tmp_path / "a.cells")
    with RangeServer(tmp_path) as server:
        far = Collection.open(f"{server.url}/a.cells")
        server.set()
        same(far.read(np.array([25_000, 3])), near.read(np.array([25_000, 3])))
        fetched = server.counts()
        assert 6 * 4096 <= fetched["bytes"] <= 9 * 4096, "offsets, sizes and records of two cells, and the end"
        same(far.read(np.array([25_001])), near.read(np.array([25_001])))
        assert server.counts()["GET"] == fetched["GET"], "the pages of a neighbour are there"


@pytest.mark.usefixtures("by_pages")
def test_wrong_entries_in_the_cache_are_fetched_again(server: RangeServer, folder: Path, cache: Path) -> None:
    """Also one that leads to another record, and one with the size of another cell."""
    near, store = Collection.open(folder / "plain.cells"), Store.open(f"{server.url}/plain.cells")
    rows = np.arange(0, N_OBS, 3)
    same(Collection.open(f"{server.url}/plain.cells").read(rows), near.read(rows))
    numbers = [store.mirror.number(shard.file.path) for shard in store.manifest.shards]
    starts = store.mirror._starts[numbers] + store.shards.index
    with next(cache.rglob(DATA)).open("r+b") as file:
        for start, n in zip(starts.tolist(), store.shards.n_cells.tolist(), strict=True):
            # offsets of two cells are exchanged; another cell has the offsets and the size of one further on
            for to, of, size in ((0, 8, 16), (8, 0, 8), (8 * 300, 8 * 333, 16), (8 * n + 1208, 8 * n + 1340, 4)):
                file.seek(start + of)
                content = file.read(size)
                file.seek(start + to)
                file.write(content)
    far = Collection.open(f"{server.url}/plain.cells")
    for row in (300, *rows.tolist()):
        same(far.read(np.array([row])), near.read(np.array([row])))


@pytest.mark.usefixtures("by_pages")
def test_a_shard_that_is_replaced_amid_a_run(tmp_path: Path) -> None:
    """Its index and records are right in themselves, but not those of the manifest."""
    first, second = (make(stored_as(np.full((3_000, 30), value, np.float32), "csr")) for value in (1, 2))
    here(first, tmp_path / "a.cells", cells_per_shard=3_000)
    here(second, tmp_path / "b.cells", cells_per_shard=3_000)
    with RangeServer(tmp_path) as server:
        old, late = Collection.open(f"{server.url}/a.cells"), Collection.open(f"{server.url}/a.cells")
        assert set(old.read(np.array([5])).data) == {1}
        (tmp_path / "b.cells/shards/00000.cells").replace(tmp_path / "a.cells/shards/00000.cells")
        server.set()
        with pytest.raises(SourceChangedError, match=r"00000\.cells was written"):
            old.read(np.array([2_000]))
        with pytest.raises(StoreFormatError, match=r"00000\.cells is damaged, or of another store"):
            late.read(np.array([2_900]))


def test_a_record_that_stays_wrong_is_refused(server: RangeServer) -> None:
    far = Collection.open(f"{server.url}/plain.cells")
    far.read(np.array([0]))
    server.set(wrong=1.0, only="shards")
    with pytest.raises(StoreFormatError, match=r"shards/0000\d.cells is damaged at cell \d+.*checksum"):
        far.read(np.arange(500, 1500))


def test_a_server_that_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RangeServer(folder) as server:
        far = Collection.open(f"{server.url}/plain.cells")
        far.read(np.array([0]))
    monkeypatch.setattr(buckets, "RETRY_S", 0.5)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"plain.cells/shards/0000\d.cells cannot be read"):
        far.read(np.arange(N_OBS))
    assert time.monotonic() - start < 10


def evict(store: Store, seed: int, stop: float) -> None:
    """Remove random pages all the time."""
    copy, rng = store.mirror._copy, np.random.default_rng(seed)
    while time.monotonic() < stop:
        with copy._exclusive():
            copy.used[:] = np.where(rng.random(len(copy.used)) < 0.5, 0, copy.used)
            copy._remove(int(rng.integers(1, 1 << 19)))
        time.sleep(rng.random() * 0.001)


def test_pages_may_vanish_at_any_time(server: RangeServer, folder: Path) -> None:
    """Whatever is read while two processes and a thread remove pages, nothing of a hole is seen."""
    store = Store.open(f"{server.url}/plain.cells")
    far, near = Collection.open(f"{server.url}/plain.cells"), Collection.open(folder / "plain.cells")
    far.read(np.arange(N_OBS))
    stop = time.monotonic() + 4
    spawned = [
        multiprocessing.get_context("spawn").Process(target=evict, args=(store, seed, stop)) for seed in range(1)
    ]
    for process in spawned:
        process.start()
    thread = threading.Thread(target=evict, args=(store, 9, stop))
    thread.start()
    rng, n = np.random.default_rng(0), 0
    while time.monotonic() < stop:
        rows = rng.integers(0, N_OBS, int(rng.integers(1, 400)))
        same(far.read(rows), near.read(rows))
        n += 1
    thread.join()
    for process in spawned:
        process.join()
        assert process.exitcode == 0
    assert n > 20
    assert int(store.mirror._copy.removals[0]) > 50


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    reads=st.lists(
        st.tuples(st.lists(st.integers(0, N_OBS - 1), min_size=1, max_size=40), st.integers(0, 1 << 20), st.booleans()),
        min_size=1,
        max_size=6,
    )
)
def test_any_reads_and_removals(server: RangeServer, folder: Path, reads: list[tuple[list[int], int, bool]]) -> None:
    far, near = Collection.open(f"{server.url}/shuffled.cells"), Collection.open(folder / "shuffled.cells")
    copy = Store.open(f"{server.url}/shuffled.cells").mirror._copy  # another view of the same files
    for rows, removed, crash in reads:
        same(far.read(np.array(rows)), near.read(np.array(rows)))
        with copy._exclusive():
            copy.used[copy.used != sparse.KEPT] = 0
            copy._remove(removed)
            if crash:  # amid a removal
                copy._repair()
                held = np.flatnonzero((copy.present != 0) & (copy.used != sparse.KEPT))[:2]
                copy._changes[held] += 1
                copy.removals += np.uint64(1)
                for segment in held.tolist():
                    sparse._punch(copy._data, segment * sparse.SEGMENT_BYTES, sparse.SEGMENT_BYTES)


def test_the_cache_stays_below_its_size(
    server: RangeServer, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "_LEAST", 1)
    monkeypatch.setenv("SCDATALOADER_CACHE_SIZE", "1MB")
    far, near = Collection.open(f"{server.url}/plain.cells"), Collection.open(folder / "plain.cells")
    for start in range(0, N_OBS, 300):
        same(far.read(np.arange(start, start + 300)), near.read(np.arange(start, start + 300)))
        assert sum(file.stat().st_blocks * 512 for file in cache.rglob(DATA)) < 1_300_000
    assert far.nnz().sum() == near.nnz().sum()
    del far
    gc.collect()
    monkeypatch.setenv("SCDATALOADER_CACHE_SIZE", "400kB")  # less than the copy holds, whatever was removed from it
    Collection.open(f"{server.url}/shuffled.cells")
    assert len(list(cache.iterdir())) == 1, "the copy that nobody uses made room"


def test_a_damaged_cache_is_repaired(server: RangeServer, folder: Path, cache: Path) -> None:
    rows, near = np.arange(N_OBS), Collection.open(folder / "plain.cells")
    Collection.open(f"{server.url}/plain.cells").read(rows)
    data = next(cache.rglob(DATA))
    with data.open("r+b") as file:
        for at in range(1000, data.stat().st_size, 300_000):
            file.seek(at)
            file.write(b"\xa5" * 5000)
    same(Collection.open(f"{server.url}/plain.cells").read(rows), near.read(rows))
    for name in (STATE, CONTENT):
        next(cache.rglob(name)).unlink()
        same(Collection.open(f"{server.url}/plain.cells").read(rows), near.read(rows))
    with next(cache.rglob(STATE)).open("r+b") as file:
        file.truncate(100)
    same(Collection.open(f"{server.url}/plain.cells").read(rows), near.read(rows))


@contextmanager
def files_up_to(n_bytes: int) -> Iterator[None]:
    """Let the system refuse to write files beyond a size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_degrades_to_no_cache(server: RangeServer, folder: Path) -> None:
    near = Collection.open(folder / "plain.cells")
    rows = np.random.default_rng(0).integers(0, N_OBS, 700)
    for before in (True, False):  # already when it is opened; only afterwards
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if before:
                with files_up_to(10_000):
                    far = Collection.open(f"{server.url}/plain.cells")
                    same(far.read(rows), near.read(rows))
            else:
                far = Collection.open(f"{server.url}/plain.cells")
                with files_up_to(600_000):
                    same(far.read(rows), near.read(rows))
                    same(far.read(rows[::-1]), near.read(rows[::-1]))
                    assert_array_equal(far.nnz(), near.nnz())
        full = [one for one in caught if "SCDATALOADER_CACHE" in str(one.message)]
        assert len(full) == 1, [str(one.message) for one in caught]


def test_forks_pickles_and_threads(server: RangeServer, folder: Path) -> None:
    far, near = Collection.open(f"{server.url}/plain.cells"), Collection.open(folder / "plain.cells")
    same(far.read(np.array([3, 1])), near.read(np.array([3, 1])))
    if not (pid := os.fork()):
        code = 1
        try:
            rows = np.arange(1000, 1100)
            same(far.read(rows), near.read(rows))
            with pytest.raises(RuntimeError, match="fork"):
                Store.open(f"{server.url}/plain.cells")
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    other = pickle.loads(pickle.dumps(far))
    errors = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(5):
                rows = rng.integers(0, N_OBS, 200)
                same(other.read(rows), near.read(rows))
        except BaseException as error:  # noqa: BLE001 (raised below)
            errors.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_store_that_is_replaced(tmp_path: Path, folder: Path) -> None:
    first, second = (make(stored_as(np.full((40, 30), value, np.float32), "csr")) for value in (1, 2))
    here(first, tmp_path / "a.cells")
    with RangeServer(tmp_path) as server:
        old = Collection.open(f"{server.url}/a.cells")
        assert set(old.read(np.arange(2)).data) == {1}
        (tmp_path / "a.cells").rename(tmp_path / "before")
        here(second, tmp_path / "a.cells")
        server.set()
        new = Collection.open(f"{server.url}/a.cells")
        assert set(new.read(np.arange(40)).data) == {2}
        with pytest.raises(SourceChangedError, match=r"a\.cells"):
            old.read(np.arange(40))


def test_addresses_that_are_no_stores(server: RangeServer, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.cells/manifest\.json"):
        Store.open(f"{server.url}/none.cells")
    (folder / "bad.cells").mkdir(exist_ok=True)
    (folder / "bad.cells" / "manifest.json").write_text("{}")
    with pytest.raises(StoreFormatError, match=r"bad.cells/manifest.json"):
        Store.open(f"{server.url}/bad.cells")


def test_a_run_continues_from_the_bucket(server: RangeServer, folder: Path) -> None:
    """A state that was saved with the local store is resumed with the remote one, and its batches are the same."""
    modules = []
    for data in (str(folder / "plain.cells"), f"{server.url}/plain.cells"):
        plan = Sampling(by="kind", num_samples=1000, block_size=16)
        modules.append(DataModule(data=data, labels=["kind"], sampling=plan, batch_size=50, num_threads=1, seed=3))
        modules[-1].setup("fit")
    near, far = (module.train_dataloader() for module in modules)
    iterator = iter(near)
    for _ in range(7):
        next(iterator)
    far.load_state_dict(near.state_dict())
    n = 0
    for one, other in zip(iterator, far, strict=True):
        assert_array_equal(one["row"], other["row"])
        assert_array_equal(one["x"].to_dense(), other["x"].to_dense())
        assert_array_equal(one["labels"], other["labels"])
        n += 1
    assert n == 13


def test_inspect_by_url(server: RangeServer, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", f"{server.url}/plain.cells", "--by", "kind"])
    found = capsys.readouterr().out
    assert "2,400" in found
    assert "kind 1" in found
