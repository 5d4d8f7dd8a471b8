"""Batches for State SE: the most expressed genes of each cell, and genes whose expression is to be predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scdataloader.batches.base import MakesMany, NeedsVocabulary
from scdataloader.batches.full import about_cells
from scdataloader.batches.measured import measured_genes
from scdataloader.batches.tokens.pairs import entries, placed, tokenised, tokens_or_none, with_values
from scdataloader.batches.tokens.tables import Tokens, per_gene, read_tokens
from scdataloader.batches.transforms import row_sums
from scdataloader.kernels.draws.random import derive_key
from scdataloader.kernels.rows.select import fill_unexpressed
from scdataloader.kernels.tokens.pairs import RANDOM
from scdataloader.kernels.tokens.sentences import are_among, choose_places, look_up, rank_shuffled, repeat_random
from scdataloader.protocols import BatchContext, Collate
from scdataloader.types import CellBatch

_SENTENCE, _EXPRESSED, _UNEXPRESSED, _SHARED = 1, 2, 3, 4
"""Purposes of random bits."""


@dataclass(frozen=True)
class StateSE(NeedsVocabulary):
    """Batches for the embedding model of State (Adduri et al., bioRxiv 2025.06.26.661135), as its collator makes them.

    ``gene`` (B, L) int64: ``cls``, then the tokens of the genes by descending value, equal ones in random order. A cell
    with fewer than L - 1 genes goes on with random genes that its source measured and it does not express; with
    replacement, if the source measured fewer than L - 1. ``expr`` (B, L) float32: the share of each value in the cell's
    sum, in percent; without a sum, all genes have the same.

    ``task_gene`` (B, T) int64: ``n_expressed`` genes of the cell, ``n_unexpressed`` whose logarithm is less than 1, so
    a count of 1 is among them, and ``n_shared`` of the model, the same for a batch. Of too few genes, they are drawn
    with replacement; without any, from all genes of the source, and the first gene stands for expressed ones.
    ``task_expr`` (B, T) float32: their logarithms, and ``total`` (B,) the sum of these. ``mask`` (B, L) bool: the
    ``int(mask_rate * L)`` places to hide, those of task genes first, never place 0. Shared genes, and what follows from
    them, depend on how draws are cut into batches; all else depends on the draw alone.

    Unlike the original, the value of place 0, which is not a gene, is 0. The model puts its own vector there.

    Args:
        tokens: {gene: row of the model's embedding}, or a file of it.
        values: "raw": values are counts, of which ``log1p`` is taken. "log": they are logarithms already. The original
            guesses, and takes cells of few counts for logarithms.
        max_len: Number of tokens L of each cell.
        n_expressed: See above.
        n_unexpressed: See above.
        n_shared: See above.
        mask_rate: Share of masked places.
        cls: Token of place 0.
    """

    tokens: Tokens
    values: Literal["raw", "log"]
    max_len: int = 2048
    n_expressed: int = 512
    n_unexpressed: int = 512
    n_shared: int = 512
    mask_rate: float = 0.2
    cls: int = 3

    def __post_init__(self) -> None:
        if self.values not in ("raw", "log"):
            raise ValueError(f'values must be "raw" or "log", not {self.values!r}')
        if self.max_len < 1 or min(self.n_expressed, self.n_unexpressed, self.n_shared) < 0:
            raise ValueError("max_len must be 1 or more, and numbers of task genes 0 or more")
        if not 0 <= self.mask_rate <= 1:
            raise ValueError(f"mask_rate must be from 0 to 1, not {self.mask_rate}")

    def bind(self, context: BatchContext) -> Collate:
        """The collate function for the genes of ``context``.

        Raises:
            ValueError: no gene has a token.
        """
        table = read_tokens(self.tokens)
        token = tokens_or_none(per_gene(table, context))
        every = np.array(sorted(set(table.values.values())), np.int64)
        gene_of = np.full(max(int(every.max()), self.cls) + 1, -1, np.int32)
        known = np.flatnonzero(token >= 0)
        gene_of[token[known]] = known
        return _StateSE(options=self, token=token, known=token >= 0, tokens=every, gene_of=gene_of)


@dataclass(frozen=True, kw_only=True)
class _StateSE(MakesMany):
    options: StateSE
    token: NDArray[np.int32]
    """``(G,)`` token of each gene; -1 for genes without one."""
    known: NDArray[np.bool_]
    """``(G,)`` genes with a token."""
    tokens: NDArray[np.int64]
    """All tokens of the model."""
    gene_of: NDArray[np.int32]
    """Vocabulary number of each token; -1 for those that are not genes of the vocabulary."""

    def many(self, cells: CellBatch, batch_size: int) -> list[dict[str, Tensor]]:
        """The batches of some cells, one after the other."""
        starts = range(0, max(1, len(cells)), batch_size)
        batches = (cells.slice(start, min(start + batch_size, len(cells))) for start in starts)
        return [self._made(batch) for batch in batches]

    def _made(self, cells: CellBatch) -> dict[str, Tensor]:
        options, known = self.options, tokenised(cells, self._numbers)
        if options.values == "raw":
            known = with_values(known, np.log1p(known.x.data))
        sentence = self._sentence(known)
        values, sums = self._values(known, sentence), row_sums(known.x)[:, None]
        n_known = (cells.measured & self.known).sum(axis=1)[cells.source][:, None]
        expr = np.where(sums > 0, 100 * values / np.where(sums > 0, sums, 1), 100 / np.maximum(n_known, 1))
        gene = self.token[sentence].astype(np.int64)
        gene[:, 0], expr[:, 0] = options.cls, 0
        shared = self._shared(cells)
        task = np.concatenate([self._expressed(known), self._unexpressed(known), self.gene_of[shared]], axis=1)
        task_gene = np.concatenate([self.token[task[:, : -options.n_shared or None]], shared], axis=1, dtype=np.int64)
        task_expr = self._values(known, task)
        hidden = np.empty(gene.shape, np.bool_)
        are_among(gene, task_gene, len(self.gene_of), hidden)
        mask = np.empty(gene.shape, np.bool_)
        choose_places(hidden, 1, int(options.mask_rate * options.max_len), self._key(cells), cells.position, mask)
        made = {
            "gene": gene,
            "expr": expr.astype(np.float32),
            "mask": mask,
            "task_gene": task_gene,
            "task_expr": task_expr,
            "total": task_expr.sum(axis=1),
        }
        return {**{key: torch.from_numpy(values) for key, values in made.items()}, **about_cells(cells)}

    @property
    def _numbers(self) -> NDArray[np.int32]:
        return np.where(self.known, np.arange(len(self.known), dtype=np.int32), np.int32(-1))

    @staticmethod
    def _key(cells: CellBatch, purpose: int = 0) -> np.uint64:
        return derive_key(cells.key, purpose) if purpose else np.uint64(cells.key)

    @staticmethod
    def _values(cells: CellBatch, genes: NDArray[np.int32]) -> NDArray[np.float32]:
        x, values = cells.x, np.empty(genes.shape, np.float32)
        look_up(x.indptr, x.indices, x.data, x.n_genes, genes, values)
        return values

    def _sentence(self, cells: CellBatch) -> NDArray[np.int32]:
        """``(B, L)`` genes of each cell by value, then others; place 0 has the first gene."""
        x, genes = cells.x, np.zeros((len(cells), self.options.max_len), np.int32)
        rank_shuffled(x.indptr, x.indices, x.data, self._key(cells, _SENTENCE), cells.position, 1, genes)
        _, starts = measured_genes(cells.measured, self.known)
        repeat = np.diff(starts)[cells.source] < self.options.max_len - 1
        return self._filled(cells, genes, repeat, _SENTENCE)

    def _expressed(self, cells: CellBatch) -> NDArray[np.int32]:
        """``(B, n_expressed)`` expressed genes of each cell."""
        x, width, key = cells.x, self.options.n_expressed, self._key(cells, _EXPRESSED)
        genes = placed(cells, width, order=RANDOM, pad=(-1, 0.0))[0].numpy().astype(np.int32)
        genes[np.diff(x.indptr) <= width] = -1
        repeat_random(x.indices, x.indptr, np.arange(len(cells)), key, cells.position, genes)
        genes[genes < 0] = self.known.argmax()
        return genes

    def _unexpressed(self, cells: CellBatch) -> NDArray[np.int32]:
        """``(B, n_unexpressed)`` genes of each cell whose value is less than 1."""
        high, width = entries(cells, cells.x.data >= 1), self.options.n_unexpressed
        _, starts = measured_genes(cells.measured, self.known)
        repeat = np.diff(starts)[cells.source] - np.diff(high.x.indptr) <= width
        return self._filled(high, np.full((len(cells), width), -1, np.int32), repeat, _UNEXPRESSED)

    def _filled(
        self, cells: CellBatch, genes: NDArray[np.int32], repeat: NDArray[np.bool_], purpose: int
    ) -> NDArray[np.int32]:
        """Replace -1 by random genes that are measured and not among the cell's, with replacement where ``repeat``."""
        x, key, places = cells.x, self._key(cells, purpose), genes < 0
        genes = np.where(places & repeat[:, None], np.int32(0), genes)
        pools = measured_genes(cells.measured, self.known)
        fill_unexpressed(x.indptr, x.indices, *pools, cells.source, x.n_genes, key, cells.position, genes)
        genes = np.where(places & repeat[:, None], np.int32(-1), genes)
        rows = np.flatnonzero((genes < 0).any(axis=1))
        if len(rows):
            free: NDArray[np.bool_] = cells.measured[cells.source[rows]] & self.known
            every = free.copy()
            for row, one in zip(rows, free, strict=True):
                one[x.indices[x.indptr[row] : x.indptr[row + 1]]] = False
            free[~free.any(axis=1)] = every[~free.any(axis=1)]
            free[~free.any(axis=1)] = self.known
            starts = np.append(0, np.cumsum(free.sum(axis=1)))
            some = genes[rows]
            pool = np.nonzero(free)[1].astype(np.int32)
            repeat_random(pool, starts, np.arange(len(rows)), key, cells.position[rows], some)
            genes[rows] = some
        return genes

    def _shared(self, cells: CellBatch) -> NDArray[np.int64]:
        """``(B, n_shared)`` random tokens of the model, the same for all cells."""
        first = np.uint64(cells.position[:1].sum())
        rng = np.random.Generator(np.random.Philox(key=[int(self._key(cells, _SHARED)), int(first)]))
        drawn = rng.integers(0, len(self.tokens), self.options.n_shared)
        return np.tile(self.tokens[drawn], (len(cells), 1))
