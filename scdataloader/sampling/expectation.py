"""What an epoch of weighted draws will come to, worked out before any is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scdataloader.sampling.weighting import Weighting

_STEP = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Expectation:
    """What to expect of one epoch; a `Tally` measures the same."""

    n_draws: int
    """Draws."""
    distinct_cells: float
    """Mean number of cells that come at least once."""
    sum_of_squares: float
    """Mean of the sum, over cells, of the squared number of draws of each."""

    @property
    def repeated_share(self) -> float:
        """Share of the draws whose cell was drawn before."""
        return max(0.0, 1 - self.distinct_cells / self.n_draws)

    @property
    def effective_cells(self) -> float:
        """Effective sample size, in cells: ``n_draws² / sum_of_squares``."""
        return self.n_draws**2 / self.sum_of_squares


def expect(weighting: Weighting, epoch: int = 0, global_batch_size: int = 1) -> Expectation:
    """What an epoch of `Weighting.sampler` will come to; exact, in steps that take bounded memory."""
    sampling, mass = weighting.sampling, weighting.mass(epoch)
    is_shuffled = not sampling.columns and not sampling.factors and sampling.num_samples is None
    if is_shuffled or not sampling.replacement:
        return _of_quotas(weighting, mass)
    return _of_choices(weighting, mass, weighting.window(global_batch_size) or 1)


def _of_quotas(weighting: Weighting, mass: NDArray[np.float64]) -> Expectation:
    """Each class goes through all its cells before any comes again; its quota is rounded up or down at random.

    The figures are linear between whole quotas, so those of the mean quota are the mean.
    """
    n, sizes = weighting.num_samples, weighting.weights.counts
    if weighting.factors is not None:
        return Expectation(n_draws=n, distinct_cells=n, sum_of_squares=n)  # no cell comes twice
    quota = n * mass
    rounds = np.floor(quota / np.maximum(sizes, 1))
    rest = quota - rounds * sizes
    return Expectation(
        n_draws=n,
        distinct_cells=float(np.minimum(sizes, quota).sum()),
        sum_of_squares=float((rounds**2 * sizes + rest * (2 * rounds + 1)).sum()),
    )


def _of_choices(weighting: Weighting, mass: NDArray[np.float64], window: int) -> Expectation:
    """Blocks (or single cells: blocks of one) are chosen independently, each with its share P of the probability.

    Of the ``b`` draws of a chosen block, a cell of probability p gets ``b p / P``, rounded up or down (a systematic
    sample). At the end of an epoch a block may give fewer: any ``d`` of the ``b`` draws.
    """
    n, b = weighting.num_samples, weighting.sampling.block_size
    kinds = _kinds_of_choices(n, b, window)
    distinct, squares = 0.0, float(n)
    for p, block, cells in _probabilities(weighting, mass):
        mean = b * np.divide(p, block, out=np.zeros_like(p), where=block > 0)
        low = np.floor(mean).astype(np.int64)
        up = mean - low
        never = np.zeros(len(p))  # the logarithm of its probability
        for d, times in kinds:
            spared = _spared(b, d)
            absent = (1 - up) * spared[low] + up * spared[np.minimum(low + 1, b)]
            with np.errstate(divide="ignore"):  # a cell that comes for certain
                never += times * np.log1p(-np.minimum(block * (1 - absent), 1))
        distinct -= float(cells @ np.expm1(never))
        # E[sum c²] = n + E[sum c(c - 1)]: pairs of draws of one choice, and pairs of two choices
        pairs = float((cells * block) @ (low * (low - 1 + 2 * up)))
        squares += pairs * sum(times * d * (d - 1) / (b * (b - 1)) for d, times in kinds if d > 1)
        squares += float(cells @ p**2) * (n**2 - sum(times * d**2 for d, times in kinds))
    return Expectation(n_draws=n, distinct_cells=distinct, sum_of_squares=squares)


def _kinds_of_choices(n: int, b: int, window: int) -> list[tuple[int, int]]:
    """How many draws blocks give in an epoch of ``n``, and how many choices there are of each kind.

    All blocks of a window give draws in turn, so that where the epoch ends within one they give some draws each.
    """
    windows, rest = divmod(n, window)
    together = window // b
    few, more = divmod(rest, together)
    kinds = [(b, windows * together), (few + 1, more), (few, together - more)]
    return [(d, times) for d, times in kinds if d and times]


def _spared(b: int, d: int) -> NDArray[np.float64]:
    """``(b + 1,)`` probability that ``d`` of ``b`` draws, chosen at random, hold none of 0, 1, … b given ones."""
    drawn = np.arange(b)
    return np.cumprod(np.append(1.0, np.maximum(b - d - drawn, 0) / (b - drawn)))


def _probabilities(
    weighting: Weighting, mass: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """The probability of cells in one draw, that of the block of each, and how many cells there are of the kind."""
    codes, factors, b = weighting.codes, weighting.factors, weighting.sampling.block_size
    if factors is None and b == 1:
        sizes = weighting.weights.counts.astype(np.float64)
        p = np.divide(mass, sizes, out=np.zeros_like(mass), where=sizes > 0)
        yield p, p, sizes
        return
    step = max(1, _STEP // b) * b
    spans = [slice(at, at + step) for at in range(0, len(codes), step)]
    totals = np.zeros(len(mass))
    for span in spans:
        weights = None if factors is None else factors[span]
        totals += np.bincount(codes[span] % len(mass), weights, len(mass))
    share = np.divide(mass, totals, out=np.zeros_like(mass), where=totals > 0)
    for span in spans:
        p = share[codes[span]] if factors is None else share[codes[span]] * factors[span]
        block = np.repeat(np.add.reduceat(p, np.arange(0, len(p), b)), b)[: len(p)]
        yield p, block, np.ones(len(p))
