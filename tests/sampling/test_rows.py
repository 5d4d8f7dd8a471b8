"""Sets of rows equal arrays of them, whatever they are kept in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.sampling import rows as room
from scdataloader.sampling import splits
from scdataloader.sampling.rows import Rows
from scdataloader.sampling.splits import Split, make_splits

MASKS = st.one_of(
    st.lists(st.booleans(), min_size=1, max_size=300),
    # runs, so that some words are full and others empty
    st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=1, max_size=8).map(
        lambda runs: [value for length, value in runs for _ in range(length)]
    ),
)


@pytest.fixture(params=[0, 1 << 22], ids=["bits", "array"])
def small(request, monkeypatch):
    monkeypatch.setattr(room, "_SMALL", request.param)
    monkeypatch.setattr(room, "STEP", 64)
    return request.param


@given(mask=MASKS, seed=st.integers(0, 9))
def test_a_set_is_the_array_of_its_rows(mask, seed):
    for limit in (0, 1 << 22):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(room, "_SMALL", limit)
            patch.setattr(room, "STEP", 64)
            is_in = np.array(mask)
            found, expected = Rows(len(is_in), is_in), np.flatnonzero(is_in)
            assert len(found) == len(expected)
            assert found.is_all == bool(is_in.all())
            assert np.array_equal(np.asarray(found), expected)
            assert np.asarray(found).dtype == np.int64
            places = np.random.default_rng(seed).integers(0, max(1, len(expected)), 200 if len(expected) else 0)
            assert np.array_equal(found.take(places), expected[places])
            assert np.array_equal(found.mask(0, len(is_in)), is_in)
            of_rows = Rows.of(expected, len(is_in))
            assert of_rows.digest == found.digest
            assert np.array_equal(np.asarray(of_rows), expected)


def test_sets_of_a_large_table_are_found_by_their_directory():
    is_in = np.zeros((1 << 22) + 77, np.bool_)
    is_in[1000:900_000] = True  # a run, a large gap, and single rows
    is_in[-70_000::3] = True
    is_in[-1] = True
    found, expected = Rows(len(is_in), is_in), np.flatnonzero(is_in)
    assert found._array is None
    places = np.concatenate([np.arange(0, len(expected), 97), [0, 898_999, 899_000, len(expected) - 1]])
    assert np.array_equal(found.take(places), expected[places])


def test_digests_tell_sets_apart():
    masks = [[True, True], [True, False], [False, True], [True, True, False], [True, True, True]]
    assert len({Rows(len(mask), np.array(mask)).digest for mask in masks}) == len(masks)


@given(n=st.integers(30, 200), val=st.floats(0.05, 0.4), test=st.floats(0.05, 0.4), seed=st.integers(0, 3))
def test_a_split_by_cell_is_the_same_in_steps(n, val, test, seed):
    whole = make_splits(n, Split(val=val, test=test, seed=seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "_STEP", 7)
        stepped = make_splits(n, Split(val=val, test=test, seed=seed))
    assert stepped.record() == whole.record()
    keys = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(n)
    n_val = int(np.floor(val * n + 0.5))
    assert whole.val.tolist() == np.sort(np.argsort(keys)[:n_val]).tolist()
