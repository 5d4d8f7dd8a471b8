"""Memory maps of files, and the arrays in them that need no decoding."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.runtime.mapping import FileWatch, MappedFile, map_file
from scdataloader.sources.arrays.arrays import MappedArray, ends_of, read_only


class FileMap:
    """A file, mapped as a whole at its first use; the map is closed with its last view."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def content(self) -> MappedFile:
        """All bytes of the file."""
        return map_file(self.path)

    def check(self) -> None:
        """Check that all pages that were touched could be read.

        Raises:
            SourceChangedError: one could not; names the file.
        """
        if "content" in self.__dict__:
            self.content.check()

    def release(self) -> None:
        """Free the memory of the pages that were read; views stay valid, and read them again."""
        if "content" in self.__dict__ and hasattr(mmap, "MADV_DONTNEED"):
            self.content.madvise(mmap.MADV_DONTNEED)

    def check_length(self, stop: int, name: str) -> None:
        """Check that the file does not end before byte ``stop``.

        Raises:
            SourceFormatError: it does; ``name`` is what ends at ``stop``.
        """
        if stop > len(self.content):
            raise SourceFormatError(
                f"{self.path} is truncated: {name} ends at byte {stop}, the file at byte {len(self.content)}; "
                "download or write the file again"
            )

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> MappedArray:
        """The array at byte ``offset``; nothing is read yet.

        Raises:
            SourceFormatError: the file ends before the array does.
        """
        self.check_length(offset + math.prod(shape) * dtype.itemsize, name)
        return MappedArray(values=np.frombuffer(self.content, dtype, math.prod(shape), offset).reshape(shape))

    def chunks(self, offsets: NDArray[np.int64], n_values: int, dtype: np.dtype[Any], name: str) -> MappedChunks:
        """Chunks of ``n_values`` at bytes ``offsets``, not encoded; nothing is read yet.

        Raises:
            SourceFormatError: the file ends before a chunk does.
        """
        last = f"chunk {int(offsets.argmax())} of {name}"
        self.check_length(int(offsets.max(initial=0)) + n_values * dtype.itemsize, last)
        return MappedChunks(content=self.content, offsets=offsets, n_values=n_values, dtype=dtype)


class FileMaps:
    """The maps of a file, and of others that it links to."""

    def __init__(self, path: Path, watches: dict[Path, FileWatch]) -> None:
        """``watches`` has the states of files at their first use; those of further files are added."""
        self.path = path
        self._watches = watches
        self._maps: dict[Path, FileMap] = {}

    @property
    def watch(self) -> FileWatch:
        """State of the file."""
        return self._watches[self.path.absolute()]

    def of(self, path: Path) -> FileMap:
        """The map of a file."""
        path = path.absolute()
        if path not in self._watches:
            self._watches[path] = FileWatch(path)
        return self._maps.setdefault(path, FileMap(path))

    def check(self) -> None:
        """Check that the files are as they were; call it after reading, before values are used.

        Raises:
            SourceChangedError: one is not, or cannot be read; names it.
        """
        for watch in tuple(self._watches.values()):
            watch.check()
        for file in tuple(self._maps.values()):
            file.check()

    def release(self) -> None:
        """As `FileMap.release`, of all of them."""
        for file in tuple(self._maps.values()):
            file.release()


@dataclass(frozen=True, kw_only=True, slots=True)
class MappedChunks:
    """Chunks of a mapped file that are not encoded; they are loaded as views."""

    is_local: ClassVar[bool] = True

    content: MappedFile
    """All bytes of the file."""
    offsets: NDArray[np.int64]
    """``(n_chunks,)`` first byte of each, all within ``content``."""
    n_values: int
    """Values in a chunk."""
    dtype: np.dtype[Any]
    """Type of the values."""

    def load(self, numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[NDArray[Any]]:
        """As `Chunks.load`."""
        for number, size in zip(numbers, sizes, strict=True):
            yield np.frombuffer(self.content, self.dtype, size, int(self.offsets[number]))

    def start(self, numbers: Sequence[int]) -> None:
        """Nothing."""

    def samples(self, numbers: Sequence[int], n_bytes: int) -> Iterator[bytes]:
        """The first and the last bytes."""
        for number in numbers:
            ends = ends_of(int(self.offsets[number]), self.n_values * self.dtype.itemsize, n_bytes)
            yield b"".join(self.content[begin:end] for begin, end in ends)

    def pieces(self) -> Pieces | None:
        """The same chunks as pieces of one array; None if their distances are not whole numbers of values."""
        item, first = self.dtype.itemsize, int(self.offsets.min())
        begins, odd = np.divmod(self.offsets - first, item)
        if odd.any():
            return None
        values = np.frombuffer(self.content, self.dtype, int(begins.max()) + self.n_values, first)
        return Pieces(values=values, begins=begins, length=self.n_values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """A one-dimensional array in pieces of equal length, anywhere in one array in memory."""

    values: NDArray[Any]
    """The pieces, and what is between them."""
    begins: NDArray[np.int64]
    """``(n_pieces,)`` where in ``values`` each begins; each ends within ``values`` as well."""
    length: int
    """Entries of a piece; the last may reach beyond the end of the array."""

    @classmethod
    def one(cls, values: NDArray[Any]) -> Self:
        """A contiguous array as one piece."""
        return cls(values=read_only(values), begins=np.zeros(1, np.int64), length=max(1, values.size))
