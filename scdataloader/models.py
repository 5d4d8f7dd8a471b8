"""Two small reference models, so that training does something true out of the box.

Both take raw counts and normalise by themselves: ``log1p(x * 10,000 / depth)``. The command line gives them the data's
``n_genes``, ``classes`` and ``decoders``; a checkpoint keeps these, so `load_from_checkpoint` needs no data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassF1Score, MulticlassStatScores
from torchmetrics.regression import R2Score

from scdataloader.kernels.random import derive_key

Batch = Mapping[str, Tensor]
TOTAL = 1e4
_TRUE_POSITIVES, _SUPPORT = 0, 4


def log_expression(x: Tensor, depth: Tensor) -> Tensor:
    """``log1p`` of counts scaled to 10,000 per cell; a cell without counts stays zero.

    Args:
        x: (B, L) raw counts, all genes of a cell or some.
        depth: (B,) total count of each cell.
    """
    return torch.log1p(x * (TOTAL / depth.clamp(min=1))[:, None])


def _check(model: LightningModule, batch: Batch, *, n_genes: int | None) -> None:
    """Say in a user's words what would fail further down as a shape or a key.

    Raises:
        ValueError: the batch is not made for the model.
    """
    name = type(model).__name__
    if n_genes is None and "genes" not in batch:
        raise ValueError(
            f"{name} needs batches of selected genes: set the data's collate to scdataloader.SelectedGenes"
        )
    if n_genes is not None and batch["x"].shape[1] != n_genes:
        raise ValueError(
            f"{name} was made for all {n_genes:,} genes of a vocabulary, but its batches have {batch['x'].shape[1]:,}: "
            "set the data's collate to scdataloader.Sparse or scdataloader.Dense, with the vocabulary of the training"
        )


class _Reference(LightningModule):
    """What both models have in common: how they are optimised, and that testing is like validating."""

    learning_rate: float

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over all parameters."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure how well validation cells are predicted."""
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure how well test cells are predicted."""
        self._evaluate("test", batch, batch_idx)

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> None:
        raise NotImplementedError


class LabelClassifier(_Reference):
    """Predicts labels from all genes of a cell: a multi-layer perceptron with one head for each label column."""

    def __init__(
        self,
        n_genes: int,
        classes: dict[str, int],
        decoders: dict[str, dict[int, str]] | None = None,
        width: int = 128,
        n_layers: int = 2,
        dropout: float = 0.1,
        learning_rate: float = 1e-3,
    ) -> None:
        """Describe the model.

        Args:
            n_genes: Number of genes of the vocabulary; a command line takes it from the data.
            classes: {label column: number of classes}, in the order of a batch's ``labels``; from the data as well.
            decoders: {label column: {code: label}}, for the names in the logs; from the data as well.
            width: Units of each hidden layer.
            n_layers: Number of hidden layers.
            dropout: Share of the hidden units that is left out at random in training.
            learning_rate: Step size of AdamW.

        Raises:
            ValueError: there is no label column.
        """
        super().__init__()
        if not classes:
            raise ValueError(
                "LabelClassifier needs at least one label column to predict: name some in the data's labels"
            )
        self.save_hyperparameters()
        self.n_genes = n_genes
        self.classes = dict(classes)
        self.decoders = decoders or {}
        self.learning_rate = learning_rate
        layers: list[nn.Module] = []
        for size in [n_genes] + [width] * (n_layers - 1):
            layers += [nn.Linear(size, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout)]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in classes.values())
        self.metrics = nn.ModuleDict({stage: _metrics(self.classes) for stage in ("val", "test")})

    def forward(self, batch: Batch) -> list[Tensor]:
        """(B, classes) logits of each label column, from ``x`` (B, G) and ``depth`` (B,)."""
        _check(self, batch, n_genes=self.n_genes)
        hidden = self.trunk(log_expression(batch["x"], batch["depth"]))
        return [head(hidden) for head in self.heads]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Cross entropy over known labels, summed over the label columns."""
        loss = self._loss(self(batch), self._class_labels(batch))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["row"]))
        return loss

    def on_validation_epoch_end(self) -> None:
        """Log macro-F1 and the recall of each class."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log macro-F1 and the recall of each class."""
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:  # noqa: ARG002
        """``row`` (B,) row numbers, ``codes`` (B, C) predicted codes, ``probabilities`` {column: (B, classes)}."""
        probabilities = [logits.softmax(dim=1) for logits in self(batch)]
        return {
            "row": batch["row"],
            "codes": torch.stack([p.argmax(dim=1) for p in probabilities], dim=1),
            "probabilities": dict(zip(self.classes, probabilities, strict=True)),
        }

    def _loss(self, logits: list[Tensor], labels: Tensor) -> Tensor:
        loss = torch.zeros((), device=labels.device)
        for column, scores in enumerate(logits):
            known = (
                (labels[:, column] >= 0).sum().clamp(min=1)
            )  # a batch may know none, and a mean over none is no number
            loss = loss + functional.cross_entropy(scores, labels[:, column], ignore_index=-1, reduction="sum") / known
        return loss

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        labels = self._class_labels(batch)
        if "pad" in batch:  # rows repeated to keep ranks even are not to be counted twice
            labels = labels.masked_fill(batch["pad"][:, None], -1)
        logits = self(batch)
        self.log(f"{stage}/loss", self._loss(logits, labels), batch_size=len(labels), sync_dist=True)
        for column, (metric, scores) in enumerate(zip(self._of_stage(stage), logits, strict=True)):
            metric.update(scores.argmax(dim=1), labels[:, column])

    def _class_labels(self, batch: Batch) -> Tensor:
        """(B, C) labels; terms above the classes of a hierarchy count as unknown."""
        n_classes = torch.tensor(list(self.classes.values()), device=batch["labels"].device)
        return batch["labels"].masked_fill(batch["labels"] >= n_classes, -1)

    def _of_stage(self, stage: str) -> list[MetricCollection]:
        return list(cast("Iterable[MetricCollection]", self.metrics[stage]))

    def _log_metrics(self, stage: str) -> None:
        macro_f1 = {}
        several = len(self.classes) > 1
        for column, metric in zip(self.classes, self._of_stage(stage), strict=True):
            values = metric.compute()
            macro_f1[column] = values["macro_f1"]
            names = self.decoders.get(column, {})
            prefix = f"{stage}/recall/{column}" if several else f"{stage}/recall"
            for code, counts in enumerate(values["counts"].reshape(-1, 5)):
                if counts[_SUPPORT]:  # recall has no value for a class that these cells do not have
                    recall = counts[_TRUE_POSITIVES] / counts[_SUPPORT]
                    self.log(f"{prefix}/{names.get(code, code)}", recall)
            metric.reset()
        self.log(f"{stage}/macro_f1", torch.stack(list(macro_f1.values())).mean(), prog_bar=True)
        if several:
            self.log_dict({f"{stage}/macro_f1/{column}": value for column, value in macro_f1.items()})


class MaskedExpression(_Reference):
    """Predicts the expression of hidden genes from the others of the same cell: a small transformer.

    A gene of a cell is one token: an embedding of which gene it is plus one of how much it is expressed. A further
    token stands for the cell and knows its depth. For batches of `SelectedGenes`.
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
        """Describe the model.

        Args:
            n_genes: Number of genes of the vocabulary; a command line takes it from the data.
            width: Width of the tokens; a multiple of ``n_heads``.
            n_layers: Number of transformer layers.
            n_heads: Attention heads in each layer.
            dropout: Share of the activations that is left out at random in training.
            mask_share: Share of a cell's selected genes that is hidden and to be predicted, between 0 and 1.
            learning_rate: Step size of AdamW.

        Raises:
            ValueError: ``mask_share`` is not between 0 and 1.
        """
        super().__init__()
        if not 0 < mask_share < 1:
            raise ValueError(f"mask_share must be between 0 and 1, not {mask_share}: some genes hidden and some shown")
        self.save_hyperparameters()
        self.mask_share = mask_share
        self.learning_rate = learning_rate
        # gene -1, a place left empty, has the embedding 0 and is never attended to
        self.gene = nn.Embedding(n_genes + 1, width, padding_idx=0)
        self.value = nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, width))
        self.hidden_value = nn.Parameter(torch.zeros(width))
        self.depth = nn.Linear(1, width)
        layer = nn.TransformerEncoderLayer(
            width, n_heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, n_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 1)
        self.r2 = nn.ModuleDict({stage: R2Score() for stage in ("val", "test")})

    def forward(self, values: Tensor, genes: Tensor, depth: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Predict expression.

        Args:
            values: (B, L) expression of the genes, as `log_expression` gives it.
            genes: (B, L) vocabulary numbers; -1 pads.
            depth: (B,) total counts.
            hidden: (B, L) True where the value is not to be seen.

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
        """Mean squared error over the hidden genes."""
        # Not from the ambient generator: a resumed run hides the same genes.
        seed = int(derive_key(self.current_epoch, batch_idx, self.global_rank)) >> 1
        loss, _, _ = self._predict_hidden(batch, torch.Generator(self.device).manual_seed(seed))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["row"]))
        return loss

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        """``row`` (B,) row numbers and ``embedding`` (B, width), with no gene hidden."""
        _check(self, batch, n_genes=None)
        values = log_expression(batch["x"], batch["depth"])
        none = torch.zeros_like(batch["genes"], dtype=torch.bool)
        return {"row": batch["row"], "embedding": self(values, batch["genes"], batch["depth"], none)[1]}

    def _predict_hidden(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, and (n,) predicted and true values of all hidden genes."""
        _check(self, batch, n_genes=None)
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
        r2 = cast("R2Score", self.r2[stage])
        r2.update(predicted, true)
        self.log(f"{stage}/r2", r2, batch_size=len(batch["row"]))


def _metrics(classes: Mapping[str, int]) -> nn.ModuleList:
    """For each label column macro-F1 over the classes that occur, and the counts of each class."""
    return nn.ModuleList(
        MetricCollection(
            {
                "macro_f1": MulticlassF1Score(max(n, 2), average="macro", ignore_index=-1),
                "counts": MulticlassStatScores(max(n, 2), average="none", ignore_index=-1),
            }
        )
        for n in classes.values()
    )
