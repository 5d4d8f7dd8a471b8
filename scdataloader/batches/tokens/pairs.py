"""Pairs of a token and a value for each cell: the steps that several families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scdataloader.batches.full import about_cells, empty
from scdataloader.batches.measured import measured_genes
from scdataloader.batches.tokens.tables import PerGene
from scdataloader.batches.transforms import row_sums
from scdataloader.kernels.rows.bins import HIGHEST, LOWEST, RANDOM, bin_rows
from scdataloader.kernels.rows.select import fill_unexpressed
from scdataloader.kernels.tokens.pairs import keep_known, mask_each, mask_share, place_pairs
from scdataloader.runtime.memory import BufferPool
from scdataloader.types import CellBatch

_MEMORY = BufferPool()
_TIES = {"high": HIGHEST, "low": LOWEST, "random": RANDOM}


@dataclass(frozen=True)
class MaskedValues:
    """Values to be hidden from the model, which learns to predict them.

    Args:
        rate: Share of a cell's values.
        value: What the model gets in their place.
        exact: Whether ``int(rate * n)`` of the n values of each cell are masked, instead of each with probability
            ``rate``.
    """

    rate: float = 0.15
    value: float = -1.0
    exact: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"the rate of masked values must be from 0 to 1, not {self.rate}")

    def __call__(self, cells: CellBatch, values: Tensor, *, first: int, pad_value: float) -> Tensor:
        """Values ``(B, L)`` with some of them masked, none before column ``first`` and none that is ``pad_value``."""
        masked = empty((len(values), values.shape[1]), np.float32)
        mask = mask_share if self.exact else mask_each
        place = np.uint64(cells.key), cells.position
        mask(values.numpy(), first, pad_value, self.rate, self.value, *place, masked.numpy())
        return masked


def tokens_or_none(genes: PerGene) -> NDArray[np.int32]:
    """``(G,)`` token of each gene; -1 for genes without one."""
    return np.where(genes.known, genes.values, -1).astype(np.int32)


def tokenised(cells: CellBatch, token: NDArray[np.int32]) -> CellBatch:
    """The cells with tokens ``(G,)`` as numbers of genes, without genes of token -1 and values that are not positive.

    Numbers then ascend within a cell only if the tokens of genes do.
    """
    x = cells.x
    kept = replace(
        x,
        indptr=np.empty_like(x.indptr),
        indices=_MEMORY.take(len(x.indices), np.int32),
        data=_MEMORY.take(len(x.data), np.float32),
    )
    keep_known(x.indptr, x.indices, x.data, token, kept.indptr, kept.indices, kept.data)
    size = int(kept.indptr[-1])
    return replace(cells, x=replace(kept, indices=kept.indices[:size], data=kept.data[:size]))


def entries(cells: CellBatch, kept: NDArray[np.bool_]) -> CellBatch:
    """The cells with some of their entries only."""
    x, before = cells.x, np.zeros(len(kept) + 1, np.int64)
    np.cumsum(kept, out=before[1:])
    return replace(cells, x=replace(x, indptr=before[x.indptr], indices=x.indices[kept], data=x.data[kept]))


def with_values(cells: CellBatch, values: NDArray[np.float32]) -> CellBatch:
    """The cells with other values."""
    return replace(cells, x=replace(cells.x, data=values))


def binned(cells: CellBatch, levels: NDArray[np.float32] | NDArray[np.float64], ties: str) -> CellBatch:
    """The cells with quantile bins as values; see `bin_rows`."""
    x, bins = cells.x, _MEMORY.take(len(cells.x.data), np.float32)
    bin_rows(x.indptr, x.data, levels, _TIES[ties], np.uint64(cells.key), cells.position, bins)
    return with_values(cells, bins)


def log_shares(cells: CellBatch, target_sum: float) -> CellBatch:
    """The cells with ``log1p(x / total * target_sum)`` as values, by the total of the genes that they have here."""
    scale = target_sum / np.maximum(row_sums(cells.x), np.finfo(np.float32).tiny)
    values = cells.x.data * np.repeat(scale, np.diff(cells.x.indptr))
    return with_values(cells, np.log1p(values).astype(np.float32))


def placed(
    cells: CellBatch,
    width: int,
    *,
    order: int,
    pad: tuple[int, float],
    head: Sequence[int | NDArray[np.int64]] = (),
) -> tuple[Tensor, Tensor]:
    """Tokens ``(B, width)`` int64 and values ``(B, width)`` float32 of some cells; see `place_pairs`.

    Args:
        cells: The cells, by `tokenised`.
        width: Number of tokens; of a cell with more genes some are left out.
        order: Order of the genes of a cell.
        pad: Token and value after them.
        head: Tokens before them, one for all cells or ``(B,)``; their value is that of ``pad``.
    """
    x, tokens, values = cells.x, empty((len(cells), width), np.int64), empty((len(cells), width), np.float32)
    place = np.uint64(cells.key), cells.position
    place_pairs(x.indptr, x.indices, x.data, order, *place, len(head), *pad, tokens.numpy(), values.numpy())
    for column, one in enumerate(head):
        tokens.numpy()[:, column] = one
        values[:, column] = pad[1]
    return tokens, values


def unexpressed(cells: CellBatch, known: NDArray[np.bool_], places: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Random genes that a cell's source measured and the cell does not express, each at most once.

    Args:
        cells: The cells.
        known: ``(G,)`` genes that can be taken; others do not count.
        places: ``(B, L)`` where genes are wanted, at the end of each row.

    Returns:
        ``(B, L)`` vocabulary numbers; -1 for places that stay empty, and 0 for those where none is wanted.
    """
    numbers = np.where(known, np.arange(len(known), dtype=np.int32), np.int32(-1))
    x, genes = tokenised(cells, numbers).x, np.where(places, np.int32(-1), np.int32(0))
    place = np.uint64(cells.key), cells.position
    fill_unexpressed(
        x.indptr, x.indices, *measured_genes(cells.measured, known), cells.source, x.n_genes, *place, genes
    )
    return genes


def lengths(cells: CellBatch, n_more: int, max_len: int) -> NDArray[np.int64]:
    """``(B,)`` number of tokens of each cell, with ``n_more`` besides those of its genes, at most ``max_len``."""
    n: NDArray[np.int64] = np.diff(cells.x.indptr)
    return np.minimum(n + n_more, max_len)


def batches(
    cells: CellBatch, batch_size: int, tensors: Mapping[str, Tensor], sizes: NDArray[np.int64] | None = None
) -> list[dict[str, Tensor]]:
    """The batches of some cells.

    Args:
        cells: The cells.
        batch_size: Cells in a batch; the last may be shorter.
        tensors: Tensors whose rows are cells.
        sizes: ``(B,)`` columns that each cell needs, if those that no cell of a batch needs are cut off.
    """
    made = []
    for start in range(0, max(1, len(cells)), batch_size):
        some = slice(start, start + batch_size)
        width = None if sizes is None else int(sizes[some].max(initial=1))
        parts = {key: tensor[some] if tensor.ndim == 1 else tensor[some, :width] for key, tensor in tensors.items()}
        made.append({**parts, **about_cells(cells, some)})
    return made
