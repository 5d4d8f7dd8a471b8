"""From values in the order of genes to values in the order of cells: counted, split into parts, each part put in order.

Stored numbers are not trusted: whatever they are, nothing outside the arrays is touched.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray


@nb.njit(nogil=True, cache=True)
def count_cells(cells: NDArray[Any], counts: NDArray[np.int64]) -> int:
    """Add to ``counts`` ``(n_cells,)`` how often each cell is in ``cells``.

    Returns the position of the first number that is no cell, where it ends; else -1.
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
    """Sort values of a CSC matrix by the part that their cell is in, otherwise as they were.

    The values are those from ``begin`` on, ``cells`` and ``data`` of them; ``indptr`` are the offsets of all genes.
    ``part_of`` ``(n_cells,)`` is the part of each cell. Filled are ``out_cells``, ``out_genes`` and ``out_data``, as
    long as ``cells``, and ``starts`` ``(n_parts + 1,)``: where in them each part begins.

    Returns False where some number is no cell; the output has no meaning then.
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
    """Sort the values of a part by their cell, otherwise as they were.

    ``indptr`` ``(n + 1,)`` says where in the output the values of each of its cells go, the first of which has the
    number ``first``.

    Returns False where a cell has other than so many values; the output has no meaning then.
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
