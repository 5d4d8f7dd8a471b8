"""The kernels of ranked and masked tokens against NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scdataloader.kernels.tokens.masks import IGNORED, mask_tokens
from scdataloader.kernels.tokens.ranks import attend, rank_rows

N_GENES = 90
PAD = 7
VALUES = st.sampled_from([1.0, 2.0, 3.0, 4.0, 1e30, 2e-30, 0.1, np.inf, 0.0, -1.0, np.nan, 16777217.0])
# Divisors that make x / divisor differ in float64 only, make it equal, or leave the gene out.
DIVISORS = st.sampled_from([1.0, 0.5, 2.0, 1 + 2**-52, 1 - 2**-53, 1 + 2**-40, 1e-300, 3e300, 0.75, np.inf])


def ranked(data, genes, divisor):
    """Genes by falling x / divisor in float64, then by number."""
    with np.errstate(all="ignore"):
        values = data.astype(np.float64) / divisor[genes]
    counts = values > 0
    return genes[counts][np.lexsort((genes[counts], -values[counts]))]


def rows_of(values):
    """CSR arrays of a dense array in which NaN stands for no entry."""
    stored = ~np.isnan(values)
    indptr = np.concatenate([[0], np.cumsum(stored.sum(axis=1))])
    return indptr, np.nonzero(stored)[1].astype(np.uint32), values[stored].astype(np.float32)


def check(indptr, indices, data, divisor, which, room):
    token = np.arange(100, 100 + divisor.shape[1])
    out, counts = np.full((len(indptr) - 1, room + 3), -5), np.zeros(len(indptr) - 1, np.int64)
    rank_rows(indptr, indices, data, divisor, which, token, 2, room, PAD, out, counts)
    for row in range(len(out)):
        some = slice(indptr[row], indptr[row + 1])
        want = token[ranked(data[some], indices[some], divisor[which[row]])][:room]
        assert counts[row] == len(want)
        assert out[row].tolist() == [-5, -5, *want, *[PAD] * (room + 1 - len(want))]


@settings(max_examples=60)
@given(st.data())
def test_genes_are_ranked_by_value_then_by_number(data):
    n_rows = data.draw(st.integers(1, 4))
    drawn = data.draw(st.lists(st.tuples(VALUES, st.booleans()), min_size=n_rows * N_GENES, max_size=n_rows * N_GENES))
    values = np.array([value if is_stored else np.nan for value, is_stored in drawn]).reshape(n_rows, N_GENES)
    divisor = np.array(data.draw(st.lists(DIVISORS, min_size=2 * N_GENES, max_size=2 * N_GENES))).reshape(2, N_GENES)
    which = np.array(data.draw(st.lists(st.integers(0, 1), min_size=n_rows, max_size=n_rows)), np.int32)
    check(*rows_of(values), divisor, which, data.draw(st.integers(1, N_GENES + 1)))


@pytest.mark.parametrize("room", [1, 37, 2_048])
@pytest.mark.parametrize("spread", [1e-16, 1e-9, 1.0, 300.0])
def test_many_values_of_one_key_are_ranked_too(spread, room):
    """Values that differ by as little as float64 can tell, or over all of its range, in long rows."""
    rng = np.random.default_rng(0)
    n_genes, n_rows = 5_000, 6
    divisor = np.array([1 + spread * rng.random(n_genes), 10.0 ** (spread * rng.uniform(-1, 1, n_genes))])
    values = np.where(rng.random((n_rows, n_genes)) < 0.4, rng.geometric(0.5, (n_rows, n_genes)), np.nan)
    values[1] = np.nan
    values[2, 1:] = np.nan
    values[3] = 1.0
    check(*rows_of(values), divisor, np.array([0, 0, 0, 0, 1, 1], np.int32), room)


def test_rows_attend_to_their_tokens():
    out = np.full((3, 4), 9)
    attend(np.array([0, 2, 4]), out)
    assert out.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


def masked(rates, counts, first=1, key=5, position=None, dictionary=(0, 1, 2, 50, 51)):
    ids = np.tile(np.arange(1000, 1000 + 64), (len(counts), 1))
    before, labels = ids.copy(), np.zeros_like(ids)
    position = np.arange(len(counts)) if position is None else position
    mask_tokens(ids, first, counts, np.uint64(key), position, rates, 9, np.array(dictionary), labels)
    return before, ids, labels


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_only_genes_are_masked_and_labels_restore_them(first):
    counts = np.arange(400) % (64 - first + 1)
    before, ids, labels = masked((0.5, 0.5, 0.3), counts, first)
    place = np.arange(64)
    can_be = (place >= first) & (place < first + counts[:, None])
    is_masked = labels != IGNORED
    assert not (is_masked & ~can_be).any()
    assert is_masked[can_be].any(axis=0)
    assert np.array_equal(labels[is_masked], before[is_masked])
    assert np.array_equal(ids[~is_masked], before[~is_masked])
    changed = ids[is_masked & (ids != before)]
    assert set(changed.tolist()) == {9, 0, 1, 2, 50, 51}
    everywhere = masked((1.0, 1.0, 0.0), counts, first)
    assert np.array_equal(everywhere[1] == 9, can_be)


def test_shares_are_those_requested():
    n = 4_000
    before, ids, labels = masked((0.15, 0.8, 0.1), np.full(n, 60), dictionary=range(20_000, 20_100))
    is_masked = labels != IGNORED
    for what, share, total in (
        (is_masked[:, 1:61], 0.15, n * 60),
        (ids[is_masked] == 9, 0.8, is_masked.sum()),
        (ids[is_masked] >= 20_000, 0.1, is_masked.sum()),
        (ids[is_masked] == before[is_masked], 0.1, is_masked.sum()),
    ):
        assert abs(what.sum() - share * total) < 4.5 * np.sqrt(total * share * (1 - share))
    by_place = is_masked[:, 1:61].mean(axis=0)
    assert np.abs(by_place - 0.15).max() < 4.5 * np.sqrt(0.15 * 0.85 / n)
    for distance in (1, 2, 3):  # three places share a word
        both = (is_masked[:, 1 : 61 - distance] & is_masked[:, 1 + distance : 61]).mean()
        assert abs(both - 0.15**2) < 0.0015
    counts = np.bincount(ids[ids >= 20_000] - 20_000, minlength=100)
    assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())


def test_masks_depend_on_key_position_and_place_only():
    counts = np.full(5, 60)
    _, ids, labels = masked((0.3, 0.5, 0.3), counts)
    for row in range(5):
        _, one, label = masked((0.3, 0.5, 0.3), counts[:1], position=np.array([row]))
        assert np.array_equal(ids[row], one[0])
        assert np.array_equal(labels[row], label[0])
    _, shorter, _ = masked((0.3, 0.5, 0.3), counts - 20)
    assert np.array_equal(ids[:, :41], shorter[:, :41])
    assert not np.array_equal(labels, masked((0.3, 0.5, 0.3), counts, key=6)[2])
    assert len({row.tobytes() for row in labels}) == 5
