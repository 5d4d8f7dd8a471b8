"""Quantile bins against NumPy, and torch for those in float32."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from scdataloader.kernels.draws.random import GAMMA, mix, philox
from scdataloader.kernels.rows.bins import HIGHEST, LOWEST, RANDOM, bin_rows

KEY = np.uint64(77)


def bins_of(data, indptr, n_bins, ties, *, dtype=np.float64, position=None):
    levels = np.linspace(0, 1, n_bins - 1) if dtype == np.float64 else torch.linspace(0, 1, n_bins - 1).numpy()
    out = np.full(len(data), np.nan, np.float32)
    position = np.arange(len(indptr) - 1) if position is None else position
    bin_rows(np.asarray(indptr), data, levels, ties, KEY, position, out)
    return out


def reference(values, n_bins, ties, drawn):
    """The bins of one row, given a number from 0 to 1 for each value."""
    edges = np.quantile(values.astype(np.float64), np.linspace(0, 1, n_bins - 1))
    high, below = np.digitize(values, edges), np.digitize(values, edges, right=True)
    if ties == LOWEST:
        return below + 1
    return high if ties == HIGHEST else np.ceil(drawn * (below - high) + high)


def drawn_for(position, n):
    """The numbers of the kernel."""
    seed, _ = philox(KEY, np.uint64(position), np.uint64(16 << 32))
    with np.errstate(over="ignore"):
        bits = [int(mix(np.uint64(seed) + np.uint64(j) * GAMMA)) >> 32 for j in range(n)]
    return np.array(bits) / 2**32


VALUES = st.one_of(
    st.lists(st.integers(1, 6), max_size=40),
    st.lists(st.one_of(st.integers(1, 4), st.integers(250, 260), st.integers(10_000, 10**6)), max_size=40),
    st.lists(st.floats(2.0**-10, 1e6, width=32), max_size=40),
    st.lists(st.sampled_from([0.5, 1.0, 300.0, 3e9, -2.0, 0.0]), max_size=40),
)


@given(st.lists(VALUES, max_size=4), st.integers(3, 60), st.sampled_from([HIGHEST, LOWEST, RANDOM]))
def test_bins_are_numpys_digits_of_numpys_quantiles(rows, n_bins, ties):
    data = np.array([value for row in rows for value in row], np.float32)
    indptr = np.cumsum([0, *map(len, rows)])
    got = bins_of(data, indptr, n_bins, ties)
    for position, (start, stop) in enumerate(pairwise(indptr)):
        if start < stop:
            expected = reference(data[start:stop], n_bins, ties, drawn_for(position, stop - start))
            np.testing.assert_array_equal(got[start:stop], expected)


@pytest.mark.parametrize("n_distinct", [511, 512, 513, 2000])
@pytest.mark.parametrize("ties", [HIGHEST, LOWEST, RANDOM])
def test_rows_of_few_and_of_many_different_values(n_distinct, ties):
    rng = np.random.default_rng(n_distinct)
    data = rng.permutation(np.resize(np.unique(rng.random(3 * n_distinct).astype(np.float32))[:n_distinct], 3001))
    expected = reference(data, 51, ties, drawn_for(0, len(data)))
    np.testing.assert_array_equal(bins_of(data, [0, len(data)], 51, ties), expected)


@pytest.mark.parametrize("n", [1, 2, 5, 50, 99, 1801])
@pytest.mark.parametrize("ties", [HIGHEST, LOWEST])
def test_bins_in_float32_are_torchs(n, ties):
    rng = np.random.default_rng(n)
    for counts in (rng.geometric(0.4, n), rng.random(n), rng.integers(1, 2000, n)):
        data = counts.astype(np.float32)
        edges = torch.quantile(torch.from_numpy(data), torch.linspace(0, 1, 50))
        expected = torch.bucketize(torch.from_numpy(data), edges, right=ties == HIGHEST).numpy() + (ties == LOWEST)
        np.testing.assert_array_equal(bins_of(data, [0, n], 51, ties, dtype=np.float32), expected)


def test_random_bins_are_evenly_likely():
    # edges 0, 1/4 … 1 of [1, 1, 1, 1, 9]: four edges are 1, so the ones are in bins 1 to 4
    n = 4000
    data = np.tile(np.array([1, 1, 1, 1, 9], np.float32), n)
    got = bins_of(data, np.arange(n + 1) * 5, 6, RANDOM).reshape(n, 5)
    assert (got[:, 4] == 5).all()
    for place in range(4):
        assert chisquare(np.bincount(got[:, place].astype(int), minlength=5)[1:]).pvalue > 1e-4
    assert chisquare(np.histogram2d(got[:, 0], got[:, 1], bins=4)[0].ravel()).pvalue > 1e-4


def test_random_bins_depend_on_position_not_on_the_row():
    data = np.tile(np.ones(30, np.float32), 3)
    got = bins_of(data, [0, 30, 60, 90], 51, RANDOM, position=np.array([4, 9, 4])).reshape(3, 30)
    assert np.array_equal(got[0], got[2])
    assert not np.array_equal(got[0], got[1])
