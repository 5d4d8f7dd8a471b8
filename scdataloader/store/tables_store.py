"""Tables of cells and of genes into the parquet files of a store."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scdataloader.errors import UnsupportedDataError
from scdataloader.protocols import HasNames, Source
from scdataloader.runtime.files import opened_atomically, writing
from scdataloader.store.manifest import FileRecord, file_record
from scdataloader.store.source import StoreSource
from scdataloader.store.tables import CATEGORIES, POSITION, ROW, order_of

_ROWS_PER_GROUP = 1 << 17
_N_SHOWN = 5
_KINDS_OF_CATEGORIES = "biuf"
"""Beside text, which parquet itself keeps as categories."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneList:
    """The genes of a source, as a store keeps them."""

    digest: str
    """Of ids and columns, in the source's order."""
    ids: list[str]
    """``(n_genes,)`` ids, in the source's order."""
    table: pd.DataFrame
    """All columns in the order of the sorted ids, with the gene's place in the source."""

    @classmethod
    def of(cls, source: Source) -> GeneList:
        """Sort the genes of a source by their ids, as Python orders text.

        Raises:
            UnsupportedDataError: ids occur twice; names some.
        """
        table = source.var
        ids = np.array([str(gene) for gene in table.index], object)
        order = np.argsort(ids, kind="stable").astype(np.int64)
        _refuse_repeated(source.name, ids[order])
        position = _position(source, table)
        table = table.drop(columns=POSITION, errors="ignore").set_axis(pd.Index(ids, name=table.index.name), axis=0)
        return cls(
            digest=_digest(table.iloc[np.argsort(position)]),
            ids=ids.tolist(),
            table=table.iloc[order].assign(**{POSITION: position[order]}),
        )


def _position(source: Source, table: pd.DataFrame) -> NDArray[np.int64]:
    """Where the genes are in the source; in a store, which has sorted them, where they were before."""
    if isinstance(source, StoreSource):
        return np.argsort(order_of(source.var_table, table, POSITION))
    if POSITION in table:
        raise UnsupportedDataError(f"{source.name} has the var column {POSITION!r}, a name that stores use: rename it")
    return np.arange(len(table))


def _refuse_repeated(name: str, ids: NDArray[Any]) -> None:
    repeated = sorted(set(ids[1:][ids[1:] == ids[:-1]]))
    if repeated:
        raise UnsupportedDataError(
            f"{name} has {len(repeated)} gene ids more than once, {', '.join(repeated[:_N_SHOWN])} among them; a store "
            "numbers genes by their ids: write the file with ids that occur once (`adata.var_names_make_unique()`, or "
            "`adata.var_names = adata.var[<a column of unique ids>]`)"
        )


def whole_obs(source: Source) -> pd.DataFrame:
    """The cell table of a source, indexed by the names of its cells where it has names."""
    frame = source.obs(list(source.obs_columns))
    return frame.set_axis(source.obs_names()) if isinstance(source, HasNames) else frame


def write_table(folder: Path, path: str, frame: pd.DataFrame, name: str) -> FileRecord:
    """Write a table to ``path`` (``obs/…``, ``var/…`` or ``genes/…``) of a store; its index and dtypes are kept.

    Raises:
        UnsupportedDataError: a column has a type that parquet lacks, or a name that the store uses; names both.
        WriteError: the file cannot be written.
    """
    return write_arrow(folder, path, _to_arrow(frame, path.partition("/")[0], name))


def write_arrow(folder: Path, path: str, table: pa.Table) -> FileRecord:
    """Write a table to ``path`` of a store, as one file that is there whole or not at all.

    Raises:
        WriteError: the file cannot be written.
    """
    with writing(folder / path):
        with opened_atomically(folder / path) as file:
            pq.write_table(table, file, row_group_size=_ROWS_PER_GROUP, compression="zstd")
        return file_record(folder, path)


def _to_arrow(frame: pd.DataFrame, kind: str, name: str) -> pa.Table:
    if ROW in frame:
        raise UnsupportedDataError(f"{name} has the {kind} column {ROW!r}, a name that stores use: rename it")
    # A table without columns has pandas take their names for numbers, and refuse one that is added later.
    frame = frame.set_axis(pd.Index([str(column) for column in frame.columns], dtype=object), axis=1)
    kept: dict[str, Any] = {}
    for column, values in frame.items():
        dtype = values.dtype
        # Categories of text that are there are the only ones that parquet keeps.
        if isinstance(dtype, pd.CategoricalDtype) and not (len(frame) and _are_text(dtype.categories)):
            kept[str(column)] = _described(str(column), dtype, kind, name)
            frame = frame.assign(**{str(column): _without_categories(values)})
    try:
        table = pa.Table.from_pandas(frame, preserve_index=True)
        pq.write_table(table.slice(0, 0), io.BytesIO())
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UnsupportedDataError(_unfit_column(frame, kind, name)) from error
    if kept:
        table = table.replace_schema_metadata({**table.schema.metadata, CATEGORIES: json.dumps(kept).encode()})
    return table


def _are_text(categories: pd.Index) -> bool:
    return len(categories) > 0 and pd.api.types.infer_dtype(categories, skipna=False) == "string"


def _described(column: str, dtype: pd.CategoricalDtype, kind: str, name: str) -> dict[str, Any]:
    """Categories that parquet would forget."""
    categories = dtype.categories
    if len(categories) and categories.dtype.kind not in _KINDS_OF_CATEGORIES and not _are_text(categories):
        raise UnsupportedDataError(
            f"{name}: the categories of {kind} column {column!r} are {categories.dtype}, where text, numbers or "
            f"booleans can be kept; {_as_text(kind, column)}"
        )
    return {"dtype": str(categories.dtype), "categories": categories.tolist(), "ordered": bool(dtype.ordered)}


def _as_text(kind: str, column: object) -> str:
    of = f"adata.{kind}[{column!r}]"
    return f"turn it into text (`{of} = {of}.astype(str)`) or drop it, and write the file again"


def _without_categories(values: pd.Series[Any]) -> pd.Series[Any]:
    if not len(values.cat.categories):
        return pd.Series(np.full(len(values), np.nan), values.index)
    kind: Any = values.cat.categories.dtype
    # pandas' own integers and booleans, unlike those of NumPy, can be missing
    missing = {"i": kind.name.capitalize(), "u": "UInt" + kind.name[4:], "b": "boolean"}.get(kind.kind, kind)
    return values.astype(missing)


def _unfit_column(frame: pd.DataFrame, kind: str, name: str) -> str:
    for column, values in frame.items():
        try:
            pq.write_table(pa.table({"column": pa.Array.from_pandas(values)}), io.BytesIO())
        except (pa.ArrowException, TypeError, ValueError) as error:
            return (
                f"{name}: {kind} column {column!r} ({values.dtype}) cannot be kept in a parquet file ({error}); "
                f"{_as_text(kind, column)}"
            )
    return f"{name}: its {kind} table, with the index {frame.index.name!r}, cannot be kept in a parquet file"


def _digest(table: pd.DataFrame) -> str:
    """Of ids and columns with their dtypes, whatever library versions write them."""
    digest = blake2b(digest_size=16)
    for name, values in [("", table.index.to_series()), *table.items()]:
        digest.update(json.dumps(str(name)).encode())
        for part in _content(values):
            digest.update(part)
    return digest.hexdigest()


def _content(values: Any) -> Iterator[bytes]:
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        yield json.dumps(["category", len(values), bool(dtype.ordered)]).encode()
        yield from _content(dtype.categories)
        yield pd.Series(values).cat.codes.to_numpy(np.int64).tobytes()
        return
    yield json.dumps([str(dtype), len(values)]).encode()
    if isinstance(dtype, np.dtype) and dtype.kind in "biufmM":
        yield np.ascontiguousarray(values.to_numpy()).tobytes()
    else:
        texts = [None if missing else str(value) for value, missing in zip(values, pd.isna(values), strict=True)]
        yield json.dumps(texts).encode()
