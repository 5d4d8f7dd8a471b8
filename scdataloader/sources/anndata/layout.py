"""The matrices of a stored AnnData, in all their encodings, and their sizes; the same for HDF5 and zarr."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from scdataloader.errors import SourceFormatError
from scdataloader.sources.anndata.nodes import (
    Node,
    check_array,
    check_written,
    damaged,
    is_array,
    lookup,
    path_of,
    required,
    text,
)
from scdataloader.sources.anndata.tables import check_index, frame_length
from scdataloader.sources.anndata.tree import Table
from scdataloader.sources.arrays.arrays import working_dtype

Kind = Literal["csr", "csc", "dense"]

_TWO_AXES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixLayout:
    """A stored matrix with a row for each cell."""

    key: str
    """Its name for users: "X", "layers/<name>", "raw", "obsm/<name>" or "obsp/<name>"."""
    location: str
    """Path of its group or array."""
    var: str
    """Path of its gene table; empty if its columns are not genes."""
    kind: Kind
    """How it is stored."""
    shape: tuple[int, int]
    """(cells, columns); further axes count as columns."""
    row_shape: tuple[int, ...]
    """Shape of a row: usually ``shape[1:]``."""
    dtype: np.dtype[Any]
    """Type of the stored values."""
    index_dtype: np.dtype[Any] | None
    """Type of the stored gene numbers, or cell numbers of a CSC matrix; None for a dense matrix."""
    n_values: int
    """Number of stored values, with the zeros of a dense matrix."""


def matrix_names(root: Node) -> list[str]:
    """Keys of all matrices that may hold counts: X, layers, raw."""
    layers = matrix_keys(root, "layers")
    return [key for key in ("X", *layers, "raw") if key in layers or _is_stored(root, key)]


def matrix_keys(root: Node, group: str) -> list[str]:
    """Keys of all matrices in a group ("layers", "obsm", "obsp"), sorted."""
    node = lookup(root, group)
    if node is None or is_array(node):  # an array of records is an old encoding
        return []
    return [key for key in (f"{group}/{name}" for name in sorted(node.keys())) if _is_stored(root, key)]


def find_matrix(root: Node, key: str) -> MatrixLayout | None:
    """The matrix of a key; None if nothing is stored under the key.

    Raises:
        SourceFormatError: it is neither an array nor a sparse matrix, a part of it is missing or cannot be read, or
            its sizes contradict each other, obs or var.
    """
    for location, var in _locations(key):
        node = lookup(root, location)
        if node is None or (is_array(node) and node.shape is None):
            continue
        describe = _dense if is_array(node) else _sparse
        kind, shape, dtypes, n_values = describe(root, key, location)
        n_obs, *row_shape = map(int, shape)
        found = MatrixLayout(
            key=key,
            location=location,
            var=var,
            kind=kind,
            shape=(n_obs, math.prod(row_shape)),
            row_shape=tuple(row_shape),
            dtype=dtypes[0],
            index_dtype=dtypes[1],
            n_values=n_values,
        )
        _check_tables(root, found)
        for array in (location,) if found.kind == "dense" else (f"{location}/data", f"{location}/indices"):
            check_array(required(root, array))
        return found
    return None


def _is_stored(root: Node, key: str) -> bool:
    """Whether a key has an array of several axes, or a group that states to be a sparse matrix, or a broken link."""
    for location, _ in _locations(key):
        try:
            node = lookup(root, location)
        except SourceFormatError:  # for `find_matrix`, if the matrix is needed
            return True
        if node is not None:
            return len(node.shape or ()) >= _TWO_AXES if is_array(node) else _encoding(node)[:3] in ("csr", "csc")
    return False


def _locations(key: str) -> list[tuple[str, str]]:
    """Where the matrix of a key and its gene table may be."""
    if key == "raw":
        # Before anndata 0.7 the parts of raw were in the root group, with a dot in their names.
        return [("raw/X", "raw/var"), ("raw.X", "raw.var")]
    return [(key, "" if key.startswith(("obsm/", "obsp/")) else "var")]


_Description = tuple[Kind, Sequence[int], tuple[np.dtype[Any], np.dtype[Any] | None], int]
"""Kind, shape, types of values and gene numbers, number of stored values."""


def _dense(root: Node, key: str, location: str) -> _Description:
    array = _array(root, location)
    n_axes, has_more = len(array.shape), key.startswith(("obsm/", "obsp/"))
    if n_axes < _TWO_AXES or (n_axes > _TWO_AXES and not has_more):
        raise damaged(root, f"{location} is an array of {n_axes} axes, expected cells and columns")
    return "dense", array.shape, (array.dtype, None), math.prod(array.shape)


def _sparse(root: Node, key: str, location: str) -> _Description:
    node = required(root, location)
    encoding = _encoding(node)
    if encoding[:3] not in ("csr", "csc"):
        raise SourceFormatError(
            f"{key} in {path_of(root)} is stored as {encoding or 'group'}, expected a CSR matrix or a dense array; "
            "write it as one"
        )
    kind: Kind = "csr" if encoding.startswith("csr") else "csc"
    shape = node.attrs.get("shape", node.attrs.get("h5sparse_shape"))
    if shape is None or len(shape) != _TWO_AXES:
        raise damaged(root, f"{location} does not state its shape")
    data, indices = (_array(root, f"{location}/{part}") for part in ("data", "indices"))
    if data.shape != indices.shape or len(data.shape) != 1:
        raise damaged(
            root, f"{location}/data has {data.shape[0]} values, {location}/indices {indices.shape[0]}, expected as many"
        )
    if data.shape[0] > math.prod(map(int, shape)):
        raise damaged(
            root, f"{location}/data has {data.shape[0]} values, more than {shape[0]} cells by {shape[1]} columns"
        )
    n_major, n_minor = map(int, shape if kind == "csr" else shape[::-1])
    n_values = _n_values(root, f"{location}/indptr", n_major, data.shape[0])
    check_written(data, n_values)
    if n_minor > 1:  # otherwise all indices are 0, which zarr does not write
        check_written(indices, n_values)
    return kind, shape, (data.dtype, indices.dtype), n_values


def _n_values(root: Node, location: str, n_major: int, n_stored: int) -> int:
    """The last of the offsets at ``location``, checked against the sizes of the arrays."""
    indptr = _array(root, location)
    expected = f"expected {n_major + 1} offsets in {location}, ascending from 0 to at most {n_stored}"
    if indptr.shape != (n_major + 1,):
        raise damaged(root, f"{expected}; found {indptr.shape[0]} of them")
    check_array(indptr)
    first, last = int(indptr[0]), int(indptr[n_major])
    if first != 0 or not min(1, n_stored) <= last <= n_stored:
        raise damaged(root, f"{expected}; they run from {first} to {last}")
    return last


def _array(root: Node, location: str) -> Node:
    """An array of numbers, which may not be readable."""
    array = required(root, location)
    if not is_array(array) or not array.shape:
        raise damaged(root, f"{location} is not an array of values")
    working_dtype(array.dtype, f"{path_of(root)}: {location}")
    return array


def _check_tables(root: Node, found: MatrixLayout) -> None:
    n_obs, n_columns = found.shape
    size = f"{found.key} is {n_obs} cells by {n_columns} {'genes' if found.var else 'columns'}"
    tables = {"obs": n_obs} | ({found.var: n_columns} if found.var else {})
    for table, expected in tables.items():
        n_rows = frame_length(root, table)
        if n_rows != expected:
            raise SourceFormatError(
                f"{path_of(root)} contradicts itself: {table} has {n_rows} rows, {size}; write the file again"
            )
        check_index(root, table)


def _encoding(node: Node) -> str:
    if isinstance(node, Table):
        return "dataframe"
    return text(node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", "")))
