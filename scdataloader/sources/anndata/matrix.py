"""Open a stored matrix with the reader that suits it; check its offsets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.sources.anndata.layout import MatrixLayout
from scdataloader.sources.arrays.arrays import ChunkedArray, EncodedChunks, MappedArray, Sampled, StoredArray, whole
from scdataloader.sources.arrays.mapped import FileMap, FileMaps, MappedChunks, Pieces
from scdataloader.sources.arrays.matrices import ChunkedCSR, ChunkedDense, MappedCSR, MappedDense, Reader
from scdataloader.sources.arrays.remote import PlainChunks, PlainCSR
from scdataloader.sources.arrays.transpose import StoredCSC, Transpose

Describe = Callable[[str, np.dtype[Any] | None], StoredArray]
"""Returns how the array at a path is stored; a dtype replaces the array's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredMatrix:
    """A matrix that is ready to be read."""

    reader: Reader
    """Reads rows."""
    offsets: NDArray[np.int64] | None
    """Offsets of the rows of a CSR or the columns of a CSC matrix, as stored; None for a dense matrix."""
    arrays: tuple[Sampled, ...]
    """The stored arrays: ``data`` and ``indices``, or the dense matrix."""
    maps: FileMap | FileMaps
    """What is mapped."""


def open_matrix(describe: Describe, layout: MatrixLayout, *, files: FileMaps, transpose: Transpose) -> StoredMatrix:
    """Open a matrix. The offsets of a CSR matrix are loaded; a CSC matrix is transposed.

    Raises:
        SourceFormatError: the arrays contradict each other.
    """
    if layout.kind == "dense":
        return _dense(describe(layout.location, None), files)
    data = _complete(describe(f"{layout.location}/data", None))
    indices = describe(f"{layout.location}/indices", _index_dtype(layout))
    n_major, n_minor = layout.shape if layout.kind == "csr" else layout.shape[::-1]
    if n_minor > 1:  # otherwise all indices are 0, which zarr does not write
        indices = _complete(indices)
    indptr = whole(describe(f"{layout.location}/indptr", None)).astype(np.int64)
    _check_offsets(indptr, n_major, data.shape[0], f"{files.path}: {layout.location}/indptr")
    maps: FileMap | FileMaps = files
    reader: Reader
    genes, values = _pieces(indices), _pieces(data)
    if layout.kind == "csc":
        stored = StoredCSC(
            indptr=indptr,
            cells=indices,
            data=data,
            shape=layout.shape,
            key=layout.key,
            location=layout.location,
            files=files,
        )
        matrix, maps = transpose(stored)
        reader = MappedCSR(matrix.indptr, Pieces.one(matrix.indices), Pieces.one(matrix.data), layout.shape[1])
    elif genes is not None and values is not None:
        reader = MappedCSR(indptr, genes, values, layout.shape[1])
    elif (plain := _plain(indices)) is not None and (plain_values := _plain(data)) is not None:
        reader = PlainCSR(indptr, plain, plain_values, layout.shape[1])
    else:
        reader = ChunkedCSR(indptr, _chunked(indices), _chunked(data), layout.shape[1])
    return StoredMatrix(reader=reader, offsets=indptr, arrays=(data, indices), maps=maps)


def _dense(array: StoredArray, files: FileMaps) -> StoredMatrix:
    reader: Reader = MappedDense(array.values) if isinstance(array, MappedArray) else ChunkedDense(array)
    return StoredMatrix(reader=reader, offsets=None, arrays=(array,), maps=files)


def _pieces(array: StoredArray) -> Pieces | None:
    """The array as pieces of memory; None if it has to be decoded."""
    if isinstance(array, MappedArray):
        return Pieces.one(array.values)
    return array.chunks.pieces() if isinstance(array.chunks, MappedChunks) else None


def _plain(array: StoredArray) -> PlainChunks | None:
    """The array as values in a remote file; None if it is elsewhere, or has to be decoded."""
    return array.chunks if isinstance(array, ChunkedArray) and isinstance(array.chunks, PlainChunks) else None


def _chunked(array: StoredArray) -> ChunkedArray:
    """The array in chunks, also if only the other array of its matrix has to be decoded."""
    return array if isinstance(array, ChunkedArray) else array.as_chunks()


def _index_dtype(layout: MatrixLayout) -> np.dtype[Any] | None:
    """The kernels take gene numbers of 32 and 64 signed bits, and small ones as stored; others are converted."""
    assert layout.index_dtype is not None
    stored = layout.index_dtype.newbyteorder("=")
    if stored in (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.int32), np.dtype(np.int64)):
        return stored
    # A number that only 32 unsigned bits can hold is negative in signed ones, and refused as such.
    return np.dtype(np.int32) if stored == np.dtype(np.uint32) else np.dtype(np.int64)


def _complete(array: StoredArray) -> StoredArray:
    """An array of a sparse matrix, of which a chunk of zeros that was never written is an error: it has been lost."""
    if not (isinstance(array, ChunkedArray) and isinstance(array.chunks, EncodedChunks) and not array.chunks.fill):
        return array
    return replace(array, chunks=replace(array.chunks, fill=None))


def _check_offsets(indptr: NDArray[np.int64], n_major: int, nnz: int, name: str) -> None:
    found = ""
    if indptr.shape != (n_major + 1,):
        found = f"found {indptr.size} of them"
    elif indptr[0] != 0 or indptr[-1] > nnz:
        found = f"they run from {indptr[0]} to {indptr[-1]}"
    elif (np.diff(indptr) < 0).any():
        found = f"number {int((np.diff(indptr) < 0).argmax()) + 1} is smaller than the one before"
    if found:
        raise SourceFormatError(
            f"{name} is damaged: expected {n_major + 1} offsets, ascending from 0 to at most {nnz}; {found}; "
            "download or write the file again"
        )
