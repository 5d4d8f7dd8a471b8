"""Transpose a matrix stored as CSC to CSR, in memory or in a file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix

from scdataloader.errors import SourceFormatError
from scdataloader.kernels.rows.transpose import count_cells, order_values, split_values
from scdataloader.runtime.files import writing
from scdataloader.sources.arrays.arrays import StoredArray, pieces, whole
from scdataloader.sources.arrays.mapped import FileMap, FileMaps
from scdataloader.types import CSRMatrix

_PIECE = 1 << 22
"""Values read at once, which take about 100 MB with all that is derived from them."""
_PART = 1 << 23
"""Values sorted at once, which takes about 200 MB."""
_INT32 = np.dtype(np.int32)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredCSC:
    """A CSC matrix in a file."""

    indptr: NDArray[np.int64]
    """``(n_genes + 1,)`` checked offsets of the genes' values."""
    cells: StoredArray
    """``(nnz,)`` or longer: cell numbers, not checked, in any order within a gene."""
    data: StoredArray
    """``(nnz,)`` or longer: values."""
    shape: tuple[int, int]
    """(cells, genes)."""
    key: str
    """Name of the matrix in messages."""
    location: str
    """Path of its group in the file."""
    files: FileMaps
    """The file, and others that it links to."""

    @property
    def nnz(self) -> int:
        """Number of stored values."""
        return int(self.indptr[-1])

    def damaged(self, found: str) -> SourceFormatError:
        """The error to raise for invalid cell numbers."""
        return SourceFormatError(
            f"{self.files.path} is damaged: {self.location}/indices {found}, expected cells 0 to {self.shape[0] - 1}; "
            "download or write the file again"
        )


Transpose = Callable[[StoredCSC], tuple[CSRMatrix, FileMap | FileMaps]]
"""Returns the matrix as CSR, and the maps that it needs.

Genes ascend within a cell; repeated genes of a cell keep their order.

Raises:
    SourceFormatError: a cell number is out of range.
"""


def transpose_in_memory(stored: StoredCSC) -> tuple[CSRMatrix, FileMaps]:
    """Transpose a whole matrix in memory, with a warning: a `Transpose`."""
    cells, values = whole(stored.cells), whole(stored.data)
    if cells.size and not (cells.min() >= 0 and cells.max() < stored.shape[0]):
        raise stored.damaged(f"holds numbers from {cells.min()} to {cells.max()}")
    csr = csc_matrix((values[: stored.nnz], cells[: stored.nnz], stored.indptr), shape=stored.shape).tocsr()
    megabytes = (csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes) / 1e6
    warnings.warn(
        f"{stored.files.path}: {stored.key} is stored as CSC and was transposed to CSR in memory, which takes "
        f"{megabytes:,.1f} MB in every process that reads it; write it as CSR to read cells directly from the file",
        UserWarning,
        stacklevel=2,
    )
    return CSRMatrix(indptr=csr.indptr.astype(np.int64), indices=csr.indices, data=csr.data), stored.files


@dataclass(frozen=True, kw_only=True, slots=True)
class TransposeInFile:
    """Transpose a matrix in a temporary file, in memory that does not grow with the matrix: a `Transpose`.

    Three passes: values are counted per cell; each value is written to the part of the file that belongs to a range of
    cells; each part is sorted in place.
    """

    path: Path
    """The file to write. It may be removed once the matrix is no longer used."""
    advance: Callable[[int], None]
    """Called with the number of cells finished since the last call."""

    def __call__(self, stored: StoredCSC) -> tuple[CSRMatrix, FileMap]:
        """As `Transpose`.

        Raises:
            SourceFormatError: a cell number is out of range, or the matrix changes meanwhile.
            WriteError: the file cannot be written.
        """
        on_values = _per_cell(self.advance, stored)
        indptr = _count(stored, on_values)
        edges = _edges(indptr)
        with writing(self.path):
            opened = self.path.open("w+b")
        with opened as file:
            spool = _Spool(self.path, file, stored.nnz, stored.data.dtype.itemsize)
            _split(stored, spool, indptr, edges, on_values)
            _order(stored, spool, indptr, edges, on_values)
            spool.finish()
        mapped = FileMap(self.path)
        data, genes = (
            mapped.array(begin, (stored.nnz,), dtype, stored.key).values
            for begin, dtype in zip(spool.begins, (stored.data.dtype, _INT32), strict=False)
        )
        return CSRMatrix(indptr=indptr, indices=genes, data=data), mapped


class _Spool:
    """Three arrays in one file: values as unsigned words, their genes, and their cells, which `finish` drops."""

    def __init__(self, path: Path, file: BinaryIO, nnz: int, n_bytes: int) -> None:
        self.dtypes = (np.dtype(f"u{n_bytes}"), _INT32, _INT32)  # a kernel for each size, not for each type
        sizes = [-(-nnz * kind.itemsize // 8) * 8 for kind in self.dtypes]
        self.begins = np.cumsum([0, *sizes[:2]]).tolist()
        self._path, self._file = path, file

    def write(self, arrays: Sequence[NDArray[Any]], at: int) -> None:
        """Write values, genes and perhaps cells, starting with value number ``at``."""
        with writing(self._path):
            for values, begin in zip(arrays, self.begins, strict=False):
                self._file.seek(begin + at * values.itemsize)
                self._file.write(values.data)

    def read_into(self, arrays: Sequence[NDArray[Any]], at: int) -> None:
        """Fill values, genes and cells, starting with value number ``at``."""
        for values, begin in zip(arrays, self.begins, strict=True):
            self._file.seek(begin + at * values.itemsize)
            self._file.readinto(values.data)  # type: ignore[attr-defined]

    def finish(self) -> None:
        """Keep values and genes only."""
        with writing(self._path):
            self._file.truncate(max(1, self.begins[2]))  # an empty file cannot be mapped
            self._file.flush()


def _per_cell(advance: Callable[[int], None], stored: StoredCSC) -> Callable[[int], None]:
    """Convert progress in values to progress in cells; every value is counted in each of the three passes."""
    n_all, n_done, n_reported = max(1, 3 * stored.nnz), 0, 0

    def on_values(n_values: int) -> None:
        nonlocal n_done, n_reported
        n_done += n_values
        n_cells = stored.shape[0] * n_done // n_all
        advance(n_cells - n_reported)
        n_reported = n_cells

    return on_values


def _pieces(stored: StoredCSC, array: StoredArray) -> Iterator[NDArray[Any]]:
    """The values of an array, copied: a mapped file could change while a kernel reads it."""
    for begin, values in zip(range(0, stored.nnz, _PIECE), pieces(array, _PIECE), strict=False):
        copied = np.array(values[: stored.nnz - begin])
        stored.files.check()
        yield copied
        stored.files.release()


def _count(stored: StoredCSC, on_values: Callable[[int], None]) -> NDArray[np.int64]:
    """``(n_cells + 1,)`` offsets of the cells' values."""
    counts = np.zeros(stored.shape[0], np.int64)
    for cells in _pieces(stored, stored.cells):
        wrong = count_cells(cells, counts)
        if wrong >= 0:
            raise stored.damaged(f"holds the number {cells[wrong]}")
        on_values(len(cells))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _edges(indptr: NDArray[np.int64]) -> list[int]:
    """The first cell of each part, and the number of cells; a part has at least one cell."""
    edges = [0]
    while edges[-1] < len(indptr) - 1:
        fitting = int(np.searchsorted(indptr, indptr[edges[-1]] + _PART, side="right")) - 1
        edges.append(max(fitting, edges[-1] + 1))
    return edges


def _split(
    stored: StoredCSC, spool: _Spool, indptr: NDArray[np.int64], edges: list[int], on_values: Callable[[int], None]
) -> None:
    """Write every value to its part. If the values differ from those counted, `_order` finds out."""
    part_of = np.repeat(np.arange(len(edges) - 1, dtype=np.int32), np.diff(edges))
    places = indptr[edges[:-1]]
    starts = np.zeros(len(edges), np.int64)
    room = [np.empty(min(_PIECE, stored.nnz), dtype) for dtype in spool.dtypes]  # fresh pages cost more than the work
    both = zip(_pieces(stored, stored.cells), _pieces(stored, stored.data), strict=True)
    for number, (cells, data) in enumerate(both):
        made = [array[: len(cells)] for array in room]
        is_sound = split_values(
            cells, data.view(made[0].dtype), number * _PIECE, stored.indptr, part_of, starts, *reversed(made)
        )
        if not is_sound:
            raise stored.damaged("changed while it was read")
        for part in np.flatnonzero(np.diff(starts)):
            inside = slice(starts[part], starts[part + 1])
            spool.write([array[inside] for array in made], int(places[part]))
        places += np.diff(starts)
        on_values(len(cells))


def _order(
    stored: StoredCSC, spool: _Spool, indptr: NDArray[np.int64], edges: list[int], on_values: Callable[[int], None]
) -> None:
    """Sort each part by cell."""
    n_most = int(np.diff(indptr[edges]).max(initial=0))
    room = [np.empty(n_most, dtype) for dtype in (*spool.dtypes, *spool.dtypes[:2])]
    for first, stop in pairwise(edges):
        offsets = indptr[first : stop + 1] - indptr[first]
        data, genes, cells, *ordered = (array[: offsets[-1]] for array in room)
        spool.read_into((data, genes, cells), int(indptr[first]))
        if not order_values(cells, genes, data, offsets, first, *reversed(ordered)):
            raise stored.damaged("changed while it was read")
        spool.write(ordered, int(indptr[first]))
        on_values(len(data))
