"""Geneformer: genes by rank of their value over their median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scdataloader.batches.base import MakesMany, NeedsVocabulary
from scdataloader.batches.tokens.masking import MaskedTokens
from scdataloader.batches.tokens.ranks import RankedTokens, divisors
from scdataloader.batches.tokens.tables import (
    ModelTable,
    Numbers,
    Tokens,
    new_tokens,
    per_gene,
    read_numbers,
    read_tokens,
)
from scdataloader.batches.tokens.width import PadTo, check_width
from scdataloader.protocols import BatchContext, Collate, Vocabulary
from scdataloader.types import CellBatch

_SPECIAL = ("<pad>", "<mask>", "<cls>", "<eos>")
"""Special tokens in the order of the original's."""
_MAX_LEN = {"V1": 2048, "V2": 4096}


@dataclass(frozen=True, kw_only=True)
class Geneformer(NeedsVocabulary):
    """Tokens of Geneformer (Theodoris et al., Nature 2023): the expressed genes by falling ``x / median``.

    The values have to be counts, or proportional to them within a cell. The order is that of ``x / median`` in float64;
    of equal values, the gene with the lower vocabulary number comes first. Genes without a token or a median are left
    out, and counted in the log.

    A batch has ``input_ids`` (B, L) int64, ``attention_mask`` (B, L) int64, ``length`` (B,) int64 and the keys of every
    batch. With ``masking``, ``labels`` (B, L) are the targets, and the cells' label codes are ``cell_labels``. A cell
    without a gene has length 0 in V1, and attends to its first padding token, since attention over nothing is NaN.

    Args:
        tokens: {gene: token}, with the special tokens ``<pad>``, for V2 also ``<cls>`` and ``<eos>``, and for
            ``masking`` also ``<mask>``; or the path of a file of it, such as Geneformer's ``token_dictionary.pkl``.
            None for a new model: these four, then the genes of the vocabulary in order.
        medians: {gene: median of its nonzero values over cells}; or the path of a file of it, such as Geneformer's
            ``gene_median_dictionary.pkl`` or what `compute_medians` has written. None for a new model: a `DataModule`
            computes those of its training cells at the start, each rank on its own, and checkpoints keep them.
        version: "V1": up to 2,048 genes. "V2": up to 4,096 tokens, of which the first is ``<cls>`` and the last
            ``<eos>``.
        max_len: Maximum of tokens of a cell, special ones included; None is the version's.
        pad_to: "max_len": every batch is ``max_len`` wide. "longest": each is as wide as its longest cell.
        masking: Masks tokens for masked language modelling; None for none.
    """

    tokens: Tokens | None = None
    medians: Numbers | None = None
    version: Literal["V1", "V2"] = "V2"
    max_len: int | None = None
    pad_to: PadTo = "max_len"
    masking: MaskedTokens | None = None

    def __post_init__(self) -> None:
        if self.version not in _MAX_LEN:
            raise ValueError(f'version of Geneformer must be "V1" or "V2", not {self.version!r}')
        check_width(self._max_len, self.pad_to, least=3 if self.version == "V2" else 1)

    @property
    def _max_len(self) -> int:
        return _MAX_LEN[self.version] if self.max_len is None else self.max_len

    def token_dictionary(self, vocabulary: Vocabulary) -> dict[str, int]:
        """{gene or special token: token}."""
        return {name: int(token) for name, token in self._tokens(vocabulary).values.items()}

    def _tokens(self, vocabulary: Vocabulary) -> ModelTable:
        return new_tokens(_SPECIAL, vocabulary.ids) if self.tokens is None else read_tokens(self.tokens)

    def bind(self, context: BatchContext) -> Collate:
        """The same for the vocabulary of ``context``.

        Raises:
            FileNotFoundError: a file does not exist.
            KeyError: the tokens lack a special token.
            ValueError: no gene has a token and a median, a median is not positive, or medians are neither given nor can
                be computed, without training cells.
        """
        given = self.medians
        if given is None:
            if context.medians is None:
                raise ValueError(
                    "Geneformer has no medians of genes; give those of scdataloader.tokens.compute_medians"
                )
            given = dict(context.medians())
        tokens, medians = self._tokens(context.vocabulary), read_numbers(given, "medians")
        special = ["<cls>", "<eos>"] if self.version == "V2" else []
        pad, *ends = tokens.special("<pad>", *special)
        token, median = per_gene(tokens, context), per_gene(medians, context)
        ranked = RankedTokens(
            divisor=divisors(token.known, median, medians, context)[None],
            token=token.values,
            max_len=self._max_len,
            pad=pad,
            last=ends[1] if ends else None,
            pad_to=self.pad_to,
            masking=self.masking.of(tokens) if self.masking else None,
        )
        return _Geneformer(ranked=ranked, first=np.array(ends[:1], np.int64))


@dataclass(frozen=True, kw_only=True)
class _Geneformer(MakesMany):
    """`Geneformer` for a vocabulary."""

    ranked: RankedTokens
    first: NDArray[np.int64]
    """``(F,)`` tokens before the genes."""

    def many(self, cells: CellBatch, batch_size: int) -> list[dict[str, Tensor]]:
        """The batches of some cells, one after the other."""
        n = len(cells)
        first = np.broadcast_to(self.first, (n, len(self.first)))
        return self.ranked.batches(cells, batch_size, first, np.zeros(n, np.int32))
