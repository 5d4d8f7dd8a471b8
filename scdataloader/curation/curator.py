"""Curate many files in parallel, skipping finished ones."""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from scdataloader.curation.bucket import staged
from scdataloader.curation.file import Job, OnProgress, PathMissingError, curate_elsewhere, curate_file, in_one_line
from scdataloader.curation.filters import with_descendants
from scdataloader.curation.hooks import load_hook
from scdataloader.curation.ledger import Ledger, make_plan, open_ledger, real_path
from scdataloader.curation.recipe import Recipe, is_of
from scdataloader.curation.report import Outcome, label_warnings, write_report
from scdataloader.curation.writer import without_partial
from scdataloader.runtime.buckets import checked_url, is_remote, public_url
from scdataloader.runtime.files import local_path
from scdataloader.runtime.processes import ProcessPool, WorkerDiedError, n_cores
from scdataloader.runtime.progress import Advance, progress_bar
from scdataloader.sources.locate import expand

_CHANGED = "the file was changed or removed while it was curated; run the same command again"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Curator:
    """Curates files into a folder.

    Args:
        out: The folder for the curated files, ``report.csv``, and the ledger of finished files; or its URL in a bucket,
            to which they are uploaded at the end of a run.
        recipe: What to do with the files.
        processes: Number of files to curate at once; None for the number of cores.
        progress: Whether to show a progress bar on standard error; None to show it on a terminal.
        executor: Curates the files in place of processes of this machine, such as
            ``dask.distributed.Client(...).get_executor()``. Its machines must have the files, the folder and what the
            recipe names at the same paths.
    """

    out: str | os.PathLike[str]
    recipe: Recipe = field(default_factory=Recipe)
    processes: int | None = None
    progress: bool | None = None
    executor: Executor | None = None

    def __post_init__(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes must be 1 or more, not {self.processes}")

    @property
    def folder(self) -> Path:
        """``out`` as an absolute path."""
        return local_path(self.out).absolute()

    def run(
        self,
        files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        finish: Callable[[list[Outcome]], list[Outcome]] | None = None,
    ) -> list[Outcome]:
        """Curate files in parallel processes; in a script, call it under ``if __name__ == "__main__":``.

        A file that fails does not stop the others. A file that was curated before, as known by the hashes of its
        content and of its recipe, is skipped unless it failed. After an interruption, the report lists the files that
        were finished, and the same call continues.

        Args:
            files: Paths and URLs of .h5ad files and .zarr folders, and globs.
            finish: Called with all outcomes before another run can change the outputs; returns the outcomes to report.

        Returns:
            The outcome of each file, in order; of a file that was split, an outcome for each organism.

        Raises:
            FileNotFoundError: a glob matches nothing, the recipe names a file that does not exist, or a machine of
                ``executor`` lacks a path.
            LookupError: the recipe names a hook that does not exist.
            ConnectionError: the bucket of ``out`` does not answer.
            RuntimeError: another run is curating into the folder, or processes cannot be started.
            ValueError: no file is named, or one is in the output folder; the recipe names an ontology or an assay that
                does not exist, or takes genes from bionty: see `scdataloader.lamin.curate_into`.
        """
        if is_remote(self.out):
            if finish is not None:
                raise ValueError(
                    f"{public_url(self.out)} is in a bucket, but lamindb registers files of a folder; give one as out"
                )
            shown = sys.stderr.isatty() if self.progress is None else self.progress
            with staged(checked_url(self.out)) as stage:
                return stage.upload(replace(self, out=stage.folder).run(files), shown=shown)
        folder = self.folder
        named = _named(files, folder)
        _check(self.recipe, list(named.values()))
        with open_ledger(folder) as ledger:
            without_partial(folder)
            done: dict[Path, list[Outcome]] = {}
            try:
                done.update(self._curated(named, ledger))  # one by one: after an interruption, some
            finally:
                without_partial(folder)
                outcomes = [outcome for path in named for outcome in done.get(path, [])]
                if outcomes:
                    write_report(folder, outcomes)
            if finish is not None:
                outcomes = finish(outcomes)
                write_report(folder, outcomes)
        for line in label_warnings(outcomes, self.recipe.labels):
            logger.warning("%s", line)
        return outcomes

    def _curated(self, named: dict[Path, str], ledger: Ledger) -> Iterator[tuple[Path, list[Outcome]]]:
        """Files and their outcomes; first those of files that are skipped."""
        shown = sys.stderr.isatty() if self.progress is None else self.progress
        plan = make_plan(named, self.recipe, ledger, shown=shown)
        if plan.n_before:
            logger.info("finished before: %d of %d files", plan.n_before, len(named))
        for path, outcomes in plan.done.items():
            _log_failures(outcomes)
            yield path, outcomes
        for job, made in self._run_jobs(plan.jobs, ledger, shown=shown):
            outcomes = made if _is_unchanged(job, ledger) else [job.failed(_CHANGED)]
            ledger.note_outcomes(job.path, outcomes)
            _log_failures(outcomes)
            yield job.path, outcomes

    def _run_jobs(self, jobs: list[Job], ledger: Ledger, *, shown: bool) -> Iterator[tuple[Job, list[Outcome]]]:
        """Jobs and their outcomes, as they finish."""
        n = len(jobs) if self.executor is not None else min(self.processes or n_cores(), max(1, len(jobs)))
        waiting, running = deque(jobs), dict[Future[list[Outcome]], tuple[Job, _Bytes]]()
        n_bytes = sum(job.n_bytes for job in jobs)
        with progress_bar("curating", n_bytes, shown=shown) as advance, _submitting(self.executor, n) as submit:
            while waiting or running:
                while waiting and len(running) < n:
                    job = waiting.popleft()
                    ledger.note_outcomes(job.path, [])  # earlier outcomes no longer hold, however this ends
                    on_progress = _Bytes(job.n_bytes, advance)
                    running[submit(job, on_progress)] = job, on_progress
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, on_progress = running.pop(future)
                    on_progress(1.0)
                    yield job, _outcomes(job, future)


@contextmanager
def _submitting(
    executor: Executor | None, n_processes: int
) -> Iterator[Callable[[Job, OnProgress], Future[list[Outcome]]]]:
    """Yield a function that has a file curated: by ``executor``, or else by a process of this machine.

    Of an executor, files that have not been begun are left out if an error ends the run.
    """
    if executor is None:
        with ProcessPool(n_processes) as pool:
            yield lambda job, on_progress: pool.submit_with_progress(curate_file, job, on_progress=on_progress)
        return
    submitted: list[Future[list[Outcome]]] = []

    def submit(job: Job, _: OnProgress) -> Future[list[Outcome]]:
        submitted.append(executor.submit(curate_elsewhere, job))
        return submitted[-1]

    try:
        yield submit
    finally:
        # not for those that are cancelled: one of dask that ends at this moment is never marked as done
        wait([future for future in submitted if not future.cancel()])


class _Bytes:
    """Converts the fraction of a file that is done to bytes, for a progress bar."""

    def __init__(self, n_bytes: int, advance: Advance) -> None:
        self._n_bytes, self._advance, self._n_done = n_bytes, advance, 0

    def __call__(self, fraction: float) -> None:
        n_done = round(fraction * self._n_bytes)
        self._advance(n_done - self._n_done)
        self._n_done = n_done


def _outcomes(job: Job, future: Future[list[Outcome]]) -> list[Outcome]:
    """The outcomes of a job; a failed one if its process died or has a defect."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, PathMissingError):
        raise PathMissingError(str(error))
    if isinstance(error, WorkerDiedError):
        return [job.failed(str(error))]
    if isinstance(error, RuntimeError):  # no process could start
        raise error
    logger.error("%s", job.source, exc_info=error)
    return [job.failed(f"unexpected {type(error).__name__}: {in_one_line(error)}")]


def _named(files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], folder: Path) -> dict[Path, str]:
    """{absolute path: file as named by the user} of files to curate into a folder."""
    given = [files] if isinstance(files, str | os.PathLike) else files
    named = {real_path(path): str(path) for item in given for path in expand(os.fspath(item))}
    if not named:
        raise ValueError("no file is named; give at least one path or glob")
    for path, name in named.items():
        if path.parent == folder.resolve() or folder.resolve().is_relative_to(path):
            raise ValueError(f"{name} is in the output folder {folder}, or contains it; choose another folder as out")
    return named


def _check(recipe: Recipe, files: list[str]) -> None:
    """Refuse what would be wrong for all files."""
    _ = recipe.hash  # gene tables, ontologies and hooks exist
    for hook in (*recipe.before, *recipe.after):
        load_hook(hook)
    if recipe.assays:
        with_descendants(recipe.assays)
    for pattern in recipe.rules:
        if not any(is_of(pattern, file) for file in files):
            logger.warning("the rule for %r matches none of these files", pattern)


def _is_unchanged(job: Job, ledger: Ledger) -> bool:
    try:
        return ledger.content(job.path) == job.content
    except FileNotFoundError:
        return False


def _log_failures(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.status == "failed":
            logger.warning("%s failed: %s", outcome.source, outcome.reason)
