"""Three ways to draw cells by class weight and cell weight, with the look-up tables of each."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.blocks import block_sums, draw_blocks
from scdataloader.kernels.draws.classes import class_totals
from scdataloader.kernels.draws.draw import GROUP, draw_equal, draw_weighted, fill_guide, group_sums, guide_starts
from scdataloader.kernels.draws.quotas import MOST_DRAWS, draw_quotas
from scdataloader.sampling.class_index import ClassIndex, count_classes

NO_WEIGHTS = np.empty(0, np.float64)
_ROUNDING = 1e-9


class Draws(Protocol):
    """A way to draw, without state: the caller keeps the tables that depend on the class weights."""

    @property
    def drawable(self) -> NDArray[np.bool_]:
        """``(K,)`` True for classes with cells that can be drawn."""

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Everything that the draws depend on, apart from the class weights."""

    def tables(self, class_weights: NDArray[np.float64]) -> Any:
        """Look-up tables for class weights ``(K,)`` that sum to 1."""

    def draw(self, tables: Any, key: np.uint64, start: int, out: NDArray[np.int64]) -> None:
        """Fill ``out`` with the cells at positions ``start``, ``start + 1`` … of the epoch of ``key``."""


class IndependentDraws:
    """Independent draws: a class by its weight, then a cell by its weight within the class."""

    def __init__(self, index: ClassIndex, weights: NDArray[np.floating]) -> None:
        """Sum ``weights`` ((n,), or empty for equal cells) within each class."""
        self._index = index
        self._weights = weights
        self.arrays = (index.starts, index.cells, weights)
        self._sums, self._first = NO_WEIGHTS, np.zeros(len(index.starts), np.int64)
        self.drawable = index.sizes > 0
        if len(weights):
            np.cumsum(-(-index.sizes // GROUP), out=self._first[1:])
            self._sums = group_sums(index.starts, index.cells, weights, self._first)
            self.drawable[self.drawable] = self._sums[self._first[1:][self.drawable] - 1] > 0
            self._guide_start, self._guide = guide_of(self._sums, self._first)

    def tables(self, class_weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.integer]]:
        """The running sum of the class weights, and its guide."""
        running = np.cumsum(class_weights)
        return running, guide_of(running)[1]

    def draw(
        self,
        tables: tuple[NDArray[np.float64], NDArray[np.integer]],
        key: np.uint64,
        start: int,
        out: NDArray[np.int64],
    ) -> None:
        """Fill ``out``."""
        starts, cells = self._index.starts, self._index.cells
        if len(self._weights):
            weights, first, sums = self._weights, self._first, self._sums
            draw_weighted(key, start, *tables, starts, cells, weights, first, sums, self._guide_start, self._guide, out)
        else:
            draw_equal(key, start, *tables, starts, cells, out)


class QuotaDraws:
    """Without replacement: each class gets its share of the epoch to within one, in rounds through its cells.

    With cell weights there is one class, and each cell is drawn at most once, with the probability of its weight.
    """

    def __init__(self, index: ClassIndex, weights: NDArray[np.floating], num_samples: int) -> None:
        """Sum ``weights`` ((n,), or empty for equal cells).

        Raises:
            ValueError: an epoch is too long, or a cell would have to be drawn more than once.
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
                f"{self._num_samples:,} draws without replacement need as many cells with a weight, but there are "
                f"{n_cells:,}; lower num_samples, draw with replacement, or give classes instead of weights"
            )
        times = self._num_samples * most / total if total else 0.0
        if times > 1 + _ROUNDING:
            heaviest = int(np.argmax(self._weights))
            raise ValueError(
                f"cell {heaviest} needs {times:.3g} of {self._num_samples:,} draws by its weight, but without "
                f"replacement a cell is drawn once; draw at most {int(self._num_samples / times):,}, lower the weight, "
                "or draw with replacement"
            )

    def tables(self, class_weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Running sums of the class weights, or of the cell weights in groups."""
        return self._sums if len(self._weights) else np.cumsum(class_weights)

    def draw(self, tables: NDArray[np.float64], key: np.uint64, start: int, out: NDArray[np.int64]) -> None:
        """Fill ``out``."""
        starts, cells = self._index.starts, self._index.cells
        draw_quotas(key, self._num_samples, start, starts, cells, self._weights, tables, out)


class BlockDraws:
    """Blocks of neighbouring cells by their weight, then cells within them; without a class index."""

    def __init__(
        self, n: int, codes: NDArray[np.integer] | None, weights: NDArray[np.floating], block_size: int, stride: int
    ) -> None:
        """Sum the weights ((n,), or empty) of each class of ``codes`` ((n,), or None for one class).

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

    def tables(
        self, class_weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.integer]]:
        """The weight of each class per unit of cell weight, the running sums of the blocks, and their guide."""
        share = np.divide(class_weights, self._totals, out=np.zeros_like(class_weights), where=self.drawable)
        sums = block_sums(self._n, self._block_size, self._codes, share, self._weights)
        return share, sums, guide_of(sums)[1]

    def draw(
        self,
        tables: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.integer]],
        key: np.uint64,
        start: int,
        out: NDArray[np.int64],
    ) -> None:
        """Fill ``out``."""
        if len(out):
            share, sums, guide = tables
            n, block_size, stride = self._n, self._block_size, self._stride
            draw_blocks(key, start, n, block_size, stride, self._codes, share, self._weights, sums, guide, out)


def guide_of(
    sums: NDArray[np.float64], first: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
    """Offset of the guide of each part of ``sums``, and the guides; None is one part."""
    parts = np.array([0, len(sums)], np.int64) if first is None else first
    starts = guide_starts(parts)
    guide = np.empty(starts[-1], np.int32 if len(sums) <= np.iinfo(np.int32).max else np.int64)
    fill_guide(sums, parts, starts, guide)
    return starts, guide
