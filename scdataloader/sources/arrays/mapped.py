"""A file mapped into memory, once for all the arrays that lie in it as they are."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.runtime.files import opening
from scdataloader.sources.arrays.arrays import MappedArray


class FileMap:
    """A file, mapped as a whole when the first of its arrays is; the map goes when the last view of it does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def content(self) -> mmap.mmap:
        """All bytes of the file."""
        with opening(self.path), self.path.open("rb") as file:
            if sys.version_info >= (3, 13):  # a map needs no descriptor
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ, trackfd=False)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def release(self) -> None:
        """Give its pages back to the system, which keeps them as long as it can; views stay valid."""
        if "content" in self.__dict__ and hasattr(mmap, "MADV_DONTNEED"):
            self.content.madvise(mmap.MADV_DONTNEED)

    def check(self, stop: int, name: str) -> None:
        """Refuse what would end beyond the file.

        Raises:
            SourceFormatError: the file ends before byte ``stop``, where ``name`` does.
        """
        if stop > len(self.content):
            raise SourceFormatError(
                f"{self.path} is truncated: {name} ends at byte {stop}, the file at byte {len(self.content)}; "
                "fetch or write the file again"
            )

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> MappedArray:
        """The array that lies at byte ``offset``; nothing is read yet.

        Raises:
            SourceFormatError: the file ends before the array does.
        """
        self.check(offset + math.prod(shape) * dtype.itemsize, name)
        return MappedArray(values=np.frombuffer(self.content, dtype, math.prod(shape), offset).reshape(shape))

    def chunks(self, offsets: NDArray[np.int64], n_values: int, dtype: np.dtype[Any], name: str) -> MappedChunks:
        """The chunks of ``n_values`` that lie at bytes ``offsets``, as they are; nothing is read yet.

        Raises:
            SourceFormatError: the file ends before some chunk does.
        """
        self.check(int(offsets.max(initial=0)) + n_values * dtype.itemsize, f"chunk {int(offsets.argmax())} of {name}")
        return MappedChunks(content=self.content, offsets=offsets, n_values=n_values, dtype=dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class MappedChunks:
    """Chunks that lie in a mapped file as they are: what is loaded is a view."""

    content: mmap.mmap
    """The file."""
    offsets: NDArray[np.int64]
    """``(n_chunks,)`` first byte of each, all of them within ``content``."""
    n_values: int
    """In a chunk."""
    dtype: np.dtype[Any]
    """Of the values."""

    def load(self, numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[NDArray[Any]]:
        """As `Chunks.load`."""
        for number, size in zip(numbers, sizes, strict=True):
            yield np.frombuffer(self.content, self.dtype, size, int(self.offsets[number]))

    def sample(self, number: int, n_bytes: int) -> bytes:
        """The first bytes."""
        offset = int(self.offsets[number])
        return self.content[offset : offset + min(n_bytes, self.n_values * self.dtype.itemsize)]

    def flat(self) -> FlatChunks | None:
        """The same chunks as parts of one array; None where they do not lie a whole number of values apart."""
        item, first = self.dtype.itemsize, int(self.offsets.min())
        begins, odd = np.divmod(self.offsets - first, item)
        if odd.any():
            return None
        values = np.frombuffer(self.content, self.dtype, int(begins.max()) + self.n_values, first)
        return FlatChunks(values=values, begins=begins, length=self.n_values)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatChunks:
    """A one-dimensional array in pieces of equal length that lie anywhere in one array in memory."""

    values: NDArray[Any]
    """What the pieces lie in, and what lies between them."""
    begins: NDArray[np.int64]
    """``(n_pieces,)`` where in ``values`` each begins; it ends there too."""
    length: int
    """Of a piece; the last may be longer than what is left of the array."""
