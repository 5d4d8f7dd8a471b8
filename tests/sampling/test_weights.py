"""Class weights and cell factors: formulas and refusals."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pandas as pd
import pytest

from scdataloader.sampling.options import Sampling
from scdataloader.sampling.weights import SCHEMES, Scheme, cell_factor, class_weights, nnz_factor
from tests.sampling.drawn import cell_probabilities, weigh

COUNTS = np.array([298, 0, 30, 2], np.int64)


@pytest.mark.parametrize(
    ("scheme", "options", "unscaled"),
    [
        ("natural", {}, [298, 0, 30, 2]),
        ("uniform", {}, [1, 0, 1, 1]),
        ("power", {"tau": 0.5}, [298**0.5, 0, 30**0.5, 2**0.5]),
        ("power", {"tau": 0.0}, [1, 0, 1, 1]),
        ("power", {"tau": 1.0}, [298, 0, 30, 2]),
        ("saturating", {"saturation": 100.0}, [100 * 298 / 398, 0, 100 * 30 / 130, 100 * 2 / 102]),
        ("saturating", {"saturation": 1e-300}, [1, 0, 1, 1]),  # small: nearly uniform
        ("saturating", {"saturation": 1e300}, [298, 0, 30, 2]),  # large: natural
    ],
)
def test_the_formulas(scheme, options, unscaled):
    expected = np.array(unscaled) / np.sum(unscaled)
    np.testing.assert_allclose(class_weights(COUNTS, scheme, **options), expected, rtol=1e-12)


def test_every_scheme_has_its_function():
    assert set(SCHEMES) == set(get_args(Scheme))


def test_counts_past_32_bits():
    counts = np.array([3 * 10**12, 10**12], np.int64)
    np.testing.assert_allclose(class_weights(counts, "natural"), [0.75, 0.25])


@pytest.mark.parametrize(
    ("counts", "options", "reason"),
    [
        ([0, 0], ("natural",), "no cell can be drawn: none of 2 classes"),
        ([], ("uniform",), "no cell can be drawn"),
        ([3, -1], ("natural",), "-1 cells"),
        ([3], ("weird",), "scheme must be one of natural, uniform, power, saturating, tree, not 'weird'"),
        ([3], ("tree",), "needs an ontology, but the classes have none"),
        ([3], ("power", 1.5), "tau must be from 0"),
        ([3], ("saturating", 0.5, 0.0), "saturation must be a positive"),
    ],
)
def test_weights_of_nothing_and_odd_options_are_refused(counts, options, reason):
    with pytest.raises(ValueError, match=reason):
        class_weights(np.array(counts, np.int64), *options)


def test_unknown_cells_are_left_out_and_reported_unless_given_a_share():
    codes = np.array([0, 0, 2, -1, -1, -1], np.int32)
    left_out = weigh(codes, 3, Sampling(by="x", scheme="uniform"))
    assert left_out.shares.tolist() == [0.5, 0, 0.5, 0]
    assert left_out.sizes.tolist() == [2, 0, 1, 3]
    assert (left_out.n_unknown_left_out, left_out.n_drawable) == (3, 3)
    assert left_out.summary() == ("sampling 3 cells in 2 classes; 3 cells of unknown label left out (unknown_share=0)")
    shared = weigh(codes, 3, Sampling(by="x", scheme="uniform", unknown_share=0.2))
    np.testing.assert_allclose(shared.shares, [0.4, 0, 0.4, 0.2])
    assert (shared.n_unknown_left_out, shared.n_drawable) == (0, 6)
    assert "20.0% of the draws from 3 cells of unknown label" in shared.summary()


def test_a_share_for_unknown_cells_that_do_not_exist_goes_to_the_others():
    weights = weigh(np.array([0, 1], np.int32), 2, Sampling(by="x", unknown_share=0.5))
    assert weights.shares.tolist() == [0.5, 0.5, 0]


def test_a_share_for_unknown_cells_that_cannot_be_drawn_goes_to_the_others():
    sampling = Sampling(by="x", unknown_share=0.5)
    weights = weigh(np.array([0, 1, -1], np.int32), 2, sampling, np.array([1.0, 1, 0]))
    assert weights.shares.tolist() == [0.5, 0.5, 0]


def test_cells_of_factor_zero_do_not_count():
    codes = np.array([0, 0, 0, 1, 1, 2, -1], np.int32)
    factors = np.array([1.0, 5, 0, 2, 0, 0, 0])
    weights = weigh(codes, 3, Sampling(by="x"), factors)
    assert weights.sizes.tolist() == [2, 1, 0, 0]
    np.testing.assert_allclose(weights.shares, [2 / 3, 1 / 3, 0, 0])
    assert (weights.n_zero_left_out, weights.n_unknown_left_out) == (4, 0)
    assert weights.summary().endswith("; 4 cells with a factor of 0 left out")
    np.testing.assert_allclose(cell_probabilities(codes, weights.shares, factors), [1 / 9, 5 / 9, 0, 1 / 3, 0, 0, 0])


def test_options_that_leave_no_cell_are_refused():
    unknown = np.full(4, -1, np.int32)
    with pytest.raises(ValueError, match="all 4 training cells are of unknown label in cell_type, donor"):
        weigh(unknown, 2, Sampling(by=["cell_type", "donor"], unknown_share=0.5))
    with pytest.raises(ValueError, match=r"each of the 2 training cells of known label has a factor of 0 .*quality"):
        weigh(np.zeros(2, np.int32), 1, Sampling(cell_factors=["quality"]), np.zeros(2))


def test_the_factor_of_expressed_genes():
    nnz = np.array([0, 2000, 5000, 60_000], np.int64)
    expected = [1 + 999 / (1 + np.e**6), 500.5, 1 + 999 / (1 + np.e**-9), 1000]
    np.testing.assert_allclose(nnz_factor(nnz), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([1, 0, 3]),
        pd.Series([1, 0, 3], dtype="Int64"),
        pd.Series([1, 0, 3], dtype="float32"),
        pd.Series(np.array([1, 0, 3], np.uint8)),
    ],
)
def test_any_numeric_column_is_a_factor(values):
    factors = cell_factor(values, "'quality'")
    assert factors.tolist() == [1, 0, 3]
    assert factors.dtype == np.float64


def test_a_column_of_booleans_selects_cells():
    assert cell_factor(pd.Series([True, False]), "'is_primary_data'").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (pd.Series([1.0, -2.0, np.nan], index=["c0", "c1", "c2"]), r"is -2\.0 at cell c1, and invalid in 2 of 3"),
        (pd.Series([1, None], dtype="Int64"), "is nan at cell 1"),
        (pd.Series([np.inf]), "is inf at cell 0, and"),
        (pd.Series(["1", "2"]), "must be numeric, not of dtype"),
        (pd.Series([1, 2], dtype="category"), "must be numeric, not of dtype category"),
        (pd.Series([1j]), "must be numeric, not of dtype complex128"),
    ],
)
def test_other_columns_are_refused_as_factors(values, reason):
    with pytest.raises(ValueError, match=f"cell factor 'quality' {reason}"):
        cell_factor(values, "'quality'")


def test_golden_weights_of_real_labels(real_data):
    """Skewed real classes, from 298 cells down to 1: change only if you mean to."""
    import anndata

    labels = anndata.read_h5ad(real_data / "mouse_brain_merfish.h5ad", backed="r").obs["cell_type_ontology_term_id"]
    counts = labels.value_counts().to_numpy().astype(np.int64)
    largest, smallest = class_weights(counts, "saturating", saturation=50)[[0, -1]]
    assert (counts[0], counts[-1], len(counts)) == (298, 1, 21)
    np.testing.assert_allclose([largest, smallest], [0.13849339921, 0.00317118719075], rtol=1e-9)
