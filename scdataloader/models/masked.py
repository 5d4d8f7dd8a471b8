"""A small transformer that predicts masked expression."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.regression import R2Score

from scdataloader.kernels.draws.random import derive_key
from scdataloader.models.reference import Batch, Reference, check, log_expression, transformer


class MaskedExpression(Reference):
    """Predicts the expression of masked genes from the other genes of the cell: a small transformer.

    A token is the sum of an embedding of the gene and one of its expression. One more token represents the cell and is
    made from its depth. For batches of `SelectedGenes`.
    """

    def __init__(
        self,
        n_genes: int,
        width: int = 64,
        n_layers: int = 2,
        n_heads: int = 4,
        dropout: float = 0.0,
        mask_share: float = 0.3,
        learning_rate: float = 1e-3,
    ) -> None:
        """Build the model.

        Args:
            n_genes: Number of genes of the vocabulary; the command line sets it from the data.
            width: Width of the tokens; a multiple of ``n_heads``.
            n_layers: Number of transformer layers.
            n_heads: Attention heads in each layer.
            dropout: Fraction of the activations that is dropped in training.
            mask_share: Fraction of a cell's selected genes that is masked and predicted, between 0 and 1.
            learning_rate: Step size of AdamW.

        Raises:
            ValueError: ``mask_share`` is not between 0 and 1.
        """
        super().__init__()
        if not 0 < mask_share < 1:
            raise ValueError(f"mask_share is {mask_share}; expected a fraction between 0 and 1, exclusive")
        self.save_hyperparameters()
        self.mask_share = mask_share
        self.learning_rate = learning_rate
        # gene -1, which pads, has the embedding 0 and is not attended to
        self.gene = nn.Embedding(n_genes + 1, width, padding_idx=0)
        self.value = nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, width))
        self.hidden_value = nn.Parameter(torch.zeros(width))
        self.depth = nn.Linear(1, width)
        self.encoder = transformer(width, n_layers, n_heads, dropout)
        self.head = nn.Linear(width, 1)
        self.r2 = R2Score()

    def forward(self, values: Tensor, genes: Tensor, depth: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Predict expression.

        Args:
            values: (B, L) expression of the genes, as `log_expression` gives it.
            genes: (B, L) vocabulary numbers; -1 pads.
            depth: (B,) total counts.
            hidden: (B, L) True where the value is masked.

        Returns:
            (B, L) predicted expression, and (B, width) a representation of each cell.
        """
        shown = torch.where(hidden[..., None], self.hidden_value, self.value(values[..., None]))
        cell = self.depth(torch.log1p(depth)[:, None, None])
        tokens = torch.cat([cell, self.gene(genes.long() + 1) + shown], dim=1)
        empty = functional.pad(genes < 0, (1, 0), value=False)
        out = self.encoder(tokens, src_key_padding_mask=empty)
        return self.head(out[:, 1:]).squeeze(-1), out[:, 0]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean squared error over the masked genes."""
        # not from the global generator, so that a resumed run masks the same genes
        seed = int(derive_key(self.current_epoch, batch_idx, self.global_rank)) >> 1
        loss, _, _ = self._predict_hidden(batch, torch.Generator(self.device).manual_seed(seed))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["row"]))
        return loss

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        """``row`` (B,) row numbers and ``embedding`` (B, width), with no gene masked."""
        check(self, batch, n_genes=None)
        values = log_expression(batch["x"], batch["depth"])
        none = torch.zeros_like(batch["genes"], dtype=torch.bool)
        return {"row": batch["row"], "embedding": self(values, batch["genes"], batch["depth"], none)[1]}

    def _predict_hidden(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, and (n,) predicted and true values of all masked genes."""
        check(self, batch, n_genes=None)
        genes = batch["genes"]
        values = log_expression(batch["x"], batch["depth"])
        draws = torch.rand(genes.shape, generator=generator, device=genes.device)
        hidden = (draws < self.mask_share) & (genes >= 0)
        if "pad" in batch:
            hidden &= ~batch["pad"][:, None]
        predicted = self(values, genes, batch["depth"], hidden)[0][hidden]
        loss = (predicted - values[hidden]).square().sum() / hidden.sum().clamp(min=1)
        return loss, predicted, values[hidden]

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> None:
        generator = torch.Generator(batch["genes"].device).manual_seed(batch_idx)
        loss, predicted, true = self._predict_hidden(batch, generator)
        self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=len(batch["row"]), sync_dist=True)
        self.r2.update(predicted, true)
        self.log(f"{stage}/r2", self.r2, batch_size=len(batch["row"]))
