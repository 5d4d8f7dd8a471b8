"""Prefetching: rows are drawn, cells read and batches collated in threads ahead of the model, in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice, pairwise, takewhile
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from scdataloader.batches.transforms import transformed
from scdataloader.kernels.draws.random import derive_key
from scdataloader.loading.contents import Contents, ContentsReader
from scdataloader.protocols import Collate, HasWindow, PerCell, Sampler, Transform, makes_many
from scdataloader.runtime.stopping import stops_with
from scdataloader.types import CellBatch

if TYPE_CHECKING:
    from scdataloader.collection.collection import CellLocations, Collection
    from scdataloader.collection.neighbours import NeighbourLocations

T = TypeVar("T")

# Purposes of random bits, so that no two uses in one epoch share a stream; samplers use other keys.
_ROW_BITS, _BATCH_BITS = 1, 2
_WINDOW = 8192
"""Cells that are requested from the disk at a time; also read at once if one chunk serves several of them."""
STEEP_WINDOW = 65536
"""The same where hundreds of cells can be read in the time of one alone."""
_MAPPED, _FEWEST = 2048, 512
"""Maximum of cells that one thread reads at once if cells are read individually; minimum of draws with neighbours."""
_TASK_BYTES = 32 << 20
"""Bytes of tensors that a thread makes at once: enough to outweigh the synchronisation of threads, few enough to hold
several."""
_key_of = lru_cache(maxsize=16)(derive_key)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """Draws whose cells are located."""

    positions: NDArray[np.int64]
    """``(m,)`` their positions in the epoch."""
    located: CellLocations
    """``(m,)`` their cells."""
    neighbours: NeighbourLocations | None
    """Of each of the m cells, if batches carry them."""
    labels: NDArray[np.int64]
    """``(m, C)`` their label codes."""

    def slice(self, start: int, stop: int) -> Drawn:
        """Draws ``[start, stop)``, as views."""
        part = slice(start, stop)
        return Drawn(
            positions=self.positions[part],
            located=self.located.slice(start, stop),
            neighbours=None if self.neighbours is None else self.neighbours.slice(start, stop),
            labels=self.labels[part],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeBatch:
    """A batch that is ready for the model."""

    rows: NDArray[np.int64]
    """Rows that were drawn for it, without rows repeated to keep ranks even, whatever the collate function kept."""
    tensors: Mapping[str, Any]
    """Result of the collate function."""


@dataclass(kw_only=True)
class Prefetcher:
    """Makes the batches of any range of steps of an epoch in threads, ahead of their consumer, in order.

    The batches depend on the sampler, the seed, ``batch_size``, ``rank`` and ``world_size`` only. The fields are
    arguments of `Loader`.
    """

    collection: Collection
    sampler: Sampler
    collate: Collate
    transforms: tuple[Transform, ...]
    labels: NDArray[np.signedinteger[Any]] | None
    seed: int
    batch_size: int
    drop_last: bool
    """Whether an epoch ends with its last full batch; otherwise, on several ranks, rows beyond its end are marked."""
    rank: int
    world_size: int
    num_threads: int
    """Threads that read; as many more collate."""
    window: int | None
    contents: Contents = field(default_factory=Contents)
    pin_memory: bool = False

    def __post_init__(self) -> None:
        self._reader = ContentsReader(self.collection, self.contents, self.collate)
        of_cells = takewhile(lambda step: isinstance(step, PerCell) and step.per_cell, self.transforms)
        self._of_cells = tuple(of_cells)
        """The first transforms, as far as they treat cells independently."""
        self._cells_per_task = self.batch_size  # until the size of a batch is known
        self._many: Callable[[CellBatch, int], Sequence[Mapping[str, Any]]] | None = None
        if makes_many(self.collate) and len(self._of_cells) == len(self.transforms):
            self._many = self.collate.many

    @property
    def n_steps(self) -> int:
        """Batches per epoch on each rank."""
        full, rest = divmod(self.sampler.num_samples, self.batch_size * self.world_size)
        return full + (1 if rest and not self.drop_last else 0)

    @property
    def _mark_pad(self) -> bool:
        return self.world_size > 1 and not self.drop_last

    def batches(self, epoch: int, step: int) -> Generator[MadeBatch, None, None]:
        """The batches of ``epoch`` from ``step`` on; threads run from the first until it is closed."""
        # A pool for each kind of work, so that urgent work does not queue behind work for later.
        stop = threading.Event()
        sizes = {"draw": 1, "load": 1, "read": self.num_threads, "make": self.num_threads}
        drawer, loader, readers, makers = pools = [
            ThreadPoolExecutor(n, f"scdataloader-{job}", stops_with, (stop,)) for job, n in sizes.items()
        ]
        try:
            draws = (drawer.submit(self._drawn, epoch, *window, loader) for window in self._windows(step, self.n_steps))
            pieces = chain.from_iterable(map(self._pieces, _in_order(draws, 1)))
            reads = (readers.submit(self._prepare, epoch, piece) for piece in pieces)
            for made, rest in _in_order(reads, self.num_threads + 1):
                tasks = (makers.submit(self._made, epoch, cells) for cells in rest)
                later: Iterator[list[MadeBatch]] = _in_order(tasks, self.num_threads + 1)
                yield from chain(made, chain.from_iterable(later))
        finally:
            stop.set()
            for pool in pools:
                pool.shutdown(cancel_futures=True)

    def _windows(self, step: int, n_steps: int) -> Iterator[tuple[int, int]]:
        """Ranges [first, last) of steps that are drawn together, from ``step`` on, up to multiples of their length.

        So neighbouring rows that a sampler spreads over a window of draws are requested from the disk together,
        wherever a pass began. The first range is short, so that the model does not wait for a whole window.
        """
        length = max(1, self._cells_ahead() // self.batch_size)
        parts = 64 if self.collection.read_cost.is_steep else 8
        first, last = step, step + max(1, length // parts)
        while first < n_steps:
            last = min(last, first - first % length + length, n_steps)
            yield first, last
            first, last = last, last + length

    def _cells_ahead(self) -> int:
        """Cells that are drawn together: this rank's part of whole windows of the sampler."""
        steep = STEEP_WINDOW if self.collection.read_cost.is_steep else 0
        usual = max(_WINDOW, self.window or steep)
        spread = self.sampler.window if isinstance(self.sampler, HasWindow) else None
        share: int = 1 if spread is None else max(1, spread // self.world_size)
        return max(1, usual // share) * share

    def _drawn(self, epoch: int, first: int, last: int, loader: Executor) -> Drawn:
        """The draws of steps [first, last), requested from the disk, or read by ``loader`` if they are read as one."""
        positions = self._positions(first, last)
        rows = self._rows(epoch, positions)
        located, neighbours = self._reader.locate(rows), self._reader.locate_neighbours(rows)
        for cells in [located] if neighbours is None else [located, neighbours.located]:
            if self.collection.read_cost.is_steep:
                loader.submit(cells.read_ahead)  # an error comes again when a piece of them is read
            else:
                cells.read_ahead()
        labels = np.empty((len(rows), 0), np.int64) if self.labels is None else self.labels[rows].astype(np.int64)
        return Drawn(positions=positions, located=located, neighbours=neighbours, labels=labels)

    def _pieces(self, drawn: Drawn) -> Iterator[Drawn]:
        """Pieces of the draws, each read at once."""
        start = 0
        most = n = len(drawn.positions)
        if self.collection.read_cost.is_ahead:
            # enough pieces that the first batch does not wait for the next window, which may take seconds to locate
            most = max(1, n // (self.num_threads + 2) // self.batch_size) * self.batch_size
        while start < n:
            stop = min(start + min(most, self._cells_per_read()), n)
            yield drawn.slice(start, stop)
            start = stop

    def _cells_per_read(self) -> int:
        """Cells that one thread reads at once: the user's choice, or one task, or more to share chunks."""
        cost = self.collection.read_cost
        # large reads have no use where all cells that are drawn together were fetched at once; they take more memory
        if cost.is_steep or cost.is_ahead or (self.window is None and cost.is_flat):
            draws = min(self._cells_per_task, _MAPPED // self._reader.cells_per_draw)
            if self._reader.cells_per_draw > 1:  # each read has fixed costs for its draws and their neighbours
                draws = max(draws, _FEWEST)
            return max(1, draws // self.batch_size) * self.batch_size
        return max(1, (self.window or _WINDOW) // self.batch_size) * self.batch_size

    def _positions(self, first: int, last: int) -> NDArray[np.int64]:
        """This rank's positions at steps [first, last); on several ranks also beyond the end of the epoch."""
        starts = (np.arange(first, last, dtype=np.int64) * self.world_size + self.rank) * self.batch_size
        positions = (starts[:, None] + np.arange(self.batch_size)).ravel()
        return positions if self.world_size > 1 else positions[positions < self.sampler.num_samples]

    def _rows(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows drawn at ``positions``; beyond the end of the epoch its start is repeated."""
        if self.world_size == 1:  # one run, which ends before the epoch does
            return self._draw(epoch, int(positions[0]), int(positions[-1]) + 1)
        wrapped = positions % self.sampler.num_samples
        runs = np.split(wrapped, np.flatnonzero(np.diff(wrapped) != 1) + 1)
        return np.concatenate([self._draw(epoch, int(run[0]), int(run[-1]) + 1) for run in runs])

    def _draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        rows: Any = self.sampler.draw(epoch, start, stop)
        if not isinstance(rows, np.ndarray) or rows.dtype != np.int64 or rows.shape != (stop - start,):
            got = f"{rows.dtype} of shape {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
            raise TypeError(
                f"{type(self.sampler).__name__}: draw({epoch}, {start}, {stop}) must return {stop - start} int64 row "
                f"numbers; got {got}; check it with scdataloader.testing.check_sampler"
            )
        return rows

    def _read(self, epoch: int, drawn: Drawn) -> CellBatch:
        return self._reader.read(
            drawn.located,
            drawn.neighbours,
            labels=drawn.labels,
            position=drawn.positions,
            key=int(_key_of(self.seed, epoch, _ROW_BITS)),
            pad=drawn.positions >= self.sampler.num_samples if self._mark_pad else None,
        )

    def _prepare(self, epoch: int, drawn: Drawn) -> tuple[list[MadeBatch], list[CellBatch]]:
        """The batches of the first task of some draws, and the cells of each further task."""
        cells, n = self._read(epoch, drawn), self._cells_per_task
        first, *rest = (cells.slice(*edge) for edge in pairwise([*range(0, len(cells), n), len(cells)]))
        return self._made(epoch, first), rest

    def _made(self, epoch: int, cells: CellBatch) -> list[MadeBatch]:
        """The batches of some cells."""
        edges = list(pairwise([*range(0, len(cells), self.batch_size), len(cells)]))
        key = _key_of(self.seed, epoch, _BATCH_BITS)
        for transform in self._of_cells:
            cells = transformed(cells, transform, _GENERATORS.at(key, int(cells.position[0])))
        if self._many is not None:
            tensors = self._many(cells, self.batch_size)
            if len(tensors) != len(edges):
                raise TypeError(f"{self.collate!r}: many() must return {len(edges)} batches; got {len(tensors)}")
            made = [self._checked(cells, *edge, batch) for edge, batch in zip(edges, tensors, strict=True)]
        else:
            batches = (cells.slice(*edge) for edge in edges)
            made = [self._make(batch, _GENERATORS.at(key, int(batch.position[0]))) for batch in batches]
        n_bytes = sum(map(_n_bytes, made[0].tensors.values()))
        self._cells_per_task = max(1, _TASK_BYTES // max(1, n_bytes)) * self.batch_size
        return made

    def _make(self, batch: CellBatch, rng: np.random.Generator) -> MadeBatch:
        cells = batch
        for transform in self.transforms[len(self._of_cells) :]:
            batch = transformed(batch, transform, rng)
        if cells.neighbours is not None:
            cells = replace(cells, neighbours=batch.neighbours)
        return self._checked(cells, 0, len(cells), self.collate(batch, rng))

    def _checked(self, cells: CellBatch, start: int, stop: int, made: object) -> MadeBatch:
        """What the collate function made of the cells [start, stop)."""
        if not isinstance(made, Mapping):
            hint = "use it in transforms" if isinstance(made, CellBatch) else "return a dictionary of tensors"
            raise TypeError(
                f"collate {_name_of(self.collate)} must return a mapping of tensors; got {type(made).__name__}; {hint}"
            )
        carried = self._reader.tensors(cells, start, stop, made)
        if twice := carried and carried.keys() & made.keys():
            raise TypeError(
                f"collate {_name_of(self.collate)} returns {sorted(twice)}, which the loader adds to every batch; "
                "rename the keys, or do not request them"
            )
        tensors = {**made, **carried}
        if self.pin_memory:
            tensors = {key: _pinned(value) for key, value in tensors.items()}
        return MadeBatch(rows=_own_rows(cells, start, stop), tensors=tensors)


def _name_of(function: object) -> str:
    """The name of a function, or of the class of another callable."""
    return str(getattr(function, "__name__", type(function).__name__))


def _own_rows(cells: CellBatch, start: int, stop: int) -> NDArray[np.int64]:
    """Rows of the cells [start, stop) without those repeated to keep ranks even."""
    rows = cells.row[start:stop]
    return rows if cells.pad is None else rows[~cells.pad[start:stop]]


def _pinned(value: Any) -> Any:
    """A copy in page-locked memory, from which copies to a device can be asynchronous.

    The memory is that of PyTorch's allocator, which does not use it again while such a copy runs.
    """
    return value.pin_memory() if isinstance(value, torch.Tensor) else value


class _Generators(threading.local):
    """One generator per thread, whose state is set: creating one takes as long as making a batch."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._state = self._bits.state
        self._rng = np.random.Generator(self._bits)

    def at(self, key: np.uint64, position: int) -> np.random.Generator:
        """The generator of ``np.random.Philox(key=[key, position])``, until the next call in this thread."""
        self._state["state"]["key"][:] = key, position
        self._bits.state = self._state
        return self._rng


_GENERATORS = _Generators()


def _n_bytes(value: object) -> int:
    """Approximate memory of a value of a batch; the indices of a CSR tensor take as much as its values."""
    if not isinstance(value, torch.Tensor):
        return 0
    if value.layout is torch.strided:
        return value.nbytes
    return 2 * value.values().nbytes if value.layout is torch.sparse_csr else 0


def _in_order(futures: Iterator[Future[T]], depth: int) -> Iterator[T]:
    """Results of futures in order; ``depth`` of them are kept submitted ahead of the consumer."""
    return _results(deque(islice(futures, depth)), futures)


def _results(pending: deque[Future[T]], futures: Iterator[Future[T]]) -> Iterator[T]:
    for future in futures:
        pending.append(future)
        yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
