"""Sources made in memory, whose values name their own row and column: a wrong row or gene shows itself."""

import hashlib

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scdataloader.types import CSRMatrix, CSRRows


def named_values(n_obs, n_genes, *, density=0.4, seed=0):
    """A dense matrix of counts: 0, or 1000 · row + column + 1."""
    value = 1000.0 * np.arange(n_obs)[:, None] + np.arange(n_genes) + 1
    return (value * (np.random.default_rng(seed).random((n_obs, n_genes)) < density)).astype(np.float32)


class MemorySource:
    """What any user's own source would look like; ``mapped`` offers the whole matrix as well."""

    def __init__(self, name, values, genes, obs=None, *, mapped=False, organism=None):
        self.name = name
        self.dense = values
        self.n_obs = len(values)
        self.var = pd.DataFrame(index=pd.Index(genes))
        self._obs = pd.DataFrame(obs or {}, index=pd.RangeIndex(self.n_obs))
        self.obs_columns = list(self._obs.columns)
        self.organism = organism
        self.fingerprint = hashlib.sha256(name.encode() + values.tobytes()).hexdigest()
        self._rows = csr_matrix(values)
        self.matrix = None
        if mapped:
            self.matrix = CSRMatrix(
                indptr=self._rows.indptr.astype(np.int64),
                indices=self._rows.indices,
                data=self._rows.data,
                counts_only=True,
            )

    def obs(self, columns):
        missing = [column for column in columns if column not in self.obs_columns]
        if missing:
            raise KeyError(f"{self.name} has no obs column {missing[0]!r}")
        return self._obs[list(columns)]

    def read(self, rows):
        part = self._rows[np.asarray(rows)]
        return CSRRows(
            data=part.data.astype(np.float32),
            indices=part.indices.astype(np.int32),
            indptr=part.indptr.astype(np.int64),
            n_genes=self.dense.shape[1],
        )
