"""Sparse file of the pages that were fetched, shared by all processes of a machine and bounded in size.

Each is a folder of the cache:

```
content.json  what it is a copy of
data          the bytes, with holes for pages that were not fetched
state         8 bytes of the number of all removals; then, per 64 pages (a segment), 8 bytes of presence bits, 4 of the
              time of last use, 4 of the number of changes
lock          locked by all processes that use the folder, so that none removes it
```

A page is present once its bit is set, after its bytes are written. To keep its size, any process removes segments that
any other may be reading: it makes their number of changes odd, clears their bits, punches a hole, and makes it even.
A reader uses what it made of the bytes only if the numbers were even and are the same after it (a sequence lock): so
nothing is ever read from a hole, and readers do not wait. Writing and removing exclude each other by a lock of
``data``, whose holder takes an odd number for one that was left by a process that ended.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.machine.pages import PAGE, SEGMENT, absent_runs, copy_ranges, look, set_pages
from scdataloader.runtime.bus_errors import has_faulted
from scdataloader.runtime.files import reserve, try_lock, write_atomically
from scdataloader.runtime.mapping import MappedFile, map_file
from scdataloader.runtime.options import RemoteOptions

SEGMENT_BYTES = SEGMENT * PAGE
CONTENT, DATA, STATE, LOCK = "content.json", "data", "state", "lock"
_STATE_BYTES = 16
"""Bytes of state per segment."""
_HEAD = 1
"""Words of state before those of the segments."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM, errno.ENOTSUP)
"""Errors of a disk that takes no more."""
KEPT = int(np.iinfo(np.uint32).max)
"""Time of last use of segments that are never removed."""
_IN_USE = 60
"""Seconds after its last use in which a segment is removed only if all others are in use as well."""
_ROOM = 16
"""A sixteenth is removed at once when the cache is full."""
_PUNCH_HOLE = 0x03
"""FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE (linux/falloc.h)."""


class SparseCopy:
    """Pages of a copy of ``n_bytes``. Thread-safe; reading and writing also while other processes do."""

    def __init__(self, folder: Path, content: dict[str, Any], n_bytes: int) -> None:
        """Open the copy in ``folder``, or make it; without a usable disk, nothing is kept, with a warning."""
        self._folder = folder
        n_segments = n_bytes // SEGMENT_BYTES
        self._map: MappedFile | None = None
        self.base = 0
        """Address of the bytes."""
        self.is_writable = True
        """Whether pages that are written are kept."""
        try:
            self._open(content, n_segments)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._take(np.zeros(_HEAD + n_segments * _STATE_BYTES // 8, np.uint64), n_segments)
            self._stop_writing(error)

    def _open(self, content: dict[str, Any], n_segments: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._in_use = _locked(self._folder / LOCK)
        self._thread, self._process = threading.Lock(), os.getpid()
        self._data = os.open(self._folder / DATA, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._limit_at = 0.0
        with self._exclusive():
            n_state, state_file = 8 * _HEAD + n_segments * _STATE_BYTES, self._folder / STATE
            if not ((self._folder / CONTENT).is_file() and _size(state_file) == n_state):  # new, or parts were removed
                _remove_unused(self._folder)
                os.ftruncate(self._data, max(1, n_segments) * SEGMENT_BYTES)
                state_file.unlink(missing_ok=True)
                with state_file.open("wb") as file:
                    reserve(file.fileno(), n_state)
                write_atomically(self._folder / CONTENT, json.dumps(content, indent=1).encode())
            with state_file.open("r+b") as file:
                state = mmap.mmap(file.fileno(), 0)
            self._map = map_file(self._folder / DATA)
            self.base = np.frombuffer(self._map, np.uint8).ctypes.data
            self._take(np.frombuffer(state, np.uint64), n_segments)
            self._repair()

    def _take(self, words: NDArray[np.uint64], n: int) -> None:
        self.removals, words = words[:_HEAD], words[_HEAD:]
        """``(1,)`` number of removals."""
        self.present = words[:n]
        """``(S,)`` bits of the pages of each segment."""
        rest = words[n:].view(np.uint32)
        self.used = rest[:n]
        """``(S,)`` time of last use, in seconds, or `KEPT`."""
        self._changes = rest[n : 2 * n]

    def copy(
        self, first: NDArray[np.int64], last: NDArray[np.int64], starts: NDArray[np.int64], out: NDArray[np.uint8]
    ) -> NDArray[np.bool_]:
        """Copy the bytes [first, last) of ranges to ``starts`` of ``out``; returns which were all present."""
        before = self.look(first, last)
        if self._map is not None:
            copy_ranges(self.base, first, last, before, starts, out)
        is_right: NDArray[np.bool_] = (before >= 0) & (before == self.look(first, last))
        return is_right

    def look(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
        """``(m,)`` a number for the bytes of each range, -1 if one is missing.

        What a compiled loop made of bytes is right if it is between two calls that return the same number, not -1. (A
        call, which takes the GIL, orders accesses to memory on every processor.)

        Raises:
            SourceChangedError: the file was shortened, or the disk failed.
        """
        seen = np.empty(len(first), np.int64)
        look(first, last, self.present, self._changes, seen)
        if has_faulted() and self._map is not None:
            self._map.check()
        return seen

    def write(self, first: int, last: int, content: Any) -> None:
        """Write pages ``first`` to ``last``, but those that are present; ``content`` may end before the last page."""
        if not self.is_writable:
            return
        view = memoryview(content).cast("B")
        try:
            with self._exclusive():
                if (self._changes[first // SEGMENT : last // SEGMENT + 1] & 1).any():
                    self._repair()
                self._make_room(len(view))
                busy = range(first // SEGMENT, last // SEGMENT + 1)
                for a, z in absent_runs(first, last, self.present).tolist():
                    piece = view[(a - first) * PAGE : (z + 1 - first) * PAGE]
                    self._write(piece, a * PAGE, busy)
                    set_pages(a, z, self.present, True)  # noqa: FBT003
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._stop_writing(error)

    def _write(self, piece: memoryview, at: int, busy: range) -> None:
        """Write at a byte of the copy; if the disk is full, segments other than the ``busy`` ones make room."""
        while len(piece):
            try:
                n = os.pwrite(self._data, piece, at)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._remove(len(piece), busy):
                    raise
                continue
            piece, at = piece[n:], at + n

    def forget(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> None:
        """Count the pages of ranges as missing: their bytes are wrong."""
        if not self.is_writable:
            return
        with self._exclusive():
            self._repair()
            self.removals += np.uint64(1)
            for begin, end in zip(first.tolist(), last.tolist(), strict=True):
                a, z = begin // PAGE, (end - 1) // PAGE
                segments = slice(a // SEGMENT, z // SEGMENT + 1)
                self._changes[segments] += 1
                set_pages(a, z, self.present, False)  # noqa: FBT003
                self._changes[segments] += 1

    def _make_room(self, n_bytes: int) -> None:
        used = _bytes_on_disk(self._data)
        now = time.monotonic()
        if now > self._limit_at:
            others = _used_by_others(self._folder)
            self._limit = RemoteOptions.of_environment().limit(self._folder.parent, used + others) - others
            self._limit_at = now + 5
        if used + n_bytes > self._limit and not self._remove(used + n_bytes - self._limit + self._limit // _ROOM):
            raise OSError(errno.ENOSPC, "no page can be removed")

    def _remove(self, n_bytes: int, busy: range = range(0)) -> bool:
        """Remove segments with about ``n_bytes``, but ``busy`` ones; returns whether there were any. With the lock.

        They are chosen at random among those that are not in use, which keeps part of the data for the next epoch
        even if all do not fit; the least recently used would be those that come next.
        """
        self._repair()  # another change to what a process left half removed would make its number even again
        held = np.flatnonzero((self.present != 0) & (self.used != KEPT))
        held = held[(held < busy.start) | (held >= busy.stop)]
        idle = held[self.used[held] < time.time() - _IN_USE]
        idle = np.random.default_rng().permutation(idle) if len(idle) else held[np.argsort(self.used[held])]
        sizes = np.cumsum(np.bitwise_count(self.present[idle]).astype(np.int64)) * PAGE
        gone = np.sort(idle[: int(np.searchsorted(sizes, n_bytes)) + 1])
        if not len(gone):
            return False
        self.removals += np.uint64(1)
        self._changes[gone] += 1
        self.present[gone] = 0
        for run in np.split(gone, np.flatnonzero(np.diff(gone) != 1) + 1):
            _punch(self._data, int(run[0]) * SEGMENT_BYTES, len(run) * SEGMENT_BYTES)
        self._changes[gone] += 1
        return True

    def repair(self) -> None:
        """Finish removals that a process began and did not end, and wait for those that go on."""
        with self._exclusive():
            self._repair()

    def _repair(self) -> None:
        """Finish removals that a process began and did not end. Called with the lock."""
        left = np.flatnonzero(self._changes & 1)
        self.present[left] = 0
        self._changes[left] += 1

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Lock out all other threads and processes that write or remove."""
        if self._process != os.getpid():  # an inherited descriptor shares the lock of the parent
            os.close(self._data)
            self._data = os.open(self._folder / DATA, os.O_RDWR | os.O_CLOEXEC)
            self._thread, self._process = threading.Lock(), os.getpid()
        with self._thread:
            fcntl.flock(self._data, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._data, fcntl.LOCK_UN)

    def _stop_writing(self, error: OSError) -> None:
        self.is_writable = False
        warnings.warn(
            f"the cache {self._folder.parent} cannot take more ({error.strerror}): what is not in it is fetched anew "
            "at every read; free space, or set SCDATALOADER_CACHE to a folder of another disk",
            stacklevel=2,
        )

    def __del__(self) -> None:
        for name in ("_data", "_in_use"):
            if name in self.__dict__:
                os.close(self.__dict__.pop(name))


def _locked(path: Path) -> int:
    """A descriptor of a lock file that is locked by those that use a folder; makes the folder if it was removed."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if try_lock(descriptor, shared=True) and path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
        os.close(descriptor)  # it is being removed
        time.sleep(0.01)


def _remove_unused(own: Path) -> None:
    """Remove the copies that no process uses, the least recently used first, while the cache is too large."""
    others = [folder for folder in own.parent.iterdir() if folder != own and (folder / LOCK).is_file()]
    sizes = {folder: _bytes_on_disk(folder / DATA) for folder in others}
    limit = RemoteOptions.of_environment().limit(own.parent, sum(sizes.values()))
    for folder in sorted(others, key=_last_use):
        if sum(sizes.values()) <= limit * (1 - 1 / _ROOM):
            return
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
        try:
            if try_lock(descriptor):
                shutil.rmtree(folder)
                del sizes[folder]
        finally:
            os.close(descriptor)


def _last_use(folder: Path) -> float:
    return (folder / STATE).stat().st_mtime if (folder / STATE).is_file() else 0.0


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1


def _used_by_others(own: Path) -> int:
    return sum(_bytes_on_disk(file) for file in own.parent.glob(f"*/{DATA}") if file.parent != own)


def _bytes_on_disk(file: Path | int) -> int:
    try:
        found = file.stat() if isinstance(file, Path) else os.fstat(file)
    except FileNotFoundError:
        return 0
    return found.st_blocks * 512


def _punch(descriptor: int, begin: int, n_bytes: int) -> None:
    """Return a part of a file to the file system.

    Raises:
        OSError: it cannot do that.
    """
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    call = ctypes.CDLL(None, use_errno=True).fallocate
    if call(descriptor, _PUNCH_HOLE, ctypes.c_int64(begin), ctypes.c_int64(n_bytes)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
