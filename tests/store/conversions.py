"""Sources to convert, and what a store of them must give back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scdataloader.store.convert import convert
from scdataloader.store.export import to_anndata
from scdataloader.store.reader import Store
from scdataloader.store.verify import verify
from scdataloader.types import CSRMatrix, CSRRows


def here(data, out, **options):
    """Convert in this process, in shards of a few cells."""
    return convert(data, out, **{"n_processes": 1, "cells_per_shard": 5, "progress": False} | options)


@dataclass
class Stored:
    """A source in memory that gives its values in the dtype that they have, as a file would."""

    name: str
    x: sp.csr_matrix
    var: pd.DataFrame
    table: pd.DataFrame
    mapped: bool = True
    reads_stored: bool = True
    fails_at: int | None = None
    """A cell that cannot be read."""
    n_read: int = 0
    """Calls of read."""

    def __post_init__(self):
        self.read_stored = self._read_stored if self.reads_stored else self.read

    @property
    def obs_columns(self):
        return list(self.table.columns)

    @property
    def n_obs(self) -> int:
        return self.x.shape[0]

    @property
    def matrix(self) -> CSRMatrix | None:
        if not self.mapped:
            return None
        return CSRMatrix(indptr=self.x.indptr.astype(np.int64), indices=self.x.indices, data=self.x.data)

    @property
    def fingerprint(self) -> str:
        parts = (self.name.encode(), self.x.data.tobytes(), self.x.indices.tobytes(), self.x.indptr.tobytes())
        return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()

    def obs(self, columns):
        for column in columns:
            if column not in self.table:
                raise KeyError(f"{self.name} has no obs column {column!r}")
        return self.table[list(columns)].reset_index(drop=True)

    def obs_names(self):
        return self.table.index

    def _read_stored(self, rows):
        self.n_read += 1
        if self.fails_at is not None and self.fails_at in rows:
            raise OSError("the disk fell off the table")
        part = self.x[rows]
        return CSRMatrix(indptr=part.indptr.astype(np.int64), indices=part.indices, data=part.data)

    def read(self, rows):
        part = self._read_stored(rows)
        whole = sp.csr_matrix((part.data, part.indices, part.indptr), (len(rows), self.x.shape[1])).copy()
        whole.sum_duplicates()
        return CSRRows(
            data=whole.data.astype(np.float32),
            indices=whole.indices.astype(np.int32),
            indptr=whole.indptr.astype(np.int64),
            n_genes=self.x.shape[1],
        )


def tables(n_cells: int, n_genes: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of cells, with a label that some lack; and of genes, whose ids are in no order."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical.from_codes(rng.integers(-1, 3, n_cells), ["T cell", "B cell", "NK"]),
            "row": np.arange(n_cells),
        },
        index=pd.Index([f"cell{i}" for i in range(n_cells)], name="barcode"),
    )
    var = pd.DataFrame(
        {"symbol": [f"G{i}" for i in range(n_genes)]}, index=[f"ENSG{i:011d}" for i in rng.permutation(n_genes)]
    )
    return obs, var


def counted(name: str, n_cells: int, n_genes: int, seed: int, **more: Any) -> Stored:
    """Counts of which a third is not zero."""
    rng = np.random.default_rng(seed)
    x = rng.geometric(0.2, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.3)
    obs, var = tables(n_cells, n_genes, seed)
    return Stored(name, sp.csr_matrix(x.astype(more.pop("dtype", np.float32))), var, obs, **more)


def write_files(folder: Path, sizes: tuple[int, ...] = (13, 8), n_genes: int = 40) -> list[str]:
    """AnnData files of so many cells."""
    paths = []
    for seed, n_cells in enumerate(sizes):
        source = counted(f"{seed}", n_cells, n_genes + seed, seed)
        with_matrices(ad.AnnData(source.x, obs=source.table, var=source.var)).write_h5ad(folder / f"{seed}.h5ad")
        paths.append(str(folder / f"{seed}.h5ad"))
    return paths


def with_matrices(adata: ad.AnnData) -> ad.AnnData:
    """Further matrices whose values name their row and column; some are zero, whole numbers, or neither."""
    n, g = adata.shape
    named = 1000.0 * np.arange(n)[:, None] + np.arange(g) + 1
    adata.layers["whole"] = sp.csr_matrix(np.where((named % 3 == 0), named, 0).astype(np.float32))
    adata.layers["parts"] = np.where(named % 7 < 3, named / 8, 0).astype(np.float32)
    adata.layers["parts"][: n // 2] *= 8  # whole numbers in some of the cells
    adata.obsm["pca"] = -(named[:, :6] % 5).astype(np.float32)
    adata.obsm["proteins"] = pd.DataFrame(named[:, :3] / 2, columns=["CD3", "CD4", "CD8"], index=adata.obs_names)
    cells = np.arange(n)
    near = np.stack([(cells + 2) % n, (cells + 5) % n, cells], axis=1)
    distances = np.stack([cells % 3 * 0.5, cells * 0.1, cells * 0.0], axis=1)  # an edge of 0 in every third cell
    graph = sp.csr_matrix((distances.ravel(), near.ravel(), np.arange(n + 1) * 3), (n, n))
    graph.sort_indices()
    adata.obsp["distances"] = graph
    return adata


def tree(folder: Path) -> dict[str, bytes]:
    """All bytes of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"a folder"
        for path in sorted(folder.rglob("*"))
    }


def check(store: Store, sources: list[Stored]) -> None:
    """That a store is whole, and gives back what it was made of."""
    assert not verify(store.path).unnamed
    assert [source.name for source in store.sources] == [source.name for source in sources]
    for number, source in enumerate(sources):
        expected = source.x.copy()
        if expected.dtype.kind in "iu":
            expected = expected.astype(np.int64 if expected.dtype != np.uint64 else np.uint64)
        expected.sum_duplicates()
        expected.eliminate_zeros()
        found = to_anndata(store, number)
        np.testing.assert_array_equal(found.X.indptr, expected.indptr)
        np.testing.assert_array_equal(found.X.indices, expected.indices)
        np.testing.assert_array_equal(found.X.data, expected.data)
        pd.testing.assert_frame_equal(found.obs, source.table)
        pd.testing.assert_frame_equal(found.var, source.var)
        check_reads(store.sources[number], expected)


def check_reads(source: Any, expected: sp.csr_matrix) -> None:
    """That what a source of a store reads is what its tables say."""
    rows = source.obs(["row"])["row"].to_numpy()
    genes = source.var["__position__"].to_numpy()
    with np.errstate(over="ignore"):
        wanted = expected[rows][:, genes].astype(np.float32).toarray()
    np.testing.assert_array_equal(source.read(np.arange(source.n_obs)).to_scipy().toarray(), wanted)
