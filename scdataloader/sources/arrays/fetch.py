"""Decode the chunks that a read needs: each once, several at a time, a bounded number of them kept for later reads."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from scdataloader.sources.arrays.arrays import ChunkedArray

CACHE_BYTES = 256 << 20
"""What all sources of a process together keep of decoded chunks, each an equal share."""
_TASK_BYTES = 1 << 20
_MAX_THREADS = 8


def n_threads() -> int:
    """Threads that one read may use: as many as this process may have cores, and no more than 8."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(_MAX_THREADS, cores)


class ChunkCache:
    """Decoded chunks, least recently used first out, bounded by their bytes. Thread-safe, and empty after a fork."""

    _all: ClassVar[WeakSet[ChunkCache]] = WeakSet()

    def __init__(self) -> None:
        self._all.add(self)
        self._start()

    @property
    def max_bytes(self) -> int:
        """This cache's share: it shrinks as sources are opened, so that thousands of them stay within memory."""
        return CACHE_BYTES // max(1, len(self._all))

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._chunks: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[int, int], size: int) -> NDArray[Any] | None:
        """The chunk, if at least its first ``size`` values are here."""
        self._after_fork()
        with self._lock:
            values = self._chunks.get(key)
            if values is None or values.size < size:
                return None
            self._chunks.move_to_end(key)
            return values

    def put(self, key: tuple[int, int], values: NDArray[Any], *, evict: bool) -> None:
        """Keep a chunk, in the place of older ones only if ``evict``."""
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
class Wanted:
    """Chunks of one array that a read needs, and what to do with each."""

    array: ChunkedArray
    """Whose chunks."""
    key: int
    """Tells the arrays of one cache apart."""
    numbers: NDArray[np.int64]
    """``(n,)`` chunk numbers, ascending."""
    sizes: NDArray[np.int64]
    """``(n,)`` how many of each chunk's values are needed, from its first on."""
    consume: Callable[[int, NDArray[Any]], int]
    """Called with the position in ``numbers`` and the decoded values, from any thread; returns flags."""
    unit: int = 1
    """So many neighbours in ``numbers`` are always consumed by one thread, in order."""
    n_bytes: int = field(init=False)
    """Decoded size of all of them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_bytes", int(self.sizes.sum()) * self.array.dtype.itemsize)

    def tasks(self) -> Iterator[range]:
        """Positions in ``numbers``, some megabyte at a time."""
        if not len(self.numbers):
            return
        chunk_bytes = max(1, self.n_bytes // len(self.numbers))
        step = max(1, _TASK_BYTES // chunk_bytes // self.unit) * self.unit
        for start in range(0, len(self.numbers), step):
            yield range(start, min(start + step, len(self.numbers)))


def fetch(wanted: Sequence[Wanted], cache: ChunkCache) -> int:
    """Decode and consume all chunks, in threads that end with this call; returns the flags of all, or-ed.

    Holds no more than the cache and a chunk per thread. A read that needs more than the cache can hold does not push
    out what is there: a scan would only ever evict what the next scan wants first.
    """
    evict = sum(part.n_bytes for part in wanted if part.array.worth_keeping) <= cache.max_bytes
    tasks = [(part, positions) for part in wanted for positions in part.tasks()]

    def run(task: tuple[Wanted, range]) -> int:
        return _consume(*task, cache, evict=evict)

    threads = min(n_threads(), len(tasks))
    if threads <= 1:
        return _union(map(run, tasks))
    with ThreadPoolExecutor(threads, thread_name_prefix="scdataloader-decode") as pool:
        return _union(pool.map(run, tasks))


def _union(flags: Iterable[int]) -> int:
    total = 0
    for flag in flags:
        total |= flag
    return total


def _consume(part: Wanted, positions: range, cache: ChunkCache, *, evict: bool) -> int:
    numbers, sizes = part.numbers[positions.start : positions.stop], part.sizes[positions.start : positions.stop]
    if not part.array.worth_keeping:
        loaded = part.array.load(numbers.tolist(), sizes.tolist())
        return _union(part.consume(i, values) for i, values in zip(positions, loaded, strict=True))
    kept = [cache.get((part.key, number), size) for number, size in zip(numbers.tolist(), sizes.tolist(), strict=True)]
    missing = [i for i, values in enumerate(kept) if values is None]
    loaded = part.array.load(numbers[missing].tolist(), sizes[missing].tolist())
    flags = 0
    for i, found in enumerate(kept):
        values = next(loaded) if found is None else found
        if found is None:
            cache.put((part.key, int(numbers[i])), values, evict=evict)
        flags |= part.consume(positions.start + i, values)
    return flags
