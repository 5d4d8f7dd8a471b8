"""Batches of sets with matched controls, in the form of models of perturbation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scdataloader.batches.full import Dense
from scdataloader.protocols import BatchContext, Binds, Collate, WantsMatrices, WantsObs
from scdataloader.runtime.messages import suggestion
from scdataloader.types import CellBatch

__all__ = ["PerturbationSets"]


@dataclass(frozen=True, kw_only=True)
class PerturbationSets:
    """Sets of perturbed cells and their controls, with the keys and shapes of cell-load and State (Arc Institute).

    A batch has N perturbed cells and M controls, set after set:

    | key                           | value                                                                            |
    |-------------------------------|----------------------------------------------------------------------------------|
    | ``pert_cell_emb``             | (N, G) values of the cells                                                       |
    | ``ctrl_cell_emb``             | (M, G) values of the controls; row i is for cell i if a set has as many          |
    | ``pert_emb``, ``batch``,      | float32 one-hot codes of the cells, (N, number of classes); all 0 for unknown    |
    | ``cell_type_onehot``          |                                                                                  |
    | ``pert_name``, ``batch_name``,| lists of N labels                                                                |
    | ``cell_type``                 |                                                                                  |
    | ``row``, ``ctrl_row``         | (N,) and (M,) rows of the collection                                             |
    | ``pad``                       | (N,) on several ranks: True in sets that are repeated to keep ranks even         |

    Args:
        perturbation: Label column of the perturbation.
        cell_type: Label column of the cell type.
        batch: Label column of the batch, or None for no batch.
        collate: Makes a dense ``x`` of all cells; None is `Dense`, `SelectedGenes` gives fewer genes.
    """

    perturbation: str = "perturbation"
    cell_type: str = "cell_type"
    batch: str | None = "batch"
    collate: Collate | None = None

    def bind(self, context: BatchContext) -> Collate:
        """The same, for the label columns of ``context`` and its sets.

        Raises:
            KeyError: a column is not among the labels.
            ValueError: the cells are not drawn in sets with controls.
        """
        if not context.n_controls:
            raise ValueError(
                "PerturbationSets needs sets with controls, as of GroupedSampling(by=..., size=..., controls=...); got "
                + ("single cells" if context.set_size == 1 else f"sets of {context.set_size} cells without controls")
            )
        for column in filter(None, (self.perturbation, self.cell_type, self.batch)):
            if column not in context.labels:
                raise KeyError(
                    f"PerturbationSets needs the label column {column!r}; name it in labels, or another column here: "
                    f"{suggestion(column, context.labels)}"
                )
        collate = self.collate or Dense()
        return _BoundSets(
            columns=self, collate=collate.bind(context) if isinstance(collate, Binds) else collate, context=context
        )

    def __call__(self, batch: CellBatch, rng: np.random.Generator) -> Mapping[str, Any]:  # noqa: ARG002
        """A batch of whole sets; of the bound one alone."""
        raise TypeError("PerturbationSets needs the labels and the sets: call bind() first")


@dataclass(frozen=True, kw_only=True)
class _BoundSets:
    """`PerturbationSets` of known labels and sets."""

    columns: PerturbationSets
    collate: Collate
    context: BatchContext = field(repr=False)

    @property
    def obs(self) -> Sequence[str]:
        """Columns of obs that ``collate`` wants."""
        return self.collate.obs if isinstance(self.collate, WantsObs) else ()

    @property
    def matrices(self) -> Sequence[str]:
        """Matrices that ``collate`` wants."""
        return self.collate.matrices if isinstance(self.collate, WantsMatrices) else ()

    def __call__(self, batch: CellBatch, rng: np.random.Generator) -> dict[str, Any]:
        x: Tensor = self.collate(batch, rng)["x"]
        made: dict[str, Any] = {}
        made["pert_cell_emb"], made["ctrl_cell_emb"] = self._parts(x)
        labels, _ = self._parts(torch.from_numpy(batch.labels))
        for column, codes_key, names_key in (
            (self.columns.perturbation, "pert_emb", "pert_name"),
            (self.columns.cell_type, "cell_type_onehot", "cell_type"),
            (self.columns.batch, "batch", "batch_name"),
        ):
            if column is not None:
                names, codes = self.context.classes[column], labels[:, self.context.labels.index(column)]
                known = codes >= 0
                made[codes_key] = torch.zeros(len(codes), len(names))
                made[codes_key][known, codes[known]] = 1
                made[names_key] = [names[code] if code >= 0 else "unknown" for code in codes.tolist()]
        made["row"], made["ctrl_row"] = self._parts(torch.from_numpy(batch.row))
        if batch.pad is not None:
            made["pad"], _ = self._parts(torch.from_numpy(batch.pad))
        return made

    def _parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values of the cells of all sets, and of their controls."""
        sets = values.reshape(-1, self.context.set_size, *values.shape[1:])
        size = self.context.set_size - self.context.n_controls
        return sets[:, :size].flatten(0, 1), sets[:, size:].flatten(0, 1)
