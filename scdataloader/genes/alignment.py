"""Which organism a source is of, what its genes are called, and where they fall in the vocabulary of all sources."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.genes.vocabulary import (
    GeneMap,
    GeneVocabulary,
    gene_ids,
    infer_organism,
    normalise_organism,
    read_gene_table,
)
from scdataloader.protocols import HasOrganism
from scdataloader.schema import ORGANISM_KEYS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scdataloader.protocols import Source, SourceSelection

logger = logging.getLogger(__name__)

UNSTATED = "NCBITaxon:32644"
"""NCBI's "unidentified": sources that do not say their organism, which is fine as long as none in a collection does."""


@dataclass(frozen=True, kw_only=True)
class GeneAlignment:
    """How the genes of the sources are found and brought onto one vocabulary.

    Args:
        vocabulary: The model's genes, in order: a list of ids, a text file with one id per line, or a dictionary from
            organism to either. None takes every gene of every source, sorted by organism and id.
        organisms: The organism of sources that do not say it in obs or uns, or say it wrongly: one for all, or a
            dictionary from source name (with wildcards, such as "placenta*") to organism. Any usual name will do:
            "human", "Mus musculus", "NCBITaxon:6239".
        column: Column of var that holds the gene ids; one for all, or a dictionary from source name (with wildcards).
            None finds Ensembl-style ids in the index or in a column by itself.
        tables: A gene table (csv of Ensembl id and symbol) for each organism, for sources that know symbols only.
        min_overlap: Least share of genes that a source must have in common with its organism's part of the vocabulary,
            relative to the smaller of the two.
    """

    vocabulary: list[str] | dict[str, list[str]] | dict[str, str] | str | None = None
    organisms: dict[str, str] | str | None = None
    column: dict[str, str] | str | None = None
    tables: dict[str, str] | None = None
    min_overlap: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.min_overlap <= 1:
            raise ValueError(f"min_overlap is a share from 0 to 1, not {self.min_overlap}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignedSource:
    """Cells of one source and one organism, with the map from its genes to the vocabulary."""

    source: Source
    rows: NDArray[np.int64] | None
    """``(n_obs,)`` row numbers in the source, ascending; None for all rows."""
    organism: str
    """NCBITaxon id, or `UNSTATED`."""
    genes: GeneMap
    """Position of each gene of the source in the vocabulary."""

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.source.n_obs if self.rows is None else len(self.rows)


def align(given: Sequence[SourceSelection], how: GeneAlignment) -> tuple[GeneVocabulary, list[AlignedSource]]:
    """The vocabulary, and the sources, split where they mix organisms, with their genes mapped onto it.

    Raises:
        GeneOverlapError: a source shares too few genes with the vocabulary.
        ValueError: organisms are stated by some sources only, or unknown; or an option names a source that is missing.
    """
    _check_patterns(how, [chosen.source.name for chosen in given])
    table = cache(read_gene_table)
    tables = {normalise_organism(organism): path for organism, path in (how.tables or {}).items()}
    found, of_organisms = [], []
    for chosen in given:
        source = chosen.source
        column = _for_source(how.column, source.name)
        as_written = gene_ids(source.var, column=column, name=source.name)
        for organism, of_organism in _organisms(source, how, as_written):
            rows = _both(of_organism, chosen.rows)
            if rows is not None and not len(rows):
                continue
            ids = as_written
            if organism in tables:
                ids = gene_ids(source.var, column=column, table=table(tables[organism]), name=source.name)
            own = ids if of_organism is None else _own(ids, organism)
            found.append((source, rows, organism, ids))
            of_organisms.append((own, organism))
    _check_stated([(source.name, organism) for source, _, organism, _ in found])
    vocabulary = _vocabulary(how.vocabulary, of_organisms)
    parts = []
    for source, rows, organism, ids in found:
        genes = vocabulary.map(ids, organism, source=source.name, min_overlap=how.min_overlap)
        logger.info(genes.summary(source.name))
        parts.append(AlignedSource(source=source, rows=rows, organism=organism, genes=genes))
    return vocabulary, parts


def _both(first: NDArray[np.int64] | None, second: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Rows that are in both, ascending; None is all."""
    if first is None or second is None:
        return second if first is None else first
    return np.intersect1d(first, second, assume_unique=True)


def _for_source(option: Mapping[str, str] | str | None, name: str) -> str | None:
    """The entry of the first pattern that matches a source's name; a string holds for all sources."""
    if option is None or isinstance(option, str):
        return option
    return next((value for pattern, value in option.items() if fnmatch.fnmatch(name, pattern)), None)


def _check_patterns(how: GeneAlignment, names: list[str]) -> None:
    for option, value in (("organisms", how.organisms), ("column", how.column)):
        for pattern in value if isinstance(value, Mapping) else ():
            if not fnmatch.filter(names, pattern):
                raise ValueError(
                    f"the alignment's {option} names {pattern!r}, which matches no source; "
                    f"the sources are {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"  # noqa: PLR2004
                )


def _organisms(source: Source, how: GeneAlignment, genes: list[str]) -> list[tuple[str, NDArray[np.int64] | None]]:
    """The organisms of a source's cells, and the rows of each where there are several."""
    given = _for_source(how.organisms, source.name)
    if given is not None:
        return [(normalise_organism(given), None)]
    for column in ORGANISM_KEYS:
        if column in source.obs_columns:
            labels = source.obs([column])[column].astype("category")
            if not labels.isna().all():
                return split_organisms(labels, source.name, column)
    stated = source.organism if isinstance(source, HasOrganism) else None
    if stated:
        return [(normalise_organism(stated), None)]
    return [(infer_organism(genes) or UNSTATED, None)]


def split_organisms(labels: pd.Series, name: str, column: str) -> list[tuple[str, NDArray[np.int64] | None]]:
    """The organisms that a column of obs names, sorted by NCBITaxon id, each with its rows; None if it is the only one.

    Raises:
        ValueError: some cells have none, or it is unknown.
    """
    missing = int(labels.isna().sum())
    if missing:
        raise ValueError(
            f"{missing:,} of the {len(labels):,} cells of {name} have no organism in obs[{column!r}], the others do; "
            f'fill the column, or say one organism for all of the file: {{"{name}": "human"}} in the organisms of an '
            "alignment, or by a rule of a recipe"
        )
    organisms = {label: normalise_organism(str(label)) for label, n in labels.value_counts().items() if n}
    distinct = sorted(set(organisms.values()))
    if len(distinct) == 1:
        return [(distinct[0], None)]
    of_cell = labels.map(organisms)
    return [(organism, np.flatnonzero(of_cell == organism)) for organism in distinct]


def _own(ids: list[str], organism: str) -> list[str]:
    """Those of a mixed file's genes that are no other organism's."""
    return [gene for gene in ids if infer_organism([gene]) in {None, organism}]


def _check_stated(organisms: list[tuple[str, str]]) -> None:
    silent = [name for name, organism in organisms if organism == UNSTATED]
    stated = sorted({organism for _, organism in organisms if organism != UNSTATED})
    if silent and stated:
        raise ValueError(
            f"{silent[0]} does not say its organism, in obs, uns or gene ids, "
            f"while other sources are of {', '.join(stated)}; "
            f'say it in the alignment\'s organisms, as {{"{silent[0]}": "human"}} (or whatever it is)'
        )


def _vocabulary(given: object, sources: list[tuple[list[str], str]]) -> GeneVocabulary:
    if given is None:
        return GeneVocabulary.union(sources)
    if isinstance(given, Mapping):
        return GeneVocabulary.from_dict({organism: _id_list(ids) for organism, ids in given.items()})
    organisms = sorted({organism for _, organism in sources})
    if len(organisms) > 1:
        raise ValueError(
            f"the sources are of {', '.join(organisms)}: give the vocabulary as a dictionary from organism to its genes"
        )
    return GeneVocabulary.from_dict({organisms[0]: _id_list(given)})


def _id_list(given: object) -> list[str]:
    if isinstance(given, str | Path):
        lines = Path(given).read_text(encoding="utf-8").split("\n")
        return [line.strip() for line in lines if line.strip()]
    return [str(gene) for gene in given]  # type: ignore[attr-defined]
