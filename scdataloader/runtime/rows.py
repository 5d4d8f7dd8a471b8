"""Sparse rows that are combined with those of their neighbours."""

from __future__ import annotations

import numpy as np

from scdataloader.kernels.rows.combine import add_rows
from scdataloader.runtime.memory import BufferPool, row_buffers, without_gaps
from scdataloader.types import CSRRows

_MEMORY = BufferPool()


def with_neighbours(cells: CSRRows, neighbours: CSRRows) -> CSRRows:
    """B cells, each plus the sum of its neighbours, which are ``B * k`` rows."""
    k = len(neighbours) // max(1, len(cells))
    edges = neighbours.indptr[:: max(1, k)] if k else np.zeros(len(cells) + 1, np.int64)
    most = np.diff(cells.indptr) + np.diff(edges)
    out = row_buffers(most, _MEMORY)
    add_rows(
        cells.indptr,
        cells.indices,
        cells.data,
        edges,
        neighbours.indices,
        neighbours.data,
        cells.n_genes,
        out.starts,
        out.indices,
        out.data,
        out.sizes,
    )
    return without_gaps(out, most, cells.n_genes)
