"""Sampling plan of mixtures: draws from several corpora, in given shares."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.mixing import MOST_WINDOWS, ONE, STEP, draw_corpora, floor_sum, interleave
from scdataloader.kernels.draws.random import derive_key, seed_of
from scdataloader.protocols import DescribesClasses, DrawsSets, Sampler, SamplingPlan, TrainingCells
from scdataloader.runtime.messages import counted, did_you_mean, message_of, shown
from scdataloader.sampling.options import Sampling, evaluation_of
from scdataloader.sampling.samplers import check_range, stream_fingerprint
from scdataloader.sampling.training_cells import SelectedCells

__all__ = ["EveryCorpus", "MixedCorpora", "Mixture", "MixtureSampler"]

Result = TypeVar("Result")

_CORPUS_BITS, _OFFSET_BITS = 3, 4
"""Purposes of random bits; the loader uses 1 and 2."""
_TOLERANCE = 1e-6
"""Largest deviation from 1 of a sum of shares."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Training cells drawn from several corpora, in given shares, of each by its own plan.

    Corpora are named in the data: ``DataModule(data={"census": ..., "tahoe": ...}, sampling=Mixture(...))``. In every
    window of draws each corpus has its share, rounded up or down. Over many windows the sum stays within a few draws of
    its share. The draws of a corpus are, in order, those of its own plan, as if there were no other corpus. They
    continue over the epochs of the mixture; a corpus has its own epochs, each as long as its plan states.

    Args:
        shares: {corpus: share of the draws}, in sum 1; a list has a share for each epoch, the last of which holds from
            then on. "natural" is by training cells.
        temperature: With "natural" shares: each is raised to the power 1 / temperature, as in mT5 (Xue et al., 2021).
            1 is natural, higher is more even.
        sampling: How the cells of a corpus are drawn: one plan for all, or {corpus: plan}; a corpus without has each of
            its cells once per pass, in random order. All plans draw single cells, or all draw equal sets.
        num_samples: Draws in one epoch over all ranks, rounded up to whole windows; None is an epoch of every corpus in
            sum.
        window: Draws in which shares are exact; None is the global batch.

    Raises:
        ValueError: an option is out of its range, or shares do not sum to 1.
        TypeError: something in ``sampling`` is not a plan.
    """

    # lists first: the command line takes the first type that fits
    shares: dict[str, list[float] | float] | Literal["natural"] = "natural"
    temperature: float = 1.0
    sampling: dict[str, Sampling | SamplingPlan] | Sampling | SamplingPlan | None = None
    num_samples: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_samples", "window"):
            n = getattr(self, name)
            if n is not None and n < 1:
                raise ValueError(f"{name} must be 1 or more, not {n}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")
        if isinstance(self.shares, Mapping):
            if self.temperature != 1:
                raise ValueError(f"temperature={self.temperature} applies to shares='natural', but shares are given")
            self._schedule(sorted(self.shares))
        elif self.shares != "natural":
            raise ValueError(f"shares must be {{corpus: share}} or 'natural', not {self.shares!r}")
        for plan in self.plans:
            if not isinstance(plan, SamplingPlan):
                raise TypeError(f"sampling must be a plan or {{corpus: plan}}; got {type(plan).__name__} {plan!r}")

    @property
    def columns(self) -> list[str]:
        """The column of the corpora."""
        return ["corpus"]

    @property
    def plans(self) -> list[SamplingPlan]:
        """The plans of the corpora."""
        if self.sampling is None:
            return []
        return list(self.sampling.values()) if isinstance(self.sampling, Mapping) else [self.sampling]

    @property
    def evaluation(self) -> EveryCorpus | None:
        """The plan of validation and test cells: those of the corpora's plans, one after the other.

        None, which is each cell once in order, unless each given plan has one.
        """
        have_one = bool(self.plans) and all(evaluation_of(plan) is not None for plan in self.plans)
        return EveryCorpus(mixture=self) if have_one else None

    def describe(self, cells: TrainingCells) -> MixedCorpora:
        """The corpora and their shares.

        Raises:
            KeyError: a column of a plan is in no source.
            ValueError: see `sampler`.
        """
        names, schedule = self._shares(cells)
        codes = np.asarray(cells.corpus, np.int32)
        sizes, summaries = np.bincount(codes, minlength=len(names) + 1), []
        for number, name in enumerate(names):
            plan = self.plan_of(name)
            if not schedule[:, number].any() or not isinstance(plan, DescribesClasses):
                continue
            drawn = _about(name, plan.describe, _of_corpus(cells, number))
            sizes[number] = drawn.sizes[drawn.target_shares(0) > 0].sum()
            summaries.append(f"{name}: {drawn.summary()}")
        return MixedCorpora(names=names, codes=codes, sizes=sizes, schedule=schedule, summaries=summaries)

    def sampler(self, cells: TrainingCells, *, seed: int = 0, global_batch_size: int = 1) -> MixtureSampler:
        """The sampler of a training run, which draws among ``cells.rows``.

        Raises:
            KeyError: a column of a plan is in no source.
            ValueError: the data are not divided into corpora, one has no training cells, the shares name others, a
                window does not hold whole sets, or see the plan of a corpus.
        """
        names, schedule = self._shares(cells)
        samplers: list[Sampler | None] = []
        for number, name in enumerate(names):
            options: dict[str, Any] = {
                "seed": int(derive_key(seed_of(seed), number, _CORPUS_BITS)),
                "global_batch_size": global_batch_size,
            }
            made = None
            if schedule[:, number].any():
                made = _about(name, self.plan_of(name).sampler, _of_corpus(cells, number), **options)
            samplers.append(made)
        drawn = [sampler for sampler in samplers if sampler is not None]
        return MixtureSampler(
            samplers,
            schedule,
            num_samples=self.num_samples or sum(sampler.num_samples for sampler in drawn),
            window=self.window or global_batch_size,
            seed=seed,
        )

    def plan_of(self, corpus: str) -> SamplingPlan:
        """The plan of a corpus."""
        if isinstance(self.sampling, Mapping):
            return self.sampling.get(corpus, Sampling())
        return self.sampling or Sampling()

    def _shares(self, cells: TrainingCells) -> tuple[list[str], NDArray[np.float64]]:
        """The corpora, and ``(n_epochs, K)`` their shares; those of the last epoch hold from then on."""
        names = list(cells.corpus_names)
        if not names:
            raise ValueError(
                "a Mixture draws from corpora, but the data are not divided into any; give data as {corpus: data}, or "
                "weigh sources: Sampling(by='source')"
            )
        for option, given in (("shares", self.shares), ("sampling", self.sampling)):
            for name in given if isinstance(given, Mapping) else ():
                if name not in names:
                    raise ValueError(
                        f"{option} names the corpus {name!r}{did_you_mean(name, names)}; the data have {shown(names)}"
                    )
        sizes = np.bincount(cells.corpus, minlength=len(names))
        if isinstance(self.shares, Mapping):
            missing = [name for name in names if name not in self.shares]
            if missing:
                raise ValueError(f"shares lacks the corpus {missing[0]!r}; give it a share, or 0 to leave it out")
            schedule = self._schedule(names)
        else:
            power = (sizes / sizes.sum()) ** (1 / self.temperature)
            schedule = (power / power.sum())[None]
        empty = (sizes == 0) & (schedule.any(axis=0) | (self.shares == "natural"))
        if empty.any():
            name = names[int(empty.argmax())]
            raise ValueError(f"corpus {name!r} has no training cells; remove it from the data, or change the split")
        return names, schedule

    def _schedule(self, names: Sequence[str]) -> NDArray[np.float64]:
        """``(n_epochs, K)`` the given shares of corpora.

        Raises:
            ValueError: one is negative, or they do not sum to 1 in some epoch.
        """
        assert isinstance(self.shares, Mapping)
        lists = [np.atleast_1d(np.asarray(self.shares[name], np.float64)) for name in names]
        n_epochs = max((len(shares) for shares in lists), default=0)
        if not all(map(len, lists)) or not n_epochs:
            raise ValueError(f"shares must have a number, or one for each epoch, of each corpus; got {self.shares}")
        schedule = np.stack([np.append(s, np.repeat(s[-1], n_epochs - len(s))) for s in lists], axis=1)
        for epoch, shares in enumerate(schedule):
            total = float(shares.sum())
            if not (shares >= 0).all() or abs(total - 1) > _TOLERANCE:
                when = f" in epoch {epoch}" if n_epochs > 1 else ""
                listed = ", ".join(f"{name} {share:g}" for name, share in zip(names, shares, strict=True))
                raise ValueError(f"shares must be 0 or more and sum to 1; got {listed}{when}, in sum {total:g}")
        return np.asarray(schedule / schedule.sum(axis=1, keepdims=True), np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class EveryCorpus:
    """The cells of every corpus by the evaluation of its plan, one corpus after the other."""

    mixture: Mixture

    def sampler(self, cells: TrainingCells, *, seed: int = 0, global_batch_size: int = 1) -> SamplersInTurn:
        """The sampler, of the corpora that have cells; see `Mixture.sampler`."""
        samplers = []
        for number, name in enumerate(cells.corpus_names):
            some, plan = _of_corpus(cells, number), self.mixture.plan_of(name)
            if not len(some.rows):
                continue
            plan = evaluation_of(plan) or plan
            samplers.append(_about(name, plan.sampler, some, seed=seed, global_batch_size=global_batch_size))
        return SamplersInTurn(samplers)


def _of_corpus(cells: TrainingCells, number: int) -> SelectedCells:
    return SelectedCells(cells, np.flatnonzero(cells.corpus == number))


def _about(corpus: str, call: Callable[..., Result], *args: Any, **options: Any) -> Result:
    """The result of a call, whose errors name the corpus."""
    try:
        return call(*args, **options)
    except (KeyError, ValueError) as error:
        kind = KeyError if isinstance(error, KeyError) else ValueError
        raise kind(f"corpus {corpus!r}: {message_of(error)}") from error


class MixtureSampler:
    """Draws of several samplers, mixed in shares that are exact in every window.

    Args:
        samplers: The sampler of each corpus; None for one that is never drawn from.
        schedule: ``(n_epochs, K)`` shares, which sum to 1 in each epoch; the last holds from then on.
        num_samples: Draws in one epoch, rounded up to whole windows.
        window: Draws in which shares are exact.
        seed: Seed of the stream.

    Raises:
        ValueError: samplers draw sets of different sizes, a window does not hold whole sets, or there are too many.
    """

    def __init__(
        self,
        samplers: Sequence[Sampler | None],
        schedule: NDArray[np.float64],
        *,
        num_samples: int,
        window: int,
        seed: int = 0,
    ) -> None:
        self.seed = seed_of(seed)
        self.set_size, self.n_controls = _sets_of(sampler for sampler in samplers if sampler is not None)
        if window % self.set_size:
            raise ValueError(
                f"a window of {window:,} draws does not hold whole sets of {self.set_size:,} cells; use a multiple, "
                f"such as {self.set_size * (window // self.set_size + 1):,}, for window, or without one for the batch"
            )
        self.window = window
        self.n_windows = -(-num_samples // window)
        if self.n_windows > MOST_WINDOWS:
            raise ValueError(
                f"a mixture has at most {MOST_WINDOWS:,} windows in an epoch, not {self.n_windows:,}; use longer ones"
            )
        self.num_samples = self.n_windows * window
        self._samplers, self._schedule = tuple(samplers), schedule
        # in sets, of which a window has `self._slots`
        self._slots = window // self.set_size
        ends = np.cumsum(schedule, axis=1)
        self._edges = np.rint(ends / ends[:, -1:] * self._slots * ONE).astype(np.int64)
        self._offset = int(derive_key(self.seed, _OFFSET_BITS)) % ONE
        self._begun: tuple[int, list[int]] | None = None
        options = (self.num_samples, window, self.seed, self._edges.tolist())
        digest = hashlib.blake2b(f"mixture {options}".encode(), digest_size=16)
        for sampler in self._samplers:
            digest.update(b"-" if sampler is None else stream_fingerprint(sampler).encode())
        self.fingerprint = digest.hexdigest()

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Rows drawn at positions ``[start, stop)``."""
        check_range(start, stop, self.num_samples)
        size = self.set_size
        first, last = start // size, -(-stop // size)
        codes, before = np.empty(last - first, np.int32), np.empty(len(self._samplers), np.int64)
        edges, offset = self._edges[min(epoch, len(self._edges) - 1)], self._offset_at(epoch * self.n_windows)
        draw_corpora(derive_key(self.seed, epoch), first, self._slots, edges, offset, codes, before)
        counts = np.bincount(codes, minlength=len(before))
        drawn = np.empty((last - first, size), np.int64)
        following = np.cumsum(counts) - counts
        for code in np.flatnonzero(counts):
            at = following[code]
            turn = self._before(epoch)[code] + int(before[code])
            self._draw_corpus(int(code), turn * size, drawn[at : at + counts[code]].ravel())
        out = np.empty_like(drawn)
        interleave(codes, following, drawn, out)
        return out.ravel()[start - first * size : stop - first * size]

    def _draw_corpus(self, code: int, position: int, out: NDArray[np.int64]) -> None:
        """Fill ``out``, a view, with the draws of a corpus from ``position`` on, counted over its own epochs."""
        sampler = self._samplers[code]
        assert sampler is not None
        done = 0
        while done < len(out):
            epoch, at = divmod(position + done, sampler.num_samples)
            n = min(len(out) - done, sampler.num_samples - at)
            out[done : done + n] = sampler.draw(epoch, at, at + n)
            done += n

    def _offset_at(self, window: int) -> int:
        """Offset of a window, counted over all epochs."""
        return (self._offset + window * STEP) % ONE

    def _before(self, epoch: int) -> list[int]:
        """Sets of each corpus in all epochs before one; exact for any epoch, because these are Python's integers."""
        begun = self._begun  # one read: another thread may be in another epoch
        if begun is None or begun[0] != epoch:
            total = [0] * len(self._samplers)
            for number, edges in enumerate(self._edges):
                is_last = number == len(self._edges) - 1
                n_epochs = max(0, epoch - number) if is_last else int(number < epoch)
                offset, n = self._offset_at(number * self.n_windows), n_epochs * self.n_windows
                ends = [_floor_sum(n, int(edge) + offset) - _floor_sum(n, offset) for edge in edges]
                total = [sum(pair) for pair in zip(total, np.diff([0, *ends]).tolist(), strict=True)]
            self._begun = begun = (epoch, total)
        return begun[1]


class SamplersInTurn:
    """All draws of some samplers, one sampler after the other.

    Args:
        samplers: The samplers, at least one.

    Raises:
        ValueError: they draw sets of different sizes.
    """

    def __init__(self, samplers: Sequence[Sampler]) -> None:
        self.set_size, self.n_controls = _sets_of(samplers)
        self._samplers = tuple(samplers)
        self._ends = np.cumsum([sampler.num_samples for sampler in samplers]).tolist()
        self.num_samples = int(self._ends[-1])
        fingerprints = " ".join(stream_fingerprint(sampler) for sampler in samplers)
        self.fingerprint = hashlib.blake2b(f"in turn {fingerprints}".encode(), digest_size=16).hexdigest()

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Rows drawn at positions ``[start, stop)``."""
        check_range(start, stop, self.num_samples)
        drawn = []
        for sampler, end in zip(self._samplers, self._ends, strict=True):
            begin = end - sampler.num_samples
            first, last = max(start, begin), min(stop, end)
            if first < last:
                drawn.append(sampler.draw(epoch, first - begin, last - begin))
        return np.concatenate([np.empty(0, np.int64), *drawn])


def _sets_of(samplers: Iterable[Sampler]) -> tuple[int, int]:
    """Size of the sets of some samplers, and how many of a set are controls; 1 and 0 for single cells.

    Raises:
        ValueError: those of the samplers differ.
    """
    sizes = [(each.set_size, each.n_controls) if isinstance(each, DrawsSets) else (1, 0) for each in samplers]
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{size} cells, {n_controls} of them controls" for size, n_controls in sizes)
        raise ValueError(f"the corpora of a mixture must have equal sets; got sets of {listed}")
    return sizes[0]


def _floor_sum(n: int, b: int) -> int:
    """The sum of ``(STEP * i + b) // ONE`` over i in [0, n), which may be larger than 64 bits."""
    return int(floor_sum.py_func(n, ONE, STEP, b))


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedCorpora:
    """The corpora of a mixture, as classes of its draws."""

    names: list[str]
    """``(K,)`` names of the corpora."""
    codes: NDArray[np.int32]
    """``(n,)`` corpus of each training cell."""
    sizes: NDArray[np.int64]
    """``(K + 1,)`` cells of each corpus that its plan can draw; no cell is of unknown corpus."""
    schedule: NDArray[np.float64]
    """``(n_epochs, K)`` shares; the last holds from then on."""
    summaries: list[str] = field(default_factory=list)
    """A line for each corpus whose plan describes its classes."""

    def target_shares(self, epoch: int) -> NDArray[np.float64]:
        """``(K + 1,)`` share of each corpus in the draws of an epoch."""
        return np.append(self.schedule[min(epoch, len(self.schedule) - 1)], 0.0)

    def summary(self) -> str:
        """Shares at first, and the summary of each corpus; one line."""
        shares = ", ".join(f"{name} {share:.2%}" for name, share in zip(self.names, self.schedule[0], strict=True))
        if len(self.schedule) > 1:
            shares += f" at first, changing over {counted(len(self.schedule), 'epoch')}"
        return "; ".join([f"mixing {len(self.names):,} corpora: {shares}", *self.summaries])
