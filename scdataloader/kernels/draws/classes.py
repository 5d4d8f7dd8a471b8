"""Sort cells by class in two passes over their codes."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray


@nb.njit(nogil=True, cache=True)
def code_range(codes: NDArray[np.integer]) -> tuple[int, int]:
    """The lowest code, at most 0, and one more than the highest."""
    lowest, highest = np.int64(0), np.int64(-1)
    for cell in range(len(codes)):
        lowest = min(lowest, np.int64(codes[cell]))
        highest = max(highest, np.int64(codes[cell]))
    return int(lowest), int(highest + 1)


@nb.njit(nogil=True, cache=True)
def class_sizes(codes: NDArray[np.integer], n_classes: int) -> NDArray[np.int64]:
    """``(n_classes,)`` cells of each class; code -1 is ignored."""
    sizes = np.zeros(n_classes, np.int64)
    for cell in range(len(codes)):
        if codes[cell] >= 0:
            sizes[codes[cell]] += 1
    return sizes


@nb.njit(nogil=True, cache=True)
def sort_by_class(
    codes: NDArray[np.integer], unknown: int, starts: NDArray[np.int64], out: NDArray[np.integer]
) -> None:
    """Stable sort of cell numbers: those of class c go to ``out[starts[c]:starts[c + 1]]``.

    Cells of code -1 are of class ``unknown``; if that is -1 as well, they are ignored.
    """
    following = starts[:-1].copy()
    for cell in range(len(codes)):
        code = int(codes[cell])
        if code < 0:
            code = unknown
        if code >= 0:
            out[following[code]] = cell
            following[code] += 1


@nb.njit(nogil=True, cache=True)
def recode(codes: NDArray[np.integer], lut: NDArray[np.int64], out: NDArray[np.integer]) -> None:
    """``out[i] = lut[codes[i]]``; the last entry of ``lut`` is for code -1."""
    last = len(lut) - 1
    for cell in range(len(codes)):
        code = np.int64(codes[cell])
        out[cell] = lut[code if code >= 0 else last]


@nb.njit(nogil=True, cache=True)
def class_totals(codes: NDArray[np.integer], n_classes: int, weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """``(n_classes,)`` sum of the weights of the cells of each class; if ``weights`` is empty, their number."""
    totals = np.zeros(n_classes, np.float64)
    for cell in range(len(codes)):
        if codes[cell] >= 0:
            totals[codes[cell]] += weights[cell] if len(weights) else 1.0
    return totals


@nb.njit(nogil=True, cache=True)
def first_invalid(values: NDArray[np.floating]) -> int:
    """The first index whose value is negative, infinite or NaN; -1 if there is none."""
    for at in range(len(values)):
        if not 0 <= values[at] < np.inf:
            return at
    return -1
