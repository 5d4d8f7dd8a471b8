"""Process pool in which the death of a process fails only the call that it was running."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any

_READY, _PROGRESS, _RESULT, _ERROR = range(4)
"""Kinds of messages from a worker process."""
_process_table = threading.Lock()
"""Held while processes are started or joined: `multiprocessing` may otherwise reap one process in two threads."""

OnProgress = Callable[[Any], None]


class WorkerDiedError(RuntimeError):
    """A process ended before its call returned; the message states the cause."""


class ProcessPool(Executor):
    """Executor with up to ``n_processes`` spawned processes, each running one call at a time.

    A process that is killed or exits fails its own call with `WorkerDiedError`, and the next call starts another one.
    If no process can start, calls fail with RuntimeError. Leaving the ``with`` statement by an exception cancels
    waiting calls and terminates running ones.
    """

    def __init__(self, n_processes: int) -> None:
        self._threads = ThreadPoolExecutor(n_processes, thread_name_prefix="scdataloader-pool")
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._is_terminated = False
        self._has_started = False

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule ``function(*args, **kwargs)``."""
        return self._threads.submit(self._run, partial(function, *args, **kwargs), None)

    def submit_with_progress(self, function: Callable[..., Any], /, *args: Any, on_progress: OnProgress) -> Future[Any]:
        """Schedule ``function(*args, report)``; a thread passes the values given to ``report`` to ``on_progress``."""
        return self._threads.submit(self._run, partial(function, *args), on_progress)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 (Executor's)
        """End the processes: after all calls, or at once unless ``wait``."""
        self._threads.shutdown(wait=False, cancel_futures=cancel_futures or not wait)
        with self._lock:
            self._is_terminated = not wait
            for worker in self._busy if not wait else ():
                worker.terminate()
        self._threads.shutdown()
        while self._idle:
            self._idle.pop().stop()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.shutdown(wait=kind is None)

    def _run(self, call: Callable[..., Any], on_progress: OnProgress | None) -> Any:
        """The result of a call in a process; runs in a thread, which waits for the process."""
        with self._worker() as worker:
            error, result = worker.run(call, on_progress)
        if error is not None:
            raise error
        return result

    @contextmanager
    def _worker(self) -> Iterator[_Worker]:
        """Yield an idle worker, or a new one; afterwards it is idle again.

        Raises:
            WorkerDiedError: its process has ended.
            RuntimeError: no process of the pool could start.
        """
        with self._lock:
            worker = self._idle.pop() if self._idle else _Worker()
            self._busy.add(worker)
            if self._is_terminated:
                worker.terminate()
        try:
            yield worker
        except EOFError:
            code = worker.join()
            if not (worker.is_ready or self._has_started):
                raise RuntimeError(
                    f"a process could not start and ended with exit code {code}; in a script, call this under "
                    "`if __name__ == '__main__':`"
                ) from None
            raise WorkerDiedError(_cause(code)) from None
        finally:
            with self._lock:
                self._busy.remove(worker)
                self._has_started |= worker.is_ready
                if not worker.has_ended:
                    self._idle.append(worker)


class _Worker:
    """A process that runs one call at a time."""

    def __init__(self) -> None:
        # fork is not safe beside the threads of HDF5, Arrow, numba and the progress bar
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.is_ready = self.has_ended = False
        with _process_table, uninterrupted():
            self._process.start()
        theirs.close()

    def run(self, call: Callable[..., Any], on_progress: OnProgress | None) -> tuple[Exception | None, Any]:
        """The error and the result of a call, of which one is None.

        Raises:
            EOFError: the process has ended.
        """
        with suppress(BrokenPipeError):  # the process has ended; receiving raises EOFError
            self._connection.send((call, on_progress is not None))
        while True:
            try:
                kind, value = self._connection.recv()
            except ConnectionResetError as error:
                raise EOFError from error
            if kind == _READY:
                self.is_ready = True
            elif kind == _PROGRESS and on_progress is not None:
                on_progress(value)
            elif kind == _ERROR:
                raised, text = value
                raised.__cause__ = _WorkerTracebackError(text)
                return raised, None
            else:
                return None, value

    def terminate(self) -> None:
        """Kill the process; a `run` in progress raises EOFError."""
        self._process.terminate()

    def stop(self) -> None:
        """End an idle process, so that its libraries clean up."""
        if not self.is_ready:
            self.terminate()
        self.join()

    def join(self) -> int:
        """Wait for the process to end; returns its exit code, or minus the number of the signal that killed it."""
        self.has_ended = True
        self._connection.close()
        with _process_table:
            self._process.join()
        return self._process.exitcode or 0


class _WorkerTracebackError(Exception):
    """Cause of an error that was raised in another process: its traceback there, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _cause(exit_code: int) -> str:
    if exit_code == -signal.SIGBUS:
        return "a file became shorter while it was read"
    if exit_code < 0:
        memory = ", perhaps for lack of memory: use fewer processes" if exit_code == -signal.SIGKILL else ""
        return f"the process was killed by {signal.Signals(-exit_code).name}{memory}"
    return f"the process ended with exit code {exit_code}; its traceback is on standard error"


def _serve(connection: Connection) -> None:
    """Run calls in this process until the connection is closed."""
    begin_worker()
    with suppress(EOFError, BrokenPipeError):
        connection.send((_READY, None))
        while True:
            connection.send_bytes(_reply(connection, connection.recv_bytes()))


def _reply(connection: Connection, content: bytes) -> bytes:
    """The result or the error of a call; call and reply are pickled."""
    try:
        call, reports = pickle.loads(content)  # noqa: S301 (from the process that started this one)
        result = call(lambda value: connection.send((_PROGRESS, value))) if reports else call()
        return pickle.dumps((_RESULT, result))
    except Exception as error:  # noqa: BLE001 (of the call; its future receives it)
        text = traceback.format_exc()
        try:
            return pickle.dumps((_ERROR, (error, text)))
        except Exception:  # noqa: BLE001 (pickling the error may raise anything)
            return pickle.dumps((_ERROR, (RuntimeError(f"{type(error).__name__}: {error}"), text)))


def n_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Postpone interrupts in this thread; processes started meanwhile never receive any.

    A terminal interrupts all processes of a command. Only the first one handles it and stops the others; one that is
    still starting could not.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker() -> None:
    """Make this process end as soon as the process that started it has ended, even if that was killed."""
    parent = multiprocessing.parent_process()

    def watch(sentinel: int) -> None:
        wait_for([sentinel])
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
