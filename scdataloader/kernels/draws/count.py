"""Counts of drawn cells and classes."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray


@nb.njit(cache=True)  # keeps the GIL: takes less time than getting it back
def count_rows(
    rows: NDArray[np.int64],
    classes: NDArray[np.integer],
    shift: int,
    draws: NDArray[np.int64],
    counts: NDArray[np.int32],
) -> None:
    """Add one to the class of each row in ``draws``, and to each row that is a multiple of 2^shift in ``counts``.

    ``classes`` is empty if all rows are of class 0; class -1 is counted last.
    """
    between = (np.int64(1) << shift) - 1
    for i in range(len(rows)):
        row = rows[i]
        draws[classes[row] if len(classes) else 0] += 1
        if row & between == 0:
            counts[row >> shift] += 1
