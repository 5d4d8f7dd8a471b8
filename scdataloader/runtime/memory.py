"""Memory that is used again: pages fresh from the system cost as much time as what is read into them."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdataloader.kernels.rows.align import row_starts
from scdataloader.types import RowBuffers

_HEADROOM = 1.1
"""Buffers are made this much larger than asked for, so that the next window, somewhat larger, fits as well."""


class BufferPool:
    """Arrays whose memory goes to the next taker once nobody refers to them any more.

    There is no way to give an array back, and none is needed: memory is free when the last view of it is gone, a slice
    or a tensor made of it included. Whoever keeps a batch keeps its memory. Thread-safe.
    """

    def __init__(self, max_bytes: int = 256 << 20) -> None:
        """Keep up to ``max_bytes`` of memory; what is taken beyond that is ordinary memory."""
        self._max_bytes = max_bytes
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._buffers: list[NDArray[Any]] = []
        self._lock = threading.Lock()

    def take(self, size: int, dtype: DTypeLike) -> NDArray[Any]:
        """An array of ``size`` values of ``dtype``, of any content."""
        n_bytes = size * np.dtype(dtype).itemsize
        if self._process != os.getpid():  # another thread may have held the lock when this process was forked
            self._start()
        with self._lock:
            return self._free(n_bytes)[:n_bytes].view(dtype)

    def _free(self, n_bytes: int) -> NDArray[np.uint8]:
        small = None
        for i in range(len(self._buffers)):
            # Two references to a free buffer: the list's, and the argument of getrefcount.
            if sys.getrefcount(self._buffers[i]) == 2:  # noqa: PLR2004
                if len(self._buffers[i]) >= n_bytes:
                    return self._buffers[i]
                small = i
        made = np.empty(int(n_bytes * _HEADROOM), np.uint8)
        if small is not None:
            del self._buffers[small]
        if sum(map(len, self._buffers)) + len(made) <= self._max_bytes:
            self._buffers.append(made)
        return made

    def __reduce__(self) -> tuple[type[BufferPool], tuple[int]]:
        return BufferPool, (self._max_bytes,)


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
