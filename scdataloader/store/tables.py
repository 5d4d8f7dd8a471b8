"""The tables of a store, in parquet files: of cells, and of genes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError
from scdataloader.store.manifest import FileRecord, file_record

POSITION = "__position__"
"""Column of a gene table: where the gene was in its source."""
ROW = "__row__"
"""Column of a cell table, where the store has the cells in another order: where the cell was in its source."""

CATEGORIES = b"scdataloader.categories"
"""Metadata of a file: the categories of columns that parquet itself does not keep, as it does text."""

_DAMAGED = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What parquet and pandas raise of bytes that are no table."""


class Table:
    """A parquet file of a store, whose bytes are checked against the manifest before the first of them is used."""

    def __init__(self, folder: Path, record: FileRecord) -> None:
        self.path = folder / record.path
        self._folder, self._record = folder, record
        self._is_checked = False

    @property
    def columns(self) -> list[str]:
        """The columns of a cell table, without the index and what the store itself has added.

        Raises:
            StoreFormatError: it is damaged.
        """
        return [column["name"] for column in self._described() if column["field_name"] != ROW]

    def read(self, columns: Sequence[str] | None = None, *, n_rows: int | None = None) -> pd.DataFrame:
        """Some of its columns, with whatever index; or all, with the store's own and the index.

        Raises:
            StoreFormatError: it is damaged, or has not ``n_rows``.
        """
        self._check()
        try:
            table = pq.read_table(self.path, columns=None if columns is None else list(columns))
            frame = _with_categories(table)
        except _DAMAGED as error:
            raise self._refusal(error) from error
        if n_rows is not None and len(frame) != n_rows:
            raise StoreFormatError(f"{self.path} has {len(frame):,} rows, the manifest says {n_rows:,}")
        return frame

    def _described(self) -> list[dict[str, Any]]:
        """What pandas has written about the columns that are no index."""
        self._check()
        try:
            described = pq.read_schema(self.path).pandas_metadata
            index = [name for name in described["index_columns"] if isinstance(name, str)]
            return [column for column in described["columns"] if column["field_name"] not in index]
        except _DAMAGED as error:
            raise self._refusal(error) from error

    def _check(self) -> None:
        if self._is_checked:
            return
        try:
            found = file_record(self._folder, self._record.path)
        except FileNotFoundError as error:
            raise StoreFormatError(f"{self.path} is missing; copy or convert the store again") from error
        if found != self._record:
            raise StoreFormatError(f"{self.path} is damaged: its checksum does not match; copy or convert it again")
        self._is_checked = True

    def _refusal(self, error: BaseException) -> BaseException:
        if isinstance(error, OSError) and error.errno is not None:
            return error  # of the disk, not of what is on it
        return StoreFormatError(f"{self.path} is no table of a store: {error}")


def _with_categories(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    for column, kept in json.loads(table.schema.metadata.get(CATEGORIES, b"{}")).items():
        if column in frame:
            categories = pd.Index(kept["categories"], dtype=kept["dtype"])
            frame[column] = pd.Categorical(frame[column], categories=categories, ordered=kept["ordered"])
    return frame


def order_of(table: Table, frame: pd.DataFrame, column: str) -> NDArray[np.int64]:
    """The places of a table's rows in the order in which the source had them, from the store's own column.

    Raises:
        StoreFormatError: the column is missing, or does not number the rows.
    """
    place = frame[column].to_numpy() if column in frame else np.empty(0, np.int64)
    if place.dtype.kind not in "iu" or not np.array_equal(np.sort(place), np.arange(len(frame))):
        raise StoreFormatError(f"{table.path} has no column {column} that numbers its {len(frame):,} rows")
    return np.argsort(place)
