"""How AnnData lays itself out in a tree of groups and arrays, back to its first encodings; HDF5 and zarr look alike."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import OldFormatWarning
from anndata.io import read_elem

from scdataloader.errors import SourceFormatError
from scdataloader.schema import ORGANISM_KEYS

Node = Any
"""A group or an array of h5py or zarr."""
Kind = Literal["csr", "csc", "dense"]

_TWO_AXES = 2
_HINTS = {
    "matrix": "it looks like a 10x Genomics file: convert it with scanpy.read_10x_h5(...).write_h5ad(...)",
    "mod": "it looks like a MuData file: write the modality you want as an .h5ad of its own",
    "row_attrs": "it looks like a loom file: convert it with anndata.io.read_loom(...).write_h5ad(...)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixLayout:
    """A matrix of cells by genes, and where it lies."""

    key: str
    """What users call it: ``X``, ``layers/<name>`` or ``raw``."""
    location: str
    """Path of its group or array."""
    var: str
    """Path of its gene table."""
    kind: Kind
    """How it is stored."""
    shape: tuple[int, int]
    """(cells, genes)."""


@contextmanager
def old_formats() -> Iterator[None]:
    """Silence anndata's advice to rewrite a file of an old encoding: users cannot help what a public file is like."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OldFormatWarning)
        yield


def is_array(node: Node) -> bool:
    """Whether a node is an array, not a group."""
    return hasattr(node, "shape")


def check_is_anndata(root: Node, path: object) -> None:
    """Refuse a file or folder that has no table of cells or no table of genes.

    Raises:
        SourceFormatError: names what was expected and what is there.
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
    """All matrices that could hold counts, by the name that users call them, in the order X, layers, raw."""
    places = [("X", "X", "var")]
    if "layers" in root:
        places += [(f"layers/{name}", f"layers/{name}", "var") for name in sorted(root["layers"].keys())]
    # Before anndata 0.7 the parts of raw lay at the top, with a dot in their names.
    places += [("raw", "raw/X", "raw/var"), ("raw", "raw.X", "raw.var")]
    found: dict[str, MatrixLayout] = {}
    for key, location, var in places:
        node = lookup(root, location)
        layout = None if node is None else _matrix(node, key, location, var)
        if layout is not None and lookup(root, var) is not None:
            found.setdefault(key, layout)
    return found


def lookup(root: Node, location: str) -> Node | None:
    """The node at a path, None if there is none."""
    node = root
    for part in location.split("/"):
        if is_array(node) or part not in node:
            return None
        node = node[part]
    return node


def _matrix(node: Node, key: str, location: str, var: str) -> MatrixLayout | None:
    if is_array(node):
        if node.shape is None or len(node.shape) != _TWO_AXES:
            return None
        kind: Kind = "dense"
        shape = node.shape
    else:
        encoding = _text(node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", "")))
        if encoding[:3] not in ("csr", "csc"):
            return None
        kind = "csr" if encoding.startswith("csr") else "csc"
        shape = node.attrs["shape" if "shape" in node.attrs else "h5sparse_shape"]
    return MatrixLayout(key=key, location=location, var=var, kind=kind, shape=(int(shape[0]), int(shape[1])))


def frame_columns(node: Node) -> list[str]:
    """Names of a table's columns, without its index."""
    if is_array(node):
        return [str(name) for name in node.dtype.names[1:]]
    order = node.attrs.get("column-order")
    if order is None:
        return sorted(key for key in node if key not in ("__categories", "_index", "index"))
    return [_text(name) for name in order]


def frame_length(node: Node) -> int:
    """Number of a table's rows, without reading it."""
    if is_array(node):
        return int(node.shape[0])
    index = node[_text(node.attrs.get("_index", "_index"))]
    return int((index if is_array(index) else index["values"]).shape[0])


def read_columns(root: Node, columns: Sequence[str], name: str) -> pd.DataFrame:
    """Columns of obs, in the order asked for, over a plain index; only these are read, but for old encodings.

    Raises:
        KeyError: a column is missing; names the source and the nearest names.
    """
    present = frame_columns(root["obs"])
    for column in columns:
        if column not in present:
            near = difflib.get_close_matches(str(column), present, cutoff=0.5) or present[:10]
            raise KeyError(f"{name} has no obs column {column!r}; the nearest are {', '.join(near) or 'none'}")
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
        raise SourceFormatError(f"there is no table {location}")
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
    """The string, or strings, at ``uns[key]``; None where there are none."""
    node = lookup(root, f"uns/{key}")
    if node is None or not is_array(node):
        return None
    with old_formats():
        values = np.asarray(read_elem(node))
    return _texts(values) if values.dtype.kind in "SUOT" else None


def uns_organism(root: Node) -> str | None:
    """The organism that ``uns`` states, as ontology term or else name; None where it states none, or several."""
    for key in ORGANISM_KEYS:
        stated = set(uns_strings(root, key) or ())
        if stated:
            return stated.pop() if len(stated) == 1 else None
    return None


def _texts(values: Any) -> list[str]:
    return [_text(value) for value in np.atleast_1d(np.asarray(values, dtype=object)).reshape(-1)]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
