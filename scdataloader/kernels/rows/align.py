"""Align rows from the genes of a source to a vocabulary: renumber, sort, and sum entries of one gene."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.machine.bits import USUAL_PER_WORD, count_ones, count_trailing_zeros, drain
from scdataloader.kernels.machine.memory import prefetch_range
from scdataloader.kernels.rows.keep import renumber

OK, BAD_INDEX, NOT_COUNT = 0, 1, 2
NOT_A_GENE = -2
"""Entry of a look-up table for a feature, such as an antibody, that does not count towards the depth of a cell."""
_PADDING = 128
"""Entries after a dense row that are read, and are of no gene."""


def scratch_size(n_genes: int, lut: NDArray[np.int32]) -> int:
    """Entries of ``scratch`` that `align_rows` uses."""
    return max(n_genes, len(lut)) + _PADDING


@nb.njit(nogil=True, cache=True)
def align_rows(
    indptr: NDArray[np.int64],
    indices: NDArray[Any],
    data: NDArray[Any],
    take: NDArray[np.int64],
    lut: NDArray[np.int32],
    n_genes: int,
    monotone: bool,
    counts_only: bool,
    genes_only: bool,
    place: NDArray[np.int64],
    starts: NDArray[np.int64],
    out_indices: NDArray[np.int32],
    out_data: NDArray[np.float32],
    out_size: NDArray[np.int64],
    out_depth: NDArray[np.float32],
    scratch: NDArray[np.float32],
) -> tuple[int, int]:
    """Write rows ``take`` of a CSR matrix, with genes renumbered by ``lut``, to slots of the output.

    Row ``take[i]`` is written to slot ``p = place[i]``: its entries, ascending by gene, to ``out_indices`` and
    ``out_data`` from ``starts[p]`` on (the slot has room for all stored entries), their number to ``out_size[p]``, and
    the total over all genes, including dropped ones, to ``out_depth[p]``. Stored zeros and entries whose ``lut`` is
    negative are dropped; entries of the same gene are summed. ``monotone`` states that ``lut`` without these strictly
    ascends, so that rows stored in ascending order need no sorting; ``genes_only``, that some are `NOT_A_GENE`. Of
    ``scratch``, `scratch_size` entries are used, of any content.

    Where all slots are written in order, each begins where the one before ends, and ``starts`` is set to that: to close
    gaps afterwards would take as long as to write the rows.

    Returns (status, i): `OK`, or the defect of row ``take[i]``. Nothing outside the slots is written, whatever
    ``indices`` contains.
    """
    closed = is_sequence(place, len(out_size))
    present = np.zeros(len(lut) // 64 + 1, np.uint64)
    buffers = sort_buffers(_longest(indptr, take), n_genes, scratch)
    for i in range(len(take)):
        begin, end = indptr[take[i]], indptr[take[i] + 1]
        if i + 1 < len(take):
            # Random rows of a large matrix are not in the cache: prefetch the next one during the work on this one.
            prefetch_range(indices, indptr[take[i + 1]], indptr[take[i + 1] + 1])
            prefetch_range(data, indptr[take[i + 1]], indptr[take[i + 1] + 1])
        row_indices, row_data = indices[begin:end], data[begin:end]
        in_range, ascending = _check_indices(row_indices, len(lut))
        if not in_range:
            return BAD_INDEX, i
        valid, zeros, depth = _check_values(row_data)
        if counts_only and not valid:
            return NOT_COUNT, i
        if genes_only:
            depth = total_of_genes(row_indices, row_data, lut)
        slot = place[i]
        out = starts[slot]
        room = slice(out, out + end - begin)
        if monotone and ascending:
            size = renumber(row_indices, row_data, lut, out_indices[room], out_data[room])
        else:
            stored = present if monotone else present[:0]
            size = _sorted(row_indices, row_data, lut, stored, buffers, out_indices[room], out_data[room])
        if zeros:
            size = _without_zeros(out_indices[room], out_data[room], size)
        out_size[slot] = size
        out_depth[slot] = depth
        if closed:
            starts[slot + 1] = out + size
    return OK, 0


@nb.njit(nogil=True, cache=True)
def _longest(indptr: NDArray[np.int64], take: NDArray[np.int64]) -> int:
    """The most entries of rows ``take``."""
    longest = 0
    for i in range(len(take)):
        longest = max(longest, indptr[take[i] + 1] - indptr[take[i]])
    return longest


@nb.njit(nogil=True, cache=True)
def is_sequence(numbers: NDArray[np.int64], n: int) -> bool:
    """Whether the numbers are 0, 1, … n - 1."""
    others = 0
    for i in range(len(numbers)):
        others += int(numbers[i] != i)
    return bool(others == 0 and len(numbers) == n)


@nb.njit(nogil=True, cache=True)
def _check_indices(indices: NDArray[Any], n: int) -> tuple[bool, bool]:
    """Whether all indices are in [0, n), and whether they strictly ascend. Has no branches, so that it vectorises."""
    low, high, disorder = 0, -1, 0
    for j in range(len(indices)):
        low = min(low, indices[j])
        high = max(high, indices[j])
    for j in range(1, len(indices)):
        disorder |= indices[j] <= indices[j - 1]
    return low >= 0 and high < n, disorder == 0


@nb.njit(nogil=True, cache=True, fastmath={"reassoc"})
def _check_values(data: NDArray[Any]) -> tuple[bool, bool, float]:
    """Whether all values are counts, whether any is zero, and their sum.

    Sums of counts are exact in float64 in any order.
    """
    bad, zeros = 0, 0
    total = 0.0
    for j in range(len(data)):
        value = np.float32(data[j])
        bad |= not (value >= 0 and value - np.floor(value) == 0)  # infinity minus infinity is NaN
        zeros |= value == 0
        total += np.float64(value)
    return bad == 0, zeros != 0, total


@nb.njit(nogil=True, cache=True)
def total_of_genes(indices: NDArray[Any], data: NDArray[Any], lut: NDArray[np.int32]) -> float:
    """Sum of the values of a row except those of `NOT_A_GENE`."""
    total = 0.0
    for j in range(len(indices)):
        if lut[indices[j]] != NOT_A_GENE:
            total += np.float64(np.float32(data[j]))
    return total


@nb.njit(nogil=True, cache=True)
def _without_zeros(indices: NDArray[np.int32], data: NDArray[np.float32], size: int) -> int:
    """Remove the zeros of a row, in place; returns the number of entries left."""
    kept = 0
    for k in range(size):
        indices[kept] = indices[k]
        data[kept] = data[k]
        kept += int(data[k] != 0)
    return kept


class SortBuffers(NamedTuple):
    """Memory in which rows of up to m entries are sorted, of any content but for ``present``."""

    genes: NDArray[np.int32]
    """``(m,)``"""
    values: NDArray[np.float32]
    """``(m,)``"""
    pairs: NDArray[np.uint64]
    """``(m,)`` sorted genes, and the bits of their values."""
    present: NDArray[np.uint64]
    """A bit for each gene of the vocabulary; 0 before and after."""
    before: NDArray[np.uint32]
    """A number for each word of ``present``."""
    sums: NDArray[np.float32]
    """``(n_genes,)``"""


@nb.njit(nogil=True, cache=True)
def sort_buffers(n_entries: int, n_genes: int, sums: NDArray[np.float32]) -> SortBuffers:
    """Memory to sort rows of up to ``n_entries`` in a vocabulary of ``n_genes``, with the given ``sums``."""
    n_words = n_genes // 64 + 1
    return SortBuffers(
        np.empty(n_entries, np.int32),
        np.empty(n_entries, np.float32),
        np.empty(n_entries, np.uint64),
        np.zeros(n_words, np.uint64),
        np.empty(n_words, np.uint32),
        sums,
    )


@nb.njit(nogil=True, cache=True)
def scatter(
    indices: NDArray[Any],
    data: NDArray[Any],
    lut: NDArray[np.int32],
    buffers: SortBuffers,
    out_indices: NDArray[np.int32],
    out_data: NDArray[np.float32],
) -> int:
    """Renumber one row, drop genes without a number, sort it, and sum entries of a gene; returns their number."""
    kept = renumber(indices, data, lut, buffers.genes, buffers.values)
    return int(sort_entries(kept, buffers, out_indices, out_data))


@nb.njit(nogil=True, cache=True)
def sort_entries(n: int, buffers: SortBuffers, out_indices: NDArray[np.int32], out_data: NDArray[np.float32]) -> int:
    """Sort the first n genes and values in ``buffers``, and sum those of one gene; returns the number of entries.

    The place of an entry is the number of genes before it in a bit set. For a few thousand entries among some 10^4
    genes this takes a fraction of the time of a comparison sort. Entries are first sorted in memory that stays in the
    cache.
    """
    genes, values = buffers.genes[:n], buffers.values[:n]
    present, before, pairs, one = buffers.present, buffers.before, buffers.pairs, np.uint64(1)
    for j in range(len(genes)):
        gene = np.uint32(genes[j])
        present[gene >> np.uint32(6)] |= one << np.uint64(gene & np.uint32(63))
    size = 0
    for word in range(len(present)):
        before[word] = np.uint32(size)
        size += int(count_ones(present[word]))
    if size < n:
        drain(present, out_indices)
        return int(_sum_into(genes, values, buffers.sums, out_indices[:size], out_data))
    bits = values.view(np.uint32)
    for j in range(len(genes)):
        gene = np.uint32(genes[j])
        own = gene >> np.uint32(6)
        lower = present[own] & ((one << np.uint64(gene & np.uint32(63))) - one)
        at = before[own] + np.uint32(count_ones(lower))
        pairs[at] = np.uint64(gene) << np.uint64(32) | np.uint64(bits[j])
    present[:] = 0
    out_bits = out_data.view(np.uint32)
    for k in range(size):
        out_indices[k] = np.int32(pairs[k] >> np.uint64(32))
        out_bits[k] = np.uint32(pairs[k] & np.uint64(0xFFFFFFFF))
    return size


@nb.njit(nogil=True, cache=True)
def _sorted(
    indices: NDArray[Any],
    data: NDArray[Any],
    lut: NDArray[np.int32],
    stored: NDArray[np.uint64],
    buffers: SortBuffers,
    out_indices: NDArray[np.int32],
    out_data: NDArray[np.float32],
) -> int:
    """As `scatter`, by `scatter_stored` if possible: if ``lut`` ascends, where ``stored`` is not empty."""
    if len(stored):
        size = scatter_stored(indices, data, lut, stored, buffers.sums, out_indices, out_data)
        if size >= 0:
            return int(size)
    return int(scatter(indices, data, lut, buffers, out_indices, out_data))


@nb.njit(nogil=True, cache=True)
def scatter_stored(
    indices: NDArray[Any],
    data: NDArray[Any],
    lut: NDArray[np.int32],
    present: NDArray[np.uint64],
    scratch: NDArray[np.float32],
    out_indices: NDArray[np.int32],
    out_data: NDArray[np.float32],
) -> int:
    """As `scatter`, for a ``lut`` that ascends: sorts by stored gene, so that only sorted genes are looked up.

    Returns -1, and nothing, if a gene has several entries. ``present`` has a bit for each entry of ``lut``, ``scratch``
    65 entries more.
    """
    one, kept, size = np.uint64(1), np.uint64(0), np.uint64(0)
    for j in range(len(indices)):
        gene = np.uint64(indices[j])
        scratch[gene] = data[j]
        present[gene >> np.uint64(6)] |= one << (gene & np.uint64(63))
    capacity, last = np.uint64(len(out_indices)), np.uint64(len(lut) - 1)
    for word in range((len(lut) + 63) >> 6):
        bits, base = present[word], np.uint64(word << 6)
        present[word] = 0
        size += count_ones(bits)
        at = kept
        if at + np.uint64(USUAL_PER_WORD) <= capacity:
            for _ in range(USUAL_PER_WORD):  # see `drain`; without a bit, 64 is counted
                gene = base + count_trailing_zeros(bits)
                out_indices[at], out_data[at] = lut[min(gene, last)], scratch[gene]
                bits &= bits - one
                at += one
        while bits:
            gene = base + count_trailing_zeros(bits)
            out_indices[at], out_data[at] = lut[gene], scratch[gene]
            bits &= bits - one
            at += one
        kept = size
    if size < np.uint64(len(indices)):
        return -1
    return _without_missing(out_indices, out_data, int(size))


@nb.njit(nogil=True, cache=True)
def _without_missing(indices: NDArray[np.int32], data: NDArray[np.float32], size: int) -> int:
    """Remove the entries of a row without a gene number, in place; returns the number of entries left."""
    missing = 0
    for k in range(size):
        missing |= indices[k] < 0
    if not missing:
        return size
    kept = 0
    for k in range(size):
        indices[kept], data[kept] = indices[k], data[k]
        kept += int(indices[kept] >= 0)
    return kept


@nb.njit(nogil=True, cache=True)
def _sum_into(
    genes: NDArray[np.int32],
    values: NDArray[np.float32],
    sums: NDArray[np.float32],
    distinct: NDArray[np.int32],
    out: NDArray[np.float32],
) -> int:
    """Write the sum of the entries of each of the ``distinct`` genes; returns the number of these."""
    for k in range(len(distinct)):
        sums[distinct[k]] = 0
    for j in range(len(genes)):
        sums[genes[j]] += values[j]
    for k in range(len(distinct)):
        out[k] = sums[distinct[k]]
    return len(distinct)


@nb.njit(nogil=True, cache=True)
def close_gaps(
    starts: NDArray[np.int64], sizes: NDArray[np.int64], indices: NDArray[np.int32], data: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Remove the unused space at the end of each slot, in place; returns the ``indptr`` of the result."""
    indptr = np.zeros(len(sizes) + 1, np.int64)
    for row in range(len(sizes)):
        begin, out = starts[row], indptr[row]
        indptr[row + 1] = out + sizes[row]
        if begin != out:
            for k in range(sizes[row]):
                indices[out + k] = indices[begin + k]
                data[out + k] = data[begin + k]
    return indptr


# The two functions below keep the GIL: they take a microsecond, and getting the GIL back from another thread would take
# a hundred times as long.


@nb.njit(cache=True)
def row_starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """``(n + 1,)`` offsets of consecutive rows of these sizes."""
    starts = np.zeros(len(sizes) + 1, np.int64)
    for row in range(len(sizes)):
        starts[row + 1] = starts[row] + sizes[row]
    return starts


@nb.njit(cache=True)
def all_equal(first: NDArray[np.int64], second: NDArray[np.int64]) -> bool:
    """Whether two arrays of the same length are equal."""
    equal = True
    for i in range(len(first)):
        equal &= first[i] == second[i]
    return equal
