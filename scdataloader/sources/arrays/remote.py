"""Arrays in remote files: encoded chunks, and values that are not encoded, of which exactly the rows are fetched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.kernels.rows import gather
from scdataloader.runtime.memory import BufferPool
from scdataloader.runtime.mirror import Mirror
from scdataloader.sources.arrays.arrays import ChunkedArray, Extent, part_extents, read_only, strided
from scdataloader.sources.arrays.codecs import Buffer
from scdataloader.sources.arrays.matrices import Reader, StoredRows, empty_rows

_SLICE_BYTES = 1 << 16
"""Bytes of contiguous arrays that count as a chunk where more than some rows are read."""


@dataclass(frozen=True, slots=True, eq=False)
class RemoteFiles:
    """The `ChunkFiles` of a mirror."""

    mirror: Mirror
    is_local: ClassVar[bool] = False

    def size(self, path: str) -> int | None:
        """As `ChunkFiles.size`."""
        return self.mirror.n_bytes(path) if path in self.mirror else None

    def start(self, extents: Sequence[Extent | None]) -> None:
        """As `ChunkFiles.start`."""
        self.mirror.start(*self._ranges([extent for extent in extents if extent is not None]))

    def read(self, extents: Sequence[Extent | None]) -> Iterator[Buffer | None]:
        """As `ChunkFiles.read`; waits until all are there."""
        content, starts = self.mirror.copied(*self._ranges([extent for extent in extents if extent is not None]))
        begins = iter(starts.tolist())
        for extent in extents:
            if extent is None:
                yield None
            else:
                begin = next(begins)
                yield content[begin : begin + extent.size]

    def _ranges(self, extents: Sequence[Extent]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        for extent in extents:
            self.check_length(extent.path, extent.offset + extent.size)
        table = [(self.mirror.number(extent.path), extent.offset, extent.size) for extent in extents]
        file, begin, size = np.array(table, np.int64).reshape(-1, 3).T
        return file, begin, size

    def check_length(self, path: str, stop: int) -> None:
        """Check that a file does not end before byte ``stop``.

        Raises:
            SourceFormatError: it does.
        """
        n_bytes = self.mirror.n_bytes(path)
        if stop > n_bytes:
            raise SourceFormatError(
                f"{self.mirror.bucket.url_of(path)} is truncated: it has {n_bytes} bytes, expected {stop} or more; "
                "upload or write the file again"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainChunks:
    """Chunks of a remote file that are not encoded."""

    files: RemoteFiles
    """Reads the file."""
    path: str
    """The file."""
    offsets: NDArray[np.int64]
    """``(n_chunks,)`` first byte of each."""
    n_values: int
    """Values in a chunk."""
    dtype: np.dtype[Any]
    """Type of the values."""
    is_local: ClassVar[bool] = False

    def start(self, numbers: Sequence[int]) -> None:
        """As `Chunks.start`; the last chunk of a contiguous array may end with the file."""
        begin = self.offsets[np.asarray(numbers, np.int64)]
        mirror, size = self.files.mirror, self.n_values * self.dtype.itemsize
        length = np.minimum(size, mirror.n_bytes(self.path) - begin)
        mirror.start(np.full(len(begin), mirror.number(self.path)), begin, length)

    def load(self, numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[NDArray[Any]]:
        """As `Chunks.load`."""
        for raw in self.files.read([self._extent(*chunk) for chunk in zip(numbers, sizes, strict=True)]):
            assert raw is not None
            yield np.frombuffer(raw, self.dtype)

    def samples(self, numbers: Sequence[int], n_bytes: int) -> Iterator[bytes]:
        """The first and the last bytes."""
        parts = [part_extents(self._extent(number, self.n_values), n_bytes) for number in numbers]
        yield from _joined(self.files, parts)

    def start_values(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Start fetching the values ``[starts[i], stops[i])`` of an array of one axis."""
        self.files.mirror.start(*self._ranges(starts, stops))

    def values(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[Any]:
        """The values ``[starts[i], stops[i])`` of an array of one axis, range after range."""
        return self.files.mirror.copied(*self._ranges(starts, stops))[0].view(self.dtype)

    def _ranges(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(file, first byte, bytes) of ranges, divided where chunks begin."""
        first = starts // self.n_values
        n_parts = np.where(stops > starts, (stops - 1) // self.n_values - first + 1, 0)
        of = np.repeat(np.arange(len(starts)), n_parts)
        chunk = first[of] + np.arange(len(of)) - np.repeat(np.cumsum(n_parts) - n_parts, n_parts)
        begin = np.maximum(starts[of], chunk * self.n_values)
        end = np.minimum(stops[of], (chunk + 1) * self.n_values)
        at = self.offsets[chunk] + (begin - chunk * self.n_values) * self.dtype.itemsize
        return np.full(len(at), self.files.mirror.number(self.path)), at, (end - begin) * self.dtype.itemsize

    def _extent(self, number: int, n_values: int) -> Extent:
        return Extent(path=self.path, offset=int(self.offsets[number]), size=n_values * self.dtype.itemsize)


@dataclass(frozen=True, kw_only=True, slots=True)
class ContiguousArray(ChunkedArray):
    """A contiguous array in a remote file, sampled as a mapped one."""

    @classmethod
    def at(
        cls, files: RemoteFiles, path: str, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> ContiguousArray:
        """The array at byte ``offset`` of a file.

        Raises:
            SourceFormatError: the file ends before the array does.
        """
        width = math.prod(shape[1:])
        files.check_length(path, offset + shape[0] * width * dtype.itemsize)
        step = 1 if len(shape) > 1 else _SLICE_BYTES // dtype.itemsize
        n_values = step * width
        offsets = offset + np.arange(-(-shape[0] // step)) * n_values * dtype.itemsize
        chunks = PlainChunks(files=files, path=path, offsets=offsets, n_values=n_values, dtype=dtype)
        return cls(shape=shape, chunk_shape=(step, *shape[1:]), dtype=dtype, chunks=chunks)

    def sample(self, n_places: int, n_bytes: int) -> Iterator[bytes]:
        """As `MappedArray.sample`."""
        chunks, piece, size = self.chunks, n_bytes // self.dtype.itemsize, math.prod(self.shape)
        assert isinstance(chunks, PlainChunks)
        parts = []
        for number in strided(-(-size // piece), n_places):
            begin, end = number * piece, min((number + 1) * piece, size)
            at, item = int(chunks.offsets[0]), self.dtype.itemsize
            parts.append([Extent(path=chunks.path, offset=at + begin * item, size=(end - begin) * item)])
        yield from _joined(chunks.files, parts)


class PlainCSR(Reader):
    """A CSR matrix in a remote file whose arrays are not encoded: the values of the rows are fetched, and no others."""

    def __init__(self, indptr: NDArray[np.int64], indices: PlainChunks, data: PlainChunks, n_genes: int) -> None:
        """``indptr`` has been checked against the sizes of the other two."""
        self._indptr, self._indices, self._data, self._n_genes = indptr, indices, data, n_genes

    @property
    def indptr(self) -> NDArray[np.int64]:
        """As `Reader.indptr`."""
        return self._indptr

    def read(self, rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike = np.float32) -> StoredRows:
        """As `Reader.read`. What all rows need is fetched together."""
        offsets, indices, data = empty_rows(self._indptr, rows, buffers, dtype)
        ranges, own, flags = (self._indptr[rows], self._indptr[rows + 1]), np.arange(len(rows)), 0
        self._indices.start_values(*ranges)
        self._data.start_values(*ranges)
        first = np.zeros(1, np.int64)
        for array, n_genes, out in ((self._indices, self._n_genes, indices), (self._data, None, data)):
            values = read_only(array.values(*ranges))
            flags |= gather.take_rows(offsets, values, first, max(1, len(values)), own, n_genes, offsets, out)
        return StoredRows(indptr=offsets, indices=indices, data=data, flags=flags)


def _joined(files: RemoteFiles, parts: Sequence[Sequence[Extent]]) -> Iterator[bytes]:
    """The bytes of the extents of each part, fetched together."""
    files.start([extent for part in parts for extent in part])
    for part in parts:
        yield b"".join(bytes(piece) for piece in files.read(part) if piece is not None)
