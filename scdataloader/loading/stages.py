"""Where the time of a loader goes: CPU time and waiting of the stages that make its batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from itertools import count
from time import perf_counter, process_time, thread_time
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.loading.loader import Loader
from scdataloader.loading.prefetch import Drawn, MadeBatch, Prefetcher
from scdataloader.types import CellBatch

STAGES = ("draw", "read", "decode", "collate", "other")
_WARM = 0.2
"""Share of the time that passes before counting begins, so that threads and caches are in their usual state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTime:
    """Time of one stage."""

    cpu_us: float
    """Microseconds of CPU per cell."""
    waited_us: float
    """Microseconds per cell in which its threads did not run: for a disk, a network, a lock or a free core."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """How fast batches are made if the model takes no time."""

    cells_per_s: float
    cpu_us: float
    """Microseconds of CPU of the whole process per cell."""
    cores: float
    """Cores in use on average."""
    first_batch_s: float
    """Seconds from the start of the first pass to its first batch."""
    n_cells: int
    """Cells that were counted."""
    stages: dict[str, StageTime]
    """By `STAGES`. draw: which cells; read: where they are, and requests of them; decode: their values in the genes of
    the model; collate: transforms and tensors; other: the rest of the process, such as handing over between threads,
    and threads that decompress, for which those of decode wait."""


@dataclass(kw_only=True)
class TimedPrefetcher(Prefetcher):
    """A `Prefetcher` that measures its stages."""

    spent: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """{stage: (cells, seconds of CPU, seconds elapsed)}; "drawn" is draw and read together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, loader: Loader, **changes: Any) -> Self:
        """What makes the batches of a loader, with other values of some fields."""
        ahead = loader._ahead  # noqa: SLF001 (of this room)
        return cls(**({option.name: getattr(ahead, option.name) for option in fields(Prefetcher)} | changes))

    def measure(self, seconds: float, on_progress: Callable[[float], None]) -> Rate:
        """Make batches for about ``seconds`` after the first one, over as many epochs as that takes.

        Args:
            seconds: How long.
            on_progress: Called with the seconds that have passed.
        """
        started = perf_counter()
        with closing(self._endless()) as batches:
            next(batches)
            first = perf_counter() - started
            _consume(batches, _WARM * seconds, on_progress)
            with self._lock:
                self.spent.clear()
            cpu, begun = process_time(), perf_counter()
            n_cells = _consume(batches, (1 - _WARM) * seconds, lambda now: on_progress(_WARM * seconds + now))
            cpu, elapsed = process_time() - cpu, perf_counter() - begun
            stages = self._stages(1e6 * cpu / n_cells)
        return Rate(
            cells_per_s=n_cells / elapsed,
            cpu_us=1e6 * cpu / n_cells,
            cores=cpu / elapsed,
            first_batch_s=first,
            n_cells=n_cells,
            stages=stages,
        )

    def _endless(self) -> Generator[MadeBatch, None, None]:
        for epoch in count():
            yield from self.batches(epoch, 0)

    def _stages(self, cpu_us: float) -> dict[str, StageTime]:
        """Times per cell; a stage works ahead of the batches that are counted, and so has a count of its own."""
        with self._lock:
            spent = {name: self.spent.get(name, np.zeros(3)) for name in ("drawn", "draw", "read", "decode", "collate")}
        spent["read"] = spent["read"] + spent.pop("drawn") - spent["draw"] * (0, 1, 1)
        found = {}
        for name, (n_cells, cpu, elapsed) in spent.items():
            per_cell = 1e6 / max(1.0, n_cells)
            found[name] = StageTime(cpu_us=cpu * per_cell, waited_us=max(0.0, elapsed - cpu) * per_cell)
        rest = cpu_us - sum(stage.cpu_us for stage in found.values())
        return found | {"other": StageTime(cpu_us=max(0.0, rest), waited_us=0.0)}

    @contextmanager
    def _timed(self, stage: str, n_cells: int) -> Iterator[None]:
        """Add the time of this thread within the context to that of a stage."""
        cpu, begun = thread_time(), perf_counter()
        yield
        spent = np.array([n_cells, thread_time() - cpu, perf_counter() - begun])
        with self._lock:
            self.spent[stage] = self.spent.get(stage, 0) + spent

    def _rows(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        with self._timed("draw", len(positions)):
            return super()._rows(epoch, positions)

    def _drawn(self, epoch: int, first: int, last: int, loader: Executor) -> Drawn:
        with self._timed("drawn", (last - first) * self.batch_size):
            return super()._drawn(epoch, first, last, _TimedExecutor(loader, self))

    def _read(self, epoch: int, drawn: Drawn) -> CellBatch:
        with self._timed("decode", len(drawn.positions)):
            return super()._read(epoch, drawn)

    def _made(self, epoch: int, cells: CellBatch) -> list[MadeBatch]:
        with self._timed("collate", len(cells)):
            return super()._made(epoch, cells)


class _TimedExecutor(Executor):
    """An executor whose calls read ahead."""

    def __init__(self, executor: Executor, owner: TimedPrefetcher) -> None:
        self._executor, self._owner = executor, owner

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule a call and measure it."""
        return self._executor.submit(self._run, function, *args, **kwargs)

    def _run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._owner._timed("read", 0):  # noqa: SLF001 (its owner)
            return function(*args, **kwargs)


def _consume(batches: Iterator[MadeBatch], seconds: float, on_progress: Callable[[float], None]) -> int:
    """Take batches until ``seconds`` have passed, at least one; returns how many cells they have."""
    begun, n_cells = perf_counter(), 0
    for batch in batches:
        n_cells += len(batch.rows)
        passed = perf_counter() - begun
        on_progress(min(passed, seconds))
        if passed >= seconds:
            break
    return n_cells
