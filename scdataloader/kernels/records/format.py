"""Record format: the bytes that hold one cell, their length and their checksum.

A record begins at a multiple of 8 bytes. All numbers are little-endian.
Records of bytes:

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

Packed records, which shards of version 3 may have; planes are described in `packed`:

| bytes   | content                                                                                                  |
|---------|----------------------------------------------------------------------------------------------------------|
| 4       | checksum of the rest of the record and of the cell's number in its shard                                 |
| 4       | n, number of values                                                                                      |
| 4       | lower 31 bits: r, number of raised values; upper bit: 1                                                  |
| 4       | lower 24 bits: b, number of large values; 4 bits: width of a value (a code below); 4 bits: log2 of the   |
|         | width l of the lower part of a gene number, which is 2, 4, 8 or 16 bits                                  |
| 8b      | large values: position j and the value, as two u32; j ascending; their entry among the values is 0       |
| 8m      | upper parts of the gene numbers: bit j + (gene number j >> l) is 1 for each j; m is what fits            |
| wn / 8  | values: of `U2`, `U4` and `U8` the lower bits of each minus 1, in planes; others as they are             |
| ln / 8  | lower l bits of the gene numbers, in planes; 16 bits as u16                                              |
| r       | raised values: the position minus that of the one before, or minus 0; 255 where there is more to add     |
| r       | what is to be added to the value, as a multiple of 2^w; 0 with a mere step of 255                        |
| to 8    | zeros                                                                                                    |

Short records, which shards of version 4 may have, stand for a record of bytes with values of one byte:

| bytes   | content                                                                                                  |
|---------|----------------------------------------------------------------------------------------------------------|
| 4       | checksum of the rest of the record and of the cell's number in its shard                                 |
| 4       | n, number of values, at most 2^14                                                                        |
| 4       | lower 31 bits: r, number of raised values; upper bit: 1                                                  |
| 4       | lower 24 bits: b, number of large values; 4 bits: 6                                                      |
| 4, 4    | a, number of long gaps; g, number of wide gaps                                                           |
| 8a, 8b  | long gaps and large values as in a record of bytes                                                       |
| 2r      | positions of the raised values, those of 16 or more, as u16; ascending                                   |
| 2g      | wide gaps, those of 64 or more, as u16: lower 14 bits: position, ascending; upper two: upper bits of the |
|         | gap's byte                                                                                               |
| n / 2   | values: the lower 4 bits of each, in planes                                                              |
| 3m      | lower 6 bits of the gaps, m = (n + 3) // 4: gap j < 3m in the lower bits of byte j; the bits of gap      |
|         | 3m + j, from the lowest two on, in the upper two of bytes j, m + j and 2m + j                            |
| r       | the upper 4 bits of the raised values' bytes, as multiples of 16                                         |
| to 8    | zeros                                                                                                    |

Since n and a are below 2^31, the upper bit of the third number tells a record of bytes from the others.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.random import GAMMA, mix

HEADER = 16
"""Bytes before the exceptions."""
U8, U16, U32, F32, U2, U4, SHORT_CODE = range(7)
"""Widths of values: counts in 8, 16 or 32 bits; float32; in packed records also counts in 2 or 4 bits. And what short
records have instead."""
MOST_LARGE = 1 << 24
"""A packed or short record has fewer large values."""
PACKED = 1 << 31
"""In the third number of packed and short records."""
WIDTH_SHIFT = 30
CODE_AT, _LOW_AT = 24, 28
"""Bits of the fourth number of packed and short records."""
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


class Parts(NamedTuple):
    """Where the parts of a record are, as its header states them."""

    n: int
    """Number of values."""
    is_packed: int
    """0 or 1."""
    n_gaps: int
    """Number of long gaps; 0 of packed records."""
    n_large: int
    code: int
    """Width of a value."""
    low: int
    """Bits of the lower part of a gene number; 0 of records that are not packed."""
    large: int
    """Offset of the large values, in bytes."""
    values: int
    """Offset of the values."""
    genes: int
    """Offset of the lower parts of the gene numbers, or of the gaps."""
    raised: int
    """Offset of the raised values."""
    end: int
    """Offset of the padding."""


@nb.njit(inline="always", cache=True)
def value_bits(code: int) -> int:
    """Bits of a value."""
    return 2 if code == U2 else 4 if code == U4 else 8 if code == U8 else 16 if code == U16 else 32


@nb.njit(inline="always", cache=True)
def field_bytes(n: int, bits: int) -> int:
    """Bytes of ``n`` fields of ``bits`` bits."""
    return (n * bits + 7) >> 3


@nb.njit(nogil=True, cache=True)
def parts_of(words: NDArray[np.uint64]) -> Parts:
    """The parts of a record that is not short, which may be beyond its end; `fits` checks that they are not."""
    head, room = words.view(np.uint32), 8 * len(words)
    n, third, fourth = int(np.int64(head[1])), int(np.int64(head[2])), int(np.int64(head[3]))
    if third < PACKED:
        n_large, code = fourth & ((1 << WIDTH_SHIFT) - 1), fourth >> WIDTH_SHIFT
        large = HEADER + 8 * third
        values = large + 8 * n_large
        genes = values + field_bytes(n, value_bits(code))
        return Parts(n, 0, third, n_large, code, 0, large, values, genes, genes + n, genes + n)
    n_large, code, low = fourth & (MOST_LARGE - 1), fourth >> CODE_AT & 15, 1 << (fourth >> _LOW_AT)
    upper = HEADER + 8 * n_large
    fixed = field_bytes(n, value_bits(code)) + field_bytes(n, low) + 2 * (third - PACKED)
    values = upper + (max(0, room - upper - fixed) & -8)
    genes = values + field_bytes(n, value_bits(code))
    return Parts(n, 1, 0, n_large, code, low, HEADER, values, genes, genes + field_bytes(n, low), values + fixed)


@nb.njit(nogil=True, cache=True)
def write_header(words: NDArray[np.uint64], n: int, n_raised: int, n_large: int, code: int, low: int) -> None:
    """Write the header of a packed record but for its checksum; ``low`` is 2, 4, 8 or 16."""
    head = words.view(np.uint32)
    log = 1 if low == 2 else 2 if low == 4 else 3 if low == 8 else 4  # noqa: PLR2004 (bits)
    head[1], head[2] = n, n_raised | PACKED
    head[3] = n_large | code << CODE_AT | log << _LOW_AT


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
