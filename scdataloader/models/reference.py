"""Parts that the reference models share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
TOTAL = 1e4


def log_expression(x: Tensor, depth: Tensor) -> Tensor:
    """``log1p`` of counts scaled to 10,000 per cell; a cell without counts stays zero.

    Args:
        x: (B, L) raw counts, all genes of a cell or some.
        depth: (B,) total count of each cell.
    """
    return torch.log1p(x * (TOTAL / depth.clamp(min=1))[:, None])


def transformer(width: int, n_layers: int, n_heads: int, dropout: float) -> nn.TransformerEncoder:
    """Layers of attention, each normalised before it, and of feed-forward networks four times as wide."""
    layer = nn.TransformerEncoderLayer(
        width, n_heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, n_layers, nn.LayerNorm(width), enable_nested_tensor=False)


def check_tokens(model: LightningModule, batch: Batch, *keys: str) -> None:
    """Refuse a batch without the keys of a family of tokens.

    Raises:
        ValueError: a key is missing.
    """
    missing = [key for key in keys if key not in batch]
    if missing:
        raise ValueError(
            f"{type(model).__name__} needs batches with {missing[0]!r}; set the data's collate to the class of its "
            "family in scdataloader.tokens, with masking"
        )


def check(model: LightningModule, batch: Batch, *, n_genes: int | None) -> None:
    """Refuse a batch that would otherwise fail with an error about a shape or a key.

    Raises:
        ValueError: the batch does not fit the model.
    """
    name = type(model).__name__
    if n_genes is None and "genes" not in batch:
        raise ValueError(
            f"{name} needs batches of selected genes; set the data's collate to scdataloader.SelectedGenes"
        )
    if n_genes is not None and batch["x"].shape[1] != n_genes:
        raise ValueError(
            f"{name} expects all {n_genes:,} genes of a vocabulary, but the batches have {batch['x'].shape[1]:,}; "
            "set the data's collate to scdataloader.Sparse or scdataloader.Dense, and use the vocabulary of training"
        )


class Reference(LightningModule):
    """Base of the models: AdamW, and tests that equal validation."""

    learning_rate: float

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over all parameters."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update and log the metrics of validation cells."""
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update and log the metrics of test cells."""
        self._evaluate("test", batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the epoch."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the epoch."""
        self._log_epoch("test")

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> None:
        raise NotImplementedError

    def _log_epoch(self, stage: str) -> None:
        pass
