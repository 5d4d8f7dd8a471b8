"""S1, S2, S4: draws are exact, pure, and a shuffle takes every cell once.

False alarms: each chi-square is compared with the quantile that chance passes once in 10⁵ times; the seeds are fixed.
"""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from scdataloader.kernels.draw import _first_above, _weighted_member, block_sums
from scdataloader.samplers import SequentialSampler, ShuffleSampler, Subset, WeightedSampler

N_DRAWS = 1_000_000


def assert_drawn_as(rows, probability):
    counts = np.bincount(rows, minlength=len(probability))
    assert len(counts) == len(probability)
    assert not counts[probability == 0].any()
    expected = probability[probability > 0] * len(rows)
    statistic = ((counts[probability > 0] - expected) ** 2 / expected).sum()
    assert statistic < chi2.ppf(1 - 1e-5, max(len(expected) - 1, 1))


def weightings():
    rng = np.random.default_rng(0)
    runs = np.repeat(np.arange(40), rng.integers(1, 60, 40))  # classes lie in runs, as in atlas files
    mixed = rng.permutation(runs)
    skewed = np.repeat(np.arange(5), [1, 1, 3, 700, 2000])
    lone = np.arange(300)
    drop = rng.random(len(mixed)) < 0.2
    drop[np.unique(mixed, return_index=True)[1]] = False  # every class keeps a cell
    with_gaps = np.where(drop, -1, mixed)
    for name, classes in [("runs", runs), ("mixed", mixed), ("skewed", skewed), ("lone", lone), ("gaps", with_gaps)]:
        n, k = len(classes), classes.max() + 1
        weights = rng.random(n) ** 3 + 1e-3
        zeros = np.where(rng.random(n) < 0.3, 0, weights)
        zeros[[np.flatnonzero(classes == c)[0] for c in range(k)]] = 1
        mass = rng.random(k) + 0.05
        mass[0] = 0
        yield pytest.param(classes, None, None, id=f"{name}-uniform")
        yield pytest.param(classes, mass, None, id=f"{name}-mass")
        yield pytest.param(classes, mass, weights, id=f"{name}-mass-weights")
        yield pytest.param(classes, None, zeros, id=f"{name}-zero-weights")


@pytest.mark.parametrize(("classes", "mass", "weights"), list(weightings()))
def test_every_cell_and_every_class_is_drawn_as_asked(classes, mass, weights):
    sampler = WeightedSampler(weights, classes=classes, class_mass=mass, num_samples=N_DRAWS, seed=1)
    rows = sampler.draw(0, 0, N_DRAWS)
    k = classes.max() + 1
    mass = np.ones(k) if mass is None else mass
    cell = np.where(classes < 0, 0, 1 if weights is None else weights)
    totals = np.bincount(classes[classes >= 0], cell[classes >= 0], k)
    probability = np.where(classes < 0, 0, (mass / mass.sum() / totals)[classes] * cell)
    assert_drawn_as(rows, probability)
    assert_drawn_as(classes[rows], mass / mass.sum())


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 3000])
def test_arbitrary_weights_are_exact_at_the_edges_of_blocks(n):
    weights = np.random.default_rng(n).random(n)
    weights[:: max(n // 7, 2)] = 0
    weights[-1] = 5
    assert_drawn_as(WeightedSampler(weights, num_samples=N_DRAWS).draw(3, 0, N_DRAWS), weights / weights.sum())


def test_weights_of_very_different_size_stay_exact():
    weights = np.array([1e-12, 1.0, 1e12, 0.0, 2e12])
    rows = WeightedSampler(weights, num_samples=N_DRAWS).draw(0, 0, N_DRAWS)
    assert set(rows.tolist()) <= {2, 4}
    assert_drawn_as(rows, np.array([0, 0, 1 / 3, 0, 2 / 3]))


def test_a_uniform_number_that_rounds_up_to_the_total_still_names_a_cell_with_weight():
    weights = np.array([0.0, 2.0, 3.0, 0.0, 0.0])
    starts, first = np.array([0, 5]), np.array([0, 1])
    sums = block_sums(starts, np.empty(0, np.int64), weights, first)
    assert _weighted_member(1.0, 0, starts, np.empty(0, np.int64), weights, first, sums) == 2
    masses = np.cumsum([0.0, 1.0, 0.0, 2.0, 0.0])
    assert [_first_above(masses, 0, 5, target) for target in (0.0, 0.5, 1.0, 3.0)] == [1, 1, 3, 3]


@given(st.integers(0, 2**63), st.integers(0, 1000), st.data())
def test_a_draw_depends_on_its_position_alone(seed, epoch, data):
    classes = np.array([0, 1, 1, 2, 2, 2, -1, 0])
    samplers = [
        WeightedSampler(np.arange(8.0), classes=classes, num_samples=1000, seed=seed),
        WeightedSampler(classes=classes, num_samples=1000, seed=seed),
        ShuffleSampler(1000, seed=seed),
        SequentialSampler(1000),
        Subset(sampler=ShuffleSampler(1000, seed=seed), rows=np.arange(1000) * 2),
    ]
    start = data.draw(st.integers(0, 1000))
    stop = data.draw(st.integers(start, 1000))
    for sampler in samplers:
        assert np.array_equal(sampler.draw(epoch, 0, 1000)[start:stop], sampler.draw(epoch, start, stop))


def test_seeds_and_epochs_give_other_streams():
    classes = np.arange(50) % 7
    streams = [
        tuple(WeightedSampler(classes=classes, num_samples=100, seed=seed).draw(epoch, 0, 100).tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(streams)) == 4


def test_no_global_generator_is_read_or_written():
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    first = WeightedSampler(np.arange(9.0), num_samples=50).draw(0, 0, 50)
    assert np.array_equal(before, np.random.get_state()[1])
    np.random.seed(6)
    assert np.array_equal(first, WeightedSampler(np.arange(9.0), num_samples=50).draw(0, 0, 50))


def test_two_processes_with_other_hash_seeds_draw_the_same():
    code = (
        "import numpy as np; from scdataloader.samplers import *;"
        "w = WeightedSampler(np.arange(9.), classes=np.arange(9) % 3, num_samples=99, seed=4);"
        "print(w.draw(2, 0, 99).tolist(), ShuffleSampler(99, seed=4).draw(2, 0, 99).tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@given(st.integers(1, 5000), st.integers(0, 2**63), st.integers(0, 10))
def test_a_shuffle_takes_every_cell_once(n, seed, epoch):
    assert np.array_equal(np.sort(ShuffleSampler(n, seed=seed).draw(epoch, 0, n)), np.arange(n))


def test_a_shuffle_has_another_order_each_epoch():
    sampler = ShuffleSampler(500, seed=0)
    assert not np.array_equal(sampler.draw(0, 0, 500), sampler.draw(1, 0, 500))


def test_an_epoch_far_longer_than_memory_can_be_drawn_anywhere():
    n = 10**15
    assert len(np.unique(ShuffleSampler(n, seed=0).draw(0, n - 1000, n))) == 1000
    assert len(WeightedSampler(np.ones(5), num_samples=n).draw(0, n - 1000, n)) == 1000


def test_more_classes_than_2_to_the_24():
    n = 2**24 + 1000
    sampler = WeightedSampler(classes=np.arange(n, dtype=np.int32), num_samples=n)
    rows = sampler.draw(0, 0, 100_000)
    assert rows.max() > 2**24 * 0.99
    assert_drawn_as(rows // (n // 20 + 1), np.bincount(np.arange(n) // (n // 20 + 1)) / n)
