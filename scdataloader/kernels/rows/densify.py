"""Sparse rows to dense rows."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.machine.memory import LINE, move_line, settle

_STRETCH = 2048
"""Genes that are filled at a time: 8 KB, a quarter of a typical L1 cache."""


@nb.njit(nogil=True, cache=True)
def densify(
    indptr: NDArray[np.int64], indices: NDArray[np.int32], data: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Fill ``out`` (n_rows, n_genes), C-contiguous, with the rows, zeros elsewhere. Genes ascend within a row.

    Stretches of a row are filled in the cache, then moved to the output in whole cache lines, bypassing the caches.
    """
    memory = np.zeros(_STRETCH + LINE, np.float32)
    stretch = memory[-(memory.ctypes.data // 4) % LINE :]
    n_genes, address = out.shape[1], stretch.ctypes.data
    for row in range(len(out)):
        to = out.ctypes.data + 4 * n_genes * row
        j, end = indptr[row], indptr[row + 1]
        first = -(to // 4 % LINE)  # so that cache lines of the stretch and of the output coincide
        while first < n_genes:
            last = min(first + _STRETCH, n_genes)
            stop = j  # counted first, so that the loop over the entries does not wait for its own end
            while stop + LINE <= end and indices[stop + LINE - 1] < last:
                stop += LINE
            while stop < end and indices[stop] < last:
                stop += 1
            for k in range(j, stop):
                stretch[np.uint32(indices[k] - first)] = data[k]
            j = stop
            # The first and last cache lines of a row are shared with the neighbouring rows.
            whole = 0 if first >= 0 else LINE
            rest = max(whole, (last - first) // LINE * LINE)
            for k in range(max(0, -first), min(whole, last - first)):
                out[row, first + k] = stretch[k]
                stretch[k] = 0
            for k in range(whole, rest, LINE):
                move_line(np.uintp(address + 4 * k), np.uintp(to + 4 * (first + k)))
            for k in range(rest, last - first):
                out[row, first + k] = stretch[k]
                stretch[k] = 0
            first = last
    settle()


@nb.njit(nogil=True, cache=True)
def densify_given(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    column: NDArray[np.int32],
    out: NDArray[np.float32],
) -> None:
    """Fill ``out`` (n_rows, n_columns) with some genes only: gene g to column ``column[g]``, unless that is -1."""
    for row in range(len(out)):
        out[row, :] = 0
        for j in range(indptr[row], indptr[row + 1]):
            to = column[indices[j]]
            if to >= 0:
                out[row, to] = data[j]
