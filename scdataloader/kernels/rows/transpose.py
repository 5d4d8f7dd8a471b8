"""Transpose CSC to CSR in pieces: count values per cell, split them into parts, sort each part by cell.

Stored numbers are not trusted: no kernel writes outside its arrays, whatever the numbers are.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray


@nb.njit(nogil=True, cache=True)
def count_cells(cells: NDArray[Any], counts: NDArray[np.int64]) -> int:
    """Add the number of occurrences of each cell in ``cells`` to ``counts`` ``(n_cells,)``.

    Returns -1, or the position of the first number outside ``[0, n_cells)``, where counting stops.
    """
    for k in range(cells.size):
        if cells[k] < 0 or cells[k] >= counts.size:
            return k
        counts[cells[k]] += 1
    return -1


@nb.njit(nogil=True, cache=True)
def split_values(
    cells: NDArray[Any],
    data: NDArray[Any],
    begin: int,
    indptr: NDArray[np.int64],
    part_of: NDArray[np.int32],
    starts: NDArray[np.int64],
    out_cells: NDArray[np.int32],
    out_genes: NDArray[np.int32],
    out_data: NDArray[Any],
) -> bool:
    """Sort consecutive values of a CSC matrix by the part of their cell; the sort is stable.

    Args:
        cells: Cell number of each value.
        data: The values.
        begin: Position in the matrix of the first value.
        indptr: ``(n_genes + 1,)`` offsets of all genes.
        part_of: ``(n_cells,)`` part of each cell.
        starts: ``(n_parts + 1,)`` output: start of each part in the other outputs.
        out_cells: Output, as long as ``cells``.
        out_genes: Output, as long as ``cells``.
        out_data: Output, as long as ``cells``.

    Returns False if a cell number is out of range; the outputs have no meaning then.
    """
    starts[:] = 0
    for k in range(cells.size):
        if cells[k] < 0 or cells[k] >= part_of.size:
            return False
        starts[part_of[cells[k]] + 1] += 1
    for part in range(1, starts.size):
        starts[part] += starts[part - 1]
    places = starts[:-1].copy()
    gene = np.searchsorted(indptr, begin, side="right") - 1
    for k in range(cells.size):
        while indptr[gene + 1] <= begin + k:
            gene += 1
        part = part_of[cells[k]]
        at = places[part]
        places[part] = at + 1
        out_cells[at], out_genes[at], out_data[at] = cells[k], gene, data[k]
    return True


@nb.njit(nogil=True, cache=True)
def order_values(
    cells: NDArray[np.int32],
    genes: NDArray[np.int32],
    data: NDArray[Any],
    indptr: NDArray[np.int64],
    first: int,
    out_genes: NDArray[np.int32],
    out_data: NDArray[Any],
) -> bool:
    """Sort the values of a part by cell; the sort is stable.

    Args:
        cells: Cell number of each value.
        genes: Gene number of each value.
        data: The values.
        indptr: ``(n + 1,)`` offsets in the outputs of the part's ``n`` cells.
        first: Number of the first of these cells.
        out_genes: Output.
        out_data: Output.

    Returns False if a cell does not have as many values as in ``indptr``; the outputs have no meaning then.
    """
    n, places = indptr.size - 1, indptr[:-1].copy()
    for k in range(cells.size):
        cell = cells[k] - first
        if cell < 0 or cell >= n or places[cell] >= indptr[cell + 1]:
            return False
        at = places[cell]
        places[cell] = at + 1
        out_genes[at], out_data[at] = genes[k], data[k]
    return bool(cells.size == indptr[n])
