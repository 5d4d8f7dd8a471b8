"""What is in the stores that are kept in tests/store/data, as literal values; run as a script, it makes those stores.

    python -m tests.store.kept_stores tests/store/data/store_v4

A version of the format has its stores made once: later releases have to read what is there, not what they would write.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from tests.store.stores import Given


@dataclass(frozen=True)
class Literal:
    """A source, value by value."""

    name: str
    n_genes: int
    cells: list[dict[int, float]]
    """{place of a gene in ``var``: value} of each cell."""
    obs: pd.DataFrame
    gene_step: int
    """Gene j has the number ``j * gene_step % n_genes`` in its id, so that ids are in no order."""
    kind: str = "counts"
    prefix: str = "ENSG"

    @property
    def dtype(self) -> Any:
        return np.int64 if self.kind == "counts" else np.float32

    @property
    def var(self) -> pd.DataFrame:
        numbers = [j * self.gene_step % self.n_genes for j in range(self.n_genes)]
        ids = pd.Index([f"{self.prefix}{number:011d}" for number in numbers], name="gene_id")
        return pd.DataFrame({"coding": [number % 3 == 0 for number in numbers]}, index=ids)

    @property
    def x(self) -> sp.csr_matrix:
        rows = [row for row, cell in enumerate(self.cells) for _ in cell]
        genes = [gene for cell in self.cells for gene in cell]
        values = [value for cell in self.cells for value in cell.values()]
        return sp.csr_matrix((np.array(values, self.dtype), (rows, genes)), (len(self.cells), self.n_genes))

    def given(self) -> Given:
        return Given(self.name, self.x, self.obs, self.var, kind=self.kind)


SOURCES = {
    source.name: source
    for source in (
        Literal(
            name="liver.h5ad",
            n_genes=1500,
            gene_step=7,
            cells=[
                {0: 1, 1: 255, 2: 256, 3: 65535, 4: 65536, 5: 4294967295},
                {},
                {749: 1},
                {0: 4, 500: 255, 1000: 1, 1499: 2},
                {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6, 6: 7, 7: 8, 8: 9, 9: 256, 10: 11, 11: 255},
                dict.fromkeys(range(100, 120), 1000) | {700: 65536, 1200: 3},
            ],
            obs=pd.DataFrame(
                {
                    "cell_type": pd.Categorical(
                        ["hepatocyte", "hepatocyte", "stellate", None, "stellate", "hepatocyte"],
                        categories=["stellate", "hepatocyte", "Kupffer"],
                    ),
                    "batch": pd.Categorical([3, 1, 3, 1, 1, 1], categories=[3, 1]),
                    "age": np.array([31.5, np.nan, 2.0, 0.0, -1.0, 77.25], np.float32),
                    "is_doublet": [False, True, False, False, True, False],
                },
                index=pd.Index(["AAAC-1", "AAAG-1", "AACT-1", "AATT-1", "ACGT-1", "TTTT-1"], name="barcode"),
            ),
        ),
        Literal(
            name="brain.h5ad",
            n_genes=5,
            gene_step=2,
            cells=[{0: 7}, {4: 300, 0: 1}, {0: 1, 1: 1, 2: 1, 3: 1, 4: 1}],
            obs=pd.DataFrame({"cell_type": ["neuron", "neuron", "microglia"]}, index=["b1", "b2", "b3"]),
        ),
        Literal(
            name="worm.h5ad",
            n_genes=4,
            gene_step=3,
            prefix="WBGene",
            cells=[{3: 2}, {0: 1, 1: 70000}],
            obs=pd.DataFrame({"cell_type": ["muscle", "gut"]}, index=["w1", "w2"]),
        ),
        Literal(
            name="normalised.h5ad",
            n_genes=5,
            gene_step=3,
            kind="float32",
            cells=[
                {0: 0.5, 1: -1.25, 2: float(np.float32(0.1))},
                {3: float("nan"), 4: float("inf"), 0: float("-inf")},
                {2: float(np.finfo(np.float32).smallest_subnormal), 1: float(np.finfo(np.float32).max)},
            ],
            obs=pd.DataFrame({"rank": np.array([3, 1, 2], np.int64)}, index=["x", "y", "z"]),
        ),
        Literal(
            name="kidney.h5ad",
            n_genes=1500,
            gene_step=7,
            cells=[
                {gene: 1 + gene % 5 for gene in range(0, 900, 3)} | {700: 40, 750: 16, 1400: 300},
                {gene: 1 + gene % 15 for gene in range(0, 1500, 13)} | {2: 255, 3: 256},
                dict.fromkeys(range(40), 1) | {300: 2, 400: 3, 800: 4},
            ],
            obs=pd.DataFrame({"cell_type": ["podocyte", "podocyte", "tubule"]}, index=["k1", "k2", "k3"]),
        ),
    )
}


@dataclass(frozen=True)
class Kept:
    """How a store was made."""

    sources: list[str]
    layout: str = "source"


KEPT = {
    "counts.cells": Kept(["brain.h5ad", "liver.h5ad", "worm.h5ad"]),
    "float32.cells": Kept(["normalised.h5ad"]),
    "mixed.cells": Kept(["liver.h5ad", "brain.h5ad"], layout="shuffled"),
}


WITH_MATRICES = {
    "matrices.cells": Kept(["brain.h5ad", "liver.h5ad"]),
    "mixed_matrices.cells": Kept(["brain.h5ad", "liver.h5ad"], layout="shuffled"),
}
"""Of version 2."""

IN_SHORT = {
    "short.cells": Kept(["kidney.h5ad", "brain.h5ad"]),
    "mixed_short.cells": Kept(["kidney.h5ad", "liver.h5ad"], layout="shuffled"),
}
"""Of version 4."""

MATRICES = {
    "brain.h5ad": {
        "layers/spliced": [{0: 7.0}, {}, {1: 0.5, 4: 300.0}],
        "obsm/pca": [[0.5, -1.0], [0.0, 0.0], [3.0, 65536.0]],
        "obsp/distances": [{1: 0.0, 2: 2.5}, {}, {0: 1.0}],
    },
    "liver.h5ad": {
        "layers/spliced": [
            {0: 1.0, 1499: 2.0},
            {},
            {749: -0.25},
            {500: 255.0},
            {3: 65535.0, 4: 65536.0},
            {9: 16777216.0},
        ],
        "obsm/pca": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [0.1, 0.0], [-0.5, 0.25]],
        "obsp/distances": [{5: 0.0}, {0: 0.0, 4: 0.125}, {}, {1: 3.0}, {2: 4.0, 3: 1e-30}, {0: float("inf")}],
    },
}
"""{source: {key: cells}} of those stores; columns of "layers/…" are places of genes in ``var``."""
PROTEINS = ["CD3", "CD4"]
"""Names of the columns of "obsm/pca" of brain.h5ad."""


def sparse(cells: list[dict[int, float]], n_columns: int) -> sp.csr_matrix:
    """Cells as a matrix that keeps stored zeros."""
    columns = [column for cell in cells for column in sorted(cell)]
    values = [cell[column] for cell in cells for column in sorted(cell)]
    indptr = np.cumsum([0, *map(len, cells)])
    return sp.csr_matrix((np.array(values, np.float32), columns, indptr), (len(cells), n_columns))


def with_matrices(name: str) -> ad.AnnData:
    """A source with its further matrices."""
    source, given = SOURCES[name], MATRICES[name]
    adata = ad.AnnData(source.x, obs=source.obs, var=source.var)
    adata.layers["spliced"] = sparse(given["layers/spliced"], source.n_genes)
    pca = np.array(given["obsm/pca"], np.float32)
    is_named = name == "brain.h5ad"
    adata.obsm["pca"] = pd.DataFrame(pca, columns=PROTEINS, index=source.obs.index) if is_named else pca
    adata.obsp["distances"] = sparse(given["obsp/distances"], len(source.cells))
    return adata


def make(folder: Path) -> None:
    """Convert the sources, by way of AnnData files that do not stay."""
    from scdataloader.store.convert import convert

    with tempfile.TemporaryDirectory() as files:
        paths = {name: Path(files) / name for name in MATRICES}
        for name, path in paths.items():
            with h5py.File(path, "w") as file:
                ad.io.write_elem(file, "/", with_matrices(name))
        for name, kept in WITH_MATRICES.items():
            convert(
                [paths[source] for source in kept.sources],
                folder / name,
                layout=kept.layout,
                layers=["spliced"],
                obsm=["pca"],
                obsp=["distances"],
                n_processes=1,
            )


def make_plain(folder: Path, stores: dict[str, Kept]) -> None:
    """Convert the sources of stores without further matrices, as `KEPT` and `IN_SHORT`."""
    from scdataloader.store.convert import convert

    with tempfile.TemporaryDirectory() as files:
        paths = {}
        for name, source in SOURCES.items():
            paths[name] = Path(files) / name
            with h5py.File(paths[name], "w") as file:
                ad.io.write_elem(file, "/", ad.AnnData(source.x, obs=source.obs, var=source.var))
        for name, kept in stores.items():
            is_float = any(SOURCES[source].kind == "float32" for source in kept.sources)
            convert(
                [paths[source] for source in kept.sources],
                folder / name,
                layout=kept.layout,
                values="any" if is_float else "counts",
                n_processes=1,
            )


if __name__ == "__main__":
    make_plain(Path(sys.argv[1]), IN_SHORT)
