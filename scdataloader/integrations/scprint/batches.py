"""Batches with the keys that scPRINT-2 reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scdataloader.batches.transforms import check_bins
from scdataloader.kernels.rows.bins import HIGHEST, bin_rows
from scdataloader.protocols import BatchContext, Binds, Collate, makes_many
from scdataloader.types import CellBatch


@dataclass(frozen=True, kw_only=True)
class ScPrintBatch:
    """``x`` (B, L) float32, ``genes`` (B, L) and ``class`` (B, C) int32, ``depth`` and ``tp`` (B,), ``dataset`` int64.

    A class is -1 if it is unknown, and a term above others has a code after all classes. ``tp`` is the first of the
    run's targets, or 0. Keys of our own batches, such as ``row``, are there as well.

    Args:
        selection: Makes ``x`` and ``genes``.
        n_bins: Number of quantile bins of the chosen values that are not zero; 0 leaves counts.
    """

    selection: Any
    n_bins: int = 0

    def __post_init__(self) -> None:
        if self.n_bins:
            check_bins(self.n_bins)

    def bind(self, context: BatchContext) -> Collate:
        """The same, ready for the vocabulary of ``context``."""
        selection = self.selection.bind(context) if isinstance(self.selection, Binds) else self.selection
        kind = _ManyBatches if makes_many(selection) else ScPrintBatch
        return kind(selection=selection, n_bins=self.n_bins)

    def __call__(self, batch: CellBatch, rng: np.random.Generator) -> Mapping[str, Any]:
        """One batch."""
        return self._named(self.selection(batch, rng), batch)

    def _named(self, made: Mapping[str, Any], cells: CellBatch) -> dict[str, Any]:
        named = {key: values for key, values in made.items() if key not in ("labels", "source")}
        x, time = made["x"], cells.targets
        if self.n_bins:
            x = binned(x, self.n_bins, cells.position)
        return named | {
            "x": x,
            "class": made["labels"].to(torch.int32),
            "dataset": made["source"].to(torch.int64),
            "tp": torch.zeros(len(x)) if time is None else torch.from_numpy(time[:, 0]),
        }


class _ManyBatches(ScPrintBatch):
    """A bound collate function whose selection makes many batches at once."""

    def many(self, cells: CellBatch, batch_size: int) -> list[dict[str, Any]]:
        """Consecutive batches of some cells."""
        made = self.selection.many(cells, batch_size)
        starts = range(0, max(1, len(cells)), batch_size)
        return [
            self._named(batch, cells.slice(start, min(start + batch_size, len(cells))))
            for start, batch in zip(starts, made, strict=True)
        ]


def binned(x: Tensor, n_bins: int, position: Any) -> Tensor:
    """(B, L) float32 quantile bins of the values of each row that are not zero, from 1; zeros stay.

    These are ``np.digitize(row, np.quantile(row, np.linspace(0, 1, n_bins - 1)))`` of the row without its zeros.
    """
    values = x.numpy()
    there = values != 0
    indptr = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    data = values[there]
    bins = np.empty_like(data)
    bin_rows(indptr, data, np.linspace(0, 1, n_bins - 1), HIGHEST, np.uint64(0), np.asarray(position), bins)
    made = np.zeros_like(values)
    made[there] = bins
    return torch.from_numpy(made)
