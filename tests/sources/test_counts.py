"""Law R2: counts are found in any matrix; values that are not counts are rejected, and the first is named."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from scdataloader.errors import NotCountsError
from scdataloader.sources import open_source
from scdataloader.store.convert import convert
from tests.sources.source_files import (
    H5_COMPRESSIONS,
    N_OBS,
    N_VARS,
    coordinates,
    make,
    stored_as,
    write_h5ad,
    write_zarr,
)

HALF, NEGATIVE = 0.5, -3.0


def spoiled(value: float, row: int = 5, column: int = 2, x: np.ndarray | None = None) -> np.ndarray:
    x = coordinates() if x is None else x.copy()
    x[row, column] = value
    return x


def adata(where: str) -> ad.AnnData:
    """With counts in one place and fractions in the others."""
    bad = spoiled(HALF)
    made = make(
        sp.csr_matrix(coordinates() if where == "X" else bad),
        counts=sp.csr_matrix(coordinates() if where == "layers/counts" else bad),
    )
    made.raw = ad.AnnData(
        sp.csr_matrix(coordinates() if where == "raw" else bad), obs=made.obs, var=made.var.add_suffix("_raw", axis=0)
    )
    return made


@pytest.mark.parametrize("where", ["X", "layers/counts", "raw"])
@pytest.mark.parametrize("write", ["h5ad", "zarr"])
def test_auto_finds_counts_and_says_where(tmp_path: Path, where: str, write: str, caplog) -> None:
    path = tmp_path / f"a.{write}"
    write_h5ad(path, adata(where), {}) if write == "h5ad" else write_zarr(path, adata(where), "v3")
    with caplog.at_level(logging.INFO, "scdataloader"), open_source(path) as source:
        assert source.counts == where
        assert f"reading counts from {where}" in caplog.text
        assert source.var.index[0] == ("ENSG00000000000_raw" if where == "raw" else "ENSG00000000000")
        rows = np.arange(N_OBS)
        np.testing.assert_array_equal(source.read(rows).to_scipy().toarray(), coordinates())


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize("write", ["h5ad", "zarr"])
def test_auto_passes_over_a_matrix_of_zeros(tmp_path: Path, kind: str, write: str, caplog) -> None:
    path = tmp_path / f"a.{write}"
    empty = make(stored_as(np.zeros_like(coordinates()), kind), counts=sp.csr_matrix(coordinates()))
    write_h5ad(path, empty, {}) if write == "h5ad" else write_zarr(path, empty, "v3")
    with open_source(path) as source:
        assert source.counts == "layers/counts"
    del empty.layers["counts"]
    path = tmp_path / f"b.{write}"
    write_h5ad(path, empty, {}) if write == "h5ad" else write_zarr(path, empty, "v3")
    with open_source(path) as source:
        assert source.counts == "X"
    assert f"b.{write}: reading X, where all counts are 0" in caplog.text


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize("value", [HALF, NEGATIVE, np.nan, np.inf])
@pytest.mark.parametrize("compression", ["contiguous", "gzip"])
def test_named_matrix_without_counts_is_refused(tmp_path: Path, kind: str, value: float, compression: str) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(stored_as(spoiled(value), kind)), H5_COMPRESSIONS[compression])
    place = rf"a.h5ad: X .* {value} at cell 5, gene 2 \(ENSG00000000002\).*no other matrix does.*values='any'"
    with pytest.raises(NotCountsError, match=place):
        open_source(path, counts="X")


def test_no_counts_anywhere_says_what_was_found_in_each_place(tmp_path: Path) -> None:
    made = adata("nowhere")
    del made.raw
    made.layers["umi"] = coordinates()
    path = write_h5ad(tmp_path / "a.h5ad", made, {})
    with pytest.raises(NotCountsError) as error:
        open_source(path)
    assert str(error.value) == (
        f"{path}: no counts found (X: 0.5 at cell 5, gene 2 (ENSG00000000002); "
        "layers/counts: 0.5 at cell 5, gene 2 (ENSG00000000002); raw: missing), expected whole numbers from 0 up in "
        "X, layers/counts or raw; choose layers/umi, which does, with counts='layers/umi', "
        "or pass values='any' to read values that are not counts"
    )


@pytest.mark.parametrize("kind", ["csr", "dense"])
@pytest.mark.parametrize("compression", ["contiguous", "gzip"])
def test_a_bad_value_outside_the_sample_is_refused_when_it_is_read(tmp_path: Path, kind: str, compression: str) -> None:
    x = np.ones((4000, 100), np.float32)  # 400,000 values: the sample skips parts of it
    x[1000, 7] = HALF
    path = write_h5ad(tmp_path / "a.h5ad", make(stored_as(x, kind)), {})
    if compression == "gzip":
        path = tmp_path / "b.h5ad"
        ad.read_h5ad(tmp_path / "a.h5ad").write_h5ad(path, compression="gzip")
    with open_source(path) as source:
        source.read(np.array([999, 1001]))
        with pytest.raises(NotCountsError, match=r"b?.h5ad: X does not hold counts: 0.5 at cell 1000, gene 7 \(ENSG"):
            source.read(np.array([999, 1000, 1001]))
    with open_source(path, values="any") as source:
        assert source.read(np.array([1000])).data[7] == HALF


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize("write", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:.*stored as CSC")
def test_auto_finds_a_study_that_is_normalised(tmp_path: Path, kind: str, write: str) -> None:
    """One in 20 cells; another matrix holds the counts of all cells."""
    counts = np.random.default_rng(0).poisson(1, (4000, 100)).astype(np.float32)
    x = counts.copy()
    x[1100:1300] = np.log1p(counts[1100:1300])
    path, only = tmp_path / f"a.{write}", tmp_path / f"b.{write}"
    for at, made in ((path, make(stored_as(x, kind), counts=counts)), (only, make(stored_as(x, kind), umi=counts))):
        made.write_h5ad(at) if write == "h5ad" else made.write_zarr(at)
    with open_source(path) as source:
        assert source.counts == "layers/counts"
    with (
        pytest.raises(NotCountsError, match=r"(X does not hold|no) counts.* choose layers/umi, .*counts='layers/umi'"),
        open_source(only) as source,
    ):
        source.read(np.arange(1000, 1200))
    with pytest.raises(NotCountsError, match=r"counts='layers/umi'"):
        convert(only, tmp_path / "b.cells", n_processes=1)


def test_any_values_are_read_unchanged(tmp_path: Path, caplog) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(spoiled(NEGATIVE))), {})
    with caplog.at_level(logging.INFO, "scdataloader"), open_source(path, values="any") as source:
        assert "no matrix holds counts; reading X" in caplog.text
        np.testing.assert_array_equal(source.read(np.arange(N_OBS)).to_scipy().toarray(), spoiled(NEGATIVE))
        assert source.matrix is not None
        assert not source.matrix.counts_only


def test_any_values_still_prefer_counts(tmp_path: Path) -> None:
    with open_source(write_h5ad(tmp_path / "a.h5ad", adata("raw"), {}), values="any") as source:
        assert source.counts == "raw"


def test_the_matrix_states_that_values_must_be_counts(tmp_path: Path) -> None:
    with open_source(write_h5ad(tmp_path / "a.h5ad", adata("X"), {})) as source:
        assert source.matrix is not None
        assert source.matrix.counts_only


@pytest.mark.parametrize("counts", ["layers/count", "counts", "Y"])
def test_no_such_matrix(tmp_path: Path, counts: str) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", adata("X"), {})
    with pytest.raises(KeyError, match=f"a.h5ad has no matrix '{counts}'.*: there are X, layers/counts, raw"):
        open_source(path, counts=counts)


def test_a_scaled_matrix_is_refused() -> None:
    """The real file that scanpy ships: a scaled X, a log-normalised raw."""
    scanpy = pytest.importorskip("scanpy")
    path = Path(scanpy.datasets.__file__).parent / "10x_pbmc68k_reduced.h5ad"
    if not path.exists():
        pytest.skip("this scanpy does not ship the file")
    with pytest.raises(NotCountsError, match=r"X: -.* at cell 0.*; layers/counts: missing; raw: 2\.177 at cell 0"):
        open_source(path)
    with open_source(path, values="any") as source:
        expected = scanpy.datasets.pbmc68k_reduced().X
        np.testing.assert_array_equal(source.read(np.array([3, 1])).to_scipy().toarray(), expected[[3, 1]])


def test_a_null_matrix_is_passed_over(tmp_path: Path) -> None:
    made = make(np.zeros((N_OBS, N_VARS), np.float32), counts=sp.csr_matrix(coordinates()))
    made.X = None
    made.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert "X" not in file or file["X"].attrs["encoding-type"] == "null"
    with open_source(tmp_path / "a.h5ad") as source:
        assert source.counts == "layers/counts"
