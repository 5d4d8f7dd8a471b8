"""Buffer pool. Reusing buffers avoids page faults, which cost as much time as the reads."""

from __future__ import annotations

import os
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdataloader.kernels.rows.align import all_equal, close_gaps, row_starts
from scdataloader.runtime.options import stated_bytes
from scdataloader.types import CSRRows, RowBuffers

_HEADROOM = 1.1
"""Factor by which buffers exceed the requested size, so that a slightly larger window fits as well."""
_ALIGNMENT = 64
"""Bytes of whose multiples arrays begin at: a cache line, and what JAX requires to share memory."""


BUDGET = "SCDATALOADER_BUFFERS"
"""Environment variable: bytes that each pool may keep, such as "2GB"."""
_SHARE = 16
"""By default, a pool may keep 1 / 16 of the machine's memory."""
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container states its limit."""


@cache
def budget() -> int:
    """Bytes that a pool may keep: a sixteenth of the machine's memory, or what `BUDGET` states.

    Raises:
        ValueError: the variable is not a size.
    """
    stated = stated_bytes(BUDGET, 0)
    return _machine_memory() // _SHARE if stated is None else stated


def _machine_memory() -> int:
    """Bytes of memory of this machine, or of the container if it has fewer."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [file.read_text().strip() for file in _LIMITS if file.is_file()]
    return min([machine, *(int(limit) for limit in limits if limit.isdecimal())])


class BufferPool:
    """Pool of arrays whose memory is reused once nothing refers to them.

    Arrays are not returned explicitly: memory is free when its last view is gone, including slices and tensors. As many
    are kept as were in use at once, up to the `budget`; further ones are allocated as usual. Thread-safe.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._buffers: list[NDArray[Any]] = []
        self._lock = threading.Lock()

    def take(self, size: int, dtype: DTypeLike) -> NDArray[Any]:
        """An uninitialised array of ``size`` values, at a multiple of 64 bytes."""
        n_bytes = size * np.dtype(dtype).itemsize
        if self._process != os.getpid():  # the lock may have been held when this process was forked
            self._start()
        with self._lock:
            buffer = self._free(n_bytes + _ALIGNMENT - 1)
            start = -buffer.__array_interface__["data"][0] % _ALIGNMENT
            return buffer[start : start + n_bytes].view(dtype)

    def _free(self, n_bytes: int) -> NDArray[np.uint8]:
        small = None
        for i in range(len(self._buffers)):
            # a free buffer has two references: the list's and the argument of getrefcount
            if sys.getrefcount(self._buffers[i]) == 2:  # noqa: PLR2004
                if len(self._buffers[i]) >= n_bytes:
                    return self._buffers[i]
                small = i
        made = np.empty(int(n_bytes * _HEADROOM), np.uint8)
        if small is not None:
            del self._buffers[small]
        if sum(map(len, self._buffers)) + len(made) <= budget():
            self._buffers.append(made)
        return made

    def __reduce__(self) -> tuple[type[BufferPool], tuple[()]]:
        return BufferPool, ()


def row_buffers(most: NDArray[np.int64], buffers: BufferPool | None = None) -> RowBuffers:
    """Empty buffers for rows of up to ``most`` ``(B,)`` entries."""
    starts = row_starts(most)
    n = int(starts[-1])
    return RowBuffers(
        starts=starts,
        indices=np.empty(n, np.int32) if buffers is None else buffers.take(n, np.int32),
        data=np.empty(n, np.float32) if buffers is None else buffers.take(n, np.float32),
        sizes=np.empty(len(most), np.int64),
        depth=np.empty(len(most), np.float32),
    )


def without_gaps(buffers: RowBuffers, sizes: NDArray[np.int64], n_genes: int) -> CSRRows:
    """The rows that were written, without the room that they did not take of their ``sizes``."""
    starts, indices, data = buffers.starts, buffers.indices, buffers.data
    if not all_equal(buffers.sizes, sizes):
        starts = close_gaps(starts, buffers.sizes, indices, data)
        indices, data = indices[: starts[-1]], data[: starts[-1]]
    return CSRRows(data=data, indices=indices, indptr=starts, n_genes=n_genes)
