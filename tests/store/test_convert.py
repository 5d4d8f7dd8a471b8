"""Conversion: what goes into a store comes out of it, to the last bit."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scdataloader.collection.collection import Collection
from scdataloader.errors import NotCountsError, StoreFormatError
from scdataloader.protocols import OpenOptions
from scdataloader.sources import open_source
from scdataloader.sources.locate import open_sources
from scdataloader.store.export import to_anndata
from scdataloader.testing import MemorySource, named_values
from tests.sources.source_files import H5_COMPRESSIONS, coordinates, make, stored_as, write_h5ad, write_zarr
from tests.store.conversions import Stored, check, counted, here, tables, tree, write_files

LARGEST = (1 << 32) - 1


DTYPES = ("u1", "i2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")


@st.composite
def matrices(draw, dtypes, n_genes):
    """Any counts that the dtype can hold, up to 2^32 - 1; any genes, in any order, some of them twice."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    most = LARGEST if dtype.kind == "f" else min(LARGEST, int(np.iinfo(dtype).max))
    most = {2: 2048, 4: 1 << 24}.get(dtype.itemsize, most) if dtype.kind == "f" else most
    value = st.one_of(st.integers(0, min(most, 300)), st.sampled_from([0, min(most, 65_536), most]))
    row = st.lists(st.tuples(st.integers(0, n_genes - 1), value), max_size=12)
    rows = draw(st.lists(row, min_size=1, max_size=9))
    if not draw(st.booleans()):  # genes that are there once
        rows = [list(dict(row).items()) for row in rows]
    else:  # sums that fit
        rows = [[(gene, min(value, most // 16)) for gene, value in row] for row in rows]
    indptr = np.cumsum([0, *map(len, rows)])
    genes = np.array([gene for row in rows for gene, _ in row], np.int32)
    values = np.array([value for row in rows for _, value in row], np.int64).astype(dtype)
    if dtype.itemsize == 2 and dtype.kind == "f":
        values = values.astype(np.float32)  # as sources give them
    return sp.csr_matrix((values, genes, indptr), (len(rows), n_genes))


@st.composite
def sources(draw):
    n_genes = draw(st.sampled_from([1, 40, 2000]))
    made = []
    for number in range(draw(st.integers(1, 3))):
        x = draw(matrices(DTYPES, n_genes))
        obs, var = tables(x.shape[0], n_genes, draw(st.integers(0, 1)))
        made.append(Stored(f"s{number}", x, var, obs, mapped=draw(st.booleans())))
    return made


@given(made=sources(), layout=st.sampled_from(["source", "shuffled", "grouped:kind"]), per_shard=st.integers(1, 20))
@settings(max_examples=60)
def test_every_source_comes_back_from_every_layout(tmp_path_factory, made, layout, per_shard):
    folder = tmp_path_factory.mktemp("law")
    check(here(made, folder / "a.cells", layout=layout, cells_per_shard=per_shard), made)
    shutil.rmtree(folder)


@given(data=st.data(), appended=st.booleans())
@settings(max_examples=20)
def test_any_float32_comes_back(tmp_path_factory, data, appended):
    folder = tmp_path_factory.mktemp("law")
    bits = data.draw(st.lists(st.integers(0, LARGEST), min_size=6, max_size=40))
    values = np.array(bits, np.uint32).view(np.float32)
    x = sp.csr_matrix((values, np.arange(len(bits), dtype=np.int32), [0, 2, 2, len(bits)]), (3, 50))
    obs, var = tables(3, 50, 0)
    made = [Stored("floats", x, var, obs), counted("counts", 4, 50, 1)]
    store = here(made[: 2 - appended], folder / "a.cells", values="any")
    if appended:
        store = here(made[1:], folder / "a.cells", values="any", append=True)
    check(store, made)
    assert {source.counts for source in store.sources} == {"float32"}
    shutil.rmtree(folder)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint16", "float16"])
@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize("how", ["contiguous", "gzip", "v2", "v3 sharded"])
def test_files_of_every_kind(tmp_path, out, dtype, kind, how):
    x = coordinates(dtype)
    adata = make(stored_as(x.astype("float32") if dtype == "float16" and kind != "dense" else x, kind))
    if how in H5_COMPRESSIONS:
        path = write_h5ad(tmp_path / "a.h5ad", adata, H5_COMPRESSIONS[how])
    else:
        path = write_zarr(tmp_path / "a.zarr", adata, how)
    with pytest.warns(UserWarning, match="CSC") if kind == "csc" else nullcontext():
        store = here(path, out, cells_per_shard=25)
    found = to_anndata(store)
    np.testing.assert_array_equal(found.X.toarray(), x)
    pd.testing.assert_frame_equal(found.obs, ad.read_zarr(path).obs if path.is_dir() else ad.read_h5ad(path).obs)
    pd.testing.assert_frame_equal(found.var, adata.var)


@pytest.mark.parametrize("how", ["contiguous", "gzip"])
@pytest.mark.parametrize("dtype", ["uint32", "int64", "float64"])
def test_counts_that_float32_has_not(tmp_path, out, how, dtype):
    x = np.zeros((4, 6), dtype)
    x[1, 2], x[3, 5], x[3, 0] = (1 << 24) + 1, LARGEST, 7
    for name, matrix in (("sparse", sp.csr_matrix(x)), ("dense", x)):
        path = write_h5ad(tmp_path / f"{name}.h5ad", make(matrix), H5_COMPRESSIONS[how])
        found = to_anndata(here(path, tmp_path / f"{name}.cells"))
        np.testing.assert_array_equal(found.X.toarray(), x.astype(np.int64))


@pytest.mark.filterwarnings("ignore:Transforming to str index")
def test_a_source_of_the_users_own_needs_no_more_than_the_protocol(out):
    values = named_values(11, 30)
    source = MemorySource("own", values, [f"g{i}" for i in range(30)])
    del source.matrix, source.organism
    found = to_anndata(here([source], out))
    np.testing.assert_array_equal(found.X.toarray(), values)
    assert list(found.obs.columns) == []


def test_columns_keep_their_dtypes_categories_and_order(out):
    n = 12
    source = counted("a", n, 5, 0)
    codes = np.arange(n) % 3 - 1
    source.table = source.table.assign(
        ordered=pd.Categorical.from_codes(codes, ["low", "Mid", "high", "never"][:3], ordered=True),
        unused=pd.Categorical.from_codes(codes, ["z", "a", "never"]),
        numbers=pd.Categorical.from_codes(codes, [5, 1, 3]),
        shares=pd.Categorical.from_codes(codes, np.array([2.5, -1, 0], "f4"), ordered=True),
        flags=pd.Categorical.from_codes(codes.clip(max=0), [True, False]),
        none=pd.Categorical.from_codes(np.full(n, -1), np.array([], object)),
        small=np.arange(n).astype("u1"),
        half=np.arange(n).astype("f4") + np.nan,
        flag=np.arange(n) % 2 == 0,
        text=[f"é{i}" for i in range(n)],
        whole=pd.array([None, 1, 2] * 4, dtype="Int16"),
        maybe=pd.array([None, True, False] * 4, dtype="boolean"),
        when=pd.date_range("2020-01-01", periods=n),
    )
    source.var = source.var.assign(kind=pd.Categorical(["b", "a", "b", "a", "a"], categories=["b", "a", "c"]))
    for layout in ("source", "shuffled"):
        store = here([source], out.with_suffix(f".{layout}"), layout=layout)
        found = to_anndata(store)
        pd.testing.assert_frame_equal(found.obs, source.table)
        pd.testing.assert_frame_equal(found.var, source.var)
        assert store.sources[0].obs_columns == list(source.table.columns)
        read = store.sources[0].obs(["flags", "row"])
        assert list(read["flags"].cat.categories) == [True, False]


def test_each_gene_list_is_kept_once(out):
    made = [counted(f"s{i}", 4, 30, seed) for i, seed in enumerate([0, 0, 1, 0])]
    made[3].var = made[3].var.assign(length=1)
    store = here(made, out)
    assert len(list((out / "var").iterdir())) == len(store.manifest.genes) == 3
    check(store, made)
    again = counted("again", 4, 30, 1)
    check(here([again], out, append=True), [*made, again])
    assert len(list((out / "var").iterdir())) == 3


def test_organisms_come_along(tmp_path, out):
    adata = make(sp.csr_matrix(coordinates()))
    adata.uns["organism"] = "mouse"
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert here(tmp_path / "a.h5ad", out).sources[0].organism == "mouse"


def test_a_cell_without_values_and_a_source_without_cells(out):
    empty = counted("empty", 0, 7, 0)
    made = [empty, counted("a", 3, 7, 1), replace(empty, name="empty too")]
    made[1].x = sp.csr_matrix(made[1].x.shape, dtype=np.float32)
    check(here(made, out), made)
    with pytest.raises(ValueError, match="there are no cells in empty"):
        here([empty], out.with_name("b.cells"))


def test_a_store_is_a_source_of_another(tmp_path, out):
    made = [counted("a", 13, 40, 0, dtype=np.int64), counted("b", 8, 30, 1)]
    made[0].x.data[3] = LARGEST
    first = here(made, out)
    check(here(out, tmp_path / "b.cells"), made)
    assert tree(out) == tree(tmp_path / "b.cells")
    shuffled = here(first.sources, tmp_path / "c.cells", layout="shuffled")
    check(shuffled, made)
    # from there the cells come in the order in which that store has them
    back = here(tmp_path / "c.cells", tmp_path / "d.cells")
    for number in range(2):
        rows = shuffled.sources[number].obs(["row"])["row"].to_numpy()
        expected = made[number].x[rows].toarray()
        np.testing.assert_array_equal(to_anndata(back, number).X.toarray(), expected)
        pd.testing.assert_frame_equal(to_anndata(back, number).obs, made[number].table.iloc[rows])


def test_the_path_of_a_store_opens_all_its_sources(tmp_path, out):
    paths = write_files(tmp_path)
    here(paths, out)
    found = open_sources([paths[0], out])
    assert [selection.source.name for selection in found] == [f"{tmp_path.name}/0.h5ad", "atlas.cells/0.h5ad", "1.h5ad"]
    out.rename(tmp_path / "renamed")
    assert len(open_sources(str(tmp_path / "renamed"))) == 2
    (tmp_path / "empty.cells").mkdir()
    with pytest.raises(StoreFormatError, match="is not a store"):
        open_sources(tmp_path / "empty.cells")


def test_floats_are_no_counts_from_a_store_either(out):
    here([counted("a", 3, 5, 0)], out, values="any")
    with pytest.raises(NotCountsError, match=r"atlas.cells holds values .* \(a\); pass values='any'"):
        open_sources(out)
    assert len(open_sources(out, OpenOptions(values="any"))) == 1


def test_mapped_files_take_no_memory_for_long(tmp_path, out):
    """The pages of a mapped file are given back block by block."""
    given = []

    class Watched(type(open_source(write_files(tmp_path)[0]))):
        def release(self):
            super().release()
            given.append(self.name)

    source = Watched.open(tmp_path / "0.h5ad")
    here([source], out)
    assert given == ["0.h5ad"] * 6  # 13 cells in three shards, three cells at a time


def test_a_source_with_the_members_of_the_protocol_alone(out):
    whole = counted("bare", 13, 40, 0)
    members = ("name", "n_obs", "fingerprint", "var", "obs_columns", "obs", "read")
    store = here([SimpleNamespace(**{member: getattr(whole, member) for member in members})], out)
    found = to_anndata(store)
    np.testing.assert_array_equal(found.X.toarray(), whole.x.toarray())
    pd.testing.assert_frame_equal(found.obs.reset_index(drop=True), whole.table.reset_index(drop=True))


def test_a_store_of_a_store_keeps_names_and_order(tmp_path, out):
    made = [counted("a", 13, 40, 0), counted("b", 6, 30, 1)]
    here(made, out, layout="shuffled")
    again = here(out, tmp_path / "again.cells")
    for number, one in enumerate(made):
        found = to_anndata(again, number)
        assert found.var_names.tolist() == one.var.index.tolist()
        assert sorted(found.obs_names) == sorted(map(str, one.table.index))


def test_sources_are_opened_without_reading_genes_or_content():
    """Gene tables and mapped files of thousands of sources do not fit into memory: conversion reads one at a time."""

    class Large(Stored):
        @property
        def var(self):
            raise AssertionError("read when it is opened")

        @var.setter
        def var(self, _):
            pass

        @property
        def fingerprint(self):
            raise AssertionError("read when it is opened")

    one = counted("a", 3, 5, 0)
    assert open_sources([Large(one.name, one.x, one.var, one.table)])[0].n_obs == 3


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.filterwarnings("ignore:Variable names are not unique", "ignore:.*stored as CSC")
@pytest.mark.parametrize("has_ids", [True, False])
def test_genes_that_are_there_twice_are_read_from_a_store_as_from_the_file(tmp_path, kind, has_ids, caplog):
    """Summed, as every reader of a file does; by the unique ids of a column, if there are some."""
    x = coordinates()
    made = make(stored_as(x, kind))
    symbols = [f"G{i % 30}" for i in range(x.shape[1])]
    made.var = pd.DataFrame({"gene_ids": made.var_names} if has_ids else {}, index=symbols)
    path = write_h5ad(tmp_path / "a.h5ad", made, {})
    here(path, tmp_path / "a.cells", cells_per_shard=9)
    file, store = (Collection.open(data) for data in (path, tmp_path / "a.cells"))
    assert store.vocabulary.ids == file.vocabulary.ids
    rows = np.arange(len(file))
    np.testing.assert_array_equal(store.read(rows).to_scipy().toarray(), file.read(rows).to_scipy().toarray())
    assert ("a.h5ad has 13 gene ids more than once (G0, G1, " in caplog.text) == (not has_ids)
    if has_ids:
        assert store.parts[0].source.var.loc["ENSG00000000031", "symbol"] == "G1"


@pytest.mark.parametrize("values", [np.float64, np.float32])
def test_float64_values_are_rounded_as_in_reading_with_one_warning(tmp_path, values):
    x = coordinates().astype(values) / 3
    paths = [write_h5ad(tmp_path / f"{i}.h5ad", make(sp.csr_matrix(x + i)), {}) for i in range(2)]
    expected = pytest.warns(UserWarning, match=r"rounded to float32: 0.h5ad, 1.h5ad$")
    with expected if values is np.float64 else nullcontext():
        here(paths, tmp_path / "a.cells", values="any", cells_per_shard=9)
    file, store = (Collection.open(data, values="any") for data in (paths, tmp_path / "a.cells"))
    rows = np.arange(len(file))
    np.testing.assert_array_equal(store.read(rows).to_scipy().toarray(), file.read(rows).to_scipy().toarray())
