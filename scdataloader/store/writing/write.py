"""Conversion of sources into a store: a new one, an append, the rest of an unfinished one, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from scdataloader.errors import WriteError
from scdataloader.protocols import Closes, Source
from scdataloader.runtime.files import writing
from scdataloader.runtime.progress import cells_bar
from scdataloader.store.gene_spaces import GENE, GeneNumbers, GeneSpace, SpaceSelection, choose_spaces
from scdataloader.store.manifest import VERSION, Manifest, ShardRecord, SourceRecord, SpaceRecord, file_record
from scdataloader.store.tables import GeneList, write_table
from scdataloader.store.writing.lock import Claim, claimed
from scdataloader.store.writing.plan import FOLDERS, UNORDERED, FolderState, Plan, PlannedShard, clear, load_record
from scdataloader.store.writing.reorder import reorder_tasks
from scdataloader.store.writing.scan import Options, ScannedSource, scan
from scdataloader.store.writing.tasks import EncodeCells, Place, Task, WriteObs, run_tasks, workers


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionOptions:
    """Where a conversion runs."""

    executor: Executor | None = None
    """Runs the tasks; None for own processes."""
    n_processes: int | None = None
    """Number of own processes; None for one per core."""
    shown: bool = False
    """Whether to show progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionResult:
    """Outcome of a conversion."""

    manifest: Manifest
    """Manifest of the store."""
    shards: tuple[ShardRecord, ...] = ()
    """The new shards; none if there was nothing to do."""
    n_cells: int = 0
    """Cells of those that this call converted; earlier tries converted the others."""


def write_store(
    folder: Path, sources: Sequence[Source], options: Options, execution: ExecutionOptions
) -> ConversionResult:
    """Convert sources into the store in ``folder``, continuing an unfinished conversion if there is one.

    Raises:
        FileExistsError: the folder holds something else, or a store and ``append`` is not set.
        FileNotFoundError: there is no store to append to.
        ValueError: the sources or options are not those of the unfinished conversion in the folder, or do not fit into
            this store; or a value cannot be kept: names the source, the cell and the gene.
        RuntimeError: another conversion is writing there.
        WriteError: the folder cannot be written, or the disk is full.
    """
    state = FolderState.of(folder)
    layout = _layout(state, options)
    names = GeneNumbers()
    scanned = scan(sources, layout, options.cells_per_shard, names)
    finished = _finished(state, scanned, options)
    if finished is not None and state.is_clear:
        return ConversionResult(manifest=finished)
    with claimed(folder) as claim:
        state = FolderState.of(folder)  # another conversion may have ended since
        if state.plan is None:
            clear(folder, state.manifest)
        finished = _finished(state, scanned, options)
        if finished is not None:
            return ConversionResult(manifest=finished)
        spaces = _spaces(state, scanned, names)
        plan = _plan(state, scanned, spaces, options, layout)
        if state.plan is None:
            plan.save(folder)
        return _Conversion(state, plan, scanned, spaces, claim).run(execution)


def _layout(state: FolderState, options: Options) -> str:
    """Order of the cells: that of the options, or of the store that is appended to."""
    if not options.append:
        return options.layout or "source"
    manifest = state.manifest
    if manifest is None:
        remedy = "finish its first conversion first" if state.plan else "leave append out"
        raise FileNotFoundError(f"there is no store in {state.folder} to append to; {remedy}")
    if options.layout not in (None, manifest.layout):
        raise ValueError(
            f"{state.folder} has the layout {manifest.layout!r}, which appended cells get as well; got "
            f"{options.layout!r}"
        )
    kinds = {source.kind for source in manifest.sources}
    if kinds != {options.kind}:
        raise ValueError(
            f"{state.folder} holds {' and '.join(sorted(kinds))}, which {options.kind} cannot be appended to; pass "
            f"values={'any' if options.kind == 'counts' else 'counts'!r}, or convert into another store"
        )
    return manifest.layout


def _finished(state: FolderState, scanned: Sequence[ScannedSource], options: Options) -> Manifest | None:
    """The store's manifest if it has all of the sources already, as the last ones of an append; else None.

    Raises:
        FileExistsError: there is another store, and ``append`` is not set.
        ValueError: the store has some of the sources to append.
    """
    manifest = state.manifest
    if manifest is None:
        return None
    there, given = [s.fingerprint for s in manifest.sources], [one.planned.fingerprint for one in scanned]
    if not options.append:
        same_kind = {source.kind for source in manifest.sources} == {options.kind}
        if there == given and same_kind and manifest.layout == (options.layout or "source"):
            return manifest
        raise FileExistsError(
            f"{state.folder} is a store already, of other sources or options; add to it with append (--append), name "
            "another folder, or delete it"
        )
    if there[-len(given) :] == given:
        return manifest
    names = dict(zip(there, (source.name for source in manifest.sources), strict=True))
    repeated = [one.planned for one in scanned if one.planned.fingerprint in names]
    if repeated:
        raise ValueError(
            f"{state.folder} has {repeated[0].name} already, as {names[repeated[0].fingerprint]} (fingerprint "
            f"{repeated[0].fingerprint}); do not append it"
        )
    return None


def _spaces(state: FolderState, scanned: Sequence[ScannedSource], names: GeneNumbers) -> SpaceSelection:
    """The gene spaces of the sources; ``names`` are those of all their genes."""
    there = () if state.manifest is None else state.manifest.spaces
    ids = [GeneSpace(state.folder, record).read().tolist() for record in there]
    return choose_spaces(names, [one.genes for one in scanned], ids)


def _plan(
    state: FolderState, scanned: Sequence[ScannedSource], spaces: SpaceSelection, options: Options, layout: str
) -> Plan:
    """The plan of this conversion, which must equal that of an unfinished one in the folder."""
    manifest = state.manifest
    plan = Plan(
        layout=layout,
        seed=options.seed if layout == "shuffled" else 0,
        kind=options.kind,
        cells_per_shard=options.cells_per_shard,
        appended_to=state.digest,
        first_source=0 if manifest is None else len(manifest.sources),
        first_shard=0 if manifest is None else len(manifest.shards),
        sources=tuple(one.planned for one in scanned),
        spaces=spaces.digests,
        space_of=spaces.of_source,
        shards=tuple(
            PlannedShard(source=i, first=first, last=last)
            for i, one in enumerate(scanned)
            for first, last in one.ranges
        ),
    )
    difference = None if state.plan is None else plan.difference(state.plan)
    if difference is not None:
        instead = "delete the folder" if manifest is None else "delete its conversion.json"
        raise ValueError(
            f"{state.folder} holds an unfinished conversion that differs from this one: {difference}; rerun its "
            f"command to finish it, or {instead} to discard it"
        )
    return plan


class _Conversion:
    """A conversion that holds the folder's lock: it runs the tasks whose files are missing."""

    def __init__(
        self,
        state: FolderState,
        plan: Plan,
        scanned: Sequence[ScannedSource],
        spaces: SpaceSelection,
        claim: Claim,
    ) -> None:
        self._folder, self._before = state.folder, state.manifest
        self._plan, self._scanned, self._spaces, self._claim = plan, scanned, spaces, claim
        self._base = self._folder if plan.layout == "source" else self._folder / UNORDERED
        self._n_cells = 0

    def run(self, execution: ExecutionOptions) -> ConversionResult:
        """Write all missing files, the manifest last. An error states what is kept for the next try."""
        folder = self._folder
        try:
            manifest = self._manifest(self._shards(execution))
            with writing(folder):
                manifest.save(folder)
        except BaseException as error:
            kept = self._kept()
            if isinstance(error, WriteError):
                raise WriteError(error.errno, f"{error.strerror}; {kept}") from error
            error.add_note(kept)
            raise
        clear(folder, manifest)
        return ConversionResult(
            manifest=manifest, shards=manifest.shards[self._plan.first_shard :], n_cells=self._n_cells
        )

    def _shards(self, execution: ExecutionOptions) -> list[ShardRecord]:
        """Write all new files but the manifest; the records of the shards."""
        with writing(self._folder):
            for parent in {self._folder, self._base}:
                for name in FOLDERS:
                    (parent / name).mkdir(parents=True, exist_ok=True)
        self._write_genes()
        plan, place = self._plan, self._place(self._base)
        tables = [
            WriteObs(place=place, path=plan.obs_path(i), source=one.source) for i, one in enumerate(self._scanned)
        ]
        with workers(execution.executor, execution.n_processes, len(plan.shards)) as executor:
            # tables first: a column that cannot be kept should not fail at the end of a long conversion
            self._do("reading obs", tables, executor, shown=execution.shown)
            records = self._do("converting", self._encoding(place), executor, shown=execution.shown)
            if self._base == self._folder:
                return records
            tasks = reorder_tasks(self._place(self._folder), self._base, plan, records, self._spaces.n_genes)
            return self._do("ordering", tasks, executor, shown=execution.shown)

    def _place(self, base: Path) -> Place:
        return Place(folder=base, claim=self._claim, plan=self._plan.digest)

    def _encoding(self, place: Place) -> list[EncodeCells]:
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

    def _do(self, what: str, tasks: Sequence[Task], executor: Executor, *, shown: bool) -> list[ShardRecord]:
        """Run the tasks that are not done; the records of the shards of all of them."""
        missing = [task for task in tasks if not self._is_done(task)]
        total, left = sum(task.n_cells for task in tasks), sum(task.n_cells for task in missing)
        if missing:
            with cells_bar(what, total, total - left, shown=shown and total > 0) as on_progress:
                run_tasks(missing, executor, self._claim, on_progress)
        self._n_cells = max(self._n_cells, left)
        return [record for task in tasks if (record := self._record(task)) is not None]

    def _is_done(self, task: Task) -> bool:
        return (task.place.folder / task.path).exists() and (task.n_cells == 0 or self._record(task) is not None)

    def _record(self, task: Task) -> ShardRecord | None:
        return load_record(task.place.folder, task.path, self._plan.digest) if task.n_cells else None

    def _write_genes(self) -> None:
        """Write the gene tables and gene spaces that the store does not have yet."""
        written = set() if self._before is None else set(self._before.genes)
        for one in self._scanned:
            path = f"var/{one.planned.genes}.parquet"
            if one.planned.genes not in written and not (self._folder / path).exists():
                write_table(self._folder, path, GeneList.of(one.source).table, one.planned.name)
                if isinstance(one.source, Closes):
                    one.source.close()
            written.add(one.planned.genes)
        for i, ids in enumerate(self._spaces.new):
            path = self._plan.space_path(i)
            if not (self._folder / path).exists():
                write_table(self._folder, path, pd.DataFrame({GENE: ids}), path)

    def _manifest(self, shards: Sequence[ShardRecord]) -> Manifest:
        """The manifest of the store with the new files."""
        folder, plan = self._folder, self._plan
        before = self._before or Manifest(
            version=VERSION, layout=plan.layout, sources=(), genes={}, spaces=(), shards=()
        )
        genes = dict(before.genes)
        for source in plan.sources:
            if source.genes not in genes:
                genes[source.genes] = file_record(folder, f"var/{source.genes}.parquet")
        sources = tuple(
            SourceRecord(
                name=source.name,
                fingerprint=source.fingerprint,
                n_cells=source.n_cells,
                kind=plan.kind,
                genes=source.genes,
                space=plan.space_of[i],
                obs=file_record(folder, plan.obs_path(i)),
                uns_organism=source.uns_organism,
            )
            for i, source in enumerate(plan.sources)
        )
        spaces = tuple(
            SpaceRecord(file=file_record(folder, plan.space_path(i)), n_genes=len(ids))
            for i, ids in enumerate(self._spaces.new)
        )
        return Manifest(
            version=VERSION,
            layout=plan.layout,
            sources=(*before.sources, *sources),
            genes=genes,
            spaces=(*before.spaces, *spaces),
            shards=(*before.shards, *shards),
        )

    def _kept(self) -> str:
        """What is left of a failed conversion, for a message; nothing is left if no shard was finished."""
        plan, base = self._plan, self._base
        n_done = sum(load_record(base, plan.shard_path(i), plan.digest) is not None for i in range(len(plan.shards)))
        if not n_done:
            clear(self._folder, self._before)
            return "no files were kept"
        return (
            f"{n_done} of {len(plan.shards)} shards are finished and kept in {base}: rerun the same command to continue"
        )
