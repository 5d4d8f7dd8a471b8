"""Readers of CSR and dense matrices that are mapped into memory, or decoded chunk by chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdataloader.kernels.rows import gather
from scdataloader.protocols import TakePart
from scdataloader.runtime.memory import BufferPool
from scdataloader.sources.arrays.arrays import ChunkedArray, read_only
from scdataloader.sources.arrays.fetch import ChunkCache, ChunkRequest, fetch
from scdataloader.sources.arrays.mapped import Pieces
from scdataloader.types import CSRMatrix

_INDICES, _DATA = 0, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRows:
    """Rows in the order they were requested, their entries in stored order, not checked yet."""

    indptr: NDArray[np.int64]
    """``(n_rows + 1,)`` offsets."""
    indices: NDArray[Any]
    """``(nnz,)`` gene numbers, of any dtype of integers."""
    data: NDArray[Any]
    """``(nnz,)`` values."""
    flags: int
    """Findings of the kernels; see `gather.FLAGS`."""

    def row_of(self, at: int) -> int:
        """The row that entry ``at`` belongs to."""
        return int(np.searchsorted(self.indptr, at, side="right")) - 1

    def in_order(self) -> CSRMatrix:
        """The rows with genes ascending and repeated genes summed; the arrays are changed in place."""
        if self.flags & gather.UNSORTED:
            gather.sort_rows(self.indptr, self.indices, self.data)
        nnz = self.indptr[-1]
        return CSRMatrix(data=self.data[:nnz], indices=self.indices[:nnz], indptr=self.indptr)


class Reader(ABC):
    """Reads rows of one matrix. Thread-safe."""

    is_mapped: bool = True
    """Whether a row can be read without decoding its neighbours."""

    @property
    def matrix(self) -> CSRMatrix | None:
        """The whole matrix, if it can be addressed in memory."""
        return None

    @property
    def indptr(self) -> NDArray[np.int64] | None:
        """``(n_obs + 1,)`` offsets of the cells; None for a dense matrix."""
        return None

    @abstractmethod
    def read(self, rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike = np.float32) -> StoredRows:
        """Valid ``rows`` in that order, without the zeros of a dense matrix.

        Args:
            rows: Row numbers.
            buffers: Where the memory of the result is taken from.
            dtype: Of the values.
        """


class DenseReader(Reader):
    """A `Reader` of a dense matrix."""

    @abstractmethod
    def read_dense(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """``(len(rows), n_columns)`` values as they are stored."""


class MappedCSR(Reader):
    """A CSR matrix whose arrays are mapped into memory, each in one piece or in several."""

    def __init__(self, indptr: NDArray[np.int64], indices: Pieces, data: Pieces, n_genes: int) -> None:
        """``indptr`` has been checked against the sizes of the other two."""
        self._indptr, self._indices, self._data, self._n_genes = indptr, indices, data, n_genes
        self._matrix = None
        if len(indices.begins) == len(data.begins) == 1:
            self._matrix = CSRMatrix(indptr=indptr, indices=indices.values, data=data.values)

    @property
    def matrix(self) -> CSRMatrix | None:
        """As `Reader.matrix`."""
        return self._matrix

    @property
    def indptr(self) -> NDArray[np.int64]:
        """As `Reader.indptr`."""
        return self._indptr

    def read(self, rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike = np.float32) -> StoredRows:
        """As `Reader.read`."""
        indptr, indices, data = empty_rows(self._indptr, rows, buffers, dtype)
        flags = 0
        for pieces, n_genes, out in ((self._indices, self._n_genes, indices), (self._data, None, data)):
            flags |= gather.take_rows(
                self._indptr, pieces.values, pieces.begins, pieces.length, rows, n_genes, indptr, out
            )
        return StoredRows(indptr=indptr, indices=indices, data=data, flags=flags)


class ChunkedCSR(Reader):
    """A CSR matrix of which an array has to be decoded chunk by chunk."""

    is_mapped = False

    def __init__(self, indptr: NDArray[np.int64], indices: ChunkedArray, data: ChunkedArray, n_genes: int) -> None:
        """``indptr`` has been checked against the sizes of the other two."""
        self._indptr, self._indices, self._data, self._n_genes = indptr, indices, data, n_genes
        self._cache = ChunkCache[NDArray[Any]]()

    @property
    def indptr(self) -> NDArray[np.int64]:
        """As `Reader.indptr`."""
        return self._indptr

    def read(self, rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike = np.float32) -> StoredRows:
        """As `Reader.read`. Every chunk is decoded once for all rows in it."""
        offsets, indices, data = empty_rows(self._indptr, rows, buffers, dtype)
        order = np.argsort(rows, kind="stable")
        order = order[offsets[order + 1] > offsets[order]]
        ranges = self._indptr[rows[order]], self._indptr[rows[order] + 1], offsets[order]
        genes = _request(self._indices, _INDICES, ranges, self._n_genes, indices)
        values = _request(self._data, _DATA, ranges, None, data)
        flags = fetch([genes, values], self._cache)
        # Rows that span several chunks are compared only within each of them.
        if not flags & gather.UNSORTED and not gather.rows_ascend(offsets, indices):
            flags |= gather.UNSORTED
        return StoredRows(indptr=offsets, indices=indices, data=data, flags=flags)

    @property
    def has_parts(self) -> bool:
        """Whether `read_parts` can be used: both arrays have the same chunks."""
        return self._indices.chunk_shape == self._data.chunk_shape

    def read_parts(self, rows: NDArray[np.int64], take: TakePart) -> int:
        """As `ReadsParts.read_parts`, of valid rows; returns flags of the rows that are in several chunks.

        These are put together, and passed on last; all others are passed on as they are in a decoded chunk.
        """
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        starts, stops = self._indptr[ordered], self._indptr[ordered + 1]
        length = self._indices.chunk_shape[0]
        is_empty, is_split = starts == stops, starts // length < (stops - 1) // length
        split = self._split(ordered[is_split])
        targets = np.zeros(len(order), np.int64)
        targets[is_split] = split.indptr[:-1]
        if is_empty.any():
            nothing = CSRMatrix(indptr=np.zeros(2, np.int64), indices=split.indices[:0], data=split.data[:0])
            take(nothing, np.zeros(np.count_nonzero(is_empty), np.int64), order[is_empty])
            order, ordered, starts, stops, targets, is_split = (
                values[~is_empty] for values in (order, ordered, starts, stops, targets, is_split)
            )
        chunks = _Chunks.of(starts, stops, length, self._indices.grid[0])

        def consume(i: int, genes: NDArray[Any], values: NDArray[Any]) -> int:
            begin, first, last = int(chunks.begins[i]), chunks.first[i], chunks.last[i]
            here, flags = np.arange(first, last), 0
            parts = is_split[first:last]
            if parts.any():
                of_split = here[parts]
                ranges = starts[of_split], stops[of_split], targets[of_split]
                flags |= int(gather.scatter_rows(genes, begin, *ranges, self._n_genes, split.indices))
                flags |= int(gather.scatter_rows(values, begin, *ranges, None, split.data))
                here = here[~parts]
            if len(here):
                cells = ordered[here]
                indptr = self._indptr[cells[0] : cells[-1] + 2] - begin
                take(CSRMatrix(indptr=indptr, indices=genes, data=values), cells - cells[0], order[here])
            return flags

        arrays = (self._indices, self._data)
        request = ChunkRequest(arrays=arrays, key=_INDICES, numbers=chunks.numbers, sizes=chunks.sizes, consume=consume)
        flags = fetch([request], self._cache)
        if is_split.any():
            take(split, np.arange(len(split.indptr) - 1), order[is_split])
        return flags

    def _split(self, rows: NDArray[np.int64]) -> CSRMatrix:
        """Room for rows that are in several chunks."""
        indptr = np.empty(len(rows) + 1, np.int64)
        total = gather.row_offsets(self._indptr, rows, indptr)
        return CSRMatrix(indptr=indptr, indices=np.empty(total, np.int32), data=np.empty(total, self._data.dtype))


def empty_rows(
    indptr: NDArray[np.int64], rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[Any]]:
    """Offsets of rows, and memory for their gene numbers and values."""
    offsets = np.empty(len(rows) + 1, np.int64)
    total = gather.row_offsets(indptr, rows, offsets)
    return offsets, buffers.take(total, np.int32), buffers.take(total, dtype)


_Ranges = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Where rows start and stop in the stored arrays, ascending, and where they begin in the output."""


class _Chunks(NamedTuple):
    """The chunks of a one-dimensional array that hold some ranges of it."""

    numbers: NDArray[np.int64]
    begins: NDArray[np.int64]
    """First place of each."""
    sizes: NDArray[np.int64]
    """Values that are needed of each, from its first on."""
    first: NDArray[np.int64]
    """First of the ranges in each."""
    last: NDArray[np.int64]
    """End of the ranges in each."""

    @classmethod
    def of(cls, starts: NDArray[np.int64], stops: NDArray[np.int64], length: int, n_chunks: int) -> _Chunks:
        """The chunks of ``length`` values that hold the ranges, which ascend and are not empty."""
        edges = np.bincount(starts // length, minlength=n_chunks + 1)
        edges -= np.bincount((stops - 1) // length + 1, minlength=n_chunks + 1)
        numbers = np.flatnonzero(np.cumsum(edges[:-1]) > 0)
        begins = numbers * length
        first = np.searchsorted(stops, begins, side="right")
        last = np.searchsorted(starts, begins + length, side="left")
        return cls(numbers, begins, np.minimum(stops[last - 1] - begins, length), first, last)


def _request(array: ChunkedArray, key: int, ranges: _Ranges, n_genes: int | None, out: NDArray[Any]) -> ChunkRequest:
    """A request for the chunks of a one-dimensional array that hold the ranges; ``n_genes`` is that of the kernel."""
    starts, stops, targets = ranges
    chunks = _Chunks.of(starts, stops, array.chunk_shape[0], array.grid[0])

    def consume(i: int, values: NDArray[Any]) -> int:
        inside = slice(chunks.first[i], chunks.last[i])
        ranges = starts[inside], stops[inside], targets[inside]
        return int(gather.scatter_rows(values, int(chunks.begins[i]), *ranges, n_genes, out))

    return ChunkRequest(arrays=(array,), key=key, numbers=chunks.numbers, sizes=chunks.sizes, consume=consume)


class MappedDense(DenseReader):
    """A dense matrix that is mapped into memory."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = read_only(values)

    def read(self, rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike = np.float32) -> StoredRows:
        """As `Reader.read`."""
        return _nonzero(self._values, rows, buffers, dtype)

    def read_dense(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """As `DenseReader.read_dense`."""
        return self._values[rows]


class ChunkedDense(DenseReader):
    """A dense matrix that has to be decoded chunk by chunk; a band is a row of chunks."""

    is_mapped = False

    def __init__(self, array: ChunkedArray) -> None:
        self._array, self._cache = array, ChunkCache[NDArray[Any]]()

    def read(self, rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike = np.float32) -> StoredRows:
        """As `Reader.read`. No more than a band per thread is in memory with its zeros."""
        nothing = read_only(np.empty((0, self._array.shape[1]), np.float32))
        bands = [_nonzero(nothing, rows[:0], buffers, dtype)] * len(np.unique(rows // self._array.chunk_shape[0]))

        def take_band(band: int, block: NDArray[Any], _: NDArray[np.int64]) -> int:
            bands[band] = _nonzero(read_only(block), np.arange(len(block)), buffers, dtype)
            return bands[band].flags

        back = self._read_bands(rows, take_band)
        return joined(bands, back, buffers, dtype)

    def read_dense(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """As `DenseReader.read_dense`."""
        out = np.empty((len(np.unique(rows)), self._array.shape[1]), self._array.dtype)

        def take_band(_: int, block: NDArray[Any], place: NDArray[np.int64]) -> int:
            out[place] = block
            return 0

        return out[self._read_bands(rows, take_band)]

    def _read_bands(
        self, rows: NDArray[np.int64], take_band: Callable[[int, NDArray[Any], NDArray[np.int64]], int]
    ) -> NDArray[np.int64]:
        """Decode every chunk once, and pass on the rows of each band.

        Args:
            rows: Row numbers.
            take_band: Called from any thread with the number of a band, its requested rows in full width, ascending
                and without repeats, and their places among the requested rows of all bands.

        Returns:
            ``(len(rows),)`` where each of ``rows`` is among them.
        """
        cells, back = np.unique(rows, return_inverse=True)
        bands, first = np.unique(cells // self._array.chunk_shape[0], return_index=True)
        edges = np.append(first, len(cells))
        across = self._array.grid[1]
        blocks: dict[int, NDArray[Any]] = {}

        def consume(i: int, values: NDArray[Any]) -> int:
            band, column = divmod(i, across)
            place = np.arange(edges[band], edges[band + 1])
            inside = cells[place] - bands[band] * self._array.chunk_shape[0]
            block = blocks[band] = self._place(blocks.get(band), inside, column, values)
            if column < across - 1:
                return 0
            flags = take_band(band, block, place)
            del blocks[band]
            return flags

        height, width = self._array.chunk_shape
        numbers = (bands[:, None] * across + np.arange(across)).reshape(-1)
        sizes = np.repeat((cells[edges[1:] - 1] - bands * height + 1) * width, across)
        request = ChunkRequest(arrays=(self._array,), key=0, numbers=numbers, sizes=sizes, consume=consume, unit=across)
        fetch([request], self._cache)
        return back.astype(np.int64)

    def _place(
        self, block: NDArray[Any] | None, inside: NDArray[np.int64], column: int, values: NDArray[Any]
    ) -> NDArray[Any]:
        """Copy rows ``inside`` of one chunk into the block of full rows of their band."""
        width, n_genes = self._array.chunk_shape[1], self._array.shape[1]
        if block is None:
            block = np.empty((len(inside), n_genes), values.dtype)
        start = column * width
        block[:, start : start + width] = values.reshape(-1, width)[inside, : n_genes - start]
        return block


def _nonzero(block: NDArray[Any], rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike) -> StoredRows:
    indptr = np.empty(len(rows) + 1, np.int64)
    total = gather.count_nonzero(block, rows, indptr)
    indices, data = buffers.take(total, np.int32), buffers.take(total, dtype)
    flags = gather.take_nonzero(block, rows, indptr, indices, data)
    return StoredRows(indptr=indptr, indices=indices, data=data, flags=flags)


def joined(parts: list[StoredRows], order: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike) -> StoredRows:
    """The rows of all parts, one part after the other, then taken in ``order``."""
    if not parts:
        return StoredRows(indptr=np.zeros(1, np.int64), indices=np.empty(0, np.int32), data=np.empty(0, dtype), flags=0)
    sizes = np.concatenate([np.diff(part.indptr) for part in parts])
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    indices = np.concatenate([part.indices for part in parts])
    data = np.concatenate([part.data for part in parts])
    n_genes = int(indices.max(initial=-1)) + 1
    return MappedCSR(indptr, Pieces.one(indices), Pieces.one(data), n_genes).read(order, buffers, dtype)
