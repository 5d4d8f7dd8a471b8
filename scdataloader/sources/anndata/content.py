"""All that a table of a stored AnnData holds, for a digest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.sources.anndata.nodes import DEEPEST, UNREADABLE, Node, is_array, required, text, texts
from scdataloader.sources.anndata.tables import record_categories
from scdataloader.sources.anndata.tree import Table
from scdataloader.sources.fingerprint import column_content

_NAME_SAMPLES, _NAMES_PER_SAMPLE = 64, 256
"""The part of a long index that `table_content` reads."""


def table_content(root: Node, location: str, *, names: bool = True, index: bytes | None = None) -> Iterator[bytes]:
    """All that a table holds, the same in HDF5 and zarr and for every compression; for a digest.

    A column that cannot be read, and so is of no use, counts by its name.

    Args:
        root: The root group.
        location: Path of the table.
        names: Whether to read the whole index. Otherwise a long one that is not in chunks is read in samples: a library
            reads text slowly.
        index: The texts of the index, joined by zero bytes, if they have been read.

    Raises:
        SourceFormatError: there is no such table.
    """
    node = required(root, location)
    if isinstance(node, Table):
        frame = node.read()
        for name, values in [("", frame.index.to_series()), *frame.items()]:
            yield str(name).encode()
            yield from column_content(values)
        return
    of_index = "" if is_array(node) else "/" + text(node.attrs.get("_index", "_index"))
    known = {} if index is None else {of_index: index}
    yield from _content(node, "", "" if names else of_index, known)
    if is_array(node):
        yield json.dumps(record_categories(root)).encode()


def _content(node: Node, name: str, sampled: str, known: Mapping[str, bytes]) -> Iterator[bytes]:
    if is_array(node):
        yield json.dumps([name, node.shape]).encode()
        if name in known:
            yield known[name]
            return
        is_long = name == sampled and node.chunks is None and node.shape[0] > _NAME_SAMPLES * _NAMES_PER_SAMPLE
        first = np.linspace(0, node.shape[0] - _NAMES_PER_SAMPLE, _NAME_SAMPLES).astype(int) if is_long else ()
        places: list[Any] = [slice(at, at + _NAMES_PER_SAMPLE) for at in first] or [()]
        try:
            pieces = [np.asarray(node[place]) for place in places]
        except UNREADABLE:
            return
        for piece in pieces:
            yield from _values(piece)
        return
    order = node.attrs.get("column-order", ())
    stated = [
        text(node.attrs.get("encoding-type", "")),
        bool(node.attrs.get("ordered", False)),
        text(node.attrs.get("_index", "")),
    ]
    yield json.dumps([name, *stated, texts(order)]).encode()
    for key in sorted(node.keys()) if name.count("/") < DEEPEST else ():
        yield key.encode()
        try:
            child = node[key]
        except UNREADABLE:  # a link may lead nowhere
            continue
        yield from _content(child, f"{name}/{key}", sampled, known)


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
        entries = values.ravel().tolist()
        if not set(map(type, entries)) <= {bytes}:
            entries = [one if isinstance(one, bytes) else str(one).encode(errors="surrogatepass") for one in entries]
        yield b"\0".join(entries)
