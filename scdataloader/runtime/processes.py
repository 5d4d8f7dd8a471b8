"""Tasks of a conversion in processes, here or elsewhere, that end when it does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for

from scdataloader.errors import ScDataLoaderError
from scdataloader.store.writing.lock import Claim
from scdataloader.store.writing.tasks import Task, noted_cells, run_task

_SECONDS_PER_LOOK = 0.25


@contextmanager
def workers(executor: Executor | None, n_processes: int | None, n_tasks: int) -> Iterator[Executor]:
    """The executor to use: the one given, else one of ``n_processes``, as many as there are cores and tasks by default.

    One process is this one.
    """
    if executor is not None:
        yield executor
        return
    n = min(n_processes or n_cores(), max(1, n_tasks))
    own: Executor
    if n == 1:
        own = ThreadPoolExecutor(1, thread_name_prefix="scdataloader-convert")
    else:
        # fork is not safe beside the threads of HDF5, Arrow and the progress bar
        context = multiprocessing.get_context("spawn")
        own = ProcessPoolExecutor(n, mp_context=context, initializer=begin_worker)
    with own:
        yield own


def run_tasks(tasks: Sequence[Task], executor: Executor, claim: Claim, told: Callable[[int], None]) -> None:
    """Do all tasks; ``told`` hears again and again how many of their cells are done.

    Where one fails, the others are stopped before its error is raised.

    Raises:
        RuntimeError: a process ended without a word.
        Anything that a task raises.
    """
    with uninterrupted():
        task_of = {executor.submit(run_task, task): task for task in tasks}
    pending, n_done, complete = set(task_of), 0, False
    try:
        while pending:
            done, pending = wait(pending, timeout=_SECONDS_PER_LOOK, return_when=FIRST_EXCEPTION)
            for future in done:
                error = future.exception()
                if isinstance(error, ScDataLoaderError):
                    raise error  # from here, so that it reads as an error of this process
                future.result()
                n_done += task_of[future].n_cells
            told(n_done + sum(noted_cells(task_of[future].place.folder, task_of[future].path) for future in pending))
        complete = True
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process of the conversion has ended without a word: it was killed, perhaps for want of memory (use "
            "fewer processes), or could not start (in a script, call convert under `if __name__ == '__main__':`)"
        ) from error
    finally:
        if not complete:
            claim.stop()
            for future in pending:
                future.cancel()
            wait(pending)


def n_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off interrupts; processes that are started meanwhile never get one.

    The terminal tells all processes, of which the first tells the others. One that is only just starting would not yet
    know to leave that to it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker() -> None:
    """Have this process end as soon as the one that started it has, even if that was killed."""
    parent = multiprocessing.parent_process()

    def watch(sentinel: int) -> None:
        wait_for([sentinel])
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
