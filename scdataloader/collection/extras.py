"""What a batch can carry beside counts and label codes: columns of obs, and further matrices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.collection.gather import write_aligned
from scdataloader.errors import SourceFormatError
from scdataloader.kernels.rows.align import OK
from scdataloader.protocols import HasMatrices, HasMatrixColumns
from scdataloader.runtime.memory import row_buffers, without_gaps
from scdataloader.runtime.messages import suggestion
from scdataloader.types import CSRMatrix, CSRRows

if TYPE_CHECKING:
    from scdataloader.collection.collection import CellLocations, Collection
    from scdataloader.genes.alignment import AlignedSource


@dataclass(frozen=True, kw_only=True, slots=True)
class ObsColumn:
    """A column of obs of all cells of a collection."""

    values: NDArray[Any]
    """``(n,)`` numbers, or the position of each label in ``labels``."""
    labels: NDArray[Any] | None = None
    """The labels as strings, and None last, for missing ones; None of a column of numbers."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """``(len(rows),)`` numbers, or strings and None."""
        return self.values[rows] if self.labels is None else self.labels[self.values[rows]]


def check_columns(collection: Collection, columns: Iterable[str]) -> None:
    """See that every source has columns of obs.

    Raises:
        KeyError: a source lacks one; names both.
    """
    for column in columns:
        for part in collection.parts:
            if column not in (*part.source.obs_columns, *collection.own_columns):
                raise KeyError(_lacks(part.source.name, "obs column", column, part.source.obs_columns))


def check_matrices(collection: Collection, keys: Iterable[str]) -> None:
    """See that every source has matrices, and that the columns of those of obsm have the same names.

    Raises:
        KeyError: a source lacks one; names both.
        ValueError: two sources have other names of columns; names both, and the columns.
    """
    for key in keys:
        named: tuple[str, list[str]] | None = None
        for part in collection.parts:
            source = part.source
            has = source.matrix_keys if isinstance(source, HasMatrices) else ()
            if key not in has:
                raise KeyError(_lacks(source.name, "matrix", key, has))
            if not key.startswith(("layers/", "obsm/")):
                raise ValueError(f"{key!r} is not a matrix of batches; use the key of a layer or of obsm")
            columns = source.matrix_columns(key) if isinstance(source, HasMatrixColumns) else None
            if columns is not None:
                named = named or (source.name, list(columns))
                _check_same(key, *named, source.name, list(columns))


def _check_same(key: str, first: str, expected: list[str], source: str, columns: list[str]) -> None:
    if columns == expected:
        return
    if len(columns) != len(expected):
        raise ValueError(
            f"{key} has {len(expected)} columns in {first} and {len(columns)} in {source}; they must agree"
        )
    at = next(i for i, (one, other) in enumerate(zip(expected, columns, strict=True)) if one != other)
    raise ValueError(
        f"column {at} of {key} is {expected[at]!r} in {first} and {columns[at]!r} in {source}; names and order of the "
        "columns must agree"
    )


def load_column(collection: Collection, column: str) -> ObsColumn:
    """A column of obs that every source has: numbers where all sources have numbers, otherwise labels."""
    series = collection.column(column)
    if all(pd.api.types.is_numeric_dtype(values.dtype) for values in series):
        return ObsColumn(values=collection.arrange([_numbers(values) for values in series]))
    categories = [values.astype("category") for values in series]
    labels = sorted({str(label) for values in categories for label in values.cat.categories})
    position = {label: number for number, label in enumerate(labels)}
    codes = []
    for values in categories:
        # the last entry answers the code -1 of a missing value
        lut = np.array([*(position[str(label)] for label in values.cat.categories), len(labels)], np.int32)
        codes.append(lut[values.cat.codes.to_numpy()])
    return ObsColumn(values=collection.arrange(codes), labels=np.array([*labels, None], object))


def read_matrix(collection: Collection, key: str, located: CellLocations) -> CSRRows | NDArray[np.float32]:
    """Located cells of a further matrix.

    Returns:
        Rows in vocabulary genes of "layers/…"; ``(len(located), D)`` float32 of "obsm/…".

    Raises:
        SourceFormatError: a source returns a matrix of another shape than it must have.
        ValueError: the sources have different numbers of columns.
    """
    if key in located.matrices:
        return located.matrices[key].read()
    pieces, rows = [], located.rows
    for part, place, own in collection.rows_in_parts(rows):
        if not isinstance(part.source, HasMatrices):
            raise KeyError(_lacks(part.source.name, "matrix", key, ()))
        piece = part.source.read_matrix(key, own)
        n_rows = len(piece)
        if n_rows != len(own):
            raise SourceFormatError(f"{part.source.name} returned {n_rows} cells of {key}, expected {len(own)}")
        pieces.append((part, place, piece))
    if key.startswith("layers/"):
        return _aligned(key, len(rows), collection.n_genes, pieces)
    return _stacked(key, len(rows), pieces)


def _aligned(key: str, n_rows: int, n_genes: int, pieces: Sequence[tuple[AlignedSource, Any, Any]]) -> CSRRows:
    sizes = np.zeros(n_rows, np.int64)
    for part, place, piece in pieces:
        if not isinstance(piece, CSRRows) or piece.n_genes != len(part.genes.lut):
            raise SourceFormatError(f"{part.source.name} must return {key} as rows of {len(part.genes.lut):,} genes")
        sizes[place] = np.diff(piece.indptr)
    buffers = row_buffers(sizes)
    for part, place, piece in pieces:
        matrix = CSRMatrix(indptr=piece.indptr, indices=piece.indices, data=piece.data)
        status, at = write_aligned(matrix, np.arange(len(place)), part.genes, n_genes, place, buffers)
        if status != OK:
            raise SourceFormatError(f"{part.source.name} has a gene number out of range in {key}, cell {at} as read")
    return without_gaps(buffers, sizes, n_genes)


def _stacked(key: str, n_rows: int, pieces: Sequence[tuple[AlignedSource, Any, Any]]) -> NDArray[np.float32]:
    widths = {part.source.name: piece.shape[1] for part, _, piece in pieces}
    if len(set(widths.values())) > 1:
        raise ValueError(f"{key} has different numbers of columns: {', '.join(f'{n} {w}' for n, w in widths.items())}")
    out = np.empty((n_rows, next(iter(widths.values()), 0)), np.float32)
    for _, place, piece in pieces:
        out[place] = piece
    return out


def _numbers(values: pd.Series[Any]) -> NDArray[Any]:
    if isinstance(values.dtype, np.dtype):
        return values.to_numpy()
    # nullable columns: whole numbers stay so where none is missing
    return values.to_numpy(np.float64, na_value=np.nan) if values.isna().any() else values.to_numpy(values.dtype.type)


def _lacks(source: str, kind: str, name: str, has: Sequence[str]) -> str:
    return f"{source} has no {kind} {name!r}, which every batch must have; {suggestion(name, has)}"
