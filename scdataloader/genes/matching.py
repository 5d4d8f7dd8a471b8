"""Names of genes to the ids of the vocabulary, by gene tables where one side has symbols and the other has ids."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import GeneOverlapError
from scdataloader.genes.features import LeftOut, genes_of
from scdataloader.genes.names import are_ids, gene_names, without_version
from scdataloader.genes.organisms import infer_organism
from scdataloader.genes.tables import GeneTable, find_gene_table, package_table
from scdataloader.protocols import Source
from scdataloader.runtime.messages import shown

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    import pandas as pd

logger = logging.getLogger(__name__)

_N_EXAMPLES = 3
_N_TABLES = 16
"""Tables of genes that are kept while sources are aligned; those of 1,000 sources would take gigabytes."""


@dataclass(frozen=True, eq=False)
class GeneNames:
    """Names of the genes of sources. Sources with the same genes share one object, and what is found out about it."""

    names: tuple[str, ...]
    """Ids without version, or symbols."""
    are_ids: bool
    """Whether most names are Ensembl-style ids."""
    left_out: LeftOut | None = None
    """Features that are not genes, and have no name here."""

    @cached_property
    def organism(self) -> str | None:
        """The organism of the ids; see `infer_organism`."""
        return infer_organism(self.names)

    @cached_property
    def are_numbers(self) -> bool:
        """Whether the names are those that AnnData gives to genes without names: "0", "1", ..."""
        return all(name == str(at) for at, name in enumerate(self.names))


class KnownNames:
    """The names of genes of many sources, found once for those with the same genes."""

    def __init__(self, feature_types: Sequence[str] | str | None) -> None:
        """``feature_types`` is the option of `GeneAlignment`."""
        self._types = feature_types
        self._of_table: OrderedDict[tuple[int, str | None], tuple[pd.DataFrame, GeneNames]] = OrderedDict()
        self._unique: dict[tuple[tuple[str, ...], bytes], GeneNames] = {}

    def of(self, source: Source, column: str | None) -> GeneNames:
        """The names of the genes of a source, in ``column`` of its var if one is given.

        Raises:
            KeyError: var has no such column.
            TypeError: var is not a DataFrame.
            ValueError: no feature is of the requested types.
        """
        var = source.var
        key = id(var), column
        if key not in self._of_table:
            # with var, whose id is thus not used again
            self._of_table[key] = var, self._found(var, source.name, column)
            if len(self._of_table) > _N_TABLES:
                self._of_table.popitem(last=False)
        self._of_table.move_to_end(key)
        return self._of_table[key][1]

    def _found(self, var: pd.DataFrame, name: str, column: str | None) -> GeneNames:
        genes, left_out = genes_of(var, name, self._types)
        names = tuple(without_version(gene_names(genes, column=column, source=name)))
        mask = b"" if left_out is None else left_out.mask.tobytes()
        return self._unique.setdefault((names, mask), GeneNames(names, are_ids(names), left_out))


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedGenes:
    """Cells of one source and one organism, with the names of its genes."""

    source: Source
    rows: NDArray[np.int64] | None
    """``(n_obs,)`` row numbers in the source, ascending; None for all rows."""
    organism: str
    genes: GeneNames
    is_mixed: bool
    """Whether the source has cells of other organisms."""

    @property
    def key(self) -> Hashable:
        """Equal for parts whose genes have the same vocabulary numbers."""
        return self.genes, self.organism, self.is_mixed

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its genes."""
        return self.genes.names

    def own(self, ids: Sequence[str]) -> Sequence[str]:
        """The ids that are not those of another organism of the source."""
        if not self.is_mixed:
            return ids
        return [gene for gene in ids if infer_organism([gene]) in {None, self.organism}]


class MatchedNames(NamedTuple):
    """What the genes of a source are called in the vocabulary."""

    ids: Sequence[str]
    """Ids, or the vocabulary's own names; names without a match are unchanged."""
    ambiguous: frozenset[str] = frozenset()
    """Names that may mean several genes; see `GeneTable.match`."""


def match_names(
    parts: Sequence[NamedGenes], tables: Mapping[str, str], wanted: Mapping[str, list[str]], min_overlap: float
) -> list[MatchedNames]:
    """Match the names of each part; symbols without a match are reported with their number.

    A table of the user is always used. That of the package is used if a source has symbols and the vocabulary ids, or
    the other way round.

    Args:
        parts: Named genes.
        tables: {organism: path}, as given by the user.
        wanted: {organism: genes of the vocabulary}; without them, ids are wanted.
        min_overlap: Minimum fraction of genes that a source shares with a table of the user.

    Raises:
        GeneOverlapError: a source shares too few genes with a table of the user.
    """
    matcher = _Matcher(tables=tables, wanted=wanted, min_overlap=min_overlap)
    matched, unknown = [], list[str]()
    for part in parts:
        names, missing = matcher.match(part)
        matched.append(names)
        if missing and not part.genes.are_ids:
            some = ", ".join(missing[:_N_EXAMPLES])
            unknown.append(f"{part.source.name} {len(missing):,} of {len(set(part.names)):,} ({some})")
    if unknown:
        logger.warning("symbols that the gene table does not know keep their names: %s", shown(unknown))
    return matched


def names_in_vocabulary(
    names: Sequence[str], vocabulary: Sequence[str], organism: str, tables: Mapping[str, str]
) -> list[str]:
    """What genes, such as those of a model's dictionary, are called in the vocabulary; the rules are `match_names`'.

    Args:
        names: Ids or symbols.
        vocabulary: Genes of the vocabulary that are of ``organism``.
        organism: NCBITaxon id.
        tables: {organism: path}, as given by the user.

    Returns:
        ``(len(names),)`` names; those without a match are unchanged, except for versions of ids.
    """
    plain, wanted = without_version(names), list(vocabulary)
    table = find_gene_table(organism, tables) or _package_table(are_ids(plain), wanted, organism)
    if table is None:
        return plain
    return _Renaming.of(wanted, table).apply(plain, table.match(plain)[0])


def _package_table(has_ids: bool, vocabulary: Sequence[str] | None, organism: str) -> GeneTable | None:  # noqa: FBT001
    """The package's table if only one side has ids; without a vocabulary, ids are wanted."""
    want_ids = vocabulary is None or are_ids(vocabulary)
    return package_table(organism) if has_ids != want_ids else None


@dataclass(frozen=True, kw_only=True)
class _Matcher:
    """Matches names; many sources have the same, which are matched once."""

    tables: Mapping[str, str]
    wanted: Mapping[str, list[str]]
    min_overlap: float
    _renamings: dict[str, _Renaming] = field(default_factory=dict)
    _done: dict[tuple[str, GeneNames], tuple[MatchedNames, list[str]]] = field(default_factory=dict)

    def match(self, part: NamedGenes) -> tuple[MatchedNames, list[str]]:
        """The matched names of a part, and those that neither the table nor the vocabulary has, sorted."""
        key = part.organism, part.genes
        if key not in self._done:
            self._done[key] = self._match(part)
        return self._done[key]

    def _match(self, part: NamedGenes) -> tuple[MatchedNames, list[str]]:
        own, of_vocabulary = find_gene_table(part.organism, self.tables), self.wanted.get(part.organism)
        table = own or _package_table(part.genes.are_ids, of_vocabulary, part.organism)
        if table is None:
            return MatchedNames(part.names), []
        ids, ambiguous = table.match(part.names)
        missing = set(ids).difference(table.symbols)
        if of_vocabulary is not None:
            if part.organism not in self._renamings:
                self._renamings[part.organism] = _Renaming.of(of_vocabulary, table)
            ids = self._renamings[part.organism].apply(part.names, ids)
            missing = missing.intersection(ids).difference(of_vocabulary)
        if own is not None:
            _check_table(part, len(set(ids)), len(missing), len(own.symbols), self.min_overlap)
        return MatchedNames(ids, ambiguous), sorted(missing)


class _Renaming(NamedTuple):
    """The names that the genes of an organism have in a vocabulary, which may be symbols."""

    names: AbstractSet[str]
    """All of them."""
    of_id: dict[str, str]
    """{id: name}."""

    @classmethod
    def of(cls, vocabulary: list[str], table: GeneTable) -> Self:
        """The names of a vocabulary, with the ids that the table has for them."""
        return cls(set(vocabulary), dict(zip(table.match(vocabulary)[0], vocabulary, strict=True)))

    def apply(self, names: Sequence[str], ids: Sequence[str]) -> list[str]:
        """The names in the vocabulary of genes that have ``names`` and ``ids``; otherwise the ids."""
        pairs = zip(names, ids, strict=True)
        return [name if name in self.names else self.of_id.get(gene, gene) for name, gene in pairs]


def _check_table(part: NamedGenes, n_ids: int, n_missing: int, n_table: int, min_overlap: float) -> None:
    n_known = n_ids - n_missing
    if n_known and n_known >= min_overlap * min(n_ids, n_table):
        return
    raise GeneOverlapError(
        f"{part.source.name} shares {n_known:,} of its {n_ids:,} genes with the gene table of {part.organism}, where "
        f"{min_overlap:.1%} is needed; its genes look like {', '.join(part.names[:_N_EXAMPLES])}; give another table, "
        "correct the organism, or lower min_overlap"
    )
