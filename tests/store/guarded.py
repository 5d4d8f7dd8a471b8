"""Memory between two pages that nobody may touch: reading or writing one byte too many ends the process."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

_PAGE = mmap.PAGESIZE
_NONE, _READ_WRITE = 0, 3
_PRIVATE_ANONYMOUS = 0x02 | mmap.MAP_ANONYMOUS


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


class Guarded:
    """Up to ``n_bytes`` of memory that begin right behind one such page, or end right before the other."""

    def __init__(self, n_bytes: int) -> None:
        libc = _libc()
        self._room = -(-n_bytes // _PAGE) * _PAGE
        base = libc.mmap(None, self._room + 2 * _PAGE, _NONE, _PRIVATE_ANONYMOUS, -1, 0)
        if base in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap")
        self._base = base + _PAGE
        if libc.mprotect(self._base, self._room, _READ_WRITE):
            raise OSError(ctypes.get_errno(), "mprotect")

    def array(self, size: int, dtype: Any, *, at_end: bool) -> np.ndarray:
        """An array of ``size``, over whatever the memory holds."""
        n_bytes = size * np.dtype(dtype).itemsize
        assert n_bytes <= self._room
        begin = self._base + (self._room - n_bytes if at_end else 0)
        return np.frombuffer((ctypes.c_uint8 * n_bytes).from_address(begin), dtype) if n_bytes else np.empty(0, dtype)

    def filled(self, values: np.ndarray, *, at_end: bool) -> np.ndarray:
        """A copy of an array."""
        made = self.array(len(values), values.dtype, at_end=at_end)
        made[:] = values
        return made
