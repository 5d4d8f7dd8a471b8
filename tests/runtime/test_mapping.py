"""States of files, and maps that notice what they cannot read."""

import os
import pickle
import time

import numpy as np
import pytest

from scdataloader.errors import SourceChangedError
from scdataloader.runtime.bus_errors import IS_HANDLED
from scdataloader.runtime.mapping import FileWatch


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"é {number}" for number in range(5)]
    for path in paths:
        path.write_bytes(b"12345678")
    return paths


def grown(path):
    path.write_bytes(b"123456789")


def touched(path):
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 1))


def gone(path):
    path.unlink()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("change", [grown, touched, gone])
def test_the_file_that_changed_is_named(files, monkeypatch, compiled, change):
    """Also by the loop in Python, on systems that the compiled one does not know."""
    if not compiled:
        monkeypatch.setattr("scdataloader.runtime.bus_errors.IS_HANDLED", False)
    elif not IS_HANDLED:
        pytest.skip("the compiled loop knows Linux on x86-64 and ARM64")
    watch = pickle.loads(pickle.dumps(FileWatch(*files)))
    watch.check()
    change(files[3])
    watch.check(np.array([0, 4, 4, 1]))
    for which in (None, np.array([4, 3, 3])):
        with pytest.raises(SourceChangedError, match=r"é 3 (has changed|was removed)"):
            watch.check(which)


def test_times_are_written_with_what_was_found(files):
    watch = FileWatch(files[0])
    os.utime(files[0], ns=(0, 1_700_000_000_123_000_000))
    grown(files[0])
    expected = r"it has 9 bytes, written at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}, expected 8 bytes, written at "
    with pytest.raises(SourceChangedError, match=expected):
        watch.check()
