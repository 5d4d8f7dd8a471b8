"""Batches for scGPT: tokens of the expressed genes with binned values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scdataloader.batches.base import MakesMany, NeedsVocabulary
from scdataloader.batches.tokens.pairs import (
    MaskedValues,
    batches,
    binned,
    lengths,
    placed,
    tokenised,
    tokens_or_none,
)
from scdataloader.batches.tokens.tables import ModelTable, Tokens, new_tokens, per_gene, read_tokens
from scdataloader.batches.tokens.width import PadTo, check_width
from scdataloader.batches.transforms import check_bins
from scdataloader.kernels.tokens.pairs import RANDOM_IF_LONG
from scdataloader.protocols import BatchContext, Collate, Vocabulary
from scdataloader.types import CellBatch

_SPECIAL = ("<pad>", "<cls>", "<eoc>")
"""Special tokens in the order of the original's, for a new vocabulary."""


@dataclass(frozen=True)
class ScGPT(NeedsVocabulary):
    """Batches for scGPT (Cui et al., Nature Methods 2024), as its data collator makes them.

    ``gene`` (B, L) int64: the token ``<cls>``, the tokens of the expressed genes in the order of the vocabulary, and
    ``<pad>``. ``expr`` (B, L) float32: the quantile bin of each value, and ``pad_value`` for ``<cls>`` and ``<pad>``.
    ``masked_expr`` with ``masking``: ``expr`` with some values hidden. Of a cell with more than ``max_len - 1``
    expressed genes a random choice is taken, in random order. A cell without any is ``<cls>`` alone.

    Genes without a token are left out, before values are binned; their number is logged.

    Args:
        vocabulary: The model's ``vocab.json``, or its content {gene: token}, with ``<cls>`` and ``<pad>``.
            None for a new model: ``<pad>``, ``<cls>`` and ``<eoc>``, then the genes of the data's vocabulary in order.
        max_len: Maximum number of tokens of a cell, ``<cls>`` included.
        n_bins: Number of bins, including the one of zero, as of `scdataloader.QuantileBins`; None to take the values as
            they are, after transforms.
        ties: Which of several bins a value gets that equals several quantiles: "random", as the models were trained,
            or "high", the highest. `QuantileBins` is the same but for genes without a token, and has the other default.
        masking: Which values are hidden in ``masked_expr``; None for no such key.
        pad_value: Value of ``<cls>`` and ``<pad>``; that of published models is in their ``args.json``, -2 as a rule.
        pad_to: "max_len": every batch is ``max_len`` wide. "longest": each is as wide as its longest cell.
    """

    vocabulary: Tokens | None = None
    max_len: int = 1200
    n_bins: int | None = 51
    ties: Literal["random", "high"] = "random"
    masking: MaskedValues | None = None
    pad_value: float = 0.0
    pad_to: PadTo = "max_len"

    def __post_init__(self) -> None:
        check_width(self.max_len, self.pad_to)
        if self.n_bins is not None:
            check_bins(self.n_bins)
        if self.ties not in ("random", "high"):
            raise ValueError(f'ties must be "random" or "high", not {self.ties!r}')

    def token_dictionary(self, vocabulary: Vocabulary) -> dict[str, int]:
        """{gene or special token: token}."""
        return {name: int(token) for name, token in self._tokens(vocabulary).values.items()}

    def _tokens(self, vocabulary: Vocabulary) -> ModelTable:
        return new_tokens(_SPECIAL, vocabulary.ids) if self.vocabulary is None else read_tokens(self.vocabulary)

    def bind(self, context: BatchContext) -> Collate:
        """The collate function for the genes of ``context``.

        Raises:
            KeyError: the vocabulary of the model lacks ``<cls>`` or ``<pad>``.
            ValueError: no gene has a token.
        """
        table = self._tokens(context.vocabulary)
        cls, pad = table.special("<cls>", "<pad>")
        return _ScGPT(options=self, token=tokens_or_none(per_gene(table, context)), cls=cls, pad=pad)


@dataclass(frozen=True, kw_only=True)
class _ScGPT(MakesMany):
    options: ScGPT
    token: NDArray[np.int32]
    cls: int
    pad: int

    def many(self, cells: CellBatch, batch_size: int) -> list[dict[str, Tensor]]:
        """The batches of some cells, one after the other."""
        options = self.options
        known = tokenised(cells, self.token)
        if options.n_bins is not None:
            known = binned(known, np.linspace(0, 1, options.n_bins - 1), options.ties)
        gene, expr = placed(
            known,
            options.max_len,
            order=RANDOM_IF_LONG,
            pad=(self.pad, options.pad_value),
            head=[self.cls],
        )
        made = {"gene": gene, "expr": expr}
        if options.masking is not None:
            made["masked_expr"] = options.masking(cells, expr, first=1, pad_value=options.pad_value)
        sizes = lengths(known, 1, options.max_len) if options.pad_to == "longest" else None
        return batches(cells, batch_size, made, sizes)
