"""Prefetch of ranges of mapped files (``madvise`` with ``MADV_WILLNEED``), so that the disk reads many ranges at once.

Without it, every first access to a page waits for the disk. Linux only; elsewhere `read_ahead` does nothing.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import cache

import numpy as np
from numpy.typing import NDArray

_PIDFD_OPEN, _PROCESS_MADVISE = 434, 440
"""Numbers of the system calls on all architectures; `os.pidfd_open` is missing in some builds of Python."""
_AT_ONCE = 1024
"""Ranges per call (IOV_MAX)."""
_GOLDEN = (5**0.5 - 1) / 2
_LOOKED_AT = 16
"""Ranges that are sampled to decide whether all are in memory."""


def read_ahead(address: NDArray[np.int64], length: NDArray[np.int64]) -> None:
    """Start reading the ranges of ``length`` bytes at ``address``, unless a sample of them is in memory.

    Returns at once. Raises nothing if the system ignores the advice.
    """
    if not sys.platform.startswith("linux") or _in_memory(address, length):
        return
    order = np.argsort(address)
    begin, end = address[order] & -mmap.PAGESIZE, np.maximum.accumulate((address + length)[order])
    starts = np.flatnonzero(np.append(True, begin[1:] > end[:-1]))  # neighbours become one range
    begin = begin[starts]
    ranges = np.stack([begin, end[np.append(starts[1:] - 1, -1)] - begin], axis=1)
    for at in range(0, len(ranges), _AT_ONCE):
        some = ranges[at : at + _AT_ONCE]
        _libc().syscall(
            _PROCESS_MADVISE, _this_process(os.getpid()), ctypes.c_void_p(some.ctypes.data), len(some),
            mmap.MADV_WILLNEED, 0,
        )  # fmt: skip


def _in_memory(address: NDArray[np.int64], length: NDArray[np.int64]) -> bool:
    """Whether the first pages of a sample of the ranges are all in memory.

    The sample is taken at steps of the golden ratio; even steps could all hit the same blocks of draws.
    """
    resident = ctypes.c_ubyte(0)
    for i in (np.arange(_LOOKED_AT) * _GOLDEN % 1 * len(address)).astype(np.int64) if len(address) else ():
        begin = int(address[i]) & -mmap.PAGESIZE
        failed = _libc().mincore(ctypes.c_void_p(begin), mmap.PAGESIZE, ctypes.byref(resident))
        if length[i] and not failed and not resident.value & 1:
            return False
    return True


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@cache
def _this_process(pid: int) -> int:
    """A pidfd of this process; -1 if the system does not support it."""
    descriptor: int = _libc().syscall(_PIDFD_OPEN, pid, 0)
    return descriptor
