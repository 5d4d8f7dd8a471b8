"""Curate one file: open it, apply the hooks that come first, and curate each of its organisms."""

from __future__ import annotations

import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from anndata import AnnData
from anndata._io.specs.registry import IORegistryError  # raised for types that cannot be written

from scdataloader.curation.cells import named_obs, read_cells, read_extras, read_obsm, rows_of
from scdataloader.curation.hooks import apply_hooks
from scdataloader.curation.organism import FilePart, cell_blocks, curate_part
from scdataloader.curation.recipe import Recipe
from scdataloader.curation.report import Outcome
from scdataloader.curation.writer import written
from scdataloader.runtime.files import PARTIAL
from scdataloader.runtime.messages import message_of
from scdataloader.runtime.progress import Advance
from scdataloader.sources import AnnDataSource, open_source
from scdataloader.sources.anndata.counts import OR_ANY, Values
from scdataloader.sources.arrays.transpose import TransposeInFile

BAD_INPUT = (ValueError, LookupError, OSError, RuntimeError, TypeError, MemoryError, IORegistryError)
"""Errors of a file; all others are defects."""

OnProgress = Callable[[float], None]
"""Called with the fraction of a file that is done."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A file to curate."""

    path: Path
    """Absolute path."""
    name: str
    """As much of the path as tells the files apart, for messages."""
    source: str
    """The file as named by the user."""
    n_bytes: int
    content: str
    """Hash of the file's content."""
    recipe: Recipe
    """The part of the recipe that concerns the file: see `Recipe.for_file`."""
    recipe_hash: str
    """Hash of ``recipe`` when the run began."""
    output: Path
    """The .h5ad file to write; parts of a split file have the organism before the suffix."""

    def failed(self, reason: str) -> Outcome:
        """The outcome of the file if it fails as a whole."""
        return Outcome.failed(self.source, reason, content=self.content, recipe=self.recipe_hash)


class PathMissingError(FileNotFoundError):
    """A machine that curates a file lacks a path."""


def curate_elsewhere(job: Job) -> list[Outcome]:
    """As `curate_file`, on a machine that may lack the paths.

    Raises:
        PathMissingError: it does; names the machine and the path.
    """
    for path in (job.path, job.output.parent):
        if not path.exists():
            raise PathMissingError(
                f"worker {socket.gethostname()} has no {path}; start workers where files and output folder have "
                "the same paths"
            )
    return curate_file(job, lambda _: None)


def curate_file(job: Job, on_progress: OnProgress) -> list[Outcome]:
    """Curate a file; returns one outcome, or one for each organism. Errors of the file become failed outcomes."""
    unfinished = job.failed("")
    outcomes: list[Outcome] = []
    start = time.perf_counter()
    try:
        with _opened(job) as given:
            unfinished = replace(unfinished, n_cells_in=given.n_obs, n_genes_in=len(given.var))
            for outcome in _parts(given, job, unfinished, on_progress):
                now = time.perf_counter()
                outcomes.append(replace(outcome, seconds=now - start))
                start = now
    except BAD_INPUT as error:
        outcomes.append(replace(unfinished, reason=in_one_line(error), seconds=time.perf_counter() - start))
    return outcomes


def in_one_line(error: BaseException) -> str:
    """The message of an error."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    message = " ".join(message_of(error).split())
    message = message.replace(OR_ANY, ", or recover counts by a hook in before")
    return f"not enough memory: {message}" if isinstance(error, MemoryError) else message or type(error).__name__


@contextmanager
def _opened(job: Job) -> Iterator[AnnDataSource]:
    # hooks may recover counts
    values: Values = "any" if job.recipe.before else "counts"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(Variable|Observation) names are not unique")
        with open_source(job.path, counts=job.recipe.rule.counts or job.recipe.counts, values=values) as source:
            source.name = job.name
            yield source


def _parts(given: AnnDataSource, job: Job, unfinished: Outcome, on_progress: OnProgress) -> Iterator[Outcome]:
    advance, extras = _count_passes(on_progress, given, job.recipe), read_extras(given)
    with _transposed(given, job, advance), _after_hooks(given, job, advance) as source:
        cells = read_cells(source, job.recipe)
        for organism, rows in cells.organisms:
            outcome, suffix = replace(unfinished, organism=organism), ".h5ad"
            if len(cells.organisms) > 1:
                outcome, suffix = replace(outcome, n_cells_in=len(rows)), f".{organism.replace(':', '_')}.h5ad"
            part = FilePart(
                source=source,
                cells=cells,
                extras=extras,
                rows=rows,
                recipe=job.recipe,
                outcome=outcome,
                output=job.output.with_suffix(suffix),
                advance=advance,
            )
            try:
                yield curate_part(part)
            except BAD_INPUT as error:
                yield replace(outcome, reason=in_one_line(error))


@contextmanager
def _transposed(source: AnnDataSource, job: Job, advance: Advance) -> Iterator[None]:
    """Transpose a CSC matrix in a temporary file, when its first cell is read."""
    path = _temporary(job, "transposed")
    source.transpose = TransposeInFile(path=path, advance=advance)
    try:
        yield
    finally:
        source.close()
        path.unlink(missing_ok=True)


@contextmanager
def _after_hooks(source: AnnDataSource, job: Job, advance: Advance) -> Iterator[AnnDataSource]:
    """The output of the hooks in ``before``, in a temporary file; the source itself if there are none."""
    if not job.recipe.before:
        yield source
        return
    path = _temporary(job, "before")
    try:
        obs, obsm = named_obs(source), read_obsm(source)
        with written(path, source.name, "none") as writer:
            for place in cell_blocks(source.n_obs):
                x = source.read(np.arange(place.start, place.stop)).to_scipy()
                block = AnnData(x, obs.iloc[place], source.var, obsm={key: rows_of(obsm[key], place) for key in obsm})
                writer.append(apply_hooks(job.recipe.before, block))
                source.release()
                advance(place.stop - place.start)
            if source.organism:
                writer.uns["organism"] = source.organism
        with open_source(path) as changed:
            changed.name = source.name
            yield changed
    finally:
        path.unlink(missing_ok=True)


def _temporary(job: Job, what: str) -> Path:
    """A temporary file; if its process is killed, `without_partial` removes it."""
    return job.output.with_name(f".{job.output.name}.{what}{PARTIAL}")


def _count_passes(on_progress: OnProgress, source: AnnDataSource, recipe: Recipe) -> Advance:
    """Report the fraction of all passes over the cells of a file that is done."""
    n_passes = 2 + source.is_csc + bool(recipe.before) + bool(recipe.min_cells_per_gene)
    n_all = max(1, source.n_obs * n_passes)
    n_done = 0

    def advance(n_more: int) -> None:
        nonlocal n_done
        n_done += n_more
        on_progress(min(1.0, n_done / n_all))

    return advance
