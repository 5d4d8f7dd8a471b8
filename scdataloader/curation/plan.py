"""Which files there is work for: not for those that were done before, are there twice, or cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from scdataloader.curation.file import Job, failed, in_one_line
from scdataloader.curation.ledger import Ledger, content_of, stamp_of
from scdataloader.curation.outcome import Outcome
from scdataloader.curation.recipe import Recipe
from scdataloader.runtime.processes import n_cores
from scdataloader.runtime.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done, and what is not."""

    jobs: list[Job]
    """Files to curate, in order."""
    done: dict[Path, list[Outcome]]
    """Outcomes of the other files, by their absolute path."""
    n_before: int
    """How many of these were done before."""


def make_plan(named: Mapping[Path, str], recipe: Recipe, ledger: Ledger, *, shown: bool) -> Plan:
    """See what there is to do; the ledger takes notes.

    Args:
        named: {absolute path: file as named by the user}, in order.
        recipe: for all of them.
        ledger: says what was done before.
        shown: whether to show a bar while files are read.
    """
    done = _read_contents(named, ledger, shown=shown)
    ledger.take_over(path for path in named if path not in done)
    jobs = list(_jobs({path: named[path] for path in named if path not in done}, recipe, ledger, done))
    # of files with the same content one that was done before goes first, or it would be done again
    jobs.sort(key=lambda job: not _is_done(job, ledger))
    left: list[Job] = []
    first: dict[str, Job] = {}
    n_before = 0
    for job in jobs:
        if first.setdefault(job.content, job) is not job:
            done[job.path] = [_twin(job, first[job.content])]
            ledger.note_outcomes(job.path, [])
        elif _is_done(job, ledger):
            done[job.path] = [replace(outcome, source=job.source) for outcome in ledger.outcomes(job.path)]
            n_before += 1
        else:
            left.append(job)
    ledger.sync()
    return Plan(jobs=left, done=done, n_before=n_before)


def _twin(job: Job, other: Job) -> Outcome:
    """The outcome of a file whose content another one has."""
    why = f"its content is that of {other.source}"
    nothing = failed(job.source, why, content=job.content, recipe=job.recipe_hash)
    if job.recipe_hash == other.recipe_hash:
        return replace(nothing, status="dropped")
    return replace(nothing, reason=f"{why}, which another rule is for: name one of the two")


def _read_contents(named: Mapping[Path, str], ledger: Ledger, *, shown: bool) -> dict[Path, list[Outcome]]:
    """Have the ledger know the content of all files; returns the outcomes of those that cannot be read."""
    stamps: dict[Path, list[int]] = {}
    cannot: dict[Path, list[Outcome]] = {}
    for path, source in named.items():
        try:
            if ledger.content(path) is None:
                stamps[path] = stamp_of(path)
        except OSError as error:
            cannot[path] = [failed(source, in_one_line(error))]
    n_bytes = sum(size for size, _ in stamps.values())
    with progress_bar("reading", n_bytes, shown=shown) as advance, ThreadPoolExecutor(n_cores()) as executor:
        found = {path: executor.submit(content_of, path) for path in stamps}
        for path, content in found.items():
            try:
                ledger.note_content(path, stamps[path], content.result())
            except OSError as error:
                cannot[path] = [failed(named[path], in_one_line(error))]
            advance(stamps[path][0])
    return cannot


def _jobs(
    named: Mapping[Path, str], recipe: Recipe, ledger: Ledger, cannot: dict[Path, list[Outcome]]
) -> Iterator[Job]:
    """What there would be to do for each file, had nothing been done; ``cannot`` takes outcomes of the others."""
    for path, source in named.items():
        n_bytes, content = ledger.known(path)
        own = recipe.for_file(path)
        try:
            output = ledger.output(path)
        except FileExistsError as error:
            cannot[path] = [failed(source, in_one_line(error), content=content)]
            continue
        yield Job(
            path=path,
            source=source,
            n_bytes=n_bytes,
            content=content,
            recipe=own,
            recipe_hash=own.hash,
            output=output,
        )


def _is_done(job: Job, ledger: Ledger) -> bool:
    """Whether outcomes of before are what the job would come to."""
    outcomes = ledger.outcomes(job.path)
    same = all((outcome.content, outcome.recipe) == (job.content, job.recipe_hash) for outcome in outcomes)
    is_whole = all(outcome.status != "failed" for outcome in outcomes)
    return bool(outcomes) and same and is_whole and all(map(ledger.is_there, outcomes))
