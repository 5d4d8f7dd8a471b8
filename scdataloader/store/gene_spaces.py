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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from weakref import ReferenceType, ref

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError
from scdataloader.genes.features import genes_of
from scdataloader.genes.names import gene_names, without_version
from scdataloader.genes.numbers import GeneNumbers
from scdataloader.kernels.records.decode import COMPLETE, GENES_ONLY, IN_ORDER, SHIFTED, LookUpTables
from scdataloader.kernels.rows.align import NOT_A_GENE
from scdataloader.runtime.mirror import Mirror
from scdataloader.store.manifest import FileRecord, Manifest, SpaceRecord, file_record
from scdataloader.store.tables import Table, write_table
from scdataloader.types import GenePlaces

GENE = "gene"
"""The only column of a gene space."""


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
        self._names: tuple[str, ...] | None = None
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

    @property
    def names(self) -> tuple[str, ...]:
        """The ids, as one object.

        Raises:
            StoreFormatError: as `read`.
        """
        if self._names is None:
            self._names = tuple(self.read())
        return self._names

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
            self._places[table.path] = GenePlaces.of(place, self.n_genes)
        return self._places[table.path]


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedGenes:
    """What a gene index states of a gene table."""

    places: GenePlaces
    """Positions of its genes in the gene space."""
    are_names: bool
    """Whether its gene ids are the names of the genes; else these are in a column, or some features are not genes."""


class GeneIndex:
    """The genes of the gene tables of a store, so that opening reads a file in place of all these tables."""

    def __init__(self, folder: Path, manifest: Manifest, mirror: Mirror | None = None) -> None:
        self._tables = [Table(folder, record, mirror) for record in manifest.gene_index]
        self._n_genes = [space.n_genes for space in manifest.spaces]
        self._found: dict[tuple[str, int], IndexedGenes] | None = None

    def read(self) -> dict[tuple[str, int], IndexedGenes]:
        """{(digest of a gene table, gene space of its sources): its genes}; cached.

        Raises:
            StoreFormatError: a file is damaged.
        """
        if self._found is None:
            found: dict[tuple[str, int], IndexedGenes] = {}
            for table in self._tables:
                frame = table.read()
                if list(frame.columns) != _INDEX_COLUMNS:
                    raise StoreFormatError(f"{table.path} is not a gene index: it has the columns {[*frame.columns]}")
                rows = zip(*(frame[column].tolist() for column in _INDEX_COLUMNS), strict=True)
                found |= {row[:2]: self._parsed(table, *row) for row in rows}
            self._found = found
        return self._found

    def _parsed(self, table: Table, digest: object, space: object, genes: object, are_names: object) -> IndexedGenes:
        is_known = isinstance(space, int) and 0 <= space < len(self._n_genes)
        n = self._n_genes[space] if is_known and isinstance(space, int) else 0
        packed = np.frombuffer(genes if isinstance(genes, bytes) else b"", np.uint8)
        is_whole = len(packed) == -(-n // 8) and not (n % 8 and packed[-1] >> n % 8)
        if not is_known or not is_whole or not isinstance(are_names, bool):
            raise StoreFormatError(f"{table.path} is not a gene index: its row of gene table {digest!r} is wrong")
        return IndexedGenes(places=GenePlaces(packed=packed, n_space=n), are_names=are_names)


def are_names(var: pd.DataFrame, source: str) -> bool:
    """Whether the ids of a gene table are the names of its genes, and all its features are genes.

    ``source`` is the name of the source in messages.
    """
    genes, left_out = genes_of(var, source)
    return left_out is None and without_version(gene_names(genes, source=source)) == without_version(var.index)


_INDEX_COLUMNS = ["table", "space", "genes", "are_names"]


def write_index(folder: Path, genes: Mapping[tuple[str, int], IndexedGenes]) -> FileRecord:
    """Write a gene index into a store, with what `GeneIndex.read` returns.

    Raises:
        WriteError: the file cannot be written.
    """
    rows = [(*key, one.places.packed.tobytes(), one.are_names) for key, one in genes.items()]
    digest = blake2b(repr(rows).encode(), digest_size=16).hexdigest()
    path = f"genes/{digest}.parquet"
    write_table(folder, path, pd.DataFrame(rows, columns=_INDEX_COLUMNS), path)
    return file_record(folder, path)


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

    Sources with different genes share a table if their genes have the same numbers wherever they share them.
    """

    def __init__(self, luts: Sequence[NDArray[np.int32]], places: Sequence[GenePlaces], n_genes: int) -> None:
        """Build tables for sources p, whose gene g is at ``places[p].place[g]`` of its space.

        ``luts[p][g]`` is its number in a vocabulary of ``n_genes``, or negative; see `ReadsTogether.open_group`.
        """
        made: list[_SharedTable] = []
        of_source: list[int] = []
        before: tuple[NDArray[np.int32], GenePlaces] | None = None
        for lut, own in zip(luts, places, strict=True):
            is_same = before is not None and before[0] is lut and before[1] is own  # as for thousands of sources
            of_source.append(of_source[-1] if is_same else _shared_table(made, lut, own, n_genes))
            before = lut, own
        self.of_source = np.array(of_source, np.int64)
        """``(P,)`` table of each source."""
        tables = [table.finished() for table in made]
        self.look_up = LookUpTables(
            luts=np.concatenate([*tables, np.empty(0, np.int32)]),
            start=np.cumsum([0, *map(len, tables)], dtype=np.int64),
            how=np.array([table.how for table in made], np.uint8),
            n_genes=n_genes,
        )


_OPEN = -3
"""Entry of a gene that no source has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _SharedTable:
    """A table of sources of one gene space, all with the same flags."""

    how: int
    numbers: NDArray[np.int32]
    """``(n_space,)`` vocabulary number of each gene, or `_OPEN`."""

    def takes(self, how: int, lut: NDArray[np.int32], place: NDArray[np.int64], n_space: int) -> bool:
        """Take the genes of a source, unless one of them has another number here."""
        if how != self.how or n_space != len(self.numbers):
            return False
        there = self.numbers[place]
        if not ((there == lut) | (there == _OPEN)).all():
            return False
        self.numbers[place] = lut
        return True

    def finished(self) -> NDArray[np.int32]:
        """The table, with a number for each gene."""
        is_open = self.numbers == _OPEN
        numbers = np.arange(len(self.numbers), dtype=np.int32)
        if self.how & SHIFTED:
            at = int(np.argmin(is_open))
            shifted: NDArray[np.int32] = numbers + (self.numbers[at] - at)
            return shifted
        if self.how & COMPLETE and self.how & IN_ORDER:  # the decoder does not test these entries for -1
            last = np.maximum.accumulate(np.where(is_open, int(np.argmin(is_open)), numbers))
            return self.numbers[last]
        return np.where(is_open, np.int32(-1), self.numbers)


def _shared_table(made: list[_SharedTable], lut: NDArray[np.int32], own: GenePlaces, n_genes: int) -> int:
    """The number of the table that takes a source: one of the last of ``made``, or a new one that is added."""
    place = own.place
    how = _how(lut, place, own.n_space, n_genes)
    for number in range(len(made) - 1, max(-1, len(made) - 1 - _N_TRIED), -1):
        if made[number].takes(how, lut, place, own.n_space):
            return number
    made.append(_SharedTable(how=how, numbers=np.full(own.n_space, _OPEN, np.int32)))
    made[-1].takes(how, lut, place, own.n_space)
    return len(made) - 1


_N_TRIED = 16


def _how(lut: NDArray[np.int32], place: NDArray[np.int64], n_space: int, n_genes: int) -> int:
    is_kept = lut >= 0
    complete = len(lut) > 0 and bool(is_kept.all())
    kept = lut if complete else lut[is_kept]
    in_order = bool((kept[1:] > kept[:-1]).all())
    shift = int(lut[0] - place[0]) if complete else -1
    shifted = 0 <= shift <= n_genes - n_space and bool((lut - place == shift).all())
    genes_only = not complete and bool((lut == NOT_A_GENE).any())
    return IN_ORDER * in_order | COMPLETE * complete | SHIFTED * shifted | GENES_ONLY * genes_only


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
