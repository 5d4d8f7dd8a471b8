"""Tasks of a conversion. Each writes one file, in any process or machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import NotCountsError, ScDataLoaderError, SourceChangedError, UnsupportedDataError
from scdataloader.kernels.records.encode import first_unfit
from scdataloader.kernels.rows import gather
from scdataloader.kernels.rows.align import row_starts
from scdataloader.protocols import Closes, HasMatrix, HasSizes, ReadsStored, Source
from scdataloader.runtime.files import writing
from scdataloader.runtime.processes import ProcessPool, WorkerDiedError, n_cores, uninterrupted
from scdataloader.sources.contract import check_unchanged, rows_of
from scdataloader.store.manifest import Kind
from scdataloader.store.tables import whole_obs, write_table
from scdataloader.store.writing.lock import Claim, ConversionStoppedError
from scdataloader.store.writing.matrices import matrix_blocks
from scdataloader.store.writing.plan import save_record
from scdataloader.store.writing.shard_writer import ShardWriter
from scdataloader.types import CSRMatrix

PROGRESS = ".progress"
"""Suffix of the file with the number of cells of an unfinished shard that are done."""
_CELLS_PER_BLOCK = 1 << 12
_VALUES_PER_BLOCK = 1 << 21
_SECONDS_PER_NOTE = 0.5
_SECONDS_PER_LOOK = 0.25
_SECONDS_TO_STOP = 60
_LARGEST = (1 << 32) - 1
_LOST = (FileNotFoundError, SourceChangedError, ConversionStoppedError)
"""Errors of tasks on machines that do not have the paths of the conversion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a task writes, and for which conversion."""

    folder: Path
    """Folder that paths are relative to."""
    claim: Claim
    """Lock of the conversion."""
    key: str
    """Identifies all that the file depends on."""


class Task(Protocol):
    """A task that writes one file."""

    @property
    def place(self) -> Place:
        """Where it writes."""

    @property
    def path(self) -> str:
        """Path of the file."""

    @property
    def n_cells(self) -> int:
        """Cells that it writes into a shard; 0 for tables."""

    def run(self) -> None:
        """Write the file."""


def run_task(task: Task) -> None:
    """Run a task under the lock of its conversion.

    Raises:
        ConversionStoppedError: the conversion has ended, or this machine does not have its folder.
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


def _is_local(executor: Executor) -> bool:
    return isinstance(executor, ThreadPoolExecutor | ProcessPoolExecutor | ProcessPool)


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
                if isinstance(error, _LOST) and not _is_local(executor):
                    error.add_note(
                        "a worker may lack the path: start workers where sources and store have the same paths"
                    )
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
            wait(pending, timeout=_SECONDS_TO_STOP)  # one of dask that ends as it is cancelled is never marked as done


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeCells:
    """Writes rows [first, last) of a matrix of a source to a shard."""

    place: Place
    path: str
    source: Source
    key: str | None
    """Key of a further matrix; None for the counts."""
    number: int
    """Number of the source in the store."""
    first: int
    last: int
    kind: Kind
    rank: NDArray[np.int32]
    """``(n_genes,)`` position of each gene in the gene space; number of each column of other matrices."""
    n_space: int
    """Number of genes of the space, or of columns."""
    compact: bool
    """Whether records take as few bytes as they can."""

    @property
    def n_cells(self) -> int:
        """Cells of the shard."""
        return self.last - self.first

    def run(self) -> None:
        """Write the shard, then its record.

        Raises:
            NotCountsError: a value is not a count, and the store keeps only counts.
            SourceChangedError: the source has changed since it was opened.
            UnsupportedDataError: a value cannot be kept; names the source, the cell and the gene.
            WriteError: the shard cannot be written.
        """
        source, folder = self.source, self.place.folder
        shard = shard_writer(folder, self.path, self.kind, self.n_space, compact=self.compact)
        with noting(self.place, self.path) as note, shard as writer:
            for first, last, rows in self._blocks():
                self._append(writer, rows, first)
                check_unchanged(source)
                if isinstance(source, Closes):
                    source.release()
                note(last - self.first)
            with writing(folder / self.path):
                record = writer.finish(self.number)
        save_record(folder, record, self.place.key)

    def _blocks(self) -> Iterator[tuple[int, int, CSRMatrix]]:
        """The cells in blocks: the first row and the end of each in the source, and the cells."""
        source, first = self.source, self.first
        if self.key is not None:
            with of_source(source, first, self.last):
                yield from matrix_blocks(source, self.key, first, self.last)
            return
        offsets = stored_offsets(source)
        own = None if offsets is None else offsets[first : self.last + 1]
        for start, stop in blocks(self.n_cells, own, len(self.rank)):
            with of_source(source, first + start, first + stop):
                rows = stored_rows(source, first + start, first + stop)
            yield first + start, first + stop, _rounded(rows) if self.kind == "float32" else rows

    def _append(self, writer: ShardWriter, rows: CSRMatrix, first: int) -> None:
        try:
            with writing(self.place.folder / self.path):
                writer.append(rows.indptr, rows.indices, rows.data, self.rank)
        except ValueError as error:
            summed = _summed(rows, self.rank)
            if summed is None:
                raise self._explain(rows, first, error) from error
            self._append(writer, summed, first)

    def _explain(self, rows: CSRMatrix, first: int, error: ValueError) -> UnsupportedDataError | NotCountsError:
        """The error for ``rows``, the cells from ``first`` on, which could not be appended."""
        name, at = self.source.name, first_unfit(rows.data, self.kind == "counts")
        name = name if self.key is None else f"{self.key} of {name}"
        if at < 0:
            return UnsupportedDataError(f"{name}, among cells {first} to {first + len(rows.indptr) - 2}: {error}")
        cell, gene = first + int(np.searchsorted(rows.indptr, at, side="right")) - 1, int(rows.indices[at])
        found = f"{name}: {rows.data[at]!s} at cell {cell}, gene {gene} ({self.source.var.index[gene]})"
        if self.kind == "float32":
            return UnsupportedDataError(
                f"{found} cannot be kept as float32, as a store of values='any' requires; leave it out, or scale the "
                "matrix"
            )
        if rows.data[at] > 0 and rows.data[at] == np.floor(rows.data[at]):
            return UnsupportedDataError(f"{found} is larger than {_LARGEST:,}, the largest count of a store")
        self.source.read(np.array([cell]))  # a source may raise an error with more details
        return NotCountsError(
            f"{found} is not a count; select the matrix of counts with counts=..., or pass values='any' to keep "
            "float32 values"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteObs:
    """Writes the cell table of a source."""

    place: Place
    path: str
    source: Source
    n_cells: int = 0

    def run(self) -> None:
        """Write the file.

        Raises:
            TypeError: the source returns a table of another length.
            UnsupportedDataError: a column cannot be kept.
            WriteError: the file cannot be written.
        """
        with of_source(self.source, 0, self.source.n_obs):
            frame = whole_obs(self.source)
        write_table(self.place.folder, self.path, frame, self.source.name)


def stored_offsets(source: Source) -> NDArray[np.int64] | None:
    """``(n_obs + 1,)`` offsets of the values of a source's cells; None if it does not know them without reading."""
    matrix = source.matrix if isinstance(source, HasMatrix) else None
    if matrix is not None:
        return matrix.indptr
    sizes = source.nnz() if isinstance(source, HasSizes) else None
    return None if sizes is None else row_starts(sizes)


def stored_rows(source: Source, first: int, last: int) -> CSRMatrix:
    """Cells ``[first, last)`` with values as stored, if the source can read them; views of a matrix in memory."""
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
    """Ranges of cells of bounded memory, by the ``offsets`` ``(n_cells + 1,)`` of their values if these are known."""
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
def shard_writer(
    folder: Path, path: str, kind: Kind, n_genes: int, *, mixed: bool = False, compact: bool = False
) -> Iterator[ShardWriter]:
    """Begin a shard; an exception removes it.

    Raises:
        WriteError: it cannot be written.
    """
    with writing(folder / path):
        writer = ShardWriter(folder, path, kind=kind, n_genes=n_genes, mixed=mixed, compact=compact)
    with writer:
        yield writer


@contextmanager
def noting(place: Place, path: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that notes how many cells of a shard are done, and raises if the conversion has ended."""
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
    """Number of cells of an unfinished shard that are done."""
    with suppress(OSError, ValueError):
        return int((folder / f"{path}{PROGRESS}").read_text(encoding="ascii"))
    return 0


@contextmanager
def of_source(source: Source, first: int, last: int) -> Iterator[None]:
    """Add to errors of reading which cells were read."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"(while cells {first:,} to {last - 1:,} of {source.name} were read)")
        raise


def _rounded(rows: CSRMatrix) -> CSRMatrix:
    """The cells with float64 values rounded to float32, if none is too large for it."""
    if rows.data.dtype != np.float64:
        return rows
    with np.errstate(over="ignore"):
        data = rows.data.astype(np.float32)
    return rows if (np.isinf(data) & np.isfinite(rows.data)).any() else replace(rows, data=data)


def _summed(rows: CSRMatrix, rank: NDArray[np.int32]) -> CSRMatrix | None:
    """The cells with values of the same cell and position in ``rank`` added up; None if there are no such values."""
    if not all(0 <= gene < len(rank) for gene in (rows.indices.min(initial=0), rows.indices.max(initial=0))):
        return None
    _, first, again = np.unique(rank, return_index=True, return_inverse=True)
    indices = first[again][rows.indices].astype(np.int32)
    lengths = np.diff(rows.indptr)
    cells = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((indices, cells))
    genes, cells = indices[order], cells[order]
    if not ((genes[1:] == genes[:-1]) & (cells[1:] == cells[:-1])).any():
        return None
    whole = rows.data.dtype.kind in "iu"
    data = rows.data.astype(np.promote_types(rows.data.dtype, np.int64) if whole else rows.data.dtype)
    indptr = rows.indptr.copy()
    gather.sort_rows(indptr, indices, data)
    return CSRMatrix(indptr=indptr, indices=indices[: indptr[-1]], data=data[: indptr[-1]])
