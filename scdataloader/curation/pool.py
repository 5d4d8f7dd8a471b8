"""Files in processes of their own, so that what ends a process ends the work on one file only."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait

from scdataloader.curation.file import Job, curate_file, failed
from scdataloader.curation.outcome import Outcome
from scdataloader.runtime.processes import begin_worker, uninterrupted

Heard = Callable[[Job, float], None]
"""Hears which share of a file is done, from 0 to 1."""

_READY = "ready"


def curate_files(
    jobs: Sequence[Job], n_processes: int, *, begun: Callable[[Job], None], heard: Heard
) -> Iterator[tuple[Job, list[Outcome]]]:
    """Curate files in parallel processes; each is given as it is done, in any order.

    Args:
        jobs: the files.
        n_processes: how many to curate at once.
        begun: told of each file before anything is done with it.
        heard: told how far each is.

    A process that is killed, or ends by a defect, makes a failed outcome of its file, and another takes its place.
    However this ends, no process is left.

    Raises:
        RuntimeError: processes cannot be started.
    """
    waiting, workers, any_ready = deque(jobs), list[_Worker](), False
    try:
        while waiting or any(worker.job for worker in workers):
            workers = [worker for worker in workers if worker.is_alive]
            while waiting and len(workers) < n_processes:
                workers.append(_Worker())
            for worker in workers:
                if worker.job is None and waiting:
                    begun(waiting[0])
                    worker.begin(waiting.popleft())
            busy = {worker.connection: worker for worker in workers if worker.job}
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                yield from worker.heard(heard, may_fail=any_ready)
                any_ready |= worker.is_ready
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process, and the file that it is at."""

    def __init__(self) -> None:
        # fork is not safe beside the threads of HDF5, numba and the progress bar
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.job: Job | None = None
        self.is_alive = True
        self.is_ready = False
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        with uninterrupted():
            self._process.start()
        theirs.close()

    def begin(self, job: Job) -> None:
        self.job = job
        with suppress(BrokenPipeError):  # of a process that has ended; to listen to it tells that
            self.connection.send(job)

    def heard(self, heard: Heard, *, may_fail: bool) -> Iterator[tuple[Job, list[Outcome]]]:
        """Take what the process has to say; gives a file that is done.

        Raises:
            RuntimeError: the process could not start, and not for want of memory, as ``may_fail`` would say: others
                have.
        """
        job = self.job
        if job is None:
            raise AssertionError("an idle process has nothing to say")
        try:
            said = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            self.stop()
            yield job, [failed(job.source, self._why(may_fail=may_fail), content=job.content, recipe=job.recipe_hash)]
            return
        if said == _READY:
            self.is_ready = True
        elif isinstance(said, float):
            heard(job, said)
        else:
            self.job = None
            yield job, said

    def stop(self) -> None:
        """End the process: at once, unless it waits for a file and ends by itself, its libraries cleaned up."""
        is_idle = self.is_ready and self.job is None
        self.job, self.is_alive = None, False
        self.connection.close()
        if not is_idle:
            self._process.terminate()
        self._process.join()

    def _why(self, *, may_fail: bool) -> str:
        code = self._process.exitcode or 0
        if code == -signal.SIGBUS:
            return "the file became shorter while it was read"
        if code < 0:
            name = signal.Signals(-code).name
            why = ", perhaps for want of memory: try fewer processes at once" if code == -signal.SIGKILL else ""
            return f"its process was killed by {name}{why}"
        if not self.is_ready and not may_fail:
            raise RuntimeError(
                f"a process could not start, and ended with exit code {code}; in a script, curate under "
                "`if __name__ == '__main__':`"
            )
        return f"its process ended with exit code {code}; the traceback is on standard error"


def _work(connection: Connection) -> None:
    """What a process does: one file after the other, until nobody is there to hear of them."""
    begin_worker()
    connection.send(_READY)
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        outcomes = curate_file(job, connection.send)
        with suppress(BrokenPipeError):  # nobody is there, as the next look tells
            connection.send(outcomes)
