"""Pairs of a token and a value for each cell: the steps that several families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scdataloader.batches.full import about_cells, empty
from scdataloader.batches.transforms import row_sums
from scdataloader.kernels.rows.bins import HIGHEST, LOWEST, RANDOM, bin_rows
from scdataloader.kernels.tokens.pairs import keep_known, mask_each, mask_share, place_pairs
from scdataloader.runtime.memory import BufferPool
from scdataloader.types import CellBatch

_MEMORY = BufferPool()
TIES = {"high": HIGHEST, "low": LOWEST, "random": RANDOM}

PadTo: TypeAlias = int | Literal["max_len"] | None
"""Width of the batches of a family with a maximum length: a number of tokens, that length, or None for the longest cell
of each batch, as in the original code. A fixed width suits ``torch.compile``, which compiles anew for each width."""


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


def width_of(pad_to: PadTo, max_len: int) -> int | None:
    """The fixed width of batches; None if it varies.

    Raises:
        ValueError: it is less than the maximum length.
    """
    width = max_len if pad_to == "max_len" else pad_to
    if width is not None and not 0 < max_len <= width:
        raise ValueError(f"pad_to must be at least max_len, and that positive; got pad_to={pad_to}, max_len={max_len}")
    return width


def known_genes(cells: CellBatch, known: NDArray[np.bool_]) -> CellBatch:
    """The cells with the genes that are ``known`` ``(G,)`` and whose value is positive."""
    x = cells.x
    kept = replace(
        x,
        indptr=np.empty_like(x.indptr),
        indices=_MEMORY.take(len(x.indices), np.int32),
        data=_MEMORY.take(len(x.data), np.float32),
    )
    keep_known(x.indptr, x.indices, x.data, known, kept.indptr, kept.indices, kept.data)
    size = int(kept.indptr[-1])
    return replace(cells, x=replace(kept, indices=kept.indices[:size], data=kept.data[:size]))


def with_values(cells: CellBatch, values: NDArray[np.float32]) -> CellBatch:
    """The cells with other values."""
    return replace(cells, x=replace(cells.x, data=values))


def binned(cells: CellBatch, levels: NDArray[np.float32] | NDArray[np.float64], ties: str) -> CellBatch:
    """The cells with quantile bins as values; see `bin_rows`."""
    x, bins = cells.x, _MEMORY.take(len(cells.x.data), np.float32)
    bin_rows(x.indptr, x.data, levels, TIES[ties], np.uint64(cells.key), cells.position, bins)
    return with_values(cells, bins)


def log_shares(cells: CellBatch, target_sum: float) -> CellBatch:
    """The cells with ``log1p(x / total * target_sum)`` as values, by the total of the genes that they have here."""
    scale = target_sum / np.maximum(row_sums(cells.x), np.finfo(np.float32).tiny)
    values = cells.x.data * np.repeat(scale, np.diff(cells.x.indptr))
    return with_values(cells, np.log1p(values).astype(np.float32))


def placed(
    cells: CellBatch,
    token: NDArray[np.int64],
    width: int,
    *,
    most: int,
    order: int,
    pad: tuple[int, float],
    head: Sequence[int | NDArray[np.int64]] = (),
) -> tuple[Tensor, Tensor]:
    """Tokens ``(B, width)`` int64 and values ``(B, width)`` float32 of some cells; see `place_pairs`.

    Args:
        cells: The cells.
        token: ``(G,)`` token of each gene.
        width: Number of tokens.
        most: Maximum number of tokens before padding, ``head`` included.
        order: Order of the genes of a cell.
        pad: Token and value after them.
        head: Tokens before them, one for all cells or ``(B,)``; their value is that of ``pad``.
    """
    x, tokens, values = cells.x, empty((len(cells), width), np.int64), empty((len(cells), width), np.float32)
    place = np.uint64(cells.key), cells.position
    room = len(head), most - len(head)
    place_pairs(x.indptr, x.indices, x.data, token, order, *place, *room, *pad, tokens.numpy(), values.numpy())
    for column, one in enumerate(head):
        tokens.numpy()[:, column] = one
        values[:, column] = pad[1]
    return tokens, values


def longest(cells: CellBatch, n_more: int, max_len: int | None = None) -> int:
    """The number of tokens of the longest cell, with ``n_more`` besides those of its genes, at most ``max_len``."""
    n = int(np.diff(cells.x.indptr).max(initial=0)) + n_more
    return n if max_len is None else min(n, max_len)


def batches(
    cells: CellBatch, batch_size: int, make: Callable[[CellBatch], dict[str, Tensor]], *, together: bool
) -> list[dict[str, Tensor]]:
    """The batches of some cells, with the tensors that ``make`` makes of some cells and those about the cells.

    ``together``: whether a batch does not depend on which cells are in it, so that all are made at once.
    """
    slices = [slice(start, min(start + batch_size, len(cells))) for start in range(0, max(1, len(cells)), batch_size)]
    if not together:
        parts = (cells.slice(some.start, some.stop) for some in slices)
        return [{**make(part), **about_cells(part)} for part in parts]
    made = make(cells)
    return [{**{key: tensor[some] for key, tensor in made.items()}, **about_cells(cells, some)} for some in slices]
