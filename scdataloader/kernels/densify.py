"""Sparse rows written out in full."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray


@nb.njit(nogil=True, cache=True)
def densify(
    indptr: NDArray[np.int64], indices: NDArray[np.int32], data: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Fill ``out`` (n_rows, n_genes) with the rows, zeros elsewhere. One row is cleared and filled while it is in cache."""
    for row in range(len(out)):
        out[row, :] = 0
        for j in range(indptr[row], indptr[row + 1]):
            out[row, indices[j]] = data[j]


@nb.njit(nogil=True, cache=True)
def densify_given(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    column: NDArray[np.int32],
    out: NDArray[np.float32],
) -> None:
    """Fill ``out`` (n_rows, n_columns) with some genes only: gene g goes to ``column[g]``, and nowhere where that is -1."""
    for row in range(len(out)):
        out[row, :] = 0
        for j in range(indptr[row], indptr[row + 1]):
            to = column[indices[j]]
            if to >= 0:
                out[row, to] = data[j]


@nb.njit(nogil=True, cache=True)
def bin_rows(indptr: NDArray[np.int64], data: NDArray[Any], n_bins: int, out: NDArray[np.float32]) -> None:
    """Each value's quantile bin among the values of its row: 1 to ``n_bins - 1``, as ``np.digitize`` numbers them."""
    levels = np.linspace(0.0, 1.0, n_bins - 1)
    for row in range(len(indptr) - 1):
        begin, end = indptr[row], indptr[row + 1]
        if begin < end:
            edges = np.quantile(data[begin:end], levels)
            for j in range(begin, end):
                out[j] = np.searchsorted(edges, np.float64(data[j]), side="right")
