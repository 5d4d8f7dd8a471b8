"""Gather rows of stored arrays, scatter rows of decoded chunks, sort rows.

Stored numbers are not trusted: slices bound every access, and kernels return `FLAGS`, so that a damaged file leads to
an error message, not to a crash.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.machine.bits import drain

_PER_VALUE = 64
"""Genes for each value of a row up to which a bit set sorts faster than comparisons."""
UNSORTED, OUT_OF_RANGE, NOT_COUNTS = 1, 2, 4
FLAGS = {
    UNSORTED: "the genes of a row do not strictly ascend",
    OUT_OF_RANGE: "a gene number is negative or too large",
    NOT_COUNTS: "a value is negative, not whole or not finite",
}
"""Defects that kernels return, combined by bitwise or; 0 without any."""


@nb.njit(nogil=True, cache=True)
def row_offsets(indptr: NDArray[np.int64], rows: NDArray[np.int64], out_indptr: NDArray[np.int64]) -> int:
    """Fill ``out_indptr`` ``(len(rows) + 1,)`` with the offsets of consecutive ``rows``; returns the last."""
    total = 0
    out_indptr[0] = 0
    for i in range(rows.size):
        total += indptr[rows[i] + 1] - indptr[rows[i]]
        out_indptr[i + 1] = total
    return total


@nb.njit(nogil=True, cache=True)
def _outside(genes: NDArray[Any], n_genes: int) -> bool:
    low, high = genes[0], genes[0]
    for j in range(1, genes.size):
        low, high = min(low, genes[j]), max(high, genes[j])
    return bool(low < 0 or high >= n_genes)


@nb.njit(nogil=True, cache=True)
def _copy_genes(genes: NDArray[Any], n_genes: int, out: NDArray[np.int32]) -> int:
    # Stored numbers are checked before the cast to 32 bits, which could bring an invalid one back into range.
    size = genes.size
    if size == 0:
        return 0
    out[0] = genes[0]
    before, after, out_after = genes[: size - 1], genes[1:], out[1:]
    unsorted = False
    for j in range(after.size):
        out_after[j] = after[j]
        unsorted |= after[j] <= before[j]
    if unsorted:
        return UNSORTED | (OUT_OF_RANGE if _outside(genes, n_genes) else 0)
    return 0 if genes[0] >= 0 and genes[size - 1] < n_genes else OUT_OF_RANGE


@nb.njit(nogil=True, cache=True)
def _copy_values(values: NDArray[Any], out: NDArray[Any]) -> int:
    odd = False
    for j in range(out.size):
        out[j] = values[j]
        value = out[j]
        # One condition, with a difference that is NaN for infinities, is the form that the compiler vectorises best.
        odd |= not (value >= 0 and value - np.floor(value) == 0)
    return NOT_COUNTS if odd else 0


@nb.njit(nogil=True, cache=True)
def _copy(stored: NDArray[Any], n_genes: int | None, out: NDArray[Any]) -> int:
    """Copy gene numbers, or values if ``n_genes`` is None; compiled separately for each."""
    if n_genes is None:
        return _copy_values(stored, out)
    return _copy_genes(stored, n_genes, out)


@nb.njit(nogil=True, cache=True)
def take_rows(
    indptr: NDArray[np.int64],
    stored: NDArray[Any],
    begins: NDArray[np.int64],
    length: int,
    rows: NDArray[np.int64],
    n_genes: int | None,
    out_indptr: NDArray[np.int64],
    out: NDArray[Any],
) -> int:
    """Copy the gene numbers, or the values, of ``rows`` to the offsets of `row_offsets`; returns `FLAGS`.

    Rows keep the stored order; if ``UNSORTED`` is set, `sort_rows` sorts them.

    Args:
        indptr: Valid offsets of all rows.
        stored: An array in pieces: its entry ``i`` is ``stored[begins[i // length] + i % length]``.
        begins: Offset of each piece in ``stored``, which contains all of it.
        length: Entries in a piece.
        rows: Valid row numbers.
        n_genes: Number of genes; None if ``stored`` holds values.
        out_indptr: ``(len(rows) + 1,)`` offsets in ``out``.
        out: Output; int32 for gene numbers, any dtype for values.
    """
    flags = 0
    for i in range(rows.size):
        at, stop = indptr[rows[i]], indptr[rows[i] + 1]
        first = to = out_indptr[i]
        while at < stop:
            piece = at // length
            size = min(stop, (piece + 1) * length) - at
            begin = begins[piece] + at - piece * length
            flags |= _copy(stored[begin : begin + size], n_genes, out[to : to + size])
            if n_genes is not None and to > first and out[to] <= out[to - 1]:
                flags |= UNSORTED
            at, to = at + size, to + size
    return flags


@nb.njit(nogil=True, cache=True)
def _ascends(genes: NDArray[np.int32]) -> bool:
    unsorted = False
    for j in range(1, genes.size):
        unsorted |= genes[j] <= genes[j - 1]
    return not unsorted


@nb.njit(nogil=True, cache=True)
def rows_ascend(indptr: NDArray[np.int64], indices: NDArray[np.int32]) -> bool:
    """Whether the genes of every row strictly ascend."""
    ascend = True
    for i in range(indptr.size - 1):
        ascend = ascend and _ascends(indices[indptr[i] : indptr[i + 1]])
    return ascend


@nb.njit(nogil=True, cache=True)
def scatter_rows(
    chunk: NDArray[Any],
    begin: int,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    targets: NDArray[np.int64],
    n_genes: int | None,
    out: NDArray[Any],
) -> int:
    """Copy the parts of rows that are in one decoded chunk to the output; returns `FLAGS`.

    The order of a row is checked within a chunk only; for rows that span chunks, see `rows_ascend`.

    Args:
        chunk: Stored gene numbers or values.
        begin: Position in the whole array of the first one.
        starts: Start of each row in the whole array.
        stops: End of each row in the whole array.
        targets: Start of each row in ``out``.
        n_genes: Number of genes; None if ``chunk`` holds values.
        out: Output; int32 for gene numbers, any dtype for values.
    """
    flags = 0
    for k in range(starts.size):
        start, stop = max(starts[k], begin), min(stops[k], begin + chunk.size)
        if stop > start:
            to = targets[k] + start - starts[k]
            flags |= _copy(chunk[start - begin : stop - begin], n_genes, out[to : to + stop - start])
    return flags


@nb.njit(nogil=True, cache=True)
def _sort_row(genes: NDArray[np.int32], values: NDArray[Any]) -> int:
    """Sort one row by gene and sum repeated genes, in place; returns the number of genes left."""
    order = np.argsort(genes, kind="mergesort")
    sorted_genes, sorted_values = genes[order], values[order]
    kept = -1
    for j in range(genes.size):
        if kept >= 0 and sorted_genes[j] == genes[kept]:
            values[kept] += sorted_values[j]
        else:
            kept += 1
            genes[kept], values[kept] = sorted_genes[j], sorted_values[j]
    return kept + 1


@nb.njit(nogil=True, cache=True)
def _sort_by_bits(
    genes: NDArray[np.int32], values: NDArray[Any], dense: NDArray[Any], present: NDArray[np.uint64]
) -> int:
    """As `_sort_row`, with a dense row and a bit set, both all zero before and after."""
    for j in range(genes.size):
        gene = np.uint64(genes[j])
        dense[gene] += values[j]
        present[gene >> np.uint64(6)] |= np.uint64(1) << (gene & np.uint64(63))
    size = int(drain(present, genes))
    for k in range(size):
        values[k] = dense[genes[k]]
        dense[genes[k]] = 0
    return size


@nb.njit(nogil=True, cache=True)
def sort_rows(indptr: NDArray[np.int64], indices: NDArray[np.int32], data: NDArray[Any]) -> None:
    """Sort every row by gene and sum repeated genes, all three arrays in place.

    Rows move forward if genes are summed: ``indptr[-1]`` is then the used length of ``indices`` and ``data``.
    """
    kept, start, low, n_genes = 0, indptr[0], 0, 0
    for j in range(start, indptr[-1]):
        low, n_genes = min(low, int(indices[j])), max(n_genes, int(indices[j]) + 1)
    dense = np.zeros(n_genes if low == 0 else 0, data.dtype)
    present = np.zeros(n_genes // 64 + 1, np.uint64)
    for i in range(indptr.size - 1):
        stop = indptr[i + 1]
        genes, values = indices[start:stop], data[start:stop]
        size = genes.size
        if not _ascends(genes):
            is_full = low == 0 and n_genes <= _PER_VALUE * genes.size
            size = _sort_by_bits(genes, values, dense, present) if is_full else _sort_row(genes, values)
        for j in range(size):
            indices[kept + j], data[kept + j] = genes[j], values[j]
        kept, start = kept + size, stop
        indptr[i + 1] = kept


@nb.njit(nogil=True, cache=True)
def count_nonzero(block: NDArray[Any], rows: NDArray[np.int64], out_indptr: NDArray[np.int64]) -> int:
    """`row_offsets` for the non-zero values of rows of a dense block ``(n, n_genes)``."""
    total = 0
    out_indptr[0] = 0
    for i in range(rows.size):
        values = block[rows[i]]
        filled = 0
        for j in range(values.size):
            filled += int(values[j] != 0)
        total += filled
        out_indptr[i + 1] = total
    return total


@nb.njit(nogil=True, cache=True)
def take_nonzero(
    block: NDArray[Any],
    rows: NDArray[np.int64],
    out_indptr: NDArray[np.int64],
    out_indices: NDArray[np.int32],
    out_data: NDArray[Any],
) -> int:
    """Copy the non-zero values of rows of a dense block to the offsets of `count_nonzero`; returns `FLAGS`."""
    for i in range(rows.size):
        values = block[rows[i]]
        to = out_indptr[i]
        for j in range(values.size):
            if values[j] != 0:
                out_indices[to], out_data[to] = j, values[j]
                to += 1
    return _copy_values(out_data, out_data)


@nb.njit(nogil=True, cache=True)
def unshuffle(shuffled: NDArray[np.uint8], item_size: int, out: NDArray[np.uint8]) -> None:
    """Undo HDF5's shuffle filter: byte ``b`` of item ``i`` in ``out`` is ``shuffled[b * n_items + i]``."""
    n_items = shuffled.size // item_size
    for byte in range(item_size):
        plane = shuffled[byte * n_items : (byte + 1) * n_items]
        for i in range(n_items):
            out[i * item_size + byte] = plane[i]
    for i in range(n_items * item_size, shuffled.size):
        out[i] = shuffled[i]
