"""Medians of each gene over cells, digit by digit."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

DIGIT = 8
"""Bits of a digit: four passes over the cells find the 32 bits of a float32."""
N_DIGITS = 1 << DIGIT
_BITS, _LAST, _ONE = np.uint64(DIGIT), np.uint64(N_DIGITS - 1), np.uint32(1)


@nb.njit(nogil=True, cache=True)
def count_digits(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    total: NDArray[np.float32],
    scale: float,
    shift: np.uint64,
    prefix: NDArray[np.uint64],
    counts: NDArray[np.uint32],
) -> None:
    """Count the next digit of the values ``x / total * scale`` of each gene, as float32, that begin with its prefix.

    Positive floats order as their bits do. Values that are not above 0, and cells of total 0, do not count.

    Args:
        indptr: ``(n_rows + 1,)`` offsets.
        indices: Gene numbers.
        data: Values.
        total: ``(n_rows,)`` total of each cell.
        scale: Multiplied with the fractions.
        shift: Bits after the digit: 24, 16, 8 and then 0.
        prefix: ``(n_genes,)`` bits before the digit.
        counts: ``(n_genes, N_DIGITS)``, to which the numbers are added.
    """
    value = np.empty(1, np.float32)
    bits = value.view(np.uint32)
    for row in range(len(indptr) - 1):
        if not total[row] > 0:
            continue
        for j in range(indptr[row], indptr[row + 1]):
            value[0] = np.float64(data[j]) / total[row] * scale
            key = np.uint64(bits[0]) >> shift
            if data[j] > 0 and key >> _BITS == prefix[indices[j]]:
                counts[indices[j], key & _LAST] += _ONE
