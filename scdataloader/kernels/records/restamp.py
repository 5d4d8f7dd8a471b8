"""Records that have come to other places, with checksums of these."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.records.records import record_checksum


@nb.njit(nogil=True, cache=True)
def restamp_records(
    words: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    length: NDArray[np.int64],
    cell: NDArray[np.int64],
    first_cell: int,
) -> int:
    """Give records, of ``length`` bytes at bytes ``offsets`` of ``words``, the checksums of other cells.

    Record i was cell ``cell[i]`` of its shard and becomes cell ``first_cell + i`` of another one. Returns -1, or the
    first i whose record does not match the checksum that it had.
    """
    for i in range(len(offsets)):
        record = words[offsets[i] // 8 : (offsets[i] + length[i]) // 8]
        if np.uint32(record[0] & np.uint64(0xFFFFFFFF)) != record_checksum(record, cell[i]):
            return i
        record.view(np.uint32)[0] = record_checksum(record, first_cell + i)
    return -1
