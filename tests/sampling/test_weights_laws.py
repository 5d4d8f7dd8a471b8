"""Laws of the weights: the formulas of class weights, and the effect of factors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scdataloader.sampling.options import Sampling
from scdataloader.sampling.weights import class_weights
from tests.sampling.drawn import cell_probabilities, weigh

counts_of_classes = st.lists(st.integers(0, 10**12), min_size=1, max_size=8).filter(any)
schemes = st.sampled_from(["natural", "uniform", "power", "saturating"])
options = st.builds(
    lambda scheme, tau, saturation, unknown: Sampling(
        by="x", scheme=scheme, tau=tau, saturation=saturation, unknown_share=unknown
    ),
    schemes,
    st.floats(0, 1),
    st.floats(1e-6, 1e12),
    st.sampled_from([0.0, 0.1, 0.9]),
)
cells = st.lists(st.tuples(st.integers(-1, 3), st.sampled_from([0.0, 0.5, 1.0, 7.0])), min_size=1, max_size=30)


def specification(count, how):
    """Weight of a class before normalising, as the design defines it."""
    return {
        "natural": count,
        "uniform": 1,
        "power": count**how.tau,
        "saturating": how.saturation * count / (how.saturation + count),
    }[how.scheme]


@given(counts_of_classes, options)
def test_weights_are_the_formulas_normalised_over_present_classes(counts, how):
    weights = class_weights(np.array(counts, np.int64), how.scheme, how.tau, how.saturation)
    expected = np.array([specification(count, how) if count else 0.0 for count in counts])
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-9)
    assert ((weights > 0) == (np.array(counts) > 0)).all()
    assert weights.sum() == pytest.approx(1)


@given(counts_of_classes, options)
def test_more_cells_never_mean_less_weight_nor_more_than_their_share_grows(counts, how):
    """Every scheme lies between uniform and natural."""
    present = np.array(sorted(count for count in counts if count), np.int64)
    weights = class_weights(present, how.scheme, how.tau, how.saturation)
    assert (np.diff(weights) >= -1e-12).all()
    assert (np.diff(weights / present) <= 1e-12).all()


@given(cells, options)
def test_every_class_gets_its_share_and_factors_divide_it_inside_only(rows, how):
    codes = np.array([code for code, _ in rows], np.int32)
    factors = np.array([factor for _, factor in rows])
    assume(((codes >= 0) & (factors > 0)).any())
    weights = weigh(codes, 4, how, factors)
    probabilities = cell_probabilities(codes, weights.shares, factors)
    assert probabilities.sum() == pytest.approx(1)
    assert weights.shares.sum() == pytest.approx(1)
    for code in range(-1, 4):
        inside = codes == code
        assert probabilities[inside].sum() == pytest.approx(weights.shares[code])
        if weights.shares[code] > 0:
            expected = factors[inside] / factors[inside].sum() * weights.shares[code]
            np.testing.assert_allclose(probabilities[inside], expected)
    # the weights of known classes are those of the drawable cells, scaled to the share that unknown cells leave
    drawable = np.bincount(codes[(codes >= 0) & (factors > 0)], minlength=4)
    unknown_drawable = ((codes < 0) & (factors > 0)).any()
    left = 1 - how.unknown_share if unknown_drawable else 1
    expected = class_weights(drawable, how.scheme, how.tau, how.saturation) * left
    np.testing.assert_allclose(weights.shares[:-1], expected)


@given(cells, options)
def test_every_cell_left_out_is_counted(rows, how):
    codes = np.array([code for code, _ in rows], np.int32)
    factors = np.array([factor for _, factor in rows])
    assume(((codes >= 0) & (factors > 0)).any())
    weights = weigh(codes, 4, how, factors)
    n_drawn = int((cell_probabilities(codes, weights.shares, factors) > 0).sum())
    assert weights.n_drawable == n_drawn
    assert n_drawn + weights.n_unknown_left_out + weights.n_zero_left_out == len(codes)
