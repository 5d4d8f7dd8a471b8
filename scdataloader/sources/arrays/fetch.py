"""Decode the chunks of a read in threads, each once, with a bounded cache of decoded chunks."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from scdataloader.runtime.processes import n_cores
from scdataloader.sources.arrays.arrays import ChunkedArray

CACHE_BYTES = 512 << 20
"""Decoded chunks that all sources of a process keep together, in equal shares: as many as a window of draws in blocks
of 512 spreads over, of which each read has a part of every block."""
_TASK_BYTES = 4 << 20
_TASKS_PER_THREAD = 4
"""Fewest tasks for each thread, of reads that are not larger than that many `_TASK_BYTES`."""
_MAX_THREADS = 8


class Kept(Protocol):
    """What a cache keeps: an array of values, or several together."""

    @property
    def size(self) -> int:
        """Number of values."""

    @property
    def nbytes(self) -> int:
        """Their size in bytes."""


_K = TypeVar("_K", bound=Kept)
_T = TypeVar("_T")
_R = TypeVar("_R")


class ChunkCache(Generic[_K]):
    """Decoded chunks, bounded by their bytes; the least recently used go first. Thread-safe, and empty after a fork."""

    _all: ClassVar[WeakSet[Any]] = WeakSet()

    def __init__(self) -> None:
        self._all.add(self)
        self._start()

    @property
    def max_bytes(self) -> int:
        """The share of this cache; it shrinks as sources are opened, so that thousands of them fit into memory."""
        return CACHE_BYTES // max(1, len(self._all))

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._chunks: OrderedDict[tuple[int, int], _K] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[int, int], size: int) -> _K | None:
        """The chunk, if at least its first ``size`` values are cached."""
        self._after_fork()
        with self._lock:
            values = self._chunks.get(key)
            if values is None or values.size < size:
                return None
            self._chunks.move_to_end(key)
            return values

    def put(self, key: tuple[int, int], values: _K, *, evict: bool) -> None:
        """Keep a chunk; older ones make room for it only if ``evict``."""
        self._after_fork()
        with self._lock:
            old = self._chunks.get(key)
            room = self.max_bytes - self._bytes + (0 if old is None else old.nbytes)
            if values.nbytes > (self.max_bytes if evict else room):
                return
            if old is not None:
                self._bytes -= self._chunks.pop(key).nbytes
            self._chunks[key] = values
            self._bytes += values.nbytes
            while self._bytes > self.max_bytes:
                self._bytes -= self._chunks.popitem(last=False)[1].nbytes

    def _after_fork(self) -> None:
        # Another thread may have held the lock, or been half-way through a change, when this process was forked.
        if self._process != os.getpid():
            self._start()


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkRequest:
    """Chunks of one array, or of several with the same chunks, that a read needs, and what to do with each."""

    arrays: tuple[ChunkedArray, ...]
    """The arrays."""
    key: int
    """Of the first array in the cache; those of the others follow."""
    numbers: NDArray[np.int64]
    """``(n,)`` chunk numbers, ascending."""
    sizes: NDArray[np.int64]
    """``(n,)`` number of values needed of each chunk, from its first on."""
    consume: Callable[..., int]
    """Called with the position in ``numbers`` and the decoded values of each array, from any thread; returns flags."""
    unit: int = 1
    """Number of neighbours in ``numbers`` that one thread consumes, in order."""
    n_bytes: int = field(init=False)
    """Decoded size of all chunks."""
    worth_keeping: bool = field(init=False)
    """Whether chunks of any of the arrays are."""

    def __post_init__(self) -> None:
        item = sum(array.dtype.itemsize for array in self.arrays)
        object.__setattr__(self, "n_bytes", int(self.sizes.sum()) * item)
        object.__setattr__(self, "worth_keeping", any(array.worth_keeping for array in self.arrays))

    def tasks(self) -> Iterator[range]:
        """Positions in ``numbers``, a few megabytes at a time, or so few that all threads have work."""
        if not len(self.numbers):
            return
        chunk_bytes = max(1, self.n_bytes // len(self.numbers))
        most = min(_TASK_BYTES // chunk_bytes, len(self.numbers) // (_TASKS_PER_THREAD * n_cores()))
        step = max(1, most // self.unit) * self.unit
        for start in range(0, len(self.numbers), step):
            yield range(start, min(start + step, len(self.numbers)))


def fetch(requests: Sequence[ChunkRequest], cache: ChunkCache[NDArray[Any]]) -> int:
    """Decode and consume all chunks, in threads that end with this call; returns the flags of all, or-ed.

    Memory is bounded by the cache and a chunk per thread. A read that is larger than the cache evicts nothing: a scan
    would evict what the next scan needs first.
    """
    evict = sum(request.n_bytes for request in requests if request.worth_keeping) <= cache.max_bytes
    tasks = [(request, positions) for request in requests for positions in request.tasks()]
    for request in requests:
        for key, array in enumerate(request.arrays, request.key):
            if not array.chunks.is_local:
                array.chunks.start(
                    [number for number in request.numbers.tolist() if cache.get((key, number), 0) is None]
                )

    def run(task: tuple[ChunkRequest, range]) -> int:
        return _consume(*task, cache, evict=evict)

    return _union(in_threads(run, tasks))


def in_threads(run: Callable[[_T], _R], tasks: Sequence[_T]) -> list[_R]:
    """The results of all tasks, in order, in threads that end with this call."""
    threads = min(_MAX_THREADS, n_cores(), len(tasks))
    if threads <= 1:
        return list(map(run, tasks))
    with ThreadPoolExecutor(threads, thread_name_prefix="scdataloader-decode") as pool:
        return list(pool.map(run, tasks))


def _union(flags: Iterable[int]) -> int:
    total = 0
    for flag in flags:
        total |= flag
    return total


def _consume(request: ChunkRequest, positions: range, cache: ChunkCache[NDArray[Any]], *, evict: bool) -> int:
    numbers, sizes = (part[positions.start : positions.stop].tolist() for part in (request.numbers, request.sizes))
    loaded = [_chunks(array, request.key + at, numbers, sizes, cache, evict) for at, array in enumerate(request.arrays)]
    return _union(request.consume(i, *values) for i, *values in zip(positions, *loaded, strict=True))


def _chunks(
    array: ChunkedArray,
    key: int,
    numbers: list[int],
    sizes: list[int],
    cache: ChunkCache[NDArray[Any]],
    evict: bool,  # noqa: FBT001 (as in `_consume`)
) -> Iterator[NDArray[Any]]:
    """The decoded chunks of an array, in order."""
    if not array.worth_keeping:
        yield from array.load(numbers, sizes)
        return
    kept = [cache.get((key, number), size) for number, size in zip(numbers, sizes, strict=True)]
    missing = [i for i, values in enumerate(kept) if values is None]
    loaded = array.load([numbers[i] for i in missing], [sizes[i] for i in missing])
    for number, found in zip(numbers, kept, strict=True):
        if found is not None:
            yield found
            continue
        values = next(loaded)
        cache.put((key, number), values, evict=evict)
        yield values
