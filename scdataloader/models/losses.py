"""A loss and a metric for labels of which some are above others, as `DataModule.labels_hierarchy` tells.

A model predicts classes, which are the leaves. A cell with an inner label is of one of the classes below it, and nobody
says of which, so the probability of its label is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class HierarchicalCrossEntropy(nn.Module):
    """Cross entropy in which the probability of an inner label is the sum of those of the classes below it.

    Where all labels are classes it is ``torch.nn.functional.cross_entropy``. A label above every class has the
    probability 1 and teaches nothing.
    """

    membership: Tensor

    def __init__(self, n_classes: int, hierarchy: Mapping[int, Sequence[int]]) -> None:
        """Say what is above what.

        Args:
            n_classes: Number of classes.
            hierarchy: {code of an inner label: codes of the classes below it}; empty where labels are classes.

        Raises:
            ValueError: the codes of inner labels do not follow those of the classes, or there are no such classes.
        """
        super().__init__()
        # the model keeps what this is made of, so that a checkpoint need not
        self.register_buffer("membership", _membership(n_classes, hierarchy), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over cells of known label, in nats; 0 without any.

        Args:
            logits: (B, n_classes) scores.
            labels: (B,) codes of classes and inner labels; negative ones are unknown and add nothing.

        Raises:
            IndexError: a code is past that of the last inner label.
        """
        n_classes = logits.shape[1]
        # Normalised first: sums of probabilities near 1 would else be differences of large numbers.
        log_probability = logits.log_softmax(dim=1)
        is_class, is_inner = (labels >= 0) & (labels < n_classes), labels >= n_classes
        classes = log_probability[is_class].gather(1, labels[is_class, None]).squeeze(1)
        outside = ~self.membership[labels[is_inner] - n_classes]
        inner = log_probability[is_inner].masked_fill(outside, -torch.inf).logsumexp(dim=1)
        return -(classes.sum() + inner.sum()) / max(len(classes) + len(inner), 1)


class HierarchicalF1(Metric):
    """F1 of sets: each label, true or predicted, stands for itself and all labels above it.

    With P and T the sets of a cell's predicted and true label, sums over cells give precision Σ|P∩T| / Σ|P|, recall
    Σ|P∩T| / Σ|T|, and F1, their harmonic mean: Kiritchenko, Matwin and Famili, *Functional annotation of genes using
    hierarchical text categorization* (2005); set-based measures in Kosmopoulos et al., *Evaluation measures for
    hierarchical classification* (2015). So a mistake costs less, the more the two labels have above them in common.
    As there, labels above every class are left out, since all cells have them. Where all labels are classes it is the
    share of the cells that are predicted right.

    A cell of inner label is of one of the classes below it, so labels that have some of these classes, and are not
    above it, may be right or wrong: they are left out of P. An inner label is above another label where its classes
    include all of the other's.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    above: Tensor
    overlapping: Tensor
    counted: Tensor
    n_shared: Tensor
    n_predicted: Tensor
    n_true: Tensor

    def __init__(self, n_classes: int, hierarchy: Mapping[int, Sequence[int]]) -> None:
        """Say what is above what; see `HierarchicalCrossEntropy`."""
        super().__init__()
        membership = _membership(n_classes, hierarchy)
        self.register_buffer("above", _above(membership), persistent=False)
        self.register_buffer("overlapping", _overlapping(membership), persistent=False)
        is_class = torch.ones(n_classes, dtype=torch.bool)
        self.register_buffer("counted", torch.cat([is_class, ~membership.all(dim=1)]), persistent=False)
        for state in ("n_shared", "n_predicted", "n_true"):
            self.add_state(state, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Count cells.

        Args:
            predicted: (B,) codes of classes.
            labels: (B,) true codes of classes and inner labels; cells of negative ones, unknown, are left out.
        """
        predicted, labels = predicted[labels >= 0], labels[labels >= 0]
        true = self.above[labels]
        open_to_doubt = self.overlapping[labels] & ~true
        guessed = self.above[predicted] & ~open_to_doubt & self.counted
        true &= self.counted
        self.n_shared += (guessed & true).sum()
        self.n_predicted += guessed.sum()
        self.n_true += true.sum()

    def compute(self) -> Tensor:
        """F1 of all cells so far, from 0 to 1; 0 without any."""
        return 2 * self.n_shared / (self.n_predicted + self.n_true).clamp(min=1)


def _membership(n_classes: int, hierarchy: Mapping[int, Sequence[int]]) -> Tensor:
    """(n_inner, n_classes) True where the class is below the inner label; row i is code n_classes + i."""
    matrix = torch.zeros(len(hierarchy), n_classes, dtype=torch.bool)
    for place, code in enumerate(sorted(hierarchy)):
        below = list(hierarchy[code])
        if code != n_classes + place or not below or not set(below) <= set(range(n_classes)):
            raise ValueError(
                f"the labels above {n_classes} classes have the codes from {n_classes} on, each with the codes of "
                f"classes below it, from 0 to {n_classes - 1}; not {code}: {below}"
            )
        matrix[place, below] = True
    return matrix


def _classes(membership: Tensor) -> Tensor:
    """(n, n_classes) for n classes and inner labels: True where a label has a class, which a class has itself."""
    return torch.cat([torch.eye(membership.shape[1], dtype=torch.bool), membership])


def _overlapping(membership: Tensor) -> Tensor:
    """(n, n) True where two labels have a class in common."""
    covers = _classes(membership).float()
    return covers @ covers.T > 0


def _above(membership: Tensor) -> Tensor:
    """(n, n) for n classes and inner labels: [i, j] is True where j is i or above i."""
    n_classes, covers = membership.shape[1], _classes(membership)
    n_outside = covers.float() @ (~covers).float().T  # classes of i that are not under j
    above = n_outside == 0
    above[n_classes:, :n_classes] = False  # a class is above nothing, not even where it is all that an inner label has
    return above
