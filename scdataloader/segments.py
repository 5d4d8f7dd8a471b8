"""Stretches of a collection's rows that are read in one go: a source by itself, or all the sources of a store."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scdataloader.alignment import Part
from scdataloader.buffers import Slots
from scdataloader.errors import NotCountsError, SourceFormatError
from scdataloader.kernels.align import BAD_INDEX, OK, align_rows
from scdataloader.read_ahead import read_ahead
from scdataloader.store.gene_tables import GeneTables
from scdataloader.store.reader import Located, Store, StoreSource
from scdataloader.types import CSRMatrix


class Reading(Protocol):
    """Some cells, found and about to be written into slots."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """``(m,)`` how many entries each takes at most."""

    @property
    def part(self) -> NDArray[np.int64]:
        """``(m,)`` the part of the collection that each is of, by number."""

    def write(self, place: NDArray[np.int64], slots: Slots) -> None:
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

    def read_ahead(self, rows: NDArray[np.int64]) -> None:
        """Ask the disk for ``rows``, where they lie in mapped files and are not in memory."""

    def find(self, rows: NDArray[np.int64]) -> Reading:
        """Begin to read ``rows``, numbered from 0 in the segment."""

    def joined(self, pieces: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        """What each of its parts has of its cells, in the order of the rows."""


class PartSegment:
    """One part of a collection, read through its source."""

    n_parts = 1
    is_mixed = False

    def __init__(self, part: Part, number: int, n_genes: int) -> None:
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

    def read_ahead(self, rows: NDArray[np.int64]) -> None:
        """Ask the disk for the genes and values of ``rows``, where these are mapped."""
        matrix: CSRMatrix | None = getattr(self._part.source, "matrix", None)
        if matrix is not None:
            local = rows if self._part.rows is None else self._part.rows[rows]
            first = matrix.indptr[local]
            sizes = matrix.indptr[local + 1] - first
            for values in (matrix.indices, matrix.data):
                read_ahead(values.ctypes.data + values.itemsize * first, values.itemsize * sizes)

    def find(self, rows: NDArray[np.int64]) -> PartReading:
        """The whole matrix, where the source has it in memory, or just what is read for ``rows``."""
        part = self._part
        local = rows if part.rows is None else part.rows[rows]
        matrix: CSRMatrix | None = getattr(part.source, "matrix", None)
        take = local
        if matrix is None:
            read = part.source.read(local)
            matrix = CSRMatrix(indptr=read.indptr, indices=read.indices, data=read.data)
            take = np.arange(len(local))
        return PartReading(part, self._number, self._n_genes, matrix, take, local)

    def joined(self, pieces: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        """The one piece that there is."""
        return pieces[0]


class PartReading:
    """Rows of a matrix in memory."""

    def __init__(
        self,
        part: Part,
        number: int,
        n_genes: int,
        matrix: CSRMatrix,
        take: NDArray[np.int64],
        local: NDArray[np.int64],
    ) -> None:
        """Rows ``take`` of ``matrix``, which are the cells ``local`` of the source."""
        self._part, self._n_genes, self._matrix, self._take, self._local = part, n_genes, matrix, take, local
        self.sizes = matrix.indptr[take + 1] - matrix.indptr[take]
        self.part = np.full(len(take), number, np.int64)

    def write(self, place: NDArray[np.int64], slots: Slots) -> None:
        """Look up, sort where need be, and write.

        Raises:
            NotCountsError: a value is no count.
            SourceFormatError: a gene number is out of range.
        """
        matrix, genes = self._matrix, self._part.genes
        status, at = align_rows(
            matrix.indptr,
            matrix.indices,
            matrix.data,
            self._take,
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
    """All sources of a store, in the store's order of cells."""

    reads_cheaply = True

    def __init__(self, parts: Sequence[Part], first: int, n_genes: int) -> None:
        """``first`` is the number of the first of ``parts``, ``n_genes`` the length of the vocabulary."""
        self._sources = [part.source for part in parts if isinstance(part.source, StoreSource)]
        self._store = self._sources[0].store
        self._first = first
        self.n_parts = len(parts)
        self.is_mixed = self._store.is_mixed
        luts, places = [part.genes.lut for part in parts], [source.places for source in self._sources]
        self._genes = GeneTables(luts, places, n_genes)
        self.n_obs = self._store.n_obs

    @property
    def fingerprint(self) -> str:
        """That of the store."""
        return self._store.fingerprint

    def read_ahead(self, rows: NDArray[np.int64]) -> None:
        """Ask the disk for the records of ``rows``."""
        found = self._store.locate(rows)
        read_ahead(found.address, found.length)

    def find(self, rows: NDArray[np.int64]) -> StoreReading:
        """Where in the mapped files the records of ``rows`` lie."""
        found = self._store.locate(rows)
        return StoreReading(found, self._store.sources_of(found), self._first, self._genes)

    def joined(self, pieces: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        """One after the other, or, where the store mixes its sources, each at the rows of its own cells."""
        if not self.is_mixed:
            return np.concatenate(pieces)
        out = np.empty(self.n_obs, np.result_type(*pieces))
        for source, piece in zip(self._sources, pieces, strict=True):
            out[source.rows] = piece
        return out


class StoreReading:
    """Records of a store."""

    def __init__(self, found: Located, source: NDArray[np.int64], first: int, genes: GeneTables) -> None:
        """``source`` (m,) says which look-up table of ``genes`` is for which record."""
        self._found, self._source, self._genes = found, source, genes
        self.sizes = found.size
        self.part = source + first

    def write(self, place: NDArray[np.int64], slots: Slots) -> None:
        """Decode, look up and write in one pass."""
        self._found.store.decode(self._found, self._source, self._genes, place, slots)


def segments(parts: Sequence[Part], n_genes: int) -> list[Segment]:
    """The segments of a collection: a store whose sources are all there, in order and whole, is one; a part is one."""
    made: list[Segment] = []
    first = 0
    for store, group in groupby(parts, key=_store_of):
        members = list(group)
        whole = [part.source for part in members if part.rows is None]
        if store is not None and whole == store.sources:
            made.append(StoreSegment(members, first, n_genes))
        else:
            made += [PartSegment(part, number, n_genes) for number, part in enumerate(members, first)]
        first += len(members)
    return made


def _store_of(part: Part) -> Store | None:
    return part.source.store if isinstance(part.source, StoreSource) else None
