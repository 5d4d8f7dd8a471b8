"""The formulas of the page, in JavaScript, against those of the package."""

import json

import numpy as np
import pytest

from scdataloader.reports.contents import _rounded
from scdataloader.sampling.samplers import WeightedSampler
from scdataloader.sampling.tally import Tally
from scdataloader.sampling.weights import class_weights
from tests.reports.pages import in_node, needs_node

rng = np.random.default_rng(18)
COUNTS = [
    rng.integers(0, 10 ** rng.integers(1, 9), rng.integers(2, 60)) + np.eye(1, 1)[0].astype(int) for _ in range(40)
]
OPTIONS = [
    (scheme, *rng.random(1), 10 ** rng.uniform(0, 8)) for scheme in ("natural", "uniform", "power", "saturating")
]


@needs_node
def test_shares_of_classes_are_those_of_the_package():
    cases = [(counts, *options) for counts in COUNTS for options in OPTIONS]
    calls = [
        f"Formulas.shares({counts.tolist()}, {[1] * len(counts)}, "
        + json.dumps({"scheme": scheme, "tau": tau, "saturation": saturation, "unknown": 0.25})
        + ")"
        for counts, scheme, tau, saturation in cases
    ]
    for shares, (counts, scheme, tau, saturation) in zip(in_node(f"[{', '.join(calls)}]"), cases, strict=True):
        np.testing.assert_allclose(shares, 0.75 * class_weights(counts, scheme, tau, saturation), rtol=1e-12)


@needs_node
def test_classes_of_equal_size_can_be_grouped():
    how = {"scheme": "saturating", "tau": 0, "saturation": 7}
    one, grouped = in_node(
        f"[Formulas.shares([5, 5, 5, 2], [1, 1, 1, 1], {how}), Formulas.shares([5, 2], [3, 1], {how})]"
    )
    np.testing.assert_allclose([one[0], one[3]], grouped)
    calls = f"[5, 5, 5, 2], [1, 1, 1, 1], {one}", f"[5, 2], [3, 1], {grouped}"
    one, grouped = in_node("[" + ", ".join(f"Formulas.epoch({call}, 9, true)" for call in calls) + "]")
    assert one == pytest.approx(grouped)


SIZES, SHARES = np.array([4000, 900, 60, 3]), np.array([0.4, 0.3, 0.2, 0.1])


@needs_node
@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("n", [2000, 20_000])
def test_statistics_of_an_epoch_are_those_of_its_draws(replacement, n):
    classes = np.repeat(np.arange(4, dtype=np.int32), SIZES)
    sampler = WeightedSampler(classes=classes, class_weights=SHARES, num_samples=n, seed=3, replacement=replacement)
    epochs = []
    for epoch in range(8 if replacement else 1):
        tally = Tally(len(classes))
        tally.add_epoch(sampler, epoch)
        epochs.append((tally.repeated_share, tally.effective_cells))
    repeated, effective = np.mean(epochs, axis=0)
    options = f"{n}, {json.dumps(replacement)}"
    found = in_node(f"Formulas.epoch({SIZES.tolist()}, [1, 1, 1, 1], {SHARES.tolist()}, {options})")
    assert found["repeated"] == pytest.approx(repeated, abs=0.01 if replacement else 1e-9)
    assert found["effective"] == pytest.approx(effective, rel=0.03 if replacement else 1e-6)


@needs_node
def test_uneven_factors_of_cells_lower_the_effective_cells():
    factors = np.array([1.0, 1.0, 8.0, 2.0])
    p = factors / factors.sum()
    even = factors.sum() ** 2 / (factors**2).sum() / 4
    found = in_node(f"Formulas.epoch([4], [1], [1], 1000, true, [{even}])")
    assert found["effective"] == pytest.approx(1000 / (1 + 999 * (p**2).sum()))


@needs_node
def test_sums_of_a_tree_have_the_rows_below():
    found = in_node("Formulas.withBelow([1, 10, 100, 1000, 10000], [0, 1, 2, 1, 0])")
    assert found == {"sums": [1111, 110, 100, 1000, 10000], "parents": [-1, 0, 1, 0, -1]}


def test_numbers_are_rounded_to_six_digits():
    values = np.array([0, 1 / 3, 2e-9 / 3, 123456.789, 1])
    np.testing.assert_allclose(_rounded(values), [0, 0.333333, 6.66667e-10, 123457, 1], rtol=1e-12)
