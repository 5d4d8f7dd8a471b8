"""What draws are compared with: asked probabilities, for weightings of many shapes."""

import numpy as np
import pytest
from scipy.stats import chi2


def assert_drawn_as(rows, probability):
    """A chi-square test that chance fails once in 10⁵ times; what has no probability must not come at all."""
    counts = np.bincount(rows, minlength=len(probability))
    assert len(counts) == len(probability)
    assert not counts[probability == 0].any()
    expected = probability[probability > 0] * len(rows)
    statistic = ((counts[probability > 0] - expected) ** 2 / expected).sum()
    assert statistic < chi2.ppf(1 - 1e-5, max(len(expected) - 1, 1))


def weightings():
    """Classes, their masses and cell weights, as parameters of a test."""
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
