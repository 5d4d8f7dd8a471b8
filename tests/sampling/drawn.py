"""Weights of many shapes, and a test that draws have given probabilities."""

import numpy as np
import pytest
from scipy.stats import chi2


def assert_drawn_as(rows, probability):
    """A chi-square test that fails by chance once in 10⁵ times; rows of probability 0 must not be drawn."""
    counts = np.bincount(rows, minlength=len(probability))
    assert len(counts) == len(probability)
    assert not counts[probability == 0].any()
    expected = probability[probability > 0] * len(rows)
    statistic = ((counts[probability > 0] - expected) ** 2 / expected).sum()
    assert statistic < chi2.ppf(1 - 1e-5, max(len(expected) - 1, 1))


def cell_probabilities(codes, shares, factors=None):
    """``(n,)`` probability of each cell in one draw, which a weighted sampler has to meet.

    ``codes`` ``(n,)`` are -1 for unknown, whose share is the last of ``shares`` ``(n_classes + 1,)``.
    """
    weights = np.ones(len(codes)) if factors is None else factors
    classes = np.where(codes < 0, len(shares) - 1, codes)
    totals = np.bincount(classes, weights=weights, minlength=len(shares))
    return np.divide(shares, totals, out=np.zeros_like(shares), where=totals > 0)[classes] * weights


def weigh(codes, n_classes, sampling, factors=None, tree=None):
    """The classes of cells with given codes, as ``sampling`` weighs them."""
    return sampling.weigh(codes, [f"class {number}" for number in range(n_classes)], factors, tree)


def weightings():
    """Classes, class weights and cell weights, as parameters of a test."""
    rng = np.random.default_rng(0)
    runs = np.repeat(np.arange(40), rng.integers(1, 60, 40))  # classes are in runs, as in atlas files
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
        class_weights = rng.random(k) + 0.05
        class_weights[0] = 0
        yield pytest.param(classes, None, None, id=f"{name}-uniform")
        yield pytest.param(classes, class_weights, None, id=f"{name}-class-weights")
        yield pytest.param(classes, class_weights, weights, id=f"{name}-class-and-cell-weights")
        yield pytest.param(classes, None, zeros, id=f"{name}-zero-weights")
