"""Asking for stretches of mapped files: what is asked for comes, and where nothing can be asked nothing is raised."""

import mmap
import os
import sys
import time

import numpy as np
import pytest

from scdataloader.runtime.read_ahead import _in_memory, _this_process, read_ahead

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the calls are Linux's")

N_PAGES = 64


@pytest.fixture
def cold(tmp_path):
    """(N_PAGES,) addresses of the pages of a mapped file of which none is in memory."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(N_PAGES * mmap.PAGESIZE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    address = np.frombuffer(content, np.uint8).ctypes.data + np.arange(N_PAGES) * mmap.PAGESIZE
    if _in_memory(address, np.ones(N_PAGES, np.int64)):
        pytest.skip("this file system keeps all its files in memory")
    yield address
    _this_process.cache_clear()


def test_what_is_asked_for_comes(cold):
    lengths = np.full(N_PAGES, mmap.PAGESIZE)
    read_ahead(cold, lengths)
    until = time.monotonic() + 10
    while not _in_memory(cold, lengths) and time.monotonic() < until:
        time.sleep(0.01)
    assert _in_memory(cold, lengths)


def test_builds_of_python_without_the_call(cold, monkeypatch):
    """Those made for old systems, conda's among them, have no `os.pidfd_open`."""
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    _this_process.cache_clear()
    read_ahead(cold, np.full(N_PAGES, mmap.PAGESIZE))


def test_systems_without_the_call(cold, monkeypatch):
    """Old ones, or sandboxes that forbid it."""
    monkeypatch.setattr("scdataloader.runtime.read_ahead._PIDFD_OPEN", 100_000)
    _this_process.cache_clear()
    read_ahead(cold, np.full(N_PAGES, mmap.PAGESIZE))
    assert _this_process(os.getpid()) == -1
