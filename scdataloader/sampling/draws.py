"""Three ways to draw cells by class mass and cell weight, each with what it keeps for it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.blocks import block_sums, draw_blocks
from scdataloader.kernels.draws.classes import class_totals
from scdataloader.kernels.draws.draw import GROUP, draw_alike, draw_weighted, fill_guide, group_sums, guide_starts
from scdataloader.kernels.draws.quotas import MOST_DRAWS, draw_quotas
from scdataloader.sampling.class_index import ClassIndex, count_classes

NO_WEIGHTS = np.empty(0, np.float64)
_ROUNDING = 1e-9


class Draws(Protocol):
    """A way to draw, without state: what depends on the class masses is kept by the caller."""

    @property
    def drawable(self) -> NDArray[np.bool_]:
        """``(K,)`` whether a class has cells that can be drawn."""

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """All that the draws depend on, besides the class masses."""

    def prepared(self, mass: NDArray[np.float64]) -> Any:
        """What `draw` needs to know of class masses ``(K,)`` that sum to 1."""

    def draw(self, prepared: Any, key: np.uint64, start: int, out: NDArray[np.int64]) -> None:
        """Fill ``out`` with the cells at positions ``start``, ``start + 1`` … of the epoch that ``key`` names."""


class IndependentDraws:
    """Each draw by itself: a class by its mass, then a cell by its weight within the class."""

    def __init__(self, index: ClassIndex, weights: NDArray[np.floating]) -> None:
        """Sum up ``weights`` ((n,), or empty for cells that are alike) in each class."""
        self._index = index
        self._weights = weights
        self.arrays = (index.starts, index.cells, weights)
        self._sums, self._first = NO_WEIGHTS, np.zeros(len(index.starts), np.int64)
        self.drawable = index.sizes > 0
        if len(weights):
            np.cumsum(-(-index.sizes // GROUP), out=self._first[1:])
            self._sums = group_sums(index.starts, index.cells, weights, self._first)
            self.drawable[self.drawable] = self._sums[self._first[1:][self.drawable] - 1] > 0
            self._guide_start, self._guide = _guide(self._sums, self._first)

    def prepared(self, mass: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.integer]]:
        """The running sum of the masses, and its guide."""
        running = np.cumsum(mass)
        return running, _guide(running)[1]

    def draw(
        self,
        prepared: tuple[NDArray[np.float64], NDArray[np.integer]],
        key: np.uint64,
        start: int,
        out: NDArray[np.int64],
    ) -> None:
        """Fill ``out``."""
        starts, cells = self._index.starts, self._index.cells
        if len(self._weights):
            draw_weighted(
                key,
                start,
                *prepared,
                starts,
                cells,
                self._weights,
                self._first,
                self._sums,
                self._guide_start,
                self._guide,
                out,
            )
        else:
            draw_alike(key, start, *prepared, starts, cells, out)


class QuotaDraws:
    """Without replacement: each class its share of the epoch to within one, in rounds through its cells.

    Where cells have weights there is one class, and each cell comes once with the probability asked for, or not at all.
    """

    def __init__(self, index: ClassIndex, weights: NDArray[np.floating], num_samples: int) -> None:
        """Sum up ``weights`` ((n,), or empty for cells that are alike).

        Raises:
            ValueError: an epoch is too long, or a cell would have to come more than once.
        """
        if num_samples > MOST_DRAWS:
            raise ValueError(f"without replacement an epoch has at most {MOST_DRAWS:,} draws, not {num_samples:,}")
        self._index = index
        self._weights = weights
        self.arrays = (index.starts, index.cells, weights)
        self._num_samples = num_samples
        self._sums = NO_WEIGHTS
        self.drawable = index.sizes > 0
        if len(weights):
            first = np.array([0, -(-len(weights) // GROUP)], np.int64)
            self._sums = group_sums(index.starts, index.cells, weights, first)
            self.drawable = self._sums[-1:] > 0
            self._check_enough(float(self._sums[-1]))

    def _check_enough(self, total: float) -> None:
        n_cells, most = int(np.count_nonzero(self._weights)), float(self._weights.max())
        if 0 < n_cells < self._num_samples:
            raise ValueError(
                f"{self._num_samples:,} draws without replacement, but only {n_cells:,} cells have a weight; draw at "
                "most as many, draw with replacement, or give classes, whose cells come again once all have come"
            )
        times = self._num_samples * most / total if total else 0.0
        if times > 1 + _ROUNDING:
            heaviest = int(np.argmax(self._weights))
            raise ValueError(
                f"cell {heaviest} would have to come {times:.3g} times in {self._num_samples:,} draws for its share, "
                f"but draws are without replacement; draw at most {int(self._num_samples / times):,}, lower its "
                "weight, or draw with replacement"
            )

    def prepared(self, mass: NDArray[np.float64]) -> NDArray[np.float64]:
        """Running sums: of the masses, or, where cells have weights, of these in groups."""
        return self._sums if len(self._weights) else np.cumsum(mass)

    def draw(self, prepared: NDArray[np.float64], key: np.uint64, start: int, out: NDArray[np.int64]) -> None:
        """Fill ``out``."""
        starts, cells = self._index.starts, self._index.cells
        draw_quotas(key, self._num_samples, start, starts, cells, self._weights, prepared, out)


class BlockDraws:
    """Blocks of neighbouring cells by their weight, then cells within them; no class index is needed."""

    def __init__(
        self, n: int, codes: NDArray[np.integer] | None, weights: NDArray[np.floating], block_size: int, stride: int
    ) -> None:
        """Sum up the weights ((n,), or empty) of each class of ``codes`` ((n,), or None for one class).

        ``stride`` blocks of ``block_size`` cells are drawn together.
        """
        self._n, self._block_size, self._stride = n, block_size, stride
        self._codes = np.empty(0, np.int32) if codes is None else codes
        self._weights = weights
        self.arrays = (self._codes, weights)
        if codes is None:
            self._totals = np.array([np.sum(weights, dtype=np.float64)])
        else:
            self._totals = class_totals(codes, count_classes(codes), weights)
        self.drawable = self._totals > 0

    def prepared(
        self, mass: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.integer]]:
        """The weight of a cell of each class before its own, the running sums of the blocks, and their guide."""
        share = np.divide(mass, self._totals, out=np.zeros_like(mass), where=self.drawable)
        sums = block_sums(self._n, self._block_size, self._codes, share, self._weights)
        return share, sums, _guide(sums)[1]

    def draw(
        self,
        prepared: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.integer]],
        key: np.uint64,
        start: int,
        out: NDArray[np.int64],
    ) -> None:
        """Fill ``out``."""
        if len(out):
            share, sums, guide = prepared
            n, block_size, stride = self._n, self._block_size, self._stride
            draw_blocks(key, start, n, block_size, stride, self._codes, share, self._weights, sums, guide, out)


def _guide(
    sums: NDArray[np.float64], first: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
    """Where the guide of each part of ``sums`` begins, and the guides; None is one part."""
    parts = np.array([0, len(sums)], np.int64) if first is None else first
    starts = guide_starts(parts)
    guide = np.empty(starts[-1], np.int32 if len(sums) <= np.iinfo(np.int32).max else np.int64)
    fill_guide(sums, parts, starts, guide)
    return starts, guide
