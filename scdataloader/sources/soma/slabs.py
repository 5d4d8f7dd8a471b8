"""Sparse arrays of TileDB-SOMA in slabs: all rows of a row of tiles, decoded together and kept as CSR.

TileDB compresses a tile of rows by genes as a whole: one row of 2,048 takes half as long as all of them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.kernels.rows import gather
from scdataloader.kernels.rows.coordinates import OK, count_coordinates, place_coordinates
from scdataloader.runtime.stopping import check_stopped
from scdataloader.sources.arrays.matrices import StoredRows

CACHE_BYTES = 1 << 30
"""Decoded slabs that all sources of a process keep together, in equal shares."""
_SMALL = np.iinfo(np.uint16)

Coordinates = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]
"""Rows, columns and values."""


class ReadsCoordinates(Protocol):
    """What a slab is decoded by: the values of rows [first, last] of an array, in pieces."""

    def __call__(self, first: int, last: int, /) -> Sequence[Coordinates]:
        """Both ends included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slab:
    """Consecutive rows of an array."""

    first: int
    """Joinid of the first row."""
    indptr: NDArray[np.int64]
    """``(n_rows + 1,)`` offsets."""
    indices: NDArray[Any]
    """``(nnz,)`` column numbers, uint16 if they fit."""
    data: NDArray[Any]
    """``(nnz,)`` values: uint16 if they are whole numbers that fit, otherwise as stored."""

    @classmethod
    def of(
        cls, pieces: Sequence[Coordinates], first: int, last: int, lut: NDArray[np.int32], index_dtype: np.dtype[Any]
    ) -> Slab:
        """The rows [first, last], both included, from values with coordinates.

        Raises:
            SourceFormatError: a coordinate is out of range.
        """
        counts, is_counts, largest = np.zeros(last - first + 1, np.int64), True, 0.0
        for rows, columns, data in pieces:
            status, whole, most = count_coordinates(rows, columns, data, first, lut, counts)
            if status != OK:
                raise SourceFormatError(f"a value among rows {first} to {last} has a coordinate outside the array")
            is_counts, largest = is_counts and whole, max(largest, most)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        stored = pieces[0][2].dtype if pieces else np.dtype(np.uint16)
        dtype = np.dtype(np.uint16) if is_counts and largest <= _SMALL.max else stored
        indices = np.empty(indptr[-1], index_dtype)
        values, places = np.empty(indptr[-1], dtype), indptr[:-1].copy()
        for rows, columns, data in pieces:
            place_coordinates(rows, columns, data, first, lut, places, indices, values)
        return cls(first=first, indptr=indptr, indices=indices, data=values)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return self.indptr.nbytes + self.indices.nbytes + self.data.nbytes

    def has(self, first: int, last: int) -> bool:
        """Whether rows [first, last] are among these."""
        return self.first <= first and last < self.first + len(self.indptr) - 1

    def take(self, ids: NDArray[np.int64], n_columns: int) -> StoredRows:
        """Rows by joinid."""
        rows, indptr, whole = ids - self.first, np.empty(len(ids) + 1, np.int64), np.zeros(1, np.int64)
        total, length = gather.row_offsets(self.indptr, rows, indptr), max(1, len(self.data))
        indices, data = np.empty(total, self.indices.dtype), np.empty(total, self.data.dtype)
        flags = gather.take_rows(self.indptr, self.indices, whole, length, rows, n_columns, indptr, indices)
        flags |= gather.take_rows(self.indptr, self.data, whole, length, rows, None, indptr, data)
        return StoredRows(indptr=indptr, indices=indices, data=data, flags=flags)


class SlabCache:
    """Decoded slabs, bounded by their bytes; the least recently used go first. Thread-safe."""

    _all: ClassVar[WeakSet[SlabCache]] = WeakSet()

    def __init__(self) -> None:
        self._all.add(self)
        self._lock = threading.Lock()
        self._slabs: OrderedDict[tuple[str, int], Slab] = OrderedDict()
        self.n_bytes = 0
        """Memory of the slabs."""

    @property
    def max_bytes(self) -> int:
        """The share of this cache."""
        return CACHE_BYTES // max(1, len(self._all))

    def get(self, key: tuple[str, int]) -> Slab | None:
        """A slab, if it is kept."""
        with self._lock:
            if key in self._slabs:
                self._slabs.move_to_end(key)
            return self._slabs.get(key)

    def put(self, key: tuple[str, int], slab: Slab, *, evict: bool) -> None:
        """Keep a slab; older ones make room for it only if ``evict``."""
        with self._lock:
            old = self._slabs.pop(key, None)
            self.n_bytes -= 0 if old is None else old.nbytes
            while evict and self._slabs and self.n_bytes + slab.nbytes > self.max_bytes:
                self.n_bytes -= self._slabs.popitem(last=False)[1].nbytes
            if self.n_bytes + slab.nbytes <= self.max_bytes:
                self._slabs[key] = slab
                self.n_bytes += slab.nbytes

    def keep_latest(self) -> None:
        """Drop all but the slab that was used last."""
        with self._lock:
            while len(self._slabs) > 1:
                self.n_bytes -= self._slabs.popitem(last=False)[1].nbytes


@dataclass(kw_only=True, slots=True, eq=False)
class Slabs:
    """An array that is read in slabs. Thread-safe, as far as ``read_coordinates`` is."""

    key: str
    """Key of the matrix in the cache."""
    n_rows: int
    """Length of the array."""
    step: int
    """Rows of a slab: the extent of the tiles."""
    lut: NDArray[np.int32]
    """``(n,)`` number of each column of the array; -1 for columns that are not read."""
    n_columns: int
    """Number of columns that are read."""
    read_coordinates: ReadsCoordinates
    """Reads the array."""
    cache: SlabCache
    """Shared by the matrices of a source."""
    slab_bytes: int = 0
    """Memory of the largest slab so far."""

    def read(self, ids: NDArray[np.int64]) -> StoredRows:
        """Rows by joinid, in any order, repeats allowed; every slab is decoded once at most."""
        order = np.argsort(ids, kind="stable")
        parts = deque(slab.take(own, self.n_columns) for slab, own in self._slabs_of(ids[order]))
        sizes, indptr = np.zeros(len(ids), np.int64), np.zeros(len(ids) + 1, np.int64)
        if parts:
            sizes[order] = np.concatenate([np.diff(part.indptr) for part in parts])
        np.cumsum(sizes, out=indptr[1:])
        dtype = np.result_type(np.uint16, *(part.data.dtype for part in parts))
        indices, data = np.empty(indptr[-1], self.index_dtype), np.empty(indptr[-1], dtype)
        targets, flags = indptr[order], 0
        while parts:  # each is dropped once it is copied
            part = parts.popleft()
            own, targets = targets[: len(part.indptr) - 1], targets[len(part.indptr) - 1 :]
            for stored, n_columns, out in ((part.indices, self.n_columns, indices), (part.data, None, data)):
                flags |= gather.scatter_rows(stored, 0, part.indptr[:-1], part.indptr[1:], own, n_columns, out)
        return StoredRows(indptr=indptr, indices=indices, data=data, flags=flags)

    @property
    def index_dtype(self) -> np.dtype[Any]:
        """The smallest of two dtypes for numbers of columns."""
        return np.dtype(np.uint16 if self.n_columns <= _SMALL.max else np.int32)

    def _slabs_of(self, wanted: NDArray[np.int64]) -> Iterator[tuple[Slab, NDArray[np.int64]]]:
        """The slabs of ascending joinids, one after the other, each with its joinids."""
        numbers, firsts = np.unique(wanted // self.step, return_index=True)
        edges = [*firsts.tolist(), len(wanted)]
        # A read that is larger than the cache evicts nothing: a scan would evict what the next scan needs first.
        evicts = len(numbers) * self.slab_bytes <= self.cache.max_bytes
        for at, number in enumerate(numbers.tolist()):
            check_stopped()
            own = wanted[edges[at] : edges[at + 1]]
            yield self._slab(number, int(own[0]), int(own[-1]), evict=evicts), own

    def _slab(self, number: int, first: int, last: int, *, evict: bool) -> Slab:
        """The slab of this number, or, where it does not fit into the cache, its rows [first, last]."""
        kept = self.cache.get((self.key, number))
        if kept is not None and kept.has(first, last):
            return kept
        start = number * self.step
        stop = min(start + self.step, self.n_rows) - 1
        room = self.cache.max_bytes - self.cache.n_bytes
        if evict or self.slab_bytes <= room:
            first, last = start, stop
        slab = Slab.of(self.read_coordinates(first, last), first, last, self.lut, self.index_dtype)
        if (first, last) == (start, stop):
            self.slab_bytes = max(self.slab_bytes, slab.nbytes)
            self.cache.put((self.key, number), slab, evict=evict)
        return slab
