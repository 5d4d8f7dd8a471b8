"""A multi-layer perceptron that predicts labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassF1Score, MulticlassStatScores

from scdataloader.models.losses import HierarchicalCrossEntropy, HierarchicalF1
from scdataloader.models.reference import Batch, Reference, check, log_expression

_TRUE_POSITIVES, _SUPPORT = 0, 4


class LabelClassifier(Reference):
    """Predicts labels from all genes of a cell: a multi-layer perceptron with one head for each label column.

    Given ``labels_hierarchy`` it learns from inner labels too (`HierarchicalCrossEntropy`): a "T cell" is any of the
    kinds of T cells. Without, labels above the classes are unknown.
    """

    def __init__(
        self,
        n_genes: int,
        classes: dict[str, int],
        decoders: dict[str, dict[int, str]] | None = None,
        labels_hierarchy: dict[str, dict[int, list[int]]] | None = None,
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
            labels_hierarchy: {label column: {code of an inner label: codes of the classes below it}}, of columns that
                have one; from the data as well.
            width: Units of each hidden layer.
            n_layers: Number of hidden layers.
            dropout: Share of the hidden units that is left out at random in training.
            learning_rate: Step size of AdamW.

        Raises:
            ValueError: there is no label column, or a hierarchy is of none or has other codes than its classes ask for.
        """
        super().__init__()
        if not classes:
            raise ValueError(
                "LabelClassifier needs at least one label column to predict: name some in the data's labels"
            )
        self.hierarchies = dict(labels_hierarchy or {})
        if not self.hierarchies.keys() <= classes.keys():
            raise ValueError(f"labels_hierarchy is of {list(self.hierarchies)}, but the labels are {list(classes)}")
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
        below = [self.hierarchies.get(column, {}) for column in classes]
        sizes = list(zip(classes.values(), below, strict=True))
        self.losses = nn.ModuleList(HierarchicalCrossEntropy(n, inner) for n, inner in sizes)
        self.metrics = nn.ModuleDict({stage: _metrics(self.classes) for stage in ("val", "test")})
        self.f1 = nn.ModuleDict(
            {stage: nn.ModuleList(HierarchicalF1(n, inner) for n, inner in sizes) for stage in ("val", "test")}
        )

    def forward(self, batch: Batch) -> list[Tensor]:
        """(B, classes) logits of each label column, from ``x`` (B, G) and ``depth`` (B,)."""
        check(self, batch, n_genes=self.n_genes)
        hidden = self.trunk(log_expression(batch["x"], batch["depth"]))
        return [head(hidden) for head in self.heads]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Cross entropy over known labels, summed over the label columns."""
        loss = self._loss(self(batch), self._known_labels(batch))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["row"]))
        return loss

    def on_validation_epoch_end(self) -> None:
        """Log macro-F1 and the recall of each class; with a hierarchy also its F1, and the recall of all leaves."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log macro-F1 and the recall of each class; with a hierarchy also its F1, and the recall of all leaves."""
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
        per_column = zip(self.losses, logits, labels.unbind(1), strict=True)
        return torch.stack([loss(scores, codes) for loss, scores, codes in per_column]).sum()

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        labels = self._known_labels(batch)
        if "pad" in batch:  # rows repeated to keep ranks even are not to be counted twice
            labels = labels.masked_fill(batch["pad"][:, None], -1)
        logits = self(batch)
        self.log(f"{stage}/loss", self._loss(logits, labels), batch_size=len(labels), sync_dist=True)
        for (metrics, f1), scores, codes in zip(self._of_stage(stage), logits, labels.unbind(1), strict=True):
            guessed = scores.argmax(dim=1)
            metrics.update(guessed, codes.masked_fill(codes >= scores.shape[1], -1))
            f1.update(guessed, codes)

    def _known_labels(self, batch: Batch) -> Tensor:
        """(B, C) labels; those above the classes, where the model has no hierarchy, are unknown."""
        n_labels = [n + len(self.hierarchies.get(column, ())) for column, n in self.classes.items()]
        labels = batch["labels"]
        return labels.masked_fill(labels >= torch.tensor(n_labels, device=labels.device), -1)

    def _of_stage(self, stage: str) -> list[tuple[MetricCollection, HierarchicalF1]]:
        metrics, f1 = (cast("Iterable[Any]", found[stage]) for found in (self.metrics, self.f1))
        return list(zip(metrics, f1, strict=True))

    def _log_metrics(self, stage: str) -> None:
        found: dict[str, dict[str, Tensor]] = {"macro_f1": {}, "hierarchical_f1": {}, "leaf_recall": {}}
        several = len(self.classes) > 1
        for column, (metrics, f1) in zip(self.classes, self._of_stage(stage), strict=True):
            values = metrics.compute()
            counts = values["counts"].reshape(-1, 5)
            found["macro_f1"][column] = values["macro_f1"]
            if column in self.hierarchies:
                found["hierarchical_f1"][column] = f1.compute()
                right, n_cells = counts[:, [_TRUE_POSITIVES, _SUPPORT]].sum(dim=0)
                found["leaf_recall"][column] = right / n_cells.clamp(min=1)
            self._log_recalls(f"{stage}/recall/{column}" if several else f"{stage}/recall", column, counts)
            metrics.reset()
            f1.reset()
        for name, per_column in found.items():
            if per_column:
                mean = torch.stack(list(per_column.values())).mean()
                self.log(f"{stage}/{name}", mean, prog_bar=name == "macro_f1")
            if several:
                self.log_dict({f"{stage}/{name}/{column}": value for column, value in per_column.items()})

    def _log_recalls(self, prefix: str, column: str, counts: Tensor) -> None:
        names = self.decoders.get(column, {})
        for code, of_class in enumerate(counts):
            if of_class[_SUPPORT]:  # recall has no value for a class that these cells do not have
                self.log(f"{prefix}/{names.get(code, code)}", of_class[_TRUE_POSITIVES] / of_class[_SUPPORT])


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
