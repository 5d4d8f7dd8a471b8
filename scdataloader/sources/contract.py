"""What a source returns, checked before compiled loops and pandas rely on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.protocols import NoticesChanges, ReadsStored, Source
from scdataloader.types import CSRMatrix, CSRRows

_HOW = "check it with scdataloader.testing.check_source"


def check_source(source: Source) -> None:
    """Check what describes a source and costs nothing to read.

    Raises:
        TypeError: a member is not as `Source` documents it; names the member and what it is.
    """
    name: Any = source.name
    if not isinstance(name, str):
        raise TypeError(f"{type(source).__name__}: name must be a string; got {_described(name)}; {_HOW}")
    n_obs: Any = source.n_obs
    if not isinstance(n_obs, int | np.integer) or n_obs < 0:
        raise TypeError(f"{name}: n_obs must be a number of cells; got {_described(n_obs)}; {_HOW}")
    columns: Any = source.obs_columns
    if isinstance(columns, str):
        raise TypeError(f"{name}: obs_columns must be a sequence of names; got {_described(columns)}; {_HOW}")


def fingerprint_of(source: Source) -> str:
    """The fingerprint of a source.

    Raises:
        TypeError: it is not a string.
    """
    fingerprint: Any = source.fingerprint
    if not isinstance(fingerprint, str):
        raise TypeError(f"{source.name}: fingerprint must be a string; got {_described(fingerprint)}; {_HOW}")
    return fingerprint


def check_unchanged(source: Source) -> None:
    """Check that the files of a source, if it has any, are still those that were opened.

    Raises:
        SourceChangedError: one has changed, or cannot be read.
    """
    if isinstance(source, NoticesChanges):
        source.check_unchanged()


def obs_of(source: Source, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of the cell table of a source.

    Raises:
        KeyError: the source lacks a column.
        TypeError: the source returns something other than a table of ``n_obs`` rows with these columns.
    """
    table: Any = source.obs(columns)
    asked = list(columns)
    expected = f"{source.name}: obs({asked}) must return a DataFrame of {source.n_obs} rows"
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"{expected}; got {_described(table)}; {_HOW}")
    if len(table) != source.n_obs or list(table.columns) != asked:
        raise TypeError(f"{expected}; got {len(table)} rows of the columns {list(table.columns)}; {_HOW}")
    return table


def rows_of(source: Source, rows: NDArray[np.int64]) -> CSRRows:
    """Cells of a source. That gene numbers are in range and in order is left to the loops that read them.

    Raises:
        TypeError: the source returns something other than rows of this number.
    """
    read: Any = source.read(rows)
    return check_rows(read, len(rows), f"{source.name}: read() of {len(rows)} cells")


def check_rows(read: Any, n_rows: int, call: str) -> CSRRows:
    """Rows that a source returned.

    Args:
        read: What it returned.
        n_rows: Number of cells expected.
        call: The source and the call, for the message.

    Raises:
        TypeError: these are not rows of this number.
    """
    if not isinstance(read, CSRRows):
        raise TypeError(f"{call} must return CSRRows; got {_described(read)}; {_HOW}")
    for name, dtype in (("data", np.float32), ("indices", np.int32), ("indptr", np.int64)):
        array: Any = getattr(read, name)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
            found = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else _described(array)
            raise TypeError(f"{call} must return {name} as a vector of {np.dtype(dtype)}; got {found}; {_HOW}")
    _check_offsets(read, n_rows, call)
    return read


def stored_rows_of(source: Source, rows: NDArray[np.int64]) -> CSRMatrix:
    """Cells of a source as stored, if it can read them so. Gene numbers are left to the loops that read them.

    Raises:
        TypeError: the source returns something other than rows of this number.
    """
    if not isinstance(source, ReadsStored):
        read = rows_of(source, rows)
        return CSRMatrix(indptr=read.indptr, indices=read.indices, data=read.data)
    stored: Any = source.read_stored(rows)
    call = f"{source.name}: read_stored() of {len(rows)} cells"
    if not isinstance(stored, CSRMatrix):
        raise TypeError(f"{call} must return a CSRMatrix; got {_described(stored)}; {_HOW}")
    _check_offsets(stored, len(rows), call)
    return stored


def _check_offsets(read: CSRRows | CSRMatrix, n_rows: int, call: str) -> None:
    indptr, n_values = read.indptr, len(read.indices)
    if len(indptr) != n_rows + 1:
        raise TypeError(f"{call} must return {n_rows} cells; got {len(indptr) - 1}; {_HOW}")
    if indptr[0] != 0 or indptr[-1] != n_values or len(read.data) != n_values or (np.diff(indptr) < 0).any():
        raise TypeError(
            f"{call} must return offsets that ascend from 0 to the number of values; got offsets from {indptr[0]} to "
            f"{indptr[-1]}, {n_values} gene numbers and {len(read.data)} values; {_HOW}"
        )


def _described(value: object) -> str:
    """A value of a simple type, or the name of its type."""
    return f"{type(value).__name__} {value!r}" if isinstance(value, str | int | float) else type(value).__name__
