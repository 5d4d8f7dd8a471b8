"""A multi-layer perceptron that predicts labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassStatScores

from scdataloader.models.losses import HierarchicalCrossEntropy, HierarchicalF1
from scdataloader.models.reference import Batch, Reference, check, log_expression


class LabelClassifier(Reference):
    """Predicts labels from all genes of a cell: a multi-layer perceptron with one head per label column.

    Given ``labels_hierarchy`` it also learns from inner labels (`HierarchicalCrossEntropy`): a "T cell" is any of the
    classes of T cells. Without it, inner labels are unknown.
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
        """Build the model.

        Args:
            n_genes: Number of genes of the vocabulary; the command line sets it from the data.
            classes: {label column: number of classes}, in the order of a batch's ``labels``; set from the data.
            decoders: {label column: {code: label}}, for names in the logs; set from the data.
            labels_hierarchy: {label column: {code of an inner label: codes of the classes below it}}, of columns with a
                hierarchy; set from the data.
            width: Units of each hidden layer.
            n_layers: Number of hidden layers.
            dropout: Fraction of the hidden units that is dropped in training.
            learning_rate: Step size of AdamW.

        Raises:
            ValueError: there is no label column, or a hierarchy does not fit the columns or their classes.
        """
        super().__init__()
        if not classes:
            raise ValueError("LabelClassifier has no label column to predict; name at least one in the data's labels")
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
        inner = [(n, self.hierarchies.get(column, {})) for column, n in classes.items()]
        self.losses = nn.ModuleList(HierarchicalCrossEntropy(n, hierarchy) for n, hierarchy in inner)
        self.f1 = nn.ModuleList(HierarchicalF1(n, hierarchy) for n, hierarchy in inner)
        self.counts = nn.ModuleList(
            MulticlassStatScores(max(n, 2), average="none", ignore_index=-1) for n in classes.values()
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

    def _known_labels(self, batch: Batch) -> Tensor:
        """(B, C) labels; -1 for inner labels of columns without a hierarchy."""
        n_labels = [n + len(self.hierarchies.get(column, ())) for column, n in self.classes.items()]
        labels = batch["labels"]
        return labels.masked_fill(labels >= torch.tensor(n_labels, device=labels.device), -1)

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        labels = self._known_labels(batch)
        if "pad" in batch:  # rows repeated to keep ranks even must not count twice
            labels = labels.masked_fill(batch["pad"][:, None], -1)
        logits = self(batch)
        self.log(f"{stage}/loss", self._loss(logits, labels), batch_size=len(labels), sync_dist=True)
        for (counts, f1), scores, codes in zip(self._metrics(), logits, labels.unbind(1), strict=True):
            predicted = scores.argmax(dim=1)
            counts.update(predicted, codes.masked_fill(codes >= scores.shape[1], -1))
            f1.update(predicted, codes)

    def _metrics(self) -> list[tuple[MulticlassStatScores, HierarchicalF1]]:
        """The metrics of each label column."""
        return list(zip(cast("Iterable[Any]", self.counts), cast("Iterable[Any]", self.f1), strict=True))

    def _log_epoch(self, stage: str) -> None:
        """Log macro-F1 and the recall of each class; with a hierarchy also its F1, and the recall over all leaves."""
        several = len(self.classes) > 1
        scores: dict[str, list[Tensor]] = {}
        for column, (counts, f1) in zip(self.classes, self._metrics(), strict=True):
            right, wrong, _, missed, n_cells = counts.compute().reshape(-1, 5).unbind(1)
            occurs = right + wrong + missed > 0
            found = {"macro_f1": (2 * right / (2 * right + wrong + missed))[occurs].sum() / occurs.sum().clamp(min=1)}
            if column in self.hierarchies:
                found |= {"hierarchical_f1": f1.compute(), "leaf_recall": right.sum() / n_cells.sum().clamp(min=1)}
            for name, score in found.items():
                scores.setdefault(name, []).append(score)
                if several:
                    self.log(f"{stage}/{name}/{column}", score, sync_dist=True)
            prefix, names = f"{stage}/recall{f'/{column}' if several else ''}", self.decoders.get(column, {})
            for code in n_cells.nonzero().flatten().tolist():
                self.log(f"{prefix}/{names.get(code, code)}", right[code] / n_cells[code], sync_dist=True)
            counts.reset()
            f1.reset()
        for name, of_columns in scores.items():
            mean = torch.stack(of_columns).mean()
            self.log(f"{stage}/{name}", mean, prog_bar=name == "macro_f1", sync_dist=True)
