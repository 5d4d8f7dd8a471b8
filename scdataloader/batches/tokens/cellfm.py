"""Batches for CellFM: a choice of the expressed genes by expression, with logarithms of their counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scdataloader.batches.base import MakesMany, NeedsVocabulary
from scdataloader.batches.tokens.pairs import (
    batches,
    entries,
    lengths,
    log_shares,
    placed,
    tokenised,
    with_values,
)
from scdataloader.batches.tokens.tables import Tokens, per_gene, read_tokens
from scdataloader.batches.tokens.width import PadTo, check_width
from scdataloader.batches.transforms import row_sums
from scdataloader.kernels.tokens.pairs import STORED, choose_weighted
from scdataloader.protocols import BatchContext, Collate
from scdataloader.types import CellBatch

_MOST_COUNTS = 1e5
"""Cells with more counts are scaled down to this many."""


@dataclass(frozen=True)
class CellFM(NeedsVocabulary):
    """Batches for CellFM (Zeng et al., Nature Communications 2025), as its dataset makes them.

    Counts are ``round(x / max(1, total / 1e5))``. ``gene`` (B, L) int64: the numbers of the expressed genes in the
    model's list, from 1, ascending by the order of the vocabulary, and 0. ``expr`` (B, L) float32: ``log1p(count /
    total * 1e4)``, and 0. Of more than ``max_len`` genes, a choice is drawn one by one by ``log1p(count)``. Totals are
    those of the genes in the model's list. Genes outside of it are left out; their number is logged. A cell without
    expressed genes is padding only.

    Args:
        genes: The model's list of genes in order, {gene: number from 0}, or a file of either.
        max_len: Maximum number of genes of a cell.
        pad_to: "max_len": every batch is ``max_len`` wide. "longest": each is as wide as its longest cell.
    """

    genes: Tokens
    max_len: int = 2048
    pad_to: PadTo = "max_len"

    def __post_init__(self) -> None:
        check_width(self.max_len, self.pad_to)

    def bind(self, context: BatchContext) -> Collate:
        """The collate function for the genes of ``context``.

        Raises:
            ValueError: no gene is in the model's list.
        """
        numbers, known = per_gene(read_tokens(self.genes, "numbers of genes"), context)
        return _CellFM(options=self, token=np.where(known, numbers + 1, -1).astype(np.int32))


@dataclass(frozen=True, kw_only=True)
class _CellFM(MakesMany):
    options: CellFM
    token: NDArray[np.int32]
    """``(G,)`` number of each gene in the model's list, from 1; -1 outside of it."""

    def many(self, cells: CellBatch, batch_size: int) -> list[dict[str, Tensor]]:
        """The batches of some cells, one after the other."""
        options, counts = self.options, self._counts(cells)
        chosen = np.empty(len(counts.x.data), np.bool_)
        weights: NDArray[np.float32] = np.log1p(counts.x.data)
        choose_weighted(counts.x.indptr, weights, options.max_len, np.uint64(cells.key), cells.position, chosen)
        kept = entries(log_shares(counts, 1e4), chosen)
        gene, expr = placed(kept, options.max_len, order=STORED, pad=(0, 0.0))
        sizes = lengths(kept, 0, options.max_len) if options.pad_to == "longest" else None
        return batches(cells, batch_size, {"gene": gene, "expr": expr}, sizes)

    def _counts(self, cells: CellBatch) -> CellBatch:
        """The cells with counts of the model's genes, scaled down where there are too many."""
        known = tokenised(cells, self.token)
        scale = np.maximum(1, row_sums(known.x) / _MOST_COUNTS)
        values = np.round(known.x.data / np.repeat(scale, np.diff(known.x.indptr))).astype(np.float32)
        return entries(with_values(known, values), values > 0)
