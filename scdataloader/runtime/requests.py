"""Ranges of stored objects, with many requests in flight: made in one background thread of each process."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
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
    write: Callable[[Any], None] | None = None
    """Receives the bytes, in the background thread; None if they are the result."""
    done: Future[Any] = field(default_factory=Future)
    """Ends with the bytes, or None if they were written; its errors are those of `buckets.explained`."""


def start(bucket: Bucket, requests: Sequence[Request]) -> None:
    """Start requests of objects of a bucket; returns at once."""
    _requester().start(bucket, requests)


class _Requester:
    """The background thread of a process."""

    def __init__(self) -> None:
        self._most = RemoteOptions.of_environment().requests
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        threading.Thread(target=self._loop.run_forever, name="scdataloader-requests", daemon=True).start()
        atexit.register(lambda: self._loop.call_soon_threadsafe(self._loop.stop))

    @cached_property
    def _in_flight(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(self._most)

    def start(self, bucket: Bucket, requests: Sequence[Request]) -> None:
        """As `start`."""
        self._loop.call_soon_threadsafe(self._create, bucket, requests)

    def _create(self, bucket: Bucket, requests: Sequence[Request]) -> None:
        for request in requests:
            task = self._loop.create_task(self._run(bucket, request))
            self._tasks.add(task)  # the loop has weak references only
            task.add_done_callback(self._tasks.discard)

    async def _run(self, bucket: Bucket, request: Request) -> None:
        try:
            async with self._in_flight:
                with explained(bucket.url_of(request.path)):
                    content = await _content(bucket.store, request)
                if request.write is not None:
                    request.write(content)
                    content = None
        except BaseException as error:  # noqa: BLE001 (raised where the bytes are needed)
            request.done.set_exception(error)
        else:
            request.done.set_result(content)


async def _content(store: Any, request: Request) -> Any:
    """The bytes of a range. A server may send too few without an error, or break off; then it is asked again."""
    generic, n_bytes = import_module("obstore.exceptions").GenericError, request.end - request.begin
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


async def _answer(store: Any, request: Request) -> Any:
    obstore = import_module("obstore")
    if request.etag is None:
        return await obstore.get_range_async(store, request.path, start=request.begin, end=request.end)
    options = {"range": (request.begin, request.end), "if_match": request.etag}
    return await (await obstore.get_async(store, request.path, options=options)).bytes_async()


_requesters: dict[int, _Requester] = {}
_lock = threading.Lock()


def _requester() -> _Requester:
    process = os.getpid()
    with _lock:
        if process not in _requesters:
            _requesters[process] = _Requester()
        return _requesters[process]
