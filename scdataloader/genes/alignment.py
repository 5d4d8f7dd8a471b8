"""Alignment of sources: their organisms, the ids of their genes, and the map from these to one vocabulary."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scdataloader.genes.gene_lists import gene_lists
from scdataloader.genes.names import gene_names, without_version
from scdataloader.genes.organisms import UNSTATED, find_organisms, infer_organism
from scdataloader.genes.tables import find_gene_table
from scdataloader.genes.vocabulary import GeneMap, GeneVocabulary
from scdataloader.protocols import HasOrganism
from scdataloader.runtime.messages import shown
from scdataloader.schema import ORGANISM_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scdataloader.protocols import Source, SourceSelection

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GeneAlignment:
    """How genes of the sources are identified and aligned to one vocabulary.

    Args:
        vocabulary: The model's genes, in order: a list of ids; {gene: number}, as in scGPT's vocab.json, whose special
            tokens (<pad>) are left out; a json, csv, tsv, text or parquet file of these; or a dictionary from organism
            to any of these. None takes all genes of all sources, sorted by organism and id.
        organisms: Organism of sources that state none in obs or uns, or a wrong one: one for all, or a dictionary
            from source name (with wildcards, such as "placenta*") to organism. Any usual name is accepted: "human",
            "Mus musculus", "NCBITaxon:6239".
        column: Column of var that holds gene ids or symbols: one for all, or a dictionary from source name (with
            wildcards). None finds Ensembl-style ids in the index or in a column.
        tables: {organism: path of a gene table}, a csv, tsv or parquet file of ids, symbols and perhaps synonyms, for
            sources whose genes are named by symbols.
        min_overlap: Minimum fraction of genes that a source shares with its organism's part of the vocabulary,
            relative to the smaller of the two.
    """

    vocabulary: list[str] | dict[str, int] | dict[str, list[str]] | dict[str, str] | str | None = None
    organisms: dict[str, str] | str | None = None
    column: dict[str, str] | str | None = None
    tables: dict[str, str] | None = None
    min_overlap: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.min_overlap <= 1:
            raise ValueError(f"min_overlap must be a fraction from 0 to 1, got {self.min_overlap}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignedSource:
    """Cells of one source and one organism, with the map from its genes to the vocabulary."""

    source: Source
    rows: NDArray[np.int64] | None
    """``(n_obs,)`` row numbers in the source, ascending; None for all rows."""
    organism: str
    """NCBITaxon id, or `UNSTATED`."""
    genes: GeneMap

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.source.n_obs if self.rows is None else len(self.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class _NamedGenes:
    """Cells of one source and one organism, with the ids of its genes."""

    source: Source
    rows: NDArray[np.int64] | None
    organism: str
    ids: list[str]
    ambiguous: frozenset[str]
    own: list[str]
    """Ids that are not those of another organism of the source."""


def align(selections: Sequence[SourceSelection], how: GeneAlignment) -> tuple[GeneVocabulary, list[AlignedSource]]:
    """The vocabulary, and the sources aligned to it; a source with several organisms is split.

    Raises:
        GeneOverlapError: a source shares too few genes with the vocabulary.
        ValueError: an organism is unknown, or stated by some sources only; or an option names a missing source.
    """
    _check_patterns(how, [selection.source.name for selection in selections])
    found = [part for selection in selections for part in _named_genes(selection, how)]
    _check_stated([(part.source.name, part.organism) for part in found])
    vocabulary = _vocabulary(how.vocabulary, [(part.own, part.organism) for part in found])
    aligned = []
    for part in found:
        name = part.source.name
        genes = vocabulary.map(part.ids, part.organism, source=name, min_overlap=how.min_overlap)
        logger.info(genes.summary(name, part.ids, part.ambiguous))
        aligned.append(AlignedSource(source=part.source, rows=part.rows, organism=part.organism, genes=genes))
    return vocabulary, aligned


def _named_genes(selection: SourceSelection, how: GeneAlignment) -> Iterator[_NamedGenes]:
    """The cells of a selection by organism."""
    source = selection.source
    names = gene_names(source.var, column=_for_source(how.column, source.name), source=source.name)
    for organism, of_organism in _organisms(source, how, names):
        rows = _in_both(of_organism, selection.rows)
        if rows is not None and not len(rows):
            continue
        table = find_gene_table(organism, how.tables or {})
        ids, ambiguous = table.match(names, source=source.name) if table else (without_version(names), frozenset())
        own = ids if of_organism is None else [gene for gene in ids if infer_organism([gene]) in {None, organism}]
        yield _NamedGenes(source=source, rows=rows, organism=organism, ids=ids, ambiguous=ambiguous, own=own)


def _organisms(source: Source, how: GeneAlignment, names: list[str]) -> list[tuple[str, NDArray[np.int64] | None]]:
    columns = (column for column in ORGANISM_KEYS if column in source.obs_columns)
    return find_organisms(
        source.name,
        given=_for_source(how.organisms, source.name),
        obs=((column, source.obs([column])[column]) for column in columns),
        uns=lambda: source.organism if isinstance(source, HasOrganism) else None,
        gene_ids=lambda: names,
    )


def _in_both(first: NDArray[np.int64] | None, second: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Rows that are in both, ascending; None is all rows."""
    if first is None or second is None:
        return second if first is None else first
    return np.intersect1d(first, second, assume_unique=True)


def _for_source(option: Mapping[str, str] | str | None, name: str) -> str | None:
    """The entry of the first pattern that matches a source's name; a string applies to all sources."""
    if option is None or isinstance(option, str):
        return option
    return next((value for pattern, value in option.items() if fnmatch.fnmatch(name, pattern)), None)


def _check_patterns(how: GeneAlignment, names: list[str]) -> None:
    for option, value in (("organisms", how.organisms), ("column", how.column)):
        for pattern in value if isinstance(value, Mapping) else ():
            if not fnmatch.filter(names, pattern):
                raise ValueError(
                    f"the alignment's {option} names {pattern!r}, which matches no source; the sources are "
                    f"{shown(names)}"
                )


def _check_stated(organisms: list[tuple[str, str]]) -> None:
    silent = [name for name, organism in organisms if organism == UNSTATED]
    stated = sorted({organism for _, organism in organisms if organism != UNSTATED})
    if silent and stated:
        raise ValueError(
            f"no organism found for {silent[0]} (looked in obs, uns and gene ids), but other sources are of "
            f"{', '.join(stated)}; set the alignment's organisms={{{silent[0]!r}: 'human'}}, or whichever it is"
        )


def _vocabulary(given: object, sources: list[tuple[list[str], str]]) -> GeneVocabulary:
    if given is None:
        return GeneVocabulary.union(sources)
    if isinstance(given, GeneVocabulary):
        return given
    genes = gene_lists(given)
    if isinstance(genes, dict):
        return GeneVocabulary.from_dict(genes)
    organisms = sorted({organism for _, organism in sources})
    if len(organisms) > 1:
        raise ValueError(
            f"the sources are of {', '.join(organisms)}; give the vocabulary as a dictionary from organism to its genes"
        )
    return GeneVocabulary.from_dict({organisms[0]: genes})
