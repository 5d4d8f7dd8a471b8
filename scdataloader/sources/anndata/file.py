"""An open AnnData file: its tree of groups and arrays."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import zarr
from numpy.typing import NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.sources.anndata.layout import Node, check_is_anndata


class AnnDataFile:
    """An .h5ad file or .zarr folder, opened when first read, once in each process.

    Safe to fork and to pickle: handles are not shared between processes. ``close()`` may be called at any time; the
    next read opens the file again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root: Node | None = None
        self._process = -1
        self._indptr: dict[str, NDArray[np.int64]] = {}

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)  # type: ignore[misc]

    @property
    def root(self) -> Node:
        """The top group.

        Raises:
            FileNotFoundError: the path does not exist.
            SourceFormatError: it is not an AnnData.
        """
        if self._root is None or self._process != os.getpid():
            self._root = self._open()
            self._process = os.getpid()
        return self._root

    def _open(self) -> Node:
        if not self.path.exists():
            raise FileNotFoundError(f"no AnnData at {self.path} (working directory {Path.cwd()})")
        try:
            root = zarr.open_group(self.path, mode="r") if self.path.is_dir() else h5py.File(self.path, "r")
        except (OSError, zarr.errors.GroupNotFoundError) as error:
            raise SourceFormatError(
                f"{self.path} is not an AnnData ({error}); expected an .h5ad file or a .zarr folder"
            ) from error
        check_is_anndata(root, self.path)
        return root

    def indptr(self, location: str) -> NDArray[np.int64]:
        """``(n_rows + 1,)`` row offsets of a CSR matrix, read once."""
        if location not in self._indptr:
            self._indptr[location] = np.asarray(self.root[location]["indptr"][...], dtype=np.int64)
        return self._indptr[location]

    def close(self) -> None:
        """Close the file."""
        root, self._root = self._root, None
        if root is not None and self._process == os.getpid() and isinstance(root, h5py.File):
            root.close()
