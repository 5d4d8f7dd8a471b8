"""S1, S2, S4: draws are exact, pure, and a shuffle takes every cell once.

False alarms: each chi-square is compared with the quantile that chance passes once in 10⁵ times; the seeds are fixed.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.kernels.draws.draw import GROUP, fill_guide, first_above, group_sums, guide_starts
from scdataloader.sampling.class_index import ClassIndex
from scdataloader.sampling.samplers import (
    SequentialSampler,
    ShuffleSampler,
    Subset,
    WeightedSampler,
    curriculum_weights,
)
from tests.sampling.drawn import assert_drawn_as, weightings

N_DRAWS = 1_000_000


@pytest.mark.parametrize(("classes", "shares", "weights"), list(weightings()))
def test_every_cell_and_every_class_is_drawn_with_its_probability(classes, shares, weights):
    sampler = WeightedSampler(weights, classes=classes, class_weights=shares, num_samples=N_DRAWS, seed=1)
    rows = sampler.draw(0, 0, N_DRAWS)
    k = classes.max() + 1
    shares = np.ones(k) if shares is None else shares
    cell = np.where(classes < 0, 0, 1 if weights is None else weights)
    totals = np.bincount(classes[classes >= 0], cell[classes >= 0], k)
    probability = np.where(classes < 0, 0, (shares / shares.sum() / totals)[classes] * cell)
    assert_drawn_as(rows, probability)
    assert_drawn_as(classes[rows], shares / shares.sum())


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


def test_a_uniform_number_that_rounds_up_to_the_total_selects_an_entry_with_a_weight():
    sums = np.cumsum([9.0, 0.0, 1.0, 0.0, 2.0, 0.0])
    assert [first_above(sums, 0, 6, 0, target) for target in (8.9, 9.0, 9.5, 10.0, 12.0)] == [0, 2, 2, 4, 4]
    level = np.array([5.0, 5.0, 5.0])  # two parts that end alike: a part is not left, even so
    assert first_above(level, 1, 3, 1, 5.0) == 1


@given(st.lists(st.lists(st.sampled_from([0.0, 1e-9, 0.1, 1.0, 7.0]), max_size=40), min_size=1, max_size=5))
def test_a_guide_gives_the_result_of_a_full_search(parts):
    parts = [[*part, 1.0] for part in parts]
    first = np.cumsum([0, *map(len, parts)])
    sums = np.concatenate([np.cumsum(part) for part in parts])
    starts = guide_starts(first)
    guide = np.empty(starts[-1], np.int32)
    fill_guide(sums, first, starts, guide)
    for c, part in enumerate(parts):
        for u in (0.0, 0.25, 0.5, 0.51, 0.999):
            target = u * sums[first[c + 1] - 1]
            begin = guide[starts[c] + int(u * (starts[c + 1] - starts[c]))]
            expected = first[c] + np.searchsorted(np.cumsum(part), target, side="right")
            assert first_above(sums, first[c], first[c + 1], begin, target) == expected


def test_group_sums_run_within_each_class():
    weights, classes = np.arange(5.0 * GROUP), np.repeat([0, 1, 2], [2 * GROUP - 3, 0, 3 * GROUP + 3])
    index = ClassIndex.of(classes)
    first = np.array([0, 2, 2, 6])
    sums = group_sums(index.starts, index.cells, weights, first)
    edges = [GROUP, 2 * GROUP - 3, 3 * GROUP - 3, 4 * GROUP - 3, 5 * GROUP - 3, 5 * GROUP]
    begins = [0, 0, *[2 * GROUP - 3] * 4]
    assert sums.tolist() == [weights[begin:edge].sum() for begin, edge in zip(begins, edges, strict=True)]


def test_a_class_index_in_a_file_draws_as_one_in_memory(tmp_path):
    classes = np.random.default_rng(0).integers(-1, 9, 5000).astype(np.int16)
    index = ClassIndex.of(np.lib.stride_tricks.as_strided(classes, writeable=False), tmp_path / "index")
    assert (tmp_path / "index").stat().st_size == 4 * (classes >= 0).sum()
    for c in range(9):
        assert np.array_equal(index.cells[index.starts[c] : index.starts[c + 1]], np.flatnonzero(classes == c))
    for replacement in (True, False):
        options = {"num_samples": 9000, "replacement": replacement}
        mapped, held = WeightedSampler(classes=index, **options), WeightedSampler(classes=classes, **options)
        assert np.array_equal(mapped.draw(1, 0, 9000), held.draw(1, 0, 9000))
        assert mapped.fingerprint == held.fingerprint


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_on_disk_draw_as_weights_in_memory(tmp_path, dtype):
    weights = np.random.default_rng(0).random(5000).astype(dtype)
    weights.tofile(tmp_path / "weights")
    mapped = WeightedSampler(np.memmap(tmp_path / "weights", dtype, "r"), num_samples=9000)
    held = WeightedSampler(weights.astype(np.float64), num_samples=9000)
    assert np.array_equal(mapped.draw(1, 0, 9000), held.draw(1, 0, 9000))


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("epoch", [0, 1, 3, 9])
def test_a_curriculum_raises_the_class_weights(epoch, replacement):
    classes, shares = np.repeat([0, 1, 2], [50, 5, 1]), np.array([64.0, 8.0, 1.0])
    options = {"num_samples": N_DRAWS, "replacement": replacement, "curriculum_epochs": 4}
    sampler = WeightedSampler(classes=classes, class_weights=shares, **options)
    raised = shares ** min(1, (epoch + 1) / 4)
    assert_drawn_as(classes[sampler.draw(epoch, 0, N_DRAWS)], raised / raised.sum())
    assert curriculum_weights(shares, epoch, 4) == pytest.approx(raised / raised.sum())


def test_a_curriculum_raises_the_class_weights_in_blocks():
    classes, shares = np.repeat([0, 1, 2], [50, 5, 1]), np.array([64.0, 8.0, 0.0])
    options = {"num_samples": 2 * N_DRAWS, "block_size": 2, "window": 2 * N_DRAWS, "curriculum_epochs": 3}
    sampler = WeightedSampler(classes=classes, class_weights=shares, **options)
    for epoch in (0, 1, 4, 0):
        raised = shares ** min(1, (epoch + 1) / 3)
        assert_drawn_as(classes[sampler.draw(epoch, 0, N_DRAWS)], raised / raised.sum())


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


@pytest.mark.slow
def test_two_processes_with_other_hash_seeds_draw_the_same():
    code = (
        "import numpy as np; from scdataloader.sampling.samplers import *;"
        "o = dict(classes=np.arange(9) % 3, num_samples=99, seed=4);"
        "s = [WeightedSampler(np.arange(9.), **o), WeightedSampler(replacement=False, **o),"
        "WeightedSampler(block_size=4, **o), ShuffleSampler(99, seed=4), ShuffleSampler(99, seed=4, block_size=4)];"
        "print([x.draw(2, 0, 99).tolist() + [x.fingerprint] for x in s])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@given(st.integers(1, 5000), st.integers(0, 2**63), st.integers(0, 10))
def test_a_shuffle_takes_every_cell_once(n, seed, epoch):
    assert np.array_equal(np.sort(ShuffleSampler(n, seed=seed).draw(epoch, 0, n)), np.arange(n))


def test_a_shuffle_has_a_new_order_each_epoch():
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
