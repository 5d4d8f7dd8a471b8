"""Cells made of numbers: toy://300x50 has 300 cells and 50 genes, whose values name their row and column."""

import hashlib
import re

import numpy as np
import pandas as pd

from scdataloader.types import CSRRows

TYPES = ["TOY:3", "TOY:4", "TOY:5"]


class ToySource:
    """The members of `Source`, and no others."""

    def __init__(self, name):
        size = re.fullmatch(r"toy://(\d+)x(\d+)", name)
        if size is None:
            raise ValueError(f"{name} is not an address of toy cells; expected toy://<cells>x<genes>")
        self.name = name
        self.n_obs, self.n_genes = int(size[1]), int(size[2])
        self.var = pd.DataFrame(index=[f"ENSG{gene:011d}" for gene in range(self.n_genes)])
        self.fingerprint = hashlib.sha256(name.encode()).hexdigest()
        self.obs_columns = ["cell_type", "donor", "age"]

    def obs(self, columns):
        row = np.arange(self.n_obs)
        table = pd.DataFrame(
            {
                "cell_type": pd.Categorical.from_codes(row * 7 % 10 // 4, TYPES),
                "donor": [f"donor {donor}" for donor in row // 5 % 6],
                "age": row / 2,
            }
        )
        for column in columns:
            if column not in table:
                raise KeyError(f"{self.name} has no obs column {column!r}")
        return table[list(columns)]

    def read(self, rows):
        rows = np.asarray(rows)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.n_obs):
            raise IndexError(f"{self.name} has cells 0 to {self.n_obs - 1}")
        gene = np.arange(self.n_genes)
        expressed = (rows[:, None] + gene) % 3 == 0
        cell, indices = np.nonzero(expressed)
        return CSRRows(
            data=(1000 * rows[cell] + indices + 1).astype(np.float32),
            indices=indices.astype(np.int32),
            indptr=np.concatenate([[0], np.cumsum(expressed.sum(axis=1))]).astype(np.int64),
            n_genes=self.n_genes,
        )


class RichSource(ToySource):
    """Optional capabilities as well."""

    organism = "human"
    matrix_keys = ("layers/double", "obsm/X_toy")

    def obs_names(self):
        return pd.Index([f"cell {row} of {self.name}" for row in range(self.n_obs)])

    def nnz(self):
        return np.diff(self.read(np.arange(self.n_obs)).indptr)

    def read_matrix(self, key, rows):
        cells = self.read(rows)
        if key == "layers/double":
            return CSRRows(data=2 * cells.data, indices=cells.indices, indptr=cells.indptr, n_genes=cells.n_genes)
        if key == "obsm/X_toy":
            return np.stack([rows, rows + 0.5], axis=1).astype(np.float32)
        raise KeyError(f"{self.name} has no matrix {key!r}")


def open_toy(addresses, options):
    """What stands behind "toy://"."""
    return [ToySource(address) for address in addresses]


def open_file(paths, options):
    """What stands behind "*.toy": a file that holds an address."""
    return [RichSource(path.read_text().strip()) for path in paths]
