"""Matrices of an AnnData exactly as they are stored: any of them, in its own dtype, as dense rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.sources import H5adSource, ZarrSource, open_source
from scdataloader.sources.anndata.file import AnnDataFile
from scdataloader.sources.anndata.layout import Kind, Node, is_array, lookup

GAP = 1 << 13
"""Values between two wanted rows that are read along: cheaper than another call of the library."""
SPAN = 1 << 22
"""Values that are read at once: bounds the memory that a batch takes beyond its own rows."""

Columns = NDArray[np.int64] | None
"""Where each column of a matrix goes: a number, or −1 for nowhere; None if every column keeps its number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredMatrix:
    """One array of cells by anything."""

    file: AnnDataFile
    """Where it lies."""
    location: str
    """Path of its group or array in the file."""
    kind: Kind
    """How it is stored."""
    shape: tuple[int, ...]
    """Cells first."""
    dtype: np.dtype[Any]
    """Of the stored values."""
    source: H5adSource | ZarrSource | None
    """Reads the same matrix faster; None where float32 does not hold every value of ``dtype``, and for obsm."""

    @classmethod
    def find(cls, file: AnnDataFile, location: str) -> Self | None:
        """The matrix at a path of the file, None where there is none.

        Raises:
            SourceFormatError: what lies there is not an array, or is stored by columns.
        """
        node = lookup(file.root, location)
        if node is None:
            return None
        if is_array(node):
            kind: Kind = "dense"
            shape, dtype = node.shape, node.dtype
        else:
            kind = "csr"
            encoding = str(node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", "table or group")))
            if not encoding.startswith("csr"):
                raise SourceFormatError(
                    f"{location} in {file.path} is stored as {encoding}; expected rows: a CSR matrix or a dense array. "
                    "Write it again from scipy.sparse.csr_matrix(...) or as an array"
                )
            shape = node.attrs["shape" if "shape" in node.attrs else "h5sparse_shape"]
            dtype = node["data"].dtype
        return cls(
            file=file,
            location=location,
            kind=kind,
            shape=tuple(int(size) for size in shape),
            dtype=dtype,
            source=_fast_source(file.path, location, dtype),
        )

    def fill(self, out: NDArray[Any], targets: NDArray[np.int64], rows: NDArray[np.int64], to: Columns = None) -> None:
        """Set row ``targets[i]`` of ``out`` to row ``rows[i]`` of the matrix, in one sorted pass over the file.

        Args:
            out: ``(n, width)`` zeros, of the dtype to convert to.
            targets: Rows of ``out``.
            rows: Rows of the matrix, in any order, repeats allowed.
            to: ``(n_columns,)`` the column of ``out`` for each column of the matrix, −1 to leave it out; None where
                they are the same.
        """
        order = np.argsort(rows, kind="stable")
        rows, targets = rows[order], targets[order]
        if self.source is not None:
            found = self.source.read(rows)
            _scatter(out, np.repeat(targets, np.diff(found.indptr)), found.indices, found.data, to)
            return
        fill = self._fill_csr if self.kind == "csr" else self._fill_dense
        fill(self.file.root[self.location], out, targets, rows, to)

    def close(self) -> None:
        """Let go of what the source keeps; reading starts it again."""
        if self.source is not None:
            self.source.close()

    def _fill_csr(
        self, node: Node, out: NDArray[Any], targets: NDArray[np.int64], rows: NDArray[np.int64], to: Columns
    ) -> None:
        indptr = self.file.indptr(self.location)
        starts, stops = indptr[rows], indptr[rows + 1]
        for first, last in _spans(starts, stops, _gap(node["data"])):
            begin, end = int(starts[first]), int(stops[last - 1])
            if begin == end:
                continue
            sizes = stops[first:last] - starts[first:last]
            ends = np.cumsum(sizes)
            inside = np.repeat(starts[first:last] - begin - ends + sizes, sizes) + np.arange(ends[-1])
            cells = np.repeat(targets[first:last], sizes)
            _scatter(out, cells, node["indices"][begin:end][inside], node["data"][begin:end][inside], to)

    def _fill_dense(
        self, node: Node, out: NDArray[Any], targets: NDArray[np.int64], rows: NDArray[np.int64], to: Columns
    ) -> None:
        width = max(1, math.prod(self.shape[1:]))
        for first, last in _spans(rows * width, (rows + 1) * width, _gap(node)):
            begin = int(rows[first])
            block = node[begin : int(rows[last - 1]) + 1][rows[first:last] - begin]
            if to is None:
                out[targets[first:last]] = block
            else:
                kept = to >= 0
                out[targets[first:last, None], to[kept]] = block[:, kept]


def _fast_source(path: Path, location: str, dtype: np.dtype[Any]) -> H5adSource | ZarrSource | None:
    if location.startswith("obsm/") or not np.can_cast(dtype, np.float32):
        return None
    return open_source(path, counts="raw" if location.startswith("raw") else location, values="any")


def _scatter(
    out: NDArray[Any], cells: NDArray[np.int64], columns: NDArray[Any], data: NDArray[Any], to: Columns
) -> None:
    if to is not None:
        columns = to[columns]
        kept = columns >= 0
        cells, columns, data = cells[kept], columns[kept], data[kept]
    out[cells, columns] = data


def _gap(array: Node) -> int:
    """Values that may be read along between two wanted rows: a chunk is decoded whole anyway."""
    return max(GAP, int(array.chunks[0]) * math.prod(array.shape[1:]) if array.chunks else 0)


def _spans(starts: NDArray[np.int64], stops: NDArray[np.int64], gap: int) -> Iterator[tuple[int, int]]:
    """Runs ``[first, last)`` of ascending ranges that lie near each other."""
    begins, ends = starts.tolist(), stops.tolist()
    first = 0
    for i in range(1, len(begins) + 1):
        if i == len(begins) or begins[i] - ends[i - 1] > gap or ends[i] - begins[first] > SPAN:
            yield first, i
            first = i
