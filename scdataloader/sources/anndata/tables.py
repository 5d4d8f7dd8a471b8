"""The tables of cells and genes of a stored AnnData, in all their encodings, and the plain values of ``uns``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np
import pandas as pd

from scdataloader.errors import SourceFormatError
from scdataloader.runtime.messages import suggestion
from scdataloader.schema import ORGANISM_KEYS
from scdataloader.sources.anndata.nodes import (
    Node,
    check_array,
    check_written,
    damaged,
    is_array,
    lookup,
    member,
    path_of,
    read_node,
    read_rows,
    read_value,
    required,
    text,
    texts,
)
from scdataloader.sources.anndata.tree import Table

logger = logging.getLogger(__name__)

_INDEX_NAMES = ("_index", "index")
_OLD_VERSION = "0.1.0"
"""Encoding of tables whose categories are stored apart, by anndata 0.7."""


def frame_columns(root: Node, location: str) -> list[str]:
    """Names of the columns of a table, without its index."""
    node = _table(root, location)
    if isinstance(node, Table):
        return list(node.columns)
    if is_array(node):
        return [str(name) for name in node.dtype.names[1:]]
    order = node.attrs.get("column-order")
    if order is None:
        return sorted(key for key in node if key not in ("__categories", *_INDEX_NAMES))
    return [text(name) for name in order]


def frame_length(root: Node, location: str) -> int:
    """Number of rows of a table, read from its metadata.

    Raises:
        SourceFormatError: the table or its index is missing.
    """
    node = _table(root, location)
    if isinstance(node, Table):
        return node.n_rows
    return int(node.shape[0]) if is_array(node) else _index_length(root, location)


def check_index(root: Node, location: str) -> None:
    """Check that the index of a table can be read.

    Raises:
        SourceFormatError: it cannot.
    """
    node = _table(root, location)
    if isinstance(node, Table):
        return
    index = node if is_array(node) else required(root, _index_location(root, location))
    if is_array(index):
        check_array(index)
        if index.dtype.kind not in "biuf":  # names, which are not empty
            check_written(index, index.shape[0])


def read_columns(root: Node, columns: Sequence[str], name: str) -> pd.DataFrame:
    """Columns of obs with a plain index; of old encodings, the whole table is read for them.

    Raises:
        KeyError: a column is missing; the message names the source and the nearest columns.
        SourceFormatError: a column cannot be read, or has another length than the table.
    """
    present = frame_columns(root, "obs")
    for column in columns:
        if column not in present:
            raise KeyError(f"{name} has no obs column {column!r}; {suggestion(str(column), present)}")
    node = _table(root, "obs")
    if isinstance(node, Table) or _is_old(node):
        return read_frame(root, "obs").reset_index(drop=True)[list(dict.fromkeys(columns))]
    n = frame_length(root, "obs")
    return pd.DataFrame(_read_columns(root, "obs", columns, n), index=pd.RangeIndex(n))


def read_frame(root: Node, location: str) -> pd.DataFrame:
    """A whole table, with its index.

    Raises:
        SourceFormatError: it is missing, or a part of it cannot be read.
    """
    node = _table(root, location)
    if isinstance(node, Table):
        return node.read()
    if not _is_old(node):
        columns = _read_columns(root, location, frame_columns(root, location), frame_length(root, location))
        return pd.DataFrame(columns, index=read_index(root, location))
    table = read_value(root, location)
    frame = table if isinstance(table, pd.DataFrame) else _from_records(table, record_categories(root))
    return frame.set_axis(_plain(frame.index), axis=0)


def read_index(root: Node, location: str) -> pd.Index:
    """The index of a table; of the oldest encoding, the whole table is read for it."""
    node = _table(root, location)
    if is_array(node) or isinstance(node, Table):
        return read_frame(root, location).index
    index = _index_location(root, location)
    name = index.rpartition("/")[2]
    return _plain(pd.Index(read_value(root, index), name=None if name == "_index" else name))


def text_index(root: Node, location: str) -> list[bytes] | None:
    """The index of a table of an HDF5 file as bytes, if it is text in the present encoding; else None."""
    node = _table(root, location)
    if isinstance(node, Table) or _is_old(node):
        return None
    place = _index_location(root, location)
    index = required(root, place)
    if not isinstance(index, h5py.Dataset) or index.ndim != 1 or index.dtype.kind != "O":
        return None
    check_array(index)
    values: list[bytes] = read_rows(root, place, 0, None).tolist()
    return values if set(map(type, values)) <= {bytes} else None


def numeric_tables(root: Node) -> dict[str, list[str]]:
    """{key: columns} of the tables of numbers in obsm, such as "obsm/protein"; without those that cannot be opened."""
    group = lookup(root, "obsm")
    keys = [] if group is None or is_array(group) else [f"obsm/{name}" for name in sorted(group.keys())]
    return {key: frame_columns(root, key) for key in keys if _is_numeric_table(root, key)}


def _is_numeric_table(root: Node, location: str) -> bool:
    try:
        node = lookup(root, location)
        if isinstance(node, Table):
            kinds = {dtype.kind for dtype in node.read().dtypes}
        elif node is None or is_array(node) or text(node.attrs.get("encoding-type", "")) != "dataframe":
            return False
        else:
            columns = [member(node, column, root, location) for column in frame_columns(root, location)]
            kinds = {column.dtype.kind if column is not None and is_array(column) else "" for column in columns}
    except SourceFormatError:  # a link to nothing, which `find_matrix` refuses if the matrix is needed
        return False
    return kinds <= set("biuf")


def labels(root: Node, columns: Sequence[str]) -> dict[str, str]:
    """{column of obs: its text} of those of some categorical columns that have the same text for all cells.

    Raises:
        SourceFormatError: a column is missing, or cannot be read.
    """
    found = {}
    for column in columns:
        location = f"obs/{column}"
        node = required(root, location)
        if is_array(node) or text(node.attrs.get("encoding-type", "")) != "categorical":
            continue
        codes = read_rows(root, f"{location}/codes", 0, None)
        if len(codes) and codes[0] >= 0 and (codes == codes[0]).all():
            category = read_rows(root, f"{location}/categories", int(codes[0]), int(codes[0]) + 1)
            if category.dtype.kind in "SUO" and len(category):
                found[column] = text(category[0])
    return found


def uns_strings(root: Node, key: str) -> list[str] | None:
    """The string, or strings, at ``uns[key]``; None if it holds none, or cannot be read, which is logged."""
    try:
        node = lookup(root, f"uns/{key}")
        if node is None or not is_array(node):
            return None
        values = np.asarray(read_value(root, f"uns/{key}"))
    except SourceFormatError as error:
        logger.warning("skipped uns[%r]: %s", key, error)
        return None
    return texts(values) if values.dtype.kind in "SUOT" else None


def uns_organism(root: Node) -> str | None:
    """The organism that ``uns`` states, as ontology term or else name; None if it states none, or several."""
    for key in ORGANISM_KEYS:
        stated = set(uns_strings(root, key) or ())
        if stated:
            return stated.pop() if len(stated) == 1 else None
    return None


def _table(root: Node, location: str) -> Node:
    node = required(root, location)
    if is_array(node) and not (node.dtype.names and node.shape):
        raise damaged(root, f"{location} is an array, expected a table")
    return node


def _is_old(table: Node) -> bool:
    """Whether a table is an array of records, or has its categories apart."""
    return is_array(table) or text(table.attrs.get("encoding-version", "")) == _OLD_VERSION


def _index_location(root: Node, location: str) -> str:
    node = required(root, location)
    stated = node.attrs.get("_index")
    names = _INDEX_NAMES if stated is None else (text(stated),)
    name = next((name for name in names if name in node), None)
    if name is None:
        raise damaged(root, f"{location} has no index ({location}/{names[0]} is missing)")
    return f"{location}/{name}"


def _index_length(root: Node, location: str) -> int:
    index = _index_location(root, location)
    return _length(required(root, index), root, index)


def _length(node: Node, root: Node, location: str) -> int:
    """Number of values of a column, read from its metadata."""
    if not is_array(node):  # values with a mask, or a categorical
        part = "values" if "mask" in node or "values" in node else "codes"
        values = member(node, part, root, f"{location}/{part}")
        if values is None:
            raise damaged(root, f"{location}/{part} is missing")
        return _length(values, root, f"{location}/{part}")
    if node.shape is None or len(node.shape) != 1:
        raise damaged(root, f"{location} has the shape {node.shape}, expected one value for each row")
    return int(node.shape[0])


def _read_columns(root: Node, table: str, columns: Sequence[str], n_rows: int) -> dict[str, Any]:
    group, values = required(root, table), {}
    for column in columns:
        location = f"{table}/{column}"
        node = member(group, column, root, location)
        if node is None:
            raise damaged(root, f"{location} is missing")
        n = _length(node, root, location)
        if n != n_rows:
            raise SourceFormatError(
                f"{path_of(root)} contradicts itself: {location} has {n} values, {table} has {n_rows} rows; write the "
                "file again"
            )
        values[column] = read_node(node, root, location)
    return values


def _plain(index: pd.Index) -> pd.Index:
    """The labels of a categorical index."""
    return index.astype(index.categories.dtype) if isinstance(index, pd.CategoricalIndex) else index


def _from_records(table: Any, categories: Mapping[str, list[str]]) -> pd.DataFrame:
    """The table of an array of records, which anndata wrote before 0.7, with its categories in ``uns``."""
    frame = pd.DataFrame({field: _decoded(table[field]) for field in table.dtype.names})
    for column in frame.columns[1:]:
        names = categories.get(str(column))
        codes = frame[column].to_numpy()
        if names is not None and codes.dtype.kind in "iu" and codes.max(initial=-1) < len(names):
            frame[column] = pd.Categorical.from_codes(codes.astype(np.int64), pd.Index(names))
    return frame.set_index(frame.columns[0])


def record_categories(root: Node) -> dict[str, list[str]]:
    """The categories of columns that are codes in an array of records, from ``uns``."""
    uns = lookup(root, "uns")
    suffix = "_categories"
    if uns is None or is_array(uns):
        return {}
    keys = [key for key in uns if key.endswith(suffix)]
    return {key.removesuffix(suffix): texts(read_value(root, f"uns/{key}")) for key in keys}


def _decoded(values: Any) -> Any:
    return texts(values) if values.dtype.kind in "SO" else values
