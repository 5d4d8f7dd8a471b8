"""Asking the system for stretches of mapped files before they are touched, so that a disk works on many at once.

Without it each first touch of a page waits for the disk by itself. The calls are Linux's; elsewhere nothing is asked.
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
"""Numbers of the system calls, the same on all architectures: not every build of Python has `os.pidfd_open`."""
_AT_ONCE = 1024
"""Stretches that one call takes (IOV_MAX)."""
_GOLDEN = (5**0.5 - 1) / 2
_LOOKED_AT = 16
"""Stretches of which one that is not in memory tells that a window is not."""


def read_ahead(address: NDArray[np.int64], length: NDArray[np.int64]) -> None:
    """Begin to read the stretches of ``length`` bytes at ``address``, unless those looked at are in memory.

    Returns at once. Advice only: nothing is raised where the system does not take it.
    """
    if not sys.platform.startswith("linux") or _in_memory(address, length):
        return
    order = np.argsort(address)
    begin, end = address[order] & -mmap.PAGESIZE, np.maximum.accumulate((address + length)[order])
    apart = np.flatnonzero(np.append(True, begin[1:] > end[:-1]))  # neighbours are asked for as one
    begin = begin[apart]
    stretches = np.stack([begin, end[np.append(apart[1:] - 1, -1)] - begin], axis=1)
    for at in range(0, len(stretches), _AT_ONCE):
        some = stretches[at : at + _AT_ONCE]
        _libc().syscall(
            _PROCESS_MADVISE, _this_process(os.getpid()), ctypes.c_void_p(some.ctypes.data), len(some),
            mmap.MADV_WILLNEED, 0,
        )  # fmt: skip


def _in_memory(address: NDArray[np.int64], length: NDArray[np.int64]) -> bool:
    """Whether the first pages of some stretches are all in memory.

    They are chosen at steps of the golden ratio: at even ones, draws of one block would stand for all.
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
    """A descriptor of it; -1 where the system has none, which it then takes for no process."""
    descriptor: int = _libc().syscall(_PIDFD_OPEN, pid, 0)
    return descriptor
