"""Laws R3 and R4: threads, forks, spawned processes and pickles read the same; closing leaves nothing behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from scdataloader.protocols import Source
from scdataloader.sources import open_source
from scdataloader.sources.arrays import fetch
from scdataloader.sources.fingerprint import parts_of
from tests.sources.source_files import H5_COMPRESSIONS, N_OBS, coordinates, make, stored_as, write_h5ad, write_zarr

KINDS = ("contiguous", "chunked", "gzip", "lzf", "dense", "dense gzip", "v2", "v3", "v3 sharded")


def write(folder: Path, how: str) -> Path:
    x = coordinates()
    if how.startswith("v"):
        return write_zarr(folder / "a.zarr", make(sp.csr_matrix(x)), how)
    kind, _, compression = how.partition(" ") if how.startswith("dense") else ("csr", "", how)
    return write_h5ad(folder / "a.h5ad", make(stored_as(x, kind)), H5_COMPRESSIONS[compression or "contiguous"])


@pytest.fixture(params=KINDS)
def path(request, tmp_path: Path) -> Path:
    return write(tmp_path, request.param)


def right(source: Source, seed: int) -> bool:
    """Whether small reads, many at a time, return the stored values."""
    rng = np.random.default_rng(seed)
    x = coordinates()
    for _ in range(20):
        rows = rng.integers(0, N_OBS, 30)
        if not np.array_equal(source.read(rows).to_scipy().toarray(), x[rows]):
            return False
    return source.obs(["number"])["number"].tolist() == list(range(N_OBS)) and len(source.var) == x.shape[1]


@pytest.mark.parametrize("warm", [False, True])
def test_threads(path: Path, warm: bool) -> None:
    with open_source(path) as source:
        if warm:
            source.read(np.arange(3))
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(right, [source] * 16, range(16)))


@pytest.mark.parametrize("warm", [False, True])
def test_pickle(path: Path, warm: bool) -> None:
    with open_source(path) as source:
        if warm:
            right(source, 0)
        saved = pickle.dumps(source)
        assert len(saved) < 2000
        with pickle.loads(saved) as copy:
            assert right(copy, 1)
            assert copy.fingerprint == source.fingerprint
            assert repr(copy) == repr(source)


@pytest.mark.parametrize("how", ["contiguous", "gzip", "lzf", "v3 sharded"])
def test_spawn(tmp_path: Path, how: str) -> None:
    with open_source(write(tmp_path, how)) as source:
        right(source, 0)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            assert pool.submit(right, source, 1).result(timeout=120)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_while_threads_read(path: Path) -> None:
    """A child forked at any moment reads the stored values, whatever locks the threads of its parent hold."""
    with open_source(path) as source:
        assert right(source, 0)  # compiles the kernels: a child forked while numba compiles inherits numba's own lock
        stop = threading.Event()

        def work(seed: int) -> None:
            while not stop.is_set():
                assert right(source, seed)

        with ThreadPoolExecutor(2) as pool:
            working = [pool.submit(work, seed) for seed in range(2)]
            try:
                for child in range(6):
                    assert forked(source, child) == 0
            finally:
                stop.set()
            for done in working:
                done.result(timeout=60)


def forked(source: Source, seed: int) -> int:
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if right(source, seed) else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


def open_files() -> set[str]:
    links = set()
    for number in Path("/proc/self/fd").iterdir():
        try:
            links.add(str(number.readlink()))
        except FileNotFoundError:
            continue
    return links


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not list a process's files")
def test_closing_leaves_no_file_thread_or_map(path: Path) -> None:
    with open_source(path) as warm:  # zarr keeps one thread for the process
        right(warm, 0)
    gc.collect()
    threads = set(threading.enumerate())
    source = open_source(path)
    right(source, 0)
    assert set(threading.enumerate()) == threads, "threads end with the read that started them"
    source.close()
    folder = str(path.parent)
    assert not [name for name in open_files() if name.startswith(folder)]
    assert folder not in Path("/proc/self/maps").read_text()
    assert set(threading.enumerate()) == threads
    assert right(source, 1), "a closed source opens again"
    source.close()
    source.close()


def test_opening_reads_little_and_keeps_nothing_open(path: Path) -> None:
    source = open_source(path)
    assert not [name for name in open_files() if name.startswith(str(path.parent))]
    assert not source._matrices


def test_reading_decodes_in_several_threads(tmp_path: Path, monkeypatch) -> None:
    names = set()

    def consume(*arguments, **options):
        names.add(threading.current_thread().name)
        return original(*arguments, **options)

    original = fetch._consume
    monkeypatch.setattr(fetch, "_consume", consume)
    monkeypatch.setattr(fetch, "n_cores", lambda: 3)
    monkeypatch.setattr(fetch, "_TASK_BYTES", 500)
    with open_source(write(tmp_path, "gzip")) as source:
        assert right(source, 0)
    assert any("scdataloader-decode" in name for name in names)


def test_fingerprint_names_the_content_not_the_file(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / f"b{path.suffix}"
    copy.parent.mkdir()
    (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
    with open_source(path) as source, open_source(copy) as other:
        assert source.fingerprint == other.fingerprint
        assert len(parts_of(source.fingerprint)) == 3


@pytest.mark.parametrize("how", ["contiguous", "gzip", "dense"])
@pytest.mark.parametrize("what", ["value", "place", "gene", "column", "cells", "label", "name"])
def test_fingerprint_changes_with_the_content(tmp_path: Path, how: str, what: str) -> None:
    x = coordinates()
    adata = make(x)
    if what == "value":
        x = np.where(x == x.max(), 1, x)
    elif what == "place":
        x = x[:, ::-1]
    elif what == "cells":
        x = x[1:]
    changed = make(x)
    if what == "gene":
        changed.var_names = ["A", *changed.var_names[1:]]
    elif what == "column":
        changed.obs["more"] = 0
    elif what == "name":
        changed.obs_names = ["A", *changed.obs_names[1:]]
    elif what == "label":
        changed.obs["kind"] = changed.obs["kind"].cat.rename_categories(str.upper)
    kind = "dense" if how == "dense" else "csr"
    prints = []
    for name, made in (("a", adata), ("b", changed)):
        made.X = stored_as(made.X, kind)
        stored = H5_COMPRESSIONS["contiguous" if how == "dense" else how]
        with open_source(write_h5ad(tmp_path / f"{name}.h5ad", made, stored)) as source:
            prints.append(source.fingerprint)
    assert prints[0] != prints[1]
