"""The laws of samplers and sampling plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scdataloader.protocols import (
    DescribesClasses,
    DrawsSets,
    HasFingerprint,
    HasWindow,
    Sampler,
    SamplingPlan,
    TrainingCells,
)
from scdataloader.sampling.options import evaluation_of
from scdataloader.testing._checks import Checked, global_random_state, global_seeds, made

_SIGMAS = 6
_EPOCHS = (0, 1, 5)


def check_sampler(
    sampler: Sampler | Callable[[], Sampler],
    *,
    rows: int | ArrayLike | None = None,
    weights: ArrayLike | None = None,
    classes: ArrayLike | None = None,
    once: bool = False,
    max_draws: int = 20_000,
) -> None:
    """Check a sampler against the laws of `Sampler`.

    Args:
        sampler: The sampler, or a function that makes it anew: two that are made the same way must draw the same.
        rows: Number of rows, or the row numbers, that may be drawn.
        weights: (n,) weight of each row; then every draw must take row i with probability weights[i] / sum(weights).
        classes: (n,) class of each row; then no row may be drawn again before its class is used up.
        once: Whether every one of ``rows`` must be drawn exactly once per epoch.
        max_draws: Draws of an epoch that are looked at, from its start and from its end.

    Raises:
        AssertionError: the sampler breaks a law; the message names the member, what was expected and what came back.
    """
    first, *others = made(sampler, Sampler)
    check = _SamplerCheck(Checked(type(first).__name__), first, max_draws)
    check.members()
    check.slices()
    check.randomness()
    check.threads()
    for other in others:
        check.same(other)
    if rows is not None:
        check.range(np.arange(rows) if isinstance(rows, int) else np.asarray(rows), once=once)
    if classes is not None:
        check.quotas(np.asarray(classes))
    if weights is not None:
        check.weights(np.asarray(weights, np.float64))


@dataclass
class _SamplerCheck:
    about: Checked
    sampler: Any
    max_draws: int

    @property
    def n(self) -> int:
        """Draws from the start of an epoch that are looked at."""
        return min(int(self.sampler.num_samples), self.max_draws)

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        member = f"draw({epoch}, {start}, {stop})"
        got = self.about.call(member, self.sampler.draw, epoch, start, stop)
        is_right = isinstance(got, np.ndarray) and got.dtype == np.int64 and got.shape == (stop - start,)
        self.about.require(is_right, member, f"a vector of {stop - start} int64", got)
        self.about.require(not len(got) or got.min() >= 0, member, "row numbers of 0 or more", got)
        drawn: NDArray[np.int64] = got.copy()
        return drawn

    def members(self) -> None:
        about, sampler = self.about, self.sampler
        about.require_members(sampler, Sampler)
        n = sampler.num_samples
        about.require(isinstance(n, int | np.integer) and n > 0, "num_samples", "a number of draws of 1 or more", n)
        if isinstance(sampler, HasFingerprint):
            own: Any = sampler.fingerprint
            about.require(own is None or (isinstance(own, str) and own), "fingerprint", "a string", own)
        if isinstance(sampler, HasWindow):
            window: Any = sampler.window
            is_right = window is None or (isinstance(window, int | np.integer) and window > 0)
            about.require(is_right, "window", "a number of draws, or None", window)
        if isinstance(sampler, DrawsSets):
            size: Any = sampler.set_size
            n_controls: Any = sampler.n_controls
            is_whole = isinstance(size, int | np.integer) and size > 0 and n % size == 0
            about.require(is_whole, "set_size", f"a number of cells that divides the {n} draws of an epoch", size)
            about.require(0 <= n_controls < size, "n_controls", f"fewer than the {size} cells of a set", n_controls)

    def slices(self) -> None:
        """S2, S5, S6: any slices of positions, in any order, give one stream."""
        n, total = self.n, int(self.sampler.num_samples)
        streams = {epoch: self.draw(epoch, 0, n) for epoch in _EPOCHS}
        self._require_part(streams[0], 0, 0, n)  # after other epochs were drawn
        for epoch, stream in streams.items():
            for size in (1, 7, 64, max(1, n // 3)):
                for start in (0, size, max(0, n - size - 1), n // 2):
                    self._require_part(stream, epoch, min(start, n), min(start + size, n))
            self._require_part(stream, epoch, n, n)
        tail = self.draw(0, max(0, total - n), total)
        for start in (max(0, total - 5), max(0, total - n)):
            self._compare(tail[len(tail) - (total - start) :], 0, start, total)
        self.about.require(self.sampler.num_samples == total, "num_samples", f"{total}, as before", "another number")

    def _require_part(self, stream: NDArray[np.int64], epoch: int, start: int, stop: int) -> None:
        self._compare(stream[start:stop], epoch, start, stop)

    def _compare(self, expected: NDArray[np.int64], epoch: int, start: int, stop: int) -> None:
        got = self.draw(epoch, start, stop)
        member = f"draw({epoch}, {start}, {stop})"
        same = np.array_equal(got, expected)
        self.about.require(same, member, f"{expected[:8]} …, the draws at these positions in a longer slice", got[:8])

    def randomness(self) -> None:
        """S2: the global generators are neither read nor written."""
        drawn = []
        for seed in (1, 2):
            with global_seeds(seed):
                before = global_random_state()
                drawn.append(self.draw(2, 0, self.n))
                untouched = global_random_state() == before
            self.about.require(untouched, "draw", "the global random generators unchanged", "another state of one")
        same = np.array_equal(drawn[0], drawn[1])
        self.about.require(same, "draw", "the same draws for any state of the global random generators", "other draws")

    def threads(self) -> None:
        """Draws of several threads and epochs at the same time."""
        streams = {epoch: self.draw(epoch, 0, self.n) for epoch in _EPOCHS}
        parts = [(epoch, start, min(start + 50, self.n)) for epoch in _EPOCHS for start in range(0, self.n, 50)][:60]
        for part, got in zip(parts, self.about.in_threads("draw", lambda part: self.draw(*part), parts), strict=True):
            epoch, start, stop = part
            same = np.array_equal(got, streams[epoch][start:stop])
            self.about.require(same, f"draw{part}, in threads", "the same draws as in one thread", got[:8])

    def same(self, other: Any) -> None:
        """S5: another process makes the same sampler."""
        about = self.about
        about.require(
            other.num_samples == self.sampler.num_samples, "num_samples", "the same, made again", other.num_samples
        )
        if isinstance(other, HasFingerprint):
            same = other.fingerprint == self.sampler.fingerprint
            about.require(same, "fingerprint", f"{self.sampler.fingerprint}, made again", other.fingerprint)
        for epoch in _EPOCHS:
            got = other.draw(epoch, 0, self.n)
            same = np.array_equal(got, self.draw(epoch, 0, self.n))
            about.require(
                same, f"draw({epoch}, 0, {self.n})", "the same draws of a sampler that is made again", got[:8]
            )

    def range(self, rows: NDArray[np.int64], *, once: bool) -> None:
        """Only ``rows`` are drawn; S4: each of them once."""
        about, total = self.about, int(self.sampler.num_samples)
        if once:
            about.require(total == len(rows), "num_samples", f"{len(rows)}, as many as there are rows", total)
        for epoch in _EPOCHS:
            for start in {0, total - self.n}:
                drawn = self.draw(epoch, start, start + self.n)
                outside = np.setdiff1d(drawn, rows)
                member = f"draw({epoch}, {start}, {start + self.n})"
                about.require(not len(outside), member, f"{len(rows)} given rows alone", f"row {outside[:3]}")
                if once:
                    twice = np.flatnonzero(np.bincount(drawn) > 1)
                    about.require(not len(twice), member, "no row twice in an epoch", f"row {twice[:3]} twice")

    def quotas(self, classes: NDArray[np.integer[Any]]) -> None:
        """S3: no row again before its class is used up."""
        for epoch in _EPOCHS:
            drawn = self.draw(epoch, 0, self.n)
            times = np.bincount(drawn, minlength=len(classes))
            for code in np.unique(classes[drawn]):
                own = times[classes == code]
                member = f"draw({epoch}, 0, {self.n})"
                expected = f"each of the {len(own)} cells of class {code} {own.sum() // len(own)} times or once more"
                even = own.max() - own.min() <= 1
                self.about.require(even, member, expected, f"from {own.min()} to {own.max()} times")

    def weights(self, weights: NDArray[np.float64]) -> None:
        """S1: every row is drawn as often as its weight asks."""
        n_epochs = 64
        counts = np.stack([np.bincount(self.draw(e, 0, self.n), minlength=len(weights)) for e in range(n_epochs)])
        drawn = counts.sum(axis=0)
        never = np.flatnonzero((weights == 0) & (drawn > 0))
        self.about.require(not len(never), "draw", "no row of weight 0", f"row {never[:3]}")
        expected = self.n * weights / weights.sum()
        off = counts - expected
        if _is_biased(off, expected):
            row = int((np.abs(off.mean(axis=0)) / np.sqrt(np.maximum(expected, 1e-9))).argmax())
            wanted = f"row {row} in {expected[row] / self.n:.4%} of the draws"
            self.about.require(False, "draw", wanted, f"{drawn[row] / n_epochs / self.n:.4%}")  # noqa: FBT003


def _is_biased(off: NDArray[np.float64], expected: NDArray[np.float64]) -> bool:
    """Whether counts differ from what is expected by more than chance.

    Epochs are independent, draws within one need not be. So the direction in which the first half of the epochs is off
    is taken as given, and how far each epoch of the second half is off in that direction is one independent number.

    Args:
        off: (epochs, n) counts, less what is expected.
        expected: (n,) expected counts.
    """
    direction = off[::2].mean(axis=0)
    along = off[1::2] @ direction
    spread = max(float(along.std(ddof=1)), float(np.sqrt(direction**2 @ expected)))
    return bool(along.mean() > _SIGMAS * spread / np.sqrt(len(along)) + 1e-9)


def check_plan(
    plan: SamplingPlan, cells: TrainingCells, *, global_batch_size: int = 8, max_draws: int = 20_000
) -> None:
    """Check a sampling plan against the laws of `SamplingPlan`, and its sampler against those of `Sampler`.

    Args:
        plan: The plan.
        cells: Cells that it can draw from.
        global_batch_size: Cells of one step over all ranks.
        max_draws: See `check_sampler`.

    Raises:
        AssertionError: the plan breaks a law; the message names the member, what was expected and what came back.
    """
    about = Checked(type(plan).__name__)
    about.require_members(plan, SamplingPlan)

    def sampler() -> Sampler:
        made: Sampler = about.call(
            "sampler()", lambda: plan.sampler(cells, seed=3, global_batch_size=global_batch_size)
        )
        return made

    check_sampler(sampler, rows=cells.rows, max_draws=max_draws)
    evaluation = evaluation_of(plan)
    if evaluation is not None:
        about.require_members(evaluation, SamplingPlan)
        options = {"seed": 3, "global_batch_size": global_batch_size}
        check_sampler(lambda: evaluation.sampler(cells, **options), rows=cells.rows, max_draws=max_draws)
    if isinstance(plan, DescribesClasses):
        _check_classes(about, about.call("describe(cells)", plan.describe, cells), cells, sampler())


def _check_classes(about: Checked, drawn: Any, cells: TrainingCells, sampler: Sampler) -> None:
    """The classes of a plan, and whether its sampler draws them as the plan states."""
    names, codes, n = list(drawn.names), drawn.codes, len(cells.rows)
    is_right = isinstance(codes, np.ndarray) and codes.shape == (n,) and codes.dtype.kind == "i"
    about.require(is_right, "describe().codes", f"a vector of {n} class codes", codes)
    in_range = codes.min() >= -1 and codes.max() < len(names)
    about.require(in_range, "describe().codes", f"codes from -1 to {len(names) - 1}", codes)
    about.require(isinstance(drawn.summary(), str), "describe().summary()", "a string", drawn.summary())
    shares = about.call("describe().target_shares(0)", drawn.target_shares, 0)
    is_right = isinstance(shares, np.ndarray) and shares.shape == (len(names) + 1,)
    about.require(is_right, "describe().target_shares(0)", f"a vector of {len(names) + 1} shares", shares)
    sums = (shares >= 0).all() and abs(shares.sum() - 1) < 1e-6  # noqa: PLR2004
    about.require(sums, "describe().target_shares(0)", "shares of 0 or more that sum to 1", shares)
    _check_shares(about, drawn, cells, sampler)


def _check_shares(about: Checked, drawn: Any, cells: TrainingCells, sampler: Sampler) -> None:
    n_epochs, n = 32, min(sampler.num_samples, 20_000)
    observed, targets = [], []
    for epoch in range(n_epochs):
        codes = drawn.codes[np.searchsorted(cells.rows, sampler.draw(epoch, 0, n))]
        counts = np.bincount(np.where(codes < 0, len(drawn.names), codes), minlength=len(drawn.names) + 1)
        observed.append(counts / n)
        targets.append(drawn.target_shares(epoch))
    off, expected = n * (np.stack(observed) - np.stack(targets)), n * np.mean(targets, axis=0)
    at = int(np.abs(off.mean(axis=0)).argmax())
    name = [*drawn.names, "unknown"][at]
    wanted, got = f"{expected[at] / n:.3%} of the draws for class {name!r}", f"{np.mean(observed, axis=0)[at]:.3%}"
    about.require(not _is_biased(off, expected), "describe().target_shares()", wanted, got)
