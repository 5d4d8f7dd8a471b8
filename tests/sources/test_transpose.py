"""CSC matrices transposed in a file, with pieces and parts of any size."""

from __future__ import annotations

import os
import tempfile
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import scdataloader as scd
from scdataloader.errors import SourceChangedError, SourceFormatError, WriteError
from scdataloader.kernels.rows.transpose import count_cells, order_values, split_values
from scdataloader.sources.arrays import transpose
from scdataloader.sources.arrays.arrays import ChunkedArray, LibraryChunks, MappedArray
from scdataloader.sources.arrays.mapped import FileMaps
from scdataloader.sources.arrays.transpose import StoredCSC, TransposeInFile
from tests.sources.source_files import ZARR_FORMATS, coordinates, make, write_h5ad, write_zarr

DTYPES = ["u1", "i4", "f4", "f8"]


def reference(indptr, cells, data, n_cells):
    """The offsets, genes and values of the cells: a stable sort."""
    order = np.argsort(cells, kind="stable")
    genes = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=n_cells))]), genes[order], data[order]


def in_chunks(values, length):
    chunks = LibraryChunks(name="values", n_rows=length, opened=partial(nullcontext, values))
    return ChunkedArray(shape=values.shape, chunk_shape=(length,), dtype=values.dtype, chunks=chunks)


@st.composite
def matrices(draw):
    """Offsets of genes, cells in any order and with repeats within a gene, values, and how many cells there are."""
    n_cells = draw(st.integers(1, 12))
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=9))
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    n = int(indptr[-1]) + draw(st.integers(0, 3))  # an array may be longer than the offsets say
    cells = draw(hnp.arrays(draw(st.sampled_from(["i4", "i8"])), n, elements=st.integers(0, n_cells - 1)))
    data = draw(hnp.arrays(draw(st.sampled_from(DTYPES)), n, elements=st.integers(0, 100)))
    return indptr, cells, data, n_cells


@given(matrices(), st.integers(1, 30), st.integers(1, 30), st.integers(0, 7), st.integers(0, 7))
def test_transpose_in_file_is_a_stable_sort(made, n_piece, n_part, cells_chunk, data_chunk):
    indptr, cells, data, n_cells = made
    progress = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(transpose, "_PIECE", n_piece)
        patch.setattr(transpose, "_PART", n_part)
        stored = StoredCSC(
            indptr=indptr,
            cells=in_chunks(cells, cells_chunk) if cells_chunk else MappedArray(values=cells),
            data=in_chunks(data, data_chunk) if data_chunk else MappedArray(values=data),
            shape=(n_cells, len(indptr) - 1),
            key="X",
            location="X",
            files=FileMaps(Path("none"), {}),
        )
        matrix, _ = TransposeInFile(path=Path(folder) / "csr", advance=progress.append)(stored)
        nnz = int(indptr[-1])
        expected = reference(indptr, cells[:nnz], data[:nnz], n_cells)
        for found, wanted in zip((matrix.indptr, matrix.indices, matrix.data), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert matrix.data.dtype == data.dtype
        assert (Path(folder) / "csr").stat().st_size <= max(1, nnz * (data.itemsize + 4) + 16)
    assert sum(progress) == (n_cells if nnz else 0)


@given(matrices(), st.integers(1, 4), st.integers(0, 20))
def test_a_piece_is_sorted_by_part(made, n_parts, begin):
    indptr, cells, data, n_cells = made
    begin = min(begin, int(indptr[-1]))
    cells, data = cells[begin : indptr[-1]], data[begin : indptr[-1]]
    part_of = (np.arange(n_cells) * n_parts // n_cells).astype(np.int32)
    starts, out_cells, out_genes, out_data = (
        np.full(n, 7, dtype)
        for n, dtype in ((n_parts + 1, "i8"), (len(cells), "i4"), (len(cells), "i4"), (len(cells), data.dtype))
    )
    data = data.view(f"u{data.itemsize}")
    assert split_values(cells, data, begin, indptr, part_of, starts, out_cells, out_genes, out_data)
    order = np.argsort(part_of[cells], kind="stable")
    genes = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))[begin:]
    np.testing.assert_array_equal(starts, np.searchsorted(part_of[cells][order], np.arange(n_parts + 1)))
    np.testing.assert_array_equal(out_cells, cells[order])
    np.testing.assert_array_equal(out_genes, genes[order])
    np.testing.assert_array_equal(out_data, data[order])


@pytest.mark.parametrize("wrong", [-1, 3, 2**40, -(2**40)])
def test_invalid_cell_numbers_are_reported_and_nothing_is_written(wrong):
    cells, counts = np.array([0, 2, wrong, 1]), np.zeros(3, np.int64)
    assert count_cells(cells, counts) == 2
    assert counts.tolist() == [1, 0, 1]
    out = [np.zeros(4, np.int32) for _ in range(3)]
    indptr, part_of = np.array([0, 4]), np.zeros(3, np.int32)
    assert not split_values(cells, np.ones(4, np.int32), 0, indptr, part_of, np.zeros(2, np.int64), *out)
    ordered = [np.zeros(4, np.int32) for _ in range(2)]
    counted = np.array([0, 1, 2, 4])
    assert not order_values(cells.astype(np.int32), out[1], out[2], counted, 0 if abs(wrong) < 5 else 1, *ordered)


@pytest.mark.parametrize(("cells", "counted"), [([0, 0, 1], [0, 1, 3]), ([0, 1], [0, 1, 3])])
def test_other_values_than_were_counted_are_reported(cells, counted):
    given_values = np.zeros(len(cells), np.int32)
    ordered = [np.zeros(3, np.int32) for _ in range(2)]
    assert not order_values(np.array(cells, np.int32), given_values, given_values, np.array(counted), 0, *ordered)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Many pieces and parts."""
    monkeypatch.setattr(transpose, "_PIECE", 100)
    monkeypatch.setattr(transpose, "_PART", 150)


def transposed(path, folder, **options):
    """All cells of a matrix that is transposed in a file."""
    with scd.open_source(path, **options) as source:
        assert source.is_csc
        source.transpose = TransposeInFile(path=folder / "csr", advance=lambda _: None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read = source.read(np.arange(source.n_obs))
        source.release()
        again = source.read(np.arange(source.n_obs))
        np.testing.assert_array_equal(read.data, again.data)
        return read.to_scipy().toarray()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "uint16", "bool"])
@pytest.mark.parametrize("compression", [{}, {"compression": "gzip"}], ids=["mapped", "gzip"])
def test_h5ad_of_all_dtypes(tmp_path, small, dtype, compression):
    x = coordinates("uint8" if dtype == "bool" else dtype)
    x = (x > 0) if dtype == "bool" else x
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csc_matrix(x)), compression)
    np.testing.assert_array_equal(transposed(path, tmp_path), x.astype(np.float32))


@pytest.mark.parametrize("how", ZARR_FORMATS)
def test_zarr_of_all_formats(tmp_path, small, how):
    x = coordinates()
    np.testing.assert_array_equal(transposed(write_zarr(tmp_path / "a.zarr", make(sp.csc_matrix(x)), how), tmp_path), x)


@pytest.mark.parametrize("key", ["layers/spliced", "raw"])
def test_layers_and_raw(tmp_path, small, key):
    x = coordinates()
    adata = make(sp.csr_matrix(x / 7), spliced=sp.csc_matrix(x))
    if key == "raw":
        adata.raw = make(sp.csc_matrix(x))
    adata.write_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(transposed(tmp_path / "a.h5ad", tmp_path, counts=key), x)


def test_damaged_cell_numbers_are_rejected(tmp_path, small):
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csc_matrix(coordinates())), {})
    with h5py.File(path, "r+") as file:
        file["X/indices"][500] = 61
    with pytest.raises(SourceFormatError, match="X/indices holds the number 61, expected cells 0 to 60"):
        transposed(path, tmp_path)


@pytest.mark.parametrize("seen", [True, False])
def test_a_file_that_changes_between_two_passes_is_rejected(tmp_path, small, seen):
    """By its time of change, or, where that stays, by the number of values of its cells."""
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csc_matrix(coordinates())), {})
    with h5py.File(path) as file:
        offset, n_bytes = file["X/indices"].id.get_offset(), file["X/indices"].nbytes
    time = path.stat().st_mtime_ns

    def change(_: int) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(bytes(n_bytes))
        if not seen:
            os.utime(path, ns=(time, time))

    with scd.open_source(path) as source:
        source.transpose = TransposeInFile(path=tmp_path / "csr", advance=change)
        expected = (
            (SourceChangedError, "a.h5ad has changed") if seen else (SourceFormatError, "changed while it was read")
        )
        with pytest.raises(expected[0], match=expected[1]):
            source.read(np.arange(3))


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csc_matrix(coordinates())), {})
    with scd.open_source(path) as source:
        source.transpose = TransposeInFile(path=tmp_path / "gone" / "csr", advance=lambda _: None)
        with pytest.raises(WriteError, match=r"cannot write .*gone/csr: No such"):
            source.read(np.arange(3))
