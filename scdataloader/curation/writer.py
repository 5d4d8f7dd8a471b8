"""Write a curated file in blocks of cells, and check what hooks have made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scdataloader.runtime.files import PARTIAL
from scdataloader.sources.anndata.counts import first_not_count
from scdataloader.sources.anndata.writer import Compression, Spool, new_anndata, write_anndata


class Writer:
    """Collects the blocks of one output; made by `written`."""

    def __init__(self, name: str, spool: Spool) -> None:
        self.uns: dict[str, Any] = {}
        """``uns`` of the output; may be filled until the end."""
        self.var = pd.DataFrame()
        """Genes of the first block."""
        self._name, self._spool = name, spool
        self._sizes: list[NDArray[np.int64]] = []
        self._cells: list[AnnData] = []

    def append(self, block: AnnData) -> None:
        """Add cells, with the same genes as the cells before.

        Raises:
            WriteError: the disk is full or read-only.
            ValueError: the genes differ, or a value is not a count.
        """
        if not self._cells:
            if not block.var_names.is_unique:
                again = block.var_names[block.var_names.duplicated()][0]
                raise ValueError(f"{self._name}: a hook returned the gene {again!r} twice; gene names must be unique")
            self.var = block.var.copy()
        elif not block.var_names.equals(self.var.index):
            raise ValueError(
                f"{self._name}: a hook returned {block.n_vars:,} genes for a block of cells and {len(self.var):,} for "
                "the one before; it must return the same genes for all blocks"
            )
        x = canonical(block.X)
        at = first_not_count(x.data)
        if at is not None:
            raise ValueError(
                f"{self._name}: a hook returned the value {x.data[at]}; expected counts, whole numbers from 0 up"
            )
        self._spool.append(x.data, x.indices)
        self._sizes.append(np.diff(x.indptr).astype(np.int64))
        # copies, because parts of a view would keep the whole block in memory
        obsm = {key: values.copy() for key, values in block.obsm.items()}
        self._cells.append(AnnData(obs=block.obs.copy(), obsm=obsm))

    @property
    def n_obs(self) -> int:
        """Cells so far."""
        return sum(len(sizes) for sizes in self._sizes)

    @property
    def indptr(self) -> NDArray[np.int64]:
        """``(n_obs + 1,)`` offsets of the cells' values."""
        return np.concatenate([[0], np.cumsum(np.concatenate(self._sizes))]).astype(np.int64)

    def cells(self) -> AnnData:
        """``obs`` and ``obsm`` of the cells so far, of at least one block.

        Raises:
            ValueError: cell names are not unique.
        """
        if len(self._cells) > 1:
            self._cells = [ad.concat(self._cells, join="outer")]
        (cells,) = self._cells
        if not cells.obs_names.is_unique:
            raise ValueError(f"{self._name}: hooks have made cell names that occur more than once")
        return cells


def canonical(x: Any) -> csr_matrix:
    """Counts as they are written: float32, sorted within a cell, without stored zeros."""
    x = csr_matrix(x, dtype=np.float32)
    x.sum_duplicates()  # sorts, too
    x.eliminate_zeros()
    return x


@contextmanager
def written(path: Path, name: str, compression: Compression) -> Iterator[Writer]:
    """Yield a writer that takes at least one block; the file appears when the block of code ends without an exception.

    Args:
        path: The .h5ad file, which is replaced if it exists.
        name: Name of the file in messages.
        compression: Filter of the values and gene numbers.

    Raises:
        WriteError: the file cannot be written.
    """
    dtype = np.dtype(np.float32)
    with Spool(path, dtype) as spool:
        writer = Writer(name, spool)
        yield writer
        cells, indptr = writer.cells(), writer.indptr
        tables = AnnData(obs=cells.obs, var=writer.var, obsm=dict(cells.obsm), uns=writer.uns)
        n_bytes = 0 if compression != "none" else int(indptr[-1]) * 8
        with new_anndata(path, n_bytes) as root:
            write_anndata(root, tables, indptr, spool.blocks(), dtype=dtype, compression=compression)


def without_partial(folder: Path) -> None:
    """Remove the temporary files of an interrupted or killed process."""
    for path in folder.glob(f".*.h5ad*{PARTIAL}"):
        path.unlink(missing_ok=True)
