"""Record format: the bytes that hold one cell, their length and their checksum.

A record begins at a multiple of 8 bytes. All numbers are little-endian.

| bytes | content                                                                                                    |
|-------|------------------------------------------------------------------------------------------------------------|
| 4     | checksum of the rest of the record and of the cell's number in its shard                                   |
| 4     | n, number of values                                                                                        |
| 4     | a, number of long gaps                                                                                     |
| 4     | lower 30 bits: b, number of large values; upper two: width of a value, `U8`, `U16`, `U32` or `F32`         |
| 8a    | long gaps: position j, and the part above the gap's byte (a multiple of 256), as two u32; j ascending      |
| 8b    | large values: position j and the value, as two u32; j ascending; their entry among the values is 0         |
| wn    | values of w bytes each, in the order of their genes                                                        |
| n     | gaps: the number of the first gene, then the count of numbers skipped before each further gene             |
| to 8  | zeros                                                                                                      |
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.random import GAMMA, mix

HEADER = 16
"""Bytes before the exceptions."""
U8, U16, U32, F32 = 0, 1, 2, 3
"""Widths of values: counts in 1, 2 or 4 bytes, of which the first two can have large values; float32."""
WIDTH_SHIFT = 30
LARGE_MASK = (1 << WIDTH_SHIFT) - 1
_PRIME = np.uint64(0xD6E8FEB86659FD93)
"""Odd multiplier that mixes well (from the "rrmxmx" mixer of P. Evensen)."""
_LANES = 4


class Records(NamedTuple):
    """Records of m cells in memory."""

    cell: NDArray[np.int64]
    """``(m,)`` number of each cell in its shard."""
    address: NDArray[np.int64]
    """``(m,)`` address of each record."""
    length: NDArray[np.int64]
    """``(m,)`` bytes."""
    size: NDArray[np.int64]
    """``(m,)`` number of values."""


@nb.njit(inline="always", cache=True)
def value_width(code: int) -> int:
    """Bytes of a value."""
    return 1 if code == U8 else 2 if code == U16 else 4


@nb.njit(inline="always", cache=True)
def record_length(n: int, n_gaps: int, n_large: int, code: int) -> int:
    """Bytes of a record, including padding."""
    return (HEADER + 8 * (n_gaps + n_large) + n * (value_width(code) + 1) + 7) // 8 * 8


@nb.njit(nogil=True, cache=True)
def record_checksum(words: NDArray[np.uint64], cell: int) -> np.uint32:
    """Checksum of a record, given as 64-bit words. The lower half of the first word, which stores it, is left out.

    Each of four lanes takes every fourth word by exclusive or and multiplication: a change within one word always
    changes its lane. Lanes are independent, so that the processor works on all four at once.
    """
    seed = mix(np.uint64(cell) + GAMMA)
    a, b, c, d = seed, seed + GAMMA, seed ^ GAMMA, ~seed
    a = (a ^ (words[0] >> np.uint64(32))) * _PRIME
    whole = 1 + (len(words) - 1) // _LANES * _LANES
    for k in range(1, whole, _LANES):
        b = (b ^ words[k]) * _PRIME
        c = (c ^ words[k + 1]) * _PRIME
        d = (d ^ words[k + 2]) * _PRIME
        a = (a ^ words[k + 3]) * _PRIME
    for k in range(whole, len(words)):
        b = (b ^ words[k]) * _PRIME
    return np.uint32(mix(a ^ mix(b ^ mix(c ^ mix(d)))) & np.uint64(0xFFFFFFFF))


@nb.njit(nogil=True, cache=True)
def restamp_records(
    words: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    length: NDArray[np.int64],
    cell: NDArray[np.int64],
    first_cell: int,
) -> int:
    """Update the checksums of records that move to another shard.

    Record i has ``length[i]`` bytes at byte ``offsets[i]`` of ``words``. It was cell ``cell[i]`` of its shard and
    becomes cell ``first_cell + i`` of another one. Returns -1, or the first i whose old checksum does not match.
    """
    for i in range(len(offsets)):
        record = words[offsets[i] // 8 : (offsets[i] + length[i]) // 8]
        if np.uint32(record[0] & np.uint64(0xFFFFFFFF)) != record_checksum(record, cell[i]):
            return i
        record.view(np.uint32)[0] = record_checksum(record, first_cell + i)
    return -1
