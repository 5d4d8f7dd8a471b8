"""Rows that are combined with those of their neighbours: sums, and values of given genes."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.random import philox, unit
from scdataloader.kernels.machine.bits import drain

_COIN = np.uint64(32) << np.uint64(32)
"""Purpose in the second counter of a row's random bits; see `select`."""


@nb.njit(nogil=True, cache=True)
def toss(key: np.uint64, position: NDArray[np.int64], probability: float) -> NDArray[np.bool_]:
    """``(n,)`` True with ``probability``, by ``key`` and ``position`` only."""
    out = np.empty(len(position), np.bool_)
    for row in range(len(position)):
        bits, _ = philox(key, np.uint64(position[row]), _COIN)
        out[row] = unit(bits) < probability
    return out


@nb.njit(nogil=True, cache=True)
def add_rows(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    other_indptr: NDArray[np.int64],
    other_indices: NDArray[np.int32],
    other_data: NDArray[np.float32],
    n_genes: int,
    starts: NDArray[np.int64],
    out_indices: NDArray[np.int32],
    out_data: NDArray[np.float32],
    out_sizes: NDArray[np.int64],
) -> None:
    """Add row i of other sparse rows to row i, and write it from ``starts[i]`` on.

    Genes of the other rows may be repeated and in any order. ``out_sizes[i]`` is the number of entries, which is at
    most that of both rows.
    """
    dense, present = np.zeros(n_genes, np.float32), np.zeros(n_genes // 64 + 1, np.uint64)
    for row in range(len(indptr) - 1):
        if other_indptr[row] == other_indptr[row + 1]:
            n = indptr[row + 1] - indptr[row]
            out_indices[starts[row] : starts[row] + n] = indices[indptr[row] : indptr[row + 1]]
            out_data[starts[row] : starts[row] + n] = data[indptr[row] : indptr[row + 1]]
            out_sizes[row] = n
            continue
        for j in range(indptr[row], indptr[row + 1]):
            gene = indices[j]
            dense[gene] = data[j]
            present[gene >> 6] |= np.uint64(1) << np.uint64(gene & 63)
        for j in range(other_indptr[row], other_indptr[row + 1]):
            gene = other_indices[j]
            dense[gene] += other_data[j]
            present[gene >> 6] |= np.uint64(1) << np.uint64(gene & 63)
        genes, values = out_indices[starts[row] : starts[row + 1]], out_data[starts[row] : starts[row + 1]]
        n = drain(present, genes)
        for j in range(n):
            values[j] = dense[genes[j]]
            dense[genes[j]] = 0
        out_sizes[row] = n


@nb.njit(nogil=True, cache=True)
def take_genes(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    genes: NDArray[np.int32],
    n_genes: int,
    out: NDArray[np.float32],
) -> None:
    """Fill ``out`` (B, k, L): values of row ``i * k + j`` for the genes ``genes[i]`` (B, L), 0 for gene -1.

    Of a gene that is repeated in ``genes[i]``, only the last place has the value.
    """
    k, width = out.shape[1:]
    # genes that are not taken go to one more column, which is faster than a branch that the processor cannot predict
    column, values = np.full(n_genes, width, np.uint32), np.zeros(width + 1, np.float32)
    for i in range(len(genes)):
        for at in range(width):
            if genes[i, at] >= 0:
                column[genes[i, at]] = at
        for j in range(k):
            for entry in range(indptr[i * k + j], indptr[i * k + j + 1]):
                values[column[np.uint32(indices[entry])]] = data[entry]
            row = out[i, j]
            for at in range(width):
                row[at] = values[at]
                values[at] = 0
        for at in range(width):
            if genes[i, at] >= 0:
                column[genes[i, at]] = width
