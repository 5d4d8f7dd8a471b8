"""Genes: the model's vocabulary of them, and the map from a source's genes onto it.

A gene is known by its Ensembl-style id without version (``ENSG00000141510``, ``WBGene00000014``, ``FBgn0000008``), or
by its symbol where nothing better is known: see `gene_ids`. Organisms are NCBITaxon ids (``NCBITaxon:9606``): see
`normalise_organism`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise, repeat
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.errors import GeneOverlapError
from scdataloader.genes.names import examples, gene_ids, read_gene_table
from scdataloader.genes.organisms import infer_organism, normalise_organism, without_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["GeneMap", "GeneVocabulary", "gene_ids", "infer_organism", "normalise_organism", "read_gene_table"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneMap:
    """Where the genes of one source fall in a vocabulary."""

    lut: NDArray[np.int32]
    """``(n_source_genes,)`` vocabulary number of each gene of the source; -1 is outside the vocabulary."""
    measured: NDArray[np.bool_]
    """``(G,)`` True for the vocabulary genes that the source has."""
    organism: str
    """NCBITaxon id of the organism in whose part of the vocabulary the genes fall."""
    n_organism: int
    """Genes of that organism in the vocabulary."""
    n_matched: int
    """Vocabulary genes that the source has: ``measured.sum()``."""
    n_dropped: int
    """Genes of the source that are outside the vocabulary: ``(lut == -1).sum()``."""
    duplicates: tuple[str, ...]
    """Vocabulary genes that the source has twice or more, in vocabulary order: their counts are to be summed."""
    monotone: bool
    """Whether the numbers in ``lut``, without -1, strictly ascend: mapped rows then need no sorting and no summing."""

    def summary(self, source_name: str) -> str:
        """One line for a log."""
        line = (
            f"{source_name}: {len(self.lut) - self.n_dropped:,} of its {len(self.lut):,} genes are in the vocabulary "
            f"({self.n_matched:,} of {self.n_organism:,} for {self.organism}), {self.n_dropped:,} dropped"
        )
        if self.duplicates:
            line += f", {len(self.duplicates):,} that occur more than once summed ({examples(self.duplicates)})"
        return line


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneVocabulary:
    """The model's genes in order: one list, with a contiguous part for each organism.

    Make it with `from_dict` or `union`.

    Raises:
        ValueError: an id occurs twice, or the parts do not tile the list.
    """

    ids: list[str]
    """``(G,)`` gene ids, without version, in vocabulary order."""
    organisms: dict[str, tuple[int, int]]
    """NCBITaxon id of each organism to its part ``[start, stop)`` of ``ids``, in order."""
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        edges = [0, *(stop for _, stop in self.organisms.values())]
        if list(self.organisms.values()) != list(pairwise(edges)) or edges[-1] != len(self.ids):
            raise ValueError(f"the parts {self.organisms} do not tile the {len(self.ids)} genes in order")
        index = dict(zip(self.ids, range(len(self.ids)), strict=True))
        if len(index) < len(self.ids):
            twice = _duplicates(self.ids)
            raise ValueError(
                f"{len(twice):,} gene ids occur more than once in the vocabulary ({examples(twice)}): every id must be "
                "unique, versions aside and over all organisms; drop the repeats, or use Ensembl ids where organisms "
                "share symbols"
            )
        object.__setattr__(self, "_index", index)

    @classmethod
    def from_dict(cls, genes: Mapping[str, Sequence[str]]) -> GeneVocabulary:
        """The vocabulary ``{organism: ids}``, in the order given; versions are cut, names of organisms normalised.

        Raises:
            ValueError: an organism is unknown or named twice, or an id occurs twice.
        """
        ids: list[str] = []
        organisms: dict[str, tuple[int, int]] = {}
        for name, part in genes.items():
            organism = normalise_organism(name)
            if organism in organisms:
                raise ValueError(
                    f"the vocabulary names {organism} twice, the second time as {name!r}; merge its two lists"
                )
            organisms[organism] = (len(ids), len(ids) + len(part))
            ids.extend(without_version(part))
        return cls(ids=ids, organisms=organisms)

    @classmethod
    def union(cls, sources: Iterable[tuple[Sequence[str], str]]) -> GeneVocabulary:
        """Every gene of the ``(ids, organism)`` pairs once: organisms sorted, ids sorted within each.

        It depends on the set of (organism, id) alone, not on the order of the sources. Sorted ids keep the map from a
        source that is itself sorted monotone.
        """
        genes: dict[str, set[str]] = {}
        for ids, name in sources:
            genes.setdefault(normalise_organism(name), set()).update(without_version(ids))
        return cls.from_dict({organism: sorted(genes[organism]) for organism in sorted(genes)})

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def genes_dict(self) -> dict[str, list[str]]:
        """``{organism: ids}``; joined in order it is ``ids``."""
        return {organism: self.ids[start:stop] for organism, (start, stop) in self.organisms.items()}

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that depend on the organisms, the ids and their order."""
        lines = "\n".join(f">{organism}\n" + "\n".join(ids) for organism, ids in self.genes_dict.items())
        return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()

    def map(self, ids: Sequence[str], organism: str, *, source: str, min_overlap: float = 0.0) -> GeneMap:
        """Where the genes ``ids`` of a source fall in ``organism``'s part of the vocabulary.

        Args:
            ids: the source's genes, in its own numbering; versions are ignored.
            organism: the source's organism, by any name `normalise_organism` knows.
            source: what messages call the source.
            min_overlap: least share of genes in common, counted on distinct ids and relative to the smaller of the two
                sides: a panel of 500 genes overlaps fully with a vocabulary that has them all.

        Raises:
            GeneOverlapError: no gene is shared, or fewer than ``min_overlap`` asks for.
        """
        organism = normalise_organism(organism)
        if organism not in self.organisms:
            raise GeneOverlapError(
                f"{source} is of {organism}, but the vocabulary has genes of "
                f"{', '.join(self.organisms) or 'no organism'} only; add that organism to the vocabulary, or say which "
                "organism the source is of"
            )
        start, stop = self.organisms[organism]
        ids = without_version(ids)
        lut = np.fromiter(map(self._index.get, ids, repeat(-1)), dtype=np.int32, count=len(ids))
        lut[(lut < start) | (lut >= stop)] = -1
        matched = lut[lut >= 0]
        times = np.bincount(matched, minlength=len(self.ids))
        gene_map = GeneMap(
            lut=lut,
            measured=times > 0,
            organism=organism,
            n_organism=stop - start,
            n_matched=int(np.count_nonzero(times)),
            n_dropped=len(ids) - len(matched),
            duplicates=tuple(self.ids[number] for number in np.flatnonzero(times > 1)),
            monotone=bool(np.all(matched[1:] > matched[:-1])),
        )
        self._check_overlap(gene_map, ids, source=source, min_overlap=min_overlap)
        return gene_map

    def _check_overlap(self, gene_map: GeneMap, ids: Sequence[str], *, source: str, min_overlap: float) -> None:
        n_distinct = len(set(ids))
        smaller = min(n_distinct, gene_map.n_organism)
        if gene_map.n_matched and gene_map.n_matched / smaller >= min_overlap:
            return
        start, stop = self.organisms[gene_map.organism]
        share = gene_map.n_matched / max(smaller, 1)
        needed = f"{min_overlap:.1%}" if min_overlap > 0 else "at least one gene"
        raise GeneOverlapError(
            f"{source} shares {gene_map.n_matched:,} genes with the vocabulary, of its own {n_distinct:,} and of the "
            f"{gene_map.n_organism:,} of {gene_map.organism} there: {share:.1%} of the smaller side, where {needed} is "
            f"needed. The source's genes look like {examples(ids)}; the vocabulary's like "
            f"{examples(self.ids[start:stop])}. Name the column of var that holds the vocabulary's ids, give a gene "
            "table with the organism's symbols, or lower the overlap that is asked for"
        )


def _duplicates(ids: Sequence[str]) -> list[str]:
    values = pd.Series(ids, dtype=object)
    return list(values[values.duplicated()].unique())
