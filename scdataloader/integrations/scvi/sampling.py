"""Sampling plans of data with unlabelled cells, and of data in order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from scdataloader.protocols import DrawnClasses, Sampler, TrainingCells
from scdataloader.sampling.options import Sampling
from scdataloader.sampling.samplers import SequentialSampler, Subset


@dataclass(frozen=True)
class InOrder:
    """Sampling plan of every training cell once, in order."""

    def sampler(self, cells: TrainingCells, *, seed: int, global_batch_size: int) -> Sampler:  # noqa: ARG002
        """The sampler."""
        return Subset(sampler=SequentialSampler(len(cells.rows)), rows=cells.rows)


@dataclass(frozen=True)
class KeepsUnlabelled:
    """Sampling plan that draws unlabelled cells with their share of the training cells."""

    sampling: Sampling
    """How the labelled ones are drawn."""
    column: str
    """Column of the labels, one of those of ``sampling``."""
    category: str
    """Label of unlabelled cells, besides unknown ones."""

    @property
    def columns(self) -> list[str]:
        """Columns that it draws by."""
        return self.sampling.columns

    def sampler(self, cells: TrainingCells, *, seed: int, global_batch_size: int) -> Sampler:
        """The sampler."""
        seen = self._seen(cells)
        return self._of(seen).sampler(seen, seed=seed, global_batch_size=global_batch_size)

    def describe(self, cells: TrainingCells) -> DrawnClasses:
        """The classes and their target shares."""
        seen = self._seen(cells)
        return self._of(seen).describe(seen)

    def _seen(self, cells: TrainingCells) -> TrainingCells:
        return cast("TrainingCells", _Unlabelled(cells, self.column, self.category))

    def _of(self, cells: TrainingCells) -> Sampling:
        codes, _ = cells.classes(self.columns)
        return replace(self.sampling, unknown_share=float(np.mean(codes < 0)) if (codes >= 0).any() else 0.0)


@dataclass(frozen=True)
class _Unlabelled:
    """Training cells in which a label means unknown."""

    cells: TrainingCells
    column: str
    category: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cells, name)

    def classes(self, columns: list[str]) -> tuple[NDArray[np.int32], list[tuple[str, ...]]]:
        """As of the cells, but -1 for the label."""
        codes, labels = self.cells.classes(columns)
        place = columns.index(self.column)
        unknown = [number for number, joint in enumerate(labels) if joint[place] == self.category]
        return np.where(np.isin(codes, unknown), np.int32(-1), codes), labels
