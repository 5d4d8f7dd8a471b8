"""check_sampler and check_plan find every broken law of a sampler and of a plan."""

import random
import threading

import numpy as np
import pytest
import torch

from scdataloader.testing import check_sampler

N = 100


class Good:
    """Independent uniform draws."""

    num_samples = 250
    fingerprint = "ab"
    window = None

    def draw(self, epoch, start, stop):
        return np.array([self.one(epoch, position) for position in range(start, stop)], np.int64).reshape(-1)

    def one(self, epoch, position):
        return np.random.default_rng([epoch, position]).integers(N)


class OncePerEpoch:
    num_samples = N

    def draw(self, epoch, start, stop):
        return np.random.default_rng(epoch).permutation(N)[start:stop]


def test_good_samplers_pass():
    check_sampler(Good, rows=N)
    check_sampler(OncePerEpoch(), rows=N, once=True, weights=np.ones(N), classes=np.zeros(N, np.int64))


class NoNumber(Good):
    num_samples = 0


class DigestAsNumber(Good):
    fingerprint = 7


class WindowAsText(Good):
    window = "8"


class Int32(Good):
    def draw(self, epoch, start, stop):
        return super().draw(epoch, start, stop).astype(np.int32)


class OneMore(Good):
    def draw(self, epoch, start, stop):
        return super().draw(epoch, start, stop + 1)


class Negative(Good):
    def draw(self, epoch, start, stop):
        return super().draw(epoch, start, stop) - 1


class BySlice(Good):
    """One generator for each call: other slices, other draws."""

    def draw(self, epoch, start, stop):
        return np.random.default_rng([epoch, start]).integers(0, N, stop - start)


class Stream(Good):
    """A generator that goes on from call to call."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def draw(self, epoch, start, stop):
        return self.rng.integers(0, N, stop - start)


class OneEpoch(OncePerEpoch):
    """Keeps the order of the epoch that it drew first."""

    order = None

    def draw(self, epoch, start, stop):
        if self.order is None:
            self.order = np.random.default_rng(epoch).permutation(N)
        if epoch == 5:
            self.order = np.random.default_rng(5).permutation(N)
        return self.order[start:stop]


class GlobalNumpy(Good):
    def draw(self, epoch, start, stop):
        np.random.seed(epoch)
        return super().draw(epoch, start, stop)


class GlobalTorch(Good):
    def draw(self, epoch, start, stop):
        torch.rand(1)
        return super().draw(epoch, start, stop)


class GlobalPython(Good):
    def draw(self, epoch, start, stop):
        random.random()
        return super().draw(epoch, start, stop)


class ReadsGlobal(Good):
    def draw(self, epoch, start, stop):
        return (super().draw(epoch, start, stop) + int(np.random.get_state()[1][0]) % 2) % N


class SharedEpoch(Good):
    def draw(self, epoch, start, stop):
        self.epoch = epoch
        threading.Event().wait(0.001)
        return super().draw(self.epoch, start, stop)


class TooFar(Good):
    def one(self, epoch, position):
        return super().one(epoch, position) + 1


BROKEN = {
    NoNumber: "num_samples",
    DigestAsNumber: "fingerprint",
    WindowAsText: "window",
    Int32: "int64",
    OneMore: "vector of 250",
    Negative: "0 or more",
    BySlice: "longer slice",
    Stream: "longer slice",
    OneEpoch: "draw",
    GlobalNumpy: "global random generators unchanged",
    GlobalTorch: "global random generators unchanged",
    GlobalPython: "global random generators unchanged",
    ReadsGlobal: "any state of the global",
    SharedEpoch: "in threads",
    TooFar: "100 given rows alone; got row",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_law_is_named(broken):
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        check_sampler(broken(), rows=N)


class SeededByChance(Good):
    def __init__(self):
        self.seed = np.random.default_rng().integers(2**60)

    def one(self, epoch, position):
        return np.random.default_rng([self.seed, epoch, position]).integers(N)


def test_two_samplers_made_alike_must_draw_alike():
    check_sampler(SeededByChance())  # one alone does not show it
    with pytest.raises(AssertionError, match="made again"):
        check_sampler(SeededByChance)


def test_draws_by_other_weights_are_found():
    weights = np.ones(N)
    weights[:50] = 1.5
    check_sampler(Good(), weights=np.ones(N))
    with pytest.raises(AssertionError, match=r"row .* of the draws"):
        check_sampler(Good(), weights=weights)
    weights[3] = 0
    with pytest.raises(AssertionError, match=r"no row of weight 0; got row \[3\]"):
        check_sampler(Good(), weights=weights)


def test_repeats_are_found():
    class Hundred(Good):
        num_samples = N

    with pytest.raises(AssertionError, match="no row twice"):
        check_sampler(Hundred(), rows=N, once=True)
    with pytest.raises(AssertionError, match="as many as there are rows"):
        check_sampler(Good(), rows=N, once=True)
    with pytest.raises(AssertionError, match="of class 0"):
        check_sampler(Hundred(), classes=np.repeat([0, 1], 50))
