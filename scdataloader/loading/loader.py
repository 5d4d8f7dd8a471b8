"""Loader: draws rows, reads ahead of the model, and returns batches in order; resumable at every step."""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from inspect import GEN_CREATED, getgeneratorstate
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import StateMismatchError
from scdataloader.kernels.draws.random import seed_of
from scdataloader.loading.prefetch import Prefetcher
from scdataloader.protocols import BatchContext, Binds, Collate, Densifies, Sampler, Transform
from scdataloader.sampling.samplers import stream_fingerprint
from scdataloader.sampling.tally import Tally

if TYPE_CHECKING:
    from scdataloader.collection.collection import Collection

STATE_VERSION = 1


class Loader:
    """Batches of successive epochs, read ahead of the model by threads.

    At step g the batches of all ranks together are the draws at positions [g·B·W, (g+1)·B·W): B cells on each of W
    ranks. The stream depends on the sampler, the seed and the global batch size B·W alone, not on threads or ranks.

    Follows Lightning's contract for loaders: a length, ``sampler.set_epoch``, lazy iteration, a position that counts
    returned batches. One iteration runs at a time: a new one ends the previous one.
    """

    def __init__(  # noqa: PLR0913 (one per line of the docstring; all but the first three have a default)
        self,
        collection: Collection,
        sampler: Sampler,
        collate: Collate,
        *,
        batch_size: int,
        labels: NDArray[np.int32] | None = None,
        context: BatchContext | None = None,
        transforms: Sequence[Transform] = (),
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        num_threads: int = 2,
        window: int | None = None,
        fixed_epoch: bool = False,
        tally: Tally | None = None,
    ) -> None:
        """Describe the loader; nothing is read before the first batch.

        Args:
            collection: The cells.
            sampler: Which rows, in which order.
            collate: Makes tensors of a batch.
            batch_size: Cells per batch on each rank.
            labels: (n, C) label codes of all cells of the collection; None for no labels.
            context: What the collate function can know of the labels; None for the vocabulary alone.
            transforms: Changes of a batch before it is collated, in order.
            seed: Seed of the random choices made after the draw.
            drop_last: Whether to drop the last global batch if it is not full. Otherwise it is shorter, or, on several
                ranks, filled with repeated rows that ``pad`` marks.
            rank: Index of this process among those that share the batches.
            world_size: Number of processes that share the batches.
            num_threads: Threads that read and collate.
            window: Cells that one thread reads at once, rounded to whole batches. None is the number that makes 24 MB
                of tensors, at most 2,048; 8,192 for sources with chunks to decode, each of which then serves several
                cells; and for a sampler with a ``window``, this rank's part of one or several windows, up to 8,192.
            fixed_epoch: Whether every pass is the same, for evaluation.
            tally: Counts the rows that this rank returns, from 0 in every pass.
        """
        for name, value in (("batch_size", batch_size), ("num_threads", num_threads), ("window", window)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), not {rank} of {world_size}")
        if labels is not None and len(labels) != len(collection):
            raise ValueError(f"labels are for {len(labels):,} cells, but the collection has {len(collection):,}")
        if isinstance(collate, Binds):
            collate = collate.bind(context or BatchContext(vocabulary=collection.vocabulary))
        self.dataset = collection
        self.densify = tuple(collate.densify) if isinstance(collate, Densifies) else ()
        self.batch_size = batch_size
        self.tally = tally
        self._draws = sampler
        self._seed = seed_of(seed)
        self._drop_last = drop_last
        self._world_size = world_size
        self._fixed_epoch = fixed_epoch
        self._ahead = Prefetcher(
            collection=collection,
            sampler=sampler,
            collate=collate,
            transforms=tuple(transforms),
            labels=labels,
            seed=self._seed,
            batch_size=batch_size,
            mark_pad=world_size > 1 and not drop_last,
            rank=rank,
            world_size=world_size,
            num_threads=num_threads,
            window=window,
        )
        self._epoch = 0
        self._step = 0
        self._resume = False
        self._running: Generator[Mapping[str, Any], None, None] | None = None
        self._n_drawn = 0
        self._waited = 0.0
        self._started: float | None = None
        if not len(self):
            raise ValueError(
                f"an epoch of {sampler.num_samples:,} draws has no full batch of {batch_size:,} cells on each of "
                f"{world_size} ranks; use smaller batches, or drop_last=False"
            )

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        full, rest = divmod(self._draws.num_samples, self.batch_size * self._world_size)
        return full + (1 if rest and not self._drop_last else 0)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Batches of the current epoch, from its start or a loaded state; ``set_epoch`` may come after ``iter``."""
        self.close()
        running = self._batches()
        self._running = running
        return running

    def close(self) -> None:
        """End the current iteration and its threads."""
        if self._running is not None:
            self._running.close()
            self._running = None

    @property
    def epoch(self) -> int:
        """The epoch of the current pass, or of the last one."""
        return self._epoch

    @property
    def n_drawn(self) -> int:
        """Draws that this pass has returned on this rank, without rows repeated to keep ranks even."""
        return self._n_drawn

    @property
    def waited(self) -> float:
        """Seconds of this pass that the caller of ``next`` has waited for batches."""
        return self._waited

    @property
    def elapsed(self) -> float:
        """Seconds since the first batch of this pass was requested; 0 before."""
        return 0.0 if self._started is None else perf_counter() - self._started

    @property
    def sampler(self) -> Loader:
        """The object that Lightning calls ``set_epoch`` on."""
        return self

    @property
    def batch_sampler(self) -> None:
        """None: the loader makes its own batches."""

    @property
    def num_workers(self) -> int:
        """Number of worker processes: 0, because threads read ahead."""
        return 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``; if that is the current epoch, the position stays."""
        if epoch != self._epoch:
            self._epoch, self._step, self._resume = epoch, 0, False
        elif self._step >= len(self) and not self._resume:
            self._step = 0  # requested explicitly: the next pass is this epoch again

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream; ``samples_seen`` counts draws of this epoch, over all ranks."""
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
        """Go to a saved position: the next iteration continues there.

        Raises:
            StateMismatchError: the state is from another version, other data or another stream.
        """
        own = self.state_dict()
        for key in ("version", "seed", "global_batch_size", "num_samples", "fingerprint"):
            if state.get(key) != own[key]:
                remedy = "resuming would change the order of cells; use the data, weights and seed of the saved run"
                if key == "global_batch_size" and key in state:
                    remedy = _how_to_share(state[key], self._world_size)
                raise StateMismatchError(
                    f"the saved state has {key} {state.get(key)!r}, but this loader has {own[key]!r}; {remedy}, "
                    "or start a new run"
                )
        if self._running is not None and getgeneratorstate(self._running) != GEN_CREATED:
            self.close()  # an iteration that has not begun yet begins at the state, as after set_epoch
        self._epoch = state["epoch"]
        self._step = -(-state["samples_seen"] // own["global_batch_size"])
        self._resume = True

    @cached_property
    def _fingerprint(self) -> str:
        """Digest of the data and of the order: the sampler's fingerprint, or otherwise its first draws."""
        digest = hashlib.blake2b(self.dataset.fingerprint.encode(), digest_size=16)
        digest.update(stream_fingerprint(self._draws).encode())
        return digest.hexdigest()

    def _batches(self) -> Generator[Mapping[str, Any], None, None]:
        asked = perf_counter()
        epoch = self._begin()
        self._started, self._waited, self._n_drawn = asked, 0.0, 0
        if self.tally is not None:
            self.tally.reset()
        with closing(self._ahead.batches(epoch, self._step, len(self))) as batches:
            for batch in batches:
                self._step += 1
                self._n_drawn += len(batch.rows)
                if self.tally is not None:
                    self.tally.add(batch.rows)
                self._waited += perf_counter() - asked
                yield batch.tensors
                asked = perf_counter()

    def _begin(self) -> int:
        """Determine where this iteration starts; returns the epoch to draw."""
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


def _how_to_share(global_batch_size: int, world_size: int) -> str:
    """How to continue with the global batches of a saved run."""
    if global_batch_size % world_size == 0:
        return f"to continue its batches, use batch_size={global_batch_size // world_size} on {world_size} ranks"
    able = [n for n in range(1, global_batch_size + 1) if global_batch_size % n == 0]
    at = bisect(able, world_size)
    nearest = " or ".join(map(str, able[at - 1 : at + 1]))
    return f"{world_size} ranks cannot share batches of {global_batch_size} cells evenly; resume on {nearest} ranks"
