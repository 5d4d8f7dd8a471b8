"""Sequences of genes by rank, shared by the families of models that read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scdataloader.batches.full import about_cells, empty
from scdataloader.batches.tokens.masking import Masking
from scdataloader.batches.tokens.tables import ModelTable, PerGene
from scdataloader.batches.tokens.width import PadTo
from scdataloader.kernels.tokens.ranks import MAX_GENES, MAX_TOKEN, attend, rank_rows
from scdataloader.protocols import BatchContext
from scdataloader.runtime.messages import shown
from scdataloader.types import CellBatch


@dataclass(frozen=True, kw_only=True)
class RankedTokens:
    """Tokens of the genes of each cell by falling ``x / divisor``, between special tokens, padded to one width."""

    divisor: NDArray[np.float64]
    """``(K, G)`` positive numbers; infinite for genes that are left out."""
    token: NDArray[np.int64]
    """``(G,)`` token of each gene."""
    max_len: int
    """Maximum of tokens of a cell, special ones included."""
    pad: int
    last: int | None = None
    """Token after the genes."""
    pad_to: PadTo
    masking: Masking | None

    def __post_init__(self) -> None:
        if len(self.token) > MAX_GENES:
            raise ValueError(f"genes can be ranked in a vocabulary of up to {MAX_GENES:,}, not {len(self.token):,}")
        if self.token.max() > MAX_TOKEN:
            raise ValueError(f"tokens of genes must be {MAX_TOKEN:,} or less, not {self.token.max():,}")

    def batches(
        self, cells: CellBatch, batch_size: int, first: NDArray[np.int64], which: NDArray[np.int32]
    ) -> list[dict[str, Tensor]]:
        """Consecutive batches of ``batch_size`` cells.

        Args:
            cells: The cells.
            batch_size: Cells in a batch; the last one may have fewer.
            first: ``(n, F)`` tokens before the genes.
            which: ``(n,)`` which row of ``divisor`` each cell has.
        """
        n, n_first = first.shape
        ids, mask = (empty((n, self.max_len), np.int64) for _ in range(2))
        counts = np.empty(n, np.int64)
        room = self.max_len - n_first - (self.last is not None)
        x, rows = cells.x, ids.numpy()
        genes = x.indices.view(np.uint32)
        rank_rows(x.indptr, genes, x.data, self.divisor, which, self.token, n_first, room, self.pad, rows, counts)
        rows[:, :n_first] = first
        lengths = n_first + counts
        if self.last is not None:
            rows[np.arange(n), lengths] = self.last
            lengths += 1
        # A row without any token attends to its first pad: a softmax over nothing is NaN.
        attend(np.maximum(lengths, 1), mask.numpy())
        tensors = {"input_ids": ids, "attention_mask": mask, "length": torch.from_numpy(lengths)}
        if self.masking is not None:
            tensors["labels"] = empty((n, self.max_len), np.int64)
            self.masking.apply(rows, n_first, counts, cells, tensors["labels"].numpy())
        starts = range(0, max(1, n), batch_size)
        return [self._batch(tensors, cells, slice(start, start + batch_size)) for start in starts]

    def _batch(self, tensors: dict[str, Tensor], cells: CellBatch, some: slice) -> dict[str, Tensor]:
        batch = {key: tensor[some] for key, tensor in tensors.items()}
        if self.pad_to == "longest":
            longest = max([1, *batch["length"].tolist()])
            batch |= {key: tensor[:, :longest] for key, tensor in batch.items() if tensor.ndim > 1}
        about = about_cells(cells, some)
        if self.masking is not None:
            about["cell_labels"] = about.pop("labels")
        return batch | about


def divisors(
    known: NDArray[np.bool_], numbers: PerGene, table: ModelTable, context: BatchContext
) -> NDArray[np.float64]:
    """``(G,)`` number of each gene, infinite for genes without a token or a number.

    Args:
        known: ``(G,)`` True for the genes that have a token.
        numbers: Their numbers.
        table: The table of the numbers.
        context: Its vocabulary has the genes.

    Raises:
        ValueError: a number is not positive, or no gene has both.
    """
    used = known & numbers.known
    wrong = [context.vocabulary.ids[at] for at in np.flatnonzero(used & ~(numbers.values > 0)).tolist()]
    if wrong:
        raise ValueError(f"{table.name}: those of {len(wrong):,} genes are not positive ({shown(wrong)})")
    if not used.any():
        raise ValueError(f"no gene of the vocabulary has both a token and a number of the {table.name}")
    return np.where(used, numbers.values, np.inf)
