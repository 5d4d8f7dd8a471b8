"""Which files there is work for: not for those that were done before, are there twice, or cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from scdataloader.curate.ledger import Ledger, content_of, stamp_of
from scdataloader.curate.one_file import Job, failed, in_one_line
from scdataloader.curate.outcome import Outcome
from scdataloader.curate.recipe import Recipe
from scdataloader.store.pool import n_cores
from scdataloader.store.progress import progress_bar


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
    jobs: list[Job] = []
    first: dict[str, str] = {}
    n_before = 0
    for path, source in named.items():
        if path in done:
            continue
        try:
            job = _job(path, source, recipe, ledger)
        except FileExistsError as error:
            done[path] = [failed(source, in_one_line(error))]
            continue
        twin, before = first.setdefault(job.content, source), ledger.outcomes(path)
        if twin != source:
            nothing = failed(source, f"its content is that of {twin}", content=job.content, recipe=job.recipe_hash)
            done[path] = [replace(nothing, status="dropped")]
            ledger.note_outcomes(path, done[path])
        elif _is_done(job, before):
            done[path] = [replace(outcome, source=source) for outcome in before]
            n_before += 1
        else:
            jobs.append(job)
    return Plan(jobs=jobs, done=done, n_before=n_before)


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


def _job(path: Path, source: str, recipe: Recipe, ledger: Ledger) -> Job:
    n_bytes, content = ledger.known(path)
    own = recipe.for_file(path)
    return Job(
        path=path,
        source=source,
        n_bytes=n_bytes,
        content=content,
        recipe=own,
        recipe_hash=own.hash,
        output=ledger.output(path),
    )


def _is_done(job: Job, outcomes: list[Outcome]) -> bool:
    """Whether outcomes of before are what the job would come to."""
    same = all((outcome.content, outcome.recipe) == (job.content, job.recipe_hash) for outcome in outcomes)
    is_whole = all(outcome.status != "failed" for outcome in outcomes)
    is_there = all(outcome.output.exists() for outcome in outcomes if outcome.output is not None)
    return bool(outcomes) and same and is_whole and is_there
