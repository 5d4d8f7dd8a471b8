"""The model's genes, and the map from the genes of a source to them.

A gene is identified by its Ensembl-style id without version (``ENSG00000141510``, ``WBGene00000014``,
``FBgn0000008``), or by its name if it has none; see `scdataloader.genes.tables`. Organisms are NCBITaxon ids
(``NCBITaxon:9606``); see `normalise_organism`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise, repeat
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.errors import GeneOverlapError
from scdataloader.genes.names import without_version
from scdataloader.genes.organisms import normalise_organism
from scdataloader.kernels.rows.align import NOT_A_GENE
from scdataloader.runtime.messages import shown
from scdataloader.types import GenePlaces

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

_N_EXAMPLES = 3

__all__ = ["GeneMap", "GeneVocabulary"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneMap:
    """The map from the genes of one source to a vocabulary."""

    table: NDArray[np.int32]
    """``lut``; or, with ``places``, that of all genes of the list that these are positions in."""
    places: GenePlaces | None = None
    """Which genes of a list that sources share it has; None for all."""
    n_vocabulary: int
    """G, the number of genes of the vocabulary."""
    organism: str
    """NCBITaxon id of the organism whose part of the vocabulary the genes are mapped to."""
    n_organism: int
    """Number of genes of that organism in the vocabulary."""
    n_matched: int
    """Number of vocabulary genes that the source has: ``measured.sum()``."""
    n_dropped: int
    """Number of genes of the source outside the vocabulary: ``(lut == -1).sum()``."""
    duplicates: tuple[str, ...]
    """Vocabulary genes that the source has more than once, in vocabulary order; their counts are summed."""
    monotone: bool
    """Whether ``lut``, without negative numbers, strictly ascends: mapped rows then need no sorting and no summing."""
    genes_only: bool = False
    """Whether some features of the source are `NOT_A_GENE`."""

    @property
    def lut(self) -> NDArray[np.int32]:
        """``(n_source_genes,)`` vocabulary number of each gene of the source.

        It is -1 outside the vocabulary, and `NOT_A_GENE` for features that are not genes. With ``places``, it is
        created anew, since those of thousands of sources take gigabytes.
        """
        return self.table if self.places is None else self.table[self.places.place]

    @property
    def measured(self) -> NDArray[np.bool_]:
        """``(G,)`` True for the vocabulary genes that the source has; created anew."""
        measured, lut = np.zeros(self.n_vocabulary, np.bool_), self.lut
        measured[lut[lut >= 0]] = True
        return measured

    def among(self, left_out: NDArray[np.bool_]) -> GeneMap:
        """The map of a source that also has features ``left_out``, ``(n_features,)``, which are not genes."""
        lut = np.full(len(left_out), NOT_A_GENE, np.int32)
        lut[~left_out] = self.lut
        return replace(self, table=lut, places=None, genes_only=True)

    def summary(self, source: str, ids: Sequence[str], ambiguous: Collection[str] = ()) -> str:
        """One line for a log; the arguments are those of `coverage`."""
        matched = (
            f"{source}: {len(ids) - self.n_dropped:,} of its {len(ids):,} genes are in the vocabulary "
            f"({self.n_matched:,} of {self.n_organism:,} for {self.organism})"
        )
        return "; ".join([matched, *self.coverage(ids, ambiguous)])

    def coverage(self, ids: Sequence[str], ambiguous: Collection[str] = (), *, kept: bool = False) -> list[str]:
        """Genes that are not matched one to one, a line for each kind: outside the vocabulary, ambiguous, summed.

        Args:
            ids: The ids that were mapped.
            ambiguous: Names that may mean several genes; see `GeneTable.match`.
            kept: Whether genes outside the vocabulary are kept under their own names.
        """
        outside = Counter(ids[at] for at in np.flatnonzero(self.lut < 0).tolist())
        unclear = sorted(name for name in outside if name in ambiguous)
        summed = [*self.duplicates, *(name for name, n in outside.items() if kept and n > 1)]
        lines = []
        if outside:
            what = "kept under their own names" if kept else "dropped"
            lines.append(f"genes without match, {what}: {self.n_dropped:,} ({shown(sorted(outside))})")
        if unclear:
            lines.append(f"of these, ambiguous names: {len(unclear):,} ({shown(unclear)})")
        if summed:
            lines.append(f"genes that occur more than once, summed: {len(summed):,} ({shown(summed)})")
        return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneVocabulary:
    """The model's genes in order: one list, with a contiguous part for each organism.

    An id in two parts, such as that of a spike-in or a reporter, is a gene of each organism. Use `from_dict` or `union`
    to create one.

    Raises:
        ValueError: an id occurs twice in a part, or the parts do not tile the list.
    """

    ids: list[str]
    """``(G,)`` gene ids, without version, in vocabulary order."""
    organisms: dict[str, tuple[int, int]]
    """{NCBITaxon id: its part ``[start, stop)`` of ``ids``}, in order."""
    _index: dict[str, dict[str, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        edges = [0, *(stop for _, stop in self.organisms.values())]
        if list(self.organisms.values()) != list(pairwise(edges)) or edges[-1] != len(self.ids):
            raise ValueError(f"the parts {self.organisms} do not tile the {len(self.ids)} genes in order")
        index = {
            organism: dict(zip(self.ids[start:stop], range(start, stop), strict=True))
            for organism, (start, stop) in self.organisms.items()
        }
        for organism, (start, stop) in self.organisms.items():
            if len(index[organism]) < stop - start:
                twice = _duplicates(self.ids[start:stop])
                raise ValueError(
                    f"{len(twice):,} gene ids occur more than once in the vocabulary ({shown(twice)}) of {organism}; "
                    "remove the repeats, which may differ in their version"
                )
        object.__setattr__(self, "_index", index)

    @classmethod
    def from_dict(cls, genes: Mapping[str, Sequence[str]]) -> GeneVocabulary:
        """The vocabulary ``{organism: ids}``, in the order given, without versions.

        Raises:
            ValueError: an organism is unknown or named twice, or one of its ids occurs twice.
        """
        ids: list[str] = []
        organisms: dict[str, tuple[int, int]] = {}
        for name, part in genes.items():
            try:
                organism = normalise_organism(name)
            except ValueError as error:
                raise ValueError(f"the vocabulary: {error}") from error
            if organism in organisms:
                raise ValueError(
                    f"the vocabulary has {organism} twice, the second time as {name!r}; merge the two lists"
                )
            organisms[organism] = (len(ids), len(ids) + len(part))
            ids.extend(without_version(part))
        return cls(ids=ids, organisms=organisms)

    @classmethod
    def union(cls, sources: Iterable[tuple[Sequence[str], str]]) -> GeneVocabulary:
        """All genes of ``(ids, organism)`` pairs, once each: organisms sorted, ids sorted within each.

        The result does not depend on the order of the sources. The map from a source with sorted genes is monotone.
        """
        genes: dict[str, set[str]] = {}
        for ids, name in sources:
            genes.setdefault(normalise_organism(name), set()).update(without_version(ids))
        return cls.from_dict({organism: sorted(genes[organism]) for organism in sorted(genes)})

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def genes_dict(self) -> dict[str, list[str]]:
        """{organism: ids}; joined in order they are ``ids``."""
        return {organism: self.ids[start:stop] for organism, (start, stop) in self.organisms.items()}

    @property
    def digest(self) -> str:
        """32 hexadecimal digits, a function of the organisms, the ids and their order."""
        lines = "\n".join(f">{organism}\n" + "\n".join(ids) for organism, ids in self.genes_dict.items())
        return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()

    def map(self, ids: Sequence[str], organism: str, *, source: str, min_overlap: float = 0.0) -> GeneMap:
        """Map the genes of a source to ``organism``'s part of the vocabulary.

        Args:
            ids: Gene ids of the source, in its own numbering; versions are ignored.
            organism: Organism of the source, by any name that `normalise_organism` accepts.
            source: Name of the source in messages.
            min_overlap: Minimum fraction of shared genes, counted on distinct ids and relative to the smaller side: a
                panel of 500 genes overlaps fully with a vocabulary that has them all.

        Raises:
            GeneOverlapError: no gene is shared, or a smaller fraction than ``min_overlap``.
        """
        ids = without_version(ids)
        table = self.numbers(ids, organism, source=source)
        return self.map_numbered(
            table,
            None,
            organism,
            n_distinct=len(set(ids)),
            examples=lambda: ids[:_N_EXAMPLES],
            source=source,
            min_overlap=min_overlap,
        )

    def numbers(self, ids: Sequence[str], organism: str, *, source: str) -> NDArray[np.int32]:
        """``(len(ids),)`` number of each gene in ``organism``'s part of the vocabulary; -1 for others.

        Raises:
            GeneOverlapError: the vocabulary has no genes of the organism; names the ``source``.
        """
        organism = normalise_organism(organism)
        if organism not in self.organisms:
            raise GeneOverlapError(
                f"{source} is of {organism}, but the vocabulary has genes of "
                f"{', '.join(self.organisms) or 'no organism'} only; add the organism to the vocabulary, or correct "
                "that of the source"
            )
        return np.fromiter(map(self._index[organism].get, ids, repeat(-1)), dtype=np.int32, count=len(ids))

    def map_numbered(
        self,
        table: NDArray[np.int32],
        places: GenePlaces | None,
        organism: str,
        *,
        n_distinct: int,
        examples: Callable[[], Sequence[str]],
        source: str,
        min_overlap: float,
    ) -> GeneMap:
        """As `map`, of genes whose ``numbers`` are known.

        Args:
            table: Number of each gene, or of each gene of a list that sources share.
            places: Positions of the genes in this list; None if it is that of the source.
            organism: Organism of the source.
            n_distinct: Number of different ids of the source.
            examples: Returns some of them.
            source: Name of the source in messages.
            min_overlap: As for `map`.

        Raises:
            GeneOverlapError: no gene is shared, or a smaller fraction than ``min_overlap``.
        """
        organism = normalise_organism(organism)
        start, stop = self.organisms[organism]
        lut = table if places is None else table[places.place]
        matched = lut[lut >= 0]
        monotone = bool(np.all(matched[1:] > matched[:-1]))
        times = None if monotone else np.bincount(matched, minlength=len(self.ids))
        gene_map = GeneMap(
            table=table,
            places=places,
            n_vocabulary=len(self.ids),
            organism=organism,
            n_organism=stop - start,
            n_matched=len(matched) if times is None else int(np.count_nonzero(times)),
            n_dropped=len(lut) - len(matched),
            duplicates=() if times is None else tuple(self.ids[number] for number in np.flatnonzero(times > 1)),
            monotone=monotone,
        )
        self._check_overlap(gene_map, n_distinct, examples, source=source, min_overlap=min_overlap)
        return gene_map

    def _check_overlap(
        self,
        gene_map: GeneMap,
        n_distinct: int,
        examples: Callable[[], Sequence[str]],
        *,
        source: str,
        min_overlap: float,
    ) -> None:
        smaller = min(n_distinct, gene_map.n_organism)
        if gene_map.n_matched and gene_map.n_matched / smaller >= min_overlap:
            return
        start, stop = self.organisms[gene_map.organism]
        share = gene_map.n_matched / max(smaller, 1)
        needed = f"{min_overlap:.1%}" if min_overlap > 0 else "at least one gene"
        raise GeneOverlapError(
            f"{source} shares {gene_map.n_matched:,} genes with the vocabulary, {share:.1%} of the smaller side, where "
            f"{needed} is needed; its {n_distinct:,} genes look like {shown(examples()) or 'none'}, the "
            f"{gene_map.n_organism:,} of {gene_map.organism} in the vocabulary like "
            f"{shown(self.ids[start:stop][:_N_EXAMPLES])}; "
            "name the column of var that holds the vocabulary's ids, give a gene table, or lower the minimum overlap"
        )


def _duplicates(ids: Sequence[str]) -> list[str]:
    values = pd.Series(ids, dtype=object)
    return list(values[values.duplicated()].unique())
