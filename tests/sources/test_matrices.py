"""Matrices beside the counts: layers, raw, obsm and obsp, read by key."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdataloader.errors import SourceFormatError
from scdataloader.sources import open_file, open_source
from scdataloader.testing import check_source
from scdataloader.types import CSRRows
from tests.sources.source_files import H5_COMPRESSIONS, N_OBS, coordinates, make, stored_as, write_h5ad, write_zarr

ROWS = np.array([60, 3, 3, 0, 7, 12, 59, 1])
FORMATS = [*H5_COMPRESSIONS, "zarr v2", "zarr v3 sharded"]


def adata(kind: str = "csr") -> ad.AnnData:
    x = coordinates()
    made = make(sp.csr_matrix(x), other=stored_as(x.astype("float64") * 0.5, kind), dense=x + 1)
    made.raw = ad.AnnData(sp.csr_matrix(np.hstack([x, x])), obs=made.obs)
    made.obsm["X_pca"] = np.random.default_rng(0).normal(size=(N_OBS, 5))
    made.obsm["sparse"] = sp.csr_matrix(x[:, :7])
    made.obsm["table"] = pd.DataFrame({"a": np.arange(N_OBS)}, index=made.obs_names)
    made.obsm["words"] = pd.DataFrame({"a": ["b"] * N_OBS}, index=made.obs_names)
    made.obsm["cube"] = np.arange(N_OBS * 6).reshape(N_OBS, 2, 3)
    made.obsp["near"] = sp.csr_matrix(x[:, :1] + np.eye(N_OBS))
    return made


def write(path: Path, made: ad.AnnData, how: str) -> Path:
    if how.startswith("zarr"):
        return write_zarr(path / "a.zarr", made, how.removeprefix("zarr "))
    return write_h5ad(path / "a.h5ad", made, H5_COMPRESSIONS[how])


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_layers(tmp_path: Path, how: str, kind: str) -> None:
    made = adata(kind)
    with open_source(write(tmp_path, made, how)) as source, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key in ("other", "dense"):
            rows = source.read_matrix(f"layers/{key}", ROWS)
            assert isinstance(rows, CSRRows)
            expected = made.layers[key][ROWS]
            expected = expected.toarray() if sp.issparse(expected) else expected
            np.testing.assert_array_equal(rows.to_scipy().toarray(), expected.astype(np.float32))


@pytest.mark.parametrize("how", FORMATS)
def test_obsm(tmp_path: Path, how: str) -> None:
    made = adata()
    with open_source(write(tmp_path, made, how)) as source:
        keys = ["layers/dense", "layers/other", "obsm/X_pca", "obsm/cube", "obsm/sparse", "obsm/table", "obsp/near"]
        assert source.matrix_keys == keys
        for key, expected in {
            "X_pca": made.obsm["X_pca"],
            "sparse": made.obsm["sparse"].toarray(),
            "cube": made.obsm["cube"].reshape(N_OBS, 6),
            "table": made.obsm["table"].to_numpy(),
        }.items():
            values = source.read_matrix(f"obsm/{key}", ROWS)
            assert isinstance(values, np.ndarray)
            np.testing.assert_array_equal(values, expected[ROWS].astype(np.float32))
            assert values.dtype == np.float32


@pytest.mark.parametrize("how", ["contiguous", "gzip", "zarr v3"])
def test_values_as_exact_as_they_are_stored(tmp_path: Path, how: str) -> None:
    made = adata()
    made.layers["large"] = sp.csr_matrix(coordinates("int64") * 2**40 + 1)
    with open_file(write(tmp_path, made, how)) as file:
        for key, expected in {
            "X": made.X,
            "layers/large": made.layers["large"],
            "raw": made.raw.X,
            "obsp/near": made.obsp["near"],
        }.items():
            matrix = file.find_matrix(key)
            assert matrix is not None
            assert (matrix.shape, matrix.dtype) == (expected.shape, expected.dtype)
            read = file.read_exact(matrix, ROWS)
            got = sp.csr_matrix((read.data, read.indices, read.indptr), (len(ROWS), matrix.shape[1]))
            np.testing.assert_array_equal(got.toarray(), expected[ROWS].toarray())
            with pytest.raises(TypeError, match=f"{key} of .* dense"):
                file.read_dense(matrix, ROWS)
        pca = file.find_matrix("obsm/X_pca")
        assert pca is not None
        assert file.read_dense(pca, ROWS).tolist() == made.obsm["X_pca"][ROWS].tolist()
        assert file.find_matrix("obsm/nothing") is None
        with pytest.raises(SourceFormatError, match=r"obsm/table in .* is stored as dataframe"):
            file.find_matrix("obsm/table")


def test_counts_in_raw_have_other_genes_than_layers(tmp_path: Path) -> None:
    with open_source(write(tmp_path, adata(), "contiguous"), counts="raw") as source:
        assert source.matrix_keys == ["obsm/X_pca", "obsm/cube", "obsm/sparse", "obsm/table", "obsp/near"]
        with pytest.raises(KeyError, match=r"has no matrix .layers/other.; there are obsm/X_pca"):
            source.read_matrix("layers/other", ROWS)


@pytest.mark.parametrize("key", ["layers/othr", "X", "raw", "obsm/words", "obsp/far", "nothing"])
def test_no_such_matrix(tmp_path: Path, key: str) -> None:
    with (
        open_source(write(tmp_path, adata(), "gzip")) as source,
        pytest.raises(KeyError, match=f"has no matrix '{key}'; there are layers/dense"),
    ):
        source.read_matrix(key, ROWS)


def test_rows_and_copies(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, adata(), "chunked"))
    before = source.read_matrix("obsm/X_pca", ROWS)
    for key in source.matrix_keys:
        with pytest.raises(IndexError, match=f"has cells 0 to {N_OBS - 1}"):
            source.read_matrix(key, np.array([N_OBS]))
    copied = pickle.loads(pickle.dumps(source))
    source.close()
    np.testing.assert_array_equal(copied.read_matrix("obsm/X_pca", ROWS), before)
    np.testing.assert_array_equal(source.read_matrix("obsm/X_pca", ROWS), before)


@pytest.mark.parametrize("how", ["contiguous", "chunked", "gzip", "zarr v3 sharded"])
@pytest.mark.parametrize("counts", ["X", "raw"])
def test_a_file_keeps_the_laws_of_sources(tmp_path: Path, how: str, counts: str) -> None:
    check_source(open_source(write(tmp_path, adata(), how), counts=counts))
