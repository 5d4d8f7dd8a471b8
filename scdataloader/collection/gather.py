"""Groups of a collection's rows that are read in one go: one source, or the sources of one store."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import groupby
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import NotCountsError, SourceFormatError
from scdataloader.genes.alignment import AlignedSource
from scdataloader.genes.vocabulary import GeneMap
from scdataloader.kernels.rows.align import BAD_INDEX, OK, align_rows, scratch_size
from scdataloader.protocols import (
    HasMatrix,
    HasReadCost,
    ReadCost,
    ReadGroup,
    ReadsParts,
    ReadsTogether,
    Source,
    SourceSelection,
)
from scdataloader.runtime.memory import BufferPool
from scdataloader.runtime.read_ahead import read_ahead
from scdataloader.sources.contract import check_unchanged, stored_rows_of
from scdataloader.types import CSRMatrix, RowBuffers

_SCRATCH = BufferPool()
_MAPPED = ReadCost(cell=2.0, neighbour=2.0)
_UNKNOWN = ReadCost(cell=100.0, neighbour=2.0)
"""A source that states no cost is read in large windows."""


def matrix_of(source: Source) -> CSRMatrix | None:
    """The whole matrix of a source; None if it cannot be addressed in memory."""
    return source.matrix if isinstance(source, HasMatrix) else None


def write_aligned(
    matrix: CSRMatrix,
    take: NDArray[np.int64],
    genes: GeneMap,
    n_genes: int,
    place: NDArray[np.int64],
    rows: RowBuffers,
) -> tuple[int, int]:
    """Write rows ``take`` of a matrix, in vocabulary genes, into the slots ``place``; returns as `align_rows` does."""
    status, at = align_rows(
        matrix.indptr,
        matrix.indices,
        matrix.data,
        take,
        genes.lut,
        n_genes,
        genes.monotone,
        matrix.counts_only,
        genes.genes_only,
        place,
        rows.starts,
        rows.indices,
        rows.data,
        rows.sizes,
        rows.depth,
        _SCRATCH.take(scratch_size(n_genes, genes.lut), np.float32),
    )
    return status, at


class SourceGroup:
    """Read group of a single source."""

    is_interleaved = False

    def __init__(self, source: AlignedSource, n_genes: int) -> None:
        """``n_genes`` is the length of the vocabulary."""
        self._source, self._n_genes = source, n_genes

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the source."""
        return self._source.source.fingerprint

    @property
    def read_cost(self) -> ReadCost:
        """As the source states; otherwise by whether its matrix is in memory."""
        source = self._source.source
        if isinstance(source, HasReadCost):
            return source.read_cost
        return _UNKNOWN if matrix_of(source) is None else _MAPPED

    def arrange(self, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The values of the only member."""
        return values[0]

    def locate(self, rows: NDArray[np.int64]) -> SourceRead:
        """Rows of the matrix in memory; rows of other sources are read when their sizes are needed."""
        return SourceRead(self._source, self._n_genes, rows if self._source.rows is None else self._source.rows[rows])


class SourceRead:
    """Cells of one source that are not read yet."""

    def __init__(
        self,
        source: AlignedSource,
        n_genes: int,
        rows: NDArray[np.int64],
        part_of: tuple[SourceRead, int] | None = None,
    ) -> None:
        """Note what to read.

        Args:
            source: The source.
            n_genes: Length of the vocabulary.
            rows: Numbers of the cells in the source.
            part_of: A larger read that has these cells from a place on, and is read as a whole.
        """
        self._source, self._n_genes, self._rows = source, n_genes, rows
        self._part_of = part_of
        # Not cached_property: before Python 3.12, its lock would let one read at a time be made, of all sources.
        self._lock = threading.RLock()
        self._known: tuple[CSRMatrix, NDArray[np.int64]] | None = None
        self._found: tuple[NDArray[np.int64], ReadsParts | None] | None = None

    @property
    def member(self) -> NDArray[np.integer[Any]]:
        """Always 0."""
        return np.zeros(len(self._rows), np.int8)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Sizes of the rows as stored."""
        return self._sizes_and_parts[0]

    @property
    def _sizes_and_parts(self) -> tuple[NDArray[np.int64], ReadsParts | None]:
        """Sizes of the rows as stored, and the source if it can read these rows in parts."""
        with self._lock:
            if self._found is None:
                self._found = self._find_sizes()
            return self._found

    def _find_sizes(self) -> tuple[NDArray[np.int64], ReadsParts | None]:
        source = self._source.source
        if isinstance(source, ReadsParts) and matrix_of(source) is None:
            sizes = source.stored_sizes(self._rows)
            if sizes is not None:
                return sizes, source
        matrix, take = self._stored
        return matrix.indptr[take + 1] - matrix.indptr[take], None

    @property
    def _stored(self) -> tuple[CSRMatrix, NDArray[np.int64]]:
        """A matrix in memory and the row numbers of the cells in it: the whole matrix, or one read for these cells."""
        with self._lock:
            if self._known is None:
                self._known = self._find_stored()
            return self._known

    def _find_stored(self) -> tuple[CSRMatrix, NDArray[np.int64]]:
        if self._part_of is not None:
            whole, start = self._part_of
            return whole.read_once(), np.arange(start, start + len(self._rows))
        matrix = matrix_of(self._source.source)
        if matrix is not None:
            return matrix, self._rows
        # As stored: aligning takes any dtype, and sorts by vocabulary genes anyway.
        return stored_rows_of(self._source.source, self._rows), np.arange(len(self._rows))

    def read_once(self) -> CSRMatrix:
        """The cells as stored; of several threads, the first one reads them."""
        return self._stored[0]

    def slice(self, start: int, stop: int) -> SourceRead:
        """Some of the cells; where neighbours are much faster to read together, all are read with the first slice."""
        whole, before = self._part_of or (self, 0)
        part_of = (whole, before + start) if self._is_steep else None
        return SourceRead(self._source, self._n_genes, self._rows[start:stop], part_of)

    @property
    def _is_steep(self) -> bool:
        source = self._source.source
        return isinstance(source, HasReadCost) and source.read_cost.is_steep and matrix_of(source) is None

    def read_ahead(self) -> None:
        """Start loading genes and values if they are memory-mapped; read the cells if they are read as a whole."""
        if self._is_steep:
            self.read_once()
        if matrix_of(self._source.source) is None:
            return
        matrix, take = self._stored
        for values in (matrix.indices, matrix.data):
            address = values.ctypes.data + values.itemsize * matrix.indptr[take]
            read_ahead(address, values.itemsize * self.sizes)

    def write(self, place: NDArray[np.int64], rows: RowBuffers) -> None:
        """Renumber genes, sort if necessary, and write.

        Raises:
            NotCountsError: a value is not a count.
            SourceChangedError: the file has changed since it was opened.
            SourceFormatError: a gene number is out of range.
        """
        faults: list[tuple[int, int]] = []

        def write(matrix: CSRMatrix, take: NDArray[np.int64], which: NDArray[np.int64] | None = None) -> None:
            slots = place if which is None else place[which]
            status, at = write_aligned(matrix, take, self._source.genes, self._n_genes, slots, rows)
            if status != OK:
                faults.append((at if which is None else int(which[at]), status))

        _, parts = self._sizes_and_parts
        if parts is None:
            write(*self._stored)
        else:
            parts.read_parts(self._rows, write)
        check_unchanged(self._source.source)
        for at, status in faults:
            self._refuse(int(self._rows[at]), status)

    def _refuse(self, row: int, status: int) -> None:
        source = self._source.source
        source.read(np.array([row]))  # the reader of the source raises an error with more details
        if status == BAD_INDEX:
            last = len(self._source.genes.lut) - 1
            raise SourceFormatError(f"cell {row} of {source.name} has a gene number outside 0 to {last}")
        raise NotCountsError(f"cell {row} of {source.name} has a value that is not a count")


def open_groups(sources: Sequence[AlignedSource], n_genes: int) -> list[tuple[ReadGroup, int]]:
    """The groups of a collection, in order, each with its number of sources.

    Consecutive sources of one `ReadsTogether.read_group` are one group; any other source is a separate group.
    """
    groups: list[tuple[ReadGroup, int]] = []
    for _, run in groupby(sources, key=_group_of):
        members = list(run)
        first = members[0].source
        if isinstance(first, ReadsTogether):
            selections = [SourceSelection(source=member.source, rows=member.rows) for member in members]
            groups.append((first.open_group(selections, _LookUpTables(members), n_genes), len(members)))
        else:
            groups += [(SourceGroup(member, n_genes), 1) for member in members]
    return groups


class _LookUpTables(Sequence[NDArray[np.int32]]):
    """``luts`` of a group, which are created when they are needed: thousands of them take gigabytes.

    Neighbouring members with the same genes have the same object.
    """

    def __init__(self, members: Sequence[AlignedSource]) -> None:
        self._members = members
        self._last: tuple[GeneMap, NDArray[np.int32]] | None = None

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, at: int) -> NDArray[np.int32]: ...
    @overload
    def __getitem__(self, at: slice) -> list[NDArray[np.int32]]: ...
    def __getitem__(self, at: int | slice) -> NDArray[np.int32] | list[NDArray[np.int32]]:
        if isinstance(at, slice):
            return [self[number] for number in range(len(self))[at]]
        genes = self._members[at].genes
        if self._last is None or self._last[0] is not genes:
            self._last = genes, genes.lut
        return self._last[1]


def _group_of(member: AlignedSource) -> object:
    source = member.source
    return (type(source), source.read_group) if isinstance(source, ReadsTogether) else None
