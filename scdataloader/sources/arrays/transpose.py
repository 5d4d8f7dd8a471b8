"""From a matrix stored gene by gene (CSC) to one whose cells can be read, in memory or in a file."""

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
from scdataloader.kernels.rows.turn import count_cells, order_values, split_values
from scdataloader.runtime.files import writing
from scdataloader.sources.arrays.arrays import StoredArray
from scdataloader.sources.arrays.mapped import FileMap
from scdataloader.sources.arrays.matrices import pieces, whole
from scdataloader.types import CSRMatrix

_PIECE = 1 << 22
"""Values that are read at once: with what is made of them, some 100 MB."""
_PART = 1 << 23
"""Values that are put in order at once, in some 200 MB."""
_INT32 = np.dtype(np.int32)


@dataclass(frozen=True, kw_only=True, slots=True)
class ByGenes:
    """A matrix as it is stored, gene by gene."""

    indptr: NDArray[np.int64]
    """``(n_genes + 1,)`` checked offsets of the genes' values."""
    cells: StoredArray
    """``(nnz,)`` or longer: cell numbers, not checked, in any order within a gene."""
    data: StoredArray
    """``(nnz,)`` or longer: values."""
    shape: tuple[int, int]
    """(cells, genes)."""
    key: str
    """What users call it."""
    location: str
    """Path of its group."""
    file: FileMap
    """Where it lies."""

    @property
    def nnz(self) -> int:
        """How many values are stored."""
        return int(self.indptr[-1])

    def damaged(self, found: str) -> SourceFormatError:
        """The error to raise for cell numbers that make no sense."""
        return SourceFormatError(
            f"{self.file.path} is damaged: {self.location}/indices {found}, where cells 0 to {self.shape[0] - 1} were "
            "expected; fetch or write the file again"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Turned:
    """The same matrix cell by cell."""

    matrix: CSRMatrix
    """Genes ascend within a cell; one that a cell has several times stays so, in the order of before."""
    file: FileMap
    """What is mapped for it."""


Turn = Callable[[ByGenes], Turned]
"""A way to turn a matrix round.

Raises:
    SourceFormatError: a cell number is out of range.
"""


def in_memory(stored: ByGenes) -> Turned:
    """Turn a matrix round in memory, as a whole, with a warning: a `Turn`."""
    cells, values = whole(stored.cells), whole(stored.data)
    if cells.size and not (cells.min() >= 0 and cells.max() < stored.shape[0]):
        raise stored.damaged(f"holds numbers from {cells.min()} to {cells.max()}")
    turned = csc_matrix((values[: stored.nnz], cells[: stored.nnz], stored.indptr), shape=stored.shape).tocsr()
    megabytes = (turned.data.nbytes + turned.indices.nbytes + turned.indptr.nbytes) / 1e6
    warnings.warn(
        f"{stored.file.path}: {stored.key} is stored by genes (CSC) and was turned round in memory, which takes "
        f"{megabytes:,.1f} MB in every process that reads it; write it as CSR to read cells from the file as it lies",
        UserWarning,
        stacklevel=2,
    )
    matrix = CSRMatrix(indptr=turned.indptr.astype(np.int64), indices=turned.indices, data=turned.data)
    return Turned(matrix=matrix, file=stored.file)


@dataclass(frozen=True, kw_only=True, slots=True)
class InFile:
    """Turns a matrix round in a file, in memory that does not grow with it: a `Turn`.

    Values are counted per cell; then all of them go to the file, each to the part of it that a range of neighbouring
    cells has; then each part is put in order, in its place. So all is read twice, however large it is.
    """

    path: Path
    """The file, which is made, and may go when the matrix is let go of."""
    advance: Callable[[int], None]
    """Told how many more of the cells are done."""

    def __call__(self, stored: ByGenes) -> Turned:
        """As `Turn`.

        Raises:
            SourceFormatError: a cell number is out of range, or the matrix changes meanwhile.
            WriteError: the file cannot be written.
        """
        told = _per_cell(self.advance, stored)
        indptr = _counted(stored, told)
        edges = _edges(indptr)
        with writing(self.path):
            opened = self.path.open("w+b")
        with opened as file:
            spool = _Spool(self.path, file, stored.nnz, stored.data.dtype.itemsize)
            _split(stored, spool, indptr, edges, told)
            _order(stored, spool, indptr, edges, told)
            spool.finish()
        mapped = FileMap(self.path)
        data, genes = (
            mapped.array(begin, (stored.nnz,), dtype, stored.key).values
            for begin, dtype in zip(spool.begins, (stored.data.dtype, _INT32), strict=False)
        )
        return Turned(matrix=CSRMatrix(indptr=indptr, indices=genes, data=data), file=mapped)


class _Spool:
    """Three arrays in one file: values as bare words, their genes, and their cells, which are not kept."""

    def __init__(self, path: Path, file: BinaryIO, nnz: int, n_bytes: int) -> None:
        self.dtypes = (np.dtype(f"u{n_bytes}"), _INT32, _INT32)  # a kernel for each size, not for each type
        sizes = [-(-nnz * kind.itemsize // 8) * 8 for kind in self.dtypes]
        self.begins = np.cumsum([0, *sizes[:2]]).tolist()
        self._path, self._file = path, file

    def write(self, arrays: Sequence[NDArray[Any]], at: int) -> None:
        """Write data, genes and perhaps cells, from value ``at`` on."""
        with writing(self._path):
            for values, begin in zip(arrays, self.begins, strict=False):
                self._file.seek(begin + at * values.itemsize)
                self._file.write(values.data)

    def read_into(self, arrays: Sequence[NDArray[Any]], at: int) -> None:
        """Fill data, genes and cells from value ``at`` on."""
        for values, begin in zip(arrays, self.begins, strict=True):
            self._file.seek(begin + at * values.itemsize)
            self._file.readinto(values.data)  # type: ignore[attr-defined]

    def finish(self) -> None:
        """Leave values and genes."""
        with writing(self._path):
            self._file.truncate(max(1, self.begins[2]))  # nothing cannot be mapped
            self._file.flush()


def _per_cell(advance: Callable[[int], None], stored: ByGenes) -> Callable[[int], None]:
    """Told of values, tells of cells: each value is met three times."""
    n_all, n_done, n_told = max(1, 3 * stored.nnz), 0, 0

    def told(n_values: int) -> None:
        nonlocal n_done, n_told
        n_done += n_values
        n_cells = stored.shape[0] * n_done // n_all
        advance(n_cells - n_told)
        n_told = n_cells

    return told


def _pieces(stored: ByGenes, array: StoredArray) -> Iterator[NDArray[Any]]:
    """The values of an array, in memory of our own: those of a file could change under a kernel's hands."""
    for begin, values in zip(range(0, stored.nnz, _PIECE), pieces(array, _PIECE), strict=False):
        yield np.array(values[: stored.nnz - begin])
        stored.file.release()


def _counted(stored: ByGenes, told: Callable[[int], None]) -> NDArray[np.int64]:
    """``(n_cells + 1,)`` offsets of the cells' values."""
    counts = np.zeros(stored.shape[0], np.int64)
    for cells in _pieces(stored, stored.cells):
        wrong = count_cells(cells, counts)
        if wrong >= 0:
            raise stored.damaged(f"holds the number {cells[wrong]}")
        told(len(cells))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _edges(indptr: NDArray[np.int64]) -> list[int]:
    """The first cell of each part, and the number of cells; a part has at least one cell."""
    edges = [0]
    while edges[-1] < len(indptr) - 1:
        fitting = int(np.searchsorted(indptr, indptr[edges[-1]] + _PART, side="right")) - 1
        edges.append(max(fitting, edges[-1] + 1))
    return edges


def _split(
    stored: ByGenes, spool: _Spool, indptr: NDArray[np.int64], edges: list[int], told: Callable[[int], None]
) -> None:
    """Write every value to its part. Where there are other values now than were counted, `_order` finds that out."""
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
        told(len(cells))


def _order(
    stored: ByGenes, spool: _Spool, indptr: NDArray[np.int64], edges: list[int], told: Callable[[int], None]
) -> None:
    """Put each part in order."""
    n_most = int(np.diff(indptr[edges]).max(initial=0))
    room = [np.empty(n_most, dtype) for dtype in (*spool.dtypes, *spool.dtypes[:2])]
    for first, stop in pairwise(edges):
        offsets = indptr[first : stop + 1] - indptr[first]
        data, genes, cells, *ordered = (array[: offsets[-1]] for array in room)
        spool.read_into((data, genes, cells), int(indptr[first]))
        if not order_values(cells, genes, data, offsets, first, *reversed(ordered)):
            raise stored.damaged("changed while it was read")
        spool.write(ordered, int(indptr[first]))
        told(len(data))
