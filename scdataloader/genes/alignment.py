"""Alignment of sources: their organisms, the ids of their genes, and the map from these to one vocabulary."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import GeneOverlapError
from scdataloader.genes.gene_lists import gene_lists
from scdataloader.genes.matching import GeneNames, KnownNames, MatchedNames, NamedGenes, match_names
from scdataloader.genes.names import without_version
from scdataloader.genes.numbers import GeneNumbers
from scdataloader.genes.organisms import UNSTATED, find_organisms, infer_organism, normalise_organism, remedy
from scdataloader.genes.overlap import check_shared_genes
from scdataloader.genes.tables import organisms_of_symbols
from scdataloader.genes.vocabulary import GeneMap, GeneVocabulary
from scdataloader.protocols import HasLabels, HasOrganism, HasPath
from scdataloader.runtime.faults import Faults
from scdataloader.runtime.messages import shown
from scdataloader.runtime.names import matches
from scdataloader.schema import ORGANISM_KEYS, ORGANISMS

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from scdataloader.protocols import Source, SourceSelection

__all__ = ["AlignedSource", "GeneAlignment"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GeneAlignment:
    """How genes of the sources are identified and aligned to one vocabulary.

    Args:
        vocabulary: The model's genes, in order: a list of ids; {gene: number}, as in scGPT's vocab.json, whose special
            tokens (<pad>) are left out; a json, csv, tsv, text or parquet file of these; or a dictionary from organism
            to any of these. None takes the genes of the sources, see ``join``, sorted by organism and id.
        organisms: Organism of sources that state none in obs or uns, or a wrong one: one for all, or a dictionary
            from source name (with wildcards, such as "placenta*" or, by folder, "mouse/*") to organism. Any usual name
            is accepted: "human", "Mus musculus", "NCBITaxon:6239".
        column: Column of var that holds gene ids or symbols: one for all, or a dictionary from source name (with
            wildcards). None finds Ensembl-style ids in the index or in a column.
        tables: {organism: path of a gene table}, a csv, tsv or parquet file of ids, symbols and perhaps synonyms, for
            sources whose genes are named by symbols. By default the tables that come with the package are used.
        min_overlap: Minimum fraction of genes that a source shares with its organism's part of the vocabulary, or with
            a table of ``tables``, relative to the smaller of the two. Without a vocabulary: minimum fraction of its
            genes that a source shares with larger sources of its organism.
        feature_types: Types of the features to keep, where ``var["feature_types"]`` states them; by default those of
            genes ("Gene Expression"), so that antibodies are not in the depth of a cell. "all" keeps every feature.
        join: Without a vocabulary: "outer" takes the genes of any source, "inner" those that all sources of their
            organism have.
    """

    vocabulary: list[str] | dict[str, int] | dict[str, list[str]] | dict[str, str] | str | None = None
    organisms: dict[str, str] | str | None = None
    column: dict[str, str] | str | None = None
    tables: dict[str, str] | None = None
    min_overlap: float = 0.1
    feature_types: list[str] | str | None = None
    join: Literal["outer", "inner"] = "outer"

    def __post_init__(self) -> None:
        if self.join not in {"outer", "inner"}:
            raise ValueError(f"join must be 'outer' or 'inner', got {self.join!r}")
        if self.join == "inner" and self.vocabulary is not None:
            raise ValueError("join='inner' has no effect with a vocabulary; omit one of the two")
        if not 0 <= self.min_overlap <= 1:
            raise ValueError(f"min_overlap must be a fraction from 0 to 1, got {self.min_overlap}")
        of_sources = self.organisms.values() if isinstance(self.organisms, Mapping) else filter(None, [self.organisms])
        for option, names in (("organisms", of_sources), ("tables", self.tables or ())):
            for name in names:
                try:
                    normalise_organism(name)
                except ValueError as error:
                    raise ValueError(f"{option} of the alignment: {error}") from error


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


def align(
    selections: Sequence[SourceSelection], how: GeneAlignment, faults: Faults | None = None
) -> tuple[GeneVocabulary, list[AlignedSource]]:
    """The vocabulary, and the sources aligned to it; a source with several organisms is split.

    Args:
        selections: The sources.
        how: The options.
        faults: Errors of other sources, and of these if they are listed instead of raised.

    Raises:
        SourcesError: several sources have errors.
        GeneOverlapError: a source shares too few genes with the vocabulary, its gene table, or the other sources.
        ValueError: an organism is unknown, or stated by some sources only; an option names a missing source; or a
            gene table is of an organism that no source has.
    """
    faults = faults or Faults()
    if not faults.found:
        _check_patterns(how, [selection.source for selection in selections])
    given, tables = _by_organism(how.vocabulary), how.tables or {}
    parts: list[NamedGenes] = []
    known = KnownNames(how.feature_types)
    for selection in selections:
        with faults.of(selection.source.name):
            parts += list(_named_genes(selection, how, known))
    _warn(parts)
    parts = _stated(_with_organisms(parts, given, tables), [*(given or ()), *tables], faults)
    faults.check(usable=parts)
    _check_tables(parts, tables)
    vocabulary = None if given is None else _vocabulary(given, sorted({part.organism for part in parts}))
    matched = match_names(parts, tables, {} if vocabulary is None else vocabulary.genes_dict, how.min_overlap)
    if vocabulary is None:
        vocabulary = _union(parts, matched, known.numbers)
    aligned: list[AlignedSource] = []
    maps = _GeneMaps(vocabulary, known.numbers, how.min_overlap)
    for part, names in zip(parts, matched, strict=True):
        name = part.source.name
        with faults.of(name):
            of_names, genes = maps.of(part, names.genes)
            if logger.isEnabledFor(logging.INFO):
                logger.info(of_names.summary(name, names.genes.names, names.ambiguous))
            aligned.append(AlignedSource(source=part.source, rows=part.rows, organism=part.organism, genes=genes))
    faults.check(usable=aligned)
    if given is None:
        check_shared_genes(vocabulary, [(part.source.name, part.genes) for part in aligned], how.min_overlap, faults)
        faults.check(usable=aligned)
    if how.join == "inner":
        return align(selections, replace(how, vocabulary=_shared(vocabulary, aligned), join="outer"), faults)
    return vocabulary, aligned


def _union(parts: Sequence[NamedGenes], matched: Sequence[MatchedNames], known: GeneNumbers) -> GeneVocabulary:
    """All genes of the parts: organisms sorted, ids sorted within each; see `GeneVocabulary.union`."""
    has: dict[str, NDArray[np.bool_]] = {}
    distinct = {part.key: (part, names.genes) for part, names in zip(parts, matched, strict=True)}
    for part, genes in distinct.values():
        of_organism = has.setdefault(part.organism, np.zeros(len(known), np.bool_))
        numbers = genes.numbers
        of_organism[numbers[known.may_be_of(part.organism)[numbers]] if part.is_mixed else numbers] = True
    names = known.names
    return GeneVocabulary.from_dict(
        {organism: sorted(names[at] for at in np.flatnonzero(has[organism])) for organism in sorted(has)}
    )


class _GeneMaps:
    """The maps from the genes of sources to a vocabulary; sources with the same genes have one."""

    def __init__(self, vocabulary: GeneVocabulary, known: GeneNumbers, min_overlap: float) -> None:
        self._vocabulary, self._known, self._min_overlap = vocabulary, known, min_overlap
        self._of_name: dict[str, NDArray[np.int32]] = {}
        self._of_list: dict[tuple[str, int], NDArray[np.int32]] = {}
        self._done: dict[Hashable, tuple[GeneMap, GeneMap]] = {}

    def of(self, part: NamedGenes, genes: GeneNames) -> tuple[GeneMap, GeneMap]:
        """The map of a part, whose genes have the names ``genes``; and that with its features that are not genes.

        Raises:
            GeneOverlapError: see `GeneVocabulary.map`.
        """
        if part.key not in self._done:
            found, left_out = self._found(part, genes), part.genes.left_out
            self._done[part.key] = found, found if left_out is None else found.among(left_out.mask)
        return self._done[part.key]

    def _found(self, part: NamedGenes, genes: GeneNames) -> GeneMap:
        name, organism = part.source.name, part.organism
        if organism not in self._of_name:
            self._of_name[organism] = self._vocabulary.numbers(self._known.names, organism, source=name)
        key = organism, id(genes.listed)  # which the parts refer to
        if key not in self._of_list:
            self._of_list[key] = self._of_name[organism][genes.listed]
        return self._vocabulary.map_numbered(
            self._of_list[key],
            genes.places,
            organism,
            n_distinct=genes.n_distinct,
            examples=lambda: genes.first,
            source=name,
            min_overlap=self._min_overlap,
        )


def _shared(vocabulary: GeneVocabulary, parts: Sequence[AlignedSource]) -> dict[str, list[str]]:
    """{organism: genes that all its sources have}.

    Raises:
        GeneOverlapError: there are none.
    """
    shared = {}
    for organism, (start, stop) in vocabulary.organisms.items():
        of_organism = [part for part in parts if part.organism == organism]
        in_all = np.logical_and.reduce([part.genes.measured for part in of_organism])[start:stop]
        shared[organism] = [vocabulary.ids[start + at] for at in np.flatnonzero(in_all)]
        if not shared[organism]:
            names = shown(f"{part.source.name} ({part.genes.n_matched:,})" for part in of_organism)
            raise GeneOverlapError(f"no gene of {organism} is in all its sources, {names}; use join='outer'")
    return shared


def _named_genes(selection: SourceSelection, how: GeneAlignment, known: KnownNames) -> Iterator[NamedGenes]:
    """The cells of a selection by organism."""
    source = selection.source
    genes = known.of(source, _for_source(how.column, source))
    organisms = _organisms(source, how, genes)
    for organism, of_organism in organisms:
        rows = _in_both(of_organism, selection.rows)
        if rows is None or len(rows):
            yield NamedGenes(source=source, rows=rows, organism=organism, genes=genes, is_mixed=len(organisms) > 1)


def _organisms(source: Source, how: GeneAlignment, genes: GeneNames) -> list[tuple[str, NDArray[np.int64] | None]]:
    labels = source.labels if isinstance(source, HasLabels) else {}
    columns = (column for column in ORGANISM_KEYS if column in source.obs_columns)
    return find_organisms(
        source.name,
        given=_for_source(how.organisms, source),
        obs=((column, labels.get(column) or source.obs([column])[column]) for column in columns),
        uns=lambda: source.organism if isinstance(source, HasOrganism) else None,
        by_ids=lambda: genes.organism,
    )


def _in_both(first: NDArray[np.int64] | None, second: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Rows that are in both, ascending; None is all rows."""
    if first is None or second is None:
        return second if first is None else first
    return np.intersect1d(first, second, assume_unique=True)


def _for_source(option: Mapping[str, str] | str | None, source: Source) -> str | None:
    """The entry of the first pattern that matches a source's name or path; a string applies to all sources."""
    if option is None or isinstance(option, str):
        return option
    return next((value for pattern, value in option.items() if _is_of(pattern, source)), None)


def _is_of(pattern: str, source: Source) -> bool:
    return matches(pattern, source.name, source.path if isinstance(source, HasPath) else None)


def _check_patterns(how: GeneAlignment, sources: list[Source]) -> None:
    for option, value in (("organisms", how.organisms), ("column", how.column)):
        for pattern in value if isinstance(value, Mapping) else ():
            if not any(_is_of(pattern, source) for source in sources):
                raise ValueError(
                    f"the alignment's {option} names {pattern!r}, which matches no source; the sources are "
                    f"{shown(source.name for source in sources)}"
                )


def _warn(parts: Sequence[NamedGenes]) -> None:
    """Report features that are left out, and names that identify no genes."""
    if left_out := {f"{part.source.name} {part.genes.left_out.text}": None for part in parts if part.genes.left_out}:
        what = "features that are not genes are left out, also of the depth"
        logger.warning("%s: %s; to keep them, set feature_types", what, shown(left_out))
    unnamed = [part.source.name for part in parts if part.genes.are_numbers]
    if unnamed and len(parts) > 1:
        logger.warning("genes are only numbered, and taken to be the same in the same order, in %s", shown(unnamed))


def _with_organisms(
    parts: Sequence[NamedGenes], given: dict[str | None, list[str]] | None, tables: Mapping[str, str]
) -> list[NamedGenes]:
    """The parts with an organism where none is stated: that of the vocabulary or table, or else of their symbols.

    Symbols decide only if all of them, and all sources that state an organism, are of one.
    """
    silent = [part for part in parts if part.organism == UNSTATED]
    found = _single_organism(given) or _single_organism(tables)
    if silent and found is None and None not in (given or ()):
        similar = [organisms_of_symbols(genes.names) for genes in {part.genes: None for part in silent}]
        clear = {organisms[0] if len(organisms) == 1 else UNSTATED for organisms in similar}
        clear |= {part.organism for part in parts} - {UNSTATED}
        names = shown(sorted({ORGANISMS[one].scientific_name for some in similar for one in some}))
        sources = shown(part.source.name for part in silent)
        if len(clear) == 1 and UNSTATED not in clear:
            (found,) = clear
            logger.warning("no organism is stated for %s; by their symbols, they are taken to be of %s", sources, names)
        elif names:
            logger.warning("no organism is stated for %s; their symbols may be of %s: set organisms", sources, names)
    return [part if part.organism != UNSTATED else replace(part, organism=found or UNSTATED) for part in parts]


def _single_organism(by_organism: Mapping[Any, Any] | None) -> str | None:
    """The organism of a vocabulary or of gene tables; None if there is not only one."""
    if not by_organism or len(by_organism) > 1:
        return None
    ((organism, ids),) = by_organism.items()
    return infer_organism(without_version(ids)) if organism is None else normalise_organism(organism)


def _stated(parts: Sequence[NamedGenes], options: Sequence[str | None], faults: Faults) -> list[NamedGenes]:
    """The parts with an organism; or all, where none has one and ``options``, the vocabulary or tables, have none."""
    silent = [part.source.name for part in parts if part.organism == UNSTATED]
    stated = sorted({part.organism for part in parts} - {UNSTATED})
    listed = sorted({normalise_organism(organism) for organism in options if organism} - {UNSTATED})
    if not stated and not listed:
        return list(parts)
    for name in silent:
        error = ValueError(
            f"no organism found for {name} (looked in obs, uns and gene ids), but "
            f"{'other sources are' if stated else 'vocabulary or tables are'} of {', '.join(stated or listed)}; "
            f"{remedy(name)}"
        )
        faults.add(name, error)
    return [part for part in parts if part.organism != UNSTATED]


def _check_tables(parts: Sequence[NamedGenes], tables: Mapping[str, str]) -> None:
    """Refuse tables if none of them is of the organism of a source."""
    organisms = sorted({part.organism for part in parts})
    if tables and not {normalise_organism(organism) for organism in tables} & set(organisms):
        raise ValueError(
            f"the alignment's tables are of {', '.join(tables)}, but the sources of {', '.join(organisms)}; correct "
            "the organism of the table, or set organisms"
        )


def _by_organism(given: object) -> dict[str | None, list[str]] | None:
    """Lists of genes by organism, None if it is not stated; None without a vocabulary."""
    if given is None:
        return None
    genes = given.genes_dict if isinstance(given, GeneVocabulary) else gene_lists(given)
    return dict(genes.items()) if isinstance(genes, dict) else {None: genes}


def _vocabulary(given: dict[str | None, list[str]], organisms: list[str]) -> GeneVocabulary:
    """The vocabulary; a single list is of the only organism of the sources."""
    if None in given and len(organisms) > 1:
        raise ValueError(
            f"the sources are of {', '.join(organisms)}; give the vocabulary as a dictionary from organism to its genes"
        )
    return GeneVocabulary.from_dict({organism or organisms[0]: ids for organism, ids in given.items()})
