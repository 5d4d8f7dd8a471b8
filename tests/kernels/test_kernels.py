"""Every compiled loop gives what its NumPy reference, here, gives."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from scdataloader.kernels.draws.random import GAMMA, below, below_32, derive_key, mix, permute_range, philox, unit
from scdataloader.kernels.rows.align import BAD_INDEX, NOT_A_GENE, NOT_COUNT, OK, align_rows, close_gaps, scratch_size
from scdataloader.kernels.rows.densify import densify, densify_given
from scdataloader.kernels.rows.select import fill_unexpressed, select_largest, select_random

KEY = np.uint64(0x1234_5678_9ABC_DEF0)


# -------------------------------------------------------------------------------------------------------------- random


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers that Random123 ships for philox4x32-10
        ((0, 0), 0, (0xE169C58D_6627E8D5, 0x9B00DBD8_BC57AC4C)),
        ((2**64 - 1, 2**64 - 1), 2**64 - 1, (0x41C83B0E_408F276D, 0x6D5451FD_A20BC7C6)),
        ((0x85A308D3_243F6A88, 0x03707344_13198A2E), 0x299F31D0_A4093822, (0x94FDCCEB_D16CFE09, 0x24126EA1_5001E420)),
    ],
)
def test_philox_gives_the_known_answers(counter, key, expected):
    got = philox(np.uint64(key), np.uint64(counter[0]), np.uint64(counter[1]))
    assert tuple(int(word) for word in got) == expected


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**62))
def test_below_is_the_high_word_of_the_product(bits, n):
    assert below(np.uint64(bits), n) == bits * n >> 64


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**32 - 1))
def test_below_32_is_the_high_word_of_the_product(bits, n):
    assert below_32(np.uint64(bits), np.uint64(n)) == bits * n >> 64


@given(st.integers(0, 2**64 - 1))
def test_unit_is_in_the_half_open_interval(bits):
    assert unit(np.uint64(bits)) == (bits >> 11) / 2**53 < 1


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_keyed_permutation_is_a_bijection(n, key):
    out = np.empty(n, np.int64)
    permute_range(np.uint64(key), n, 0, out)
    assert np.array_equal(np.sort(out), np.arange(n))


@given(st.integers(1, 10**15), st.integers(0, 2**64 - 1), st.data())
def test_a_stretch_of_a_permutation_is_that_stretch(n, key, data):
    start = data.draw(st.integers(0, n - 1))
    length = min(n - start, 20)
    whole, last = np.empty(length, np.int64), np.empty(1, np.int64)
    permute_range(np.uint64(key), n, start, whole)
    permute_range(np.uint64(key), n, start + length - 1, last)
    assert whole[-1] == last[0]
    assert ((whole >= 0) & (whole < n)).all()
    assert len(np.unique(whole)) == length


def test_every_order_of_a_few_is_equally_likely():
    orders = np.empty((24_000, 4), np.int64)
    for seed in range(len(orders)):
        permute_range(derive_key(seed), 4, 0, orders[seed])
    _, counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24
    # chi-square of 23 degrees of freedom; 58.6 is passed by chance once in 15,000 seeds, and this one is fixed
    assert ((counts - 1000) ** 2 / 1000).sum() < 58.6


@pytest.mark.parametrize("n", [*range(2, 12), 31, 32, 33, 63, 64, 65, 127, 128, 129, 256, 1000, 1024])
def test_odd_orders_are_as_likely_as_even_ones(n):
    order, n_odd = np.empty(n, np.int64), 0
    for seed in range(2000):
        permute_range(derive_key(seed, n), n, 0, order)
        n_cycles, _ = connected_components(csr_matrix((np.ones(n), (np.arange(n), order))), connection="strong")
        n_odd += (n - n_cycles) % 2
    assert abs(n_odd - 1000) < 4.5 * np.sqrt(500)  # standard deviations; passed by chance once in 150,000 seeds


def test_keys_depend_on_every_part_and_on_their_order():
    keys = {int(derive_key(*parts)) for parts in [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (2**64 - 1,), (0, 0, 0)]}
    assert len(keys) == 8


@pytest.mark.parametrize("part", [-1, 2**64, -(2**64), np.int64(-1)])
def test_no_two_seeds_share_a_stream(part):
    with pytest.raises(ValueError, match=str(part)):
        derive_key(0, part)


# --------------------------------------------------------------------------------------------------------------- align


@st.composite
def matrices(draw):
    """A CSR matrix as files hold it: rows perhaps unsorted, with entries that meet."""
    n_rows, n_genes = draw(st.integers(1, 6)), draw(st.integers(1, 150))
    sizes = draw(st.lists(st.integers(0, min(40, 2 * n_genes)), min_size=n_rows, max_size=n_rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    sort = draw(st.booleans())
    rows = [rng.choice(n_genes, size, replace=size > n_genes) for size in sizes]
    indices = np.concatenate([np.sort(row) if sort else row for row in rows])
    # each of these types once: the kernel takes seconds to compile for a pair of them
    pairs = [(np.float32, np.int32), (np.float64, np.int64), (np.int32, np.int32), (np.uint16, np.int64)]
    dtype, index_dtype = draw(st.sampled_from(pairs))
    data = rng.integers(0, 50, indptr[-1]).astype(dtype)
    return indptr, indices.astype(index_dtype), data, n_genes


def run_align(indptr, indices, data, take, lut, n_genes, *, monotone=False, counts_only=True):
    genes_only = bool((lut == NOT_A_GENE).any())
    sizes = indptr[take + 1] - indptr[take]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    out_indices, out_data = np.full(starts[-1], -7, np.int32), np.full(starts[-1], -7, np.float32)
    kept, depth = np.zeros(len(take), np.int64), np.zeros(len(take), np.float32)
    place = np.arange(len(take))
    arguments = (indptr, indices, data, take, lut, n_genes, monotone, counts_only, genes_only, place, starts)
    scratch = np.full(scratch_size(n_genes, lut), np.nan, np.float32)
    status, at = align_rows(*arguments, out_indices, out_data, kept, depth, scratch)
    if status != OK:
        return status, at
    np.testing.assert_array_equal(starts, np.concatenate([[0], np.cumsum(kept)]))  # rows in order leave no gaps
    packed = close_gaps(starts, kept, out_indices, out_data)
    return csr_matrix((out_data[: packed[-1]], out_indices[: packed[-1]], packed), (len(take), n_genes)), depth


@given(matrices(), st.randoms())
def test_align_writes_rows_in_another_order_to_their_slots(matrix, random):
    indptr, indices, values, n_genes = matrix
    n, lut = len(indptr) - 1, np.where(np.arange(n_genes) % 3, np.arange(n_genes), -1).astype(np.int32)
    place = np.array(random.sample(range(n), n), np.int64)
    sizes = np.empty(n, np.int64)
    sizes[place] = np.diff(indptr)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    before, found = starts.copy(), np.zeros((n, n_genes))
    kept, depth = np.zeros(n, np.int64), np.zeros(n, np.float32)
    out_indices, out_data = np.full(starts[-1], -7, np.int32), np.full(starts[-1], -7, np.float32)
    scratch = np.full(scratch_size(n_genes, lut), np.nan, np.float32)
    rows = (indptr, indices, values, np.arange(n), lut, n_genes, False, True, False, place, starts)
    assert align_rows(*rows, out_indices, out_data, kept, depth, scratch) == (OK, 0)
    for i, slot in enumerate(place):
        own = slice(starts[slot], starts[slot] + kept[slot])
        found[i, out_indices[own]] = out_data[own]
    expected = csr_matrix((values, indices, indptr), (n, n_genes)).toarray()
    np.testing.assert_array_equal(found, np.where(lut >= 0, expected, 0))
    if place.tolist() != sorted(place):
        np.testing.assert_array_equal(starts, before)


@given(matrices(), st.data())
def test_align_is_renumber_sort_and_sum(matrix, data):
    indptr, indices, values, n_source = matrix
    n_genes = data.draw(st.integers(1, 130))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    injective = data.draw(st.booleans())
    if injective:
        lut = np.full(n_source, -1, np.int32)
        known = rng.choice(n_source, rng.integers(0, min(n_source, n_genes) + 1), replace=False)
        numbers = rng.choice(n_genes, len(known), replace=False)
        lut[np.sort(known) if data.draw(st.booleans()) else known] = np.sort(numbers)
    else:
        lut = rng.integers(-1, n_genes, n_source).astype(np.int32)
    if data.draw(st.booleans()):
        lut[rng.integers(0, n_source)] = NOT_A_GENE
    mapped = lut[lut >= 0]
    monotone = bool((np.diff(mapped) > 0).all())
    take = rng.integers(0, len(indptr) - 1, data.draw(st.integers(0, 8)))
    got, depth = run_align(indptr, indices, values, take, lut, n_genes, monotone=monotone)

    dense = csr_matrix((values.astype(np.float64), indices, indptr), (len(indptr) - 1, n_source)).toarray()[take]
    expected = np.zeros((len(take), n_genes))
    for gene in range(n_source):
        if lut[gene] >= 0:
            expected[:, lut[gene]] += dense[:, gene]
    assert np.array_equal(got.toarray(), expected)
    assert np.array_equal(depth, dense[:, lut != NOT_A_GENE].sum(axis=1))
    assert all((np.diff(got.indices[a:b]) > 0).all() for a, b in pairwise(got.indptr))


def test_stored_zeros_change_nothing():
    indptr, indices, values = np.array([0, 4]), np.array([3, 1, 0, 2], np.int32), np.array([0, 5, 0, 7], np.float32)
    for order in ([0, 1, 2, 3], [2, 1, 3, 0]):  # sorted in the kernel, and ascending as stored
        got, depth = run_align(
            indptr, indices[order], values[order], np.array([0]), np.arange(4, dtype=np.int32), 4, monotone=True
        )
        assert got.indices.tolist() == [1, 2]
        assert got.data.tolist() == [5, 7]
        assert depth.tolist() == [12]


@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_align_refuses_a_gene_number_outside_the_source(bad, at):
    indices = np.array([0, 2, 4], np.int32)
    indices[at] = bad
    take = np.array([0, 1])
    indptr = np.array([0, 0, 3])
    assert run_align(indptr, indices, np.ones(3, np.float32), take, np.arange(5, dtype=np.int32), 5) == (BAD_INDEX, 1)


@pytest.mark.parametrize("bad", [-1.0, 0.5, np.nan, np.inf, 1e-9])
def test_align_refuses_what_is_no_count_and_only_if_asked(bad):
    arguments = (np.array([0, 2]), np.array([0, 1], np.int32), np.array([1, bad], np.float32), np.array([0]))
    assert run_align(*arguments, np.arange(2, dtype=np.int32), 2) == (NOT_COUNT, 0)
    got, _ = run_align(*arguments, np.arange(2, dtype=np.int32), 2, counts_only=False)
    assert np.array_equal(got.toarray(), np.array([[1, bad]], np.float32), equal_nan=True)


# ------------------------------------------------------------------------------------------------- densify and select


def rows_of(rng, n_rows, n_genes, density=0.3):
    dense = rng.integers(1, 6, (n_rows, n_genes)) * (rng.random((n_rows, n_genes)) < density)
    rows = csr_matrix(dense.astype(np.float32))
    return rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data, dense


@given(
    st.integers(0, 2**32),
    st.integers(0, 5),
    st.integers(1, 40) | st.integers(2000, 2100) | st.integers(4070, 4130),
    st.integers(0, 15),
)
def test_densify_writes_every_gene_and_nothing_else(seed, n_rows, n_genes, at):
    indptr, indices, data, dense = rows_of(np.random.default_rng(seed), n_rows, n_genes)
    memory = np.full(at + n_rows * n_genes + 16, -7, np.float32)
    out = memory[at : at + n_rows * n_genes].reshape(n_rows, n_genes)
    densify(indptr, indices, data, out)
    assert np.array_equal(out, dense)
    assert (memory[:at] == -7).all()
    assert (memory[at + n_rows * n_genes :] == -7).all()


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_densify_given_writes_those_genes_in_that_order(seed, n_genes):
    rng = np.random.default_rng(seed)
    indptr, indices, data, dense = rows_of(rng, 3, n_genes)
    genes = rng.permutation(n_genes)[: rng.integers(0, n_genes + 1)]
    column = np.full(n_genes, -1, np.int32)
    column[genes] = np.arange(len(genes))
    out = np.full((3, len(genes)), -7, np.float32)
    densify_given(indptr, indices, data, column, out)
    assert np.array_equal(out, dense[:, genes])


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_select_largest_takes_the_largest_lower_genes_first(seed, width):
    indptr, indices, data, dense = rows_of(np.random.default_rng(seed), 4, 15)
    genes, values = np.zeros((4, width), np.int32), np.zeros((4, width), np.float32)
    select_largest(indptr, indices, data, genes, values)
    for row in range(4):
        by_value = np.argsort(-dense[row], kind="stable")[: min(width, (dense[row] > 0).sum())]
        expected = np.sort(by_value)
        assert np.array_equal(genes[row], np.pad(expected, (0, width - len(expected)), constant_values=-1))
        assert np.array_equal(values[row], np.pad(dense[row, expected], (0, width - len(expected))))


@pytest.mark.parametrize("width", [1, 7, 40, 99])
@pytest.mark.parametrize(
    "values",
    [
        lambda rng: rng.geometric(0.5, (20, 60)),
        lambda rng: rng.integers(250, 260, (20, 60)),
        lambda rng: rng.integers(0, 2, (20, 60)) * 2.0**24 + 3,
        lambda rng: rng.integers(1, 9, (20, 60)) / 2,
        lambda rng: rng.integers(-3, 4, (20, 60)),
        lambda rng: np.where(rng.random((20, 60)) < 0.02, 2.0**31, 1),
    ],
    ids=["counts", "around the last bin", "large", "fractions", "negative", "few large"],
)
def test_select_largest_is_the_same_with_and_without_a_histogram(values, width):
    values = values(np.random.default_rng(0)).astype(np.float32)
    indptr, indices = np.arange(0, values.size + 1, 60), np.tile(np.arange(60, dtype=np.int32), 20)
    genes, kept = np.zeros((20, width), np.int32), np.zeros((20, width), np.float32)
    select_largest(indptr, indices, values.ravel(), genes, kept)
    expected = np.sort(np.argsort(-values, axis=1, kind="stable")[:, :width], axis=1)
    n = expected.shape[1]
    assert np.array_equal(genes[:, :n], expected)
    assert np.array_equal(kept[:, :n], np.take_along_axis(values, expected, axis=1))
    assert (genes[:, n:] == -1).all()
    assert not kept[:, n:].any()


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6])
def test_select_largest_leaves_out_what_is_no_number_and_never_writes_beyond(width):
    data = np.array([1, np.nan, 3, -np.inf, np.nan], np.float32)
    genes, values = np.full((1, width), 77777, np.int32), np.full((1, width), 77777, np.float32)
    select_largest(np.array([0, 5]), np.arange(5, dtype=np.int32), data, genes, values)
    kept = genes[0][genes[0] >= 0]
    assert set(kept.tolist()) <= {0, 2, 3}
    assert np.array_equal(values[0][genes[0] >= 0], data[kept])
    assert not values[0][genes[0] < 0].any()


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_select_random_takes_expressed_genes_once_in_order(seed, width):
    indptr, indices, data, dense = rows_of(np.random.default_rng(seed), 4, 15)
    genes, values = np.zeros((4, width), np.int32), np.zeros((4, width), np.float32)
    select_random(indptr, indices, data, KEY, np.arange(4), genes, values)
    for row in range(4):
        kept = genes[row][genes[row] >= 0]
        assert len(kept) == min(width, (dense[row] > 0).sum())
        assert (np.diff(kept) > 0).all()
        assert np.array_equal(values[row, : len(kept)], dense[row, kept])
        assert (dense[row, kept] > 0).all()
        assert not values[row, len(kept) :].any()


@given(st.integers(0, 2**63 - 1), st.integers(1, 40))
def test_select_random_is_selection_sampling_with_the_bits_of_the_position(position, width):
    seed, _ = philox(KEY, np.uint64(position), np.uint64(1) << np.uint64(32))
    counters = [np.uint64((int(seed) + j * int(GAMMA)) % 2**64) for j in range(40)]
    ranks = [below(np.uint64(mix(counter)), 40 - j) for j, counter in enumerate(counters)]
    kept = []
    for gene in range(40):
        kept += [gene] if ranks[gene] < width - len(kept) else []
    genes, values = np.zeros((1, width), np.int32), np.zeros((1, width), np.float32)
    select_random(
        np.array([0, 40]),
        np.arange(40, dtype=np.int32),
        np.ones(40, np.float32),
        KEY,
        np.array([position]),
        genes,
        values,
    )
    assert genes[0].tolist() == kept


def test_select_random_takes_every_subset_equally_often():
    n = 20_000
    indptr = np.arange(n + 1, dtype=np.int64) * 5
    indices = np.tile(np.array([1, 3, 4, 8, 9], np.int32), n)
    genes, values = np.zeros((n, 2), np.int32), np.zeros((n, 2), np.float32)
    select_random(indptr, indices, np.ones(5 * n, np.float32), KEY, np.arange(n), genes, values)
    _, counts = np.unique(genes @ [10, 1], return_counts=True)
    assert len(counts) == 10
    assert ((counts - n / 10) ** 2 / (n / 10)).sum() < 33.7  # 9 degrees of freedom; passed by chance once in 10,000


def test_a_random_selection_depends_on_position_and_key_alone():
    indptr, indices, data, _ = rows_of(np.random.default_rng(0), 8, 60, 0.8)
    outs = [np.zeros((8, 10), np.int32) for _ in range(3)]
    values = np.zeros((8, 10), np.float32)
    select_random(indptr, indices, data, KEY, np.arange(100, 108), outs[0], values)
    first = csr_matrix((data, indices, indptr), (8, 60))[3:]
    select_random(
        first.indptr.astype(np.int64), first.indices, first.data, KEY, np.arange(103, 108), outs[1][3:], values[3:]
    )
    assert np.array_equal(outs[0][3:], outs[1][3:])
    select_random(indptr, indices, data, KEY + np.uint64(1), np.arange(100, 108), outs[2], values)
    assert not np.array_equal(outs[0], outs[2])


@given(st.integers(0, 2**32), st.integers(1, 30))
def test_fill_takes_measured_unexpressed_genes_once(seed, width):
    rng = np.random.default_rng(seed)
    measured = rng.random((2, 25)) < 0.8
    group = rng.integers(0, 2, 5).astype(np.int32)
    dense = (rng.random((5, 25)) < 0.2) & measured[group]
    rows = csr_matrix(dense.astype(np.float32))
    indptr, indices = rows.indptr.astype(np.int64), rows.indices.astype(np.int32)
    genes, values = np.zeros((5, width), np.int32), np.zeros((5, width), np.float32)
    select_random(indptr, indices, rows.data, KEY, np.arange(5), genes, values)
    expressed = genes.copy()
    starts = np.concatenate([[0], np.cumsum(measured.sum(axis=1))])
    fill_unexpressed(
        indptr, indices, np.nonzero(measured)[1].astype(np.int32), starts, group, 25, KEY, np.arange(5), genes
    )
    for row in range(5):
        assert np.array_equal(genes[row][expressed[row] >= 0], expressed[row][expressed[row] >= 0])
        filled = genes[row][(expressed[row] < 0) & (genes[row] >= 0)]
        assert measured[group[row], filled].all()
        assert not dense[row, filled].any()
        assert len(np.unique(filled)) == len(filled)
        assert (genes[row] >= 0).sum() == min(width, measured[group[row]].sum())


@pytest.mark.parametrize("width", [3, 9])  # tried at random, and gone through in order
def test_fill_takes_every_free_gene_equally_often(width):
    n = 20_000
    indptr, indices = np.arange(n + 1, dtype=np.int64), np.full(n, 4, np.int32)
    genes = np.full((n, width), -1, np.int32)
    genes[:, 0] = 4
    pool = np.arange(12, dtype=np.int32)
    group = np.zeros(n, np.int32)
    fill_unexpressed(indptr, indices, pool, np.array([0, 12]), group, 12, KEY, np.arange(n), genes)
    counts = np.bincount(genes[:, 1:].ravel(), minlength=12)
    assert counts[4] == 0
    expected = n * (width - 1) / 11
    assert (np.abs(np.delete(counts, 4) - expected) < 5 * np.sqrt(expected)).all()
