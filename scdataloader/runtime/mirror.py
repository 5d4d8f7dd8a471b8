"""Mirror of remote files: a bounded, sparse copy on the local disk, filled by ranges planned for many cells."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.machine.pages import PAGE, SEGMENT, missing_runs, set_pages, touch
from scdataloader.runtime import requests
from scdataloader.runtime.buckets import Bucket
from scdataloader.runtime.memory import BufferPool
from scdataloader.runtime.options import RemoteOptions
from scdataloader.runtime.requests import Request
from scdataloader.runtime.sparse import KEPT, SEGMENT_BYTES, SparseCopy

_GAP, _RUN = 16, 1024
"""Most pages between two that one request fetches; most pages of a request."""
_TRIES = 4
"""Copies out of the mirror, each after what it lacked was fetched, before bytes are fetched past it."""
_UNBOUNDED = 1 << 40


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Ranges of files in a mirror, from which pages may be removed at any time."""

    address: NDArray[np.int64]
    """``(m,)`` address of each range."""
    n_removals: int
    """Removals from the mirror so far; what was found out about its bytes is right until the next one."""
    is_right: Callable[[], bool]
    """Whether all bytes have been there until now: called after they were used, before what was made of them is."""


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    """A request in flight of pages ``first`` to ``last`` of the mirror."""

    first: int
    last: int
    request: Request

    @property
    def segments(self) -> range:
        return range(self.first // SEGMENT, self.last // SEGMENT + 1)


class Mirror:
    """Bytes of files of a bucket, by number of the file and offset. Thread-safe; can be pickled and forked.

    Methods that fetch raise the errors of `buckets.explained`, above all ConnectionError.
    """

    def __init__(
        self, bucket: Bucket, version: str, files: Mapping[str, int], etags: Mapping[str, str] | None = None
    ) -> None:
        """Open the mirror of ``{path: bytes}``; ``version`` is another text whenever one of the files was written.

        A file that has not the ETag of ``etags`` any more raises SourceChangedError when it is fetched.
        """
        self.bucket, self.version = bucket, version
        self._files, self._etags = dict(files), dict(etags or {})
        self.paths, self._n_bytes = list(files), np.array([*files.values()], np.int64)
        self._number = {path: number for number, path in enumerate(files)}
        room = -(-self._n_bytes // SEGMENT_BYTES) + 1  # a segment between files, so that no request is of two
        self._starts = np.cumsum([0, *room.tolist()]) * SEGMENT_BYTES
        content = {"url": bucket.url, "version": version, "files": self._files}
        name = blake2b(repr(content).encode(), digest_size=16).hexdigest()
        self._copy = SparseCopy(RemoteOptions.of_environment().cache / name, content, int(self._starts[-1]))
        self._begin()

    def _begin(self) -> None:
        """Set the state of this process."""
        self._process, self._lock = os.getpid(), threading.Lock()
        self._coming = np.zeros(len(self._copy.present), np.uint64)
        """Bits of pages that are in flight."""
        self._flights: dict[int, list[_Flight]] = {}
        """{segment: requests in flight of its pages}."""
        self._buffers = BufferPool()

    def __contains__(self, path: str) -> bool:
        return path in self._files

    def number(self, path: str) -> int:
        """Number of a file."""
        return self._number[path]

    def n_bytes(self, path: str) -> int:
        """Size of a file."""
        return self._files[path]

    def start(self, file: NDArray[np.integer], begin: NDArray[np.int64], length: NDArray[np.int64]) -> None:
        """Start fetching what is missing of ranges of files; returns at once."""
        first = self._starts[file] + begin
        self._fetch(first, first + length)

    def view(self, file: NDArray[np.integer], begin: NDArray[np.int64], length: NDArray[np.int64]) -> View | None:
        """Ranges where they are in the mirror, after what is missing was fetched; None if not all are there."""
        first = self._starts[file] + begin
        last, n_removals = first + length, int(self._copy.removals[0])
        seen = self._copy.look(first, last)
        if (seen < 0).any():
            for request in self._fetch(first, last):
                request.done.result()
            seen = self._copy.look(first, last)
        if (seen < 0).any():
            return None
        return View(
            address=self._copy.base + first,
            n_removals=n_removals,
            is_right=lambda: bool(np.array_equal(seen, self._copy.look(first, last))),
        )

    def copied(
        self, file: NDArray[np.integer], begin: NDArray[np.int64], length: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Bytes of ranges of files one after the other, and ``(m,)`` the offset of each; fetches what is missing.

        The memory is reused once nothing refers to the bytes.
        """
        first, starts = self._starts[file] + begin, np.cumsum(length) - length
        last, out = first + length, self._buffers.take(int(length.sum()), np.uint8)
        todo = np.flatnonzero(length)
        for _ in range(_TRIES):
            todo = todo[~self._copy.copy(first[todo], last[todo], starts[todo], out)]
            if not len(todo) or not self._copy.is_writable:
                break
            fetched = self._fetch(first[todo], last[todo])
            for request in fetched:
                request.done.result()
            if not fetched:
                self._copy.repair()
        if len(todo):
            self._fetch_past(first[todo], last[todo], starts[todo], out)
        return out, starts

    def read(self, path: str, begin: int = 0, end: int | None = None) -> NDArray[np.uint8]:
        """Bytes ``[begin, end)`` of a file, as far as it has them."""
        n_bytes = self._files[path]
        begin, end = min(begin, n_bytes), n_bytes if end is None else min(end, n_bytes)
        return self.copied(np.array([self._number[path]]), np.array([begin]), np.array([max(0, end - begin)]))[0]

    def keep(self, path: str, begin: int = 0) -> bool:
        """Never remove the pages of a file from ``begin`` on; returns whether they can be kept on disk at all."""
        at, n_bytes = self._starts[self._number[path]], self._files[path]
        touch(np.array([at + begin]), np.array([at + n_bytes]), KEPT, self._copy.used)
        return self._copy.is_writable

    def ends(self, files: Sequence[int], n_bytes: int) -> list[tuple[bytes, str | None]]:
        """The last bytes of files as they are now, past the mirror, each with the strong ETag of its file, if any."""
        made = []
        for number in files:
            path, size = self.paths[number], int(self._n_bytes[number])
            made.append(Request(path=path, begin=size - n_bytes, end=size, reads_etag=True))
        requests.start(self.bucket, made)
        return [(bytes(request.done.result()), _strong(request.etag)) for request in made]

    def pin(self, files: Sequence[int], etags: Sequence[str | None]) -> None:
        """From now on, fetch nothing of files that have another ETag; of those with None, whatever they have."""
        for number, etag in zip(files, etags, strict=True):
            self._etags.pop(self.paths[number], None)
            if etag is not None:
                self._etags[self.paths[number]] = etag

    def forget(self, file: NDArray[np.integer], begin: NDArray[np.int64], length: NDArray[np.int64]) -> None:
        """Fetch ranges anew when they are next read, since their bytes are wrong."""
        first = self._starts[file] + begin
        self._copy.forget(first, first + length)

    def forget_file(self, path: str) -> None:
        """As `forget` for all bytes of a file."""
        self.forget(np.array([self._number[path]]), np.zeros(1, np.int64), np.array([self._files[path]]))

    def _fetch(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> list[Request]:
        """Fetch missing pages; returns all requests in flight that the ranges wait for."""
        if self._process != os.getpid():
            self._begin()
        if not self._copy.is_writable:
            return []
        touch(first, last, int(time.time()), self._copy.used)
        is_missing = self._copy.look(first, last) < 0
        if not is_missing.any():
            return []
        first, last = first[is_missing], last[is_missing]
        order = np.argsort(first, kind="stable")
        with self._lock:
            found, waited = missing_runs(first[order], last[order], self._copy.present, self._coming, _GAP, _RUN)
            pending = self._in_flight(waited)
            made = zip(found.tolist(), self._requests(found), strict=True)
            new = [_Flight(first, last, request) for (first, last), request in made]
            for flight in new:
                for segment in flight.segments:
                    self._flights.setdefault(segment, []).append(flight)
        for flight in new:
            flight.request.write = partial(self._copy.write, flight.first, flight.last)
            flight.request.done.add_done_callback(partial(self._landed, flight))
        fetched = [flight.request for flight in new]
        if new:
            requests.start(self.bucket, fetched)
        return pending + fetched

    def _in_flight(self, pages: NDArray[np.int64]) -> list[Request]:
        """The requests in flight of pages, which ascend."""
        segments = np.unique(pages // SEGMENT).tolist()
        near = {id(flight): flight for segment in segments for flight in self._flights.get(segment, ())}
        first, last = np.array([(flight.first, flight.last) for flight in near.values()], np.int64).reshape(-1, 2).T
        is_waited = np.searchsorted(pages, first) < np.searchsorted(pages, last, side="right")
        return [flight.request for flight, is_one in zip(near.values(), is_waited.tolist(), strict=True) if is_one]

    def _requests(self, runs: NDArray[np.int64]) -> list[Request]:
        """Requests of runs of pages ``(r, 2)``, each of one file."""
        begin, end = runs[:, 0] * PAGE, (runs[:, 1] + 1) * PAGE
        file = np.searchsorted(self._starts, begin, side="right") - 1
        start = self._starts[file]
        ranges = np.stack([file, begin - start, np.minimum(end - start, self._n_bytes[file])], axis=1).tolist()
        return [
            Request(path=(path := self.paths[number]), begin=first, end=last, etag=self._etags.get(path))
            for number, first, last in ranges
        ]

    def _landed(self, flight: _Flight, _: object) -> None:
        with self._lock:
            set_pages(flight.first, flight.last, self._coming, False)  # noqa: FBT003
            for segment in flight.segments:
                self._flights[segment].remove(flight)
                if not self._flights[segment]:
                    del self._flights[segment]

    def _fetch_past(
        self, first: NDArray[np.int64], last: NDArray[np.int64], starts: NDArray[np.int64], out: NDArray[np.uint8]
    ) -> None:
        """Fetch ranges into ``out`` without keeping them."""
        order, nothing = np.argsort(first, kind="stable"), np.zeros(len(self._coming), np.uint64)
        runs, _ = missing_runs(first[order], last[order], nothing, nothing.copy(), _GAP, _UNBOUNDED)
        made = self._requests(runs)
        requests.start(self.bucket, made)
        content = [np.frombuffer(request.done.result(), np.uint8) for request in made]
        run_of = np.searchsorted(runs[:, 0], first // PAGE, side="right") - 1
        for i, run in enumerate(run_of.tolist()):
            at, n = int(first[i] - runs[run, 0] * PAGE), int(last[i] - first[i])
            out[starts[i] : starts[i] + n] = content[run][at : at + n]

    def __reduce__(self) -> tuple[Any, ...]:
        return Mirror, (self.bucket, self.version, self._files, self._etags)


def _strong(etag: str | None) -> str | None:
    """An ETag that a request may require (RFC 9110, 8.8.3)."""
    return None if etag is None or etag.startswith("W/") else etag
