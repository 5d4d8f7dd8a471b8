"""Cells, vocabularies and test vectors for the tests of token families."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import scdataloader as scd
from scdataloader.kernels.draws.random import GAMMA, mix, philox
from scdataloader.protocols import BatchContext
from scdataloader.types import CellBatch, CSRRows

VECTORS = Path(__file__).parents[3] / "shared" / "tokens"
KEY = 1234567890123456789


def vectors(name):
    """A file of literal inputs and expected arrays of the original code; skips the test without it."""
    path = VECTORS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"needs {path}")
    return json.loads(path.read_text())


def gene_ids(n):
    return [f"ENSG9{number:010d}" for number in range(n)]


def context(n_genes, **of):
    return BatchContext(vocabulary=scd.GeneVocabulary.from_dict({"human": gene_ids(n_genes)}), **of)


def cells_of(counts, *, position=None, measured=None, obs=None):
    """Cells of one source."""
    counts = np.asarray(counts, np.float32)
    rows, n = csr_matrix(counts), len(counts)
    return CellBatch(
        x=CSRRows(
            data=rows.data,
            indices=rows.indices.astype(np.int32),
            indptr=rows.indptr.astype(np.int64),
            n_genes=counts.shape[1],
        ),
        depth=counts.sum(axis=1),
        row=np.arange(n),
        source=np.zeros(n, np.int32),
        labels=np.arange(n)[:, None],
        measured=np.ones((1, counts.shape[1]), bool) if measured is None else measured,
        position=np.arange(n) if position is None else np.asarray(position),
        key=KEY,
        obs=obs or {},
    )


def bits_of(position, purpose, n, key=KEY):
    """``(n,)`` random words of one row for a purpose, as the kernels draw them."""
    seed, _ = philox(np.uint64(key), np.uint64(position), np.uint64(purpose << 32))
    with np.errstate(over="ignore"):
        return np.array([int(mix(np.uint64(seed) + np.uint64(j) * GAMMA)) for j in range(n)], object)


def order_of(position, purpose, n, taken, key=KEY):
    """The first steps of a shuffle of ``[0, n)``."""
    order = list(range(n))
    for k, bits in enumerate(bits_of(position, purpose, taken, key)):
        other = k + (int(bits) * (n - k) >> 64)
        order[k], order[other] = order[other], order[k]
    return order[:taken]
