"""A cell as one record of bytes: what its parts are, how long it is, and its checksum.

A record begins at a multiple of 8 bytes, and all numbers are little-endian:

| bytes | what                                                                                                       |
|-------|------------------------------------------------------------------------------------------------------------|
| 4     | checksum of the rest of the record and of the cell's number in its shard                                   |
| 4     | n, how many values                                                                                         |
| 4     | a, how many long gaps                                                                                      |
| 4     | b, how many large values, in the lower 30 bits; in the upper two the width of a value: `U8`, `U16` …       |
| 8a    | long gaps: place j, and what exceeds the gap's byte (a multiple of 256), as two u32; places ascending      |
| 8b    | large values: place j, and the value, as two u32; places ascending; their own entry below is 0             |
| wn    | values of w bytes, in the order of their genes                                                             |
| n     | gaps: the first gene's number, then for each gene how many numbers lie between it and the one before       |
| to 8  | zeros                                                                                                      |
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.random import GAMMA, mix

HEADER = 16
"""Bytes before the exceptions."""
U8, U16, U32, F32 = 0, 1, 2, 3
"""Widths of values: counts in one, two or four bytes, of which the first two have exceptions; float32."""
WIDTH_SHIFT = 30
LARGE_MASK = (1 << WIDTH_SHIFT) - 1
_PRIME = np.uint64(0xD6E8FEB86659FD93)
"""Any odd number does; this one scatters well under multiplication (from the "rrmxmx" mixer of P. Evensen)."""
_LANES = 4


@nb.njit(inline="always", cache=True)
def value_width(code: int) -> int:
    """Bytes of a value."""
    return 1 if code == U8 else 2 if code == U16 else 4


@nb.njit(inline="always", cache=True)
def record_length(n: int, n_gaps: int, n_large: int, code: int) -> int:
    """Bytes of a record, the padding included."""
    return (HEADER + 8 * (n_gaps + n_large) + n * (value_width(code) + 1) + 7) // 8 * 8


@nb.njit(nogil=True, cache=True)
def record_checksum(words: NDArray[np.uint64], cell: int) -> np.uint32:
    """Checksum of a record as 64-bit words, of which the lower half of the first, its own place, does not count.

    Four lanes take every fourth word each, by exclusive or and multiplication: a change within one word always changes
    its lane. Lanes are independent, so that the processor works on all four at once.
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
