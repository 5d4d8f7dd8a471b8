"""Encoder: rows of a matrix to records."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.machine.bits import drain
from scdataloader.kernels.records.format import (
    F32,
    HEADER,
    MOST_LARGE,
    U2,
    U4,
    U8,
    U16,
    U32,
    WIDTH_SHIFT,
    field_bytes,
    parts_of,
    record_checksum,
    value_bits,
    write_header,
)
from scdataloader.kernels.records.short import shorten

_BYTE, _TWO_BYTES, _FOUR_BYTES = 1 << 8, 1 << 16, 1 << 32
_WORDS_OF_A_CELL = HEADER // 8 + 2 + (1 << 31 - 16) // 64
"""Header, padding, and upper parts of 16 bits, which only a cell with a gene number near 2^31 has."""
_STEP = 255
"""The longest step from one raised value to the next."""
_MINUS_ZERO = 1 << 31
"""As bits of a float32."""
COUNTS, FLOATS, EITHER = 0, 1, 2
"""Kinds of records: of counts, of float32, or of counts for cells whose float32 values are all counts."""
COMPACT, SHORT = 4, 8
"""Flags of a kind: packed records, which take the fewest bytes and more time to read; short ones where they take fewer
than records of bytes."""


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

    ``bits`` are the values: of kind `COUNTS` counts, of `FLOATS` and `EITHER` the bits of float32; ``kind`` may have
    a flag, `COMPACT` or `SHORT`. ``rank[g]`` is the number of gene g in the records, distinct for each gene. Zeros are
    left out. Row i is cell ``first_cell + i`` of its shard; its record begins at byte ``offsets[i]`` of ``out`` and has
    ``sizes[i]`` values.

    Returns -1 - i if row i has a gene outside ``rank``, or a gene twice.
    """
    n_genes, is_compact, is_short = len(rank), bool(kind & COMPACT), bool(kind & SHORT)
    kind &= ~(COMPACT | SHORT)
    n_numbers = int(rank.max()) + 1 if n_genes else 0
    place = np.zeros(n_numbers, np.int64)
    present = np.zeros(n_numbers // 64 + 1, np.uint64)
    genes, values = np.empty(n_genes, np.int32), np.empty(n_genes, np.uint32)
    buffer = np.empty(most_words(1, n_genes) if is_short else 0, np.uint64)
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
        if is_compact:
            n_words = _write_packed(genes[:n], values[:n], floats, out[at:])
        else:
            n_words = _write_bytes(genes[:n], values[:n], floats, out[at:])
        if is_short:
            n_words = _write_short(out[at : at + n_words], buffer)
        record = out[at : at + n_words]
        record.view(np.uint32)[0] = record_checksum(record, first_cell + i)
        at += n_words
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
    return _WORDS_OF_A_CELL * n_cells + 2 * n_values


@nb.njit(nogil=True, cache=True)
def _write_bytes(genes: NDArray[np.int32], values: NDArray[np.uint32], floats: bool, out: NDArray[np.uint64]) -> int:
    """Write one record of bytes but for its checksum; returns its number of words. ``genes`` ascend."""
    n = len(genes)
    n_gaps, last = 0, -1
    over_byte, over_two = 0, 0
    for k in range(n):
        n_gaps += int(genes[k] - last > _BYTE)
        last = genes[k]
        over_byte += int(values[k] >= _BYTE)
        over_two += int(values[k] >= _TWO_BYTES)
    code, n_large = _cheapest(n, over_byte, over_two, floats)
    words = (HEADER + 8 * (n_gaps + n_large) + field_bytes(n, value_bits(code)) + n + 7) // 8
    out[:words] = 0
    head = out[:words].view(np.uint32)
    head[1], head[2], head[3] = n, n_gaps, np.uint32(n_large) | (np.uint32(code) << np.uint32(WIDTH_SHIFT))
    gap, large = HEADER // 4, HEADER // 4 + 2 * n_gaps
    first_value = 4 * (large + 2 * n_large)
    in_bytes = out[:words].view(np.uint8)
    first_gap = first_value + field_bytes(n, value_bits(code))
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
    return words


@nb.njit(nogil=True, cache=True)
def _write_short(record: NDArray[np.uint64], buffer: NDArray[np.uint64]) -> int:
    """Replace a record of bytes by the short one that stands for it, if there is one; returns its number of words."""
    n_words = shorten(record, buffer)
    record[:n_words] = buffer[:n_words]
    return n_words or len(record)


@nb.njit(inline="always", cache=True)
def _cheapest(n: int, over_byte: int, over_two: int, floats: bool) -> tuple[int, int]:
    """The width that takes the fewest bytes, and the number of values too large for it."""
    if floats:
        return F32, 0
    in_one, in_two, in_four = n + 8 * over_byte, 2 * n + 8 * over_two, 4 * n
    if in_one <= min(in_two, in_four):
        return U8, over_byte
    return (U16, over_two) if in_two <= in_four else (U32, 0)


@nb.njit(nogil=True, cache=True)
def _write_packed(genes: NDArray[np.int32], values: NDArray[np.uint32], floats: bool, out: NDArray[np.uint64]) -> int:
    """Write one packed record but for its checksum, in the fewest bytes; returns its number of words."""
    n, last = len(genes), int(np.int64(genes[-1])) if len(genes) else 0
    low = 2
    for wider in (4, 8, 16):
        if n * wider + (last >> wider) < n * low + (last >> low):
            low = wider
    return int(write_record(genes, values, F32 if floats else _cheapest_code(values), low, out))


@nb.njit(nogil=True, cache=True)
def _cheapest_code(values: NDArray[np.uint32]) -> int:
    """The width of packed counts that takes the fewest bytes."""
    n = len(values)
    best, least = U32, 4 * n
    over = 0
    for value in values:
        over += int(value >= _TWO_BYTES)
    if over < MOST_LARGE and 2 * n + 8 * over < least:
        best, least = U16, 2 * n + 8 * over
    for code in (U8, U4, U2):
        n_raised, n_large = _exceptions(values, value_bits(code))
        n_bytes = field_bytes(n, value_bits(code)) + 2 * n_raised + 8 * n_large
        if n_large < MOST_LARGE and n_bytes <= least:
            best, least = code, n_bytes
    return best


@nb.njit(nogil=True, cache=True)
def _exceptions(values: NDArray[np.uint32], bits: int) -> tuple[int, int]:
    """Number of raised values, with the steps to them, and of large values, for fields of ``bits`` bits."""
    n_raised, n_large, last = 0, 0, 0
    for k in range(len(values)):
        above = (int(np.int64(values[k])) - 1) >> bits
        if above >= _BYTE:
            n_large += 1
        elif above > 0:
            n_raised += 1 + (k - last) // _STEP
            last = k
    return n_raised, n_large


@nb.njit(nogil=True, cache=True)
def write_record(
    genes: NDArray[np.int32], values: NDArray[np.uint32], code: int, low: int, out: NDArray[np.uint64]
) -> int:
    """Write a packed record, but for its checksum, of these widths; returns its words.

    Values have the width ``code``, lower parts of gene numbers ``low`` bits.

    ``genes`` ascend; ``values`` are not 0, and are overwritten. Returns 0 if ``out`` is too short, or these widths do
    not suit the values.
    """
    n, bits = len(genes), value_bits(code)
    n_raised, n_large = 0, 0
    if code == U16:
        for value in values:
            n_large += int(value >= _TWO_BYTES)
    elif code not in {U32, F32}:
        n_raised, n_large = _exceptions(values, bits)
    n_bits = n + (int(np.int64(genes[n - 1])) >> low) if n else 0
    fixed = field_bytes(n, bits) + field_bytes(n, low) + 2 * n_raised
    n_words = HEADER // 8 + n_large + (n_bits + 63) // 64 + (fixed + 7) // 8
    if n_words > len(out) or n_large >= MOST_LARGE:
        return 0
    words = out[:n_words]
    words[:] = 0
    write_header(words, n, n_raised, n_large, code, low)
    parts = parts_of(words)
    upper = words[parts.large // 8 + n_large : parts.values // 8]
    for j in range(n):
        at = j + (np.int64(genes[j]) >> low)
        upper[at >> 6] |= np.uint64(1) << np.uint64(at & 63)
    _put_fields(genes, low, words.view(np.uint8)[parts.genes : parts.raised])
    _move_exceptions(words, values, code)
    _put_fields(values, bits, words.view(np.uint8)[parts.values : parts.genes])
    return n_words


@nb.njit(nogil=True, cache=True)
def _put_fields(numbers: NDArray[Any], bits: int, planes: NDArray[np.uint8]) -> None:
    """Write the lower ``bits`` bits of each number to ``planes``, which are zero; 16 and 32 bits as they are."""
    if bits > 8:  # noqa: PLR2004 (bits)
        size = bits // 8
        for k in range(size):
            for j in range(len(numbers)):
                planes[size * j + k] = np.int64(numbers[j]) >> 8 * k & 255
        return
    q = len(planes)
    for shift in range(0, 8, bits):
        for j, number in enumerate(numbers[shift // bits * q : (shift // bits + 1) * q]):
            planes[j] |= np.uint8((np.int64(number) & ((1 << bits) - 1)) << shift)


@nb.njit(nogil=True, cache=True)
def _move_exceptions(words: NDArray[np.uint64], values: NDArray[np.uint32], code: int) -> None:
    """Write the raised and large values of a record whose header is written; ``values`` become what is left of them."""
    if code in {U32, F32}:
        return
    parts, bits = parts_of(words), value_bits(code)
    n_raised = (parts.end - parts.raised) // 2
    steps = words.view(np.uint8)[parts.raised : parts.raised + n_raised]
    more = words.view(np.uint8)[parts.raised + n_raised : parts.end]
    head, large, k, last = words.view(np.uint32), parts.large // 4, 0, 0
    for j in range(parts.n):
        value = int(np.int64(values[j])) - int(code != U16)
        above = value >> bits
        if above >= _BYTE or (above and code == U16):
            head[large], head[large + 1] = j, values[j]
            large += 2
            value = 0
        elif above:
            while j - last >= _STEP:
                steps[k] = _STEP
                last += _STEP
                k += 1
            steps[k], more[k] = j - last, above
            last = j
            k += 1
        values[j] = np.uint32(value)
