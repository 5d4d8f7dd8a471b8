"""Weights of classes as scDataLoader draws them: unknown is a value like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.labels.encoder import joint, label_text
from scdataloader.protocols import TrainingCells
from scdataloader.sampling.options import Sampling, WeightedClasses
from scdataloader.sampling.samplers import Subset
from scdataloader.sampling.training_cells import SelectedCells
from scdataloader.schema import UNKNOWN, is_unknown


@dataclass(frozen=True, kw_only=True)
class JointValues(Sampling):
    """`Sampling` by the joint values of several columns, of which an unknown one is also a value.

    Where eight columns are weighted, few cells are known in all of them; `Sampling` counts the others as unknown.
    """

    def describe(self, cells: TrainingCells) -> WeightedClasses:
        """The classes of ``cells`` and their target shares; see `Sampling.describe`."""
        return super().describe(_WithUnknown(cells))

    def sampler(self, cells: TrainingCells, *, seed: int = 0, global_batch_size: int = 1) -> Subset:
        """The sampler of a training run; see `Sampling.sampler`."""
        return super().sampler(_WithUnknown(cells), seed=seed, global_batch_size=global_batch_size)


class _WithUnknown(SelectedCells):
    """Training cells whose unknown labels are labels."""

    def __init__(self, cells: TrainingCells) -> None:
        super().__init__(cells, np.arange(len(cells.rows)))

    def classes(self, columns: Sequence[str]) -> tuple[NDArray[np.int32], list[tuple[str, ...]]]:
        """``(n,)`` class of each cell, none of them -1, and the labels of each class."""
        if not columns:
            return super().classes(columns)
        per_column = [_codes(self.obs([column])[column]) for column in columns]
        codes, n_classes = joint([code for _, code in per_column], [len(labels) for labels, _ in per_column])
        example = np.empty(n_classes, np.int64)  # a cell of each class; only combinations that occur have a code
        example[codes] = np.arange(len(codes))
        return codes, [tuple(labels[code[cell]] for labels, code in per_column) for cell in example]


def _codes(values: pd.Series) -> tuple[list[str], NDArray[np.int64]]:
    """Sorted labels of a column, "unknown" for all that mean this, and the code of each cell."""
    known = values.astype("category")
    texts = [label_text(label) for label in known.cat.categories]
    names = [UNKNOWN if is_unknown(text) else text for text in texts] + [UNKNOWN]  # the last is that of code -1
    labels, inverse = np.unique(names, return_inverse=True)
    return labels.tolist(), inverse[known.cat.codes.to_numpy(np.int64)]
