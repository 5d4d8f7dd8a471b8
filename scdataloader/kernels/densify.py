"""Sparse rows written out in full."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray


@nb.njit(nogil=True, cache=True)
def densify(
    indptr: NDArray[np.int64], indices: NDArray[np.int32], data: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Fill ``out`` (n_rows, n_genes) with the rows, zeros elsewhere; each row is cleared and filled while in cache."""
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
    """Fill ``out`` (n_rows, n_columns) with some genes only: gene g goes to ``column[g]``, unless that is -1."""
    for row in range(len(out)):
        out[row, :] = 0
        for j in range(indptr[row], indptr[row + 1]):
            to = column[indices[j]]
            if to >= 0:
                out[row, to] = data[j]
