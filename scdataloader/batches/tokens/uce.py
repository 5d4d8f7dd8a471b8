"""Batches for UCE: genes drawn by expression, in the order of the genome."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from scdataloader.batches.base import MakesMany, NeedsVocabulary
from scdataloader.batches.full import empty
from scdataloader.batches.tokens.pairs import batches, tokenised
from scdataloader.batches.tokens.tables import Tokens, per_gene, read_tokens
from scdataloader.batches.tokens.width import PadTo, check_width
from scdataloader.genes.organisms import normalise_organism
from scdataloader.genes.positions import gene_positions
from scdataloader.kernels.tokens.sentences import draw_by_chromosome
from scdataloader.protocols import BatchContext, Collate
from scdataloader.runtime.messages import shown
from scdataloader.types import CellBatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UCE(NeedsVocabulary):
    """Batches for UCE (Rosen et al., bioRxiv 2023.11.28.568918), as its dataset makes them.

    ``input_ids`` (B, L) int64: ``n_genes`` genes are drawn with replacement, by the logarithm ``log1p`` of their
    values. A sentence is the token cls, then for each chromosome with drawn genes, in random order, the chromosome's
    token, the tokens of the genes by ascending start (the lower vocabulary number first if equal), and a closing token.
    ``attention_mask`` (B, L) int64: 1 up to the end of the sentence. A cell without expressed genes is cls alone.

    Chromosomes and starts are those of the user's gene tables (``GeneAlignment.tables``) that have columns
    ``chromosome`` and ``start``, else those of the package, which has them for human, mouse and zebrafish. Genes
    without token or position are left out; their numbers are logged.

    Args:
        tokens: {gene: row of the model's embedding of proteins}, or a file of it.
        chromosomes: {chromosome: number} of the model, by names such as "human_1" and "mouse_X": an organism, by any
            usual name, and its chromosome. None to number those of the vocabulary in sorted order, for a new model.
        n_genes: Number of genes drawn.
        max_len: Maximum number of tokens of a sentence.
        pad_to: "max_len": every batch is ``max_len`` wide. "longest": each is as wide as its longest sentence.
        cls: Token at the start.
        chromosome_offset: Token of chromosome 0.
        right: Token after the genes of a chromosome.
        pad: Token after a sentence.
    """

    tokens: Tokens
    chromosomes: Mapping[str, int] | None = None
    n_genes: int = 1024
    max_len: int = 1536
    pad_to: PadTo = "max_len"
    cls: int = 3
    chromosome_offset: int = 143_574
    right: int = 2
    pad: int = 0

    def __post_init__(self) -> None:
        check_width(self.max_len, self.pad_to)
        if self.n_genes < 1:
            raise ValueError(f"n_genes must be 1 or more, not {self.n_genes}")

    def bind(self, context: BatchContext) -> Collate:
        """The collate function for the genes of ``context``.

        Raises:
            ValueError: no gene has a token and a position, or sentences do not fit into ``max_len`` tokens.
        """
        tokens, has_token = per_gene(read_tokens(self.tokens), context)
        where, codes = self._positions(context)
        known = has_token & where["code"].notna().to_numpy()
        if not known.any():
            raise ValueError(
                f"none of the {int(has_token.sum()):,} genes with a token has a position on one of the "
                f"{len(codes):,} chromosomes; give a gene table with the columns chromosome and start"
            )
        if known.sum() < has_token.sum():
            without = [gene for gene, out in zip(context.vocabulary.ids, has_token & ~known, strict=True) if out]
            logger.info(
                "UCE leaves out %s genes with a token but no position (%s)", f"{len(without):,}", shown(without)
            )
        numbers = np.flatnonzero(known)
        place = numbers[np.lexsort([numbers, where["start"].to_numpy()[known], where["code"].to_numpy()[known]])]
        place_of = np.full(len(known), -1, np.int32)
        place_of[place] = np.arange(len(place), dtype=np.int32)
        code = where["code"].to_numpy()[place].astype(np.int64)
        present, chromosome = np.unique(code, return_inverse=True)
        most = 1 + 2 * int(where[known].groupby("organism")["code"].nunique().max()) + self.n_genes
        if most > self.max_len:
            raise ValueError(
                f"a sentence of {self.n_genes:,} genes can have {most:,} tokens, more than max_len={self.max_len:,}; "
                "draw fewer genes, or allow more tokens"
            )
        return _UCE(
            options=self,
            place=place_of,
            chromosome=chromosome.astype(np.int32),
            token=tokens[place],
            chromosome_token=present + self.chromosome_offset,
        )

    def _positions(self, context: BatchContext) -> tuple[pd.DataFrame, Mapping[tuple[str, str], int]]:
        """Organism, start and number of the chromosome of each vocabulary gene, and the numbers of all chromosomes."""
        parts = [
            gene_positions(ids, organism, context.gene_tables).assign(organism=organism)
            for organism, ids in context.vocabulary.genes_dict.items()
        ]
        where = pd.concat(parts, ignore_index=True)
        names = pd.Series(zip(where["organism"], where["chromosome"], strict=True)).where(where["chromosome"].notna())
        if self.chromosomes is None:
            codes = {name: code for code, name in enumerate(sorted(names.dropna().unique()))}
        else:
            codes = {_organism_and_chromosome(name): code for name, code in self.chromosomes.items()}
        return where.assign(code=names.map(codes)), codes


def _organism_and_chromosome(name: str) -> tuple[str, str]:
    organism, _, chromosome = name.rpartition("_")
    if not organism or not chromosome:
        raise ValueError(f"chromosomes of UCE are named by organism and chromosome, as in 'human_1', not {name!r}")
    return normalise_organism(organism), chromosome


@dataclass(frozen=True, kw_only=True)
class _UCE(MakesMany):
    """Fields without a description are arguments of `draw_by_chromosome`."""

    options: UCE
    place: NDArray[np.int32]
    """``(G,)`` place of each gene in the order of the genome; -1 without a token or a position."""
    chromosome: NDArray[np.int32]
    token: NDArray[np.int64]
    chromosome_token: NDArray[np.int64]

    def many(self, cells: CellBatch, batch_size: int) -> list[dict[str, Tensor]]:
        """The batches of some cells, one after the other."""
        options, x = self.options, tokenised(cells, self.place).x
        sentences = empty((len(cells), options.max_len), np.int64)
        sentences.fill_(options.pad)
        sizes = np.empty(len(cells), np.int64)
        draw_by_chromosome(
            x.indptr,
            x.indices,
            x.data,
            self.chromosome,
            self.token,
            options.n_genes,
            options.cls,
            self.chromosome_token,
            options.right,
            np.uint64(cells.key),
            cells.position,
            sentences.numpy(),
            sizes,
        )
        mask = (torch.arange(options.max_len) < torch.from_numpy(sizes)[:, None]).to(torch.int64)
        made = {"input_ids": sentences, "attention_mask": mask}
        return batches(cells, batch_size, made, sizes if options.pad_to == "longest" else None)
