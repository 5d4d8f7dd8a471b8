"""An array as it lies on disk: mapped into memory as it is, or in chunks that have to be decoded."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.runtime.files import opening
from scdataloader.sources.arrays.codecs import Buffer, Codecs

_SLICE_BYTES = 1 << 18
_HALF, _DOUBLE = 2, 8


def working_dtype(stored: np.dtype[Any], name: str) -> np.dtype[Any]:
    """What values of dtype ``stored`` are turned into for the compiled loops: native bytes, no half floats, no bools.

    Raises:
        SourceFormatError: not a real number; names the array.
    """
    if stored.kind == "b":
        return np.dtype(np.uint8)
    if stored.kind == "f" and stored.itemsize == _HALF:
        return np.dtype(np.float32)
    if stored.kind not in "iuf" or stored.itemsize > _DOUBLE:
        raise SourceFormatError(f"{name} holds values of type {stored}, where real numbers were expected")
    return stored.newbyteorder("=")


class Chunks(Protocol):
    """Where an array's chunks come from."""

    def load(self, numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[NDArray[Any]]:
        """The first ``sizes[i]`` values, or more, of chunk ``numbers[i]``, flat, one after the other."""

    def sample(self, number: int, n_bytes: int) -> bytes:
        """Some bytes that depend on the content of a chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkedArray:
    """An array of one or two dimensions in equal chunks, numbered row by row over the grid."""

    shape: tuple[int, ...]
    """As the array says; the last chunk of an axis may reach beyond it."""
    chunk_shape: tuple[int, ...]
    """Of every chunk."""
    dtype: np.dtype[Any]
    """Of the values that come out."""
    chunks: Chunks
    """Where they come from."""
    worth_keeping: bool = True
    """Whether loading a chunk again costs more than a view of memory."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each axis."""
        return tuple(-(-n // step) for n, step in zip(self.shape, self.chunk_shape, strict=True))

    def load(self, numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[NDArray[Any]]:
        """As `Chunks.load`, of dtype ``dtype``."""
        for values in self.chunks.load(numbers, sizes):
            yield values.astype(self.dtype, copy=False)

    def sample(self, n_places: int, n_bytes: int) -> Iterator[bytes]:
        """Bytes of ``n_places`` chunks, evenly strided over the array."""
        for number in strided(math.prod(self.grid), n_places):
            yield self.chunks.sample(number, n_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class MappedArray:
    """An array whose bytes lie in one piece in a file, or in memory."""

    values: NDArray[Any]
    """A view of the mapped file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
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


def strided(n: int, places: int) -> Sequence[int]:
    """At most ``places`` numbers spread evenly over ``range(n)``, the first and the last among them."""
    return sorted({int(i) for i in np.linspace(0, n - 1, min(n, places))}) if n else []


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """A run of bytes in a file."""

    path: str
    """The file."""
    offset: int
    """First byte."""
    size: int
    """Number of bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedChunks:
    """Chunks whose bytes are found and decoded here, without the format's library."""

    name: str
    """What messages call the array."""
    n_values: int
    """In a chunk."""
    stored: np.dtype[Any]
    """Of the decoded values."""
    codecs: Codecs
    """How to decode them."""
    fill: Any
    """The value of a chunk that was never written."""
    locate: Callable[[int], Extent | None]
    """Where a chunk's bytes lie; None if it was never written."""

    def load(self, numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[NDArray[Any]]:
        """As `Chunks.load`."""
        extents = [self.locate(number) for number in numbers]
        for number, wanted, raw in zip(numbers, sizes, _read_extents(extents), strict=True):
            if raw is None:
                yield np.full(self.n_values, self.fill, self.stored)
                continue
            yield self._decode(number, wanted, raw)

    def sample(self, number: int, n_bytes: int) -> bytes:
        """The encoded bytes."""
        extent = self.locate(number)
        if extent is None:
            return b""
        (raw,) = _read_extents([Extent(path=extent.path, offset=extent.offset, size=min(extent.size, n_bytes))])
        return raw or b""

    def _decode(self, number: int, wanted: int, raw: Buffer) -> NDArray[Any]:
        item = self.stored.itemsize
        try:
            out = self.codecs.decode(raw, self.n_values * item, wanted * item)
        except ValueError as error:
            raise SourceFormatError(
                f"chunk {number} of {self.name} is damaged ({error}); fetch or write the file again"
            ) from error
        return np.frombuffer(out, self.stored, len(out) // item)


def _read_extents(extents: Sequence[Extent | None]) -> Iterator[bytes | None]:
    """The bytes of each extent, opening a file once for all neighbours in the list that lie in it."""
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
                with opening(extent.path):
                    descriptor, opened = os.open(extent.path, os.O_RDONLY | os.O_CLOEXEC), extent.path
            raw = os.pread(descriptor, extent.size, extent.offset)
            if len(raw) < extent.size:
                raise SourceFormatError(
                    f"{extent.path} is truncated: {extent.size} bytes were expected at byte {extent.offset}, "
                    f"{len(raw)} are there; fetch or write the file again"
                )
            yield raw
    finally:
        if descriptor >= 0:
            os.close(descriptor)


@dataclass(frozen=True, kw_only=True, slots=True)
class LibraryChunks:
    """Chunks that the format's own library slices out of the array."""

    shape: tuple[int, ...]
    """Of the array."""
    chunk_shape: tuple[int, ...]
    """Of the pieces to slice: rows, or runs of values, in full width."""
    opened: Callable[[], AbstractContextManager[Any]]
    """Opens the array for slicing."""

    def load(self, numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[NDArray[Any]]:  # noqa: ARG002 all there is
        """As `Chunks.load`; the last chunk is cut to the array."""
        step = self.chunk_shape[0]
        with self.opened() as array:
            for number in numbers:
                yield np.asarray(array[number * step : (number + 1) * step]).reshape(-1)

    def sample(self, number: int, n_bytes: int) -> bytes:
        """The decoded bytes."""
        (values,) = self.load([number], [1])
        return values.tobytes()[:n_bytes]


def library_array(
    shape: tuple[int, ...],
    stored: np.dtype[Any],
    chunk_rows: int | None,
    opened: Callable[[], AbstractContextManager[Any]],
    name: str,
    dtype: np.dtype[Any] | None = None,
) -> ChunkedArray:
    """An array read through its library, in pieces of some 256 KB that hold whole chunks of ``chunk_rows``."""
    row_bytes = max(1, math.prod(shape[1:]) * stored.itemsize)
    unit = chunk_rows or 1
    step = unit * max(1, _SLICE_BYTES // row_bytes // unit)
    chunk_shape = (step, *shape[1:])
    return ChunkedArray(
        shape=shape,
        chunk_shape=chunk_shape,
        dtype=dtype or working_dtype(stored, name),
        chunks=LibraryChunks(shape=shape, chunk_shape=chunk_shape, opened=opened),
    )
