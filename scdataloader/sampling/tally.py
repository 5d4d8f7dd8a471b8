"""Counts of draws by class and by cell, and the statistics that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.count import count_rows
from scdataloader.protocols import DrawnClasses, Sampler
from scdataloader.sampling.rows import Rows

__all__ = ["Tally"]

MAX_TRACKED = 1 << 24
"""Cells that are counted one by one, at 4 bytes each; of a larger collection every 2nd, 4th, 8th … cell."""

MAX_DRAWS = 1 << 24
"""Draws of an epoch that `Tally.add_epoch` makes; some seconds."""

_STEP = 1 << 16
_DRAWS_AT_ONCE = 1 << 20
_ONE_CLASS = np.empty(0, np.int32)


class Tally:
    """Draws counted by class and by cell: every cell, or every 2^k-th of a large collection.

    Counts of several ranks add up (`summed`), since all ranks track the same cells. Not thread-safe.
    """

    names: list[str]
    """``(n_classes + 1,)`` class names, "unknown" last."""
    draws: NDArray[np.int64]
    """``(n_classes + 1,)`` draws of each class; those of unknown class last, at index -1."""
    counts: NDArray[np.int32]
    """``(n_tracked,)`` draws of each tracked cell: rows 0, ``step``, 2 · ``step`` …"""
    step: int
    """Distance between tracked rows, a power of two; 1 if all are tracked."""

    def __init__(
        self,
        n_cells: int,
        classes: NDArray[np.integer] | None = None,
        names: Sequence[str] = ("all cells",),
        *,
        max_tracked: int = MAX_TRACKED,
    ) -> None:
        """Start with no draws.

        Args:
            n_cells: Cells of the collection: rows are below it.
            classes: (n_cells,) class of each cell, an index in ``names``, or -1 for unknown; None: all of class 0.
            names: Names of the classes.
            max_tracked: Maximum number of cells that are counted one by one.

        Raises:
            ValueError: the number of classes differs from that of cells, or a class is out of range.
        """
        n_classes = len(names)
        if classes is not None:
            if len(classes) != n_cells:
                raise ValueError(
                    f"got classes of {len(classes)} cells, but the collection has {n_cells}; give one per cell"
                )
            if len(classes) and not -1 <= classes.min() <= classes.max() < n_classes:
                raise ValueError(
                    f"classes must be from -1 to {n_classes - 1}, not from {classes.min()} to {classes.max()}"
                )
        self.names = [*names, "unknown"]
        self._classes: NDArray[np.integer] = _ONE_CLASS if classes is None else classes
        self._shift = 0
        while -(-n_cells >> self._shift) > max_tracked:
            self._shift += 1
        self.step = 1 << self._shift
        self.draws = np.zeros(n_classes + 1, np.int64)
        self.counts = np.zeros(-(-n_cells // self.step), np.int32)

    @classmethod
    def of(cls, drawn: DrawnClasses | None, rows: Rows) -> Tally:
        """A tally by the classes that a sampling plan draws from ``rows``; of a single class without them."""
        if drawn is None or (len(drawn.names) == 1 and (drawn.codes == 0).all()):
            return cls(rows.n, names=("all cells",) if drawn is None else drawn.names)
        codes, at = drawn.codes, 0
        if rows.is_all:
            return cls(rows.n, codes, drawn.names)
        classes = np.full(rows.n, -1, codes.dtype)
        for some in rows.steps():
            classes[some] = codes[at : at + len(some)]
            at += len(some)
        return cls(rows.n, classes, drawn.names)

    def add(self, rows: NDArray[np.int64]) -> None:
        """Count the draws of ``rows``."""
        count_rows(rows, self._classes, self._shift, self.draws, self.counts)

    def add_epoch(self, sampler: Sampler, epoch: int, max_draws: int = MAX_DRAWS) -> None:
        """Draw an epoch, or its first ``max_draws`` draws, and count the rows."""
        n = min(sampler.num_samples, max_draws)
        for start in range(0, n, _DRAWS_AT_ONCE):
            self.add(sampler.draw(epoch, start, min(start + _DRAWS_AT_ONCE, n)))

    def reset(self) -> None:
        """Set all counts to 0."""
        self.draws[:] = 0
        self.counts[:] = 0

    def empty(self) -> Tally:
        """Another tally of the same cells and classes, without draws."""
        other = copy(self)
        other.draws, other.counts = np.zeros_like(self.draws), np.zeros_like(self.counts)
        return other

    def summed(self, over_ranks: Callable[[NDArray[np.integer]], NDArray[np.integer]]) -> Tally:
        """The tally of all ranks; ``over_ranks`` returns the sum of an array over the ranks."""
        total = copy(self)
        total.draws = over_ranks(self.draws).astype(np.int64)
        total.counts = over_ranks(self.counts).astype(np.int32)
        return total

    @property
    def n_draws(self) -> int:
        """Number of draws."""
        return int(self.draws.sum())

    @property
    def shares(self) -> NDArray[np.float64]:
        """``(n_classes + 1,)`` observed share of the draws of each class; NaN before the first draw."""
        return self.draws / (self.n_draws or np.nan)

    @property
    def repeated_share(self) -> float:
        """Share of the draws whose cell was drawn before: 1 - distinct cells / draws, among tracked cells.

        NaN before the first draw of a tracked cell.
        """
        return 1 - np.count_nonzero(self.counts) / (self._tracked_draws or np.nan)

    @property
    def effective_cells(self) -> float:
        """Effective sample size of the draws, in cells (Kish, 1965): ``(sum c)² / sum c²`` over draws c of each cell.

        A mean over the draws is as precise as a mean over this many distinct cells. Equal to the number of draws if no
        cell is repeated, and lower the more uneven the counts are. Computed from tracked cells and scaled to all draws.
        NaN before the first draw of a tracked cell.
        """
        parts = (self.counts[at : at + _STEP].astype(np.float64) for at in range(0, len(self.counts), _STEP))
        squares = sum(float(part @ part) for part in parts)
        return self.n_draws * self._tracked_draws / (squares or np.nan)

    @property
    def _tracked_draws(self) -> int:
        return int(self.counts.sum(dtype=np.int64))
