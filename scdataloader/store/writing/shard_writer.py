"""Writer of shards, whose format is in `store.shard`."""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.records.encode import COMPACT, COUNTS, SHORT, encode_rows, first_unfit, most_words
from scdataloader.runtime.files import PARTIAL, sync
from scdataloader.store.manifest import PACKED_VERSION, SHORT_VERSION, FileRecord, Kind, ShardRecord
from scdataloader.store.shard import DIGEST_BYTES, FLAG_OF, FOOT, HEAD, IS_MIXED, KINDS, MAGIC, checksum

_MOST_VALUES = 1 << 32
_LONG = 8
_EXACT = 1 << 53
"""Up to here float64 represents every whole number, and can decide whether float32 does."""


class ShardWriter:
    """Writer of one shard, block by block, under a temporary name until it is complete.

    A context manager: leaving it without `finish` removes the file.
    """

    def __init__(
        self, folder: Path, path: str, *, kind: Kind, n_genes: int, mixed: bool = False, compact: bool = False
    ) -> None:
        """Begin the shard ``path`` of the store in ``folder``.

        ``n_genes`` is the number of genes of its source's gene space. A ``mixed`` shard has cells of several sources.
        Further matrices are of the kind "either". ``compact`` records are packed,
        others short.
        """
        self._form, version = (COMPACT, PACKED_VERSION) if compact else (SHORT, SHORT_VERSION)
        self._folder, self._path = folder, path
        self._kind, self._n_genes, self._mixed = KINDS[kind], 0 if mixed else n_genes, mixed
        self._floats = self._kind != COUNTS
        self._partial = folder / f"{path}{PARTIAL}"
        self._file = self._partial.open("wb")
        self._digest = blake2b(digest_size=DIGEST_BYTES)
        self._n_bytes = 0
        self._offsets: list[NDArray[np.int64]] = []
        self._sizes: list[NDArray[np.uint32]] = []
        self._sources: list[NDArray[np.uint32]] = []
        self.n_cells = 0
        self._write(HEAD.pack(MAGIC, version, FLAG_OF[self._kind] | IS_MIXED * mixed))

    def append(
        self, indptr: NDArray[np.int64], indices: NDArray[Any], data: NDArray[Any], rank: NDArray[np.int32]
    ) -> None:
        """Write rows of a matrix, whose gene g has the number ``rank[g]`` in the records.

        Raises:
            ValueError: a value is not of the shard's kind, or a gene number is out of range or occurs twice in a cell;
                names the first such cell by its number in this call.
        """
        indptr = np.asarray(indptr, np.int64)
        if self._floats and data.dtype.itemsize == _LONG and data.dtype.kind in "iu" and _magnitude(data) > _EXACT:
            raise ValueError(f"a whole number is larger than {_EXACT:,}, which float32 may not represent")
        at = first_unfit(data, not self._floats)
        if at >= 0:
            cell = int(np.searchsorted(indptr, at, side="right")) - 1
            wanted = "float32 numbers" if self._floats else "counts below 2^32"
            raise ValueError(f"cell {cell} has the value {data[at]}; a store of this kind holds {wanted}")
        bits = data.astype(np.float32).view(np.uint32) if self._floats else data.astype(np.uint32)
        n = len(indptr) - 1
        words = np.empty(most_words(n, len(data)), np.uint64)
        offsets, sizes = np.empty(n, np.int64), np.empty(n, np.uint32)
        kind = self._kind | self._form
        n_words = encode_rows(indptr, indices, bits, rank, kind, self.n_cells, words, offsets, sizes)
        if n_words < 0:
            raise ValueError(f"cell {-1 - n_words} has a gene number outside 0 to {len(rank) - 1}, or one twice")
        self.append_records(words[:n_words], offsets, sizes)

    def append_records(
        self,
        words: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        sizes: NDArray[np.uint32],
        sources: NDArray[np.uint32] | None = None,
    ) -> None:
        """Write records that begin at bytes ``offsets`` of ``words``, with the checksums of their cell numbers here."""
        self._offsets.append(offsets + self._n_bytes)
        self._sizes.append(sizes)
        if self._mixed:
            self._sources.append(np.asarray(sources, np.uint32))
        self.n_cells += len(sizes)
        self._write(words)

    def finish(self, source: int | None = None) -> ShardRecord:
        """Write the index, give the file its name, and return the shard's record.

        Raises:
            ValueError: the shard has more than 2^32 values.
        """
        n_values = int(sum(int(sizes.sum(dtype=np.int64)) for sizes in self._sizes))
        if n_values > _MOST_VALUES:
            raise ValueError(f"{self._path} would have {n_values:,} values, more than 2^32; use fewer cells per shard")
        end = self._n_bytes
        parts = [np.concatenate([*self._offsets, np.array([end], np.int64)]).tobytes()]
        for tables in (self._sizes, self._sources)[: 1 + self._mixed]:
            table = np.concatenate(tables) if tables else np.empty(0, np.uint32)
            parts.append(np.concatenate([table, np.zeros(len(table) % 2, np.uint32)]).tobytes())
        foot = FOOT.pack(self._digest.digest(), self.n_cells, n_values, self._n_genes, end)
        index = b"".join([*parts, foot])
        self._write(index)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self._folder / self._path)
        sync((self._folder / self._path).parent)
        record = FileRecord(path=self._path, n_bytes=self._n_bytes, checksum=self._digest.hexdigest())
        checksums = {"foot": checksum(foot), "index": checksum(index)}
        return ShardRecord(file=record, **checksums, n_cells=self.n_cells, n_values=n_values, source=source)

    def _write(self, content: bytes | NDArray[Any]) -> None:
        view = memoryview(content).cast("B")  # type: ignore[arg-type]
        self._file.write(view)
        self._digest.update(view)
        self._n_bytes += len(view)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # closing flushes buffers, for which the disk may be too full
            self._file.close()
        self._partial.unlink(missing_ok=True)


def _magnitude(data: NDArray[Any]) -> int:
    return max(int(data.max(initial=0)), -int(data.min(initial=0)))
