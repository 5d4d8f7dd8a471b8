"""Many files: what is done already is left, the rest is done in parallel, and all of it is told."""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from scdataloader.curation.file import Job, failed
from scdataloader.curation.filters import with_kinds
from scdataloader.curation.hooks import load_hook
from scdataloader.curation.ledger import Ledger, open_ledger, real_path
from scdataloader.curation.outcome import Outcome
from scdataloader.curation.plan import make_plan
from scdataloader.curation.pool import curate_files
from scdataloader.curation.recipe import Recipe
from scdataloader.curation.report import summary, write_report
from scdataloader.curation.writer import without_partial
from scdataloader.lamin.bionty_genes import tell_of_genes, with_bionty_genes
from scdataloader.lamin.session import local_storage
from scdataloader.runtime.processes import n_cores
from scdataloader.runtime.progress import progress_bar
from scdataloader.sources.locate import expand

_KEY = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)*")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Curator:
    """Curates files into a folder, and perhaps into a lamindb collection.

    Args:
        out: The folder for the curated files, ``report.csv``, and the ledger of what is done; None for ``curated`` and
            the collection's key in the storage of the lamindb instance.
        recipe: What to do with the files.
        collection: Key of a collection of the connected lamindb instance, which the files are registered in; None to
            have the files only.
        storage: Where in lamindb the files go; None leaves that to the instance.
        processes: How many files to curate at once; None for as many as there are cores.
        progress: Whether to show a bar on standard error; None to show it on a terminal.
    """

    out: str | os.PathLike[str] | None = None
    recipe: Recipe = field(default_factory=Recipe)
    collection: str | None = None
    storage: str | None = None
    processes: int | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes must be 1 or more, not {self.processes}")
        if self.collection is None and self.out is None:
            raise ValueError("nothing says where curated files go: give out, a folder, or collection, or both")
        if self.collection is None and self.storage is not None:
            raise ValueError(f"storage={self.storage} is for what is registered: give collection, too")
        if self.collection is not None and not _KEY.fullmatch(self.collection):
            raise ValueError(
                f"{self.collection!r} is no key of a collection: give one like my/atlas, of letters, digits, '-', '_' "
                "and '.', in parts that '/' separates"
            )

    @property
    def folder(self) -> Path:
        """``out``, or what stands for it.

        Raises:
            RuntimeError: it is for the instance to say, and none is connected, or its storage is no local folder.
        """
        if self.out is not None:
            return Path(self.out).expanduser().absolute()
        return local_storage() / "curated" / str(self.collection)

    def run(self, files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Outcome]:
        """Curate files, in parallel processes; in a script, call it under ``if __name__ == "__main__":``.

        A file that fails does not stop the others. What was done before, by the content of the file and the recipe as
        far as it concerns the file, is not done again, unless it failed. After an interruption, of which the report
        has what was done until then, the same call goes on.
        A collection is brought up to date once, in the end.

        Args:
            files: Paths of .h5ad files and .zarr folders, and globs.

        Returns:
            What became of each file, in order; of a file that was split, an outcome for each organism.

        Raises:
            FileNotFoundError: a glob matches nothing, or the recipe names a file that does not exist.
            LookupError: the recipe names a hook that does not exist, or takes genes from bionty that it has none of.
            RuntimeError: another run is curating into the folder, processes cannot be started, or a collection is named
                or genes are bionty's, and no lamindb instance is connected.
            ValueError: no file is named, or one lies in the folder for the outputs; the recipe names an ontology or an
                assay that does not exist.
        """
        if self.collection is not None:
            from scdataloader.lamin.register.register import check_registrable

            check_registrable(self.storage)
        folder = self.folder
        named = _named(files, folder)
        _check(self.recipe, list(named.values()))
        recipe = with_bionty_genes(self.recipe, folder)
        with open_ledger(folder) as ledger:
            without_partial(folder)
            done: dict[Path, list[Outcome]] = {}
            try:
                done.update(self._curated(named, recipe, ledger))  # one by one: after an interruption, some
            finally:
                without_partial(folder)
                outcomes = [outcome for path in named for outcome in done.get(path, [])]
                if outcomes:
                    write_report(folder, outcomes)
            if self.collection is not None:  # before another run may change the outputs
                outcomes = self._registered(outcomes, recipe)
                write_report(folder, outcomes)
        return outcomes

    def _registered(self, outcomes: list[Outcome], recipe: Recipe) -> list[Outcome]:
        """The outcomes, of which those that the instance has refused have failed."""
        from scdataloader.lamin.register.register import register

        tell_of_genes(outcomes, recipe)
        logger.info("%s", summary(outcomes))
        done = register(outcomes, key=str(self.collection), recipe=recipe, storage=self.storage)
        logger.info("%s", done)
        told = [
            replace(
                outcome,
                status="failed",
                reason=f"curated, but not registered: {done.refused[outcome.source]}",
                output=None,
                n_cells_out=0,
                n_genes_out=0,
            )
            if outcome.output and outcome.source in done.refused
            else outcome
            for outcome in outcomes
        ]
        _tell([outcome for outcome in told if outcome.source in done.refused])
        return told

    def _curated(self, named: dict[Path, str], recipe: Recipe, ledger: Ledger) -> Iterator[tuple[Path, list[Outcome]]]:
        """Files, and what has become of each: first of those that were done before."""
        shown = sys.stderr.isatty() if self.progress is None else self.progress
        plan = make_plan(named, recipe, ledger, shown=shown)
        if plan.n_before:
            logger.info("done before: %d of %d files", plan.n_before, len(named))
        for path, outcomes in plan.done.items():
            _tell(outcomes)
            yield path, outcomes
        for job, made in self._done_now(plan.jobs, ledger, shown=shown):
            outcomes = made if _is_unchanged(job, ledger) else _withdrawn(job)
            ledger.note_outcomes(job.path, outcomes)
            _tell(outcomes)
            yield job.path, outcomes

    def _done_now(self, jobs: list[Job], ledger: Ledger, *, shown: bool) -> Iterator[tuple[Job, list[Outcome]]]:
        """Jobs with what they came to, as they are done."""
        told = {job.path: 0 for job in jobs}
        with progress_bar("curating", sum(job.n_bytes for job in jobs), shown=shown) as advance:

            def begun(job: Job) -> None:
                ledger.note_outcomes(job.path, [])  # what was known is not true any more, whatever ends this

            def heard(job: Job, share: float) -> None:
                n_bytes = round(share * job.n_bytes)
                advance(n_bytes - told[job.path])
                told[job.path] = n_bytes

            n = min(self.processes or n_cores(), len(jobs))
            for job, outcomes in curate_files(jobs, n, begun=begun, heard=heard):
                heard(job, 1.0)
                yield job, outcomes


def _named(files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], folder: Path) -> dict[Path, str]:
    """{absolute path: file as named by the user} of files to curate into a folder."""
    given = [files] if isinstance(files, str | os.PathLike) else files
    named = {real_path(path): str(path) for item in given for path in expand(os.fspath(item))}
    if not named:
        raise ValueError("no file is named; give at least one path or glob")
    for path, name in named.items():
        if path.parent == folder.resolve() or folder.resolve().is_relative_to(path):
            raise ValueError(
                f"{name} lies in {folder} or around it, where curated files are to go: name another folder as out"
            )
    return named


def _check(recipe: Recipe, files: list[str]) -> None:
    """Tell at once what would be wrong for all files."""
    for hook in (*recipe.before, *recipe.after):
        load_hook(hook)
    if recipe.assays:
        with_kinds(recipe.assays)
    for pattern in recipe.rules:
        if not any(fnmatch.fnmatch(Path(file).name, pattern) for file in files):
            logger.warning("the rule for %r is for none of these files", pattern)


def _is_unchanged(job: Job, ledger: Ledger) -> bool:
    return job.path.exists() and ledger.content(job.path) == job.content


def _withdrawn(job: Job) -> list[Outcome]:
    """What to say of a file that became another while it was curated."""
    why = "it was changed or removed while it was curated; give the same command again"
    return [failed(job.source, why, content=job.content, recipe=job.recipe_hash)]


def _tell(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.status == "failed":
            logger.warning("%s failed: %s", outcome.source, outcome.reason)
