"""AnnData in HDF5 files (.h5ad)."""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.runtime.files import opening, split_path
from scdataloader.sources.anndata.containers import ADVICE, ADVICE_BY_CONTENT, find_anndata
from scdataloader.sources.anndata.hdf5 import filters, is_plain, linked_files
from scdataloader.sources.anndata.nodes import Node, check_array, required
from scdataloader.sources.arrays.arrays import (
    ArrayForm,
    ChunkedArray,
    EncodedChunks,
    Extent,
    LocalFiles,
    MappedArray,
    StoredArray,
    library_array,
)
from scdataloader.sources.arrays.codecs import Codecs, hdf5_codecs
from scdataloader.sources.arrays.mapped import FileMap, FileMaps

_PARTS = ("X", "layers", "obs", "obsm", "raw", "var")
"""Members of an AnnData that are read; in the oldest files those of raw are called "raw.X" and "raw.var"."""


def describe(files: FileMaps, root: Node, location: str, dtype: np.dtype[Any] | None = None) -> StoredArray:
    """How a dataset can be read: mapped, decoded chunk by chunk, or sliced by HDF5; ``dtype`` replaces its own."""
    node = root[location]
    name, working, shape = ArrayForm.of(node, files.path, location, dtype)
    if not node.size:
        return MappedArray(values=np.empty(shape, working))
    if is_plain(node):
        file = files.of(Path(node.file.filename))  # that of a linked dataset is another one
        offset = node.id.get_offset()
        if offset is not None and working == node.dtype:
            return file.array(offset, shape, working, name)
        chunked = _chunked(file, node, working, name) if node.chunks and shape == node.shape else None
        if chunked is not None:
            return chunked
    rows = node.chunks[0] if node.chunks else None
    return library_array(shape, node.dtype, rows, partial(_open_array, files.path, location), name, working)


@contextmanager
def opened(path: Path) -> Iterator[Node]:
    """Open a file for reading, or the AnnData in a group of it: "a.h5mu/mod/rna".

    Raises:
        SourceFormatError: not HDF5, truncated, or not an AnnData.
    """
    outer, inner = split_path(path)
    with _opened_file(outer) as file:
        yield find_anndata(file, inner, path)


@contextmanager
def _opened_file(path: Path) -> Iterator[h5py.File]:
    try:
        with opening(path):
            file = h5py.File(path, "r")
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError) or error.errno == errno.EMFILE:
            raise
        raise SourceFormatError(_why_not_hdf5(path, error)) from error
    with file:
        yield file


def watched(path: Path) -> Sequence[Path]:
    """The file."""
    return (split_path(path)[0],)


def linked(root: Node) -> Iterable[Path]:
    """Other files that the tables and matrices are in; none of another format than AnnData's, such as that of 10x."""
    if not isinstance(root, h5py.Group):
        return ()
    return sorted(linked_files(root, [name for name in root if name.partition(".")[0] in _PARTS]))


def _why_not_hdf5(path: Path, error: OSError) -> str:
    if "truncated" in str(error):
        return f"{path} is truncated ({path.stat().st_size} bytes: {error}); download or write the file again"
    if h5py.is_hdf5(path):
        return f"{path} is an HDF5 file that cannot be opened: {error}"
    with path.open("rb") as file:
        start = file.read(8)
    advice = next((advice for pattern, advice in ADVICE.items() if re.search(pattern, path.name, re.IGNORECASE)), None)
    if advice is None:
        advice = next((advice for magic, advice in ADVICE_BY_CONTENT.items() if start.startswith(magic)), None)
    if advice is not None:
        return f"{path} is {advice.format(path=path, stem=path.name.partition('.')[0])}"
    return f"{path} is not an HDF5 file (it begins with {start!r}); expected an .h5ad file or a .zarr folder"


@contextmanager
def _open_array(path: Path, location: str) -> Iterator[h5py.Dataset]:
    with opened(path) as file:
        array = required(file, location)
        check_array(array)  # a file that it takes values from may have been removed
        yield array


def _chunked(file: FileMap, node: h5py.Dataset, dtype: np.dtype[Any], name: str) -> ChunkedArray | None:
    """The chunks of a dataset by their offsets in the file; None if HDF5 has to decode them."""
    item, n_values = node.dtype.itemsize, math.prod(node.chunks)
    codecs = hdf5_codecs([(number, item) for number, _ in filters(node)])
    table = None if codecs is None else chunk_table(node)
    if codecs is None or table is None:
        return None
    offsets, sizes = table
    not_encoded = codecs == Codecs() and dtype == node.dtype and bool((sizes == n_values * item).all())
    chunks = (
        file.chunks(offsets, n_values, dtype, name)
        if not_encoded
        else EncodedChunks(
            name=name,
            n_values=n_values,
            stored=node.dtype,
            codecs=codecs,
            fill=node.fillvalue,
            locate=partial(locate_chunk, str(file.path), offsets, sizes),
            files=LocalFiles(),
        )
    )
    return ChunkedArray(
        shape=node.shape, chunk_shape=node.chunks, dtype=dtype, chunks=chunks, worth_keeping=not not_encoded
    )


def chunk_table(node: h5py.Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """(offset, size) in the file of every chunk; size 0 if it was never written.

    None if a chunk was written without one of the filters, as HDF5 does if a filter does not make it smaller.
    """
    grid = [-(-n // step) for n, step in zip(node.shape, node.chunks, strict=True)]
    offsets, sizes = np.zeros(math.prod(grid), np.int64), np.zeros(math.prod(grid), np.int64)
    masks = []

    def visit(chunk: Any) -> None:
        place = [at // step for at, step in zip(chunk.chunk_offset, node.chunks, strict=True)]
        number = place[0] if len(grid) == 1 else place[0] * grid[1] + place[1]
        offsets[number], sizes[number] = chunk.byte_offset, chunk.size
        if chunk.filter_mask:
            masks.append(chunk.filter_mask)

    node.id.chunk_iter(visit)
    return None if masks else (offsets, sizes)


def locate_chunk(path: str, offsets: NDArray[np.int64], sizes: NDArray[np.int64], number: int) -> Extent | None:
    """Where a chunk is in a file, by the tables of `chunk_table`; None if it was never written."""
    size = int(sizes[number])
    return Extent(path=path, offset=int(offsets[number]), size=size) if size else None
