"""Curation of files in processes of their own, so that what ends a process fails one file only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial

from scdataloader.curation.file import Job, curate_file, failed
from scdataloader.curation.outcome import Outcome
from scdataloader.runtime.processes import ProcessPool, WorkerDiedError


def curate_files(
    jobs: Sequence[Job],
    n_processes: int,
    *,
    on_begin: Callable[[Job], None],
    on_progress: Callable[[Job, float], None],
) -> Iterator[tuple[Job, list[Outcome]]]:
    """Curate files in parallel processes; yields each when it is finished, in any order.

    A process that is killed or exits makes a failed outcome of its file. No process is left when this ends.

    Args:
        jobs: the files.
        n_processes: how many to curate at once.
        on_begin: called with each file before anything is done with it.
        on_progress: called, in a thread, with a file and the fraction of it that is done.

    Raises:
        RuntimeError: processes cannot be started.
    """
    waiting, job_of = deque(jobs), dict[Future[list[Outcome]], Job]()
    with ProcessPool(max(1, n_processes)) as pool:
        while waiting or job_of:
            while waiting and len(job_of) < n_processes:
                job = waiting.popleft()
                on_begin(job)
                future = pool.submit_with_progress(curate_file, job, on_progress=partial(on_progress, job))
                job_of[future] = job
            done, _ = wait(job_of, return_when=FIRST_COMPLETED)
            for future in done:
                job = job_of.pop(future)
                try:
                    yield job, future.result()
                except WorkerDiedError as error:
                    yield job, [failed(job.source, str(error), content=job.content, recipe=job.recipe_hash)]
