"""Loader: draws rows, reads ahead of the model, and returns batches in order; resumable at every step."""

from __future__ import annotations

import json
import logging
from bisect import bisect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import GEN_CLOSED, getgeneratorstate
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, SequentialSampler

from scdataloader.errors import StateMismatchError
from scdataloader.kernels.draws.random import seed_of
from scdataloader.loading.contents import Contents, check_sizes
from scdataloader.loading.prefetch import MadeBatch, Prefetcher
from scdataloader.loading.ranks import check_ranks, find_ranks
from scdataloader.protocols import BatchContext, Binds, Collate, Densifies, DrawsSets, Sampler, Transform
from scdataloader.runtime.facts import as_html, as_text
from scdataloader.runtime.messages import counted
from scdataloader.sampling.samplers import stream_fingerprint
from scdataloader.sampling.tally import Tally
from scdataloader.sources.fingerprint import digest_of, mismatch

if TYPE_CHECKING:
    from scdataloader.collection.collection import Collection

logger = logging.getLogger(__name__)

STATE_VERSION = 1


@dataclass(eq=False)
class Progress:
    """Position and counts of a pass over an epoch."""

    epoch: int
    step: int = 0
    """Batches of the epoch before the next one."""
    n_drawn: int = 0
    """Draws that the pass has returned on this rank, without rows repeated to keep ranks even."""
    waited: float = 0.0
    """Seconds that the caller of ``next`` has waited for batches."""
    started: float | None = None
    """Time of the request for the first batch; None before."""
    tally: Tally | None = None

    def count(self, rows: NDArray[np.int64]) -> None:
        """Count a batch with the draws ``rows``."""
        self.step += 1
        self.n_drawn += len(rows)
        if self.tally is not None:
            self.tally.add(rows)


class Loader:
    """Batches of successive epochs, read ahead of the model by threads.

    At step g the batches of all ranks together are the draws at positions [g·B·W, (g+1)·B·W): B cells on each of W
    ranks. The stream depends on the sampler, the seed and the global batch size B·W alone, not on threads or ranks.

    Every ``iter`` is a pass of its own, which starts at the current epoch and reads nothing before its first batch.
    The position, the counts and ``state_dict`` are those of the pass that returned the last batch.

    Follows Lightning's contract for loaders: a length, ``sampler.set_epoch``, lazy iteration, a position that counts
    returned batches.
    """

    def __init__(  # noqa: PLR0913 (one per line of the docstring; all but the first three have a default)
        self,
        collection: Collection,
        sampler: Sampler | Callable[[int], Sampler],
        collate: Collate,
        *,
        batch_size: int,
        labels: NDArray[np.signedinteger[Any]] | None = None,
        context: BatchContext | None = None,
        transforms: Sequence[Transform] = (),
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        num_threads: int = 2,
        window: int | None = None,
        fixed_epoch: bool = False,
        tally: Tally | None = None,
        contents: Contents | None = None,
        pin_memory: bool = False,
    ) -> None:
        """Describe the loader; nothing is read before the first batch.

        Args:
            collection: The cells.
            sampler: Which rows, in which order; or a function that makes the sampler for a global batch size in cells.
            collate: Makes tensors of a batch.
            batch_size: Cells per batch on each rank.
            labels: (n, C) label codes of all cells of the collection; None for no labels.
            context: What the collate function can know of the labels; None for the genes alone.
            transforms: Changes of a batch before it is collated, in order.
            seed: Seed of the random choices made after the draw.
            drop_last: Whether to drop the last global batch if it is not full. Otherwise it is shorter, or, on several
                ranks, filled with repeated rows that ``pad`` marks.
            rank: Index of this process among those that share the batches; None finds both at each pass, see
                `scdataloader.loading.ranks.find_ranks`.
            world_size: Number of processes that share the batches.
            num_threads: Threads that read and collate.
            window: Cells that one thread reads at once, rounded to whole batches. None is the number that makes 24 MB
                of tensors, at most 2,048; 8,192 for sources with chunks to decode, each of which then serves several
                cells; 65,536 where a chunk has thousands of cells, as in TileDB-SOMA; and for a sampler with a
                ``window``, this rank's part of one or several windows, up to these.
            fixed_epoch: Whether every pass is the same, for evaluation.
            tally: Counts the rows that this rank returns, from 0 in every pass.
            contents: What batches carry besides: numbers, further matrices, neighbours, names.
            pin_memory: Whether tensors are in page-locked memory, for asynchronous copies to a device.

        Raises:
            KeyError: a source lacks a matrix, a graph, or a column of obs that the collate function wants.
            ValueError: an argument is out of range, an epoch has no batch, or batches do not hold whole sets of cells.
        """
        check_sizes(batch_size=batch_size, num_threads=num_threads, window=window)
        check_ranks(rank, world_size)
        if labels is not None and len(labels) != len(collection):
            raise ValueError(f"labels are for {len(labels):,} cells, but the collection has {len(collection):,}")
        self.dataset = collection
        self.batch_size = batch_size
        self._sampler = sampler
        self._seed = seed_of(seed)
        self._given_ranks = None if rank is None or world_size is None else (rank, world_size)
        self._fixed_epoch = fixed_epoch
        self._tally = tally
        own_rank, n_ranks = self.ranks
        drawn = self._sampler_on(n_ranks)
        context = context or BatchContext(vocabulary=collection.vocabulary, gene_tables=collection.gene_tables)
        if isinstance(drawn, DrawsSets):
            context = replace(context, set_size=drawn.set_size, n_controls=drawn.n_controls)
        if isinstance(collate, Binds):
            collate = collate.bind(context)
        contents = contents or Contents()
        layers = (key for key in contents.matrices if key.startswith("layers/"))
        self.densify = (*(collate.densify if isinstance(collate, Densifies) else ()), *layers)
        self._label_codes = _digest_of_codes(context)
        self._prefetcher = Prefetcher(
            collection=collection,
            sampler=drawn,
            collate=collate,
            transforms=tuple(transforms),
            labels=labels,
            seed=self._seed,
            batch_size=batch_size,
            drop_last=drop_last,
            rank=own_rank,
            world_size=n_ranks,
            num_threads=num_threads,
            window=window,
            contents=contents,
            pin_memory=pin_memory,
        )
        self._progress = Progress(0, tally=tally)
        self._named_epoch: int | None = None
        self._complete: Progress | None = None
        self._resume = False
        self._passes: WeakSet[Pass] = WeakSet()
        self._check_length()

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return self._ahead.n_steps

    def __repr__(self) -> str:
        return as_text("Loader", self._facts())

    def _repr_html_(self) -> str:
        return as_html("Loader", self._facts())

    def _facts(self) -> dict[str, object]:
        ahead, at = self._prefetcher, self._progress
        return {
            "batches": f"{ahead.n_steps:,} per epoch on each rank",
            "batch size": f"{self.batch_size:,} cells on each of {counted(ahead.world_size, 'rank')}",
            "draws": f"{ahead.sampler.num_samples:,} per epoch, of {len(self.dataset):,} cells",
            "collate": type(ahead.collate).__name__,
            "position": f"epoch {at.epoch}, batch {at.step:,}",
        }

    def __iter__(self) -> Pass:
        """A pass over the current epoch, from its start or a loaded state; ``set_epoch`` may come after ``iter``."""
        started = Pass(self)
        self._passes.add(started)
        return started

    def __getstate__(self) -> dict[str, Any]:
        """All but the running passes, which cannot be pickled or copied."""
        state = self.__dict__ | {"_progress": replace(self._progress, started=None)}
        del state["_passes"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without passes."""
        self.__dict__.update(state, _passes=WeakSet())

    def close(self) -> None:
        """End the running passes and their threads."""
        for running in list(self._passes):
            running.close()

    def as_torch(self) -> DataLoader[Mapping[str, Any]]:
        """The same batches as a `torch.utils.data.DataLoader`, for libraries that accept nothing else.

        Those are Fabric's ``setup_dataloaders`` and the Trainer of Hugging Face. The batches are already those of this
        rank; ``set_epoch``, ``state_dict`` and ``load_state_dict`` are those of this loader.
        """
        from scdataloader.loading.as_torch import TorchLoader  # it imports this module

        return TorchLoader(self)

    @property
    def ranks(self) -> tuple[int, int]:
        """(rank, world size) of this process: as given, or as found now."""
        return self._given_ranks or find_ranks()

    @property
    def epoch(self) -> int:
        """The epoch of the current pass, or of the last one."""
        return self._progress.epoch

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, batches of it that are returned)."""
        return self._progress.epoch, self._progress.step

    @property
    def is_resumed(self) -> bool:
        """Whether a state was loaded from which the next pass continues."""
        return self._resume

    @property
    def n_left(self) -> int:
        """Batches of the next pass: those of an epoch, or of the rest of one after `load_state_dict`."""
        return len(self) - (self._progress.step if self._resume and not self._fixed_epoch else 0)

    @property
    def n_drawn(self) -> int:
        """Draws that this pass has returned on this rank, without rows repeated to keep ranks even."""
        return self._progress.n_drawn

    @property
    def tally(self) -> Tally | None:
        """The rows that this pass has returned on this rank; None if they are not counted."""
        return self._progress.tally

    @property
    def waited(self) -> float:
        """Seconds of this pass that the caller of ``next`` has waited for batches."""
        return self._progress.waited

    @property
    def elapsed(self) -> float:
        """Seconds since the first batch of this pass was requested; 0 before."""
        started = self._progress.started
        return 0.0 if started is None else perf_counter() - started

    @property
    def sampler(self) -> Loader | SequentialSampler:
        """The object that Lightning calls ``set_epoch`` on; a sequential sampler if every pass is the same.

        Lightning accepts no other sampler with ``overfit_batches``.
        """
        return _SamePass(range(len(self))) if self._fixed_epoch else self

    @property
    def batch_sampler(self) -> None:
        """None: the loader makes its own batches."""

    @property
    def num_workers(self) -> int:
        """Number of worker processes: 0, because threads read ahead."""
        return 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``; if that is the current epoch, the position stays.

        Passes that follow each other within one epoch, as of a short loader in a `CombinedLoader` that repeats it, are
        further epochs of this loader. A later epoch is then the first one that is not drawn yet.
        """
        named, self._named_epoch = self._named_epoch, epoch
        at = self._progress
        if named is None:
            named = at.epoch
        if epoch != named:
            has_repeated = epoch > named and at.epoch > named
            first_new = at.epoch + (at.step > 0) if has_repeated else epoch
            self._progress, self._resume = replace(at, epoch=max(epoch, first_new), step=0), False
        elif self._complete is not None:
            self._progress, self._resume = self._complete, True  # the rest of the epoch, which is empty
        elif at.step >= len(self) and not self._resume:
            self._progress = replace(at, epoch=epoch, step=0)  # requested explicitly: the next pass is this epoch again
        self._complete = None

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream; ``samples_seen`` counts draws of this epoch, over all ranks."""
        at, ahead = self._progress, self._ahead
        global_batch_size = self.batch_size * ahead.world_size
        return {
            "version": STATE_VERSION,
            "seed": self._seed,
            "epoch": at.epoch,
            "named_epoch": at.epoch if self._named_epoch is None else self._named_epoch,
            "samples_seen": min(at.step * global_batch_size, ahead.sampler.num_samples),
            "global_batch_size": global_batch_size,
            "num_samples": ahead.sampler.num_samples,
            "fingerprint": self._fingerprint,
            "label_codes": self._label_codes,
            "file_state": self.dataset.file_state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position: the next pass continues there, or, after the last batch, with the next epoch.

        Raises:
            StateMismatchError: the state is from another version, other data or another stream.
        """
        own = self.state_dict()
        for key in ("version", "seed", "global_batch_size", "num_samples", "fingerprint"):
            if state.get(key) != own[key]:
                remedy = "resuming would change the order of cells; use the data, weights and seed of the saved run"
                if key == "global_batch_size" and key in state:
                    remedy = _how_to_share(state[key], self._ahead.world_size)
                if key == "fingerprint" and key in state:
                    remedy = f"{mismatch(state[key], own[key])}; use the data, weights and seed of the saved run"
                raise StateMismatchError(
                    f"the saved state has {key} {state.get(key)!r}, but this loader has {own[key]!r}; {remedy}, "
                    "or start a new run"
                )
        if state.get("label_codes", own["label_codes"]) != own["label_codes"]:
            raise StateMismatchError(
                "the saved run had other label columns or other codes for their labels; use the same labels and "
                "hierarchies, or continue it with datamodule=, which restores the codes of the checkpoint"
            )
        if state.get("file_state", own["file_state"]) != own["file_state"]:
            logger.warning(
                "files of the data were written to, or copied, after the state was saved: obs, genes and samples of X "
                "are as before, but values between the samples may have changed"
            )
        step = -(-state["samples_seen"] // own["global_batch_size"])
        at = Progress(state["epoch"], step, tally=self._tally)
        self._named_epoch = state.get("named_epoch", at.epoch)
        self._complete = at if step >= len(self) else None
        self._progress = at if self._complete is None else replace(at, epoch=at.epoch + 1, step=0)
        self._resume = True

    @property
    def _ahead(self) -> Prefetcher:
        """What makes the batches of this rank; another one if the ranks have changed since the last pass."""
        rank, world_size = self.ranks
        if (self._prefetcher.rank, self._prefetcher.world_size) != (rank, world_size):
            sampler = self._sampler_on(world_size)
            self._prefetcher = replace(self._prefetcher, rank=rank, world_size=world_size, sampler=sampler)
            self.__dict__.pop("_fingerprint", None)
            self._check_length()
        return self._prefetcher

    def _sampler_on(self, world_size: int) -> Sampler:
        return self._sampler if isinstance(self._sampler, Sampler) else self._sampler(self.batch_size * world_size)

    def _check_length(self) -> None:
        ahead = self._prefetcher
        set_size = ahead.sampler.set_size if isinstance(ahead.sampler, DrawsSets) else 1
        for what, n in (("batch_size", self.batch_size), ("an epoch", ahead.sampler.num_samples)):
            if n % set_size:
                raise ValueError(
                    f"{what} of {n:,} cells does not hold whole sets of {set_size:,}; use a multiple of the set, such "
                    f"as {set_size * (n // set_size + 1):,}"
                )
        if not ahead.n_steps:
            raise ValueError(
                f"an epoch of {ahead.sampler.num_samples:,} draws has no full batch of {self.batch_size:,} cells on "
                f"each of {ahead.world_size} ranks; use smaller batches, or drop_last=False"
            )

    @cached_property
    def _fingerprint(self) -> str:
        """Digests of the data and of the order: the sampler's fingerprint, or otherwise its first draws."""
        return self.dataset.fingerprint + digest_of([stream_fingerprint(self._prefetcher.sampler).encode()])

    def _begin(self, started: float, n_skipped: int) -> tuple[Progress, Prefetcher]:
        """Where the pass starts whose first batch is requested now, and what makes its batches."""
        ahead = self._ahead
        at, resume = self._progress, self._resume
        self._resume, self._complete = False, None
        if self._fixed_epoch:
            at = Progress(0)
        elif not resume:
            at = Progress(at.epoch + (at.step >= ahead.n_steps))
        # a pass that looks at a batch while another one runs must not reset its counts
        counted_elsewhere = any(other.is_running and other.tally is self._tally for other in self._passes)
        tally = self._tally
        if tally is not None:
            tally = tally.empty() if counted_elsewhere else tally
            tally.reset()
        return Progress(at.epoch, at.step + n_skipped, started=started, tally=tally), ahead


class Pass(Iterator[Mapping[str, Any]]):
    """One iteration of a `Loader` over an epoch, whose threads run from its first batch to its last, or to `close`."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._progress: Progress | None = None
        self._batches: Generator[MadeBatch, None, None] | None = None
        self._closed = False
        self.n_skipped = 0
        """Batches at the start that are left out; to be set before the first batch."""

    @property
    def is_running(self) -> bool:
        """Whether its threads run."""
        return self._batches is not None and getgeneratorstate(self._batches) != GEN_CLOSED

    @property
    def tally(self) -> Tally | None:
        """What it counts its rows in."""
        return None if self._progress is None else self._progress.tally

    def __next__(self) -> Mapping[str, Any]:
        """The next batch of this rank.

        Raises:
            RuntimeError: the loader was closed during the pass.
        """
        asked = perf_counter()
        if self._progress is None or self._batches is None:
            self._progress, ahead = self._loader._begin(asked, self.n_skipped)  # noqa: SLF001 (its loader)
            self._batches = ahead.batches(self._progress.epoch, self._progress.step)
        elif self._closed:
            raise RuntimeError("the loader was closed during this pass; iterate over it again for a new one")
        batch = next(self._batches)
        self._loader._progress = self._progress  # noqa: SLF001 (its loader)
        self._progress.count(batch.rows)
        self._progress.waited += perf_counter() - asked
        return batch.tensors

    def close(self) -> None:
        """End the threads."""
        if self._batches is not None and self.is_running:
            self._batches.close()
            self._closed = True


class _SamePass(SequentialSampler):
    """The sampler of a loader of which every pass is the same."""

    def set_epoch(self, epoch: int) -> None:
        """Do nothing."""


def _digest_of_codes(context: BatchContext) -> str:
    """Digest of the label columns and of the label of each of their codes."""
    columns = ([column, *context.classes.get(column, ())] for column in context.labels)
    return digest_of(json.dumps(column).encode() for column in columns)


def _how_to_share(global_batch_size: int, world_size: int) -> str:
    """How to continue with the global batches of a saved run."""
    if global_batch_size % world_size == 0:
        return f"to continue its batches, use batch_size={global_batch_size // world_size} on {world_size} ranks"
    able = [n for n in range(1, global_batch_size + 1) if global_batch_size % n == 0]
    at = bisect(able, world_size)
    nearest = " or ".join(map(str, able[at - 1 : at + 1]))
    return f"{world_size} ranks cannot share batches of {global_batch_size} cells evenly; resume on {nearest} ranks"
