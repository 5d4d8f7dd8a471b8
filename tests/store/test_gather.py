"""Some cells of some sources of a store, as a collection: the same as those of the sources themselves."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scdataloader import Collection
from scdataloader.genes.alignment import GeneAlignment, align
from scdataloader.protocols import SourceSelection
from scdataloader.store.convert import convert
from tests.store.conversions import counted

SIZES = {"a": 17, "b": 9, "c": 12}
LAYOUTS = ("source", "shuffled", "grouped:kind")


@pytest.fixture(scope="module")
def made():
    """Sources whose genes are not all the same, and whose last column says which cell it is."""
    return [counted(name, n, 20 + seed, seed) for seed, (name, n) in enumerate(SIZES.items())]


@pytest.fixture(scope="module")
def stores(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    more = {"n_processes": 1, "cells_per_shard": 7, "progress": False}
    return {layout: convert(made, folder / f"{i}.cells", layout=layout, **more) for i, layout in enumerate(LAYOUTS)}


def opened(chosen, vocabulary=None):
    return Collection(*align(chosen, GeneAlignment(vocabulary=vocabulary, organisms="human", min_overlap=0)))


def cells_of(collection):
    """Source and row there of each cell."""
    names = np.array([part.source.name for part in collection.parts])
    of_source = names[collection.locate(np.arange(len(collection))).source]
    return list(zip(of_source.tolist(), collection.obs(["row"])["row"].tolist(), strict=True))


some = st.sets(st.integers(0, min(SIZES.values()) - 1), min_size=1).map(lambda rows: np.array(sorted(rows), np.int64))


@settings(max_examples=40)
@given(
    layout=st.sampled_from(LAYOUTS),
    rows=st.lists(st.none() | some, min_size=3, max_size=3),
    which=st.sampled_from([[0], [2], [0, 1], [0, 2], [2, 1], [0, 1, 2]]),
    seed=st.integers(0, 5),
)
def test_what_is_read_is_what_the_sources_have(made, stores, layout, rows, which, seed):
    chosen = [SourceSelection(source=stores[layout].sources[i], rows=rows[i]) for i in which]
    collection = opened(chosen, [f"ENSG{i:011d}" for i in range(30)])
    found = cells_of(collection)
    assert sorted(found) == sorted(
        (one.source.name, row) for one in chosen for row in _of(one.source.obs(["row"])["row"], one.rows)
    )
    by_name = {one.name: one for one in made}
    dense = {
        name: pd.DataFrame(one.x.toarray(), columns=one.var.index).reindex(
            columns=collection.vocabulary.ids, fill_value=0
        )
        for name, one in by_name.items()
    }
    draws = np.random.default_rng(seed).integers(0, len(collection), 40)
    read = collection.cells(draws)
    expected = np.stack([dense[found[draw][0]].iloc[found[draw][1]] for draw in draws])
    np.testing.assert_array_equal(read.x.to_scipy().toarray(), expected)
    np.testing.assert_array_equal(read.depth, [by_name[found[d][0]].x[found[d][1]].sum() for d in draws])
    assert [collection.parts[part].source.name for part in read.source] == [found[draw][0] for draw in draws]
    np.testing.assert_array_equal(collection.nnz(), [by_name[name].x[row].count_nonzero() for name, row in found])
    kinds = collection.obs(["kind"])["kind"].astype(object)
    pd.testing.assert_series_equal(
        kinds.fillna(""), pd.Series([by_name[n].table["kind"].iloc[r] for n, r in found], name="kind").fillna("")
    )
    again = pickle.loads(pickle.dumps(collection))
    np.testing.assert_array_equal(again.cells(draws).x.data, read.x.data)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_a_choice_are_in_the_order_of_the_store(stores, layout):
    store = stores[layout]
    half = [SourceSelection(source=source, rows=np.arange(0, source.n_obs, 2)) for source in store.sources]
    whole, some = cells_of(opened([SourceSelection(source=source) for source in store.sources])), cells_of(opened(half))
    assert some == [cell for cell in whole if cell in set(some)]


def test_another_order_of_the_same_cells_is_another_collection(stores):
    """As it gives the same draws other cells, no run may be resumed on it."""
    chosen = [[SourceSelection(source=given.sources[i]) for i in (0, 2)] for given in stores.values()]
    prints = [opened(some).fingerprint for some in chosen]
    assert len(set(prints)) == 3


def test_small_reads_of_a_choice_are_cheap(stores):
    source = stores["shuffled"].sources[1]
    assert opened([SourceSelection(source=source, rows=np.arange(3))]).read_cost.is_flat


def _of(values, rows):
    return values.tolist() if rows is None else values.iloc[rows].tolist()
