"""Records of cells from one place to another."""

from __future__ import annotations

import numba as nb
import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numpy.typing import NDArray

from scdataloader.kernels.memory import pointer, prefetch_bytes
from scdataloader.kernels.records import record_checksum


@nb.njit(nogil=True, cache=True)
def copy_records(
    address: NDArray[np.int64],
    length: NDArray[np.int64],
    cell: NDArray[np.int64],
    first_cell: int,
    out: NDArray[np.uint64],
    offsets: NDArray[np.int64],
) -> int:
    """Copy records, of ``length`` bytes at ``address`` in memory, back to back into ``out``; returns its words in use.

    Record i, of cell ``cell[i]`` of its shard, becomes cell ``first_cell + i`` of another one, which its checksum
    covers; it begins at byte ``offsets[i]``. Returns -1 - i where record i does not match its checksum.
    """
    at = 0
    for i in range(len(address)):
        if i + 1 < len(address):
            prefetch_bytes(address[i + 1], length[i + 1])
        words = carray(pointer(np.uintp(address[i])), (length[i] // 8,), np.uint64)
        if np.uint32(words[0] & np.uint64(0xFFFFFFFF)) != record_checksum(words, cell[i]):
            return -1 - i
        copied = out[at : at + len(words)]
        copied[:] = words
        copied.view(np.uint32)[0] = record_checksum(copied, first_cell + i)
        offsets[i] = 8 * at
        at += len(words)
    return at
