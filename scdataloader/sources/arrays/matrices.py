"""From stored sparse matrices to rows: one reader for each way in which one can lie on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdataloader.kernels.rows import gather
from scdataloader.runtime.memory import BufferPool
from scdataloader.sources.arrays.arrays import ChunkedArray, MappedArray
from scdataloader.sources.arrays.fetch import ChunkCache, Wanted, fetch
from scdataloader.sources.arrays.mapped import FlatChunks
from scdataloader.types import CSRMatrix

_DATA, _INDICES = 0, 1
_WINDOW = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """Rows as they are stored, in the order asked for, not yet judged."""

    indptr: NDArray[np.int64]
    """``(n_rows + 1,)`` offsets."""
    indices: NDArray[np.int32]
    """``(nnz,)`` gene numbers."""
    data: NDArray[Any]
    """``(nnz,)`` values, of the dtype asked for."""
    flags: int
    """What the kernels found; see `gather.FLAGS`."""

    def row_of(self, at: int) -> int:
        """The row that value ``at`` is in."""
        return int(np.searchsorted(self.indptr, at, side="right")) - 1


class Reader(Protocol):
    """Reads rows of one matrix."""

    @property
    def matrix(self) -> CSRMatrix | None:
        """The whole matrix, where it can be addressed in memory."""

    @property
    def indptr(self) -> NDArray[np.int64] | None:
        """``(n_obs + 1,)`` offsets of the cells; None for a dense matrix."""

    @property
    def reads_cheaply(self) -> bool:
        """Whether small reads cost no more per cell than large ones."""

    def read(self, rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike = np.float32) -> Gathered:
        """``rows``, which have to exist, in that order, with values of ``dtype``, in memory from ``buffers``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MappedCSR:
    """A CSR matrix addressable in memory."""

    matrix: CSRMatrix
    """The matrix; ``indptr`` has been checked against the sizes of the other two."""
    n_genes: int
    """Its width."""
    reads_cheaply: bool = True
    """Nothing has to be decoded."""

    @property
    def indptr(self) -> NDArray[np.int64]:
        """As `Reader.indptr`."""
        return self.matrix.indptr

    def read(self, rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike = np.float32) -> Gathered:
        """As `Reader.read`."""
        stored = self.matrix
        indptr, indices, data = _empty_rows(stored.indptr, rows, buffers, dtype)
        flags = gather.take_rows(stored.indptr, stored.indices, stored.data, rows, self.n_genes, indptr, indices, data)
        return Gathered(indptr=indptr, indices=indices, data=data, flags=flags)


def _empty_rows(
    indptr: NDArray[np.int64], rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[Any]]:
    offsets = np.empty(len(rows) + 1, np.int64)
    total = gather.row_offsets(indptr, rows, offsets)
    return offsets, buffers.take(total, np.int32), buffers.take(total, dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkMappedCSR:
    """A CSR matrix whose values and gene numbers lie in a mapped file as they are, in pieces."""

    indptr: NDArray[np.int64]
    """``(n_obs + 1,)`` checked offsets."""
    indices: FlatChunks
    """``(nnz,)`` gene numbers."""
    data: FlatChunks
    """``(nnz,)`` values."""
    n_genes: int
    """Width of the matrix."""
    matrix: None = None
    """Not in one piece."""
    reads_cheaply: bool = True
    """Nothing has to be decoded."""

    def read(self, rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike = np.float32) -> Gathered:
        """As `Reader.read`."""
        offsets, indices, data = _empty_rows(self.indptr, rows, buffers, dtype)
        genes, values = self.indices, self.data
        flags = gather.take_chunked_genes(
            self.indptr, genes.values, genes.begins, genes.length, rows, self.n_genes, offsets, indices
        )
        flags |= gather.take_chunked_values(
            self.indptr, values.values, values.begins, values.length, rows, offsets, data
        )
        return Gathered(indptr=offsets, indices=indices, data=data, flags=flags)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkedCSR:
    """A CSR matrix whose values or gene numbers have to be decoded chunk by chunk."""

    indptr: NDArray[np.int64]
    """``(n_obs + 1,)`` checked offsets."""
    indices: ChunkedArray
    """``(nnz,)`` gene numbers."""
    data: ChunkedArray
    """``(nnz,)`` values."""
    n_genes: int
    """Width of the matrix."""
    cache: ChunkCache
    """Chunks decoded by earlier reads."""
    matrix: None = None
    """Never in memory."""
    reads_cheaply: bool = False
    """A chunk is decoded for a single cell too."""

    def read(self, rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike = np.float32) -> Gathered:
        """As `Reader.read`. Every chunk is decoded once for all rows that lie in it."""
        offsets, indices, data = _empty_rows(self.indptr, rows, buffers, dtype)
        stored = _StoredRanges.of(self.indptr, rows, offsets)
        values_parts = _plan(self.data, _DATA, stored, _value_scatter(data))
        genes_parts = _plan(self.indices, _INDICES, stored, _gene_scatter(indices, self.n_genes))
        flags = fetch([genes_parts, values_parts], self.cache)
        if not flags & gather.UNSORTED and not gather.rows_ascend(offsets, indices):
            flags |= gather.UNSORTED
        return Gathered(indptr=offsets, indices=indices, data=data, flags=flags)


@dataclass(frozen=True, kw_only=True, slots=True)
class _StoredRanges:
    """Where rows lie in the stored arrays and where they go, in stored order, without empty rows."""

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    targets: NDArray[np.int64]

    @classmethod
    def of(cls, indptr: NDArray[np.int64], rows: NDArray[np.int64], offsets: NDArray[np.int64]) -> _StoredRanges:
        order = np.argsort(rows, kind="stable")
        order = order[offsets[order + 1] > offsets[order]]
        return cls(starts=indptr[rows[order]], stops=indptr[rows[order] + 1], targets=offsets[order])


class _Scatter(Protocol):
    def __call__(
        self,
        chunk: NDArray[Any],
        begin: int,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        targets: NDArray[np.int64],
    ) -> int: ...


def _value_scatter(out: NDArray[Any]) -> _Scatter:
    def scatter(
        chunk: NDArray[Any],
        begin: int,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        targets: NDArray[np.int64],
    ) -> int:
        return int(gather.scatter_values(chunk, begin, starts, stops, targets, out))

    return scatter


def _gene_scatter(out: NDArray[np.int32], n_genes: int) -> _Scatter:
    def scatter(
        chunk: NDArray[Any],
        begin: int,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        targets: NDArray[np.int64],
    ) -> int:
        return int(gather.scatter_genes(chunk, begin, starts, stops, targets, n_genes, out))

    return scatter


def _plan(array: ChunkedArray, key: int, stored: _StoredRanges, scatter: _Scatter) -> Wanted:
    """Which chunks of a one-dimensional array hold the ranges, and which ranges lie in each chunk."""
    length, (n_chunks,) = array.chunk_shape[0], array.grid
    edges = np.bincount(stored.starts // length, minlength=n_chunks + 1)
    edges -= np.bincount((stored.stops - 1) // length + 1, minlength=n_chunks + 1)
    numbers = np.flatnonzero(np.cumsum(edges[:-1]) > 0)
    begins = numbers * length
    first = np.searchsorted(stored.stops, begins, side="right")
    last = np.searchsorted(stored.starts, begins + length, side="left")
    sizes = np.minimum(stored.stops[last - 1] - begins, length)

    def consume(i: int, values: NDArray[Any]) -> int:
        inside = slice(first[i], last[i])
        return scatter(values, int(begins[i]), stored.starts[inside], stored.stops[inside], stored.targets[inside])

    return Wanted(array=array, key=key, numbers=numbers, sizes=sizes, consume=consume)


def whole(array: ChunkedArray | MappedArray) -> NDArray[Any]:
    """All values of a one-dimensional array, in memory."""
    if isinstance(array, MappedArray):
        return array.values
    (n_chunks,), length = array.grid, array.chunk_shape[0]
    out = np.empty(array.shape, array.dtype)
    sizes = [min(length, array.shape[0] - i * length) for i in range(n_chunks)]
    for i, values in enumerate(array.load(range(n_chunks), sizes)):
        out[i * length : i * length + sizes[i]] = values[: sizes[i]]
    return out


def pieces(array: ChunkedArray | MappedArray, size: int) -> Iterator[NDArray[Any]]:
    """The values of a one-dimensional array in order, ``size`` at a time, the last fewer; a chunk is decoded once."""
    if isinstance(array, MappedArray):
        yield from (array.values[start : start + size] for start in range(0, array.shape[0], size))
        return
    (n_chunks,), length = array.grid, array.chunk_shape[0]
    sizes = [min(length, array.shape[0] - i * length) for i in range(n_chunks)]
    out, n_filled = np.empty(size, array.dtype), 0
    for values, n_values in zip(array.load(range(n_chunks), sizes), sizes, strict=True):
        start = 0
        while start < n_values:
            n_more = min(n_values - start, size - n_filled)
            out[n_filled : n_filled + n_more] = values[start : start + n_more]
            start, n_filled = start + n_more, n_filled + n_more
            if n_filled == size:
                yield out
                out, n_filled = np.empty(size, array.dtype), 0
    yield out[:n_filled]
