"""Batches in the form that models of scvi-tools take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scdataloader.batches.base import MakesMany
from scdataloader.batches.full import csr_tensors
from scdataloader.types import CellBatch


@dataclass(frozen=True, kw_only=True)
class ScviBatches(MakesMany):
    """Batches of scvi-tools: ``X`` (B, G) float32, a CSR tensor until it is on the device, and columns of cells.

    The columns are int64 codes ``batch``, ``labels`` and ``sample`` (B, 1), ``extra_categorical_covs`` (B, k) or None,
    ``ind_x`` (B, 1) rows of the collection, and float32 ``extra_continuous_covs`` (B, k) or None and ``size_factor``
    (B, 1). The first five keys are in the order that SCANVI checks. A column that the model lacks is 0.

    Args:
        batch, labels, sample, categorical: Places of columns in ``labels`` of `CellBatch`.
        n_continuous: Number of the first ``targets`` of `CellBatch` that are continuous covariates.
        size_factor: Place of the size factor in ``targets``.
    """

    densify: ClassVar[tuple[str, ...]] = ("X",)

    batch: int | None = None
    labels: int | None = None
    sample: int | None = None
    categorical: tuple[int, ...] = ()
    n_continuous: int = 0
    size_factor: int | None = None

    def many(self, cells: CellBatch, batch_size: int) -> list[dict[str, Tensor | None]]:
        """Consecutive batches of some cells."""
        tensors = csr_tensors(cells.x, batch_size)
        return [self._batch(x, cells, number * batch_size) for number, x in enumerate(tensors)]

    def _batch(self, x: Tensor, cells: CellBatch, start: int) -> dict[str, Tensor | None]:
        some = slice(start, start + len(x))
        codes = torch.from_numpy(cells.labels[some])
        numbers = None if cells.targets is None else torch.from_numpy(cells.targets[some])

        def column(place: int | None) -> Tensor:
            return codes.new_zeros((len(x), 1)) if place is None else codes[:, place : place + 1]

        batch = {
            "X": x,
            "batch": column(self.batch),
            "labels": column(self.labels),
            "extra_categorical_covs": codes[:, list(self.categorical)] if self.categorical else None,
            "extra_continuous_covs": None
            if numbers is None or not self.n_continuous
            else numbers[:, : self.n_continuous],
            "ind_x": torch.from_numpy(cells.row[some])[:, None],
        }
        if self.sample is not None:
            batch["sample"] = column(self.sample)
        if self.size_factor is not None and numbers is not None:
            batch["size_factor"] = numbers[:, self.size_factor : self.size_factor + 1]
        if cells.pad is not None:
            batch["pad"] = torch.from_numpy(cells.pad[some])
        return batch
