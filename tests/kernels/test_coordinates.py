"""The kernels of kernels/rows/coordinates.py against SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_matrix

from scdataloader.kernels.rows.coordinates import BAD_GENE, BAD_ROW, OK, count_coordinates, place_coordinates

FIRST, N_ROWS, N_GENES = 5, 6, 8
VALUES = st.tuples(st.integers(FIRST, FIRST + N_ROWS - 1), st.integers(0, N_GENES - 1), st.integers(1, 300))


def counted(values, lut):
    rows, genes, data = np.array(values, np.int64).reshape(-1, 3).T.copy()
    counts = np.zeros(N_ROWS, np.int64)
    return (rows, genes, data.astype(np.float32)), counts, count_coordinates(rows, genes, data, FIRST, lut, counts)


@given(st.lists(VALUES, max_size=40), st.lists(st.booleans(), min_size=N_GENES, max_size=N_GENES))
def test_values_come_to_their_rows_in_the_given_order(values, kept):
    kept = np.array(kept)
    lut = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
    (rows, genes, data), counts, (status, whole, largest) = counted(values, lut)
    taken = kept[genes]
    assert (status, whole, largest) == (OK, True, data[taken].max(initial=0))
    indptr = np.concatenate([[0], np.cumsum(counts)])
    out_genes, out = np.empty(indptr[-1], np.uint16), np.empty(indptr[-1], np.float32)
    place_coordinates(rows, genes, data, FIRST, lut, indptr[:-1].copy(), out_genes, out)
    expected = coo_matrix((data[taken], (rows[taken] - FIRST, lut[genes[taken]])), (N_ROWS, N_GENES)).toarray()
    got = np.zeros_like(expected)
    np.add.at(got, (np.repeat(np.arange(N_ROWS), counts), out_genes), out)
    np.testing.assert_array_equal(got, expected)
    for row in range(N_ROWS):
        own = slice(indptr[row], indptr[row + 1])
        assert out[own].tolist() == data[taken & (rows == row + FIRST)].tolist()


@pytest.mark.parametrize(
    ("value", "status"),
    [((4, 0, 1), BAD_ROW), ((11, 0, 1), BAD_ROW), ((5, -1, 1), BAD_GENE), ((5, 8, 1), BAD_GENE), ((5, 7, 1), OK)],
)
def test_coordinates_out_of_range_are_found(value, status):
    assert counted([(5, 0, 1), value], np.arange(N_GENES, dtype=np.int32))[2][0] == status


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf])
def test_what_is_no_count_is_found_if_its_gene_is_kept(value):
    rows, genes, data = np.array([5, 5]), np.array([0, 1]), np.array([1.0, value])
    for lut, whole in (([0, 1], False), ([0, -1], True)):
        counts = np.zeros(N_ROWS, np.int64)
        found = count_coordinates(rows, genes, data, FIRST, np.array(lut, np.int32), counts)
        assert found[:2] == (OK, whole)
