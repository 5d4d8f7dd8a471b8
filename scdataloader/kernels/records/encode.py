"""Encoder: rows of a matrix to records."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.machine.bits import drain
from scdataloader.kernels.records.format import F32, HEADER, U8, U16, U32, WIDTH_SHIFT, record_checksum, record_length

_BYTE, _TWO_BYTES, _FOUR_BYTES = 1 << 8, 1 << 16, 1 << 32
_MINUS_ZERO = 1 << 31
"""As bits of a float32."""
COUNTS, FLOATS, EITHER = 0, 1, 2
"""Kinds of records: of counts, of float32, or of counts for cells whose float32 values are all counts."""


@nb.njit(nogil=True, cache=True)
def first_unfit(data: NDArray[Any], as_counts: bool) -> int:
    """Index of the first value that is not a count below 2^32 (``as_counts``) or not exact in float32; -1 for none."""
    for j in range(len(data)):
        value = data[j]
        if as_counts:
            if not (0 <= value < _FOUR_BYTES and value == np.floor(value)):
                return j
        elif value == value and np.float64(np.float32(value)) != np.float64(value):  # noqa: PLR0124 (NaN fits)
            return j
    return -1


@nb.njit(nogil=True, cache=True)
def encode_rows(
    indptr: NDArray[np.int64],
    indices: NDArray[Any],
    bits: NDArray[np.uint32],
    rank: NDArray[np.int32],
    kind: int,
    first_cell: int,
    out: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    sizes: NDArray[np.uint32],
) -> int:
    """Write one record per row, back to back, into ``out``, which has `most_words`; returns the number of words used.

    ``bits`` are the values: of kind `COUNTS` counts, of `FLOATS` and `EITHER` the bits of float32. ``rank[g]`` is the
    number of gene g in the records, distinct for each gene. Zeros are left out. Row i is cell ``first_cell + i`` of its
    shard; its record begins at byte ``offsets[i]`` of ``out`` and has ``sizes[i]`` values.

    Returns -1 - i if row i has a gene outside ``rank``, or a gene twice.
    """
    n_genes = len(rank)
    n_numbers = int(rank.max()) + 1 if n_genes else 0
    place = np.zeros(n_numbers, np.int64)
    present = np.zeros(n_numbers // 64 + 1, np.uint64)
    genes, values = np.empty(n_genes, np.int32), np.empty(n_genes, np.uint32)
    at = 0
    for i in range(len(indptr) - 1):
        expressed = 0
        for j in range(indptr[i], indptr[i + 1]):
            if not 0 <= indices[j] < n_genes:
                return -1 - i
            if bits[j] != 0 and not (kind and bits[j] == _MINUS_ZERO):
                gene = rank[indices[j]]
                place[gene] = j
                present[gene >> 6] |= np.uint64(1) << np.uint64(gene & 63)
                expressed += 1
        n = int(drain(present, genes))
        if n < expressed:
            return -1 - i
        for k in range(n):
            values[k] = bits[place[genes[k]]]
        offsets[i], sizes[i] = 8 * at, n
        floats = kind == FLOATS or (kind == EITHER and not _to_counts(values[:n]))
        at += _write(genes[:n], values[:n], floats, first_cell + i, out[at:])
    return at


@nb.njit(nogil=True, cache=True)
def _to_counts(bits: NDArray[np.uint32]) -> bool:
    """Replace bits of float32 by the counts that they are, if all are counts below 2^32; whether they are."""
    values = bits.view(np.float32)
    for value in values:
        if not (0 <= value < _FOUR_BYTES and value == np.floor(value)):
            return False
    for k in range(len(bits)):
        bits[k] = np.uint32(values[k])
    return True


@nb.njit(cache=True)
def most_words(n_cells: int, n_values: int) -> int:
    """Upper bound of the 8-byte words of the records of ``n_cells`` with ``n_values`` together."""
    return (HEADER // 8 + 1) * n_cells + 2 * n_values


@nb.njit(nogil=True, cache=True)
def _write(
    genes: NDArray[np.int32], values: NDArray[np.uint32], floats: bool, cell: int, out: NDArray[np.uint64]
) -> int:
    """Write one record; returns its number of words. ``genes`` ascend."""
    n = len(genes)
    n_gaps, last = 0, -1
    over_byte, over_two = 0, 0
    for k in range(n):
        n_gaps += int(genes[k] - last > _BYTE)
        last = genes[k]
        over_byte += int(values[k] >= _BYTE)
        over_two += int(values[k] >= _TWO_BYTES)
    code, n_large = _cheapest(n, over_byte, over_two, floats)
    words = record_length(n, n_gaps, n_large, code) // 8
    out[:words] = 0
    head = out[:words].view(np.uint32)
    head[1], head[2], head[3] = n, n_gaps, np.uint32(n_large) | (np.uint32(code) << np.uint32(WIDTH_SHIFT))
    gap, large = HEADER // 4, HEADER // 4 + 2 * n_gaps
    first_value = 4 * (large + 2 * n_large)
    in_bytes = out[:words].view(np.uint8)
    first_gap = first_value + n * (1 if code == U8 else 2 if code == U16 else 4)
    last = -1
    for k in range(n):
        between = genes[k] - last - 1
        last = genes[k]
        in_bytes[first_gap + k] = between & 255
        if between >= _BYTE:
            head[gap], head[gap + 1] = k, between & ~255
            gap += 2
    limit = _BYTE if code == U8 else _TWO_BYTES
    for k in range(n):
        value = values[k]
        if code >= U32:
            head[first_value // 4 + k] = value
        elif value >= limit:
            head[large], head[large + 1] = k, value
            large += 2
        elif code == U8:
            in_bytes[first_value + k] = value
        else:
            out[:words].view(np.uint16)[first_value // 2 + k] = value
    head[0] = record_checksum(out[:words], cell)
    return words


@nb.njit(inline="always", cache=True)
def _cheapest(n: int, over_byte: int, over_two: int, floats: bool) -> tuple[int, int]:
    """The width that takes the fewest bytes, and the number of values too large for it."""
    if floats:
        return F32, 0
    in_one, in_two, in_four = n + 8 * over_byte, 2 * n + 8 * over_two, 4 * n
    if in_one <= min(in_two, in_four):
        return U8, over_byte
    return (U16, over_two) if in_two <= in_four else (U32, 0)
