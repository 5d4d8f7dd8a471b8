"""A shard: one file of records, written once from front to end, and read through a memory map.

| bytes        | what                                                                                               |
|--------------|----------------------------------------------------------------------------------------------------|
| 8            | ``SCDCELLS``                                                                                       |
| 4            | version of the format                                                                              |
| 4            | bit 0: values are float32, not counts; bit 1: cells are of several sources                         |
| …            | records, each at a multiple of 8; see `kernels.records.format`                                      |
| 8 (n + 1)    | where each record begins, and where the last ends: bytes from the front of the file                |
| 4 n, to 8    | how many values each record has                                                                    |
| 4 n, to 8    | with bit 1: the source of each cell, by number                                                     |
| 16           | BLAKE2b of all bytes before the offsets                                                            |
| 8, 8, 8, 8   | n, number of values, genes of the gene space (0 with bit 1), and where the offsets begin          |

All numbers are little-endian and unsigned. The manifest has the BLAKE2b of the last 48 bytes, so that no other file
passes for the shard, and of everything from the offsets on, which is checked when sizes or sources of all cells are
read. A single cell is found without that, however many there are: its record shows whether it is the one.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError
from scdataloader.kernels.records.decode import BAD_CHECKSUM, BAD_RECORD
from scdataloader.kernels.records.encode import encode_rows, first_unfit, most_words
from scdataloader.kernels.records.unpack import BAD_FORM, BAD_GENE, BAD_KIND
from scdataloader.runtime.files import PARTIAL, opening, sync
from scdataloader.store.manifest import VERSION, FileRecord, Kind, ShardRecord

_HEAD = struct.Struct("<8sII")
_DIGEST = 16
_FOOT = struct.Struct(f"<{_DIGEST}sQQQQ")
FIRST_RECORD = _HEAD.size
"""Where the first record of a shard begins."""
_MAGIC = b"SCDCELLS"
_FLOATS, _MIXED = 1, 2
_MOST_VALUES = 1 << 32
_LONG = 8
_EXACT = 1 << 53
"""Up to here, float64 has every whole number, and so tells whether float32 has it."""
WHY = {
    BAD_CHECKSUM: "its checksum does not match",
    BAD_RECORD: "its parts do not fit together",
    BAD_KIND: "it has float32 values in a shard of counts, or counts in one of float32",
    BAD_GENE: "it has a gene that its source has not",
    BAD_FORM: "it has an exception that is none, a stored zero, or more than zeros at its end",
}
"""What is wrong with a record, in words."""


class ShardWriter:
    """Writes one shard, block by block, under another name until it is complete.

    Use it in a with statement: leaving it by an exception removes what was written.
    """

    def __init__(self, folder: Path, path: str, *, kind: Kind, n_genes: int, mixed: bool = False) -> None:
        """Begin the shard ``path`` of the store in ``folder``; ``mixed`` if its cells are of several sources.

        ``n_genes`` are those of the gene space of its source.
        """
        self._folder, self._path = folder, path
        self._floats, self._n_genes, self._mixed = kind == "float32", 0 if mixed else n_genes, mixed
        self._partial = folder / f"{path}{PARTIAL}"
        self._file = self._partial.open("wb")
        self._digest = blake2b(digest_size=_DIGEST)
        self._n_bytes = 0
        self._offsets: list[NDArray[np.int64]] = []
        self._sizes: list[NDArray[np.uint32]] = []
        self._sources: list[NDArray[np.uint32]] = []
        self.n_cells = 0
        self._write(_HEAD.pack(_MAGIC, VERSION, _FLOATS * self._floats + _MIXED * mixed))

    def append(
        self, indptr: NDArray[np.int64], indices: NDArray[Any], data: NDArray[Any], rank: NDArray[np.int32]
    ) -> None:
        """Write cells given as rows of a matrix, whose gene g has the number ``rank[g]`` in the records.

        Raises:
            ValueError: a value is not what the shard holds, or a gene number is out of range or there twice in a cell;
                names the first cell by its place in this call.
        """
        indptr = np.asarray(indptr, np.int64)
        if self._floats and data.dtype.itemsize == _LONG and data.dtype.kind in "iu" and _magnitude(data) > _EXACT:
            raise ValueError(f"there is a whole number beyond {_EXACT:,}, which float32 may not have")
        at = first_unfit(data, not self._floats)
        if at >= 0:
            cell = int(np.searchsorted(indptr, at, side="right")) - 1
            wanted = "float32 numbers" if self._floats else "counts below 2^32"
            raise ValueError(f"cell {cell} has the value {data[at]}; the store keeps {wanted} exactly, or refuses them")
        bits = data.astype(np.float32).view(np.uint32) if self._floats else data.astype(np.uint32)
        n = len(indptr) - 1
        words = np.empty(most_words(n, len(data)), np.uint64)
        offsets, sizes = np.empty(n, np.int64), np.empty(n, np.uint32)
        n_words = encode_rows(indptr, indices, bits, rank, self._floats, self.n_cells, words, offsets, sizes)
        if n_words < 0:
            raise ValueError(f"cell {-1 - n_words} has a gene number outside 0 … {len(rank) - 1}, or one twice")
        self.append_records(words[:n_words], offsets, sizes)

    def append_records(
        self,
        words: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        sizes: NDArray[np.uint32],
        sources: NDArray[np.uint32] | None = None,
    ) -> None:
        """Write records that begin at bytes ``offsets`` of ``words`` and whose checksums are of their place here."""
        self._offsets.append(offsets + self._n_bytes)
        self._sizes.append(sizes)
        if self._mixed:
            self._sources.append(np.asarray(sources, np.uint32))
        self.n_cells += len(sizes)
        self._write(words)

    def finish(self, source: int | None = None) -> ShardRecord:
        """Write the index and give the file its name; what it holds.

        Raises:
            ValueError: it has more than 2^32 values.
        """
        n_values = int(sum(int(sizes.sum(dtype=np.int64)) for sizes in self._sizes))
        if n_values > _MOST_VALUES:
            raise ValueError(f"{self._path} would have {n_values:,} values, more than 2^32; use fewer cells per shard")
        end = self._n_bytes
        parts = [np.concatenate([*self._offsets, np.array([end], np.int64)]).tobytes()]
        for tables in (self._sizes, self._sources)[: 1 + self._mixed]:
            table = np.concatenate(tables) if tables else np.empty(0, np.uint32)
            parts.append(np.concatenate([table, np.zeros(len(table) % 2, np.uint32)]).tobytes())
        foot = _FOOT.pack(self._digest.digest(), self.n_cells, n_values, self._n_genes, end)
        index = b"".join([*parts, foot])
        self._write(index)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self._folder / self._path)
        sync((self._folder / self._path).parent)
        record = FileRecord(path=self._path, n_bytes=self._n_bytes, checksum=self._digest.hexdigest())
        checksums = {"foot": _checksum(foot), "index": _checksum(index)}
        return ShardRecord(file=record, **checksums, n_cells=self.n_cells, n_values=n_values, source=source)

    def _write(self, content: bytes | NDArray[Any]) -> None:
        view = memoryview(content).cast("B")  # type: ignore[arg-type]
        self._file.write(view)
        self._digest.update(view)
        self._n_bytes += len(view)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # closing writes what is buffered, for which there may be no room
            self._file.close()
        self._partial.unlink(missing_ok=True)


def _magnitude(data: NDArray[Any]) -> int:
    return max(int(data.max(initial=0)), -int(data.min(initial=0)))


class MappedShards:
    """All shards of a store in memory maps, with what compiled loops need to find a cell's record."""

    def __init__(self, folder: Path, shards: Sequence[ShardRecord], n_genes: Sequence[int]) -> None:
        """Map the shards; reads no more than the index of each.

        ``n_genes`` are the numbers of genes of the gene spaces of the sources.

        Raises:
            StoreFormatError: a file is not what the manifest says; names it.
        """
        self._maps = [_mapped(folder / shard.file.path, shard.file.n_bytes) for shard in shards]
        feet = [_foot(folder, shard, content, n_genes) for shard, content in zip(shards, self._maps, strict=True)]
        self.base = np.array([np.frombuffer(m, np.uint8).ctypes.data for m in self._maps], np.int64)
        """``(S,)`` address of each map."""
        self.index = np.array([foot[1] for foot in feet], np.int64)
        """``(S,)`` byte at which its offsets begin."""
        self.n_cells = np.array([foot[0] for foot in feet], np.int64)
        """``(S,)`` cells of each shard."""
        self._folder, self._shards, self._checked = folder, shards, np.zeros(len(shards), np.bool_)

    def check_index(self, shard: int) -> None:
        """See that offsets, sizes and sources of a shard's cells are those that were written.

        Raises:
            StoreFormatError: they are not; names the file.
        """
        if self._checked[shard]:
            return
        path, stated = self._folder / self._shards[shard].file.path, self._shards[shard]
        with memoryview(self._maps[shard]) as view:
            found = _checksum(view[int(self.index[shard]) :])
        if found != stated.index:
            raise _damaged(path, "checksum of its index", found, stated.index)
        n_values = int(self._sizes(shard).sum(dtype=np.int64))
        if n_values != stated.n_values:  # or else who trusts the sizes might ask for any amount of memory
            raise _damaged(path, "values of its cells", n_values, stated.n_values)
        self._checked[shard] = True

    def offsets(self, shard: int) -> NDArray[np.int64]:
        """``(n + 1,)`` where a shard's records begin, and where the last ends; checked."""
        self.check_index(shard)
        return np.frombuffer(self._maps[shard], np.int64, int(self.n_cells[shard]) + 1, int(self.index[shard]))

    def sizes(self, shard: int) -> NDArray[np.uint32]:
        """``(n,)`` numbers of values of a shard's cells; checked."""
        self.check_index(shard)
        return self._sizes(shard)

    def _sizes(self, shard: int) -> NDArray[np.uint32]:
        n, begin = int(self.n_cells[shard]), int(self.index[shard]) + 8 * int(self.n_cells[shard] + 1)
        return np.frombuffer(self._maps[shard], np.uint32, n, begin)

    def sources(self, shard: int) -> NDArray[np.uint32]:
        """``(n,)`` sources of the cells of a shard that has several; checked."""
        self.check_index(shard)
        n = int(self.n_cells[shard])
        begin = int(self.index[shard]) + 8 * (n + 1) + (4 * n + 7) // 8 * 8
        return np.frombuffer(self._maps[shard], np.uint32, n, begin)

    def release(self) -> None:
        """Give the pages of all maps back to the system, which keeps them as long as it can; views stay valid."""
        for content in self._maps:
            if hasattr(mmap, "MADV_DONTNEED"):
                content.madvise(mmap.MADV_DONTNEED)

    def content(self, shard: int) -> mmap.mmap:
        """All bytes of a shard."""
        return self._maps[shard]

    def stated(self, shard: int) -> tuple[bool, bytes]:
        """Whether a shard's values are float32, and the BLAKE2b of all before its index, as the shard has them."""
        content = self._maps[shard]
        floats = bool(_HEAD.unpack_from(content, 0)[2] & _FLOATS)
        return floats, _FOOT.unpack_from(content, len(content) - _FOOT.size)[0]


def _mapped(path: Path, n_bytes: int) -> mmap.mmap:
    if n_bytes < FIRST_RECORD + 8 + _FOOT.size:
        raise StoreFormatError(f"{path} has {n_bytes} bytes, too few for a shard; copy or convert the store again")
    try:
        with opening(path), path.open("rb") as file:
            if sys.version_info >= (3, 13):  # a map needs no descriptor
                return mmap.mmap(file.fileno(), n_bytes, access=mmap.ACCESS_READ, trackfd=False)
            return mmap.mmap(file.fileno(), n_bytes, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError) as error:
        raise StoreFormatError(f"{path} is gone or was cut short since the store was opened: {error}") from error


def _foot(folder: Path, shard: ShardRecord, content: mmap.mmap, n_genes: Sequence[int]) -> tuple[int, int]:
    """The number of cells, and where the index begins, if all but the records is as it must be."""
    magic, version, flags = _HEAD.unpack_from(content, 0)
    _, n_cells, n_values, genes, index = _FOOT.unpack_from(content, len(content) - _FOOT.size)
    mixed = shard.source is None
    known = 0 if shard.source is None else n_genes[shard.source]
    tables = 8 * (n_cells + 1) + (4 * n_cells + 7) // 8 * 8 * (1 + mixed)
    expected = {
        "first bytes": (magic, _MAGIC),
        "format version": (version, VERSION),
        "number of cells": (n_cells, shard.n_cells),
        "number of values": (n_values, shard.n_values),
        "number of genes": (genes, known),
        "length of its index": (index + tables + _FOOT.size, len(content)),
        "place of its index, modulo 8,": (index % 8, 0),
        "checksum of its last bytes": (_checksum(content[-_FOOT.size :]), shard.foot),
        "flags": (flags & ~_FLOATS, _MIXED * mixed),
    }
    for what, (found, wanted) in expected.items():
        if found != wanted:
            raise _damaged(folder / shard.file.path, what, found, wanted)
    return n_cells, index


def _damaged(path: Path, what: str, found: object, wanted: object) -> StoreFormatError:
    mismatch = f"{what} {found!r}, expected {wanted!r}"
    return StoreFormatError(f"{path} is damaged, or of another store: {mismatch}; copy or convert the store again")


def _checksum(content: bytes | memoryview) -> str:
    return blake2b(content, digest_size=_DIGEST).hexdigest()
