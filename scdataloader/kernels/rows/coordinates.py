"""Sparse rows from values with coordinates in any order."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

OK, BAD_ROW, BAD_GENE = 0, 1, 2


@nb.njit(nogil=True, cache=True)
def count_coordinates(
    rows: NDArray[np.int64],
    genes: NDArray[np.int64],
    data: NDArray[Any],
    first: int,
    lut: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> tuple[int, bool, float]:
    """Count the values of each row whose gene is kept.

    Args:
        rows: Row of each value.
        genes: Gene of each value.
        data: The values.
        first: The row that is counted in ``counts[0]``.
        lut: New number of each gene; negative for genes that are not kept.
        counts: ``(n_rows,)`` numbers of values, added to.

    Returns:
        `OK`, or what is out of range; whether all values that are kept are whole numbers from 0 up; and the largest.
    """
    whole, largest = True, 0.0
    for k in range(rows.size):
        row, gene = rows[k] - first, genes[k]
        if row < 0 or row >= counts.size:
            return BAD_ROW, whole, largest
        if gene < 0 or gene >= lut.size:
            return BAD_GENE, whole, largest
        if lut[gene] >= 0:
            counts[row] += 1
            value = np.float64(data[k])
            whole &= bool(value >= 0 and value - np.floor(value) == 0)  # infinity minus infinity is NaN
            largest = max(largest, value)
    return OK, whole, largest


@nb.njit(nogil=True, cache=True)
def place_coordinates(
    rows: NDArray[np.int64],
    genes: NDArray[np.int64],
    data: NDArray[Any],
    first: int,
    lut: NDArray[np.int32],
    places: NDArray[np.int64],
    out_genes: NDArray[Any],
    out_data: NDArray[Any],
) -> None:
    """Write the values that `count_coordinates` has checked to their rows, in the given order.

    Args:
        rows: As there.
        genes: As there.
        data: As there.
        first: As there.
        lut: As there.
        places: ``(n_rows,)`` where the next value of each row is written; moved on.
        out_genes: Output: new gene numbers.
        out_data: Output: values.
    """
    for k in range(rows.size):
        gene = lut[genes[k]]
        if gene >= 0:
            at = places[rows[k] - first]
            places[rows[k] - first] = at + 1
            out_genes[at], out_data[at] = gene, data[k]
