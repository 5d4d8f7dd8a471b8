"""What is expected of an epoch, against epochs that are really drawn."""

import numpy as np
import pytest

from scdataloader.sampling import expectation
from scdataloader.sampling.expectation import expect
from scdataloader.sampling.tally import Tally
from scdataloader.sampling.weighting import Weighting
from scdataloader.sampling.weights import Sampling, class_weights

N = 1003
EPOCHS = 300
RNG = np.random.default_rng(0)
CODES = RNG.choice(5, N, p=[0.6, 0.3, 0.07, 0.02, 0.01]).astype(np.int32) - 1  # the most are unknown
CODES[CODES == 3] = 0
CODES[[5, 6, 7]] = 3  # a class of three neighbours
FACTORS = RNG.lognormal(0, 2, N) * (RNG.random(N) < 0.9)
ROWS = np.sort(RNG.permutation(2 * N)[:N])


def weighting(factors=None, n=N, **options):
    sampling = Sampling(**options)
    codes = CODES if sampling.columns else np.zeros(n, np.int32)
    n_classes = 4 if sampling.columns else 1
    return Weighting(
        rows=ROWS[:n],
        codes=codes,
        names=[f"class {i}" for i in range(n_classes)],
        factors=factors,
        weights=class_weights(codes, n_classes, sampling, factors),
        sampling=sampling,
    )


def measured(weighted, epochs, global_batch_size=1):
    """What tallies say of each of some epochs: distinct cells and sums of squares."""
    found = []
    for seed in range(len(epochs)):
        sampler = weighted.sampler(seed, global_batch_size)
        tally = Tally(2 * N)
        tally.add(sampler.draw(epochs[seed], 0, sampler.num_samples))
        assert tally.n_draws == weighted.num_samples
        n = tally.n_draws
        found.append((n * (1 - tally.repeated_share), n**2 / tally.effective_cells))
    return np.array(found)


BY = {"by": ["type"]}
CASES = {
    "uniform": BY | {"scheme": "uniform"},
    "natural, some unknown": BY | {"unknown_mass": 0.3, "num_samples": 500},
    "many draws": BY | {"scheme": "power", "num_samples": 5000},
    "no classes": {"num_samples": 777},
    "quotas": BY | {"scheme": "uniform", "replacement": False, "num_samples": 333},
    "quotas, many": BY | {"scheme": "saturating", "replacement": False, "num_samples": 3001, "unknown_mass": 0.1},
    "quotas, no classes": {"replacement": False, "num_samples": 1500},
    "blocks": BY | {"scheme": "uniform", "block_size": 8, "num_samples": 16_384},
    "blocks, an epoch that ends within": BY | {"scheme": "uniform", "block_size": 16, "num_samples": 1700},
    "blocks, no classes": {"block_size": 4, "num_samples": 9001},
}
WITH_FACTORS = {
    "factors": {"num_samples": 1500},
    "factors and classes": BY | {"scheme": "uniform", "num_samples": 400, "unknown_mass": 0.2},
    "blocks, factors": {"block_size": 16, "num_samples": 8192 + 500},
    "blocks, factors and classes": BY | {"block_size": 7, "num_samples": 3000, "unknown_mass": 0.5},
}


@pytest.mark.parametrize(
    ("options", "factors", "global_batch_size"),
    [
        *(pytest.param(options, None, 1, id=name) for name, options in CASES.items()),
        *(pytest.param(options, FACTORS, 1, id=name) for name, options in WITH_FACTORS.items()),
        pytest.param(CASES["blocks, an epoch that ends within"], None, 64, id="blocks, batches of 64"),
    ],
)
def test_the_mean_of_real_epochs_is_what_was_expected(options, factors, global_batch_size, monkeypatch):
    monkeypatch.setattr(expectation, "_STEP", 128)  # in several steps
    weighted = weighting(factors, **options)
    said = expect(weighted, 0, global_batch_size)
    found = measured(weighted, [0] * EPOCHS, global_batch_size)
    error = 5 * found.std(axis=0) / np.sqrt(EPOCHS) + 1e-6
    assert abs(found[:, 0].mean() - said.distinct_cells) < error[0]
    assert abs(found[:, 1].mean() - said.sum_of_squares) < error[1]
    # and what is said of a single epoch is near: the spread of an epoch is small against its mean
    assert said.repeated_share == pytest.approx(1 - found[:, 0].mean() / said.n_draws, abs=0.01)
    assert said.effective_cells == pytest.approx(said.n_draws**2 / found[:, 1].mean(), rel=0.05)


def test_draws_of_one_block_are_not_taken_for_those_of_several():
    weighted = weighting(n=40, num_samples=8192, block_size=8)
    found = measured(weighted, [0] * 3000)[:, 1]
    assert expect(weighted).sum_of_squares == pytest.approx(found.mean(), rel=2.5e-4)  # five standard errors


def test_where_no_cell_comes_twice_all_draws_are_effective():
    for weighted in (
        weighting(),
        weighting(block_size=8),
        weighting(replacement=False, num_samples=500),
        weighting(1 + RNG.random(N), replacement=False, num_samples=300, cell_factors=["quality"]),
    ):
        said = expect(weighted)
        assert said.n_draws == weighted.num_samples
        assert said.repeated_share == 0
        assert said.effective_cells == pytest.approx(said.n_draws)


def test_a_single_cell_is_repeated_for_certain():
    codes = np.zeros(1, np.int32)
    sampling = Sampling(num_samples=10)
    weights = class_weights(codes, 1, sampling)
    one = Weighting(rows=codes, codes=codes, names=["all cells"], factors=None, weights=weights, sampling=sampling)
    assert expect(one).repeated_share == pytest.approx(0.9)
    assert expect(one).effective_cells == pytest.approx(1)


def test_every_epoch_of_a_curriculum_is_expected_by_itself():
    options = BY | {"num_samples": 500, "unknown_mass": 0.3, "curriculum_epochs": 4}
    weighted = weighting(**options)
    effective = [expect(weighted, epoch).effective_cells for epoch in range(5)]
    assert effective[:4] == sorted(effective[:4])  # nearly uniform at first: small classes come often
    assert effective[3] == effective[4] == expect(weighting(**options | {"curriculum_epochs": 0})).effective_cells
    found = measured(weighted, [1] * EPOCHS)
    assert effective[1] == pytest.approx(500**2 / found[:, 1].mean(), rel=0.02)


def test_very_many_cells_take_steps():
    n = 3_000_000
    codes = np.zeros(n, np.int32)
    factors = np.tile([1.0, 2.0, 3.0], n // 3)
    sampling = Sampling(num_samples=n, cell_factors=["quality"])
    weights = class_weights(codes, 1, sampling, factors)
    many = Weighting(rows=codes, codes=codes, names=["all"], factors=factors, weights=weights, sampling=sampling)
    said = expect(many)
    assert 1 - said.repeated_share == pytest.approx(np.mean(1 - np.exp(-np.array([0.5, 1, 1.5]))), rel=1e-4)
    assert said.effective_cells == pytest.approx(n / (1 + np.mean(np.array([0.5, 1, 1.5]) ** 2)), rel=1e-4)
