"""Cells in memory whose values name their own row and column, so that a wrong row or gene shows itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scdataloader.types import CellBatch, CSRMatrix, CSRRows


def named_values(n_obs: int, n_genes: int, *, density: float = 0.4, seed: int = 0) -> NDArray[np.float32]:
    """``(n_obs, n_genes)`` counts: 0, or ``1000 * row + column + 1``."""
    value = 1000.0 * np.arange(n_obs)[:, None] + np.arange(n_genes) + 1
    return (value * (np.random.default_rng(seed).random((n_obs, n_genes)) < density)).astype(np.float32)


class MemorySource:
    """A `Source` of arrays in memory.

    Args:
        name: Name of the source in messages.
        values: ``(n_obs, n_genes)`` counts.
        genes: Gene ids.
        obs: {column: values} of the cell table.
        mapped: Whether the whole matrix is offered as well; see `HasMatrix`.
        organism: See `HasOrganism`.
        matrices: {key: ``(n_obs, D)`` values}, such as "layers/spliced" and "obsm/X_pca"; see `HasMatrices`. A graph,
            "obsp/distances", is a CSR matrix.
    """

    def __init__(
        self,
        name: str,
        values: NDArray[np.float32],
        genes: Sequence[str],
        obs: Mapping[str, Any] | None = None,
        *,
        mapped: bool = False,
        organism: str | None = None,
        matrices: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.dense = values
        self.n_obs = len(values)
        self.var = pd.DataFrame(index=pd.Index(genes))
        self._obs = pd.DataFrame(obs or {}, index=pd.RangeIndex(self.n_obs))
        self.obs_columns = list(self._obs.columns)
        self.organism = organism
        self.fingerprint = hashlib.sha256(name.encode() + values.tobytes()).hexdigest()
        self._rows = csr_matrix(values)
        self._matrices = dict(matrices or {})
        self.matrix_keys = list(self._matrices)
        self.matrix = None
        if mapped:
            self.matrix = CSRMatrix(
                indptr=self._rows.indptr.astype(np.int64),
                indices=self._rows.indices,
                data=self._rows.data,
                counts_only=True,
            )

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """Columns of the cell table; a missing one raises KeyError."""
        missing = [column for column in columns if column not in self.obs_columns]
        if missing:
            raise KeyError(f"{self.name} has no obs column {missing[0]!r}; its columns are {self.obs_columns}")
        return self._obs[list(columns)]

    def read(self, rows: NDArray[np.int64]) -> CSRRows:
        """Cells ``rows``; a row outside of the source raises IndexError."""
        return self._part(self._rows, rows)

    def read_matrix(self, key: str, rows: NDArray[np.int64]) -> Any:
        """Cells ``rows`` of a further matrix; an unknown key raises KeyError."""
        if key not in self._matrices:
            raise KeyError(f"{self.name} has no matrix {key!r}; its matrices are {self.matrix_keys}")
        if key.startswith("obsp/"):
            return self._part(csr_matrix(self._matrices[key]), rows)
        values = np.asarray(self._matrices[key], np.float32)
        return self._part(csr_matrix(values), rows) if key.startswith("layers/") else values[rows]

    def neighbours(
        self, rows: NDArray[np.int64], k: int, key: str = "distances"
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The nearest cells by the graph "obsp/…"; an unknown key raises KeyError."""
        graph = self.read_matrix(f"obsp/{key}", rows)
        found, distances = np.full((len(rows), k), -1, np.int64), np.full((len(rows), k), -1, np.float32)
        for at, row in enumerate(rows):
            edges = slice(*graph.indptr[at : at + 2])
            near = sorted(zip(graph.data[edges].tolist(), graph.indices[edges].tolist(), strict=True))
            near = [(distance, cell) for distance, cell in near if cell != row][:k]
            for place, (distance, cell) in enumerate(near):
                found[at, place], distances[at, place] = cell, distance
        return found, distances

    def _part(self, values: Any, rows: NDArray[np.int64]) -> CSRRows:
        rows = np.asarray(rows, np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.n_obs):
            raise IndexError(f"{self.name} has cells 0 to {self.n_obs - 1}; got {rows.min()} to {rows.max()}")
        part = values[rows]
        return CSRRows(
            data=part.data.astype(np.float32),
            indices=part.indices.astype(np.int32),
            indptr=part.indptr.astype(np.int64),
            n_genes=values.shape[1],
        )


def named_batch(
    n_cells: int,
    n_genes: int,
    *,
    obs: Mapping[str, Any] | None = None,
    matrices: Sequence[str] = (),
    with_pad: bool = False,
    seed: int = 0,
) -> CellBatch:
    """Cells of two sources and one label column, as a collate function gets them. Some of them have no counts.

    Args:
        n_cells: Number of cells.
        n_genes: Length of the vocabulary.
        obs: {column: at least ``n_cells`` values}.
        matrices: Keys of matrices: "layers/…" in the genes of the vocabulary, others with 5 columns.
        with_pad: Whether the last cell is marked as repeated.
        seed: Names the values.
    """
    rng = np.random.default_rng(seed)
    values = named_values(n_cells, n_genes, seed=seed)
    values[:: max(2, n_cells // 3)] = 0
    columns = {name: np.asarray(column)[:n_cells] for name, column in (obs or {}).items()}
    return CellBatch(
        x=_csr_rows(values),
        depth=values.sum(axis=1, dtype=np.float32) + 1,
        row=rng.permutation(10 * n_cells)[:n_cells].astype(np.int64),
        source=rng.integers(0, 2, n_cells).astype(np.int32),
        labels=rng.integers(-1, 2, (n_cells, 1)).astype(np.int64),
        measured=np.arange(2 * n_genes).reshape(2, n_genes) % 7 > 0,
        position=np.arange(n_cells, dtype=np.int64),
        key=1234567890123456789,
        pad=np.arange(n_cells) == n_cells - 1 if with_pad else None,
        obs=columns,
        matrices={
            key: _csr_rows(2 * values) if key.startswith("layers/") else named_values(n_cells, 5, seed=seed)
            for key in matrices
        },
    )


def _csr_rows(values: NDArray[np.float32]) -> CSRRows:
    rows = csr_matrix(values)
    return CSRRows(
        data=rows.data,
        indices=rows.indices.astype(np.int32),
        indptr=rows.indptr.astype(np.int64),
        n_genes=values.shape[1],
    )
