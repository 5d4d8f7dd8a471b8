"""The tasks that a conversion consists of: each writes one file, in whatever process or machine it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import NotCountsError, ScDataLoaderError, UnsupportedDataError
from scdataloader.kernels.records.encode import first_unfit
from scdataloader.kernels.rows import gather
from scdataloader.kernels.rows.align import row_starts
from scdataloader.protocols import Closes, HasMatrix, HasSizes, ReadsStored, Source
from scdataloader.runtime.files import writing
from scdataloader.runtime.processes import ProcessPool, WorkerDiedError, n_cores, uninterrupted
from scdataloader.sources.contract import rows_of
from scdataloader.store.manifest import Kind
from scdataloader.store.shard import ShardWriter
from scdataloader.store.tables import whole_obs, write_table
from scdataloader.store.writing.lock import Claim
from scdataloader.store.writing.plan import save_record
from scdataloader.types import CSRMatrix

PROGRESS = ".progress"
"""Ends the name of the file that says how many cells of a shard are done."""
_CELLS_PER_BLOCK = 1 << 12
_VALUES_PER_BLOCK = 1 << 21
_SECONDS_PER_NOTE = 0.5
_SECONDS_PER_LOOK = 0.25
_LARGEST = (1 << 32) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a task writes, and for which conversion."""

    folder: Path
    """Folder that paths are relative to."""
    claim: Claim
    """The conversion's right to write there."""
    plan: str
    """Digest of the conversion's plan."""


class Task(Protocol):
    """Something that writes one file."""

    @property
    def place(self) -> Place:
        """Where."""

    @property
    def path(self) -> str:
        """The file."""

    @property
    def n_cells(self) -> int:
        """How many cells it puts into a shard."""

    def run(self) -> None:
        """Write the file."""


def run_task(task: Task) -> None:
    """Do a task, while its conversion goes on.

    Raises:
        ConversionStoppedError: it does not any more.
        WriteError: the file cannot be written.
    """
    with task.place.claim.shared():
        task.run()


@contextmanager
def workers(executor: Executor | None, n_processes: int | None, n_tasks: int) -> Iterator[Executor]:
    """The executor to use: the given one, or else ``n_processes``, by default as many as there are cores and tasks.

    One process is this one.
    """
    if executor is not None:
        yield executor
        return
    n = min(n_processes or n_cores(), max(1, n_tasks))
    own = ThreadPoolExecutor(1, thread_name_prefix="scdataloader-convert") if n == 1 else ProcessPool(n)
    with own:
        yield own


def run_tasks(tasks: Sequence[Task], executor: Executor, claim: Claim, on_progress: Callable[[int], None]) -> None:
    """Run all tasks; ``on_progress`` regularly receives the number of their cells that are done.

    Where one fails, the others are stopped before its error is raised.

    Raises:
        RuntimeError: a process ended before its task.
        Exception: any error of a task.
    """
    with uninterrupted():
        task_of = {executor.submit(run_task, task): task for task in tasks}
    pending, n_done, complete = set(task_of), 0, False
    try:
        while pending:
            done, pending = wait(pending, timeout=_SECONDS_PER_LOOK, return_when=FIRST_EXCEPTION)
            for future in done:
                error = future.exception()
                if isinstance(error, ScDataLoaderError):
                    raise error  # from here, so that it reads as an error of this process
                future.result()
                n_done += task_of[future].n_cells
            noted = sum(noted_cells(task_of[future].place.folder, task_of[future].path) for future in pending)
            on_progress(n_done + noted)
        complete = True
    except (WorkerDiedError, BrokenProcessPool) as error:  # of our own processes, or of an executor of the user's
        raise RuntimeError(f"a process of the conversion has ended: {error}") from error
    finally:
        if not complete:
            claim.stop()
            for future in pending:
                future.cancel()
            wait(pending)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeCells:
    """A range of cells of one source to a shard."""

    place: Place
    """Where to."""
    path: str
    """Of the shard."""
    source: Source
    """Whose cells."""
    number: int
    """Of the source, in the store."""
    first: int
    """Its first row."""
    last: int
    """One more than its last row."""
    kind: Kind
    """What values are kept as."""
    rank: NDArray[np.int32]
    """``(n_genes,)`` the place of each of the source's genes in its gene space."""
    n_space: int
    """Genes of that space."""

    @property
    def n_cells(self) -> int:
        """Cells of the shard."""
        return self.last - self.first

    def run(self) -> None:
        """Write the shard, then its record.

        Raises:
            NotCountsError: a value is no count, where only counts are kept.
            UnsupportedDataError: a value does not fit; names the source, the cell and the gene.
            WriteError: the shard cannot be written.
        """
        source, folder = self.source, self.place.folder
        offsets = stored_offsets(source)
        own = None if offsets is None else offsets[self.first : self.last + 1]
        with noting(self.place, self.path) as note, shard_writer(folder, self.path, self.kind, self.n_space) as writer:
            for start, stop in blocks(self.n_cells, own, len(self.rank)):
                with of_source(source, self.first + start, self.first + stop):
                    rows = stored_rows(source, self.first + start, self.first + stop)
                self._append(writer, rows, self.first + start)
                if isinstance(source, Closes):
                    source.release()
                note(stop)
            with writing(folder / self.path):
                record = writer.finish(self.number)
        save_record(folder, record, self.place.plan)

    def _append(self, writer: ShardWriter, rows: CSRMatrix, first: int) -> None:
        try:
            with writing(self.place.folder / self.path):
                writer.append(rows.indptr, rows.indices, rows.data, self.rank)
        except ValueError as error:
            summed = _summed(rows)
            if summed is None:
                raise self._in_words(rows, first, error) from error
            self._append(writer, summed, first)

    def _in_words(self, rows: CSRMatrix, first: int, error: ValueError) -> UnsupportedDataError | NotCountsError:
        """What is wrong with cells from number ``first`` on, which could not be appended."""
        name, at = self.source.name, first_unfit(rows.data, self.kind == "counts")
        if at < 0:
            return UnsupportedDataError(f"{name}, among cells {first} to {first + len(rows.indptr) - 2}: {error}")
        cell, gene = first + int(np.searchsorted(rows.indptr, at, side="right")) - 1, int(rows.indices[at])
        found = f"{name}: {rows.data[at]!s} at cell {cell}, gene {gene} ({self.source.var.index[gene]})"
        if self.kind == "float32":
            return UnsupportedDataError(
                f"{found} is no float32 number, which a store keeps exactly; round values to float32 first"
            )
        if rows.data[at] > 0 and rows.data[at] == np.floor(rows.data[at]):
            return UnsupportedDataError(f"{found} is more than the {_LARGEST:,} that a count in a store can be")
        return NotCountsError(
            f"{found} is no count: name the matrix that holds counts with counts=..., or pass values='any' to keep "
            "float32 values as they are"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteObs:
    """The cell table of one source to a parquet file."""

    place: Place
    """Where to."""
    path: str
    """Of the file."""
    source: Source
    """Whose cells."""
    n_cells: int = 0
    """It writes no shard."""

    def run(self) -> None:
        """Write the file.

        Raises:
            UnsupportedDataError: it has a column that cannot be kept, or is of another length than the source.
            WriteError: it cannot be written.
        """
        with of_source(self.source, 0, self.source.n_obs):
            frame = whole_obs(self.source)
        if len(frame) != self.source.n_obs:
            raise UnsupportedDataError(
                f"{self.source.name} has {self.source.n_obs:,} cells, but {len(frame):,} rows in its obs"
            )
        write_table(self.place.folder, self.path, frame, self.source.name)


def stored_offsets(source: Source) -> NDArray[np.int64] | None:
    """``(n_obs + 1,)`` offsets of the values of a source's cells; None where only reading them would tell."""
    matrix = source.matrix if isinstance(source, HasMatrix) else None
    if matrix is not None:
        return matrix.indptr
    sizes = source.nnz() if isinstance(source, HasSizes) else None
    return None if sizes is None else row_starts(sizes)


def stored_rows(source: Source, first: int, last: int) -> CSRMatrix:
    """Cells ``[first, last)`` with values as they are stored, where the source can tell; as views where they lie so."""
    matrix = source.matrix if isinstance(source, HasMatrix) else None
    if matrix is None:
        rows = np.arange(first, last)
        read = source.read_stored(rows) if isinstance(source, ReadsStored) else rows_of(source, rows)
        return CSRMatrix(indptr=read.indptr, indices=read.indices, data=read.data)
    begin, end = matrix.indptr[first], matrix.indptr[last]
    return CSRMatrix(
        indptr=matrix.indptr[first : last + 1] - begin, indices=matrix.indices[begin:end], data=matrix.data[begin:end]
    )


def blocks(n_cells: int, offsets: NDArray[np.int64] | None, n_genes: int) -> Iterator[tuple[int, int]]:
    """Ranges of cells whose values, numbered by ``offsets`` ``(n_cells + 1,)``, fit into memory many times over."""
    start = 0
    while start < n_cells:
        if offsets is None:
            most = _VALUES_PER_BLOCK // max(1, n_genes)
        else:
            most = int(np.searchsorted(offsets, offsets[start] + _VALUES_PER_BLOCK, side="right")) - 1 - start
        stop = min(n_cells, start + max(1, min(most, _CELLS_PER_BLOCK)))
        yield start, stop
        start = stop


@contextmanager
def shard_writer(folder: Path, path: str, kind: Kind, n_genes: int, *, mixed: bool = False) -> Iterator[ShardWriter]:
    """Begin a shard, of which nothing is left where an exception ends it.

    Raises:
        WriteError: it cannot be written.
    """
    with writing(folder / path):
        writer = ShardWriter(folder, path, kind=kind, n_genes=n_genes, mixed=mixed)
    with writer:
        yield writer


@contextmanager
def noting(place: Place, path: str) -> Iterator[Callable[[int], None]]:
    """Tell whoever looks how many cells of a shard are done, and stop where the conversion has ended."""
    noted, file = time.monotonic(), place.folder / f"{path}{PROGRESS}"

    def note(n_done: int) -> None:
        nonlocal noted
        if time.monotonic() - noted > _SECONDS_PER_NOTE:
            place.claim.check()
            with writing(file):
                file.write_text(str(n_done), encoding="ascii")
            noted = time.monotonic()

    try:
        yield note
    finally:
        file.unlink(missing_ok=True)


def noted_cells(folder: Path, path: str) -> int:
    """How many cells of an unfinished shard are done."""
    with suppress(OSError, ValueError):
        return int((folder / f"{path}{PROGRESS}").read_text(encoding="ascii"))
    return 0


@contextmanager
def of_source(source: Source, first: int, last: int) -> Iterator[None]:
    """Have errors of reading say of which cells."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"(while cells {first:,} to {last - 1:,} of {source.name} were read)")
        raise


def _summed(rows: CSRMatrix) -> CSRMatrix | None:
    """The same cells with values added up that are of the same cell and gene; None where there are none."""
    lengths = np.diff(rows.indptr)
    cells = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((rows.indices, cells))
    genes, cells = rows.indices[order], cells[order]
    if not ((genes[1:] == genes[:-1]) & (cells[1:] == cells[:-1])).any():
        return None
    whole = rows.data.dtype.kind in "iu"
    data = rows.data.astype(np.promote_types(rows.data.dtype, np.int64) if whole else rows.data.dtype)
    indptr, indices = rows.indptr.copy(), rows.indices.astype(np.int32)
    gather.sort_rows(indptr, indices, data)
    return CSRMatrix(indptr=indptr, indices=indices[: indptr[-1]], data=data[: indptr[-1]])


def nothing() -> None:
    """What a source has to give back that has no memory map."""
