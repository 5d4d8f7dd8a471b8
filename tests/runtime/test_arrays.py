"""Arrays that are kept in files: equal with and without them, never damaged, never those of other data."""

import errno
import logging
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from scdataloader.runtime import arrays
from scdataloader.runtime.arrays import ArrayCache, Recipe


class Counted:
    """Recipes of 1,000 squares and 3 bytes, which count how often they are used."""

    n_made = n_filled = 0

    def __call__(self):
        self.n_made += 1

        def fill(out):
            self.n_filled += 1
            out["squares"][:] = np.arange(1000) ** 2
            out["bytes"][:] = [7, 8, 9]

        shapes = {"bytes": (np.dtype(np.int8), 3), "squares": (np.dtype(np.int32), 1000)}
        return Recipe(shapes=shapes, fill=fill, about=["a", "β"])


def check(kept):
    assert kept.arrays["squares"].tolist() == [i * i for i in range(1000)]
    assert kept.arrays["squares"].dtype == np.int32
    assert kept.arrays["bytes"].tolist() == [7, 8, 9]
    assert kept.about == ["a", "β"]


def cache(tmp_path, content="v1", shared=None):
    return ArrayCache(content=content, beside=tmp_path / "beside" / content, shared=shared)


def only_file(tmp_path):
    (file,) = (tmp_path / "beside").rglob("*.arrays")
    return file


def test_arrays_are_computed_once_and_mapped_later(tmp_path):
    made = Counted()
    check(cache(tmp_path).get("cell type/ß", ["labels"], made))
    kept = cache(tmp_path).get("cell type/ß", ["labels"], made)
    check(kept)
    assert (made.n_made, made.n_filled) == (1, 1)
    assert only_file(tmp_path).name.startswith("cell_type_ß-")
    kept.arrays["squares"][5] = -1  # a copy of the page
    check(cache(tmp_path).get("cell type/ß", ["labels"], made))


@pytest.mark.parametrize("other", [("x", ["labels"]), ("a", ["codes"]), ("a", ["labels", 1])])
def test_another_name_or_key_has_other_arrays(tmp_path, other):
    made = Counted()
    cache(tmp_path).get("a", ["labels"], made)
    check(cache(tmp_path).get(*other, made))
    assert made.n_filled == 2


def test_another_version_of_the_data_replaces_the_files(tmp_path):
    made = Counted()
    old = cache(tmp_path, "v1").get("a", [], made)
    check(cache(tmp_path, "v2").get("a", [], made))
    assert made.n_filled == 2
    assert only_file(tmp_path).parent.name == "v2"
    check(old)  # a run that has mapped the removed file keeps it


@pytest.mark.parametrize("at", [0, 9, 20, 40, 5000, -1])
def test_a_damaged_file_is_computed_anew(tmp_path, caplog, at):
    made = Counted()
    cache(tmp_path).get("a", [], made)
    file = only_file(tmp_path)
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    file.unlink()
    file.write_bytes(content)
    check(cache(tmp_path).get("a", [], made))
    assert made.n_filled == 2
    check(cache(tmp_path).get("a", [], made))
    assert made.n_filled == 2


@pytest.mark.parametrize("n_bytes", [0, 7, 23, 4096, 8000])
def test_a_file_that_ends_early_is_computed_anew(tmp_path, n_bytes):
    made = Counted()
    cache(tmp_path).get("a", [], made)
    file = only_file(tmp_path)
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:n_bytes])
    check(cache(tmp_path).get("a", [], made))
    assert made.n_filled == 2


def test_a_computation_that_fails_leaves_nothing(tmp_path):
    def fill(out):
        out["x"][:] = 1
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        cache(tmp_path).get("a", [], lambda: Recipe(shapes={"x": (np.dtype(np.int8), 5)}, fill=fill))
    assert {file.name for file in (tmp_path / "beside").rglob("*") if file.is_file()} == {"lock"}


def test_files_that_a_killed_process_left_are_removed(tmp_path):
    left = tmp_path / "beside" / "v1" / "a-1.arrays.5f.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    check(cache(tmp_path).get("a", [], Counted()))
    assert not left.exists()


def test_a_folder_that_takes_no_files_is_replaced_by_the_shared_one(tmp_path):
    (tmp_path / "beside").write_text("a file, not a folder")
    made, shared = Counted(), tmp_path / "shared"
    check(cache(tmp_path, shared=shared).get("a", [], made))
    check(cache(tmp_path, shared=shared).get("a", [], made))
    assert made.n_filled == 1
    assert len(list(shared.glob("*.arrays"))) == 1


def test_without_a_folder_that_takes_files_a_warning_says_so_once(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(arrays.os, "posix_fallocate", full)
    made, unwritable = Counted(), cache(tmp_path, shared=tmp_path / "shared")
    with caplog.at_level(logging.WARNING):
        check(unwritable.get("a", [], made))
        check(unwritable.get("b", [], made))
    assert (made.n_made, made.n_filled) == (2, 2)
    (message,) = caplog.messages
    assert "No space left" in message
    assert "SCDATALOADER_CACHE" in message
    assert not list(tmp_path.rglob("*.partial"))


def test_without_folders_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(ArrayCache().get("a", [], Counted()))
    assert not list(tmp_path.iterdir())


def _slowly(folder, results):
    made = Counted()

    def make():
        time.sleep(0.2)
        return made()

    kept = ArrayCache(content="v1", beside=folder).get("a", [], make)
    results.put((made.n_filled, kept.arrays["squares"].tolist() == [i * i for i in range(1000)]))


def test_of_processes_that_need_the_same_arrays_one_computes_them(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_slowly, args=(Path(tmp_path, "v", "v1"), results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(found) == [(0, True), (0, True), (1, True)]
