"""Batches with every vocabulary gene: dense tensors, or sparse CSR tensors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from scdataloader.batches.base import MakesMany
from scdataloader.kernels.machine.memory import LINE
from scdataloader.kernels.rows.densify import densify
from scdataloader.runtime.memory import BufferPool
from scdataloader.types import CellBatch, CSRRows

_MEMORY = BufferPool()
_MOST_VALUES = np.iinfo(np.int32).max

# torch warns once per process that CSR tensors are in beta: trigger and ignore that here, not during training
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.empty((0, 0)).to_sparse_csr()


@dataclass(frozen=True)
class Dense(MakesMany):
    """Every vocabulary gene of every cell: ``x`` (B, G) float32."""

    def many(self, cells: CellBatch, batch_size: int) -> list[dict[str, Tensor]]:
        """Consecutive batches of some cells; making them together saves a tenth of the time."""
        n, n_genes, rows = len(cells), cells.x.n_genes, cells.x
        whole_lines = -(-min(batch_size, n) * n_genes // LINE) * LINE  # so that each batch begins at a cache line
        starts = range(0, max(1, n), batch_size)
        memory, made = _MEMORY.take(len(starts) * whole_lines, np.float32), []
        for number, start in enumerate(starts):
            some = slice(start, min(start + batch_size, n))
            x = memory[number * whole_lines :][: (some.stop - start) * n_genes].reshape(some.stop - start, n_genes)
            densify(rows.indptr[start : some.stop + 1], rows.indices, rows.data, x)
            made.append({"x": torch.from_numpy(x), **about_cells(cells, some)})
        return made


@dataclass(frozen=True)
class Sparse(MakesMany):
    """Sparse rows: ``x`` a CSR tensor (B, G) float32, made without copying.

    A sixteenth of the bytes of `Dense` for a typical cell; the `DataModule` makes it dense on the device.
    """

    densify: ClassVar[tuple[str, ...]] = ("x",)

    def many(self, cells: CellBatch, batch_size: int) -> list[dict[str, Tensor]]:
        """Consecutive batches of some cells; making them together takes half of the time."""
        tensors = csr_tensors(cells.x, batch_size)
        return [
            {"x": x, **about_cells(cells, slice(number * batch_size, (number + 1) * batch_size))}
            for number, x in enumerate(tensors)
        ]


def csr_tensors(rows: CSRRows, batch_size: int) -> list[Tensor]:
    """CSR tensors (B, G) float32 of each ``batch_size`` rows, which share their memory; at least one.

    Raises:
        ValueError: a batch has more values than a CSR tensor can number.
    """
    n, n_genes, made = len(rows), rows.n_genes, []
    edges = [*range(0, max(1, n), batch_size), n]
    offsets = rows.indptr[edges].tolist()
    # torch requires one dtype for both kinds of indices; views of one tensor would be linked by autograd
    for (start, stop), (first, last) in zip(pairwise(edges), pairwise(offsets), strict=True):
        if last - first > _MOST_VALUES:
            raise ValueError(
                f"a batch of {batch_size:,} cells has {last - first:,} values, more than a CSR tensor can number "
                f"({_MOST_VALUES:,}); use smaller batches"
            )
        made.append(
            torch.sparse_csr_tensor(
                torch.from_numpy((rows.indptr[start : stop + 1] - first).astype(np.int32)),
                torch.from_numpy(rows.indices[first:last]),
                torch.from_numpy(rows.data[first:last]),
                size=(stop - start, n_genes),
                check_invariants=False,
            )
        )
    return made


def empty(shape: tuple[int, int], dtype: DTypeLike) -> Tensor:
    """An uninitialised tensor, in memory that earlier batches no longer use."""
    return torch.from_numpy(_MEMORY.take(shape[0] * shape[1], dtype).reshape(shape))


def about_cells(cells: CellBatch, some: slice = slice(None)) -> dict[str, Tensor]:
    """Tensors of every batch besides its genes: labels, depth, row, source and, on several ranks, pad."""
    tensors = {
        "labels": torch.from_numpy(cells.labels[some]),
        "depth": torch.from_numpy(cells.depth[some]),
        "row": torch.from_numpy(cells.row[some]),
        "source": torch.from_numpy(cells.source[some]),
    }
    if cells.pad is not None:
        tensors["pad"] = torch.from_numpy(cells.pad[some])
    return tensors
