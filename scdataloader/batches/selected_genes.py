"""Batches with some genes of each cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scdataloader.batches.base import MakesMany
from scdataloader.batches.full import Dense, about_cells, empty
from scdataloader.batches.measured import measured_genes
from scdataloader.kernels.rows.combine import take_genes
from scdataloader.kernels.rows.densify import densify_given
from scdataloader.kernels.rows.select import fill_unexpressed, select_largest, select_random
from scdataloader.protocols import BatchContext, Collate
from scdataloader.runtime.rows import with_neighbours
from scdataloader.types import CellBatch, CSRRows, Neighbours

How = Literal["most expressed", "random expressed", "all", "given"]


@dataclass(frozen=True)
class SelectedGenes:
    """Some genes of each cell: ``x`` (B, L) float32 and ``genes`` (B, L) int32, vocabulary numbers in ascending order.

    Args:
        how: Which genes. "most expressed": those of the highest values, the lower gene number first among equals; in a
            run with ``neighbours``, of the highest sums of the cell's value and the mean of its neighbours.
            "random expressed": random expressed genes, every subset equally likely. "all": every vocabulary
            gene. "given": the genes listed in ``genes``, in that order, zeros included; an id of two organisms is both.
        n_genes: Number of genes L per cell, for the first two.
        genes: Gene ids of the vocabulary, for "given".
        fill: Entries after the expressed genes of a cell that expresses fewer than ``n_genes``. "pad": gene -1 with
            value 0. "unexpressed": random genes that the cell's source measured and the cell does not express, with
            value 0; then -1 if there are not enough.
    """

    how: How = "random expressed"
    n_genes: int | None = None
    genes: list[str] | None = None
    fill: Literal["pad", "unexpressed"] = "pad"

    def __post_init__(self) -> None:
        chosen = self.how in ("most expressed", "random expressed")
        if chosen and (self.n_genes is None or self.n_genes < 1):
            raise ValueError(f'SelectedGenes(how="{self.how}") needs n_genes of 1 or more, not {self.n_genes}')
        if not chosen and self.n_genes is not None:
            raise ValueError(f'SelectedGenes(how="{self.how}") determines the number of genes; omit n_genes')
        if (self.how == "given") != (self.genes is not None):
            raise ValueError(f'genes and how="given" belong together; got how="{self.how}" and genes={self.genes}')

    def bind(self, context: BatchContext) -> Collate:
        """The same selection, ready for the vocabulary of ``context``.

        Raises:
            KeyError: a gene is not in the vocabulary.
            ValueError: a gene is given twice.
        """
        if self.genes is None:
            return self._ready()
        vocabulary = context.vocabulary
        numbers: dict[str, list[int]] = {}
        for number, gene in enumerate(vocabulary.ids):
            numbers.setdefault(gene, []).append(number)  # an id of two organisms is two genes
        missing = [gene for gene in self.genes if gene not in numbers]
        if missing:
            raise KeyError(
                f"{len(missing)} of {len(self.genes)} given genes are not in the vocabulary of {len(vocabulary.ids)} "
                f"genes, such as {missing[:3]}; the vocabulary has ids like {vocabulary.ids[:3]}"
            )
        if len(set(self.genes)) < len(self.genes):
            raise ValueError("a gene is given twice; every gene may be given once")
        chosen = [number for gene in self.genes for number in numbers[gene]]
        return _GivenGenes(genes=np.array(chosen, np.int32), n_genes=len(vocabulary.ids))

    def __call__(self, batch: CellBatch, rng: np.random.Generator) -> Mapping[str, Any]:
        """The batch with ``x`` and ``genes`` of fixed width."""
        if self.how == "given":
            raise TypeError('SelectedGenes(how="given") needs the vocabulary: call bind() first')
        return self._ready()(batch, rng)

    def _ready(self) -> Collate:
        if self.how == "all":
            return _AllGenes()
        return _ChosenGenes(largest=self.how == "most expressed", n_genes=self.n_genes or 0, fill=self.fill)


class _AllGenes:
    """Every vocabulary gene, by number."""

    def __call__(self, batch: CellBatch, rng: np.random.Generator) -> dict[str, Tensor]:
        genes = torch.arange(batch.x.n_genes, dtype=torch.int32).expand(len(batch), -1)
        return {**Dense()(batch, rng), "genes": genes}


@dataclass(frozen=True, kw_only=True)
class _ChosenGenes(MakesMany):
    """A fixed number of the expressed genes of each cell."""

    largest: bool
    """Whether genes of the highest values are selected, instead of random ones."""
    n_genes: int
    fill: str
    """As in `SelectedGenes`."""

    def many(self, cells: CellBatch, batch_size: int) -> list[dict[str, Tensor]]:
        """The batches of some cells, one after the other."""
        x, genes = (empty((len(cells), self.n_genes), dtype).numpy() for dtype in (np.float32, np.int32))
        rows, key = cells.x, np.uint64(cells.key)
        if self.largest and cells.neighbours is not None:
            rows = _ranked(rows, cells.neighbours)
            select_largest(rows.indptr, rows.indices, rows.data, genes, x)
            take_genes(cells.x.indptr, cells.x.indices, cells.x.data, genes, rows.n_genes, x[:, None, :])
        elif self.largest:
            select_largest(rows.indptr, rows.indices, rows.data, genes, x)
        else:
            select_random(rows.indptr, rows.indices, rows.data, key, cells.position, genes, x)
        if self.fill == "unexpressed":
            measured, source, position = measured_genes(cells.measured), cells.source, cells.position
            fill_unexpressed(rows.indptr, rows.indices, *measured, source, rows.n_genes, key, position, genes)
        batches = (slice(start, start + batch_size) for start in range(0, max(1, len(cells)), batch_size))
        return [
            {"x": torch.from_numpy(x[batch]), "genes": torch.from_numpy(genes[batch]), **about_cells(cells, batch)}
            for batch in batches
        ]


@dataclass(frozen=True, kw_only=True)
class _GivenGenes:
    """The same genes of every cell, in a given order."""

    genes: NDArray[np.int32]
    """``(L,)`` vocabulary numbers."""
    n_genes: int
    """Size of the vocabulary."""

    def __call__(self, batch: CellBatch, rng: np.random.Generator) -> dict[str, Tensor]:  # noqa: ARG002
        column = np.full(self.n_genes, -1, np.int32)
        column[self.genes] = np.arange(len(self.genes), dtype=np.int32)
        x = empty((len(batch), len(self.genes)), np.float32)
        densify_given(batch.x.indptr, batch.x.indices, batch.x.data, column, x.numpy())
        return {"x": x, "genes": torch.from_numpy(self.genes).expand(len(batch), -1), **about_cells(batch)}


def _ranked(cells: CSRRows, neighbours: Neighbours) -> CSRRows:
    """N times the cell's own values plus the mean of its n neighbours: in their order, and counts stay counts."""
    n = np.maximum((neighbours.row >= 0).sum(axis=1), 1).astype(np.float32)
    return with_neighbours(replace(cells, data=cells.data * np.repeat(n, np.diff(cells.indptr))), neighbours.x)
