"""Names of genes to the ids of the vocabulary, by gene tables where one side has symbols and the other has ids."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import GeneOverlapError
from scdataloader.genes.features import ALL, COLUMNS, LeftOut, genes_of
from scdataloader.genes.names import MOST, are_ids, gene_names, without_version
from scdataloader.genes.numbers import GeneNumbers
from scdataloader.genes.organisms import organism_of_prefixes
from scdataloader.genes.tables import GeneTable, find_gene_table, package_table
from scdataloader.protocols import SharesGenes, Source
from scdataloader.runtime.messages import shown
from scdataloader.types import GenePlaces, SharedGenes

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    import pandas as pd

logger = logging.getLogger(__name__)

_N_EXAMPLES = 3
_N_TABLES = 16
"""Tables of genes that are kept while sources are aligned; those of 1,000 sources would take gigabytes."""


@dataclass(frozen=True, eq=False)
class GeneNames:
    """Names of the genes of sources. Sources with the same genes share one object, and what is found out about it."""

    known: GeneNumbers
    """The names of the genes of all sources: ids without version, or symbols."""
    listed: NDArray[np.int32]
    """Numbers in ``known`` of its genes; with ``places``, of all genes of the list that these are positions in."""
    places: GenePlaces | None = None
    """Which genes of the list it has; None for all."""
    left_out: LeftOut | None = None
    """Features that are not genes, and have no name here."""

    @property
    def numbers(self) -> NDArray[np.int32]:
        """``(n_genes,)`` number in ``known`` of each gene."""
        return self.listed if self.places is None else self.listed[self.places.place]

    @property
    def names(self) -> tuple[str, ...]:
        """``(n_genes,)`` the names; created anew, since those of thousands of sources take gigabytes."""
        names = self.known.names
        return tuple([names[number] for number in self.numbers.tolist()])

    @property
    def first(self) -> list[str]:
        """Some names, as examples for messages."""
        return [self.known.names[number] for number in self.numbers[:_N_EXAMPLES]]

    @cached_property
    def _counts(self) -> tuple[int, dict[str | None, int]]:
        """Number of different names, and {Ensembl prefix: number of names}; together, as numbers are created anew."""
        numbers = self.numbers
        return int(np.count_nonzero(np.bincount(numbers))), self.known.prefixes(numbers)

    @property
    def n_distinct(self) -> int:
        """Number of different names."""
        return self._counts[0]

    @property
    def are_ids(self) -> bool:
        """Whether most names are Ensembl-style ids; see `names.are_ids`."""
        times = self._counts[1]
        n = sum(times.values())
        return n > 0 and (n - times.get(None, 0)) / n > MOST

    @property
    def organism(self) -> str | None:
        """The organism of the ids; see `infer_organism`."""
        return organism_of_prefixes(self._counts[1])

    @cached_property
    def are_numbers(self) -> bool:
        """Whether the names are those that AnnData gives to genes without names: "0", "1", ..."""
        return self.first[:1] in ([], ["0"]) and all(name == str(at) for at, name in enumerate(self.names))

    def renamed(self, names: Iterable[str]) -> GeneNames:
        """Genes with other names, ``(n_genes,)``."""
        return GeneNames(self.known, self.known.numbers(names))


class KnownNames:
    """The names of genes of many sources, found once for those with the same genes."""

    def __init__(self, feature_types: Sequence[str] | str | None) -> None:
        """``feature_types`` is the option of `GeneAlignment`."""
        self.numbers = GeneNumbers()
        self._types = feature_types
        self._of_table: OrderedDict[tuple[int, str | None], tuple[pd.DataFrame, GeneNames]] = OrderedDict()
        self._unique: dict[tuple[bytes, bytes], GeneNames] = {}
        self._lists: dict[int, tuple[Sequence[str], NDArray[np.int32]]] = {}
        self._shared: dict[tuple[int, int], GeneNames] = {}

    def of(self, source: Source, column: str | None) -> GeneNames:
        """The names of the genes of a source, in ``column`` of its var if one is given.

        Raises:
            KeyError: var has no such column.
            TypeError: var is not a DataFrame.
            ValueError: no feature is of the requested types.
        """
        if column is None and self._types in (None, ALL) and isinstance(source, SharesGenes):
            shared = source.shared_genes
            genes = None if shared is None else self._of_shared(shared)
            if genes is not None:
                return genes
        var = source.var
        key = id(var), column
        if key not in self._of_table:
            # with var, whose id is thus not used again
            self._of_table[key] = var, self._found(var, source.name, column)
            if len(self._of_table) > _N_TABLES:
                self._of_table.popitem(last=False)
        self._of_table.move_to_end(key)
        return self._of_table[key][1]

    def _of_shared(self, genes: SharedGenes) -> GeneNames | None:
        """The names of genes of a list; None if var may have others, or features that are not genes."""
        if not set(COLUMNS).isdisjoint(genes.var_columns or ()):
            return None
        if id(genes.names) not in self._lists:
            self._lists[id(genes.names)] = genes.names, self.numbers.numbers(without_version(genes.names))
        key = id(genes.names), id(genes.places)  # which the values refer to
        if key not in self._shared:
            self._shared[key] = GeneNames(self.numbers, self._lists[id(genes.names)][1], genes.places)
        found = self._shared[key]
        return found if genes.var_columns is None or found.are_ids else None

    def _found(self, var: pd.DataFrame, name: str, column: str | None) -> GeneNames:
        genes, left_out = genes_of(var, name, self._types)
        numbers = self.numbers.numbers(without_version(gene_names(genes, column=column, source=name)))
        mask = b"" if left_out is None else left_out.mask.tobytes()
        key = blake2b(numbers.tobytes()).digest(), mask
        return self._unique.setdefault(key, GeneNames(self.numbers, numbers, None, left_out))


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


class MatchedNames(NamedTuple):
    """What the genes of a source are called in the vocabulary."""

    genes: GeneNames
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
            unknown.append(f"{part.source.name} {len(missing):,} of {len(set(part.genes.names)):,} ({some})")
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
    _tables: dict[tuple[str, bool], tuple[GeneTable | None, GeneTable | None]] = field(default_factory=dict)

    def match(self, part: NamedGenes) -> tuple[MatchedNames, list[str]]:
        """The matched names of a part, and those that neither the table nor the vocabulary has, sorted."""
        key = part.organism, part.genes
        if key not in self._done:
            self._done[key] = self._match(part)
        return self._done[key]

    def _tables_of(self, organism: str, has_ids: bool) -> tuple[GeneTable | None, GeneTable | None]:  # noqa: FBT001
        """The user's table of an organism, and the one to use."""
        if (organism, has_ids) not in self._tables:
            own = find_gene_table(organism, self.tables)
            used = own or _package_table(has_ids, self.wanted.get(organism), organism)
            self._tables[organism, has_ids] = own, used
        return self._tables[organism, has_ids]

    def _match(self, part: NamedGenes) -> tuple[MatchedNames, list[str]]:
        own, table = self._tables_of(part.organism, part.genes.are_ids)
        if table is None:
            return MatchedNames(part.genes), []
        names, of_vocabulary = part.genes.names, self.wanted.get(part.organism)
        ids, ambiguous = table.match(names)
        missing = set(ids).difference(table.symbols)
        if of_vocabulary is not None:
            if part.organism not in self._renamings:
                self._renamings[part.organism] = _Renaming.of(of_vocabulary, table)
            ids = self._renamings[part.organism].apply(names, ids)
            missing = missing.intersection(ids).difference(of_vocabulary)
        if own is not None:
            _check_table(part, len(set(ids)), len(missing), len(own.symbols), self.min_overlap)
        return MatchedNames(part.genes.renamed(ids), ambiguous), sorted(missing)


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
        f"{min_overlap:.1%} is needed; its genes look like {', '.join(part.genes.first)}; give another table, "
        "correct the organism, or lower min_overlap"
    )
