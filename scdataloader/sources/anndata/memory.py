"""AnnData objects in memory, as a format of AnnData; the matrix of a backed one stays in its file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import issparse

from scdataloader.errors import SourceFormatError
from scdataloader.sources.anndata import h5ad
from scdataloader.sources.anndata.nodes import Node, lookup
from scdataloader.sources.anndata.tree import Group, Table
from scdataloader.sources.arrays.arrays import MappedArray, StoredArray, working_dtype
from scdataloader.sources.arrays.mapped import FileMaps


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnDataInMemory:
    """The `Format` of an AnnData object: its arrays and tables are read in place; only a view is copied."""

    path: Path
    """The file of a backed object; for any other "AnnData"."""
    tree: Group
    """The object's tables and matrices, without those that a backed object has in its file."""
    is_backed: bool
    """Whether X, and the X of raw, are in the file."""

    @classmethod
    def of(cls, adata: AnnData) -> Self:
        """The format of an object.

        Raises:
            SourceFormatError: X is neither an array nor a CSR or CSC matrix, such as one of dask.
        """
        if adata.is_view:
            adata = adata.to_memory() if adata.isbacked else adata.copy()
        nodes: dict[str, Any] = {"obs": Table.of_frame(adata.obs), "var": Table.of_frame(adata.var)}
        raw: dict[str, Any] = {} if adata.raw is None else {"var": Table.of_frame(adata.raw.var)}
        if not adata.isbacked:
            nodes |= _matrices({} if adata.X is None else {"X": adata.X})
            raw |= _matrices({} if adata.raw is None else {"X": adata.raw.X})
            if adata.X is not None and "X" not in nodes:
                raise SourceFormatError(
                    f"X of {_described(adata)} is of type {type(adata.X).__name__}, expected an array, CSR or CSC; "
                    "convert it first (adata = adata.to_memory() loads one of dask)"
                )
        for group in ("layers", "obsm", "obsp"):
            nodes[group] = Group(nodes=_matrices(getattr(adata, group)))
        uns = {key: value for key, value in adata.uns.items() if isinstance(value, str | list | np.ndarray)}
        nodes["uns"] = Group(nodes={key: np.asarray(value) for key, value in uns.items()})
        if raw:
            nodes["raw"] = Group(nodes=raw)
        path = Path(adata.filename) if adata.isbacked else Path("AnnData")
        return cls(path=path, tree=Group(nodes=nodes, path=str(path)), is_backed=adata.isbacked)

    @contextmanager
    def opened(self, path: Path) -> Iterator[Node]:
        """The tree of the object, its file opened for the duration of a with statement."""
        if not self.is_backed:
            yield self.tree
            return
        with h5ad.opened(path) as file:
            nodes = dict(self.tree)
            if "X" in file:
                nodes["X"] = file["X"]
            if "raw" in nodes:
                nodes["raw"] = Group(nodes={**nodes["raw"], "X": lookup(file, "raw/X")})
            yield Group(nodes=nodes, path=str(path))

    def watched(self, path: Path) -> Sequence[Path]:
        """The file of a backed object."""
        return (path,) if self.is_backed else ()

    def linked(self, root: Node) -> Sequence[Path]:  # noqa: ARG002 (as of the other formats)
        """Nothing: the tables are in memory."""
        return ()

    def describe(self, files: FileMaps, root: Node, location: str, dtype: np.dtype[Any] | None = None) -> StoredArray:
        """As `Format.describe`; an array in memory is used as it is, unless it has to be converted."""
        node = root[location]
        if isinstance(node, h5py.Dataset):
            return h5ad.describe(files, root, location, dtype)
        working = dtype or working_dtype(node.dtype, f"{self.path}: {location}")
        values = node if node.ndim == 1 else node.reshape(len(node), math.prod(node.shape[1:]))
        return MappedArray(values=np.ascontiguousarray(values, working))


def _matrices(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some matrices that can be read: arrays, tables, and sparse matrices by rows or by columns."""
    nodes: dict[str, Any] = {}
    for key, matrix in values.items():
        if isinstance(matrix, np.ndarray) and not isinstance(matrix, np.ma.MaskedArray):
            nodes[key] = np.asarray(matrix)
        elif isinstance(matrix, pd.DataFrame):
            nodes[key] = Table.of_frame(matrix)
        elif issparse(matrix) and matrix.format in ("csr", "csc"):
            arrays = {name: getattr(matrix, name) for name in ("data", "indices", "indptr")}
            nodes[key] = Group.of_sparse(matrix.format, matrix.shape, **arrays)
    return nodes


def _described(adata: AnnData) -> str:
    return f"the AnnData of {adata.n_obs:,} cells and {adata.n_vars:,} genes"
