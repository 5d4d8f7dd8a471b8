"""Nearest neighbours of cells, from the rows of a graph."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray


@nb.njit(nogil=True, cache=True)
def nearest(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    rows: NDArray[np.int64],
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``k`` nearest neighbours of cells ``rows``; see `scdataloader.protocols.HasNeighbours.neighbours`.

    Row i of the sparse matrix has the distances of the edges of cell ``rows[i]``. Every stored entry is an edge, also
    one of distance 0; those of a cell to itself and those of NaN are left out.
    """
    found = np.full((len(rows), k), -1, np.int64)
    distances = np.full((len(rows), k), -1, np.float32)
    for i in range(len(rows)):
        n = 0
        for j in range(indptr[i], indptr[i + 1]):
            cell, value = np.int64(indices[j]), data[j]
            if cell == rows[i] or np.isnan(value):
                continue
            at = n
            while at > 0 and (
                value < distances[i, at - 1] or (value == distances[i, at - 1] and cell < found[i, at - 1])
            ):
                at -= 1
            if at == k:
                continue
            n = min(n + 1, k)
            for later in range(n - 1, at, -1):
                found[i, later], distances[i, later] = found[i, later - 1], distances[i, later - 1]
            found[i, at], distances[i, at] = cell, value
    return found, distances
