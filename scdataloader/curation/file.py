"""One file: opened, put through the hooks that come first, and curated organism by organism."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from anndata import AnnData
from anndata._io.specs.registry import IORegistryError  # of what anndata can neither read nor write; it is no OSError

from scdataloader.curation.cells import FileSource, named_obs, read_cells, read_obsm, rows_of
from scdataloader.curation.extras import read_extras
from scdataloader.curation.hooks import apply_hooks
from scdataloader.curation.organism import Advance, Part, curate_part, places
from scdataloader.curation.outcome import Outcome
from scdataloader.curation.recipe import Recipe
from scdataloader.curation.writer import written
from scdataloader.runtime.files import PARTIAL
from scdataloader.sources import open_source
from scdataloader.sources.anndata.counts import OR_ANY, Values
from scdataloader.sources.arrays.transpose import InFile

BAD_INPUT = (ValueError, LookupError, OSError, RuntimeError, TypeError, MemoryError, IORegistryError)
"""What is wrong with a file is told by one of these; anything else is a defect."""

Told = Callable[[float], None]
"""Hears which share of a file is done, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A file to curate."""

    path: Path
    """Its absolute path."""
    source: str
    """The same as named by the user."""
    n_bytes: int
    """Its size."""
    content: str
    """Hash of its content."""
    recipe: Recipe
    """As far as it concerns the file: see `Recipe.for_file`."""
    recipe_hash: str
    """Of the recipe as it was when the run began."""
    output: Path
    """The .h5ad file to write; of a file that is split, the parts have the organism before the suffix."""


def curate_file(job: Job, told: Told) -> list[Outcome]:
    """Curate a file: one outcome, or one for each organism. What is wrong with the file is told by the outcome."""
    nothing = failed(job.source, "", content=job.content, recipe=job.recipe_hash)
    outcomes: list[Outcome] = []
    start = time.perf_counter()
    try:
        with _opened(job) as given:
            nothing = replace(nothing, n_cells_in=given.n_obs, n_genes_in=len(given.var))
            for part in _parts(given, job, nothing, told):
                now = time.perf_counter()
                outcomes.append(replace(part, seconds=now - start))
                start = now
    except BAD_INPUT as error:
        outcomes.append(replace(nothing, reason=in_one_line(error), seconds=time.perf_counter() - start))
    return outcomes


def failed(source: str, reason: str, *, content: str = "", recipe: str = "") -> Outcome:
    """The outcome of a file that nothing has come of."""
    return Outcome(
        source=source,
        content=content,
        recipe=recipe,
        status="failed",
        reason=reason,
        n_cells_in=0,
        n_cells_out=0,
        n_genes_in=0,
        n_genes_out=0,
        output=None,
        labels={},
        organism="",
        seconds=0.0,
    )


def in_one_line(error: BaseException) -> str:
    """What an error says."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    # str() of a KeyError is the repr of its message
    said = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    said = said.replace(OR_ANY, ", or recover counts by a hook that comes before")
    return f"not enough memory: {said}" if isinstance(error, MemoryError) else said or type(error).__name__


@contextmanager
def _opened(job: Job) -> Iterator[FileSource]:
    """The file as it is."""
    # hooks may be there to recover counts
    values: Values = "any" if job.recipe.before else "counts"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(Variable|Observation) names are not unique")
        with open_source(job.path, counts=job.recipe.rule.counts or job.recipe.counts, values=values) as source:
            yield source


def _parts(given: FileSource, job: Job, nothing: Outcome, told: Told) -> Iterator[Outcome]:
    advance, extras = _shares(told, given, job.recipe), read_extras(given)
    with _by_cells(given, job, advance), _through_hooks(given, job, advance) as source:
        cells = read_cells(source, job.recipe)
        for organism, rows in cells.organisms:
            known, name = replace(nothing, organism=organism), ".h5ad"
            if len(cells.organisms) > 1:
                known, name = replace(known, n_cells_in=len(rows)), f".{organism.replace(':', '_')}.h5ad"
            part = Part(
                source=source,
                cells=cells,
                extras=extras,
                rows=rows,
                recipe=job.recipe,
                outcome=known,
                output=job.output.with_suffix(name),
                advance=advance,
            )
            try:
                yield curate_part(part)
            except BAD_INPUT as error:
                yield replace(known, reason=in_one_line(error))


@contextmanager
def _by_cells(source: FileSource, job: Job, advance: Advance) -> Iterator[None]:
    """Within, a matrix that is stored by genes is turned round in a file for the meantime, when it is first read."""
    path = _meantime(job, "turned")
    source.turn = InFile(path=path, advance=advance)
    try:
        yield
    finally:
        source.close()
        path.unlink(missing_ok=True)


@contextmanager
def _through_hooks(source: FileSource, job: Job, advance: Advance) -> Iterator[FileSource]:
    """The file after the hooks that come first: itself where there are none, else a file for the meantime."""
    if not job.recipe.before:
        yield source
        return
    path = _meantime(job, "before")
    try:
        obs, obsm = named_obs(source), read_obsm(source)
        with written(path, source.name, "none") as writer:
            for place in places(source.n_obs):
                x = source.read(np.arange(place.start, place.stop)).to_scipy()
                block = AnnData(x, obs.iloc[place], source.var, obsm={key: rows_of(obsm[key], place) for key in obsm})
                writer.append(apply_hooks(job.recipe.before, block))
                source.release()
                advance(place.stop - place.start)
            if source.uns_organism:
                writer.uns["organism"] = source.uns_organism
        with open_source(path) as changed:
            changed.name = source.name
            yield changed
    finally:
        path.unlink(missing_ok=True)


def _meantime(job: Job, what: str) -> Path:
    """A file that is not to stay; what a process that is killed leaves, `without_partial` removes."""
    return job.output.with_name(f".{job.output.name}.{what}{PARTIAL}")


def _shares(told: Told, source: FileSource, recipe: Recipe) -> Advance:
    """Tells which share of all passes over a file is done."""
    n_passes = 2 + source.is_by_genes + bool(recipe.before) + bool(recipe.min_cells_per_gene)
    n_all = max(1, source.n_obs * n_passes)
    n_done = 0

    def advance(n_more: int) -> None:
        nonlocal n_done
        n_done += n_more
        told(min(1.0, n_done / n_all))

    return advance
