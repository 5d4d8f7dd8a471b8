"""Results of a model brought back to cells: a Parquet file with the source and the name of each cell."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from types import TracebackType

    from scdataloader.collection.collection import Collection

__all__ = ["PredictionFile", "write_predictions"]

ABOUT_CELLS = ("row", "source", "obs_name")
"""Columns of the file before those of the results."""


def write_predictions(
    path: str | PathLike[str], collection: Collection, rows: ArrayLike, results: Mapping[str, Any]
) -> None:
    """Write results of cells as Parquet, with the row, the source and the name of each cell.

    Args:
        path: The file to write.
        collection: The cells.
        rows: ``(m,)`` row numbers of the cells in the collection, as ``batch["row"]`` has them.
        results: {column: ``(m,)`` or ``(m, D)`` values}, as arrays of NumPy or Arrow, or as lists.

    Raises:
        FileExistsError: the file exists.
        ValueError: a column has another length, or the name of one of `ABOUT_CELLS`.
    """
    with PredictionFile(path, collection) as file:
        file.write(np.asarray(rows, np.int64), results)


class PredictionFile:
    """A file of predictions that is written piece by piece, and appears under its name when it is complete."""

    def __init__(self, path: str | PathLike[str], collection: Collection) -> None:
        """Describe the file.

        Raises:
            FileExistsError: the file exists.
        """
        self.path = Path(path)
        refuse_existing(self.path)
        self._collection = collection
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, rows: NDArray[np.int64], results: Mapping[str, Any]) -> None:
        """Append cells.

        Raises:
            ValueError: a column has another length, or the name of one of `ABOUT_CELLS`.
        """
        taken = [name for name in ABOUT_CELLS if name in results]
        if taken:
            raise ValueError(f"results have a column {taken[0]!r}, which names the cells; rename it")
        columns = {name: column(values) for name, values in results.items()}
        for name, values in columns.items():
            if len(values) != len(rows):
                raise ValueError(f"results have {len(values):,} values of {name!r} for {len(rows):,} cells")
        table = pa.table({**self._about(rows), **columns})
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._partial, table.schema, compression="zstd")
        self._writer.write_table(table)

    def _about(self, rows: NDArray[np.int64]) -> dict[str, pa.Array]:
        sources = np.empty(len(rows), object)
        for part, place, _ in self._collection.rows_in_parts(rows):
            sources[place] = part.source.name
        names = self._collection.obs_names(rows)
        return {
            "row": pa.array(rows),
            "source": pa.array(sources, pa.string()).dictionary_encode(),
            "obs_name": pa.array(names, pa.string()),
        }

    def __exit__(self, kind: object, error: object, traceback: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()
        if kind is None and self._writer is not None:
            refuse_existing(self.path)
            self._partial.replace(self.path)
        else:
            with suppress(FileNotFoundError):
                self._partial.unlink()


def refuse_existing(path: Path) -> None:
    """See that nothing would be overwritten.

    Raises:
        FileExistsError: the file exists.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists; name another file, or remove it first")


def column(values: Any) -> pa.Array:
    """Values of cells as a column; ``(m, D)`` arrays as lists of fixed length."""
    if isinstance(values, pa.Array):
        return values
    array = np.asarray(values)
    if array.ndim == 2:  # noqa: PLR2004
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(array).ravel()), array.shape[1])
    return pa.array(array if array.ndim == 1 and array.dtype != object else list(values))
