"""The tree of groups and arrays of a stored AnnData, in all its encodings; the same for HDF5 and zarr."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import OldFormatWarning
from anndata.io import read_elem
from numpy.typing import NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.runtime.messages import suggestion
from scdataloader.schema import ORGANISM_KEYS
from scdataloader.sources.fingerprint import column_content

Node = Any
"""A group or an array of h5py or zarr."""
Kind = Literal["csr", "csc", "dense"]

_TWO_AXES = 2
_NAME_SAMPLES, _NAMES_PER_SAMPLE = 64, 256
"""The part of a long index that `table_content` reads."""
_HINTS = {
    "matrix": "it looks like a 10x Genomics file: convert it with scanpy.read_10x_h5(...).write_h5ad(...)",
    "mod": "it looks like a MuData file: write one modality as an .h5ad file",
    "row_attrs": "it looks like a loom file: convert it with anndata.io.read_loom(...).write_h5ad(...)",
}


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


@contextmanager
def old_formats() -> Iterator[None]:
    """Suppress the advice of anndata to rewrite files of old encodings, which users of public files cannot follow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OldFormatWarning)
        yield


def is_array(node: Node) -> bool:
    """Whether a node is an array, not a group."""
    return hasattr(node, "shape")


def check_is_anndata(root: Node, path: object) -> None:
    """Check that a file or folder has a table of cells and a table of genes.

    Raises:
        SourceFormatError: it does not.
    """
    keys = sorted(root.keys())
    missing = [key for key in ("obs", "var") if key not in keys]
    if not missing:
        return
    hint = next((hint for key, hint in _HINTS.items() if key in keys), "write it with AnnData.write_h5ad or write_zarr")
    raise SourceFormatError(
        f"{path} is not an AnnData: expected obs, var and X or layers, found {', '.join(keys) or 'nothing'} "
        f"({' and '.join(missing)} missing); {hint}"
    )


def find_matrices(root: Node) -> dict[str, MatrixLayout]:
    """All matrices that may hold counts, by key: X, layers, raw."""
    layers = [f"layers/{name}" for name in sorted(root["layers"].keys())] if "layers" in root else []
    found: dict[str, MatrixLayout] = {}
    for key in ("X", *layers, "raw"):
        for location, var in _locations(key):
            layout = _matrix(root, key, location, var)
            if layout is not None and lookup(root, var) is not None:
                found.setdefault(key, layout)
    return found


def find_matrix(root: Node, key: str, path: object) -> MatrixLayout | None:
    """The matrix of a key; None if nothing is stored under the key.

    Raises:
        SourceFormatError: it is neither an array nor a sparse matrix; ``path`` is named.
    """
    for location, var in _locations(key):
        node = lookup(root, location)
        if node is not None:
            layout = _matrix(root, key, location, var)
            if layout is None:
                encoding = "array" if is_array(node) else _encoding(node) or "group"
                raise SourceFormatError(
                    f"{key} in {path} is stored as {encoding}, expected a CSR matrix or a dense array; write it as one"
                )
            return layout
    return None


def matrix_keys(root: Node, group: str) -> list[str]:
    """Keys of all matrices in a group ("layers", "obsm", "obsp"), sorted."""
    node = lookup(root, group)
    if node is None or is_array(node):  # an array of records is an old encoding
        return []
    keys = [f"{group}/{name}" for name in sorted(node.keys())]
    return [key for key in keys if any(_matrix(root, key, *place) for place in _locations(key))]


def _locations(key: str) -> list[tuple[str, str]]:
    """Where the matrix of a key and its gene table may be."""
    if key == "raw":
        # Before anndata 0.7 the parts of raw were in the root group, with a dot in their names.
        return [("raw/X", "raw/var"), ("raw.X", "raw.var")]
    return [(key, "" if key.startswith(("obsm/", "obsp/")) else "var")]


def lookup(root: Node, location: str) -> Node | None:
    """The node at a path; None if there is none."""
    node = root
    for part in location.split("/"):
        if is_array(node) or part not in node:
            return None
        node = node[part]
    return node


def _matrix(root: Node, key: str, location: str, var: str) -> MatrixLayout | None:
    """The matrix at a location; None if there is none."""
    node = lookup(root, location)
    if node is None:
        return None
    if is_array(node):
        if node.shape is None or len(node.shape) < _TWO_AXES or (var and len(node.shape) > _TWO_AXES):
            return None
        kind: Kind = "dense"
        shape, dtype = node.shape, node.dtype
    else:
        encoding = _encoding(node)
        if encoding[:3] not in ("csr", "csc") or "data" not in node:
            return None
        kind = "csr" if encoding.startswith("csr") else "csc"
        shape, dtype = node.attrs["shape" if "shape" in node.attrs else "h5sparse_shape"], node["data"].dtype
    n_obs, *row_shape = (int(size) for size in shape)
    return MatrixLayout(
        key=key,
        location=location,
        var=var,
        kind=kind,
        shape=(n_obs, math.prod(row_shape)),
        row_shape=tuple(row_shape),
        dtype=dtype,
    )


def _encoding(node: Node) -> str:
    return _text(node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", "")))


def frame_columns(node: Node) -> list[str]:
    """Names of the columns of a table, without its index."""
    if is_array(node):
        return [str(name) for name in node.dtype.names[1:]]
    order = node.attrs.get("column-order")
    if order is None:
        return sorted(key for key in node if key not in ("__categories", "_index", "index"))
    return [_text(name) for name in order]


def frame_length(node: Node) -> int:
    """Number of rows of a table, read from its metadata."""
    if is_array(node):
        return int(node.shape[0])
    index = node[_text(node.attrs.get("_index", "_index"))]
    return int((index if is_array(index) else index["values"]).shape[0])


def read_columns(root: Node, columns: Sequence[str], name: str) -> pd.DataFrame:
    """Columns of obs with a plain index; of old encodings, the whole table is read for them.

    Raises:
        KeyError: a column is missing; the message names the source and the nearest columns.
    """
    present = frame_columns(root["obs"])
    for column in columns:
        if column not in present:
            raise KeyError(f"{name} has no obs column {column!r}; {suggestion(str(column), present)}")
    obs = root["obs"]
    if not is_array(obs) and _text(obs.attrs.get("encoding-version")) != "0.1.0":
        with old_formats():
            values = {column: read_elem(obs[column]) for column in columns}
        return pd.DataFrame(values, index=pd.RangeIndex(frame_length(obs)))
    return read_frame(root, "obs").reset_index(drop=True)[list(dict.fromkeys(columns))]


def read_frame(root: Node, location: str) -> pd.DataFrame:
    """A whole table, with its index."""
    node = lookup(root, location)
    if node is None:
        raise SourceFormatError(f"table {location} is missing")
    with old_formats():
        table = read_elem(node)
        if isinstance(table, pd.DataFrame):
            return table
        # Before anndata 0.7 a table was one array of records, its categories in uns.
        frame = pd.DataFrame({field: _decoded(table[field]) for field in table.dtype.names})
        categories = _record_categories(root)
    for column in frame.columns[1:]:
        names = categories.get(str(column))
        codes = frame[column].to_numpy()
        if names is not None and codes.dtype.kind in "iu" and codes.max(initial=-1) < len(names):
            frame[column] = pd.Categorical.from_codes(codes.astype(np.int64), pd.Index(names))
    return frame.set_index(frame.columns[0])


def read_index(root: Node, location: str) -> pd.Index:
    """The index of a table; of old encodings, the whole table is read for it."""
    node = lookup(root, location)
    if node is None or is_array(node) or "_index" not in node.attrs:
        return read_frame(root, location).index
    key = _text(node.attrs["_index"])
    with old_formats():
        index: pd.Index = pd.Index(read_elem(node[key]), name=None if key == "_index" else key)
    return index


def table_content(root: Node, location: str, *, names: bool = True) -> Iterator[bytes]:
    """All that a table holds, the same in HDF5 and zarr and for every compression; for a digest.

    A column that cannot be read, and so is of no use, counts by its name.

    Args:
        root: The root group.
        location: Path of the table.
        names: Whether to read the whole index. Otherwise a long one that is not in chunks is read in samples: a library
            reads text slowly.

    Raises:
        SourceFormatError: there is no such table.
    """
    node = lookup(root, location)
    if node is None:
        raise SourceFormatError(f"table {location} is missing")
    if not is_array(node) and not hasattr(node, "keys"):  # a table in memory
        frame = read_frame(root, location)
        for name, values in [("", frame.index.to_series()), *frame.items()]:
            yield str(name).encode()
            yield from column_content(values)
        return
    sampled = "" if names or is_array(node) else "/" + _text(node.attrs.get("_index", "_index"))
    yield from _content(node, "", sampled)
    if is_array(node):
        with old_formats():
            categories = _record_categories(root)
        yield json.dumps(categories).encode()


def _content(node: Node, name: str, sampled: str) -> Iterator[bytes]:
    if is_array(node):
        yield json.dumps([name, list(node.shape)]).encode()
        is_long = name == sampled and node.chunks is None and node.shape[0] > _NAME_SAMPLES * _NAMES_PER_SAMPLE
        first = np.linspace(0, node.shape[0] - _NAMES_PER_SAMPLE, _NAME_SAMPLES).astype(int) if is_long else ()
        places: list[Any] = [slice(at, at + _NAMES_PER_SAMPLE) for at in first] or [()]
        try:
            pieces = [np.asarray(node[place]) for place in places]
        except OSError:
            return
        for piece in pieces:
            yield from _values(piece)
        return
    order = node.attrs.get("column-order", ())
    stated = [_encoding(node), bool(node.attrs.get("ordered", False)), _text(node.attrs.get("_index", ""))]
    yield json.dumps([name, *stated, _texts(order)]).encode()
    for key in sorted(node.keys()):
        child = node.get(key)
        if child is not None:  # a link may lead nowhere
            yield from _content(child, f"{name}/{key}", sampled)


def _values(values: NDArray[Any]) -> Iterator[bytes]:
    dtype = values.dtype
    if dtype.names is not None:
        for field in dtype.names:
            yield field.encode()
            yield from _values(values[field])
    elif dtype.kind in "biufcmMV":
        yield f"{dtype.kind}{dtype.itemsize}".encode()
        yield np.ascontiguousarray(values, dtype.newbyteorder("<")).tobytes()
    else:
        texts = values.reshape(-1).tolist()
        yield b"\0".join(text if isinstance(text, bytes) else str(text).encode() for text in texts)


def _record_categories(root: Node) -> dict[str, list[str]]:
    uns = lookup(root, "uns")
    suffix = "_categories"
    if uns is None or is_array(uns):
        return {}
    names = [key for key in uns if key.endswith(suffix)]
    return {key.removesuffix(suffix): _texts(read_elem(uns[key])) for key in names}


def _decoded(values: Any) -> Any:
    return _texts(values) if values.dtype.kind in "SO" else values


def uns_strings(root: Node, key: str) -> list[str] | None:
    """The string, or strings, at ``uns[key]``; None if it holds none."""
    node = lookup(root, f"uns/{key}")
    if node is None or not is_array(node):
        return None
    with old_formats():
        values = np.asarray(read_elem(node))
    return _texts(values) if values.dtype.kind in "SUOT" else None


def uns_organism(root: Node) -> str | None:
    """The organism that ``uns`` states, as ontology term or else name; None if it states none, or several."""
    for key in ORGANISM_KEYS:
        stated = set(uns_strings(root, key) or ())
        if stated:
            return stated.pop() if len(stated) == 1 else None
    return None


def _texts(values: Any) -> list[str]:
    return [_text(value) for value in np.atleast_1d(np.asarray(values, dtype=object)).reshape(-1)]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
