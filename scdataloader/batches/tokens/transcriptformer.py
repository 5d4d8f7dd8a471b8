"""Batches for TranscriptFormer: tokens of the expressed genes with their counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scdataloader.batches.base import MakesMany, NeedsVocabulary
from scdataloader.batches.tokens.pairs import (
    batches,
    lengths,
    placed,
    tokenised,
    tokens_or_none,
    with_values,
)
from scdataloader.batches.tokens.tables import Tokens, per_gene, read_tokens
from scdataloader.batches.tokens.width import PadTo, check_width
from scdataloader.kernels.tokens.pairs import RANDOM, STORED
from scdataloader.protocols import BatchContext, Collate
from scdataloader.types import CellBatch


@dataclass(frozen=True)
class TranscriptFormer(NeedsVocabulary):
    """Batches for TranscriptFormer (Pearce et al., bioRxiv 2025.04.25.650731), as its dataset makes them.

    ``gene_token_indices`` (B, L) int64: the tokens of the expressed genes, and ``[PAD]``. ``gene_counts`` (B, L)
    float32: their values, and 0. Genes without a token are left out; their number is logged. A cell without expressed
    genes is padding only.

    Args:
        tokens: {gene: token}, with ``[PAD]``, or a file of it.
        max_len: Maximum number of genes of a cell. Of more, the first of the vocabulary are taken unless ``shuffle``.
        clip: Maximum of a value.
        shuffle: Whether genes come in random order, of which the first are taken.
        pad_to: "max_len": every batch is ``max_len`` wide. "longest": each is as wide as its longest cell.
    """

    tokens: Tokens
    max_len: int = 2048
    clip: float = 30.0
    shuffle: bool = False
    pad_to: PadTo = "max_len"

    def __post_init__(self) -> None:
        check_width(self.max_len, self.pad_to)

    def bind(self, context: BatchContext) -> Collate:
        """The collate function for the genes of ``context``.

        Raises:
            KeyError: the tokens lack ``[PAD]``.
            ValueError: no gene has a token.
        """
        table = read_tokens(self.tokens)
        (pad,) = table.special("[PAD]")
        return _TranscriptFormer(options=self, token=tokens_or_none(per_gene(table, context)), pad=pad)


@dataclass(frozen=True, kw_only=True)
class _TranscriptFormer(MakesMany):
    options: TranscriptFormer
    token: NDArray[np.int32]
    pad: int

    def many(self, cells: CellBatch, batch_size: int) -> list[dict[str, Tensor]]:
        """The batches of some cells, one after the other."""
        options, known = self.options, tokenised(cells, self.token)
        clipped: NDArray[np.float32] = np.minimum(known.x.data, np.float32(options.clip))
        order = RANDOM if options.shuffle else STORED
        known = with_values(known, clipped)
        gene, counts = placed(known, options.max_len, order=order, pad=(self.pad, 0.0))
        sizes = lengths(known, 0, options.max_len) if options.pad_to == "longest" else None
        return batches(cells, batch_size, {"gene_token_indices": gene, "gene_counts": counts}, sizes)
