"""Reading of shards through memory maps, or from a mirror of remote files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError
from scdataloader.kernels.records.decode import (
    BAD_CHECKSUM,
    BAD_RECORD,
    MOST_PER_BYTE,
    OK,
    locate_records,
    wrong_checksums,
)
from scdataloader.kernels.records.encode import COMPACT, SHORT
from scdataloader.kernels.records.format import HEADER, Records
from scdataloader.kernels.records.unpack import BAD_FORM, BAD_GENE, BAD_KIND
from scdataloader.runtime.bytes import FileBytes, MappedBytes, MirroredBytes
from scdataloader.runtime.mirror import Mirror
from scdataloader.store.manifest import MATRICES_VERSION, PACKED_VERSION, SHORT_VERSION, VERSION, Kind, ShardRecord
from scdataloader.store.paged_index import TRIES, PagedIndex
from scdataloader.store.shard import (
    FIRST_RECORD,
    FOOT,
    HAS_FLOATS,
    HEAD,
    IS_MIXED,
    MAGIC,
    MAY_BE_FLOATS,
    checksum,
    index_bytes,
)

_OFFSETS, _SIZE = 16, 4
"""Bytes of the index that give the beginning and the end of a record; its number of values."""
_VIEWED, _COPIED = 8 << 20, 1 << 20
"""Bytes of records of a mirror that are decoded at once, where they are and from a copy."""
WHY = {
    BAD_CHECKSUM: "its checksum does not match",
    BAD_RECORD: "its parts contradict each other",
    BAD_KIND: "it has float32 values in a shard of counts, or the reverse, or is packed or short in an old shard",
    BAD_GENE: "it has a gene that its source does not have",
    BAD_FORM: "it has a needless exception, a stored zero, or padding that is not zero",
}
"""Explanations of the errors of a record."""

_Ranges: TypeAlias = tuple[NDArray[np.integer], NDArray[np.int64], NDArray[np.int64]]
"""Number of the shard, first byte and length of each range."""

Kernel: TypeAlias = Callable[[Records, NDArray[np.int64], NDArray[np.uint8], slice], tuple[int, int]]
"""Takes records in memory, their rows, a bit for each row that is set once its checksum was verified, and which part of
all records they are; returns a status and the number of a record, as `decode_records` does."""


class MappedShards:
    """The shards of one matrix of a store, mapped or in a mirror, and the arrays by which kernels locate records."""

    def __init__(
        self,
        folder: Path,
        shards: Sequence[ShardRecord],
        n_genes: Sequence[int],
        *,
        further: bool = False,
        mirror: Mirror | None = None,
    ) -> None:
        """Map the shards; reads only their first and last bytes, and nothing from a mirror.

        Args:
            folder: The store.
            shards: The shards of one matrix.
            n_genes: Number of genes of the gene space of each source, or of its columns of another matrix.
            further: Whether the matrix is a further one, whose shards are of kind "either".
            mirror: The mirror of the store's files, if it is remote.

        Raises:
            StoreFormatError: a file does not match the manifest; names it.
        """
        self._folder, self._shards, self._n_genes, self._further = folder, shards, n_genes, further
        self.index = np.array([_index_of(folder, shard) for shard in shards], np.int64)
        """``(S,)`` offset of the index of each shard."""
        self.n_cells = np.array([shard.n_cells for shard in shards], np.int64)
        """``(S,)`` cells of each shard."""
        self.n_bytes = np.array([shard.file.n_bytes for shard in shards], np.int64)
        """``(S,)`` bytes of each file."""
        self.is_checked = np.zeros(len(shards), np.bool_)
        """``(S,)`` whether the checksum of the index of each shard was verified."""
        self._in_memory: dict[int, NDArray[np.uint8]] = {}
        """The indexes that no cache keeps."""
        self.base = np.zeros(len(shards), np.int64)
        """``(S,)`` address of each map; 0 in a mirror."""
        self.bytes: FileBytes
        if mirror is None:
            mapped = self.bytes = _mapped(folder, shards)
            self.base = mapped.base
            for number, shard in enumerate(shards):
                self._check_ends(number, mapped.part(number, shard.file.n_bytes - FOOT.size, FOOT.size).data)
        else:
            mirrored = self.bytes = MirroredBytes(mirror, [shard.file.path for shard in shards])
            self._paged = PagedIndex(self, mirrored, FOOT.size)
        n_checked = int(self.n_cells.sum()) if mirror is None else 0
        self._checked_in_mirror = -1, np.empty(0, np.uint8)
        """As ``checked``, after so many removals from the mirror."""
        self.checked = np.zeros(n_checked // 8 + 1, np.uint8)
        """One bit per cell of mapped shards, set once the checksum of its record has been verified."""

    def is_foot(self, number: int, content: bytes) -> bool:
        """Whether these are the last `FOOT.size` of a shard, which contain the checksum of all its records."""
        return checksum(content) == self._shards[number].foot

    def check_unchanged(self, shard: NDArray[np.integer]) -> None:
        """Check that the files of the shards with these numbers are as they were when they were mapped.

        Called after reading, before what was read is used.

        Raises:
            SourceChangedError: one has changed, or cannot be read; names it.
        """
        self.bytes.check(shard)

    def check_indexes(self, shards: NDArray[np.integer]) -> None:
        """As `check_index` for several shards, which are loaded together."""
        new = shards[~self.is_checked[shards]]
        if len(new):
            begin = np.concatenate([self.index[new], np.zeros(len(new), np.int64)])
            length = np.concatenate([self.n_bytes[new] - self.index[new], np.full(len(new), HEAD.size)])
            self.bytes.start(np.concatenate([new, new]), begin, length)
            for shard in new.tolist():
                self.check_index(shard)

    def check_index(self, shard: int) -> None:
        """Check the checksum of the offsets, sizes and sources of a shard's cells, once.

        Raises:
            SourceChangedError: the file has changed since it was mapped.
            StoreFormatError: it does not match; names the file.
        """
        if self.is_checked[shard]:
            return
        path, stated, begin = self.path(shard), self._shards[shard], int(self.index[shard])
        at, first, length = np.array([shard]), self.index[[shard]], np.array([stated.file.n_bytes - begin])
        is_kept = self.bytes.keep(shard, begin)
        for _ in range(TRIES):
            content = self.bytes.part(shard, begin, int(length[0]))
            found = checksum(content.data)
            self.check_unchanged(at)
            if found == stated.index or not self.bytes.forget(at, first, length):
                break
        if found != stated.index:
            raise _damaged(path, "checksum of its index", found, stated.index)
        if not self.bytes.is_local:
            self._check_ends(shard, content[-FOOT.size :].data)
        if not is_kept:
            self._in_memory[shard] = content
        n_values = int(self._sizes(shard).sum(dtype=np.int64))
        self.check_unchanged(at)
        if n_values != stated.n_values:  # bounds the memory that the sizes ask for
            raise _damaged(path, "values of its cells", n_values, stated.n_values)
        self.is_checked[shard] = True

    def locate(self, shard: NDArray[np.integer], cell: NDArray[np.int64]) -> tuple[Records, int]:
        """The records of cells, not loaded yet, and the number of the first impossible one in the index, or -1.

        The address of a record of a mirror is its offset in its shard.
        """
        records = Records(cell, *(np.empty(len(cell), np.int64) for _ in range(3)))
        if self.bytes.is_local:
            self.bytes.start(shard, self.index[shard] + 8 * cell, np.full(len(cell), _OFFSETS))
            return records, locate_records(self.base, self.index, self.n_cells, shard, records)
        wrong = self._paged.locate(shard, records)
        return records, int(np.argmax(wrong)) if wrong.any() else -1

    def read_entries(self, shard: NDArray[np.integer], records: Records) -> NDArray[np.bool_]:
        """Fill in address, length and size of records from the index of their shards in the mirror.

        Returns which are impossible; the others are right only as far as the index is.
        """
        of_offsets, of_sizes = self._ranges(shard, records.cell)
        begin, end = self._entries(*of_offsets).view(np.int64).reshape(-1, 2).T
        sizes, length = self._entries(*of_sizes).view(np.uint32), end - begin
        fits = (begin >= 0) & (end <= self.index[shard]) & (length >= HEADER) & ((begin | end) & 7 == 0)
        records.address[:], records.length[:], records.size[:] = begin, length, sizes
        impossible: NDArray[np.bool_] = ~(fits & (sizes.astype(np.int64) <= MOST_PER_BYTE * length))
        return impossible

    def start_entries(self, shard: NDArray[np.integer], cell: NDArray[np.int64]) -> None:
        """Start loading the entries of cells."""
        ranges = zip(*self._ranges(shard, cell), strict=True)
        self.bytes.start(*(np.concatenate(arrays) for arrays in ranges))

    def forget_entries(self, shard: NDArray[np.integer], cell: NDArray[np.int64]) -> None:
        """Fetch the entries of cells anew when they are next read."""
        for ranges in self._ranges(shard, cell):
            self.bytes.forget(*ranges)

    def _ranges(self, shard: NDArray[np.integer], cell: NDArray[np.int64]) -> list[_Ranges]:
        """Where the offsets of cells are, and where their sizes are."""
        begin = self.index[shard]
        sizes = begin + 8 * (self.n_cells[shard] + 1) + 4 * cell
        return [
            (shard, begin + 8 * cell, np.full(len(cell), _OFFSETS)),
            (shard, sizes, np.full(len(cell), _SIZE)),
        ]

    def _entries(
        self, shard: NDArray[np.integer], begin: NDArray[np.int64], length: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """The bytes of ranges of the index of shards, which have one length."""
        assert isinstance(self.bytes, MirroredBytes)
        if not self._in_memory:
            return self.bytes.copied(shard, begin, length)[0]
        out = np.empty((len(shard), int(length.max(initial=0))), np.uint8)
        on_disk = ~np.isin(shard, list(self._in_memory))
        found, _ = self.bytes.copied(shard[on_disk], begin[on_disk], length[on_disk])
        out[on_disk] = found.reshape(-1, out.shape[1])
        for number, content in self._in_memory.items():
            mine = shard == number
            out[mine] = content[(begin[mine] - self.index[number])[:, None] + np.arange(out.shape[1])]
        return out.reshape(-1)

    def start(self, shard: NDArray[np.integer], records: Records) -> None:
        """Start loading located records; returns at once."""
        self.bytes.start(shard, records.address - self.base[shard], records.length)

    def run(
        self, shard: NDArray[np.integer], records: Records, rows: NDArray[np.int64], kernel: Kernel
    ) -> tuple[int, int]:
        """Run a kernel on located records, which are cells ``rows`` of the store; returns the first error, or `OK`.

        Raises:
            SourceChangedError: a shard has changed since it was mapped.
        """
        if self.bytes.is_local:
            result = kernel(records, rows, self.checked, slice(0, len(rows)))
            self.check_unchanged(shard)
            return result
        n_bytes = np.cumsum(records.length)
        for part in _parts(n_bytes, _VIEWED):
            some = Records(*(array[part] for array in records))
            if not self._run_in_place(shard[part], some, rows[part], kernel, part):
                for piece in _parts(n_bytes[part] - n_bytes[part][0] + some.length[0], _COPIED):
                    few = Records(*(array[piece] for array in some))
                    moved = slice(part.start + piece.start, part.start + piece.stop)
                    status, at = self._run_on_copies(shard[part][piece], few, kernel, moved)
                    if status != OK:
                        return status, at + moved.start
        return OK, 0

    def _run_in_place(
        self, shard: NDArray[np.integer], records: Records, rows: NDArray[np.int64], kernel: Kernel, part: slice
    ) -> bool:
        """Run a kernel on records in a mirror; returns whether they were there and right."""
        assert isinstance(self.bytes, MirroredBytes)
        view = self.bytes.view(shard, records.address, records.length)
        if view is None:
            return False
        n_removals, checked = self._checked_in_mirror
        if n_removals != view.n_removals:  # another array, since other threads may be using this one
            checked = np.zeros(int(self.n_cells.sum()) // 8 + 1, np.uint8)
            self._checked_in_mirror = view.n_removals, checked
        status, _ = kernel(records._replace(address=view.address), rows, checked, part)
        return status == OK and view.is_right()

    def _run_on_copies(
        self, shard: NDArray[np.integer], records: Records, kernel: Kernel, part: slice
    ) -> tuple[int, int]:
        """Run a kernel on copies of records, which are fetched again if their checksums are wrong."""
        rows = np.arange(len(shard))
        for _ in range(TRIES):
            address, kept = self.bytes.held(shard, records.address, records.length)
            copies = records._replace(address=address)
            status, at = kernel(copies, rows, np.zeros(len(rows) // 8 + 1, np.uint8), part)
            wrong = wrong_checksums(copies) if status != OK else np.zeros(0, np.bool_)
            del kept
            if not wrong.any():
                break
            self.bytes.forget(shard[wrong], records.address[wrong], records.length[wrong])
        return status, at

    def offsets(self, shard: int) -> NDArray[np.int64]:
        """``(n + 1,)`` offsets of a shard's records, and of the end of the last; checked."""
        self.check_index(shard)
        return self._table(shard, 0, 8 * (int(self.n_cells[shard]) + 1)).view(np.int64)

    def sizes(self, shard: int) -> NDArray[np.uint32]:
        """``(n,)`` numbers of values of a shard's cells; checked."""
        self.check_index(shard)
        return self._sizes(shard)

    def _sizes(self, shard: int) -> NDArray[np.uint32]:
        n = int(self.n_cells[shard])
        return self._table(shard, 8 * (n + 1), 4 * n).view(np.uint32)

    def sources(self, shard: int) -> NDArray[np.uint32]:
        """``(n,)`` sources of the cells of a mixed shard; checked."""
        self.check_index(shard)
        n = int(self.n_cells[shard])
        return self._table(shard, 8 * (n + 1) + (4 * n + 7) // 8 * 8, 4 * n).view(np.uint32)

    def _table(self, shard: int, begin: int, n_bytes: int) -> NDArray[np.uint8]:
        """A part of the index of a shard."""
        if shard in self._in_memory:
            return self._in_memory[shard][begin : begin + n_bytes]
        return self.bytes.part(shard, int(self.index[shard]) + begin, n_bytes)

    def release(self) -> None:
        """Release the pages of all maps to the system; views stay valid."""
        self.bytes.release()

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self._folder / self._shards[shard].file.path

    def forms(self, shard: int) -> int:
        """Which records a shard may have besides those of bytes: 0, `COMPACT` or `SHORT`, as in `check_records`."""
        version = HEAD.unpack(self.bytes.part(shard, 0, HEAD.size).data)[1]
        return {PACKED_VERSION: COMPACT, SHORT_VERSION: SHORT}.get(version, 0)

    def stated(self, shard: int) -> tuple[Kind, bytes]:
        """The kind of a shard's values, and the stored BLAKE2b of all bytes before its index."""
        flags = HEAD.unpack(self.bytes.part(shard, 0, HEAD.size).data)[2]
        kind: Kind = "either" if flags & MAY_BE_FLOATS else "float32" if flags & HAS_FLOATS else "counts"
        foot = self.bytes.part(shard, self._shards[shard].file.n_bytes - FOOT.size, FOOT.size)
        return kind, FOOT.unpack(foot.data)[0]

    def _check_ends(self, number: int, foot: Any) -> None:
        """Check the first and last bytes of a shard: all but its records and index.

        Raises:
            StoreFormatError: they do not match the manifest; names the file.
        """
        shard, further = self._shards[number], self._further
        magic, version, flags = HEAD.unpack(self.bytes.part(number, 0, HEAD.size).data)
        _, n_cells, n_values, genes, index = FOOT.unpack(foot)
        mixed = shard.source is None
        known = 0 if shard.source is None else self._n_genes[shard.source]
        oldest = MATRICES_VERSION if further else VERSION
        expected = {
            "first bytes": (magic, MAGIC),
            "format version": (version, version if version in {PACKED_VERSION, SHORT_VERSION} else oldest),
            "number of cells": (n_cells, shard.n_cells),
            "number of values": (n_values, shard.n_values),
            "number of genes": (genes, known),
            "length of its index": (index + index_bytes(n_cells, mixed), shard.file.n_bytes),
            "offset of its index, modulo 8,": (index % 8, 0),
            "checksum of its last bytes": (checksum(foot), shard.foot),
            "flags": (flags & ~(0 if further else HAS_FLOATS), IS_MIXED * mixed | MAY_BE_FLOATS * further),
        }
        for what, (found, wanted) in expected.items():
            if found != wanted:
                raise _damaged(self.path(number), what, found, wanted)


def _parts(n_bytes: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Parts of about ``most`` bytes of records whose cumulative bytes are ``n_bytes``."""
    total = int(n_bytes[-1]) if len(n_bytes) else 0
    cuts = np.searchsorted(n_bytes, np.arange(most, total, most))
    for start, stop in pairwise(np.unique([0, *cuts, len(n_bytes)]).tolist()):
        yield slice(start, stop)


def _mapped(folder: Path, shards: Sequence[ShardRecord]) -> MappedBytes:
    try:
        return MappedBytes([folder / shard.file.path for shard in shards], [shard.file.n_bytes for shard in shards])
    except (FileNotFoundError, ValueError) as error:
        raise StoreFormatError(f"a shard was removed or truncated after the store was opened: {error}") from error


def _index_of(folder: Path, shard: ShardRecord) -> int:
    """Offset of the index of a shard.

    Raises:
        StoreFormatError: the file would be too short.
    """
    path, n_bytes = folder / shard.file.path, shard.file.n_bytes
    index = n_bytes - index_bytes(shard.n_cells, shard.source is None)
    if index < FIRST_RECORD:
        raise StoreFormatError(f"{path} has {n_bytes} bytes, too few for a shard; copy or convert the store again")
    return index


def _damaged(path: Path, what: str, found: object, wanted: object) -> StoreFormatError:
    mismatch = f"{what} {found!r}, expected {wanted!r}"
    return StoreFormatError(f"{path} is damaged, or of another store: {mismatch}; copy or convert the store again")
