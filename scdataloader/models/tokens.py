"""Small transformers that learn to restore masked sequences: of tokens, as Geneformer, and of values, as scGPT."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from scdataloader.models.reference import Batch, Reference, check_tokens, transformer

_UNMASKED = -100
"""Label of a place whose token is not to be predicted."""


class _Restores(Reference):
    """A model with a loss over the masked places of a batch."""

    METRIC: str

    @abstractmethod
    def _restored(self, batch: Batch) -> tuple[Tensor, Tensor, int]:
        """The mean loss over the masked places, the metric, and the number of these places."""

    @abstractmethod
    def _embedding(self, batch: Batch) -> Tensor:
        """``(B, width)`` a representation of each cell, with nothing masked."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The mean loss over the masked places."""
        loss, _, _ = self._restored(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["row"]))
        return loss

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        """``row`` (B,) row numbers and ``embedding`` (B, width), with nothing masked."""
        return {"row": batch["row"], "embedding": self._embedding(batch)}

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        loss, metric, n_masked = self._restored(batch)
        self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=max(n_masked, 1), sync_dist=True)
        self.log(f"{stage}/{self.METRIC}", metric, batch_size=max(n_masked, 1), sync_dist=True)


def _counted(masked: Tensor, batch: Batch) -> Tensor:
    """``(B, L)`` masked places of cells that are not repeated to fill a batch."""
    return masked & ~batch["pad"][:, None] if "pad" in batch else masked


class MaskedTokenModel(_Restores):
    """Predicts masked tokens from the others of the cell, as BERT and Geneformer do: a small transformer.

    For batches with ``input_ids``, ``attention_mask`` and ``labels`` (-100 at places that are not masked), as
    `tokens.Geneformer` with ``masking`` makes them. The input is the sum of an embedding of the token and one of its
    rank, by sines (Vaswani et al., NeurIPS 2017, section 3.5); scores are products with the embeddings of the tokens.
    """

    METRIC = "accuracy"

    def __init__(
        self,
        n_tokens: int,
        width: int = 64,
        n_layers: int = 2,
        n_heads: int = 4,
        dropout: float = 0.0,
        learning_rate: float = 1e-3,
    ) -> None:
        """Build the model.

        Args:
            n_tokens: Number of tokens of the dictionary; the command line sets it from the data.
            width: Width of the embeddings; a multiple of ``n_heads``, and even.
            n_layers: Number of transformer layers.
            n_heads: Attention heads in each layer.
            dropout: Fraction of the activations that is dropped in training.
            learning_rate: Step size of AdamW.

        Raises:
            ValueError: ``n_tokens`` is less than 1.
        """
        super().__init__()
        _check_dictionary(self, n_tokens)
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.token = nn.Embedding(n_tokens, width)
        nn.init.normal_(self.token.weight, std=width**-0.5)
        self.encoder = transformer(width, n_layers, n_heads, dropout)
        self.bias = nn.Parameter(torch.zeros(n_tokens))

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L, width) representations of the places of (B, L) tokens; attention is to places with a mask of 1."""
        width = self.token.embedding_dim
        tokens = self.token(ids) * math.sqrt(width) + _ranks(ids.shape[1], width, ids.device)
        out: Tensor = self.encoder(tokens, src_key_padding_mask=attention_mask == 0)
        return out

    def _restored(self, batch: Batch) -> tuple[Tensor, Tensor, int]:
        check_tokens(self, batch, "input_ids", "attention_mask", "labels")
        masked = _counted(batch["labels"] != _UNMASKED, batch)
        true, hidden = batch["labels"][masked], self(batch["input_ids"], batch["attention_mask"])[masked]
        scores = functional.linear(hidden, self.token.weight, self.bias)
        n = max(len(true), 1)
        loss = functional.cross_entropy(scores, true, reduction="sum") / n
        return loss, (scores.argmax(dim=1) == true).sum() / n, len(true)

    def _embedding(self, batch: Batch) -> Tensor:
        """The mean over the places of a cell."""
        check_tokens(self, batch, "input_ids", "attention_mask")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if "labels" in batch:
            ids = torch.where(batch["labels"] == _UNMASKED, ids, batch["labels"])
        hidden: Tensor = self(ids, mask)
        return (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


class MaskedValueModel(_Restores):
    """Predicts masked values of genes from the others of the cell, as scGPT does: a small transformer.

    For batches with ``gene``, ``expr`` and ``masked_expr``, as `tokens.ScGPT` with ``masking`` makes them. The input is
    the sum of an embedding of the token and one of its value; the first place, ``<cls>``, represents the cell. The loss
    is the mean squared error of ``value / (n_bins - 1)`` over the values that differ in ``masked_expr``.
    """

    METRIC = "error"

    def __init__(
        self,
        n_tokens: int,
        pad_token: int | None,
        n_bins: int = 51,
        width: int = 64,
        n_layers: int = 2,
        n_heads: int = 4,
        dropout: float = 0.0,
        learning_rate: float = 1e-3,
    ) -> None:
        """Build the model.

        Args:
            n_tokens: Number of tokens of the vocabulary; the command line sets it from the data.
            pad_token: Token of places without a gene; the command line sets it from the data.
            n_bins: Number of bins of the values, that of zero included, as in the data's collate.
            width: Width of the embeddings; a multiple of ``n_heads``.
            n_layers: Number of transformer layers.
            n_heads: Attention heads in each layer.
            dropout: Fraction of the activations that is dropped in training.
            learning_rate: Step size of AdamW.

        Raises:
            ValueError: ``n_tokens`` is less than 1, or ``pad_token`` is None.
        """
        super().__init__()
        _check_dictionary(self, n_tokens)
        if pad_token is None:
            raise ValueError(
                'MaskedValueModel needs the token of padding, but the vocabulary of the data has no "<pad>"'
            )
        self.save_hyperparameters()
        self.pad_token = pad_token
        self.largest = n_bins - 1
        self.learning_rate = learning_rate
        self.token = nn.Embedding(n_tokens, width)
        self.value = nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, width))
        self.hidden_value = nn.Parameter(torch.zeros(width))
        self.encoder = transformer(width, n_layers, n_heads, dropout)
        self.head = nn.Linear(width, 1)

    def forward(self, tokens: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
        """(B, L, width) representations of the places.

        Args:
            tokens: (B, L) tokens of genes, the first ``<cls>``.
            values: (B, L) their values, from 0 to 1.
            hidden: (B, L) True where the value is masked.
        """
        shown = torch.where(hidden[..., None], self.hidden_value, self.value(values[..., None]))
        out: Tensor = self.encoder(self.token(tokens) + shown, src_key_padding_mask=tokens == self.pad_token)
        return out

    def _restored(self, batch: Batch) -> tuple[Tensor, Tensor, int]:
        check_tokens(self, batch, "gene", "expr", "masked_expr")
        values = batch["expr"] / self.largest
        hidden = batch["masked_expr"] != batch["expr"]
        masked = _counted(hidden, batch)
        off = self.head(self(batch["gene"], values, hidden)[masked]).squeeze(-1) - values[masked]
        n = max(len(off), 1)
        return off.square().sum() / n, off.abs().sum() * self.largest / n, len(off)

    def _embedding(self, batch: Batch) -> Tensor:
        """That of ``<cls>``."""
        check_tokens(self, batch, "gene", "expr")
        values = batch["expr"] / self.largest
        hidden: Tensor = self(batch["gene"], values, torch.zeros_like(values, dtype=torch.bool))
        return hidden[:, 0]


def _check_dictionary(model: Reference, n_tokens: int) -> None:
    if not n_tokens:  # the command line gives None if the data has none
        raise ValueError(
            f"{type(model).__name__} has no tokens; set the data's collate to the class of its family in "
            "scdataloader.tokens"
        )


def _ranks(length: int, width: int, device: torch.device) -> Tensor:
    """``(length, width)`` sines and cosines of each place, in wavelengths from 2π to 10,000 · 2π."""
    steps = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000) / width))
    angles = torch.arange(length, device=device)[:, None] * steps
    return torch.cat([angles.sin(), angles.cos()], dim=1)
