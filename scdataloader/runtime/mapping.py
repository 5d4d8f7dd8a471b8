"""Maps of files, and checks that files are still as they were when they were opened."""

from __future__ import annotations

import mmap
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import SourceChangedError
from scdataloader.kernels.machine.files import first_changed
from scdataloader.runtime import bus_errors
from scdataloader.runtime.files import opening

_REMEDY = "restore it and resume from a checkpoint, or open the changed data in a new run"


class FileWatch:
    """Sizes and times of change of files, and the time at which they were recorded."""

    def __init__(self, *paths: Path) -> None:
        """Record the state of files and folders.

        Raises:
            FileNotFoundError: one does not exist.
        """
        self.opened_ns = time.time_ns()
        self._paths = [str(path.absolute()) for path in paths]
        found = [path.stat() for path in paths]
        self._states = np.array([(info.st_size, info.st_mtime_ns) for info in found], np.int64).reshape(-1, 2)
        names = [os.fsencode(path) + b"\0" for path in self._paths]
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._starts = np.cumsum([0, *map(len, names)])[:-1]
        self._all = np.arange(len(found))

    def check(self, which: NDArray[np.integer] | None = None) -> None:
        """Check that all files, or those of the given numbers, repeats allowed, are as they were.

        Raises:
            SourceChangedError: one is not; names it.
        """
        which = self._all if which is None else which
        if not bus_errors.IS_HANDLED:
            for i in np.unique(which).tolist():
                self._check_one(i)
        elif (changed := first_changed(self._names, self._starts, self._states, which)) >= 0:
            self._check_one(changed)

    def check_part(self, path: str, info: os.stat_result) -> None:
        """Check that a part of a watched folder has not been written since.

        Raises:
            SourceChangedError: it has been.
        """
        if info.st_ctime_ns > self.opened_ns:
            raise SourceChangedError(
                f"{path} was written, moved or removed at {_time(info.st_ctime_ns)}, after it was opened at "
                f"{_time(self.opened_ns)}; {_REMEDY}"
            )

    def _check_one(self, i: int) -> None:
        path, (n_bytes, changed_ns) = self._paths[i], self._states[i].tolist()
        try:
            info = Path(path).stat()
        except OSError as error:
            raise SourceChangedError(f"{path} was removed after it was opened ({error.strerror}); {_REMEDY}") from error
        if (info.st_size, info.st_mtime_ns) != (n_bytes, changed_ns):
            raise SourceChangedError(
                f"{path} has changed since it was opened: it has {info.st_size:,} bytes, written at "
                f"{_time(info.st_mtime_ns)}, expected {n_bytes:,} bytes, written at {_time(changed_ns)}; {_REMEDY}"
            )


class MappedFile(mmap.mmap):
    """A file that is mapped for reading; see `map_file`."""

    _path: str
    _slot: int | None = None

    def watch(self, path: Path) -> Self:
        """Name the file in errors, and handle bus errors in the map; returns the map."""
        self._path = str(path)
        self._slot = bus_errors.watch(np.frombuffer(self, np.uint8).ctypes.data, len(self))
        return self

    def check(self) -> None:
        """Check that all pages that were touched could be read.

        Raises:
            SourceChangedError: one could not; names the file.
        """
        if self._slot is not None and (offset := bus_errors.fault(self._slot)) is not None:
            raise SourceChangedError(
                f"{self._path} cannot be read at byte {offset:,}: it was shortened, or the disk failed; {_REMEDY}"
            )

    def __del__(self) -> None:
        if self._slot is not None:
            bus_errors.unwatch(self._slot)  # before the map is closed, so that its addresses may be used again


def map_file(path: Path, n_bytes: int = 0) -> MappedFile:
    """Map the first ``n_bytes`` of a file for reading, 0 for all; the map is closed with its last view.

    Pages that cannot be read appear as zeros: call `MappedFile.check` after reading, before values are used.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is empty, or has fewer bytes.
    """
    with opening(path), path.open("rb") as file:
        if sys.version_info >= (3, 13):  # a map needs no descriptor
            content = MappedFile(file.fileno(), n_bytes, access=mmap.ACCESS_READ, trackfd=False)
        else:
            content = MappedFile(file.fileno(), n_bytes, access=mmap.ACCESS_READ)
        return content.watch(path)


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
