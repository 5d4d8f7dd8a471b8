"""Stored arrays: mapped into memory, or in chunks that have to be decoded."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.runtime.files import opening
from scdataloader.runtime.mapping import FileWatch
from scdataloader.sources.arrays.codecs import Buffer, Codecs

_SLICE_BYTES = 1 << 18
_HALF, _DOUBLE = 2, 8


def working_dtype(stored: np.dtype[Any], name: str) -> np.dtype[Any]:
    """The dtype that the kernels get for stored values of ``stored``: native bytes, no half floats, no bools.

    Raises:
        SourceFormatError: not a real number.
    """
    if stored.kind == "b":
        return np.dtype(np.uint8)
    if stored.kind == "f" and stored.itemsize == _HALF:
        return np.dtype(np.float32)
    if stored.kind not in "iuf" or stored.itemsize > _DOUBLE:
        raise SourceFormatError(
            f"{name} holds values of type {stored}, expected real numbers; write it again as numbers"
        )
    return stored.newbyteorder("=")


class ArrayForm(NamedTuple):
    """What is to be read of a stored array."""

    name: str
    """The file and the location, for messages."""
    dtype: np.dtype[Any]
    """Type of the values that are read."""
    shape: tuple[int, ...]
    """Shape of one or two axes: all but the first are one."""

    @classmethod
    def of(cls, array: Any, path: Path, location: str, dtype: np.dtype[Any] | None) -> Self:
        """The form of an array of h5py or zarr; ``dtype`` replaces its own.

        Raises:
            SourceFormatError: its values are not real numbers.
        """
        name = f"{path.name}: {location}"
        shape = (array.shape[0], math.prod(array.shape[1:])) if array.ndim > 1 else array.shape
        return cls(name, dtype or working_dtype(array.dtype, name), shape)


def read_only(values: NDArray[Any]) -> NDArray[Any]:
    """A view that cannot be written to. numba compiles a kernel twice if it gets both kinds of arrays."""
    view = values.view()
    view.flags.writeable = False
    return view


class Chunks(Protocol):
    """The chunks of an array."""

    @property
    def is_local(self) -> bool:
        """Whether nothing has to be fetched from another machine."""

    def load(self, numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yield the first ``sizes[i]`` values, or more, of each chunk ``numbers[i]``, flat."""

    def start(self, numbers: Sequence[int]) -> None:
        """Start fetching chunks, all together; returns at once. Not called if they are local."""

    def samples(self, numbers: Sequence[int], n_bytes: int) -> Iterator[bytes]:
        """Up to ``n_bytes`` bytes that depend on the content of each chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkedArray:
    """An array of one or two dimensions in equal chunks, numbered row by row over the grid."""

    shape: tuple[int, ...]
    """Shape of the array; the last chunk of an axis may reach beyond it."""
    chunk_shape: tuple[int, ...]
    """Shape of every chunk."""
    dtype: np.dtype[Any]
    """Type of the loaded values."""
    chunks: Chunks
    """The chunks."""
    worth_keeping: bool = True
    """Whether loading a chunk again costs more than a view of memory."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each axis."""
        return tuple(-(-n // step) for n, step in zip(self.shape, self.chunk_shape, strict=True))

    def load(self, numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[NDArray[Any]]:
        """As `Chunks.load`, of dtype ``dtype`` and read-only."""
        for values in self.chunks.load(numbers, sizes):
            yield read_only(values.astype(self.dtype, copy=False))

    def sample(self, n_places: int, n_bytes: int) -> Iterator[bytes]:
        """Bytes of ``n_places`` chunks, evenly strided over the array, or more of each of fewer chunks."""
        numbers = strided(math.prod(self.grid), n_places)
        if numbers:
            yield from self.chunks.samples(numbers, n_bytes * n_places // len(numbers))


@dataclass(frozen=True, kw_only=True, slots=True)
class MappedArray:
    """A contiguous array in a mapped file, or in memory."""

    values: NDArray[Any]
    """The values, usually a view of the map."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.values.dtype

    def as_chunks(self) -> ChunkedArray:
        """The same values as chunks that need no decoding."""
        step = max(1, _SLICE_BYTES // self.dtype.itemsize // math.prod(self.shape[1:]))
        array = library_array(self.shape, self.dtype, step, partial(nullcontext, self.values), "values in memory")
        return replace(array, worth_keeping=False)

    def sample(self, n_places: int, n_bytes: int) -> Iterator[bytes]:
        """``n_places`` pieces of the content, evenly strided."""
        flat = self.values.reshape(-1)
        piece = n_bytes // flat.itemsize
        for number in strided(-(-flat.size // piece), n_places):
            yield flat[number * piece : (number + 1) * piece].tobytes()


StoredArray = ChunkedArray | MappedArray


class Sampled(Protocol):
    """Stored values, as a fingerprint takes samples of them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""

    def sample(self, n_places: int, n_bytes: int) -> Iterator[bytes]:
        """Up to ``n_bytes`` bytes of each of ``n_places`` parts, evenly strided."""


def strided(n: int, places: int) -> Sequence[int]:
    """At most ``places`` numbers, evenly spread over ``range(n)``, with the first and the last."""
    return sorted({int(i) for i in np.linspace(0, n - 1, min(n, places))}) if n else []


def ends_of(offset: int, size: int, n_bytes: int) -> list[tuple[int, int]]:
    """[begin, end) of the first and the last bytes of a range, together at most ``n_bytes``."""
    if size <= n_bytes:
        return [(offset, offset + size)]
    return [(offset, offset + n_bytes // 2), (offset + size - n_bytes // 2, offset + size)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """A range of bytes in a file."""

    path: str
    """The file."""
    offset: int
    """First byte."""
    size: int
    """Number of bytes."""


class ChunkFiles(Protocol):
    """Files that hold encoded chunks."""

    @property
    def is_local(self) -> bool:
        """Whether nothing has to be fetched."""

    def size(self, path: str) -> int | None:
        """Bytes of a file; None if it was never written.

        Raises:
            SourceChangedError: it was written or removed after the folder was opened.
        """

    def start(self, extents: Sequence[Extent | None]) -> None:
        """Start fetching extents, all together; returns at once."""

    def read(self, extents: Sequence[Extent | None]) -> Iterator[Buffer | None]:
        """Yield the bytes of each extent; None for None.

        Raises:
            SourceChangedError: a file was written after it was opened.
            SourceFormatError: a file ends before an extent.
        """


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """The `ChunkFiles` of this machine."""

    watch: FileWatch | None = None
    """Of the folder that holds the files of the chunks; None if all are in one file, which its reader checks."""
    is_local: ClassVar[bool] = True

    def size(self, path: str) -> int | None:
        """As `ChunkFiles.size`."""
        file = Path(path)
        try:
            info = file.stat()
        except FileNotFoundError:
            there = next(parent for parent in file.parents if parent.exists())
            self._check(str(file), there.stat())
            return None
        self._check(path, info)
        return info.st_size

    def start(self, extents: Sequence[Extent | None]) -> None:
        """Nothing."""

    def read(self, extents: Sequence[Extent | None]) -> Iterator[Buffer | None]:
        """As `ChunkFiles.read`; a file is opened once for consecutive extents in it."""
        descriptor, opened = -1, None
        try:
            for extent in extents:
                if extent is None:
                    yield None
                    continue
                if extent.path != opened:
                    if descriptor >= 0:
                        os.close(descriptor)
                        descriptor = -1
                    descriptor, opened = self._open(extent.path), extent.path
                raw = os.pread(descriptor, extent.size, extent.offset)
                self._check(extent.path, os.fstat(descriptor))
                if len(raw) < extent.size:
                    raise SourceFormatError(
                        f"{extent.path} is truncated: {len(raw)} of {extent.size} bytes at byte {extent.offset}; "
                        "download or write the file again"
                    )
                yield raw
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _open(self, path: str) -> int:
        try:
            with opening(path):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.size(path)  # raises SourceChangedError if it was there when the folder was opened
            raise

    def _check(self, path: str, info: os.stat_result) -> None:
        if self.watch is not None:
            self.watch.check_part(path, info)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedChunks:
    """Chunks that are located and decoded without the library of the format."""

    name: str
    """Name of the array in messages."""
    n_values: int
    """Values in a chunk."""
    stored: np.dtype[Any]
    """Type of the decoded values."""
    codecs: Codecs
    """Decoder of the chunks."""
    fill: Any
    """Value of chunks that were never written; None if there must be no such chunks."""
    locate: Callable[[int], Extent | None]
    """The bytes of a chunk; None if it was never written."""
    files: ChunkFiles
    """The files that hold them."""

    @property
    def is_local(self) -> bool:
        """As `Chunks.is_local`."""
        return self.files.is_local

    def load(self, numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[NDArray[Any]]:
        """As `Chunks.load`."""
        extents = [self.locate(number) for number in numbers]
        for number, wanted, raw in zip(numbers, sizes, self.files.read(extents), strict=True):
            if raw is not None:
                yield self._decode(number, wanted, raw)
            elif self.fill is None:
                raise SourceFormatError(f"chunk {number} of {self.name} is missing; download or write the file again")
            else:
                yield np.full(self.n_values, self.fill, self.stored)

    def start(self, numbers: Sequence[int]) -> None:
        """As `Chunks.start`."""
        self.files.start([self.locate(number) for number in numbers])

    def samples(self, numbers: Sequence[int], n_bytes: int) -> Iterator[bytes]:
        """The first and the last of the encoded bytes; the last ones of some encodings are a checksum of all."""
        parts = [part_extents(self.locate(number), n_bytes) for number in numbers]
        self.files.start([extent for part in parts for extent in part])
        for part in parts:
            yield b"".join(bytes(piece) for piece in self.files.read(part) if piece is not None)

    def _decode(self, number: int, wanted: int, raw: Buffer) -> NDArray[Any]:
        item = self.stored.itemsize
        try:
            out = self.codecs.decode(raw, self.n_values * item, wanted * item)
        except ValueError as error:
            raise SourceFormatError(
                f"chunk {number} of {self.name} is damaged ({error}); download or write the file again"
            ) from error
        return np.frombuffer(out, self.stored, len(out) // item)


def part_extents(extent: Extent | None, n_bytes: int) -> list[Extent]:
    """The first and the last bytes of an extent, together at most ``n_bytes``; nothing of None."""
    ends = [] if extent is None else ends_of(extent.offset, extent.size, n_bytes)
    return [Extent(path=extent.path, offset=begin, size=end - begin) for begin, end in ends if extent is not None]


@dataclass(frozen=True, kw_only=True, slots=True)
class LibraryChunks:
    """Chunks that the library of the format slices out of the array, and fetches itself."""

    is_local: ClassVar[bool] = True

    name: str
    """Name of the array in messages."""
    n_rows: int
    """Rows of the first axis in a chunk; chunks have the full width of the array."""
    opened: Callable[[], AbstractContextManager[Any]]
    """Opens the array for slicing."""

    def load(self, numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[NDArray[Any]]:  # noqa: ARG002
        """As `Chunks.load`; the last chunk ends with the array."""
        with self.opened() as array:
            for number in numbers:
                yield self._slice(array, number).reshape(-1)

    def start(self, numbers: Sequence[int]) -> None:
        """Nothing."""

    def samples(self, numbers: Sequence[int], n_bytes: int) -> Iterator[bytes]:
        """The first and the last of the decoded bytes."""
        for values in self.load(numbers, [1] * len(numbers)):
            content = values.tobytes()
            yield b"".join(content[begin:end] for begin, end in ends_of(0, len(content), n_bytes))

    def _slice(self, array: Any, number: int) -> NDArray[Any]:
        try:
            return np.asarray(array[number * self.n_rows : (number + 1) * self.n_rows])
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk or the process, not of the file
            raise SourceFormatError(f"{self.name} is damaged ({error}); download or write the file again") from error


def library_array(
    shape: tuple[int, ...],
    stored: np.dtype[Any],
    chunk_rows: int | None,
    opened: Callable[[], AbstractContextManager[Any]],
    name: str,
    dtype: np.dtype[Any] | None = None,
) -> ChunkedArray:
    """An array that its library reads, in pieces of about 256 KB with whole stored chunks of ``chunk_rows``."""
    row_bytes = max(1, math.prod(shape[1:]) * stored.itemsize)
    unit = chunk_rows or 1
    step = unit * max(1, _SLICE_BYTES // row_bytes // unit)
    chunk_shape = (step, *shape[1:])
    return ChunkedArray(
        shape=shape,
        chunk_shape=chunk_shape,
        dtype=dtype or working_dtype(stored, name),
        chunks=LibraryChunks(name=name, n_rows=step, opened=opened),
    )


def whole(array: StoredArray) -> NDArray[Any]:
    """All values of a one-dimensional array, in memory."""
    return array.values if isinstance(array, MappedArray) else next(pieces(array, max(1, array.shape[0])))


def pieces(array: StoredArray, size: int) -> Iterator[NDArray[Any]]:
    """Yield the values of a one-dimensional array, ``size`` at a time, the last fewer; a chunk is decoded once."""
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
