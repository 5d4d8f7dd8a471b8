"""Quantile bins of values within each row."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray


@nb.njit(nogil=True, cache=True)
def bin_rows(indptr: NDArray[np.int64], data: NDArray[Any], n_bins: int, out: NDArray[np.float32]) -> None:
    """Each value's quantile bin among the values of its row: 1 to ``n_bins - 1``, as ``np.digitize`` numbers them."""
    levels = np.linspace(0.0, 1.0, n_bins - 1)
    edges = np.empty(n_bins - 1, np.float64)
    for row in range(len(indptr) - 1):
        begin, end = indptr[row], indptr[row + 1]
        if begin < end:
            _quantiles(np.sort(data[begin:end].astype(np.float64)), levels, edges)
            for j in range(begin, end):
                out[j] = np.searchsorted(edges, np.float64(data[j]), side="right")


@nb.njit(nogil=True, cache=True)
def _quantiles(ordered: NDArray[np.float64], levels: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """``np.quantile`` of sorted values, bit for bit: an edge that is rounded differently would change bins."""
    last = len(ordered) - 1
    for i in range(len(levels)):
        at = levels[i] * last
        below = int(np.floor(at))
        a, b = ordered[below], ordered[min(below + 1, last)]
        t = at - below
        out[i] = a + (b - a) * t if 2 * t < 1 else b - (b - a) * (1 - t)
