"""AnnData in HDF5 files."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.runtime.files import opening
from scdataloader.sources.anndata.layout import MatrixLayout, Node, is_array
from scdataloader.sources.anndata.source import AnnDataSource
from scdataloader.sources.arrays.arrays import (
    ChunkedArray,
    EncodedChunks,
    Extent,
    MappedArray,
    StoredArray,
    library_array,
    working_dtype,
)
from scdataloader.sources.arrays.codecs import Codecs, hdf5_codecs
from scdataloader.sources.arrays.mapped import FileMap


class H5adSource(AnnDataSource):
    """An ``.h5ad`` file, read as it lies: mapped into memory where it can be, else decoded chunk by chunk."""

    @classmethod
    @contextmanager
    def _opened(cls, path: Path) -> Iterator[Node]:
        with _open(path) as file:
            yield file

    @classmethod
    def _describe(cls, file: FileMap, node: Node, dtype: np.dtype[Any] | None = None) -> StoredArray:
        path = file.path
        name = f"{path.name}: {node.name.lstrip('/')}"
        working = dtype or working_dtype(node.dtype, name)
        if not node.size:
            return MappedArray(values=np.empty(node.shape, working))
        _require_filters(node, path)
        plain = node.file.userblock_size == 0 and not node.is_virtual and node.external is None
        offset = node.id.get_offset() if plain else None
        if offset is not None and working == node.dtype:
            return file.array(offset, node.shape, working, name)
        chunked = _chunked(file, node, working, name) if plain and node.chunks else None
        rows = node.chunks[0] if node.chunks else None
        sliced = library_array(node.shape, node.dtype, rows, partial(_open_array, path, node.name), name, working)
        return chunked or sliced

    @classmethod
    def _sampled(cls, root: Node, found: MatrixLayout) -> Node:
        node = super()._sampled(root, found)
        for array in [node] if is_array(node) else [node["data"], node["indices"], node["indptr"]]:
            _require_filters(array, Path(root.filename))
        return node


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading.

    Raises:
        SourceFormatError: not HDF5, or shorter than it was written.
    """
    try:
        with opening(path):
            file = h5py.File(path, "r")
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError) or error.errno == errno.EMFILE:
            raise
        raise SourceFormatError(_why_not_hdf5(path, error)) from error
    with file:
        yield file


def _why_not_hdf5(path: Path, error: OSError) -> str:
    if "truncated" in str(error):
        return f"{path} is truncated ({path.stat().st_size} bytes are there: {error}); fetch or write the file again"
    if h5py.is_hdf5(path):
        return f"{path} is an HDF5 file that cannot be opened: {error}"
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"\x1f\x8b"):
        return f"{path} is a gzip file, expected HDF5: unpack it with gunzip first"
    return f"{path} is not an HDF5 file (it begins with {start!r}); expected an .h5ad file, or a folder for zarr"


@contextmanager
def _open_array(path: Path, name: str) -> Iterator[h5py.Dataset]:
    with _open(path) as file:
        yield file[name]


def _filters(node: h5py.Dataset) -> list[tuple[int, tuple[int, ...], str]]:
    """(number, options, name) of the filters in the order of writing."""
    created = node.id.get_create_plist()
    found = [created.get_filter(i) for i in range(created.get_nfilters())]
    return [(number, options, name.decode(errors="replace")) for number, _, options, name in found]


def _require_filters(node: h5py.Dataset, path: Path) -> None:
    """Refuse a dataset that needs a filter nobody has; `hdf5plugin` is asked where it is installed.

    Raises:
        SourceFormatError: names the filter.
    """
    for number, _, name in _filters(node):
        if h5py.h5z.filter_avail(number):
            continue
        with suppress(ImportError):
            import_module("hdf5plugin")
        if not h5py.h5z.filter_avail(number):
            raise SourceFormatError(
                f"{path} is compressed with the HDF5 filter {number} ({name or 'unnamed'}), which is not available "
                "here: install hdf5plugin, or write the file with gzip or no compression"
            )


def _chunked(file: FileMap, node: h5py.Dataset, dtype: np.dtype[Any], name: str) -> ChunkedArray | None:
    """The dataset's chunks by their place in the file; None where HDF5 itself has to decode them."""
    item, n_values = node.dtype.itemsize, math.prod(node.chunks)
    codecs = hdf5_codecs([(number, item) for number, _, _ in _filters(node)])
    table = None if codecs is None else _chunk_table(node)
    if codecs is None or table is None:
        return None
    offsets, sizes = table
    as_they_are = codecs == Codecs() and dtype == node.dtype and bool((sizes == n_values * item).all())
    chunks = (
        file.chunks(offsets, n_values, dtype, name)
        if as_they_are
        else EncodedChunks(
            name=name,
            n_values=n_values,
            stored=node.dtype,
            codecs=codecs,
            fill=node.fillvalue,
            locate=partial(_locate, str(file.path), offsets, sizes),
        )
    )
    return ChunkedArray(
        shape=node.shape, chunk_shape=node.chunks, dtype=dtype, chunks=chunks, worth_keeping=not as_they_are
    )


def _chunk_table(node: h5py.Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """(offset, size) in the file of every chunk, size 0 if it was never written.

    None if some chunk was written without one of the filters, as HDF5 does where a filter does not pay.
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


def _locate(path: str, offsets: NDArray[np.int64], sizes: NDArray[np.int64], number: int) -> Extent | None:
    size = int(sizes[number])
    return Extent(path=path, offset=int(offsets[number]), size=size) if size else None
