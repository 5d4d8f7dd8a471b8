"""The order of cells in a store: shuffled by a seed, grouped by a column, and appended to in either."""

import re
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scdataloader.errors import StoreFormatError
from scdataloader.kernels.records.encode import encode_rows, most_words
from scdataloader.kernels.records.format import restamp_records
from scdataloader.store.reader import Store
from scdataloader.store.writing import tasks
from tests.store.conversions import Stored, check, counted, tables, tree
from tests.store.conversions import here as convert_here

here = partial(convert_here, cells_per_shard=7)


def order(store):
    """(source, row in the source) of every cell, in the order of the store."""
    rows = np.full(store.n_obs, -1)
    for source in store.sources:
        rows[source.rows] = source.obs(["row"])["row"]
    return list(zip(store.source_of_cell.tolist(), rows.tolist(), strict=True))


def labels(store, made):
    """The label of every cell, in the order of the store; "" where it is missing."""
    return [made[source].table["kind"].astype(object).fillna("").iloc[row] for source, row in order(store)]


def test_shuffled_cells_are_all_there_in_an_order_that_the_seed_gives(tmp_path, out):
    made = [counted("a", 25, 30, 0), counted("b", 14, 20, 1)]
    store = here(made, out, layout="shuffled")
    check(store, made)
    assert store.manifest.layout == "shuffled"
    assert all(shard.source is None for shard in store.manifest.shards)
    found = order(store)
    everything = [(source, row) for source, one in enumerate(made) for row in range(one.n_obs)]
    assert sorted(found) == everything
    assert found != everything
    assert tree(here(made, tmp_path / "again.cells", layout="shuffled").path) == tree(out)
    assert order(here(made, tmp_path / "other.cells", layout="shuffled", seed=1)) != found
    # neither the processes nor the sizes of shards decide on the order
    assert order(here(made, tmp_path / "large.cells", layout="shuffled", cells_per_shard=100)) == found


def test_shuffled_cells_of_a_source_are_spread_evenly(out):
    made = [counted("a", 600, 5, 0), counted("b", 200, 5, 1)]
    found = np.array([source for source, _ in order(here(made, out, layout="shuffled", cells_per_shard=100))])
    shares = found.reshape(8, 100).sum(1)
    assert np.abs(shares - 25).max() < 20


def test_grouped_cells_lie_together_in_their_old_order(out):
    made = [counted("a", 25, 30, 0), counted("b", 14, 20, 1)]
    store = here(made, out, layout="grouped:kind")
    check(store, made)
    assert store.manifest.layout == "grouped:kind"
    found = labels(store, made)
    assert found == sorted(found, key=lambda label: (label == "", label))
    assert len(set(found)) == 4
    for label in set(found):
        cells = [cell for cell, own in zip(order(store), found, strict=True) if own == label]
        assert cells == sorted(cells)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([10, 9, 2, 10], [9, 2, 1], [6, 2, 5, 1, 4, 0, 3]),
        ([1.5, np.nan, -1.0, 7], [np.nan, 2.0, 1.5], [2, 0, 6, 5, 3, 1, 4]),
        ([True, False, True, False], [False, True, False], [1, 3, 4, 6, 0, 2, 5]),
        (["b", None, "B", "a"], pd.Categorical(["c", "a", "b"], categories=["c", "b", "a"]), [2, 3, 5, 0, 6, 4, 1]),
        (["2", "10", "1", "x"], [10, 2, 1], [2, 6, 4, 1, 5, 0, 3]),
    ],
    ids=["numbers", "missing", "booleans", "text", "numbers and text"],
)
def test_labels_of_any_kind_have_an_order(out, first, second, expected):
    made = [counted("a", 4, 30, 0), counted("b", 3, 20, 1)]
    for one, column in zip(made, (first, second), strict=True):
        one.table = one.table.assign(label=column)
    store = here(made, out, layout="grouped:label")
    check(store, made)
    found = [row + 4 * source for source, row in order(store)]
    if first[0] == "2":  # the text "10" and the number 10 are labels of their own, next to each other
        assert {tuple(sorted(found[i : i + 2])) for i in range(0, 6, 2)} == {(2, 6), (1, 4), (0, 5)}
    else:
        assert found == expected


def test_grouping_by_a_column_that_a_source_lacks(out):
    made = [counted("a", 4, 30, 0), counted("b", 3, 20, 1)]
    made[0].table = made[0].table.assign(donor="d")
    made[0].__post_init__()
    with pytest.raises(KeyError, match="b has no obs column 'donor'"):
        here(made, out, layout="grouped:donor")
    assert not out.exists()


@pytest.mark.parametrize("layout", ["shuffled", "grouped:kind"])
def test_appended_cells_are_ordered_among_themselves(out, layout):
    made = [counted("a", 15, 30, 0), counted("b", 14, 20, 1), counted("c", 9, 20, 1)]
    before = order(here(made[:1], out, layout=layout))
    content = {name: bytes_ for name, bytes_ in tree(out).items() if name != "manifest.json"}
    store = here(made[1:], out, append=True)
    check(store, made)
    assert content.items() <= tree(out).items()
    found = order(store)
    assert found[:15] == before
    assert sorted(found[15:]) == [(1, row) for row in range(14)] + [(2, row) for row in range(9)]
    if layout == "grouped:kind":
        new = labels(store, made)[15:]
        assert new == sorted(new, key=lambda label: (label == "", label))
    else:
        assert found[15:] != sorted(found[15:])


@pytest.mark.parametrize("append", [False, True])
def test_ordering_goes_on_where_it_stopped(tmp_path, out, monkeypatch, append):
    made = [counted("a", 15, 30, 0), counted("b", 14, 20, 1), counted("c", 3, 5, 2)]
    for folder in (out, tmp_path / "whole.cells"):
        here(made[2:], folder, layout="shuffled") if append else None
    expected = tree(here(made[:2], tmp_path / "whole.cells", layout="shuffled", append=append).path)
    written = []

    def stops(task):
        if len(written) == 3:
            raise OSError("enough")
        written.append(task.path)
        run(task)

    run = tasks.run_task
    with monkeypatch.context() as patched:
        patched.setattr(tasks, "run_task", lambda task: stops(task) if _orders(task) else run(task))
        with pytest.raises(OSError, match="enough") as stopped:
            here(made[:2], out, layout="shuffled", append=append)
    assert f"5 of 5 shards are finished and kept in {out}/unordered" in stopped.value.__notes__[0]
    if append:
        assert [source.name for source in Store.open(out).sources] == ["c"]
    else:
        with pytest.raises(StoreFormatError, match="is not a store"):
            Store.open(out)
    stamps = {path: (out / path).stat().st_mtime_ns for path in written}
    here(made[:2], out, layout="shuffled", append=append)
    assert {path: (out / path).stat().st_mtime_ns for path in written} == stamps
    assert tree(out) == expected


def _orders(task):
    return type(task).__name__ in ("CopyCells", "SortObs")


def test_a_damaged_cell_is_not_copied(out, monkeypatch):
    made = [counted("a", 15, 30, 0, mapped=False)]

    def damage(task):
        if type(task).__name__ == "CopyCells" and not damaged:
            damaged.append(True)
            path = task.unordered / "shards" / "00001.cells"
            content = bytearray(path.read_bytes())
            content[40] ^= 1
            path.write_bytes(content)
        run(task)

    run, damaged = tasks.run_task, []
    with monkeypatch.context() as patched:
        patched.setattr(tasks, "run_task", damage)
        with pytest.raises(StoreFormatError, match=r"unordered/shards/00001.cells is damaged at cell 0; delete it"):
            here(made, out, layout="shuffled")
    (out / "unordered" / "shards" / "00001.cells").unlink()
    check(here(made, out, layout="shuffled"), made)


@given(data=st.data())
@settings(max_examples=30)
def test_moved_records_are_those_that_would_have_been_written_there(data):
    """As bytes: the same as encoding the cells in the new order."""
    n_cells, n_genes = data.draw(st.integers(1, 12)), data.draw(st.sampled_from([3, 900]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    dense = rng.geometric(0.001, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.2)
    first = data.draw(st.integers(0, 1 << 40))
    taken = np.array(data.draw(st.lists(st.integers(0, n_cells - 1), max_size=9)), np.int64)

    def encoded(x, first_cell):
        x = sp.csr_matrix(x)
        words = np.zeros(most_words(x.shape[0], x.nnz), np.uint64)
        offsets, sizes = np.empty(x.shape[0], np.int64), np.empty(x.shape[0], np.uint32)
        rank = np.arange(n_genes, dtype=np.int32)
        bits = x.data.astype(np.uint32)
        n = encode_rows(x.indptr.astype(np.int64), x.indices, bits, rank, False, first_cell, words, offsets, sizes)
        return words[:n], np.append(offsets, 8 * n)

    words, offsets = encoded(dense, 0)
    moved = np.concatenate([words[:0], *(words[offsets[i] // 8 : offsets[i + 1] // 8] for i in taken)])
    expected, places = encoded(dense[taken].reshape(-1, n_genes), first)
    found = moved.copy()
    assert restamp_records(found, places[:-1], np.diff(places), taken, first) == -1
    np.testing.assert_array_equal(found, expected)
    if len(taken):
        moved[rng.integers(len(moved))] ^= np.uint64(1) << np.uint64(rng.integers(64))
        assert restamp_records(moved, places[:-1], np.diff(places), taken, first) >= 0


def test_a_source_without_cells_among_others(out):
    obs, var = tables(0, 6, 0)
    made = [Stored("none", sp.csr_matrix((0, 6), dtype=np.float32), var, obs), counted("a", 9, 6, 1)]
    for layout in ("shuffled", "grouped:kind"):
        check(here(made, out, layout=layout), made)
        shutil.rmtree(out)


def test_a_shuffled_store_names_the_row_that_each_cell_was_in(out):
    made = [counted("a", 15, 30, 0)]
    made[0].table = made[0].table.assign(row=np.arange(15)[::-1])
    store = here(made, out, layout="shuffled")
    frame = store.sources[0].obs_table.read()
    np.testing.assert_array_equal(frame["__row__"], 14 - frame["row"])
    assert "__row__" not in store.sources[0].obs_columns
    assert re.fullmatch(r"\d{5}\.parquet", next((out / "obs").iterdir()).name)
