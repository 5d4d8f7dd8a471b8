"""The loader: draws rows, reads them ahead of the model, and hands out batches in order, resumable at every step."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from scdataloader.errors import StateMismatchError
from scdataloader.kernels.random import derive_key
from scdataloader.types import CellBatch, Collate, Sampler, Transform

if TYPE_CHECKING:
    from torch import Tensor

    from scdataloader.collection import Collection

T = TypeVar("T")

STATE_VERSION = 1
_DRAWS_THAT_TELL = 16_384
# What the random bits are for, so that no two uses in one epoch share a stream; the sampler's own are keyed otherwise.
_ROW_BITS, _BATCH_BITS = 1, 2
_MAPPED_WINDOW, _CHUNKED_WINDOW = 1024, 8192
_TASK_BYTES = 16 << 20
"""Tensors that a thread makes in one go: enough to outweigh the hand-over, few enough to hold some dense ones."""


class Loader:
    """Batches of one epoch after another, read ahead of the model by threads.

    At step g the batches of all ranks together are the draws at positions [g·B·W, (g+1)·B·W): B cells on each of W
    ranks. The stream depends on the sampler, the seed and the global batch size B·W alone, not on threads or ranks.

    Follows Lightning's way with loaders: a length, ``sampler.set_epoch``, lazy iteration, a position that counts what
    was handed out. One iteration runs at a time: a new one ends the one before.
    """

    def __init__(  # noqa: PLR0913 (one per line of the docstring; all but the first three have a default)
        self,
        collection: Collection,
        sampler: Sampler,
        collate: Collate,
        *,
        batch_size: int,
        labels: NDArray[np.int32] | None = None,
        transforms: Sequence[Transform] = (),
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        num_threads: int = 2,
        window: int | None = None,
        fixed_epoch: bool = False,
    ) -> None:
        """Describe the loader; nothing is read before the first batch is asked for.

        Args:
            collection: The cells.
            sampler: Which rows, in which order.
            collate: Makes tensors of a batch.
            batch_size: Cells per batch on each rank.
            labels: (n, C) label codes of all cells of the collection; None for no labels.
            transforms: Changes of a batch before it is collated, in order.
            seed: Names the random choices made after the draw.
            drop_last: Whether to leave out the last global batch if it is not full. Otherwise it is shorter, or, on
                several ranks, filled up with repeated rows that ``pad`` marks.
            rank: This process among those that share the batches.
            world_size: How many processes share the batches.
            num_threads: Threads that read and collate.
            window: Cells that one thread reads at once, rounded to whole batches. None is 1,024, or 8,192 where chunks
                have to be decoded, each of which then serves several cells.
            fixed_epoch: Whether every pass is the same, as for evaluation.
        """
        for name, value in (("batch_size", batch_size), ("num_threads", num_threads), ("window", window)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), not {rank} of {world_size}")
        if labels is not None and len(labels) != len(collection):
            raise ValueError(f"there are labels for {len(labels)} cells, but the collection has {len(collection)}")
        self.dataset = collection
        self.batch_size = batch_size
        self._draws = sampler
        self._collate: Collate = collate.numbered(collection.vocabulary) if hasattr(collate, "numbered") else collate
        self._labels = labels
        self._transforms = tuple(transforms)
        self._seed = seed
        self._drop_last = drop_last
        self._rank, self._world_size = rank, world_size
        self._num_threads = num_threads
        self._window = window
        self._fixed_epoch = fixed_epoch
        self._batches_per_task = 1
        self._epoch = 0
        self._step = 0
        self._resume = False
        self._running: Iterator[dict[str, Tensor]] | None = None
        if not len(self):
            raise ValueError(
                f"an epoch of {sampler.num_samples} draws has no full batch of {batch_size} cells on each of "
                f"{world_size} ranks; use smaller batches, or drop_last=False"
            )

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        full, rest = divmod(self._draws.num_samples, self.batch_size * self._world_size)
        return full + (1 if rest and not self._drop_last else 0)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches of the current epoch, from its start or a loaded state; ``set_epoch`` may come after ``iter``."""
        self.close()
        running = self._batches()
        self._running = running
        return running

    def close(self) -> None:
        """End an iteration that is under way, with its threads."""
        if self._running is not None:
            self._running.close()  # type: ignore[attr-defined]
            self._running = None

    @property
    def sampler(self) -> Loader:
        """What Lightning calls ``set_epoch`` on."""
        return self

    @property
    def batch_sampler(self) -> None:
        """There is none: the loader makes its own batches."""

    @property
    def num_workers(self) -> int:
        """Worker processes: none, threads read ahead."""
        return 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``, unless that is the one under way: then the position stays."""
        if epoch != self._epoch:
            self._epoch, self._step, self._resume = epoch, 0, False
        elif self._step >= len(self) and not self._resume:
            self._step = 0  # it was asked for by name: the next pass is this epoch again

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands; ``samples_seen`` counts draws of this epoch, on all ranks together."""
        global_batch_size = self.batch_size * self._world_size
        return {
            "version": STATE_VERSION,
            "seed": self._seed,
            "epoch": self._epoch,
            "samples_seen": min(self._step * global_batch_size, self._draws.num_samples),
            "global_batch_size": global_batch_size,
            "num_samples": self._draws.num_samples,
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where a saved stream stood: the next iteration continues there.

        Raises:
            StateMismatchError: the state is of another version, other data or another stream.
        """
        own = self.state_dict()
        for key in ("version", "seed", "global_batch_size", "num_samples", "fingerprint"):
            if state.get(key) != own[key]:
                raise StateMismatchError(
                    f"the saved state has {key} {state.get(key)!r}, but this loader has {own[key]!r}: the stream would "
                    "be another one; resume with the data, weights, seed and global batch size of the saved run, "
                    "or start anew"
                )
        self.close()
        self._epoch = state["epoch"]
        self._step = -(-state["samples_seen"] // own["global_batch_size"])
        self._resume = True

    @cached_property
    def _fingerprint(self) -> str:
        """Digest of the data and of the order: of the sampler's own fingerprint, or else of what it draws first."""
        digest = hashlib.blake2b(self.dataset.fingerprint.encode(), digest_size=16)
        own = getattr(self._draws, "fingerprint", None)
        if own is None:
            first = self._draws.draw(0, 0, min(_DRAWS_THAT_TELL, self._draws.num_samples))
            own = hashlib.blake2b(np.ascontiguousarray(first, "<i8").data).hexdigest()
        digest.update(own.encode())
        return digest.hexdigest()

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        epoch = self._begin()
        # Two pools, so that a batch that is wanted now does not queue behind windows that are read for later.
        readers, makers = (ThreadPoolExecutor(self._num_threads, f"scdataloader-{job}") for job in ("read", "make"))
        try:
            reads = (readers.submit(self._prepare, epoch, first, last) for first, last in self._stretches())
            for made, rest in _in_order(reads, self._num_threads):
                tasks = (makers.submit(self._collated, epoch, batches) for batches in rest)
                later = _in_order(tasks, self._num_threads)
                for batch in chain(made, chain.from_iterable(later)):
                    self._step += 1
                    yield batch
        finally:
            readers.shutdown(cancel_futures=True)
            makers.shutdown(cancel_futures=True)

    def _begin(self) -> int:
        """Settle where this iteration starts; the epoch to draw."""
        if self._fixed_epoch:
            self._step = 0
            return 0
        if self._resume:
            self._resume = False
        else:
            if self._step >= len(self):
                self._epoch += 1
            self._step = 0
        return self._epoch

    def _stretches(self) -> Iterator[tuple[int, int]]:
        """Stretches [first, last) of steps that are read at once, from the current step on.

        The first is short, so that the model need not wait for a whole window.
        """
        window = self._window or (_MAPPED_WINDOW if self.dataset.reads_cheaply else _CHUNKED_WINDOW)
        steps = max(1, window // self.batch_size)
        first, size = self._step, max(1, steps // 8)
        while first < len(self):
            last = min(first + size, len(self))
            yield first, last
            first, size = last, steps

    def _positions(self, first: int, last: int) -> NDArray[np.int64]:
        """This rank's positions at steps [first, last); on several ranks also those beyond the epoch's end."""
        starts = (np.arange(first, last, dtype=np.int64) * self._world_size + self._rank) * self.batch_size
        positions = (starts[:, None] + np.arange(self.batch_size)).ravel()
        return positions if self._world_size > 1 else positions[positions < self._draws.num_samples]

    def _rows(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows drawn at ``positions``; beyond the epoch's end its start is repeated."""
        wrapped = positions % self._draws.num_samples
        runs = np.split(wrapped, np.flatnonzero(np.diff(wrapped) != 1) + 1)
        return np.concatenate([self._draws.draw(epoch, int(run[0]), int(run[-1]) + 1) for run in runs])

    def _read(self, epoch: int, first: int, last: int) -> CellBatch:
        """The cells of steps [first, last)."""
        positions = self._positions(first, last)
        cells = self.dataset.cells(self._rows(epoch, positions))
        labels = cells.labels if self._labels is None else self._labels[cells.row].astype(np.int64)
        pad = None
        if self._world_size > 1 and not self._drop_last:
            pad = positions >= self._draws.num_samples
        key = int(derive_key(self._seed, epoch, _ROW_BITS))
        return replace(cells, labels=labels, position=positions, key=key, pad=pad)

    def _prepare(self, epoch: int, first: int, last: int) -> tuple[list[dict[str, Tensor]], list[list[CellBatch]]]:
        """The batches of steps [first, last): as many as one task makes, made, and the others for further tasks."""
        cells = self._read(epoch, first, last)
        edges = [*range(0, len(cells), self.batch_size), len(cells)]
        batches = [cells.slice(start, stop) for start, stop in pairwise(edges)]
        n = self._batches_per_task
        tasks = [batches[at : at + n] for at in range(0, len(batches), n)]
        return self._collated(epoch, tasks[0]), tasks[1:]

    def _collated(self, epoch: int, batches: list[CellBatch]) -> list[dict[str, Tensor]]:
        made = [self._make(epoch, batch) for batch in batches]
        self._batches_per_task = max(1, _TASK_BYTES // max(1, sum(map(_n_bytes, made[0].values()))))
        return made

    def _make(self, epoch: int, batch: CellBatch) -> dict[str, Tensor]:
        bits = np.random.Philox(key=[derive_key(self._seed, epoch, _BATCH_BITS), np.uint64(batch.position[0])])
        rng = np.random.Generator(bits)
        for transform in self._transforms:
            batch = transform(batch, rng)
        return self._collate(batch, rng)


def _n_bytes(value: object) -> int:
    """About how much memory a part of a batch takes; the two arrays of a CSR tensor are of the same width."""
    if not isinstance(value, torch.Tensor):
        return 0
    if value.layout is torch.strided:
        return value.nbytes
    return 2 * value.values().nbytes if value.layout is torch.sparse_csr else 0


def _in_order(futures: Iterator[Future[T]], depth: int) -> Iterator[T]:
    """The results of futures in order; ``depth`` more are submitted than are waited for."""
    pending: deque[Future[T]] = deque()
    for future in futures:
        pending.append(future)
        if len(pending) > depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
