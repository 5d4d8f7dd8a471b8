"""What has been drawn: counts that cost next to nothing while a model trains, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.count import count_rows

MAX_TRACKED = 1 << 24
"""Cells that are counted one by one, at 4 bytes each; of a larger collection every 2nd, 4th, 8th … is."""

_STEP = 1 << 16
_ONE_CLASS = np.empty(0, np.int32)


class Tally:
    """Draws counted by class and by cell: by each cell, or by every 2^k-th of a collection too large for that.

    Counts of several ranks add up (`summed`), since the same cells are tracked everywhere. Not thread-safe.
    """

    draws: NDArray[np.int64]
    """``(n_classes + 1,)`` draws of each class; those of unknown class last, so that a code of -1 finds them."""
    counts: NDArray[np.int32]
    """``(n_tracked,)`` draws of each tracked cell: of rows 0, ``step``, 2 · ``step`` …"""
    step: int
    """Distance between tracked rows, a power of two; 1 where all are."""

    def __init__(
        self,
        n_cells: int,
        classes: NDArray[np.int32] | None = None,
        n_classes: int = 1,
        *,
        max_tracked: int = MAX_TRACKED,
    ) -> None:
        """Count draws from a collection of ``n_cells``.

        Args:
            n_cells: Cells of the collection: rows are below it.
            classes: (n_cells,) class of each cell, below ``n_classes``, or -1 for unknown; None: all of class 0.
            n_classes: Number of classes.
            max_tracked: Most cells to count one by one.

        Raises:
            ValueError: there are not as many classes as cells, or a class is out of range.
        """
        if classes is not None:
            if len(classes) != n_cells:
                raise ValueError(f"there are classes of {len(classes)} cells, but the collection has {n_cells}")
            if len(classes) and not -1 <= classes.min() <= classes.max() < n_classes:
                raise ValueError(
                    f"classes must be from -1 to {n_classes - 1}, not from {classes.min()} to {classes.max()}"
                )
        self._classes = _ONE_CLASS if classes is None else classes
        self._shift = 0
        while -(-n_cells >> self._shift) > max_tracked:
            self._shift += 1
        self.step = 1 << self._shift
        self.draws = np.zeros(n_classes + 1, np.int64)
        self.counts = np.zeros(-(-n_cells // self.step), np.int32)

    def add(self, rows: NDArray[np.int64]) -> None:
        """Count the draws of ``rows``."""
        count_rows(rows, self._classes, self._shift, self.draws, self.counts)

    def reset(self) -> None:
        """Forget all draws."""
        self.draws[:] = 0
        self.counts[:] = 0

    def summed(self, over_ranks: Callable[[NDArray[np.integer]], NDArray[np.integer]]) -> Tally:
        """The tally of all ranks: ``over_ranks`` gives, for an array of this one, its sum over those of all."""
        total = copy(self)
        total.draws = over_ranks(self.draws).astype(np.int64)
        total.counts = over_ranks(self.counts).astype(np.int32)
        return total

    @property
    def n_draws(self) -> int:
        """Draws counted."""
        return int(self.draws.sum())

    @property
    def shares(self) -> NDArray[np.float64]:
        """``(n_classes + 1,)`` realised share of the draws of each class; NaN before the first draw."""
        return self.draws / (self.n_draws or np.nan)

    @property
    def repeated_share(self) -> float:
        """Share of the draws whose cell had been drawn before: 1 - distinct cells / draws, among tracked cells.

        NaN before the first draw of a tracked cell.
        """
        return 1 - np.count_nonzero(self.counts) / (self._tracked_draws or np.nan)

    @property
    def effective_cells(self) -> float:
        """Effective sample size of the draws, in cells (Kish, 1965): ``(sum c)² / sum c²`` over draws c of each cell.

        As many cells drawn once each would tell as much about a mean over the cells as these draws do: it is the
        number of draws where no cell came twice, and less the more unevenly they fell. Taken over tracked cells and
        scaled to all draws. NaN before the first draw of a tracked cell.
        """
        parts = (self.counts[at : at + _STEP].astype(np.float64) for at in range(0, len(self.counts), _STEP))
        squares = sum(float(part @ part) for part in parts)
        return self.n_draws * self._tracked_draws / (squares or np.nan)

    @property
    def _tracked_draws(self) -> int:
        return int(self.counts.sum(dtype=np.int64))
