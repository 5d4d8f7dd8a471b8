"""Stretches of a collection's rows that are read in one go: a source by itself, or the sources of a store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import NotCountsError, SourceFormatError
from scdataloader.genes.alignment import AlignedSource
from scdataloader.kernels.rows.align import BAD_INDEX, OK, align_rows
from scdataloader.runtime.read_ahead import read_ahead
from scdataloader.store.gene_tables import GeneTables
from scdataloader.store.reader import Located, Store, StoreSource
from scdataloader.types import CSRMatrix, RowBuffers


class Reading(Protocol):
    """Some cells, found and about to be read."""

    @property
    def part(self) -> NDArray[np.int32]:
        """``(m,)`` the part of the collection that each is of, by number."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """``(m,)`` how many entries each takes at most; where files have to be decoded, this reads them."""

    def slice(self, start: int, stop: int) -> Reading:
        """The cells from ``start`` to ``stop`` of these."""

    def read_ahead(self) -> None:
        """Ask the disk for them, where they lie in mapped files and are not in memory."""

    def write(self, place: NDArray[np.int64], slots: RowBuffers) -> None:
        """Write them, in vocabulary genes, into the slots ``place`` (m,)."""


class Segment(Protocol):
    """Rows that are read together."""

    @property
    def n_obs(self) -> int:
        """How many."""

    @property
    def n_parts(self) -> int:
        """Parts of the collection that these are."""

    @property
    def is_mixed(self) -> bool:
        """Whether cells of several parts lie between each other."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of its cells and their order."""

    @property
    def reads_cheaply(self) -> bool:
        """Whether small reads cost no more per cell than large ones."""

    def find(self, rows: NDArray[np.int64]) -> Reading:
        """Where ``rows`` lie, numbered from 0 in the segment."""

    def joined(self, pieces: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        """What each of its parts has of its cells, in the order of the rows."""


class PartSegment:
    """One part of a collection, read through its source."""

    n_parts = 1
    is_mixed = False

    def __init__(self, part: AlignedSource, number: int, n_genes: int) -> None:
        """``number`` is that of the part, ``n_genes`` the length of the vocabulary."""
        self._part, self._number, self._n_genes = part, number, n_genes
        self.n_obs = part.n_obs

    @property
    def reads_cheaply(self) -> bool:
        """As the source says, or else where its matrix is addressable."""
        source = self._part.source
        cheap: bool = getattr(source, "reads_cheaply", getattr(source, "matrix", None) is not None)
        return cheap

    @property
    def fingerprint(self) -> str:
        """That of the source."""
        return self._part.source.fingerprint

    def find(self, rows: NDArray[np.int64]) -> PartReading:
        """Rows of the whole matrix, where the source has it in memory; others are read when their sizes are asked."""
        local = rows if self._part.rows is None else self._part.rows[rows]
        return PartReading(self._part, self._number, self._n_genes, local)

    def joined(self, pieces: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        """The one piece that there is."""
        return pieces[0]


class PartReading:
    """Cells of one source."""

    def __init__(self, part: AlignedSource, number: int, n_genes: int, local: NDArray[np.int64]) -> None:
        """The cells ``local`` of the source of ``part``, which has this ``number``."""
        self._part, self._number, self._n_genes, self._local = part, number, n_genes, local

    @property
    def part(self) -> NDArray[np.int32]:
        """The same for all."""
        return np.full(len(self._local), self._number, np.int32)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Of the rows as stored."""
        matrix, take = self._rows
        return matrix.indptr[take + 1] - matrix.indptr[take]

    @cached_property
    def _rows(self) -> tuple[CSRMatrix, NDArray[np.int64]]:
        """A matrix in memory and the rows of it: the whole one, or just what was read for these cells."""
        source = self._part.source
        matrix: CSRMatrix | None = getattr(source, "matrix", None)
        if matrix is not None:
            return matrix, self._local
        read = source.read(self._local)
        return CSRMatrix(indptr=read.indptr, indices=read.indices, data=read.data), np.arange(len(self._local))

    def slice(self, start: int, stop: int) -> PartReading:
        """Some of these cells."""
        return PartReading(self._part, self._number, self._n_genes, self._local[start:stop])

    def read_ahead(self) -> None:
        """Ask for genes and values, where these are mapped."""
        if getattr(self._part.source, "matrix", None) is not None:
            matrix, take = self._rows
            for values in (matrix.indices, matrix.data):
                address = values.ctypes.data + values.itemsize * matrix.indptr[take]
                read_ahead(address, values.itemsize * self.sizes)

    def write(self, place: NDArray[np.int64], slots: RowBuffers) -> None:
        """Look up, sort where need be, and write.

        Raises:
            NotCountsError: a value is no count.
            SourceFormatError: a gene number is out of range.
        """
        (matrix, take), genes = self._rows, self._part.genes
        status, at = align_rows(
            matrix.indptr,
            matrix.indices,
            matrix.data,
            take,
            genes.lut,
            self._n_genes,
            genes.monotone,
            matrix.counts_only,
            place,
            slots.starts,
            slots.indices,
            slots.data,
            slots.sizes,
            slots.depth,
        )
        if status != OK:
            self._refuse(int(self._local[at]), status)

    def _refuse(self, row: int, status: int) -> None:
        source = self._part.source
        # The source's own reader finds the value and can say more about it.
        source.read(np.array([row]))
        if status == BAD_INDEX:
            last = len(self._part.genes.lut) - 1
            raise SourceFormatError(f"cell {row} of {source.name} has a gene number outside 0 … {last}")
        raise NotCountsError(f"cell {row} of {source.name} has a value that is no count")


class StoreSegment:
    """Cells of a store: all of it, or those that are meant of some of its sources.

    The whole of a store, and any choice from one that mixes its sources, is in the store's order of cells: what is
    close by in rows is close by on disk.
    """

    reads_cheaply = True

    def __init__(self, parts: Sequence[AlignedSource], first: int, n_genes: int) -> None:
        """``first`` is the number of the first of ``parts``, ``n_genes`` the length of the vocabulary."""
        sources = [part.source for part in parts if isinstance(part.source, StoreSource)]
        self._parts, self._sources, self._first = parts, sources, first
        self._store = sources[0].store
        self.n_parts = len(parts)
        self.is_mixed = self._store.is_mixed
        luts, places = [part.genes.lut for part in parts], [source.places for source in sources]
        self._genes = GeneTables(luts, places, n_genes)
        self.n_obs = sum(part.n_obs for part in parts)
        self._is_whole = sources == self._store.sources and all(part.rows is None for part in parts)

    @property
    def fingerprint(self) -> str:
        """That of the store."""
        return self._store.fingerprint

    def find(self, rows: NDArray[np.int64]) -> StoreReading:
        """Where in the mapped files the records of ``rows`` lie."""
        if self._is_whole:
            found = self._store.locate(rows)
            return StoreReading(found, self._store.sources_of(found), self._first, self._genes)
        cells, part, _ = self._chosen
        return StoreReading(self._store.locate(cells[rows]), part[rows].astype(np.int64), self._first, self._genes)

    def joined(self, pieces: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        """One after the other, or, where the store mixes its sources, each at the rows of its own cells."""
        if not self.is_mixed:
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if not self._is_whole:
            return np.concatenate(pieces)[self._chosen[2]]
        out = np.empty(self.n_obs, np.result_type(*pieces))
        for source, piece in zip(self._sources, pieces, strict=True):
            out[source.rows] = piece
        return out

    @cached_property
    def _chosen(self) -> tuple[NDArray[np.int64], NDArray[np.integer], NDArray[np.int64] | slice]:
        """Of a choice: the cell of the store in each row, the part that it is of, and the rows' order among the parts.

        Each is ``(n_obs,)``; parts are numbered from 0 here, and their cells, for the order, part after part.
        """
        of_parts = [
            source.rows if part.rows is None else source.rows[part.rows]
            for part, source in zip(self._parts, self._sources, strict=True)
        ]
        cells = np.concatenate(of_parts)
        numbers = np.arange(self.n_parts, dtype=np.min_scalar_type(self.n_parts))
        part = np.repeat(numbers, [len(own) for own in of_parts])
        order = np.argsort(cells) if self.is_mixed else slice(None)
        return cells[order], part[order], order


class StoreReading:
    """Records of a store."""

    def __init__(self, found: Located, part: NDArray[np.int64], first: int, genes: GeneTables) -> None:
        """``part`` (m,) says which look-up table of ``genes`` is for which record; table 0 is of part ``first``."""
        self._found, self._part, self._first, self._genes = found, part, first, genes
        self.sizes = found.size

    @property
    def part(self) -> NDArray[np.int32]:
        """By number in the collection."""
        return (self._part + self._first).astype(np.int32)

    def slice(self, start: int, stop: int) -> StoreReading:
        """Some of these cells, as views."""
        return StoreReading(self._found.slice(start, stop), self._part[start:stop], self._first, self._genes)

    def read_ahead(self) -> None:
        """Ask for the records."""
        read_ahead(self._found.address, self._found.length)

    def write(self, place: NDArray[np.int64], slots: RowBuffers) -> None:
        """Decode, look up and write in one pass."""
        self._found.store.decode(self._found, self._part, self._genes, place, slots)


def segments(parts: Sequence[AlignedSource], n_genes: int) -> list[Segment]:
    """The segments of a collection: successive parts that are of one store are one, any other part is one."""
    made: list[Segment] = []
    first = 0
    for store, group in groupby(parts, key=_store_of):
        members = list(group)
        if store is not None:
            made.append(StoreSegment(members, first, n_genes))
        else:
            made += [PartSegment(part, number, n_genes) for number, part in enumerate(members, first)]
        first += len(members)
    return made


def _store_of(part: AlignedSource) -> Store | None:
    return part.source.store if isinstance(part.source, StoreSource) else None
