"""Bytes of files, wherever they are: mapped from this machine, or of a bucket through a mirror.

Whoever reads bytes of many places first calls `FileBytes.start` with all of them, which loads or fetches them together,
and then `FileBytes.held` with those that are used next.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.runtime.buckets import Bucket, split_url
from scdataloader.runtime.bus_errors import has_faulted
from scdataloader.runtime.mapping import FileWatch, MappedFile, map_file
from scdataloader.runtime.mirror import Mirror, View
from scdataloader.runtime.read_ahead import read_ahead


class FileBytes(Protocol):
    """Bytes of several files. A range is the number of a file, its first byte and its length."""

    is_local: bool
    """Whether addresses and views stay valid, and bytes are as they were when the files were opened."""

    def start(self, file: NDArray[np.integer], begin: NDArray[np.int64], length: NDArray[np.int64]) -> None:
        """Start loading ranges; returns at once."""

    def held(
        self, file: NDArray[np.integer], begin: NDArray[np.int64], length: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Any]:
        """``(m,)`` address of each range, and an object that keeps the bytes there as long as it exists."""

    def part(self, file: int, begin: int, length: int) -> NDArray[np.uint8]:
        """The bytes of a range."""

    def check(self, file: NDArray[np.integer]) -> None:
        """Check, after bytes were read and before they are used, that the files are as they were when opened.

        Raises:
            SourceChangedError: one is not; names it.
        """

    def forget(self, file: NDArray[np.integer], begin: NDArray[np.int64], length: NDArray[np.int64]) -> bool:
        """Load ranges that have wrong bytes anew when they are next read; returns whether that may help."""

    def keep(self, file: int, begin: int) -> bool:
        """Keep a file from ``begin`` on wherever it is loaded to; returns whether it can be."""

    def release(self) -> None:
        """Return memory to the system; views stay valid."""


class MappedBytes:
    """Mapped files of this machine."""

    is_local = True

    def __init__(self, paths: Sequence[Path], n_bytes: Sequence[int]) -> None:
        """Map the first bytes of files.

        Raises:
            FileNotFoundError: one does not exist.
            ValueError: one is empty, or has fewer bytes.
        """
        self._maps = [_map(path, n) for path, n in zip(paths, n_bytes, strict=True)]
        self._watch = FileWatch(*paths)
        self.base = np.array([np.frombuffer(m, np.uint8).ctypes.data for m in self._maps], np.int64)
        """``(F,)`` address of each map."""

    def start(self, file: NDArray[np.integer], begin: NDArray[np.int64], length: NDArray[np.int64]) -> None:
        """As `FileBytes.start`."""
        read_ahead(self.base[file] + begin, length)

    def held(
        self, file: NDArray[np.integer], begin: NDArray[np.int64], _: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Any]:
        """As `FileBytes.held`; nothing is copied."""
        return self.base[file] + begin, self._maps

    def part(self, file: int, begin: int, length: int) -> NDArray[np.uint8]:
        """As `FileBytes.part`; a view."""
        return np.frombuffer(self._maps[file], np.uint8, length, begin)

    def check(self, file: NDArray[np.integer]) -> None:
        """As `FileBytes.check`."""
        self._watch.check(file)
        if has_faulted():
            for content in self._maps:
                content.check()

    def forget(self, *_: NDArray[np.integer]) -> bool:
        """As `FileBytes.forget`; False."""
        return False

    def keep(self, *_: int) -> bool:
        """As `FileBytes.keep`; True."""
        return True

    def release(self) -> None:
        """As `FileBytes.release`."""
        for content in self._maps:
            if hasattr(mmap, "MADV_DONTNEED"):
                content.madvise(mmap.MADV_DONTNEED)


def _map(path: Path, n_bytes: int) -> MappedFile:
    try:
        return map_file(path, n_bytes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class MirroredBytes:
    """Files of a mirror. Nothing is fetched before it is needed; bytes are copied, since the mirror may remove them."""

    is_local = False

    def __init__(self, mirror: Mirror, paths: Sequence[str]) -> None:
        self._mirror, self._paths = mirror, list(paths)
        self._number = np.array([mirror.number(path) for path in paths], np.int64)

    def start(self, file: NDArray[np.integer], begin: NDArray[np.int64], length: NDArray[np.int64]) -> None:
        """As `FileBytes.start`."""
        self._mirror.start(self._number[file], begin, length)

    def held(
        self, file: NDArray[np.integer], begin: NDArray[np.int64], length: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Any]:
        """As `FileBytes.held`."""
        content, starts = self.copied(file, begin, length)
        return content.ctypes.data + starts, content

    def view(self, file: NDArray[np.integer], begin: NDArray[np.int64], length: NDArray[np.int64]) -> View | None:
        """As `Mirror.view`."""
        return self._mirror.view(self._number[file], begin, length)

    def copied(
        self, file: NDArray[np.integer], begin: NDArray[np.int64], length: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """As `Mirror.copied`."""
        return self._mirror.copied(self._number[file], begin, length)

    def ends(self, file: NDArray[np.integer], n_bytes: int) -> list[tuple[bytes, str | None]]:
        """As `Mirror.ends`."""
        return self._mirror.ends(self._number[file].tolist(), n_bytes)

    def pin(self, file: NDArray[np.integer], etags: Sequence[str | None]) -> None:
        """As `Mirror.pin`."""
        self._mirror.pin(self._number[file].tolist(), etags)

    def part(self, file: int, begin: int, length: int) -> NDArray[np.uint8]:
        """As `FileBytes.part`; a copy."""
        return self.copied(np.array([file]), np.array([begin]), np.array([length]))[0]

    def check(self, _: NDArray[np.integer]) -> None:
        """As `FileBytes.check`; the files are checked by the checksums of what is read."""

    def forget(self, file: NDArray[np.integer], begin: NDArray[np.int64], length: NDArray[np.int64]) -> bool:
        """As `FileBytes.forget`; True."""
        self._mirror.forget(self._number[file], begin, length)
        return True

    def keep(self, file: int, begin: int) -> bool:
        """As `FileBytes.keep`."""
        return self._mirror.keep(self._paths[file], begin)

    def release(self) -> None:
        """As `FileBytes.release`; the mirror's pages are the system's."""


class MirroredFile(io.RawIOBase):
    """A file of a mirror to read, as h5py and pyarrow take it. Can be pickled and forked; each thread needs its own."""

    def __init__(self, mirror: Mirror, path: str) -> None:
        self._mirror, self._path, self._at = mirror, path, 0
        self.name = mirror.bucket.url_of(path)

    @classmethod
    def open(cls, url: str) -> Self:
        """Open an object of any kind as it is now.

        Raises:
            FileNotFoundError: it does not exist; and other errors of `buckets.explained`.
        """
        folder, name = split_url(url)
        bucket = Bucket.open(folder)
        state = bucket.state(name)
        etags = {} if state.etag is None else {name: state.etag}
        return cls(Mirror(bucket, f"{state.n_bytes} bytes, {state.etag}", {name: state.n_bytes}, etags), name)

    @property
    def version(self) -> str:
        """Another text whenever the object was written."""
        return self._mirror.version

    def __repr__(self) -> str:
        return self.name  # what h5py takes for the name of the file

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._mirror.n_bytes(self._path)}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        """Offset of the next byte."""
        return self._at

    def readinto(self, out: Any) -> int:
        """Read up to the size of a buffer; returns the number of bytes."""
        view = memoryview(out).cast("B")
        content = self._mirror.read(self._path, self._at, self._at + len(view))
        view[: len(content)] = content.data
        self._at += len(content)
        return len(content)

    def __reduce__(self) -> tuple[Any, ...]:
        return MirroredFile, (self._mirror, self._path)
