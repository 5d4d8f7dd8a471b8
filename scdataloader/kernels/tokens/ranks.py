"""Genes of each row by falling value, as tokens."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

# A key is the high 20 bits of the distance of a value's float64 bits from the largest of its row. Positive floats order
# as their bits do, so keys ascend as values fall; values of one key are compared afterwards. 20 bits are sorted by two
# passes over 10; with 11, adding up the counts of the digits costs more than the fewer equal keys save.
_DIGIT = np.uint64(10)
_N_DIGITS = 1 << 10
_LAST_DIGIT = np.uint64(_N_DIGITS - 1)
_N_KEYS = np.uint64(1 << 20)
# An entry is the key of a value, its place in the row (20 bits) and its token (24 bits). To carry the token, which is
# read in the order of the genes, takes less time than to look it up in the order of the values.
_KEY, _PLACE = np.uint64(44), np.uint64(24)
_PLACES, _TOKENS = np.uint64((1 << 20) - 1), np.uint64((1 << 24) - 1)
MAX_TOKEN = (1 << 24) - 1
"""Largest token of a gene."""
MAX_GENES = 1 << 20
"""Maximum of genes of the vocabulary, and so of a row."""
_ONE = np.uint32(1)
_INFINITY = np.int64(0x7FF0000000000000)
_FEW = 32
"""Values of one key that are sorted by insertion."""


@nb.njit(nogil=True, cache=True, error_model="numpy")
def rank_rows(
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    data: NDArray[np.float32],
    divisor: NDArray[np.float64],
    row_of_divisor: NDArray[np.int32],
    token: NDArray[np.int64],
    first: int,
    room: int,
    pad: int,
    out: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    """Tokens of the genes of each row by falling ``x / divisor`` in float64, of equal values the lower gene first.

    Only genes with a value above 0 count; a gene whose divisor is infinite is left out.

    Args:
        indptr: ``(n_rows + 1,)`` offsets.
        indices: Gene numbers, ascending within a row; unsigned, since indexing by them then needs no test of the sign.
        data: Values; NaN counts as 0.
        divisor: ``(k, n_genes)`` positive numbers.
        row_of_divisor: ``(n_rows,)`` which row of ``divisor`` is for each row.
        token: ``(n_genes,)`` token of each gene, from 0 to `MAX_TOKEN`.
        first: Place of the first token in a row of ``out``; what comes before is not written.
        room: Maximum of tokens in a row.
        pad: Written after the last token.
        out: ``(n_rows, L)`` with L of at least ``first + room``.
        counts: ``(n_rows,)`` number of tokens written.
    """
    longest = 0
    for row in range(len(indptr) - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    values = np.empty(longest, np.float64)
    entries, swapped = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.uint64)
    low_digits, high_digits = np.empty(_N_DIGITS, np.uint32), np.empty(_N_DIGITS, np.uint32)
    for row in range(len(indptr) - 1):
        genes, x = indices[indptr[row] : indptr[row + 1]], data[indptr[row] : indptr[row + 1]]
        by = divisor[row_of_divisor[row]]
        for j in range(len(genes)):
            values[j] = np.float64(x[j]) / by[genes[j]]
        n = _keys(values[: len(genes)], genes, token, entries, low_digits, high_digits)
        for j in range(n):
            entry = entries[j]
            digit = (entry >> _KEY) & _LAST_DIGIT
            at = low_digits[digit]
            swapped[at] = entry
            low_digits[digit] = at + _ONE
        for j in range(n):
            entry = swapped[j]
            digit = entry >> (_KEY + _DIGIT)
            at = high_digits[digit]
            entries[at] = entry
            high_digits[digit] = at + _ONE
        _order_equal_keys(entries[:n], values)
        counts[row] = min(n, room)
        _write(entries[: counts[row]], out[row, first:], pad)


@nb.njit(inline="always", cache=True)
def _keys(
    values: NDArray[np.float64],
    genes: NDArray[np.uint32],
    token: NDArray[np.int64],
    entries: NDArray[np.uint64],
    low_digits: NDArray[np.uint32],
    high_digits: NDArray[np.uint32],
) -> int:
    """Write the entries of the values above 0, and where those of each digit start; return their number.

    ``entries`` is longer than ``values`` by one: an entry is always written, and overwritten if it does not count.
    """
    bits = values.view(np.int64)
    low, high = _INFINITY, np.int64(0)
    for j in range(len(bits)):
        counts = (bits[j] > 0) & (bits[j] <= _INFINITY)
        low = min(low, bits[j] if counts else _INFINITY)
        high = max(high, bits[j] if counts else np.int64(0))
    span = np.uint64(high - low) if high > low else np.uint64(0)
    shift = np.uint64(0)
    while span >> shift >= _N_KEYS:
        shift += np.uint64(1)
    low_digits[:] = 0
    high_digits[:] = 0
    n = 0
    for j in range(len(bits)):
        counts = (bits[j] > 0) & (bits[j] <= _INFINITY)
        key = np.uint64(high - bits[j]) >> shift
        entries[n] = (key << _KEY) | (np.uint64(j) << _PLACE) | np.uint64(token[genes[j]])
        low_digits[key & _LAST_DIGIT] += np.uint32(counts)
        high_digits[(key >> _DIGIT) & _LAST_DIGIT] += np.uint32(counts)
        n += int(counts)
    low_sum, high_sum = np.uint32(0), np.uint32(0)
    for digit in range(_N_DIGITS):
        low_count, high_count = low_digits[digit], high_digits[digit]
        low_digits[digit], high_digits[digit] = low_sum, high_sum
        low_sum += low_count
        high_sum += high_count
    return n


@nb.njit(nogil=True, cache=True)
def _order_equal_keys(entries: NDArray[np.uint64], values: NDArray[np.float64]) -> None:
    """Order entries of equal keys, which are in the order of their genes, by falling value."""
    j = 1
    while j < len(entries):
        key = entries[j] >> _KEY
        if key != entries[j - 1] >> _KEY:
            j += 1
            continue
        start = j - 1
        while j < len(entries) and entries[j] >> _KEY == key:
            j += 1
        _order(entries[start:j], values)


@nb.njit(nogil=True, cache=True)
def _order(entries: NDArray[np.uint64], values: NDArray[np.float64]) -> None:
    """Order entries by falling value, stably."""
    in_order = True
    for i in range(1, len(entries)):
        in_order &= values[_place(entries[i - 1])] >= values[_place(entries[i])]
    if in_order:
        return
    if len(entries) > _FEW:
        falling = np.empty(len(entries), np.float64)
        for i in range(len(entries)):
            falling[i] = -values[_place(entries[i])]
        entries[:] = entries[np.argsort(falling, kind="mergesort")]
        return
    for i in range(1, len(entries)):
        entry, place = entries[i], i
        while place > 0 and values[_place(entries[place - 1])] < values[_place(entry)]:
            entries[place] = entries[place - 1]
            place -= 1
        entries[place] = entry


@nb.njit(nogil=True, cache=True)
def _write(entries: NDArray[np.uint64], out: NDArray[np.int64], pad: int) -> None:
    """Write the tokens of entries, and ``pad`` after them."""
    for j in range(len(entries)):
        out[j] = np.int64(entries[j] & _TOKENS)
    for j in range(len(entries), len(out)):
        out[j] = pad


@nb.njit(inline="always", cache=True)
def _place(entry: np.uint64) -> np.uint64:
    """Place in the row of an entry's value."""
    return (entry >> _PLACE) & _PLACES


@nb.njit(nogil=True, cache=True)
def attend(lengths: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    """1 in the first ``lengths[i]`` places of row i of ``out``, 0 after them."""
    for row in range(len(lengths)):
        out[row, : lengths[row]] = 1
        out[row, lengths[row] :] = 0
