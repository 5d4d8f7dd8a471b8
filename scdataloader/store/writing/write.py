"""Sources to a store: what has to be written, what is there already, and in which order the rest comes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from scdataloader.errors import WriteError
from scdataloader.protocols import Closes, Source
from scdataloader.runtime.files import writing
from scdataloader.runtime.progress import cells_bar
from scdataloader.store.gene_spaces import GENE, GeneNumbers, SpaceSelection
from scdataloader.store.manifest import (
    VERSION,
    FileRecord,
    Manifest,
    ShardRecord,
    SourceRecord,
    SpaceRecord,
    file_record,
)
from scdataloader.store.tables import GeneList, write_table
from scdataloader.store.writing.decision import is_done, layout_of, plan_of, spaces_of
from scdataloader.store.writing.folder import FOLDERS, FolderState, clear
from scdataloader.store.writing.lock import Claim, claimed
from scdataloader.store.writing.plan import UNORDERED, Plan, load_record
from scdataloader.store.writing.reorder import relayout_tasks
from scdataloader.store.writing.scan import Options, Scanned, scan
from scdataloader.store.writing.tasks import EncodeCells, Place, Task, WriteObs, run_tasks, workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Help:
    """Who does the work of a conversion, and who is told of it."""

    executor: Executor | None = None
    """Runs the tasks; None for processes of our own."""
    n_processes: int | None = None
    """How many of these; None for as many as there are cores."""
    shown: bool = False
    """Whether to show how far it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What a conversion has done."""

    manifest: Manifest
    """Of the store."""
    shards: tuple[ShardRecord, ...]
    """The new ones among its shards; none where there was nothing to do."""
    n_cells: int
    """Cells of those that an earlier try had not finished."""


def write_store(folder: Path, sources: Sequence[Source], options: Options, help_: Help) -> Written:
    """Convert sources into the store in ``folder``, from wherever an earlier try has left it.

    Raises:
        FileExistsError: the folder holds something else, or a store, and sources are not to be appended.
        FileNotFoundError: there is no store to append to.
        ValueError: the sources or options are not those of the unfinished conversion in the folder, or cannot be
            converted into this store; or a value cannot be kept: names the source, the cell and the gene.
        RuntimeError: another conversion is writing there.
        WriteError: the disk is full, or not to be written to.
    """
    state = FolderState.of(folder)
    layout = layout_of(state, options)
    names = GeneNumbers()
    scanned = scan(sources, layout, options.cells_per_shard, names)
    done = is_done(state, scanned, options)
    if done and state.is_cleared and state.manifest is not None:
        return Written(manifest=state.manifest, shards=(), n_cells=0)
    with claimed(folder) as claim:
        state = FolderState.of(folder)  # another conversion may have ended while this one waited for it
        if state.plan is None:
            clear(folder, state.manifest)
        if is_done(state, scanned, options) and state.manifest is not None:
            return Written(manifest=state.manifest, shards=(), n_cells=0)
        spaces = spaces_of(state, scanned, names)
        plan = plan_of(state, scanned, spaces, options, layout)
        return _Conversion(state, plan, scanned, spaces, help_, claim).run()


class _Conversion:
    """A conversion that nobody else works at."""

    def __init__(
        self,
        state: FolderState,
        plan: Plan,
        scanned: Sequence[Scanned],
        spaces: SpaceSelection,
        help_: Help,
        claim: Claim,
    ) -> None:
        self._folder, self._before, self._goes_on = state.folder, state.manifest, state.plan is not None
        self._plan, self._scanned, self._spaces, self._help, self._claim = plan, scanned, spaces, help_, claim
        self._n_cells = 0

    def run(self) -> Written:
        """Do what is not done."""
        folder, plan = self._folder, self._plan
        if not self._goes_on:
            plan.save(folder)
        try:
            manifest = self._manifest(self._shards())
            with writing(folder):
                manifest.save(folder)
        except BaseException as error:
            kept = self._kept()
            if isinstance(error, WriteError):
                raise WriteError(error.errno, f"{error.strerror}; {kept}") from error
            error.add_note(kept)
            raise
        clear(folder, manifest)
        new = manifest.shards[plan.first_shard :]
        return Written(manifest=manifest, shards=new, n_cells=self._n_cells)

    def _shards(self) -> list[ShardRecord]:
        """Write all new files but the manifest."""
        is_ordered = self._plan.layout == "source"
        base = self._folder if is_ordered else self._folder / UNORDERED
        with writing(self._folder):
            for parent in {self._folder, base}:
                for name in FOLDERS:
                    (parent / name).mkdir(parents=True, exist_ok=True)
        self._write_genes()
        with workers(self._help.executor, self._help.n_processes, len(self._plan.shards)) as executor:
            # Tables come first: a column that cannot be kept should not be found out at the end of a long conversion.
            self._do("reading obs", self._tables(self._place(base)), executor)
            records = self._do("converting", self._encoding(self._place(base)), executor)
            if is_ordered:
                return records
            tasks = relayout_tasks(self._place(self._folder), base, self._plan, records, self._spaces.n_genes)
            return self._do("ordering", tasks, executor)

    def _place(self, base: Path) -> Place:
        return Place(folder=base, claim=self._claim, plan=self._plan.digest)

    def _tables(self, place: Place) -> list[Task]:
        plan = self._plan
        return [WriteObs(place=place, path=plan.obs_path(i), source=one.source) for i, one in enumerate(self._scanned)]

    def _encoding(self, place: Place) -> list[Task]:
        plan = self._plan
        return [
            EncodeCells(
                place=place,
                path=plan.shard_path(i),
                source=self._scanned[shard.source].source,
                number=plan.first_source + shard.source,
                first=shard.first,
                last=shard.last,
                kind=plan.kind,
                rank=self._spaces.ranks[shard.source],
                n_space=self._spaces.n_genes[shard.source],
            )
            for i, shard in enumerate(plan.shards)
        ]

    def _do(self, what: str, tasks: Sequence[Task], executor: Executor) -> list[ShardRecord]:
        """Do the tasks that are not done; the records of all shards that they write."""
        missing = [task for task in tasks if not self._is_done(task)]
        total, left = sum(task.n_cells for task in tasks), sum(task.n_cells for task in missing)
        if missing:
            with cells_bar(what, total, total - left, shown=self._help.shown and total > 0) as told:
                run_tasks(missing, executor, self._claim, told)
        self._n_cells = max(self._n_cells, left)
        return [record for task in tasks if (record := self._record(task)) is not None]

    def _is_done(self, task: Task) -> bool:
        return (task.place.folder / task.path).exists() and (task.n_cells == 0 or self._record(task) is not None)

    def _record(self, task: Task) -> ShardRecord | None:
        return load_record(task.place.folder, task.path, self._plan.digest) if task.n_cells else None

    def _write_genes(self) -> None:
        there = {} if self._before is None else self._before.genes
        written = set(there)
        for one in self._scanned:
            digest = one.planned.genes
            path = f"var/{digest}.parquet"
            if digest not in written and not (self._folder / path).exists():
                write_table(self._folder, path, GeneList.of(one.source).table, one.planned.name)
                if isinstance(one.source, Closes):
                    one.source.close()
            written.add(digest)
        for i, ids in enumerate(self._spaces.new):
            path = self._plan.space_path(i)
            if not (self._folder / path).exists():
                write_table(self._folder, path, pd.DataFrame({GENE: ids}), path)

    def _manifest(self, shards: Sequence[ShardRecord]) -> Manifest:
        """Of the store with what was added."""
        before, plan = self._before, self._plan
        genes = dict(before.genes) if before is not None else {}
        for source in plan.sources:
            if source.genes not in genes:
                genes[source.genes] = self._file(f"var/{source.genes}.parquet")
        sources = tuple(
            SourceRecord(
                name=source.name,
                fingerprint=source.fingerprint,
                n_cells=source.n_cells,
                kind=plan.kind,
                genes=source.genes,
                space=plan.space_of[i],
                obs=self._file(plan.obs_path(i)),
                uns_organism=source.uns_organism,
            )
            for i, source in enumerate(plan.sources)
        )
        spaces = tuple(
            SpaceRecord(file=self._file(plan.space_path(i)), n_genes=len(ids)) for i, ids in enumerate(self._spaces.new)
        )
        return Manifest(
            version=VERSION,
            layout=plan.layout,
            sources=(*(before.sources if before is not None else ()), *sources),
            genes=genes,
            spaces=(*(before.spaces if before is not None else ()), *spaces),
            shards=(*(before.shards if before is not None else ()), *shards),
        )

    def _file(self, path: str) -> FileRecord:
        return file_record(self._folder, path)

    def _kept(self) -> str:
        """What is left of a conversion that has failed; nothing, where no shard was finished."""
        folder, plan = self._folder, self._plan
        base = folder if plan.layout == "source" else folder / UNORDERED
        n_done = sum(load_record(base, plan.shard_path(i), plan.digest) is not None for i in range(len(plan.shards)))
        if not n_done:
            clear(folder, self._before)
            return "nothing of it was kept"
        return (
            f"{n_done} of {len(plan.shards)} shards are finished and were kept in {base}: give the same command again "
            "to go on"
        )
