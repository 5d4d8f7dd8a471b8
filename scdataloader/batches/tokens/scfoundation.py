"""Batches for scFoundation: logarithms of the expressed genes, with the total count and the target of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scdataloader.batches.base import MakesMany, NeedsVocabulary
from scdataloader.batches.tokens.pairs import batches, log_shares, placed, tokenised, tokens_or_none
from scdataloader.batches.tokens.tables import Tokens, per_gene, read_tokens
from scdataloader.batches.transforms import row_sums
from scdataloader.kernels.tokens.pairs import STORED
from scdataloader.protocols import BatchContext, Collate
from scdataloader.types import CellBatch


@dataclass(frozen=True)
class ScFoundation(NeedsVocabulary):
    """Batches for scFoundation (Hao et al., Nature Methods 2024), as its code for embeddings makes them.

    ``expr`` (B, L) float32: ``log1p(x / total * 1e4)`` of the expressed genes in the order of the vocabulary, then the
    target T and the logarithm S of the total count, each left out unless it is positive, then ``pad``. ``gene`` (B, L)
    int64: their numbers in the model's list of n genes, n for T, n + 1 for S, and ``pad``. The total is that of the
    genes in the model's list. Genes outside of it are left out; their number is logged. A cell without expressed genes
    has T only.

    Args:
        genes: The model's list of 19,264 genes in order, {gene: number}, or a file of either.
        target: Logarithm (to base 10) of the total count that the model is asked for: 4 for 10,000 counts.
        max_len: Width of the batches, which suits ``torch.compile``; a cell with more tokens is an error. None for the
            longest cell of each batch, as in the original code.
        pad: Value and number after the end.
    """

    genes: Tokens
    target: float = 4.0
    max_len: int | None = None
    pad: int = 103

    def bind(self, context: BatchContext) -> Collate:
        """The collate function for the genes of ``context``.

        Raises:
            ValueError: no gene is in the model's list.
        """
        table = read_tokens(self.genes, "numbers of genes")
        return _ScFoundation(
            options=self,
            token=tokens_or_none(per_gene(table, context)),
            n_genes=1 + int(max(table.values.values(), default=0)),
        )


@dataclass(frozen=True, kw_only=True)
class _ScFoundation(MakesMany):
    options: ScFoundation
    token: NDArray[np.int32]
    n_genes: int
    """Number of genes of the model."""

    def many(self, cells: CellBatch, batch_size: int) -> list[dict[str, Tensor]]:
        """The batches of some cells, one after the other."""
        known, pad = tokenised(cells, self.token), self.options.pad
        sizes = np.diff(known.x.indptr)
        width = self._width(known, sizes)
        gene, expr = placed(log_shares(known, 1e4), width, order=STORED, pad=(pad, float(pad)))
        counts = np.log10(np.maximum(row_sums(known.x), 1))
        for number, value in ((self.n_genes, np.full(len(cells), self.options.target)), (self.n_genes + 1, counts)):
            rows = np.flatnonzero(value > 0)
            gene.numpy()[rows, sizes[rows]] = number
            expr.numpy()[rows, sizes[rows]] = value[rows]
            sizes[rows] += 1
        made = {"gene": gene, "expr": expr}
        return batches(cells, batch_size, made, sizes if self.options.max_len is None else None)

    def _width(self, cells: CellBatch, sizes: NDArray[np.int64]) -> int:
        longest, width = int(sizes.max(initial=0)) + 2, self.options.max_len
        if width is not None and longest > width:
            raise ValueError(
                f"the cell of row {cells.row[sizes.argmax()]:,} has {sizes.max():,} expressed genes, and max_len="
                f"{width:,} has room for {width - 2:,}; allow more tokens, or None for as many as each batch needs"
            )
        return longest if width is None else width
