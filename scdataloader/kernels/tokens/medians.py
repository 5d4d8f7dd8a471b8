"""Medians of each gene over cells, digit by digit."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

DIGIT = 8
"""Bits of a digit: four passes over the cells find the 32 bits of a float32."""
N_DIGITS = 1 << DIGIT
_BITS, _LAST, _ONE = np.uint64(DIGIT), np.uint64(N_DIGITS - 1), np.uint32(1)


@nb.njit(nogil=True, cache=True, error_model="numpy")
def count_digits(
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint32],
    data: NDArray[np.float32],
    total: NDArray[np.float32],
    scale: float,
    shift: np.uint64,
    prefix: NDArray[np.uint64],
    counts: NDArray[np.uint32],
) -> None:
    """Count the next digit of the values ``x / total * scale`` of each gene, as float32, that begin with a prefix.

    Positive floats order as their bits do. Values that are not above 0, and cells of total 0, do not count.

    Args:
        indptr: ``(n_rows + 1,)`` offsets.
        indices: Gene numbers.
        data: Values.
        total: ``(n_rows,)`` total of each cell.
        scale: Multiplied with the fractions.
        shift: Bits after the digit: 24, 16, 8 and then 0.
        prefix: ``(2, n_genes)`` bits before the digit, two of each gene.
        counts: ``(2, n_genes, N_DIGITS)``, to which the numbers are added; those of a gene whose prefixes are the same
            are added to the first only.
    """
    longest = 0
    for row in range(len(indptr) - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    values = np.empty(longest, np.float32)
    bits = values.view(np.uint32)
    for row in range(len(indptr) - 1):
        if not total[row] > 0:
            continue
        genes, x = indices[indptr[row] : indptr[row + 1]], data[indptr[row] : indptr[row + 1]]
        for j in range(len(x)):
            values[j] = np.float64(x[j]) / total[row] * scale
        for j in range(len(x)):
            if not x[j] > 0:
                continue
            gene, key = genes[j], np.uint64(bits[j]) >> shift
            first, second = prefix[0, gene], prefix[1, gene]
            if key >> _BITS == first:
                counts[0, gene, key & _LAST] += _ONE
            elif key >> _BITS == second:
                counts[1, gene, key & _LAST] += _ONE
