"""Groups and arrays of a stored AnnData, the same for HDF5 and zarr: found by path, followed or refused, and read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import OldFormatWarning
from anndata._io.specs.registry import IORegistryError  # raised for unknown encodings
from anndata.io import read_elem
from numpy.typing import NDArray
from zarr.core.sync import sync
from zarr.storage import LocalStore, ZipStore

from scdataloader.errors import SourceFormatError
from scdataloader.runtime.messages import message_of
from scdataloader.sources.anndata.consolidated import check_consolidated
from scdataloader.sources.anndata.hdf5 import RESTORE, check_dataset, link_target
from scdataloader.sources.anndata.tree import Group

Node = Any
"""A group or an array of h5py or zarr, or a node of `tree`."""

UNREADABLE = (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError, IORegistryError)
"""Errors of h5py, zarr, anndata and pandas at content that they cannot read."""
DEEPEST = 4
"""Levels of groups below an element of an AnnData; deeper ones are links in a circle."""


def is_array(node: Node) -> bool:
    """Whether a node is an array, not a group."""
    return hasattr(node, "shape")


def path_of(node: Node) -> str:
    """The file or folder of a node, for messages."""
    if isinstance(node, h5py.Group | h5py.Dataset):
        return str(node.file.filename)
    if isinstance(node, Group):
        return node.path
    return str(node.store.path if isinstance(node.store, ZipStore) else node.store.root)


def damaged(root: Node, found: str) -> SourceFormatError:
    """The error for content that contradicts its form; ``found`` describes it."""
    return SourceFormatError(f"{path_of(root)} is damaged: {found}; download or write the file again")


def lookup(root: Node, location: str) -> Node | None:
    """The node at a path; None if there is none.

    Raises:
        SourceFormatError: a link does not lead to a node.
    """
    if isinstance(root, h5py.Group):
        with suppress(*UNREADABLE):  # what is wrong is found part by part
            return root[location]
    node = root
    for part in location.split("/"):
        node = None if is_array(node) else member(node, part, root, location)
        if node is None:
            return None
    return node


def member(group: Node, name: str, root: Node, location: str) -> Node | None:
    """A member of a group; None if there is none. Root and path of the member are for messages.

    Raises:
        SourceFormatError: a link does not lead to a node.
    """
    is_hdf5 = isinstance(group, h5py.Group)
    try:
        return group[name]
    except UNREADABLE as error:
        if isinstance(error, KeyError) and not (is_hdf5 and name in group):
            return None
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk or the process, not of the file
        target = link_target(group, name) if is_hdf5 else None
        if target is None:
            raise damaged(root, f"{location} cannot be opened ({message_of(error)})") from error
        raise SourceFormatError(
            f"{path_of(root)}: {location} is a link to {target}, which cannot be opened ({message_of(error)}); "
            f"{RESTORE}"
        ) from error


def required(root: Node, location: str) -> Node:
    """The node at a path.

    Raises:
        SourceFormatError: there is none, as in a file that was not written completely.
    """
    node = lookup(root, location)
    if node is None:
        raise damaged(root, f"{location} is missing")
    return node


def read_value(root: Node, location: str) -> Any:
    """An array, a column, a table or a sparse matrix as anndata reads it; texts are never bytes.

    Raises:
        SourceFormatError: it is missing, or cannot be read.
    """
    return read_node(required(root, location), root, location)


def read_node(node: Node, root: Node, location: str) -> Any:
    """As `read_value`, of a node; its root and path are for messages."""
    if isinstance(node, np.ndarray):
        return node
    _check_arrays(node, root, location, DEEPEST)
    with _reading(root, location), _old_formats():
        return _with_texts(read_elem(node))


def read_rows(root: Node, location: str, start: int, stop: int | None) -> NDArray[Any]:
    """A range of the first axis of an array.

    Raises:
        SourceFormatError: it is missing, or cannot be read.
    """
    array = required(root, location)
    with _reading(root, location):
        return np.asarray(array[start:stop])


def check_array(array: Node) -> None:
    """Check that the values of an array can be decoded, and are stored where and how the file says.

    Raises:
        SourceFormatError: they cannot, or are not. zarr names missing codecs itself.
    """
    if isinstance(array, h5py.Dataset):
        check_dataset(array)
    elif isinstance(array, zarr.Array) and isinstance(array.store, LocalStore):
        check_consolidated(array)


def check_written(array: Node, n_values: int) -> None:
    """Check that the first values of an array of one axis are stored, in zarr, which reads 0 or "" for a lost chunk.

    Of a folder, which may have many files, the first and the last chunk are checked; the others are when they are read.

    Raises:
        SourceFormatError: a chunk is missing; names it.
    """
    if not isinstance(array, zarr.Array) or not n_values or (array.dtype.kind in "biuf" and array.fill_value != 0):
        return
    (step,) = array.shards or array.chunks
    last = (n_values - 1) // step
    for number in (0, last) if isinstance(array.store, LocalStore) else range(last + 1):
        key = array.metadata.encode_chunk_key((number,))
        if not sync(array.store.exists(f"{array.path}/{key}")):
            raise SourceFormatError(
                f"{path_of(array)}: chunk {number} of {array.path} is missing; download or write the file again"
            )


def text(value: Any) -> str:
    """A text, from bytes if necessary."""
    return value.decode() if isinstance(value, bytes) else str(value)


def texts(values: Any) -> list[str]:
    """The texts of an array."""
    return [text(value) for value in np.atleast_1d(np.asarray(values, dtype=object)).reshape(-1)]


def _check_arrays(node: Node, root: Node, location: str, depth: int) -> None:
    if is_array(node):
        check_array(node)
    elif depth:
        for name in node:
            _check_arrays(member(node, name, root, f"{location}/{name}"), root, f"{location}/{name}", depth - 1)


@contextmanager
def _reading(root: Node, location: str) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk or the process, not of the file
        raise damaged(root, f"{location} cannot be read ({message_of(error)})") from error


@contextmanager
def _old_formats() -> Iterator[None]:
    """Suppress the advice of anndata to rewrite files of old encodings, which users of public files cannot follow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OldFormatWarning)
        yield


def _with_texts(values: Any) -> Any:
    """Values with bytes decoded: other writers store texts so."""
    if isinstance(values, pd.DataFrame):
        frame = values.set_axis(_with_texts(values.index), axis=0)
        for at in range(frame.shape[1]):
            frame.isetitem(at, _with_texts(frame.iloc[:, at].values))
        return frame
    if isinstance(values, pd.Categorical):
        return values.rename_categories(text) if _are_bytes(values.categories) else values
    if isinstance(values, pd.Index) and _are_bytes(values):
        return pd.Index(texts(values), name=values.name)
    if isinstance(values, np.ndarray) and values.ndim == 1 and _are_bytes(values):
        return np.array(texts(values), object)
    return values


def _are_bytes(values: Any) -> bool:
    return values.dtype.kind in "SO" and pd.api.types.infer_dtype(values, skipna=True) == "bytes"
