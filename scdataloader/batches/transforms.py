"""Transforms of the values of a batch, applied to sparse rows before collation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.rows.bins import HIGHEST, MOST_LEVELS, RANDOM, bin_rows
from scdataloader.kernels.rows.gather import rows_ascend
from scdataloader.protocols import Transform
from scdataloader.types import CellBatch, CSRRows


@dataclass(frozen=True)
class Normalize:
    """Scale each cell to one total.

    Args:
        total: What the values of a cell sum to afterwards, over the genes that ``of`` names.
        of: "source": ``x * total / depth``, where depth counts all genes of the cell's source, also those outside the
            vocabulary. "vocabulary": ``x * total / sum(x)``.
    """

    total: float = 1e4
    of: Literal["source", "vocabulary"] = "source"
    per_cell: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.total > 0:
            raise ValueError(f"the total to normalise to must be positive, not {self.total}")
        if self.of not in ("source", "vocabulary"):
            raise ValueError(f'Normalize(of={self.of!r}): cells are scaled by the total of "source" or "vocabulary"')

    def __call__(self, batch: CellBatch, rng: np.random.Generator) -> CellBatch:  # noqa: ARG002
        """The batch with scaled values; a cell without counts stays as it is."""
        depth = batch.depth if self.of == "source" else row_sums(batch.x)
        scale = self.total / np.where(depth > 0, depth, 1)
        per_value = np.repeat(scale.astype(np.float32), np.diff(batch.x.indptr))
        return _with_values(batch, batch.x.data * per_value)


@dataclass(frozen=True)
class Log1p:
    """The natural logarithm of ``1 + x``."""

    per_cell: ClassVar[bool] = True

    def __call__(self, batch: CellBatch, rng: np.random.Generator) -> CellBatch:  # noqa: ARG002
        """The batch with logarithms as values."""
        return _with_values(batch, np.log1p(batch.x.data))


@dataclass(frozen=True)
class QuantileBins:
    """Quantile of each value among the values of its cell, as a bin number; zeros stay 0.

    The bins are 1 to ``n_bins - 1``: ``np.digitize(x, np.quantile(x, np.linspace(0, 1, n_bins - 1)))`` over the values
    that the cell expresses. Most counts equal several quantiles, between which there are as many bins.

    Args:
        n_bins: Number of bins, including the one of zero; 3 or more.
        ties: Which of several bins a value gets. "high": the highest, so that equal values get equal bins. "random":
            each with the same probability, as scGPT (Cui et al., Nature Methods 2024) was trained; it uses 51 bins.
            The smallest counts get bins of a wide range then, on average much lower ones than by "high".

    `scdataloader.batches.tokens.ScGPT` makes the same bins, but among the genes that have a token only.
    """

    n_bins: int = 51
    ties: Literal["high", "random"] = "high"
    per_cell: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_bins(self.n_bins)
        if self.ties not in ("high", "random"):
            raise ValueError(f'ties of quantile bins must be "high" or "random", not {self.ties!r}')

    def __call__(self, batch: CellBatch, rng: np.random.Generator) -> CellBatch:  # noqa: ARG002
        """The batch with bin numbers as values."""
        x, bins = batch.x, np.empty_like(batch.x.data)
        ties = RANDOM if self.ties == "random" else HIGHEST
        levels = np.linspace(0, 1, self.n_bins - 1)
        bin_rows(x.indptr, x.data, levels, ties, np.uint64(batch.key), batch.position, bins)
        return _with_values(batch, bins)


def row_sums(rows: CSRRows) -> NDArray[np.float64]:
    """``(len(rows),)`` sum of the values of each row."""
    sums = np.zeros(len(rows))
    filled = np.flatnonzero(np.diff(rows.indptr))
    if len(filled):  # the sum from one start to the next; an empty row would have the first value of the next row
        sums[filled] = np.add.reduceat(rows.data, rows.indptr[filled], dtype=np.float64)
    return sums


def check_bins(n_bins: int) -> None:
    """Refuse a number of quantile bins that leaves no two of them for values, or is too large.

    Raises:
        ValueError: it is.
    """
    if not 3 <= n_bins <= MOST_LEVELS + 1:  # noqa: PLR2004
        raise ValueError(
            f"quantile bins need n_bins from 3 (one of them is for zero) to {MOST_LEVELS + 1:,}, not {n_bins:,}"
        )


def transformed(batch: CellBatch, transform: Transform, rng: np.random.Generator) -> CellBatch:
    """Apply a transform, also to neighbours, and check the result before compiled loops, which trust it, read it.

    Raises:
        TypeError: the result is not a batch.
        ValueError: it has another number of cells, or its rows are not as `CSRRows` describes them.
    """
    made, near = _transformed(batch, transform, rng), batch.neighbours
    if near is None:
        return made
    k = near.row.shape[1]
    cells = CellBatch(
        x=near.x,
        depth=near.depth.ravel(),
        row=near.row.ravel(),
        source=np.repeat(batch.source, k),
        labels=np.repeat(batch.labels, k, axis=0),
        measured=batch.measured,
        position=np.repeat(batch.position, k),
        key=batch.key,
    )
    return replace(made, neighbours=replace(near, x=_transformed(cells, transform, rng).x))


def _transformed(batch: CellBatch, transform: Transform, rng: np.random.Generator) -> CellBatch:
    made = transform(batch, rng)
    if not isinstance(made, CellBatch):
        raise TypeError(f"{transform!r} must return a CellBatch, got {type(made).__name__}; is it a collate function?")
    before, after = batch.x, made.x
    if len(after) != len(batch):
        raise ValueError(f"{transform!r} returned {len(after)} of {len(batch)} cells, but must return all")
    is_same = after.indices is before.indices and after.indptr is before.indptr and after.n_genes == before.n_genes
    if len(after.data) != len(after.indices) or not (is_same or _are_rows(after)):
        raise ValueError(
            f"{transform!r} returned invalid rows: {len(after.data):,} values, {len(after.indices):,} gene numbers, "
            f"offsets from {after.indptr[0]:,} to {after.indptr[-1]:,}; offsets must ascend from 0 to the number of "
            f"values, and gene numbers, below {after.n_genes:,}, must ascend strictly within each row"
        )
    return made


def _are_rows(x: CSRRows) -> bool:
    """Whether offsets and gene numbers are valid."""
    offsets_fit = x.indptr[0] == 0 and x.indptr[-1] == len(x.indices) and bool((np.diff(x.indptr) >= 0).all())
    if not offsets_fit or not len(x.indices):
        return offsets_fit
    in_range = x.indices.min() >= 0 and x.indices.max() < x.n_genes
    return bool(in_range) and rows_ascend(x.indptr, x.indices)


def _with_values(batch: CellBatch, data: NDArray[np.float32]) -> CellBatch:
    return replace(batch, x=replace(batch.x, data=data))
