"""AnnData files and folders: their tables, and their matrices by key."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.kernels.rows import gather
from scdataloader.runtime import bus_errors
from scdataloader.runtime.files import file_state, split_path
from scdataloader.runtime.mapping import FileWatch
from scdataloader.runtime.memory import BufferPool
from scdataloader.runtime.names import name_of
from scdataloader.sources.anndata import h5ad, layout, tables, zarr
from scdataloader.sources.anndata.layout import MatrixLayout
from scdataloader.sources.anndata.matrix import StoredMatrix, open_matrix
from scdataloader.sources.anndata.nodes import Node
from scdataloader.sources.anndata.remote import RemoteFormat
from scdataloader.sources.arrays.arrays import StoredArray
from scdataloader.sources.arrays.mapped import FileMaps
from scdataloader.sources.arrays.matrices import DenseReader, StoredRows
from scdataloader.sources.arrays.transpose import Transpose, transpose_in_memory
from scdataloader.types import CSRMatrix

_MEMORY = BufferPool()
"""Memory of all reads in this process: there may be thousands of files."""


class Format(Protocol):
    """A file format of AnnData: the modules `h5ad` and `zarr`, and `AnnDataInMemory`."""

    def opened(self, path: Path, /) -> AbstractContextManager[Node]:
        """The root group, for the duration of a with statement."""

    def watched(self, path: Path, /) -> Sequence[Path]:
        """What is written whenever the whole is written again: the file, or the top of the folder."""

    def linked(self, root: Node, /) -> Iterable[Path]:
        """Further files that parts of the AnnData are in."""

    def describe(
        self, files: FileMaps, root: Node, location: str, dtype: np.dtype[Any] | None = None, /
    ) -> StoredArray:
        """How an array can be read once the root group is closed; ``dtype`` replaces its own."""


_FORMATS: dict[str, Format] = {"h5ad": h5ad, "zarr": zarr}


class AnnDataFile:
    """An ``.h5ad`` file or a ``.zarr`` folder.

    The object holds a path and metadata, so it can be pickled, forked and shared by threads. Library handles are open
    within a call only; memory maps and decoded chunks are kept until `close`. Once opened, the file must stay as it is,
    also after `close` and in other processes: all reads raise SourceChangedError if it has changed.
    """

    def __init__(self, path: Path, root: Node, form: Format | None = None) -> None:
        form_of_path = form or format_of(path)
        self._watches = {path.absolute(): FileWatch(*form_of_path.watched(path))}
        self._watches |= {other: FileWatch(other) for other in form_of_path.linked(root)}
        self.path = path
        self._own_form = form
        self.name = name_of(path)
        self.obs_columns: list[str] = tables.frame_columns(root, "obs")
        self.n_obs = tables.frame_length(root, "obs")
        self._layouts: dict[str, MatrixLayout | None] = {}
        self.transpose: Transpose = transpose_in_memory
        """Transposes a CSC matrix, when the first of its cells is read."""
        self._drop()

    @classmethod
    def open(cls, path: Path, form: Format | None = None) -> Self:
        """Read the metadata of a file; ``form`` is its format, if that is not known from the path.

        Raises:
            SourceFormatError: not an AnnData.
        """
        with (form or format_of(path)).opened(path) as root:
            return cls(path, root, form)

    @property
    def form(self) -> Format:
        """The format."""
        return self._own_form or format_of(self.path)

    @contextmanager
    def opened(self) -> Iterator[Node]:
        """The root group, for the duration of a with statement.

        Raises:
            SourceChangedError: the file has changed since this object was created.
        """
        try:
            with self.form.opened(self.path) as root:
                yield root
        finally:
            self._files.check()

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """Columns of the cell table, ``n_obs`` rows; categoricals stay categorical. Not cached.

        Raises:
            KeyError: a column is missing; the message names the file and the nearest columns.
        """
        with self.opened() as root:
            return tables.read_columns(root, columns, self.name)

    def whole_obs(self) -> pd.DataFrame:
        """The whole cell table, with its index. Not cached."""
        with self.opened() as root:
            return tables.read_frame(root, "obs")

    def obs_names(self) -> pd.Index:
        """Names of the cells: the index of the cell table. Not cached."""
        with self.opened() as root:
            return tables.read_index(root, "obs")

    def var_names(self) -> pd.Index:
        """Names of the genes of X and layers: the index of the gene table. Not cached."""
        with self.opened() as root:
            return tables.read_index(root, "var")

    @cached_property
    def organism(self) -> str | None:
        """The organism that ``uns`` states, as ontology term or else name; None if it states none, or several."""
        with self.opened() as root:
            return tables.uns_organism(root)

    def file_state(self) -> str | None:
        """Sizes and times of change of the file and of those that it links to, or a digest of those in the folder.

        None if the file is gone.
        """
        if isinstance(self.form, RemoteFormat):
            return self.form.version
        path, _ = split_path(self.path)
        if not path.exists():
            return None
        others = [other for other in self._watches if other != self.path.absolute()]
        return "; ".join([file_state(path), *(file_state(other) if other.exists() else "gone" for other in others)])

    def find_matrix(self, key: str) -> MatrixLayout | None:
        """The matrix "X", "layers/<name>", "raw", "obsm/<name>" or "obsp/<name>"; None if the file has none.

        Raises:
            SourceFormatError: see `layout.find_matrix`.
        """
        if key not in self._layouts:
            with self.opened() as root:
                self._layouts[key] = layout.find_matrix(root, key)
        return self._layouts[key]

    def read_exact(self, matrix: MatrixLayout, rows: NDArray[np.int64]) -> CSRMatrix:
        """Rows of a matrix with values as exact as stored: integers in 64 bits, without the zeros of a dense matrix.

        Raises:
            IndexError: a row is outside ``[0, n_obs)``.
            SourceFormatError: the file is damaged.
        """
        return self._read(matrix, rows, self.exact_dtype(matrix)).in_order()

    def exact_dtype(self, matrix: MatrixLayout) -> np.dtype[Any]:
        """The dtype of `read_exact`."""
        dtype = self._stored(matrix).arrays[0].dtype
        return np.dtype(f"{dtype.kind}8") if dtype.kind in "iu" else dtype

    def read_dense(self, matrix: MatrixLayout, rows: NDArray[np.int64]) -> NDArray[Any]:
        """``(len(rows), n_columns)`` rows of a dense matrix, as stored.

        Raises:
            IndexError: a row is outside ``[0, n_obs)``.
            SourceFormatError: the file is damaged.
        """
        reader = self._stored(matrix).reader
        if not isinstance(reader, DenseReader):
            raise TypeError(f"{matrix.key} of {self.name} is not stored as a dense matrix")
        try:
            return reader.read_dense(self._valid(rows))
        finally:
            self.check_unchanged()

    def _read(self, matrix: MatrixLayout, rows: NDArray[np.int64], dtype: np.dtype[Any]) -> StoredRows:
        """Rows with checked gene numbers."""
        rows = self._valid(rows)
        try:
            read = self._stored(matrix).reader.read(rows, _MEMORY, dtype)
        finally:
            self.check_unchanged()
        if read.flags & gather.OUT_OF_RANGE:
            n_genes = matrix.shape[1]
            bad = (read.indices < 0) | (read.indices >= n_genes)
            # An invalid 64-bit number may be valid in 32 bits; then it is only known to be among these cells.
            cell = f"cell {rows[read.row_of(int(bad.argmax()))]}" if bad.any() else f"a cell among {rows[:3]}..."
            raise SourceFormatError(
                f"{self.path} is damaged: {matrix.key} has a gene number outside 0 to {n_genes - 1} in {cell}; "
                "download or write the file again"
            )
        return read

    def _valid(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise TypeError(f"rows must be a list of integers; got shape {rows.shape}, dtype {rows.dtype}")
        rows = np.ascontiguousarray(rows, np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < self.n_obs):
            raise IndexError(f"{self.name} has cells 0 to {self.n_obs - 1}; got rows from {rows.min()} to {rows.max()}")
        return rows

    def _stored(self, matrix: MatrixLayout) -> StoredMatrix:
        """An opened matrix; opened once, at its first use."""
        if self._process != os.getpid():
            # When this process was forked, another thread may have held the lock; it may handle signals in another way.
            self._renew_lock()
            bus_errors.after_fork()
        if (stored := self._matrices.get(matrix.key)) is not None:
            return stored
        with self._lock:
            if matrix.key not in self._matrices:
                self._matrices[matrix.key] = self._open_matrix(matrix)
            return self._matrices[matrix.key]

    def _open_matrix(self, matrix: MatrixLayout) -> StoredMatrix:
        form = self.form
        try:
            with form.opened(self.path) as root:
                return open_matrix(
                    lambda location, dtype: form.describe(self._files, root, location, dtype),
                    matrix,
                    files=self._files,
                    transpose=self.transpose,
                )
        finally:
            self.check_unchanged()

    def check_unchanged(self) -> None:
        """As `NoticesChanges.check_unchanged`."""
        self._files.check()
        for stored in tuple(self._matrices.values()):
            if stored.maps is not self._files:  # transposed in another file
                stored.maps.check()

    def release(self) -> None:
        """Free the memory of mapped pages; later reads map them again."""
        for stored in tuple(self._matrices.values()):
            stored.maps.release()

    def close(self) -> None:
        """Close memory maps and drop decoded chunks; a later read opens them again."""
        self._drop()

    def _drop(self) -> None:
        self._renew_lock()
        self._files = FileMaps(self.path, self._watches)
        self._matrices: dict[str, StoredMatrix] = {}

    def _renew_lock(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        dropped = ("_process", "_lock", "_files", "_matrices")
        return {key: value for key, value in self.__dict__.items() if key not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._drop()


def format_of(path: Path) -> Format:
    """The format of a file, a folder, or a group in one."""
    outer, _ = split_path(path)
    return _FORMATS["zarr" if outer.is_dir() or outer.suffix == ".zip" else "h5ad"]
