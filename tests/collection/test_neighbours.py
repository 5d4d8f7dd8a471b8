"""Neighbours by the graphs of sources, and metacells."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scdataloader.collection.collection import Collection
from scdataloader.collection.neighbours import NeighbourReader, with_metacells
from scdataloader.kernels.rows.combine import add_rows, take_genes, toss
from scdataloader.kernels.rows.nearest import nearest
from scdataloader.store.convert import convert
from scdataloader.testing.data import MemorySource, named_values

GENES = [f"ENSG{i:011d}" for i in range(30)]
EDGES = {
    0: {1: 0.5, 2: 0.0, 0: 0.0, 3: 0.5, 4: 9.0},  # itself, one at distance 0, two at 0.5
    1: {},
    2: {7: 1.0},
    3: {0: 2.0, 9: 1.0, 8: 1.0, 1: 1.0},
    9: {9: 0.0},
}
NEAREST = {0: [2, 1, 3], 1: [-1, -1, -1], 2: [7, -1, -1], 3: [1, 8, 9], 9: [-1, -1, -1]}
DISTANCES = {0: [0.0, 0.5, 0.5], 2: [1.0, -1.0, -1.0], 3: [1.0, 1.0, 1.0], 9: [-1.0, -1.0, -1.0]}


def graph(edges, n):
    """A CSR matrix that keeps stored zeros."""
    cells = [edges.get(cell, {}) for cell in range(n)]
    columns = [to for cell in cells for to in cell]
    values = [value for cell in cells for value in cell.values()]
    return sp.csr_matrix((np.array(values, np.float64), columns, np.cumsum([0, *map(len, cells)])), (n, n))


def adata(edges=None, seed=0):
    """10 cells whose values name row and gene."""
    made = ad.AnnData(sp.csr_matrix(named_values(10, 30, density=0.7, seed=seed)))
    made.var_names = GENES
    made.obs_names = [f"cell{i}-{seed}" for i in range(10)]
    made.obs["kind"] = ["a", "b"] * 5
    if edges is not None:
        made.obsp["distances"] = graph(edges, 10)
    return made


KINDS = ["memory", "h5ad", "zarr", "store", "shuffled"]


def opened(how, tmp_path, *adatas):
    if how == "memory":
        return Collection.open(list(adatas))
    if how in ("h5ad", "zarr"):
        paths = [tmp_path / f"{number}.{how}" for number in range(len(adatas))]
        for path, one in zip(paths, adatas, strict=True):
            (one.write_h5ad if how == "h5ad" else one.write_zarr)(path)
        return Collection.open(paths)
    layout = "source" if how == "store" else "shuffled"
    store = convert(list(adatas), tmp_path / "a.cells", layout=layout, obsp=["distances"], n_processes=1)
    return Collection.open(store.path)


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_neighbours_are_the_nearest_of_the_graph_in_the_same_source(tmp_path, how):
    other = {cell: {to: 2 * value + 1 for to, value in edges.items()} for cell, edges in EDGES.items()}
    given = [adata(EDGES), adata(other, seed=1)]
    collection = opened(how, tmp_path, *given)
    names = collection.obs_names(np.arange(20))
    row = {name: at for at, name in enumerate(names)}
    reader = NeighbourReader(collection=collection, k=3)
    reader.check()
    asked = np.array([row[f"cell{cell}-{seed}"] for seed in (1, 0) for cell in (3, 0, 9, 0, 2, 1)])
    found = reader.read(reader.locate(asked))
    assert found.row.shape == found.distance.shape == found.depth.shape == (12, 3)
    rows = found.x.to_scipy().toarray().reshape(12, 3, 30)
    for at, name in enumerate(names[asked]):
        cell, seed = int(name[4]), int(name[-1])
        expected = NEAREST.get(cell)
        if how == "shuffled":  # among equals the lower row of the store
            assert {*found.row[at]} == {row.get(f"cell{to}-{seed}", -1) for to in expected}
        else:
            assert [names[to] if to >= 0 else -1 for to in found.row[at]] == [
                f"cell{to}-{seed}" if to >= 0 else -1 for to in expected
            ]
        if cell in DISTANCES and seed == 0:
            assert found.distance[at].tolist() == DISTANCES[cell]
        for place, to in enumerate(found.row[at]):
            own = given[seed][names[to]].X.toarray()[0] if to >= 0 else np.zeros(30)
            np.testing.assert_array_equal(rows[at, place], own)
            assert found.depth[at, place] == own.sum()
    for start, stop in ((0, 0), (0, 5), (3, 12)):
        part, whole = reader.read(reader.locate(asked).slice(start, stop)), found.slice(start, stop)
        for field in ("row", "distance", "depth"):
            np.testing.assert_array_equal(getattr(part, field), getattr(whole, field))
        np.testing.assert_array_equal(part.x.to_scipy().toarray(), whole.x.to_scipy().toarray())
    assert len(reader.read(reader.locate(asked[:0])).row) == 0


def test_a_neighbour_outside_of_the_selection_is_left_out(tmp_path):
    (tmp_path / "a").mkdir()
    adata(EDGES).write_h5ad(tmp_path / "a.h5ad")
    collection = Collection.open(tmp_path / "a.h5ad", where={"kind": "b"})  # cells 1, 3, 5, 7, 9
    reader = NeighbourReader(collection=collection, k=3)
    found = reader.read(reader.locate(np.array([1, 0])))
    assert found.row.tolist() == [[0, 4, -1], [-1, -1, -1]]  # of cell 3: cells 1 and 9, not 8
    assert found.distance.tolist() == [[1, 1, -1], [-1, -1, -1]]
    assert found.x.indptr[2] == found.x.indptr[-1]


def test_sources_without_a_graph_are_refused_by_name():
    class Plain:
        """The members of `Source` alone."""

        def __init__(self, source):
            for member in ("name", "n_obs", "fingerprint", "var", "obs_columns", "obs", "read"):
                setattr(self, member, getattr(source, member))

    source = MemorySource("with", named_values(10, 30), GENES, matrices={"obsp/distances": graph(EDGES, 10)})
    NeighbourReader(collection=Collection.open(source), k=6).check()
    none = MemorySource("none", named_values(9, 30), GENES, matrices={"obsm/pca": np.zeros((9, 2), np.float32)})
    with pytest.raises(KeyError, match=r"none has no graph obsp\['distances'\], which neighbours=6 .*obsm/pca"):
        NeighbourReader(collection=Collection.open([source, none]), k=6).check()
    plain = Plain(MemorySource("plain", named_values(8, 30), GENES))
    with pytest.raises(KeyError, match=r"plain has no graph .* kind of source"):
        NeighbourReader(collection=Collection.open([source, plain]), k=6).check()


# ------------------------------------------------------------------------------------------------------------- kernels


@settings(max_examples=200)
@given(
    edges=st.lists(
        st.dictionaries(st.integers(0, 8), st.sampled_from([0.0, 0.5, 1.0, 2.0, float("nan"), float("inf")])),
        min_size=1,
        max_size=6,
    ),
    k=st.integers(1, 5),
)
def test_nearest_is_sorting_by_distance_and_row(edges, k):
    rows = np.arange(len(edges))[::-1].copy()
    cells = [edges[row] for row in rows]
    indptr = np.cumsum([0, *map(len, cells)]).astype(np.int64)
    columns = np.array([to for cell in cells for to in cell], np.int32)
    values = np.array([value for cell in cells for value in cell.values()], np.float32)
    found, distances = nearest(indptr, columns, values, rows, k)
    for at, row in enumerate(rows):
        expected = sorted((d, to) for to, d in edges[row].items() if to != row and not np.isnan(d))[:k]
        pads = [(-1, -1)] * (k - len(expected))
        assert list(zip(distances[at], found[at], strict=True)) == [*expected, *pads]


@settings(max_examples=100)
@given(seed=st.integers(0, 1000), k=st.integers(0, 4))
def test_sums_and_genes_are_those_of_dense_rows(seed, k):
    rng = np.random.default_rng(seed)
    cells, others = (sp.csr_matrix(rng.integers(0, 9, (n, 70)) * (rng.random((n, 70)) < 0.2)) for n in (5, 5 * k))
    arrays = [(one.indptr.astype(np.int64), one.indices, one.data.astype(np.float32)) for one in (cells, others)]
    edges = arrays[1][0][:: max(k, 1)] if k else np.zeros(6, np.int64)
    starts = np.concatenate([[0], np.cumsum(np.diff(cells.indptr) + np.diff(edges))])
    genes, values, sizes = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32), np.empty(5, np.int64)
    add_rows(*arrays[0], edges, *arrays[1][1:], 70, starts, genes, values, sizes)
    dense = cells.toarray() + others.toarray().reshape(5, k, 70).sum(axis=1)
    for row in range(5):
        used = slice(starts[row], starts[row] + sizes[row])
        assert (np.diff(genes[used]) > 0).all()
        found = np.zeros(70)
        found[genes[used]] = values[used]
        np.testing.assert_array_equal(found, dense[row])
    if k:
        chosen = np.stack([rng.permutation(70)[:12] for _ in range(5)]).astype(np.int32)
        chosen[:, 9:] = -1
        out = np.full((5, k, 12), np.nan, np.float32)
        take_genes(*arrays[1], chosen, 70, out)
        wanted = np.take_along_axis(others.toarray().reshape(5, k, 70), chosen[:, None, :], axis=2)
        np.testing.assert_array_equal(out, np.where(chosen[:, None, :] < 0, 0, wanted))


# ----------------------------------------------------------------------------------------------------------- metacells


def test_a_metacell_is_the_sum_of_a_cell_and_its_neighbours():
    given = adata(EDGES)
    collection = Collection.open([given])
    reader = NeighbourReader(collection=collection, k=3)
    cells = collection.cells(np.array([3, 1, 0]))
    made = with_metacells(cells, reader, 1.0)
    dense = given.X.toarray()
    sums = [dense[[3, 1, 8, 9]].sum(axis=0), dense[1], dense[[0, 2, 1, 3]].sum(axis=0)]
    np.testing.assert_array_equal(made.x.to_scipy().toarray(), sums)
    np.testing.assert_array_equal(made.depth, np.sum(sums, axis=1))
    assert made.is_meta.tolist() == [True, False, True]  # cell 1 has no neighbours
    same = with_metacells(cells, reader, 0.0)
    np.testing.assert_array_equal(same.x.to_scipy().toarray(), cells.x.to_scipy().toarray())
    assert not same.is_meta.any()


def test_which_cells_become_metacells_depends_on_key_and_position_alone():
    collection = Collection.open([adata({cell: {(cell + 1) % 10: 1.0} for cell in range(10)})])
    reader, rows = NeighbourReader(collection=collection, k=2), np.arange(200) % 10
    cells = collection.cells(rows)
    made = with_metacells(cells, reader, 0.3)
    assert 30 < made.is_meta.sum() < 90
    for start, stop in ((0, 7), (7, 8), (8, 200)):
        part, whole = with_metacells(cells.slice(start, stop), reader, 0.3), made.slice(start, stop)
        np.testing.assert_array_equal(part.is_meta, whole.is_meta)
        np.testing.assert_array_equal(part.x.to_scipy().toarray(), whole.x.to_scipy().toarray())
    assert abs(toss(np.uint64(5), np.arange(100_000), 0.3).mean() - 0.3) < 0.01


def test_a_graph_of_floats_is_read_as_it_is_stored():
    given = adata({cell: {to: (cell * 10 + to) / 7 for to in range(10)} for cell in range(10)})
    reader = NeighbourReader(collection=Collection.open([given]), k=6)
    found = reader.read(reader.locate(np.arange(10)))
    frame = pd.DataFrame(given.obsp["distances"].toarray().astype(np.float32))
    for cell in range(10):
        expected = frame.loc[cell].drop(cell).nsmallest(6)
        assert found.row[cell].tolist() == expected.index.tolist()
        np.testing.assert_array_equal(found.distance[cell], expected.to_numpy())
