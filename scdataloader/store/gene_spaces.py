"""Gene spaces: lists of gene ids that sources of a store share, so that a gene has one number in all their records.

A gene space is a list of unique gene ids, sorted as Python sorts text. A conversion goes through its sources from most
genes to fewest, and in the order in which they are named if they have equally many:

1. In an append, a source takes the first space of the store that has all of its genes. These spaces never change.
2. Otherwise it takes the first new space that has at least half of its genes, to which its other genes are added.
3. Otherwise it starts a new space of its genes.

Sources with different parts of one annotation thus share a space of all their genes; other organisms, and symbols
instead of Ensembl ids, have separate spaces. The result depends on the gene lists and their order alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self
from weakref import ReferenceType, ref

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError
from scdataloader.kernels.records.decode import COMPLETE, GENES_ONLY, IN_ORDER, SHIFTED, LookUpTables
from scdataloader.kernels.rows.align import NOT_A_GENE
from scdataloader.runtime.mirror import Mirror
from scdataloader.store.manifest import SpaceRecord
from scdataloader.store.tables import Table

GENE = "gene"
"""The only column of a gene space."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenePlaces:
    """Positions of the genes of a source in its gene space, which are their numbers in records."""

    place: NDArray[np.int32]
    """``(n_genes,)`` ascending."""
    n_space: int
    """Number of genes of the space."""

    @classmethod
    def all_of(cls, n_space: int) -> Self:
        """Positions of a source that has all genes of the space."""
        return cls(place=np.arange(n_space, dtype=np.int32), n_space=n_space)

    def spread(self, values: NDArray[Any], foreign: object) -> NDArray[Any]:
        """``(n_space,)`` the ``values`` ``(n_genes,)`` by gene of the space; ``foreign`` for genes the source lacks."""
        table = np.full(self.n_space, foreign, values.dtype)
        table[self.place] = values
        return table


class GeneTable(Table):
    """A gene table of a store, which sources share; kept as long as one uses it."""

    _frame: ReferenceType[pd.DataFrame] | None = None

    @property
    def frame(self) -> pd.DataFrame:
        """All columns, one row for each gene.

        Raises:
            StoreFormatError: the table is damaged.
        """
        frame = None if self._frame is None else self._frame()
        if frame is None:
            frame = self.read()
            self._frame = ref(frame)
        return frame


class GeneSpace:
    """A gene space of a store; its ids are read when they are first needed."""

    def __init__(self, folder: Path, record: SpaceRecord, mirror: Mirror | None = None) -> None:
        self.n_genes = record.n_genes
        self._table = Table(folder, record.file, mirror)
        self._ids: pd.Index | None = None
        self._places: dict[Path, GenePlaces] = {}

    def read(self) -> pd.Index:
        """``(n_genes,)`` unique gene ids, sorted as Python sorts text.

        Raises:
            StoreFormatError: the file is damaged, or not a gene space.
        """
        if self._ids is None:
            frame = self._table.read(n_rows=self.n_genes)
            ids = pd.Index(frame.get(GENE, [None]))
            refuse_unsorted(self._table, ids)
            self._ids = ids
        return self._ids

    def places(self, table: GeneTable) -> GenePlaces:
        """Positions of the genes of a table; cached.

        Raises:
            StoreFormatError: some are not in the space, or they are not sorted, or a file is damaged.
        """
        if table.path not in self._places:
            ids = table.frame.index
            refuse_unsorted(table, ids)
            place = self.read().get_indexer(ids)
            if (place < 0).any():
                missing, where = ids[int(np.argmin(place))], self._table.path
                raise StoreFormatError(
                    f"{table.path} has the gene {missing!r}, which is not in its gene space, {where.parent.name}/"
                    f"{where.name}; copy or convert the store again"
                )
            self._places[table.path] = GenePlaces(place=place.astype(np.int32), n_space=self.n_genes)
        return self._places[table.path]


def refuse_unsorted(table: Table, ids: pd.Index) -> None:
    """Check that the gene ids of a table are text, unique, and sorted as Python sorts text.

    Raises:
        StoreFormatError: they are not.
    """
    if not (set(map(type, ids)) <= {str} and ids.is_monotonic_increasing and ids.is_unique):
        raise StoreFormatError(f"{table.path} has gene ids that are not text, not sorted, or not unique")


class GeneTables:
    """Vocabulary numbers of the genes of several sources, for one compiled loop over cells of all of them.

    Whatever gene of its space a record has, its table has an entry below the vocabulary's length. A gene that the
    source lacks, which undamaged records do not have, gets the number of another gene, or -1.
    """

    def __init__(self, luts: Sequence[NDArray[np.int32]], places: Sequence[GenePlaces], n_genes: int) -> None:
        """Build tables for sources p, whose gene g is at ``places[p].place[g]`` of its space.

        ``luts[p][g]`` is its number in a vocabulary of ``n_genes``, or negative; see `ReadsTogether.open_group`.
        """
        tables: list[NDArray[np.int32]] = []
        how, number, of_source = [], dict[tuple[int, bytes], int](), []
        done: dict[tuple[int, int], int] = {}
        for lut, own in zip(luts, places, strict=True):
            key = id(lut), id(own)
            if key not in done:  # thousands of sources may share genes, or a table
                flags = _how(lut, own, n_genes)
                table = _table(lut, own, flags)
                done[key] = number.setdefault((flags, blake2b(table.data).digest()), len(tables))
                if done[key] == len(tables):
                    tables.append(table)
                    how.append(flags)
            of_source.append(done[key])
        self.of_source = np.array(of_source, np.int64)
        """``(P,)`` table of each source."""
        self.look_up = LookUpTables(
            luts=np.concatenate([*tables, np.empty(0, np.int32)]),
            start=np.cumsum([0, *map(len, tables)], dtype=np.int64),
            how=np.array(how, np.uint8),
            n_genes=n_genes,
        )


def _how(lut: NDArray[np.int32], own: GenePlaces, n_genes: int) -> int:
    kept, shift = lut[lut >= 0], lut - own.place
    in_order = bool((np.diff(kept) > 0).all())
    complete = 0 < len(kept) == len(lut)
    shifted = complete and bool((shift == shift[0]).all() and 0 <= shift[0] <= n_genes - own.n_space)
    genes_only = bool((lut == NOT_A_GENE).any())
    return IN_ORDER * in_order | COMPLETE * complete | SHIFTED * shifted | GENES_ONLY * genes_only


def _table(lut: NDArray[np.int32], own: GenePlaces, how: int) -> NDArray[np.int32]:
    """``(n_space,)`` vocabulary number of each gene of the space."""
    numbers = np.arange(own.n_space, dtype=np.int32)
    if how & SHIFTED:
        shifted: NDArray[np.int32] = numbers + (lut[0] - own.place[0])
        return shifted
    if how & COMPLETE and how & IN_ORDER:  # the decoder does not test these entries for -1
        return lut[np.maximum(np.searchsorted(own.place, numbers, side="right") - 1, 0)]
    return own.spread(lut, -1)


class GeneNumbers:
    """Unique gene ids of many sources, numbered in the order in which they first occur."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._number)

    def numbers(self, ids: Iterable[str]) -> NDArray[np.int32]:
        """``(n,)`` the number of each id; new ids get new numbers."""
        number = self._number
        return np.array([number.setdefault(gene, len(number)) for gene in ids], np.int32)

    def sorted(self, numbers: NDArray[np.integer]) -> tuple[list[str], NDArray[np.int64]]:
        """The ids of some numbers, sorted as text, and their numbers in that order."""
        ids = list(self._number)
        order = sorted(numbers.tolist(), key=ids.__getitem__)
        return [ids[number] for number in order], np.array(order, np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceSelection:
    """Gene spaces of the sources of a conversion."""

    new: list[list[str]]
    """Sorted ids of each new space."""
    of_source: tuple[int, ...]
    """Space of each source; spaces of the store that is appended to come first, then the new ones."""
    n_genes: list[int]
    """Number of genes of the space of each source."""
    ranks: list[NDArray[np.int32]]
    """Of each source ``(n_genes,)`` positions of its genes in its space; sources with equal genes share an array."""

    @property
    def digests(self) -> tuple[str, ...]:
        """Digest of the ids of each new space, which names its file."""
        return tuple(blake2b(json.dumps(ids).encode(), digest_size=16).hexdigest() for ids in self.new)


def choose_spaces(
    names: GeneNumbers, sources: Sequence[NDArray[np.int32]], fixed_ids: Sequence[Sequence[str]] = ()
) -> SpaceSelection:
    """Choose by the rule in the module's docstring.

    Args:
        names: The ids behind the numbers in ``sources``.
        sources: Genes of each source, in its own order.
        fixed_ids: Ids of the spaces of the store that is appended to.
    """
    fixed = [names.numbers(ids) for ids in fixed_ids]
    has = [_marked(genes, len(names)) for genes in fixed]
    of_source = [0] * len(sources)
    for number in sorted(range(len(sources)), key=lambda number: -len(sources[number])):
        genes = sources[number]
        at = _first_fit(has, len(fixed), genes)
        if at == len(has):
            has.append(np.zeros(len(names), np.bool_))
        has[at][genes] = True  # a fixed space has them all
        of_source[number] = at
    new = [names.sorted(np.flatnonzero(marked)) for marked in has[len(fixed) :]]
    place: list[NDArray[np.int32]] = []
    orders: list[NDArray[np.integer]] = [*fixed, *(numbers for _, numbers in new)]
    for order in orders:
        place.append(np.zeros(len(names), np.int32))
        place[-1][order] = np.arange(len(order), dtype=np.int32)
    ranks: dict[tuple[int, int], NDArray[np.int32]] = {}
    for at, genes in zip(of_source, sources, strict=True):
        if (at, id(genes)) not in ranks:
            ranks[at, id(genes)] = place[at][genes]
    return SpaceSelection(
        new=[ids for ids, _ in new],
        of_source=tuple(of_source),
        n_genes=[int(has[at].sum()) for at in of_source],
        ranks=[ranks[at, id(genes)] for at, genes in zip(of_source, sources, strict=True)],
    )


def _first_fit(has: Sequence[NDArray[np.bool_]], n_fixed: int, genes: NDArray[np.int32]) -> int:
    """The first space that a source may take; ``len(has)`` for a new one."""
    for at, marked in enumerate(has):
        n_shared = int(np.count_nonzero(marked[genes]))
        if n_shared == len(genes) if at < n_fixed else 2 * n_shared >= len(genes):
            return at
    return len(has)


def _marked(numbers: NDArray[np.int32], n: int) -> NDArray[np.bool_]:
    marked = np.zeros(n, np.bool_)
    marked[numbers] = True
    return marked
