"""Write AnnData files whose matrix comes in blocks of cells."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import anndata as ad
import h5py
import numpy as np
import zarr
from anndata import AnnData
from numpy.typing import NDArray

from scdataloader.errors import WriteError
from scdataloader.runtime.files import PARTIAL, writing
from scdataloader.sources.anndata.nodes import Node

Compression = Literal["none", "lzf", "gzip"]
Values = tuple[NDArray[Any], NDArray[np.int32]]
"""Stored values of consecutive cells, and their gene numbers."""

_HDF5_CHUNK = 1 << 16
"""Values per chunk of a compressed HDF5 array; uncompressed ones are contiguous, which reads fastest."""
_ZARR_CHUNK = 1 << 19
"""Values per chunk of a zarr array."""
_PIECE = 1 << 22
"""Values copied from a `Spool` at once."""
_SPARE = 1 << 24
"""Bytes reserved for everything but the values."""
_TABLES = ("obs", "var", "obsm", "varm", "obsp", "varp", "layers")


@contextmanager
def new_anndata(path: Path, n_bytes: int = 0) -> Iterator[Node]:
    """Yield the empty root group of a new ``.zarr`` folder, or of a new HDF5 file for any other suffix.

    The file appears under its name, replacing an existing file, when the block ends. An exception removes it.

    Args:
        path: The file to write.
        n_bytes: Size of its values, for which the disk must have room: HDF5 may abort the process on a full disk.

    Raises:
        WriteError: the file cannot be written, or the disk is too full.
    """
    _require_room(path, n_bytes)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    _remove(partial)
    try:
        with writing(path):
            if path.suffix == ".zarr":  # in the zarr format that anndata writes
                yield zarr.open_group(partial, mode="w", zarr_format=ad.settings.zarr_write_format)
            else:
                with h5py.File(partial, "w") as root:
                    yield root
            partial.replace(path)
    finally:
        _remove(partial)


def write_anndata(
    root: Node,
    tables: AnnData,
    indptr: NDArray[np.int64],
    blocks: Iterable[Values],
    *,
    dtype: np.dtype[Any],
    compression: Compression = "none",
) -> None:
    """Write an AnnData with a CSR matrix ``X`` into an empty group.

    Args:
        root: Group of h5py or zarr.
        tables: Everything but ``X``.
        indptr: ``(n_obs + 1,)`` offsets of the cells' values.
        blocks: The values of all cells in order, in blocks of any size.
        dtype: Type of the stored values.
        compression: Filter of the values and gene numbers, for HDF5.
    """
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    # uns first: lamindb hashes only the first and the last 50 MB of a large file
    ad.io.write_elem(root, "uns", dict(tables.uns))
    for key in _TABLES:
        table = getattr(tables, key)
        ad.io.write_elem(root, key, table if key in ("obs", "var") else dict(table))
    write_csr(root, "X", tables.shape, indptr, blocks, dtype=dtype, compression=compression)


def write_csr(
    root: Node,
    key: str,
    shape: tuple[int, int],
    indptr: NDArray[np.int64],
    blocks: Iterable[Values],
    *,
    dtype: np.dtype[Any],
    compression: Compression = "none",
) -> None:
    """Write a CSR matrix into a group, as its member ``key``; see `write_anndata`."""
    n, matrix = int(indptr[-1]), root.create_group(key)
    matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(shape)})
    data = _array(matrix, "data", n, dtype, compression)
    indices = _array(matrix, "indices", n, np.dtype(np.int32), compression)
    _array(matrix, "indptr", len(indptr), np.dtype(np.int64), "none")[:] = indptr
    at = 0
    for values, genes in blocks:
        data[at : at + len(values)], indices[at : at + len(values)] = values, genes
        at += len(values)


class Spool:
    """Values of an output whose number is not known yet, in two temporary files beside it."""

    def __init__(self, output: Path, dtype: np.dtype[Any]) -> None:
        self._paths = [output.with_name(f".{output.name}.{key}{PARTIAL}") for key in ("data", "indices")]
        self._dtypes = [dtype, np.dtype(np.int32)]
        self._files: list[BinaryIO] = []
        self._close = ExitStack()

    def __enter__(self) -> Self:
        for path in self._paths:
            self._close.callback(path.unlink, missing_ok=True)
            with writing(path):
                self._files.append(self._close.enter_context(path.open("w+b")))
        return self

    def __exit__(self, *error: object) -> None:
        self._close.close()

    def append(self, values: NDArray[Any], genes: NDArray[Any]) -> None:
        """Add values and their gene numbers."""
        for path, file, dtype, array in zip(self._paths, self._files, self._dtypes, (values, genes), strict=True):
            with writing(path):
                array.astype(dtype, copy=False).tofile(file)

    def blocks(self) -> Iterator[Values]:
        """All of it, from the first value on."""
        for file in self._files:
            file.seek(0)
        while True:
            values, genes = (np.fromfile(*of, _PIECE) for of in zip(self._files, self._dtypes, strict=True))
            if not len(values):
                return
            yield values, genes


def _array(group: Node, name: str, n: int, dtype: np.dtype[Any], compression: Compression) -> Any:
    if not isinstance(group, h5py.Group):
        return group.create_array(name, shape=(n,), dtype=dtype, chunks=(min(max(n, 1), _ZARR_CHUNK),))
    options: Mapping[str, Any] = {}
    if compression != "none" and n:
        options = {"compression": compression, "shuffle": True, "chunks": (min(n, _HDF5_CHUNK),)}
    return group.create_dataset(name, (n,), dtype, **options)


def _require_room(path: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes + _SPARE:
        raise WriteError(
            errno.ENOSPC,
            f"cannot write {path.name} into {path.parent}: {(n_bytes + _SPARE) / 1e6:,.1f} MB are needed and "
            f"{free / 1e6:,.1f} MB are free",
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
