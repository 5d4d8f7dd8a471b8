"""From stored dense matrices to rows without their zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdataloader.kernels.rows import gather
from scdataloader.runtime.memory import BufferPool
from scdataloader.sources.arrays.arrays import ChunkedArray
from scdataloader.sources.arrays.fetch import ChunkCache, Wanted, fetch
from scdataloader.sources.arrays.matrices import Gathered, MappedCSR
from scdataloader.types import CSRMatrix


@dataclass(frozen=True, kw_only=True, slots=True)
class MappedDense:
    """A dense matrix mapped into memory."""

    values: NDArray[Any]
    """``(n_obs, n_genes)`` values."""
    matrix: None = None
    """Not sparse."""
    indptr: None = None
    """Not sparse."""
    reads_cheaply: bool = True
    """Nothing has to be decoded."""

    def read(self, rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike = np.float32) -> Gathered:
        """As `Reader.read`, without the zeros."""
        return _nonzero(self.values, rows, buffers, dtype)


def _nonzero(block: NDArray[Any], rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike) -> Gathered:
    indptr = np.empty(len(rows) + 1, np.int64)
    total = gather.count_nonzero(block, rows, indptr)
    indices, data = buffers.take(total, np.int32), buffers.take(total, dtype)
    flags = gather.take_nonzero(block, rows, indptr, indices, data)
    return Gathered(indptr=indptr, indices=indices, data=data, flags=flags)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkedDense:
    """A dense matrix that has to be decoded chunk by chunk."""

    array: ChunkedArray
    """``(n_obs, n_genes)`` values."""
    cache: ChunkCache
    """Chunks decoded by earlier reads."""
    matrix: None = None
    """Not sparse."""
    indptr: None = None
    """Not sparse."""
    reads_cheaply: bool = False
    """A chunk is decoded for a single cell too."""

    def read(self, rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike = np.float32) -> Gathered:
        """As `Reader.read`, without the zeros. Every chunk is decoded once for all rows that lie in it."""
        cells, back = np.unique(rows, return_inverse=True)
        bands, first = np.unique(cells // self.array.chunk_shape[0], return_index=True)
        nothing = np.empty((0, self.array.shape[1]), np.float32)
        pieces: list[Gathered] = [_nonzero(nothing, rows[:0], buffers, dtype)] * len(bands)
        edges = np.append(first, len(cells))
        across = self.array.grid[1]
        blocks: dict[int, NDArray[Any]] = {}

        def consume(i: int, values: NDArray[Any]) -> int:
            band, column = divmod(i, across)
            inside = cells[edges[band] : edges[band + 1]] - bands[band] * self.array.chunk_shape[0]
            block = blocks[band] = self._place(blocks.get(band), inside, column, values)
            if column < across - 1:
                return 0
            pieces[band] = _nonzero(block, np.arange(len(inside)), buffers, dtype)
            del blocks[band]
            return pieces[band].flags

        height, width = self.array.chunk_shape
        numbers = (bands[:, None] * across + np.arange(across)).reshape(-1)
        sizes = np.repeat((cells[edges[1:] - 1] - bands * height + 1) * width, across)
        wanted = Wanted(array=self.array, key=0, numbers=numbers, sizes=sizes, consume=consume, unit=across)
        fetch([wanted], self.cache)
        return _joined(pieces, back.astype(np.int64), buffers, dtype)

    def _place(
        self, block: NDArray[Any] | None, inside: NDArray[np.int64], column: int, values: NDArray[Any]
    ) -> NDArray[Any]:
        """Put the wanted rows of one chunk into the block of full rows that its band makes up."""
        width, n_genes = self.array.chunk_shape[1], self.array.shape[1]
        if block is None:
            block = np.empty((len(inside), n_genes), values.dtype)
        start = column * width
        block[:, start : start + width] = values.reshape(-1, width)[inside, : n_genes - start]
        return block


def _joined(pieces: list[Gathered], order: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike) -> Gathered:
    """The rows of all pieces laid end to end, then taken in ``order``."""
    if not pieces:
        return Gathered(indptr=np.zeros(1, np.int64), indices=np.empty(0, np.int32), data=np.empty(0, dtype), flags=0)
    sizes = np.concatenate([np.diff(piece.indptr) for piece in pieces])
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    indices = np.concatenate([piece.indices for piece in pieces])
    data = np.concatenate([piece.data for piece in pieces])
    n_genes = int(indices.max(initial=-1)) + 1
    matrix = CSRMatrix(indptr=indptr, indices=indices, data=data)
    return MappedCSR(matrix=matrix, n_genes=n_genes).read(order, buffers, dtype)
