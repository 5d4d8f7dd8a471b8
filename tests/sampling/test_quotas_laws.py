"""S3: without replacement every class gets its share of an epoch to within one, and no cell repeats too early."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.kernels.draws.quotas import MIXED
from scdataloader.sampling.samplers import WeightedSampler
from tests.sampling.drawn import assert_drawn_as


def quotas(classes, shares, n, seed=0):
    return WeightedSampler(classes=classes, class_weights=shares, num_samples=n, seed=seed, replacement=False)


@given(st.integers(1, 60), st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 5))
def test_every_class_gets_its_share_of_an_epoch_to_within_one(k, n, seed, epoch):
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.concatenate([np.arange(k), rng.integers(0, k, 3 * k)]))
    shares = rng.random(k) ** 4
    shares[rng.random(k) < 0.2] = 0
    shares[-1] = 0.1
    drawn = np.bincount(classes[quotas(classes, shares, n, seed).draw(epoch, 0, n)], minlength=k)
    expected = n * shares / shares.sum()
    assert (np.abs(drawn - expected) < 1 + 1e-6).all()
    assert not drawn[shares == 0].any()


@given(st.integers(1, 30), st.integers(1, 4 * MIXED), st.integers(0, 2**63))
def test_no_cell_repeats_before_its_class_is_used_up(k, n, seed):
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.concatenate([np.arange(k), rng.integers(0, k, 5 * k)]))
    rows = quotas(classes, rng.random(k) + 0.01, n, seed).draw(1, 0, n)
    for c in range(k):
        size, turns = (classes == c).sum(), rows[classes[rows] == c]
        rounds = [turns[at : at + size] for at in range(0, len(turns), size)]
        assert all(len(np.unique(cells)) == len(cells) for cells in rounds)


def test_a_class_starts_over_in_a_new_order():
    rows = quotas(np.zeros(300, np.int8), None, 3000).draw(0, 0, 3000).reshape(10, 300)
    assert len({tuple(cells) for cells in rows}) == 10


@given(st.integers(1, 5000), st.integers(0, 2**63), st.data())
def test_a_draw_by_quota_depends_on_its_position_alone(n, seed, data):
    classes = np.arange(40) % 7
    few = WeightedSampler(np.arange(1.0, 41), num_samples=min(n, 20), seed=seed, replacement=False)
    for sampler in (quotas(classes, np.arange(1, 8), n, seed), few):
        start = data.draw(st.integers(0, sampler.num_samples))
        stop = data.draw(st.integers(start, sampler.num_samples))
        whole = sampler.draw(3, 0, sampler.num_samples)
        assert np.array_equal(whole[start:stop], sampler.draw(3, start, stop))


@pytest.mark.parametrize("position", [0, 17, 699])
def test_every_single_draw_has_the_target_probability(position):
    classes = np.repeat(np.arange(6), [1, 2, 3, 50, 7, 1])
    shares = np.array([0.0005, 0.2, 0.1, 0.4, 0.2995, 0])
    sampler = quotas(classes, shares, 700)
    rows = np.concatenate([sampler.draw(epoch, position, position + 1) for epoch in range(40_000)])
    assert_drawn_as(rows, shares[classes] / np.bincount(classes)[classes])


def test_a_class_too_rare_for_every_epoch_is_drawn_in_its_share_of_epochs():
    sampler = quotas(np.repeat([0, 1], [5, 95]), [0.003, 0.997], 100)
    epochs = sum(np.isin(sampler.draw(epoch, 0, 100), np.arange(5)).sum() for epoch in range(10_000))
    assert epochs == pytest.approx(3000, abs=230)  # five standard deviations of 10,000 draws at 0.3


def test_weighted_cells_are_drawn_at_most_once_with_their_probability():
    weights = np.random.default_rng(0).random(400) + 0.3
    weights[::9] = 0
    sampler = WeightedSampler(weights, num_samples=150, replacement=False, seed=2)
    epochs = [sampler.draw(epoch, 0, 150) for epoch in range(5000)]
    assert all(len(np.unique(rows)) == 150 for rows in epochs)
    times = np.bincount(np.concatenate(epochs), minlength=400)
    share = 150 * weights / weights.sum()
    assert not times[weights == 0].any()
    deviation = (times - 5000 * share)[weights > 0] / np.sqrt(5000 * share * (1 - share))[weights > 0]
    assert np.abs(deviation).max() < 5.2  # 355 binomial counts; by chance once in 10⁴


def test_neighbours_are_chosen_together_as_often_as_others():
    sampler = WeightedSampler(np.ones(64), num_samples=32, replacement=False)
    member = np.zeros((4000, 64), bool)
    for epoch in range(4000):
        member[epoch, sampler.draw(epoch, 0, 32)] = True
    together = np.array([(member[:, i] & member[:, i + 1]).mean() for i in range(1, 63, 2)])
    assert ((together > 0.15) & (together < 0.35)).all()  # 0.25 if independent; a fixed step would give 0


def test_more_than_2_to_the_24_classes_and_a_huge_epoch():
    n = 2**24 + 1000
    sampler = quotas(np.arange(n, dtype=np.int32), None, n)
    rows = sampler.draw(0, n - 5000, n)
    assert len(np.unique(rows)) == 5000
    long = quotas(np.arange(1000) % 10, None, 2**31)
    assert np.bincount(long.draw(0, 2**31 - MIXED * 4, 2**31) % 10).tolist() == pytest.approx([204.8] * 10, abs=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": np.ones(30), "num_samples": 31}, "31 draws without replacement need .* 30;"),
        ({"weights": [1, 0, 1], "num_samples": 3}, "3 draws without replacement need .* 2;"),
        (
            {"weights": [1, 1, 6], "num_samples": 2},
            r"cell 2 needs 1\.5 of 2 draws .* draw at most 1,",
        ),
        ({"weights": [1.0, 2.0], "classes": np.array([0, 1]), "num_samples": 2}, "give classes or weights"),
        ({"classes": np.array([0, 1]), "num_samples": 2**31 + 1}, "an epoch has at most 2,147,483,648 draws"),
        ({"weights": [0.0, 0.0], "num_samples": 1}, "all weights are zero"),
    ],
)
def test_draws_without_replacement_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightedSampler(**arguments, replacement=False)
