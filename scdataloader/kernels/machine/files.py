"""States of files, looked up without Python for each file: Linux on x86-64 and ARM64 only."""

from __future__ import annotations

import platform
from typing import Any

import numba as nb
import numpy as np
from numba import types
from numpy.typing import NDArray


def c_function(name: str, *signature: str) -> Any:
    """A function of the C library, for compiled code; the type of its result precedes those of its arguments."""
    result, *arguments = (getattr(types, kind) for kind in signature)
    return types.ExternalFunction(name, result(*arguments))


_syscall = c_function("syscall", "int64", "int64", "int64", "uintp", "int64", "int64", "uintp")
# asm/unistd.h, linux/fcntl.h, linux/stat.h; some C libraries lack statx
_STATX = 291 if platform.machine() == "aarch64" else 332
_HERE = -100
_SIZE_AND_MTIME = 0x240
_SIZE, _SECONDS, _NANOSECONDS = 5, 14, 15
"""Places of ``stx_size`` and ``stx_mtime`` in a ``struct statx``, in 64-bit words."""
_STATX_WORDS = 32


@nb.njit(cache=True)  # keeps the GIL: getting it back takes longer than this, unless files are many and far away
def first_changed(
    names: NDArray[np.uint8], starts: NDArray[np.int64], states: NDArray[np.int64], which: NDArray[np.integer]
) -> int:
    """The first of some files that does not have its state any more, or does not exist; -1 if all have it.

    Args:
        names: Paths, each with a zero byte at its end.
        starts: ``(n,)`` offset of the path of each file in ``names``.
        states: ``(n, 2)`` bytes and time of change, in nanoseconds, of each file.
        which: Numbers of the files to look up, repeats allowed.
    """
    seen, info = np.zeros(len(states), np.bool_), np.empty(_STATX_WORDS, np.int64)
    for i in which:
        if seen[i]:
            continue
        seen[i] = True
        name, out = np.uintp(names.ctypes.data + starts[i]), np.uintp(info.ctypes.data)
        if _syscall(_STATX, _HERE, name, 0, _SIZE_AND_MTIME, out):
            return int(i)
        changed = info[_SECONDS] * 1_000_000_000 + (info[_NANOSECONDS] & 0xFFFFFFFF)
        if info[_SIZE] != states[i, 0] or changed != states[i, 1]:
            return int(i)
    return -1
