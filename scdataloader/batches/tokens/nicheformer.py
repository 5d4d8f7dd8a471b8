"""Nicheformer: genes by rank of their value over the mean of their technology."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scdataloader.batches.base import MakesMany, NeedsVocabulary
from scdataloader.batches.tokens.masking import MaskedTokens, Masking
from scdataloader.batches.tokens.ranks import RankedTokens, divisors
from scdataloader.batches.tokens.tables import Numbers, PerGene, Tokens, per_gene, read_numbers, read_tokens
from scdataloader.batches.tokens.width import PadTo, check_width
from scdataloader.protocols import BatchContext, Collate
from scdataloader.runtime.messages import suggestion
from scdataloader.types import CellBatch

_N_SPECIAL = 30
"""Numbers before that of the first gene, which Nicheformer keeps for other tokens."""
_MASK, _PAD = 0, 1


@dataclass(frozen=True, kw_only=True)
class Nicheformer(NeedsVocabulary):
    """Tokens of Nicheformer (Schaar, Tejada-Lapuerta et al., 2024): the expressed genes by falling ``x / mean``.

    The order is that of ``x / mean`` in float64; of equal values, the gene with the lower vocabulary number comes
    first. A mean of 0 counts as 1, as in the original. Genes without a token or a mean are left out, and counted in the
    log.

    A batch has ``input_ids`` (B, L) int64, ``attention_mask`` (B, L) int64, ``length`` (B,) int64 and the keys of every
    batch. With ``masking``, ``labels`` (B, L) are the targets, and the cells' label codes are ``cell_labels``. A cell
    without any token attends to its first padding token, since attention over nothing is NaN.

    Args:
        genes: The genes of the model in order, as a list, {gene: number} or the path of a file of either; the token of
            a gene is its number + 30.
        means: {gene: mean of the technology}, or the path of a file of it; with ``technology``, {label: any of these}.
        technology: Column of obs with the technology of each cell, if ``means`` has several.
        special: {column of obs: {label: token}} of the tokens before the genes, in order, such as
            ``{"organism": {"Homo sapiens": 5, "Mus musculus": 6}, "assay": {...}, "modality": {...}}``.
        max_len: Maximum of tokens of a cell, those of ``special`` included.
        pad_to: "max_len": every batch is ``max_len`` wide. "longest": each is as wide as its longest cell.
        masking: Masks tokens for masked language modelling; None for none.
    """

    genes: Tokens
    means: Numbers | dict[str, dict[str, float]] | dict[str, str]
    technology: str | None = None
    special: dict[str, dict[str, int]] | None = None
    max_len: int = 1500
    pad_to: PadTo = "max_len"
    masking: MaskedTokens | None = None

    def __post_init__(self) -> None:
        check_width(self.max_len, self.pad_to, least=len(self.special or {}) + 1)
        if self.technology is not None and not isinstance(self.means, Mapping):
            raise TypeError(f"means of Nicheformer must be {{label of {self.technology!r}: means of its technology}}")

    def bind(self, context: BatchContext) -> Collate:
        """The same for the vocabulary of ``context``.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: no gene has a token and a mean, or a mean is negative.
        """
        genes = read_tokens(self.genes, "genes")
        number = per_gene(genes, context)
        means: Any = {"": self.means} if self.technology is None else self.means
        token = number.values + _N_SPECIAL
        masking = None
        if self.masking is not None:
            n_tokens = int(max(genes.values.values())) + _N_SPECIAL + 1
            masking = Masking(rates=self.masking.rates, mask=_MASK, dictionary=np.arange(n_tokens, dtype=np.int64))
        ranked = RankedTokens(
            divisor=np.stack([_means(number, label, table, context) for label, table in means.items()]),
            token=token,
            max_len=self.max_len,
            pad=_PAD,
            pad_to=self.pad_to,
            masking=masking,
        )
        technologies = {label: place for place, label in enumerate(means)}
        return _Nicheformer(ranked=ranked, technology=self.technology, rows=technologies, special=self.special or {})


def _means(number: PerGene, label: str, given: Any, context: BatchContext) -> NDArray[np.float64]:
    table = read_numbers(given, f"means of {label}" if label else "means")
    values, known = per_gene(table, context)
    return divisors(number.known, PerGene(np.where(known & (values == 0), 1.0, values), known), table, context)


@dataclass(frozen=True, kw_only=True)
class _Nicheformer(MakesMany):
    """`Nicheformer` for a vocabulary."""

    ranked: RankedTokens
    technology: str | None
    rows: Mapping[str, int]
    """{technology: its row of the divisors}."""
    special: Mapping[str, Mapping[str, int]]

    @property
    def obs(self) -> Sequence[str]:
        """Columns that decide the means and the special tokens."""
        return list(dict.fromkeys([*self.special, *([self.technology] if self.technology else [])]))

    def many(self, cells: CellBatch, batch_size: int) -> list[dict[str, Tensor]]:
        """The batches of some cells, one after the other."""
        first = np.empty((len(cells), len(self.special)), np.int64)
        for place, (column, tokens) in enumerate(self.special.items()):
            first[:, place] = _of_labels(column, tokens, cells)
        which = np.zeros(len(cells), np.int32)
        if self.technology is not None:
            which[:] = _of_labels(self.technology, self.rows, cells)
        return self.ranked.batches(cells, batch_size, first, which)


def _of_labels(column: str, values: Mapping[str, int], cells: CellBatch) -> list[int]:
    """The value of each cell's label in a column."""
    labels = cells.obs[column].tolist()
    try:
        return [values[label] for label in labels]
    except KeyError:
        unknown = next(label for label in labels if label not in values)
        raise KeyError(
            f"obs[{column!r}] has the label {unknown!r}, for which Nicheformer is given nothing; "
            f"{suggestion(str(unknown), values)}"
        ) from None
