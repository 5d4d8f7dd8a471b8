"""Law R1: reading rows equals AnnData's own slice, however the matrix is stored."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scdataloader.sources import open_source
from scdataloader.sources.arrays import fetch
from scdataloader.sources.arrays.fetch import ChunkCache
from scdataloader.sources.fingerprint import parts_of
from tests.sources.source_files import (
    H5_COMPRESSIONS,
    N_OBS,
    N_VARS,
    ZARR_FORMATS,
    coordinates,
    make,
    rewrite,
    stored_as,
    write_h5ad,
    write_zarr,
)

DTYPES = ("float32", "float64", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
ROWS = (
    [],
    [0],
    [N_OBS - 1, 0],
    [5, 5, 5],
    [7, 8],
    list(range(N_OBS)),
    list(range(N_OBS))[::-1],
    list(np.random.default_rng(1).integers(0, N_OBS, 200)),
)


def check(source, x, rows) -> None:
    read = source.read(np.array(rows, dtype=np.int64))
    assert (read.data.dtype, read.indices.dtype, read.indptr.dtype) == (np.float32, np.int32, np.int64)
    assert (read.indptr[0], read.indptr[-1], len(read), read.n_genes) == (0, len(read.data), len(rows), x.shape[1])
    np.testing.assert_array_equal(read.to_scipy().toarray(), x[rows].astype(np.float32))
    for i in range(len(read)):
        genes = read.indices[read.indptr[i] : read.indptr[i + 1]]
        assert (np.diff(genes) > 0).all()


def expect(kind: str):
    return pytest.warns(UserWarning, match="stored as CSC") if kind == "csc" else nullcontext()


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize("compression", H5_COMPRESSIONS)
def test_h5ad(tmp_path: Path, kind: str, compression: str) -> None:
    x = coordinates()
    with open_source(write_h5ad(tmp_path / "a.h5ad", make(stored_as(x, kind)), H5_COMPRESSIONS[compression])) as source:
        with expect(kind):
            check(source, x, ROWS[0])
        for rows in ROWS:
            check(source, x, rows)
        assert (source.matrix is not None) == (kind == "csc" or (kind == "csr" and compression == "contiguous"))


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize("how", ZARR_FORMATS)
def test_zarr(tmp_path: Path, kind: str, how: str) -> None:
    x = coordinates()
    with open_source(write_zarr(tmp_path / "a.zarr", make(stored_as(x, kind)), how)) as source:
        with expect(kind):
            check(source, x, ROWS[0])
        for rows in ROWS:
            check(source, x, rows)


@pytest.mark.parametrize("kind", ["csr", "dense"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compression", ["contiguous", "gzip+shuffle", "lzf"])
def test_h5ad_dtypes(tmp_path: Path, kind: str, dtype: str, compression: str) -> None:
    x = coordinates(dtype)
    # SciPy has no sparse half floats: store the values so afterwards
    path = write_h5ad(
        tmp_path / "a.h5ad",
        make(stored_as(x.astype("float32") if dtype == "float16" else x, kind)),
        H5_COMPRESSIONS[compression],
    )
    if dtype == "float16":
        with h5py.File(path, "r+") as file:
            array = file["X"] if kind == "dense" else file["X/data"]
            rewrite(array, H5_COMPRESSIONS[compression], array[()].astype("float16"))
    with open_source(path) as source:
        for rows in ROWS:
            check(source, x, rows)


@pytest.mark.parametrize("dtype", ["float64", "uint8", "int64"])
@pytest.mark.parametrize("how", ["v2", "v3", "v3 sharded"])
def test_zarr_dtypes(tmp_path: Path, dtype: str, how: str) -> None:
    x = coordinates(dtype)
    with open_source(write_zarr(tmp_path / "a.zarr", make(sp.csr_matrix(x)), how)) as source:
        check(source, x, ROWS[-1])


@pytest.mark.parametrize("stored", [">f4", ">i8", "bool"])
@pytest.mark.parametrize("compression", ["contiguous", "gzip", "lzf"])
def test_foreign_bytes(tmp_path: Path, stored: str, compression: str) -> None:
    x = (coordinates() > 0).astype("float32") if stored == "bool" else coordinates()
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(x)), H5_COMPRESSIONS[compression])
    with h5py.File(path, "r+") as file:
        rewrite(file["X/data"], H5_COMPRESSIONS[compression], file["X/data"][()].astype(stored))
        rewrite(file["X/indices"], H5_COMPRESSIONS[compression], file["X/indices"][()].astype(">i4"))
    with open_source(path) as source:
        check(source, x, ROWS[-1])


@pytest.mark.parametrize("dtype", ["int64", "uint16", "uint32"])
@pytest.mark.parametrize("compression", ["contiguous", "gzip"])
def test_index_dtypes(tmp_path: Path, dtype: str, compression: str) -> None:
    x = coordinates()
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(x)), H5_COMPRESSIONS[compression])
    with h5py.File(path, "r+") as file:
        rewrite(file["X/indices"], H5_COMPRESSIONS[compression], file["X/indices"][()].astype(dtype))
    with open_source(path) as source:
        check(source, x, ROWS[-1])


@pytest.mark.parametrize(("data", "indices"), [("contiguous", "gzip"), ("gzip", "contiguous")])
def test_arrays_stored_differently(tmp_path: Path, data: str, indices: str) -> None:
    x = coordinates()
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(x)), {})
    with h5py.File(path, "r+") as file:
        rewrite(file["X/data"], H5_COMPRESSIONS[data])
        rewrite(file["X/indices"], H5_COMPRESSIONS[indices])
    with open_source(path) as source:
        for rows in ROWS:
            check(source, x, rows)


@pytest.mark.parametrize("name", ["Zstd", "Blosc", "LZ4"])
@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_filters_of_hdf5plugin(tmp_path: Path, name: str, kind: str) -> None:
    plugin = pytest.importorskip("hdf5plugin")
    x = coordinates()
    path = write_h5ad(tmp_path / "a.h5ad", make(stored_as(x, kind)), dict(getattr(plugin, name)()))
    with open_source(path) as source:
        for rows in ROWS:
            check(source, x, rows)


def test_file_with_user_block(tmp_path: Path) -> None:
    x = coordinates()
    write_h5ad(tmp_path / "plain.h5ad", make(sp.csr_matrix(x)), {})
    with (
        h5py.File(tmp_path / "plain.h5ad") as plain,
        h5py.File(tmp_path / "a.h5ad", "w", userblock_size=512) as file,
    ):
        for key in plain:
            plain.copy(key, file)
    with open_source(tmp_path / "a.h5ad") as source:
        check(source, x, ROWS[-1])


def test_chunks_that_were_never_written_hold_the_fill_value(tmp_path: Path) -> None:
    x = np.zeros((20, 12), np.float32)
    x[3, 4] = 5
    write_h5ad(tmp_path / "a.h5ad", make(x), {})
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        attributes = dict(file["X"].attrs)
        del file["X"]
        array = file.create_dataset("X", x.shape, "f4", chunks=(5, 5), compression="gzip")
        array[3, 4] = 5
        array.attrs.update(attributes)
    with open_source(tmp_path / "a.h5ad") as source:
        check(source, x, list(range(20)))
    write_zarr(tmp_path / "a.zarr", make(x), "v3 sharded")
    with open_source(tmp_path / "a.zarr") as source:
        check(source, x, list(range(20)))


@pytest.mark.parametrize("compression", ["contiguous", "gzip"])
def test_rows_out_of_order_and_repeated_genes(tmp_path: Path, compression: str) -> None:
    matrix = sp.csr_matrix((N_OBS, N_VARS), dtype=np.float32)
    matrix.data = np.array([1, 2, 4, 8, 16, 32, 64], np.float32)
    matrix.indices = np.array([9, 3, 3, 40, 0, 9, 9], np.int32)
    matrix.indptr = np.array([0, 0, 4, 4, *[7] * (N_OBS - 3)], np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_h5ad(tmp_path / "a.h5ad", make(matrix), H5_COMPRESSIONS[compression])
    with open_source(path) as source:
        read = source.read(np.array([3, 1, 0, 3]))
        assert read.indptr.tolist() == [0, 2, 5, 5, 7]
        assert read.indices.tolist() == [0, 9, 3, 9, 40, 0, 9]
        assert read.data.tolist() == [16, 96, 6, 1, 8, 16, 96]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    folder, x = tmp_path_factory.mktemp("sources"), coordinates()
    sources = [
        open_source(write_h5ad(folder / f"{kind}{i}.h5ad", make(stored_as(x, kind)), compression))
        for i, compression in enumerate(H5_COMPRESSIONS.values())
        for kind in ("csr", "dense")
    ]
    sources += [
        open_source(write_zarr(folder / f"{how}.zarr", make(sp.csr_matrix(x)), how)) for how in ("v2", "v3 sharded")
    ]
    yield sources, x
    for source in sources:
        source.close()


@settings(max_examples=40)
@given(rows=st.lists(st.integers(0, N_OBS - 1), max_size=80))
def test_any_rows(opened, rows: list[int]) -> None:
    sources, x = opened
    for source in sources:
        check(source, x, rows)


@settings(max_examples=20)
@given(
    cache=st.sampled_from([0, 200, 1000, 10**6]),
    reads=st.lists(st.lists(st.integers(0, N_OBS - 1), max_size=9), max_size=9),
)
def test_a_cache_of_any_size_changes_nothing_and_keeps_its_bound(opened, cache: int, reads: list[list[int]]) -> None:
    sources, x = opened
    for source in sources[:4] + sources[-2:]:
        source.close()
        chunks = getattr(source._matrix().reader, "_cache", None)
        if isinstance(chunks, ChunkCache):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fetch, "CACHE_BYTES", cache * len(ChunkCache._all))
                for rows in reads:
                    check(source, x, rows)
                    assert sum(values.nbytes for values in chunks._chunks.values()) == chunks._bytes <= cache
        source.close()


@pytest.mark.parametrize("rows", [[-1], [N_OBS], [0, 10**12]])
def test_rows_that_do_not_exist(opened, rows: list[int]) -> None:
    for source in opened[0]:
        with pytest.raises(IndexError, match=f"has cells 0 to {N_OBS - 1}"):
            source.read(np.array(rows))


@pytest.mark.parametrize("rows", [np.array([0.5]), np.array([True]), np.zeros((2, 2), int)])
def test_rows_that_are_no_rows(opened, rows) -> None:
    with pytest.raises(TypeError, match="list of integers"):
        opened[0][0].read(rows)


@pytest.mark.parametrize("key", ["layers/counts", "layers/other", "raw"])
@pytest.mark.parametrize("write", ["h5ad", "zarr"])
def test_layers_and_raw(tmp_path: Path, key: str, write: str) -> None:
    x = coordinates()
    adata = make(sp.csr_matrix(x + 100), counts=sp.csr_matrix(x), other=x + 1)
    adata.raw = ad.AnnData(sp.csr_matrix(x[:, :10]), var=adata.var[:10], obs=adata.obs)
    path = tmp_path / f"a.{write}"
    write_h5ad(path, adata, {}) if write == "h5ad" else write_zarr(path, adata, "v3")
    with open_source(path, counts=key) as source:
        expected = {"layers/counts": x, "layers/other": x + 1, "raw": x[:, :10]}[key]
        assert (source.counts, len(source.var)) == (key, expected.shape[1])
        check(source, expected, ROWS[-1])


@pytest.mark.parametrize(
    ("kind", "compression"), [("csr", "gzip"), ("dense", "gzip"), ("dense", "contiguous"), ("csr", "contiguous")]
)
def test_nnz_counts_stored_values(tmp_path: Path, kind: str, compression: str) -> None:
    x = coordinates()
    with open_source(write_h5ad(tmp_path / "a.h5ad", make(stored_as(x, kind)), H5_COMPRESSIONS[compression])) as source:
        sizes = source.nnz()
        assert sizes is None if kind == "dense" else sizes.tolist() == (x != 0).sum(1).tolist()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1)])
@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_degenerate_shapes(tmp_path: Path, shape, kind: str) -> None:
    x = np.ones(shape, np.float32)
    for compression in ({}, {"compression": "gzip"}):
        with open_source(write_h5ad(tmp_path / "a.h5ad", make(stored_as(x, kind)), compression)) as source:
            check(source, x, list(range(shape[0])))
            assert len(parts_of(source.fingerprint)) == 3


def test_real_files(real_data: Path) -> None:
    for path in sorted(real_data.glob("*.h5ad")):
        adata = ad.read_h5ad(path)
        with open_source(path) as source:
            assert (source.n_obs, source.counts) == (adata.n_obs, "X")
            assert source.var.equals(adata.var)
            rows = np.random.default_rng(0).integers(0, source.n_obs, 500)
            assert (source.read(rows).to_scipy() != adata.X[rows]).nnz == 0
            for column in source.obs_columns[:5]:
                expected = adata.obs[column].reset_index(drop=True)
                assert source.obs([column])[column].equals(expected)
