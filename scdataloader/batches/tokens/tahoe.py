"""Batches for Tahoe-x1: as those for scGPT, with its bins or logarithms, a token of the drug, and its masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scdataloader.batches.base import MakesMany, NeedsVocabulary
from scdataloader.batches.tokens.pairs import (
    MaskedValues,
    batches,
    binned,
    lengths,
    log_shares,
    placed,
    tokenised,
    tokens_or_none,
    unexpressed,
)
from scdataloader.batches.tokens.tables import ModelTable, Tokens, per_gene, read_tokens
from scdataloader.batches.tokens.width import PadTo, check_width
from scdataloader.batches.transforms import check_bins
from scdataloader.kernels.tokens.pairs import RANDOM_IF_LONG
from scdataloader.protocols import BatchContext, Collate
from scdataloader.types import CellBatch


@dataclass(frozen=True)
class TahoeX1(NeedsVocabulary):
    """Batches for Tahoe-x1 (Gandhi et al., bioRxiv 2025.10.23.683759), as its data collator makes them.

    ``gene`` (B, L) int64: ``<cls>``, with ``drugs`` then ``<drug>``, the tokens of the expressed genes in the order of
    the vocabulary, ``<pad>``. ``expr_target`` (B, L) float32: bins or logarithms, and ``pad_value`` for special tokens.
    ``expr``: the same with some values masked, ``gen_mask`` (B, L) bool: which. ``expr_raw``: the values before. Of a
    cell with more genes than ``max_len`` allows, a random choice is taken, in random order. Genes without a token are
    left out; their number is logged. A cell without expressed genes has special tokens only.

    Unlike the original, all of a cell's values can be masked: its count of maskable places takes ``<cls>`` off twice.

    Args:
        vocabulary: The model's ``vocab.json``, or its content {gene: token}, with ``<cls>`` and ``<pad>``.
        max_len: Maximum number of tokens of a cell.
        values: "bins": quantile bins, with edges in float32 as the original has them. "log": ``log1p(x / total *
            target_sum)``, by the total of the genes that have a token.
        n_bins: Number of bins, including the one of zero.
        right_binning: Whether a value that equals several edges gets the highest of the bins between them, instead of
            the lowest.
        target_sum: See ``values``.
        masking: Which values are masked; None for none.
        drugs: {drug: number}, with "<pad>" for cells without one of these, or a file of it; None for no drug token.
            The numbers are ``drug_ids`` (B,) int64.
        drug_column: Column of obs with the drug of each cell, for ``drugs``.
        unexpressed: Whether places after the expressed genes are filled with random genes of value 0 that the cell's
            source measured, as far as there are any, instead of ``<pad>``.
        pad_value: Value of special tokens.
        pad_to: "max_len": every batch is ``max_len`` wide. "longest": each is as wide as its longest cell.
    """

    vocabulary: Tokens
    max_len: int = 2048
    values: Literal["bins", "log"] = "bins"
    n_bins: int = 51
    right_binning: bool = False
    target_sum: float = 1e4
    masking: MaskedValues | None = MaskedValues(exact=True)  # noqa: RUF009 (frozen)
    drugs: Tokens | None = None
    drug_column: str = "drug"
    unexpressed: bool = False
    pad_value: float = -2.0
    pad_to: PadTo = "max_len"

    def __post_init__(self) -> None:
        check_width(self.max_len, self.pad_to, least=1 if self.drugs is None else 2)
        check_bins(self.n_bins)
        if self.values not in ("bins", "log"):
            raise ValueError(f'values must be "bins" or "log", not {self.values!r}')

    def bind(self, context: BatchContext) -> Collate:
        """The collate function for the genes of ``context``.

        Raises:
            KeyError: the model's vocabulary lacks a special token, or ``drugs`` lack "<pad>".
            ValueError: no gene has a token.
        """
        table = read_tokens(self.vocabulary)
        names = ["<cls>"] if self.drugs is None else ["<cls>", "<drug>"]
        *head, pad = table.special(*names, "<pad>")
        drugs = None if self.drugs is None else read_tokens(self.drugs, "numbers of drugs")
        if drugs is not None:
            drugs.special("<pad>")
        token = tokens_or_none(per_gene(table, context))
        return _TahoeX1(options=self, token=token, known=token >= 0, head=head, pad=pad, drugs=drugs)


@dataclass(frozen=True, kw_only=True)
class _TahoeX1(MakesMany):
    options: TahoeX1
    token: NDArray[np.int32]
    """``(G,)`` token of each gene; -1 for genes without one."""
    known: NDArray[np.bool_]
    """``(G,)`` genes with a token."""
    head: list[int]
    """Tokens before those of genes."""
    pad: int
    drugs: ModelTable | None

    @property
    def obs(self) -> Sequence[str]:
        """The column of the drug, if it is wanted."""
        return () if self.drugs is None else (self.options.drug_column,)

    def many(self, cells: CellBatch, batch_size: int) -> list[dict[str, Tensor]]:
        """The batches of some cells, one after the other."""
        options, known = self.options, tokenised(cells, self.token)
        if options.values == "log":
            changed = log_shares(known, options.target_sum)
        else:
            levels = torch.linspace(0, 1, options.n_bins - 1).numpy()
            changed = binned(known, levels, "high" if options.right_binning else "low")
        gene, target = self._placed(changed)
        _, raw = self._placed(known)
        sizes = lengths(known, len(self.head), options.max_len)
        if options.unexpressed:
            sizes = self._fill(cells, sizes, gene, target, raw)
        masked, first = target.clone(), len(self.head)
        if options.masking is not None:
            masked = options.masking(cells, target, first=first, pad_value=options.pad_value)
        made = {
            "gene": gene,
            "expr": masked,
            "expr_target": target,
            "expr_raw": raw,
            "gen_mask": masked != target,
        }
        if self.drugs is not None:
            made["drug_ids"] = torch.from_numpy(self._drug_ids(cells.obs[options.drug_column], self.drugs))
        return batches(cells, batch_size, made, sizes if options.pad_to == "longest" else None)

    def _placed(self, cells: CellBatch) -> tuple[Tensor, Tensor]:
        pad = self.pad, self.options.pad_value
        return placed(cells, self.options.max_len, order=RANDOM_IF_LONG, pad=pad, head=self.head)

    def _fill(self, cells: CellBatch, sizes: NDArray[np.int64], gene: Tensor, *values: Tensor) -> NDArray[np.int64]:
        """Fill the places after the genes of each cell, in place, and return the new sizes."""
        places = np.arange(gene.shape[1]) >= sizes[:, None]
        genes = unexpressed(cells, self.known, places)
        filled = places & (genes >= 0)
        gene.numpy()[filled] = self.token[genes[filled]]
        for one in values:
            one.numpy()[filled] = 0
        total: NDArray[np.int64] = sizes + filled.sum(axis=1)
        return total

    @staticmethod
    def _drug_ids(names: NDArray[np.object_], drugs: ModelTable) -> NDArray[np.int64]:
        (none,) = drugs.special("<pad>")
        return np.array([drugs.values.get(name, none) for name in names], np.int64)
