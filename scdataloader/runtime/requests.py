"""Ranges of stored objects, with many requests in flight: made in one background thread of each process.

The threads of obstore do not exist in a forked process whose parent has used it. Requests of such a process are made by
a helper, a new process that returns the bytes through a pipe.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from scdataloader.runtime import buckets
from scdataloader.runtime.buckets import Bucket, explained
from scdataloader.runtime.options import RemoteOptions

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
"""Seconds between two tries of a request whose answer is too short."""


@dataclass(slots=True, eq=False)
class Request:
    """A range of an object."""

    path: str
    begin: int
    end: int
    """Byte behind the last one."""
    etag: str | None = None
    """The object's ETag, which it must have; None if any is right."""
    reads_etag: bool = False
    """Whether ``etag`` becomes that of the answer; it stays None if the server states none, or in a forked process."""
    write: Callable[[Any], None] | None = None
    """Receives the bytes, in the background thread; None if they are the result."""
    done: Future[Any] = field(default_factory=Future)
    """Ends with the bytes, or None if they were written; its errors are those of `buckets.explained`."""

    def end_with(self, content: Any) -> None:
        """Hand over the bytes, or an error, which is raised where they are needed."""
        if isinstance(content, BaseException):
            self.done.set_exception(content)
            return
        try:
            if self.write is not None:
                self.write(content)
                content = None
        except BaseException as error:  # noqa: BLE001
            self.done.set_exception(error)
        else:
            self.done.set_result(content)


def start(bucket: Bucket, requests: Sequence[Request]) -> None:
    """Start requests of objects of a bucket; returns at once."""
    _requester().start(bucket, requests)


class _Requester:
    """The background thread of a process."""

    def __init__(self) -> None:
        buckets.note_use()
        self._most = RemoteOptions.of_environment().requests
        self._queue: deque[tuple[Bucket, Request]] = deque()
        self._n_running = 0
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        threading.Thread(target=self._loop.run_forever, name="scdataloader-requests", daemon=True).start()
        atexit.register(lambda: self._loop.call_soon_threadsafe(self._loop.stop))

    def start(self, bucket: Bucket, requests: Sequence[Request]) -> None:
        """As `start`."""
        self._loop.call_soon_threadsafe(self._create, bucket, requests)

    def _create(self, bucket: Bucket, requests: Sequence[Request]) -> None:
        self._queue.extend((bucket, request) for request in requests)
        new = min(len(requests), self._most - self._n_running)
        self._n_running += new
        for _ in range(new):
            task = self._loop.create_task(self._run())
            self._tasks.add(task)  # the loop has weak references only
            task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        """Make requests of the queue until it is empty."""
        while self._queue:
            bucket, request = self._queue.popleft()
            try:
                content = await _content(bucket.store, request)
            except BaseException as error:  # noqa: BLE001 (raised where the bytes are needed)
                content = _explained(error, bucket.url_of(request.path))
            request.end_with(content)
        self._n_running -= 1  # here, so that no caller relies on a task that has just found the queue empty


def _explained(error: BaseException, url: str) -> BaseException:
    try:
        with explained(url):
            raise error  # noqa: TRY301
    except BaseException as better:  # noqa: BLE001
        return better


async def _content(store: Any, request: Request) -> Any:
    """The bytes of a range. A server may send too few without an error, or break off; then they are requested again."""
    generic, n_bytes = _obstore().exceptions.GenericError, request.end - request.begin
    last, pause = time.monotonic() + buckets.RETRY_S, _FIRST_PAUSE
    while True:
        failure: Exception
        try:
            content = await _answer(store, request)
        except generic as error:
            if "status code: 4" in str(error):
                raise
            failure = error
        else:
            if len(content) == n_bytes:
                return content
            failure = ConnectionError(f"{len(content)} bytes of {n_bytes}")
        if time.monotonic() + pause > last:
            raise failure
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


@cache
def _obstore() -> Any:
    import_module("obstore.exceptions")
    return import_module("obstore")


async def _answer(store: Any, request: Request) -> Any:
    obstore = _obstore()
    if request.etag is None and not request.reads_etag:
        return await obstore.get_range_async(store, request.path, start=request.begin, end=request.end)
    options: dict[str, Any] = {"range": (request.begin, request.end)}
    if request.etag is not None:
        options["if_match"] = request.etag
    found = await obstore.get_async(store, request.path, options=options)
    content = await found.bytes_async()
    if request.reads_etag:
        request.etag = found.meta["e_tag"]
    return content


class _Helper:
    """Another process that makes the requests of this one, which was forked."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        code = f"from {__name__} import serve; serve({theirs.fileno()})"
        self._process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()])  # noqa: S603 (ours)
        theirs.close()
        self._pending: dict[int, Request] = {}
        self._numbers, self._lock = count(), threading.Lock()
        threading.Thread(target=self._receive, name="scdataloader-requests", daemon=True).start()

    def start(self, bucket: Bucket, requests: Sequence[Request]) -> None:
        """As `start`."""
        with self._lock:
            numbered = dict(zip(self._numbers, requests, strict=False))
            self._pending |= numbered
            wanted = [(number, one.path, one.begin, one.end, one.etag) for number, one in numbered.items()]
            self._pipe.send((bucket.url, wanted))

    def _receive(self) -> None:
        while True:
            try:
                number, error = self._pipe.recv()
                content = self._pipe.recv_bytes() if error is None else error
            except (EOFError, OSError) as ended:
                lost = ConnectionError(f"the process that makes the requests of this one has ended ({ended!r})")
                for request in self._pending.values():
                    request.end_with(lost)
                return
            self._pending.pop(number).end_with(content)


def serve(descriptor: int) -> None:
    """Make the requests that arrive at a pipe, until it is closed."""
    pipe, lock, opened = Connection(descriptor), threading.Lock(), dict[str, Bucket]()

    def answer(number: int, request: Request, _: object) -> None:
        error = request.done.exception()
        with lock, suppress(BrokenPipeError):
            pipe.send((number, error))
            if error is None:
                pipe.send_bytes(request.done.result())

    while True:
        try:
            url, wanted = pipe.recv()
        except (EOFError, ConnectionError):
            return
        if url not in opened:
            opened[url] = Bucket.open(url)
        made = {number: Request(path, begin, end, etag) for number, path, begin, end, etag in wanted}
        for number, request in made.items():
            request.done.add_done_callback(partial(answer, number, request))
        start(opened[url], list(made.values()))


_requesters: dict[int, _Requester | _Helper] = {}
_lock = threading.Lock()


def _renew_lock() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def _requester() -> _Requester | _Helper:
    process = os.getpid()
    with _lock:
        if process not in _requesters:
            _requesters[process] = _Requester() if buckets.is_usable() else _Helper()
        return _requesters[process]
