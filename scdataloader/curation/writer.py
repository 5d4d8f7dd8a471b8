"""An AnnData file that grows by blocks of cells, and is there whole or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scdataloader.errors import StoreWriteError
from scdataloader.runtime.files import PARTIAL, writing
from scdataloader.sources.anndata.counts import first_not_count

Compression = Literal["none", "lzf", "gzip"]

_CHUNK = 1 << 16
"""Values in a chunk of a compressed array."""
_SPARE = 1 << 24
"""Bytes for all but the values, as far as they can be told beforehand."""
_PIECE = 1 << 22
"""Values that are copied at once."""


class Writer:
    """What blocks of cells are given to; made by `written`.

    The values wait in two files beside the output until their number is known: only then can they be laid out in one
    piece, as they are read fastest.
    """

    def __init__(self, name: str, data: BinaryIO, indices: BinaryIO) -> None:
        self.uns: dict[str, Any] = {}
        """What the file will have in ``uns``; may be filled until the end."""
        self.var = pd.DataFrame()
        """The genes, as the first block has them."""
        self._name, self._data, self._indices = name, data, indices
        self._sizes: list[NDArray[np.int64]] = []
        self._cells: list[AnnData] = []

    def append(self, block: AnnData) -> None:
        """Write more cells, with the same genes as those before.

        Raises:
            StoreWriteError: the disk is full, or not to be written to.
            ValueError: the genes are others, or a value is no count.
        """
        if not self._cells:
            if not block.var_names.is_unique:
                again = block.var_names[block.var_names.duplicated()][0]
                raise ValueError(f"{self._name}: a hook gives the gene {again!r} twice; genes need names of their own")
            self.var = block.var.copy()
        elif not block.var_names.equals(self.var.index):
            raise ValueError(
                f"{self._name}: a hook gives a block of cells other genes than the one before ({block.n_vars:,} and "
                f"{len(self.var):,}); it has to give all blocks the same"
            )
        x = canonical(block.X)
        at = first_not_count(x.data)
        if at is not None:
            raise ValueError(
                f"{self._name}: a hook gives the value {x.data[at]}, where whole numbers from 0 up were expected; "
                "hooks have to give counts"
            )
        with writing(Path(self._data.name)):
            x.data.tofile(self._data)
            x.indices.astype(np.int32, copy=False).tofile(self._indices)
        self._sizes.append(np.diff(x.indptr).astype(np.int64))
        # copied: parts of a view would keep the whole block
        obsm = {key: values.copy() for key, values in block.obsm.items()}
        self._cells.append(AnnData(obs=block.obs.copy(), obsm=obsm))

    @property
    def n_obs(self) -> int:
        """Cells so far."""
        return sum(len(sizes) for sizes in self._sizes)

    def cells(self) -> AnnData:
        """The cells so far, without values and genes; of at least one block.

        Raises:
            ValueError: their names are not unique.
        """
        if len(self._cells) > 1:
            self._cells = [ad.concat(self._cells, join="outer")]
        (cells,) = self._cells
        if not cells.obs_names.is_unique:
            raise ValueError(f"{self._name}: hooks have made names of cells that occur more than once")
        return cells

    def finish(self, root: h5py.File, compression: Compression) -> None:
        """Lay everything out in an empty file.

        Raises:
            StoreWriteError: the disk has no room for the values.
        """
        self._require_room(Path(self._data.name), compression)
        cells = self.cells()
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        # uns goes first: of large files lamindb tells contents apart by the first and the last 50 MB only
        for key, value in {"uns": self.uns, "obs": cells.obs, "var": self.var, "obsm": dict(cells.obsm)}.items():
            ad.io.write_elem(root, key, value)
        for key in ("layers", "varm", "obsp", "varp"):
            ad.io.write_elem(root, key, {})
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(self._sizes))]).astype(np.int64)
        matrix = root.create_group("X")
        shape = [cells.n_obs, len(self.var)]
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        matrix.create_dataset("indptr", data=indptr)
        for key, file, dtype in (("data", self._data, np.float32), ("indices", self._indices, np.int32)):
            file.flush()
            _copy(Path(file.name), matrix, key, np.dtype(dtype), compression)

    def _require_room(self, near: Path, compression: Compression) -> None:
        """Refuse to begin what cannot be ended: where a disk is full, HDF5 may take the process with it."""
        n_bytes = 0 if compression != "none" else self._data.tell() + self._indices.tell()
        free = shutil.disk_usage(near.parent).free
        if free < n_bytes + _SPARE:
            raise StoreWriteError(
                errno.ENOSPC,
                f"cannot write {self._name} into {near.parent}: {n_bytes / 1e6:,.1f} MB and a little more are needed, "
                f"and {free / 1e6:,.1f} MB are free; make room",
            )


def canonical(x: Any) -> csr_matrix:
    """Counts as they are written: float32, ascending within a cell, without zeros."""
    x = csr_matrix(x, dtype=np.float32)
    x.sum_duplicates()  # which sorts, too
    x.eliminate_zeros()
    return x


@contextmanager
def written(path: Path, name: str, compression: Compression) -> Iterator[Writer]:
    """Within, blocks are appended, at least one; after it, the file is there, unless an exception has passed.

    Args:
        path: the file, which is replaced if it exists. It is written under another name, that ends in ``.partial``.
        name: what messages call it.
        compression: of the values and gene numbers.

    Raises:
        StoreWriteError: it cannot be written.
    """
    partial, *spools = (path.with_name(f".{path.name}{what}{PARTIAL}") for what in ("", ".data", ".indices"))
    try:
        with ExitStack() as files:
            with writing(path):
                data, indices = (files.enter_context(spool.open("wb")) for spool in spools)
            writer = Writer(name, data, indices)
            yield writer
            with writing(path):
                with h5py.File(partial, "w") as root:
                    writer.finish(root, compression)
                partial.replace(path)
    finally:
        for file in (partial, *spools):
            file.unlink(missing_ok=True)


def without_partial(folder: Path) -> None:
    """Remove what an interrupted or killed process has left of files that it was writing."""
    for path in folder.glob(f".*.h5ad*{PARTIAL}"):
        path.unlink(missing_ok=True)


def _copy(source: Path, group: h5py.Group, key: str, dtype: np.dtype[Any], compression: Compression) -> None:
    """A file of plain values as a dataset."""
    n = source.stat().st_size // dtype.itemsize
    options: Mapping[str, Any] = {}
    if compression != "none" and n:
        options = {"compression": compression, "shuffle": True, "chunks": (min(n, _CHUNK),)}
    dataset = group.create_dataset(key, (n,), dtype, **options)
    with source.open("rb") as file:
        for start in range(0, n, _PIECE):
            values = np.fromfile(file, dtype, _PIECE)
            dataset[start : start + len(values)] = values
