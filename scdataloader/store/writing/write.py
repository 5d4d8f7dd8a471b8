"""Conversion of sources into a store: a new one, an append, the rest of an unfinished one, or nothing."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from scdataloader.errors import SourceFormatError, WriteError
from scdataloader.genes.numbers import GeneNumbers
from scdataloader.protocols import Closes, HasFileState, Source
from scdataloader.runtime.files import writing
from scdataloader.runtime.messages import shown
from scdataloader.runtime.progress import cells_bar
from scdataloader.store.gene_spaces import (
    GENE,
    GeneIndex,
    GeneSpace,
    IndexedGenes,
    SpaceSelection,
    choose_spaces,
    write_index,
)
from scdataloader.store.manifest import (
    LAYERS,
    PACKED_VERSION,
    SHORT_VERSION,
    VERSION,
    FileRecord,
    Manifest,
    MatrixPart,
    MatrixRecord,
    ShardRecord,
    SourceRecord,
    SpaceRecord,
    file_record,
)
from scdataloader.store.tables import GeneList, labels_of_columns, write_table
from scdataloader.store.writing.lock import Claim, claimed
from scdataloader.store.writing.plan import (
    FOLDERS,
    UNORDERED,
    FolderState,
    Plan,
    PlannedShard,
    clear,
    forget_tables,
    load_record,
)
from scdataloader.store.writing.present import StoreContent
from scdataloader.store.writing.reorder import reorder_tasks
from scdataloader.store.writing.scan import CELLS_PER_SHARD, SHUFFLED, Options, ScannedSource, scan
from scdataloader.store.writing.tasks import EncodeCells, Place, Task, WriteObs, run_tasks, stored_rows, workers
from scdataloader.types import GenePlaces

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionOptions:
    """Where a conversion runs."""

    executor: Executor | None = None
    """Runs the tasks; None for own processes."""
    n_processes: int | None = None
    """Number of own processes; None for one per core."""
    shown: bool = False
    """Whether to show progress."""
    url: str | None = None
    """Where the store is, if the folder has only its manifest and gene spaces."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionResult:
    """Outcome of a conversion."""

    manifest: Manifest
    """Manifest of the store."""
    shards: tuple[ShardRecord, ...] = ()
    """The new shards of the counts; none if there was nothing to do."""
    further: tuple[ShardRecord, ...] = ()
    """The new shards of further matrices."""
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
        SourceFormatError: a source was written to while it was converted.
        RuntimeError: another conversion is writing there.
        WriteError: the folder cannot be written, or the disk is full.
    """
    state = FolderState.of(folder)
    layout = _layout(state, options)
    options = replace(options, matrices=_matrices(state, options))
    names = GeneNumbers()
    scanned = scan(sources, layout, options.cells_per_shard or CELLS_PER_SHARD, names, options.matrices or ())
    job = _job(state, scanned, options, execution)
    if state.manifest is not None and not job.scanned and state.is_clear:
        return ConversionResult(manifest=state.manifest)
    with claimed(folder) as claim:
        before, state = state.digest, FolderState.of(folder)
        if state.digest != before:  # another conversion has ended since
            job = _job(state, scanned, options, execution)
        if state.plan is None:
            clear(folder, state.manifest)
        if state.manifest is not None and not job.scanned:
            return ConversionResult(manifest=state.manifest)
        if options.kind == "float32":
            _warn_of_rounding([one.source for one in job.scanned])
        spaces = _spaces(folder, job, names)
        plan = _plan(state, job, spaces, options, layout)
        if state.plan is not None and plan != state.plan:
            forget_tables(folder, state.plan)
        if plan != state.plan:
            plan.save(folder)
        return _Conversion(state, plan, job, spaces, claim).run(execution)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What a conversion has to do."""

    scanned: Sequence[ScannedSource]
    """The sources to convert."""
    numbers: Sequence[int]
    """The number in the store of each."""
    kept: Manifest | None
    """The content of the store that stays beside them; None if all of it is new."""


def _warn_of_rounding(sources: Sequence[Source]) -> None:
    """One warning of all sources with float64 values, which are read as float32 as well."""
    rounded = [one.name for one in sources if one.n_obs and stored_rows(one, 0, 1).data.dtype == np.float64]
    if rounded:
        warnings.warn(f"float64 values are rounded to float32: {shown(rounded)}", UserWarning, stacklevel=4)


def _matrices(state: FolderState, options: Options) -> tuple[str, ...]:
    """Keys of the further matrices: those of the options, or of the store that is appended to."""
    if not options.append or state.manifest is None:
        return options.matrices or ()
    there = state.manifest.matrix_keys
    if options.matrices not in (None, there):
        raise ValueError(
            f"{state.folder} has {_listed(there)}, which appended cells get as well; got {_listed(options.matrices)}"
        )
    return there


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


def _listed(matrices: Sequence[str] | None) -> str:
    return f"the further matrices {', '.join(matrices)}" if matrices else "no further matrices"


def _job(state: FolderState, scanned: Sequence[ScannedSource], options: Options, execution: ExecutionOptions) -> _Job:
    """Convert the sources that the store in the folder does not have yet, or not with their present content.

    Raises:
        FileExistsError: there is a store of other sources or options, and ``append`` is not set.
        ValueError: the store has another content of a source to append.
    """
    manifest = state.manifest
    if manifest is None:
        return _Job(scanned=scanned, numbers=range(len(scanned)), kept=None)
    content = StoreContent(folder=state.folder, manifest=manifest, shown=execution.shown, url=execution.url)
    if options.append:
        missing, first = content.missing(scanned), len(manifest.sources)
        return _Job(scanned=missing, numbers=range(first, first + len(missing)), kept=manifest)
    changed = content.changed(scanned, options)
    for number, what in changed.items():
        name = manifest.sources[number].name
        logger.warning("%s of %s changed since it was converted: converting it anew", what, name)
    if changed and manifest.layout != "source":  # its cells are among the others
        return _Job(scanned=scanned, numbers=range(len(scanned)), kept=None)
    return _Job(scanned=[scanned[number] for number in changed], numbers=list(changed), kept=manifest)


def _spaces(folder: Path, job: _Job, names: GeneNumbers) -> SpaceSelection:
    """The gene spaces of the sources; ``names`` are those of all their genes."""
    there = () if job.kept is None else job.kept.spaces
    ids = [GeneSpace(folder, record).read().tolist() for record in there]
    return choose_spaces(names, [one.genes for one in job.scanned], ids)


def _plan(state: FolderState, job: _Job, spaces: SpaceSelection, options: Options, layout: str) -> Plan:
    """The plan of this conversion, which must continue that of an unfinished one in the folder."""
    manifest = state.manifest
    plan = Plan(
        layout=layout,
        seed=(options.seed or 0) if layout == SHUFFLED else 0,
        kind=options.kind,
        cells_per_shard=options.cells_per_shard or CELLS_PER_SHARD,
        matrices=options.matrices or (),
        compact=options.compact,
        appended_to=state.digest,
        numbers=tuple(job.numbers),
        first_table=0 if manifest is None else _next_number(source.obs for source in manifest.sources),
        first_shard=0 if manifest is None else _next_number(shard.file for shard in manifest.shards),
        sources=tuple(one.planned for one in job.scanned),
        spaces=spaces.digests,
        space_of=spaces.of_source,
        shards=tuple(
            PlannedShard(source=i, first=first, last=last)
            for i, one in enumerate(job.scanned)
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
    for name, changed in ({} if state.plan is None else plan.changed(state.plan)).items():
        logger.warning("%s of %s changed since its conversion was interrupted: converting it anew", changed, name)
    return plan


def _next_number(files: Iterable[FileRecord]) -> int:
    """The first number that no file has, nor a later one."""
    return 1 + max((int(Path(file.path).stem, 16) for file in files), default=-1)


class _Conversion:
    """A conversion that holds the folder's lock: it runs the tasks whose files are missing."""

    def __init__(
        self,
        state: FolderState,
        plan: Plan,
        job: _Job,
        spaces: SpaceSelection,
        claim: Claim,
    ) -> None:
        self._folder, self._before = state.folder, state.manifest
        self._plan, self._job, self._scanned, self._spaces, self._claim = plan, job, job.scanned, spaces, claim
        self._base = self._folder if plan.layout == "source" else self._folder / UNORDERED
        self._n_cells = 0

    def run(self, execution: ExecutionOptions) -> ConversionResult:
        """Write all missing files, the manifest last. An error states what is kept for the next try."""
        folder = self._folder
        try:
            shards, *further = self._shards(execution)
            manifest = self._manifest(shards, further)
            self._check_sources()
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
            manifest=manifest, shards=tuple(shards), further=tuple(chain(*further)), n_cells=self._n_cells
        )

    def _check_sources(self) -> None:
        """Check that no source was written to while it was read: the store might mix its old and new content."""
        for one in self._scanned:
            if isinstance(one.source, HasFileState) and one.source.file_state() != one.planned.file_state:
                raise SourceFormatError(
                    f"{one.planned.name} was written to while it was converted; rerun the same command to convert it "
                    "anew"
                )

    def _shards(self, execution: ExecutionOptions) -> list[list[ShardRecord]]:
        """Write all new files but the manifest; the records of the shards of the counts, and of each matrix."""
        with writing(self._folder):
            for parent in {self._folder, self._base}:
                for name in FOLDERS if self._plan.matrices else FOLDERS[:-1]:
                    (parent / name).mkdir(parents=True, exist_ok=True)
        self._write_genes()
        plan, place = self._plan, self._place(self._base)
        tables = [
            WriteObs(place=place, path=plan.obs_path(i), source=one.source) for i, one in enumerate(self._scanned)
        ]
        with workers(execution.executor, execution.n_processes, self._n_shards) as executor:
            # tables first: a column that cannot be kept should not fail at the end of a long conversion
            self._do("reading obs", tables, executor, shown=execution.shown)
            encoding = [*self._encoding(place), *self._encoding_matrices(place)]
            what = f"converting {1 + len(plan.matrices)} matrices" if plan.matrices else "converting"
            records = self._by_matrix(self._do(what, encoding, executor, shown=execution.shown))
            if self._base == self._folder:
                return records
            n_genes = [self._spaces.n_genes, *([part.n_columns for part in parts] for parts in self._parts())]
            tasks = reorder_tasks(self._place(self._folder), self._base, plan, records, n_genes)
            return self._by_matrix(self._do("ordering", tasks, executor, shown=execution.shown))

    @property
    def _n_shards(self) -> int:
        return len(self._plan.shards) * (1 + len(self._plan.matrices))

    def _by_matrix(self, records: list[ShardRecord]) -> list[list[ShardRecord]]:
        """Records of the shards of the counts and of each matrix, which have as many shards."""
        n = len(records) // (1 + len(self._plan.matrices))
        return [records[at : at + n] for at in range(0, len(records), n)]

    def _parts(self) -> list[list[MatrixPart]]:
        """What each matrix is of each source of the plan, as a store states it."""
        return [
            [
                replace(source.matrices[number], n_columns=n_space)
                if key.startswith(LAYERS)
                else source.matrices[number]
                for source, n_space in zip(self._plan.sources, self._spaces.n_genes, strict=True)
            ]
            for number, key in enumerate(self._plan.matrices)
        ]

    def _place(self, base: Path) -> Place:
        return Place(folder=base, claim=self._claim, key=self._plan.digest)

    def _encoding(self, place: Place) -> list[EncodeCells]:
        plan = self._plan
        return [
            EncodeCells(
                place=replace(place, key=plan.shard_key(i)),
                path=plan.shard_path(i),
                source=self._scanned[shard.source].source,
                key=None,
                number=plan.numbers[shard.source],
                first=shard.first,
                last=shard.last,
                kind=plan.kind,
                rank=self._spaces.ranks[shard.source],
                n_space=self._spaces.n_genes[shard.source],
                compact=plan.compact,
            )
            for i, shard in enumerate(plan.shards)
        ]

    def _encoding_matrices(self, place: Place) -> Iterator[EncodeCells]:
        """For each further matrix, the shards of the same cells as those of the counts."""
        plan = self._plan
        for number, (key, parts) in enumerate(zip(plan.matrices, self._parts(), strict=True)):
            for i, task in enumerate(self._encoding(place)):
                n_columns = parts[plan.shards[i].source].n_columns
                yield replace(
                    task,
                    place=replace(place, key=plan.shard_key(i, number)),
                    path=plan.matrix_path(i, number),
                    key=key,
                    kind="either",
                    rank=task.rank if key.startswith(LAYERS) else np.arange(n_columns, dtype=np.int32),
                    n_space=n_columns,
                )

    def _do(self, what: str, tasks: Sequence[Task], executor: Executor, *, shown: bool) -> list[ShardRecord]:
        """Run the tasks that are not done; the records of the shards of all of them."""
        missing = [task for task in tasks if not self._is_done(task)]
        total, left = sum(task.n_cells for task in tasks), sum(task.n_cells for task in missing)
        if missing:
            with cells_bar(what, total, total - left, shown=shown and total > 0) as on_progress:
                run_tasks(missing, executor, self._claim, on_progress)
        self._n_cells = max(self._n_cells, left // (1 + len(self._plan.matrices)))
        return [record for task in tasks if (record := self._record(task)) is not None]

    def _is_done(self, task: Task) -> bool:
        return (task.place.folder / task.path).exists() and (task.n_cells == 0 or self._record(task) is not None)

    def _record(self, task: Task) -> ShardRecord | None:
        return load_record(task.place.folder, task.path, task.place.key) if task.n_cells else None

    def _write_genes(self) -> None:
        """Write the gene tables and gene spaces that the store does not have yet."""
        written = set() if self._job.kept is None else set(self._job.kept.genes)
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

    def _manifest(self, shards: Sequence[ShardRecord], further: Sequence[Sequence[ShardRecord]]) -> Manifest:
        """The manifest of the store with the new files: shards of the counts, and of each further matrix."""
        folder, plan = self._folder, self._plan
        kept = self._job.kept or Manifest(
            version=VERSION, layout=plan.layout, sources=(), genes={}, spaces=(), shards=()
        )
        sources = dict(enumerate(kept.sources)) | {
            number: SourceRecord(
                name=source.name,
                fingerprint=source.fingerprint,
                n_cells=source.n_cells,
                kind=plan.kind,
                genes=source.genes,
                space=plan.space_of[i],
                obs=file_record(folder, plan.obs_path(i)),
                uns_organism=source.uns_organism,
                file_state=source.file_state,
                seed=plan.seed if plan.layout == SHUFFLED else None,
                columns=labels_of_columns(folder / plan.obs_path(i)),
            )
            for i, (number, source) in enumerate(zip(plan.numbers, plan.sources, strict=True))
        }
        used = dict.fromkeys(source.genes for source in sources.values())
        genes = {name: kept.genes.get(name) or file_record(folder, f"var/{name}.parquet") for name in used}
        spaces = tuple(
            SpaceRecord(file=file_record(folder, plan.space_path(i)), n_genes=len(ids))
            for i, ids in enumerate(self._spaces.new)
        )
        needed = max(PACKED_VERSION if plan.compact else SHORT_VERSION, kept.version)
        return Manifest(
            version=needed,
            release=version("scdataloader"),
            layout=plan.layout,
            sources=tuple(sources[number] for number in sorted(sources)),
            genes=genes,
            spaces=(*kept.spaces, *spaces),
            gene_index=self._gene_index(kept, (*kept.spaces, *spaces)),
            shards=self._with_kept(kept.shards, shards),
            matrices=self._matrices(kept.matrices, further),
        )

    def _gene_index(self, kept: Manifest, spaces: Sequence[SpaceRecord]) -> tuple[FileRecord, ...]:
        """The gene index of the kept sources; and that of the new ones, which is written."""
        known = set(GeneIndex(self._folder, kept).read())
        new = {
            (one.planned.genes, space): IndexedGenes(
                places=GenePlaces.of(rank, spaces[space].n_genes), are_names=one.are_names
            )
            for one, space, rank in zip(self._scanned, self._plan.space_of, self._spaces.ranks, strict=True)
            if (one.planned.genes, space) not in known
        }
        with writing(self._folder):
            return (*kept.gene_index, write_index(self._folder, new)) if new else kept.gene_index

    def _matrices(
        self, kept: Sequence[MatrixRecord], further: Sequence[Sequence[ShardRecord]]
    ) -> tuple[MatrixRecord, ...]:
        """The further matrices of the kept sources and of the new ones."""
        made = []
        for number, (key, parts, shards) in enumerate(zip(self._plan.matrices, self._parts(), further, strict=True)):
            of_source = dict(enumerate(kept[number].parts if kept else ()))
            of_source |= dict(zip(self._plan.numbers, parts, strict=True))
            made.append(
                MatrixRecord(
                    key=key,
                    parts=tuple(of_source[at] for at in sorted(of_source)),
                    shards=self._with_kept(kept[number].shards if kept else (), shards),
                )
            )
        return tuple(made)

    def _with_kept(self, kept: Sequence[ShardRecord], shards: Sequence[ShardRecord]) -> tuple[ShardRecord, ...]:
        """The shards of the store of a matrix, in the order of their cells."""
        plan = self._plan
        all_shards = [*(shard for shard in kept if shard.source not in plan.numbers), *shards]
        if plan.layout == "source":
            all_shards.sort(key=lambda shard: shard.source or 0)
        return tuple(all_shards)

    def _kept(self) -> str:
        """What is left of a failed conversion, for a message; nothing is left if no shard was finished."""
        plan, base = self._plan, self._base
        files = [(plan.shard_path(i), plan.shard_key(i)) for i in range(len(plan.shards))]
        for number in range(len(plan.matrices)):
            files += [(plan.matrix_path(i, number), plan.shard_key(i, number)) for i in range(len(plan.shards))]
        n_done = sum(load_record(base, *file) is not None for file in files)
        if not n_done:
            clear(self._folder, self._before)
            return "no files were kept"
        return f"{n_done} of {len(files)} shards are finished and kept in {base}: rerun the same command to continue"
