"""Tensors of the neighbours of cells, as scPRINT reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scdataloader.batches.full import csr_tensors, empty
from scdataloader.kernels.rows.combine import take_genes
from scdataloader.kernels.rows.densify import densify
from scdataloader.types import Neighbours


def neighbour_tensors(neighbours: Neighbours, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """``knn_cells``, the counts of the k neighbours of each cell, and ``knn_cells_info``, their distances (B, k).

    Counts are on the genes of the ``batch``: (B, k, L) on its ``genes`` (B, L); (B, k, G) if its ``x`` is dense; else a
    CSR tensor (B * k, G), the neighbours of cell i at rows i * k to i * k + k - 1. A place without a neighbour has
    counts of 0 and a distance of -1.
    """
    x, (n, k) = neighbours.x, neighbours.row.shape
    info = {"knn_cells_info": torch.from_numpy(neighbours.distance)}
    genes, own = batch.get("genes"), batch.get("x")
    if isinstance(genes, Tensor) and genes.ndim == 2 and len(genes) == n:  # noqa: PLR2004 (axes)
        numbers = np.ascontiguousarray(genes.numpy(), np.int32)
        counts = empty((n * k, genes.shape[1]), np.float32).reshape(n, k, -1)
        take_genes(x.indptr, x.indices, x.data, numbers, x.n_genes, counts.numpy())
        return {"knn_cells": counts, **info}
    if isinstance(own, Tensor) and own.layout is torch.strided and own.shape == (n, x.n_genes):
        counts = empty((n * k, x.n_genes), np.float32)
        densify(x.indptr, x.indices, x.data, counts.numpy())
        return {"knn_cells": counts.reshape(n, k, -1), **info}
    (rows,) = csr_tensors(x, max(1, n * k))
    return {"knn_cells": rows, **info}
