"""The kernels of kernels/rows/gather.py against NumPy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scdataloader.kernels.rows import gather

N_GENES = 30


@st.composite
def matrices(draw, *, ordered: bool = False):
    """A CSR matrix, its rows in any order and with repeats unless ``ordered``, and rows to take."""
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=12))
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    dtype = draw(st.sampled_from([np.int32, np.int64]))
    if ordered:
        rows = [sorted(draw(st.permutations(range(N_GENES)))[:n]) for n in sizes]
        indices = np.array([gene for row in rows for gene in row], dtype)
    else:
        indices = draw(hnp.arrays(dtype, int(indptr[-1]), elements=st.integers(0, N_GENES - 1)))
    values = draw(
        hnp.arrays(draw(st.sampled_from(["f4", "f8", "u1", "i4", "i8"])), int(indptr[-1]), elements=st.integers(0, 100))
    )
    take = draw(st.lists(st.integers(0, len(sizes) - 1), max_size=20))
    return indptr, indices, values, np.array(take, np.int64)


def in_one_piece(values):
    return values, np.zeros(1, np.int64), max(1, len(values))


def take(indptr, indices, data, rows):
    out = np.empty(len(rows) + 1, np.int64)
    total = gather.row_offsets(indptr, rows, out)
    genes, values = np.empty(total, np.int32), np.empty(total, np.float32)
    flags = gather.take_rows(indptr, *in_one_piece(indices), rows, N_GENES, out, genes)
    flags |= gather.take_rows(indptr, *in_one_piece(data), rows, None, out, values)
    return out, genes, values, flags


def take_reference(indptr, indices, data, rows):
    """What `row_offsets` and `take_rows` together compute."""
    sizes = indptr[rows + 1] - indptr[rows]
    out_indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    where = np.concatenate([np.arange(indptr[r], indptr[r + 1]) for r in rows] or [np.empty(0, np.int64)])
    return out_indptr, indices[where].astype(np.int32), data[where].astype(np.float32)


def flags_of(indptr, indices, data) -> int:
    """The flags, by definition."""
    rows = [indices[a:b] for a, b in pairwise(indptr)]
    flags = gather.UNSORTED if any((np.diff(row) <= 0).any() for row in rows) else 0
    if (indices < 0).any() or (indices >= N_GENES).any():
        flags |= gather.OUT_OF_RANGE
    values = data.astype(np.float32)
    if not (np.isfinite(values) & (values >= 0) & (values == np.floor(values))).all():
        flags |= gather.NOT_COUNTS
    return flags


@given(matrices())
def test_take_rows(case) -> None:
    expected = take_reference(*case)
    *got, flags = take(*case)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert flags == flags_of(*expected)


@given(matrices(ordered=True), st.sampled_from([-1.0, 0.5, np.nan, np.inf, -np.inf, 1e-40]), st.integers(0, 200))
def test_every_value_that_is_not_a_count_is_found(case, value: float, at: int) -> None:
    indptr, indices, data, _ = case
    rows = np.arange(len(indptr) - 1)
    assert take(indptr, indices, data, rows)[-1] == 0
    if len(data):
        data = data.astype("f8")
        data[at % len(data)] = value
        assert take(indptr, indices, data, rows)[-1] == gather.NOT_COUNTS


@given(matrices(), st.sampled_from([-1, N_GENES, -(2**31), 2**31 - 1, 2**32 + 3, -(2**40)]), st.integers(0, 200))
def test_every_invalid_gene_is_found(case, wild: int, at: int) -> None:
    indptr, indices, data, _ = case
    if len(indices):
        indices = indices.astype(np.int64)
        indices[at % len(indices)] = wild
        assert take(indptr, indices, data, np.arange(len(indptr) - 1))[-1] & gather.OUT_OF_RANGE


@given(matrices())
def test_sort_rows(case) -> None:
    indptr, indices, data, flags = take(*case)
    expected = sp.csr_matrix((data.copy(), indices.copy(), indptr.copy()), shape=(len(indptr) - 1, N_GENES))
    expected.sum_duplicates()
    assert gather.rows_ascend(indptr, indices) == (not flags & gather.UNSORTED)
    gather.sort_rows(indptr, indices, data)
    np.testing.assert_array_equal(indptr, expected.indptr)
    np.testing.assert_array_equal(indices[: indptr[-1]], expected.indices)
    np.testing.assert_array_equal(data[: indptr[-1]], expected.data)


@given(matrices(), st.integers(1, 9))
def test_scatter(case, length: int) -> None:
    """All chunks scattered, whatever their length, make up the rows."""
    indptr, indices, data, rows = case
    out, genes, values, _ = take(*case)
    got_genes, got_values = np.full_like(genes, -7), np.full_like(values, -7)
    starts, stops = indptr[rows], indptr[rows + 1]
    for begin in range(0, len(data), length):
        chunk = slice(begin, begin + length)
        gather.scatter_rows(indices[chunk], begin, starts, stops, out[:-1], N_GENES, got_genes)
        assert gather.scatter_rows(data[chunk], begin, starts, stops, out[:-1], None, got_values) == 0
    np.testing.assert_array_equal(got_genes, genes)
    np.testing.assert_array_equal(got_values, values)


def scattered(values, length: int, order, gap: int, shift: int):
    """``values`` cut into pieces of ``length``, stored in ``order``, ``gap`` values apart, ``shift`` bytes off."""
    n = -(-len(values) // length)
    begins = np.empty(n, np.int64)
    begins[order[:n]] = gap + np.arange(n) * (length + gap)
    content = np.full((n * (length + gap) + gap) * values.itemsize + shift, 0xEE, np.uint8)
    stored = content[shift:].view(values.dtype)
    for i, begin in enumerate(begins):
        piece = values[i * length : (i + 1) * length]
        stored[begin : begin + len(piece)] = piece
    stored.flags.writeable = False
    return stored, begins, length


@given(matrices(), st.integers(1, 15), st.integers(1, 15), st.integers(0, 3), st.data())
def test_take_rows_in_pieces(case, genes_length: int, values_length: int, gap: int, data) -> None:
    """Pieces of any length, anywhere, give the same rows and flags as one piece."""
    indptr, indices, values, rows = case
    if len(indices) and data.draw(st.booleans()):
        wild = data.draw(st.sampled_from([-1, N_GENES, 2**31 - 1]))
        indices[data.draw(st.integers(0, len(indices) - 1))] = wild
    values = values.astype("f8")
    if len(values) and data.draw(st.booleans()):
        values[data.draw(st.integers(0, len(values) - 1))] = 0.5
    out, genes, counts, flags = take(indptr, indices, values, rows)
    order = np.array(data.draw(st.permutations(range(len(values) + 1))))
    order = [np.argsort(np.argsort(order[: -(-len(values) // n)])) for n in (genes_length, values_length)]
    shift = data.draw(st.sampled_from([0, 4]))
    stored = scattered(indices, genes_length, order[0], gap, shift)
    got_genes, got_counts = np.full_like(genes, -7), np.full_like(counts, -7)
    got = gather.take_rows(indptr, *stored, rows, N_GENES, out, got_genes)
    stored = scattered(values, values_length, order[1], gap, shift)
    got |= gather.take_rows(indptr, *stored, rows, None, out, got_counts)
    np.testing.assert_array_equal(got_genes, genes)
    np.testing.assert_array_equal(got_counts, counts)
    assert got == flags


@given(
    hnp.arrays(
        st.sampled_from(["f4", "u1", "i8"]),
        st.tuples(st.integers(1, 9), st.integers(0, 12)),
        elements=st.integers(0, 3),
    ),
    st.data(),
)
def test_nonzero(block, data) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, len(block) - 1), max_size=12)), np.int64)
    expected = sp.csr_matrix(block[rows].reshape(len(rows), block.shape[1]))
    indptr = np.empty(len(rows) + 1, np.int64)
    total = gather.count_nonzero(block, rows, indptr)
    indices, values = np.empty(total, np.int32), np.empty(total, np.float32)
    assert gather.take_nonzero(block, rows, indptr, indices, values) == 0
    np.testing.assert_array_equal(indptr, expected.indptr)
    np.testing.assert_array_equal(indices, expected.indices)
    np.testing.assert_array_equal(values, expected.data)


@pytest.mark.parametrize("item", [1, 2, 4, 8])
def test_unshuffle(item: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, 30 * item).astype(np.uint8)
    shuffled = np.concatenate([values.reshape(-1, item).T.reshape(-1), np.array([1, 2, 3][: item - 1], np.uint8)])
    out = np.empty_like(shuffled)
    gather.unshuffle(shuffled, item, out)
    np.testing.assert_array_equal(out[: len(values)], values)
    np.testing.assert_array_equal(out[len(values) :], shuffled[len(values) :])
