"""A loss and a metric for labels with a hierarchy, as in `DataModule.labels_hierarchy`.

A model predicts classes, which are the leaves. A cell with an inner label belongs to one of the classes below it, so
the probability of an inner label is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from scdataloader.ontology.graph import membership


class HierarchicalCrossEntropy(nn.Module):
    """Cross entropy in which the probability of an inner label is the sum of those of the classes below it.

    If all labels are classes it equals ``torch.nn.functional.cross_entropy``. A label above every class has the
    probability 1 and no gradient.
    """

    membership: Tensor

    def __init__(self, n_classes: int, hierarchy: Mapping[int, Sequence[int]]) -> None:
        """Set the hierarchy.

        Args:
            n_classes: Number of classes.
            hierarchy: {code of an inner label: codes of the classes below it}; empty if all labels are classes.

        Raises:
            ValueError: the codes of inner labels do not follow those of the classes, or there are no such classes.
        """
        super().__init__()
        # not in the checkpoint, which has the model's hyperparameters
        self.register_buffer("membership", torch.from_numpy(membership(n_classes, hierarchy)), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the cells with a known label, in nats; 0 if there is none.

        Args:
            logits: (B, n_classes) scores.
            labels: (B,) codes of classes and inner labels; negative ones are unknown and do not count.

        Raises:
            IndexError: a code is greater than that of the last inner label.
        """
        n_classes = logits.shape[1]
        # normalised first: otherwise sums of probabilities near 1 would be differences of large numbers
        log_probability = logits.log_softmax(dim=1)
        is_class, is_inner = (labels >= 0) & (labels < n_classes), labels >= n_classes
        classes = log_probability[is_class].gather(1, labels[is_class, None]).squeeze(1)
        outside = ~self.membership[labels[is_inner] - n_classes]
        inner = log_probability[is_inner].masked_fill(outside, -torch.inf).logsumexp(dim=1)
        return -(classes.sum() + inner.sum()) / max(len(classes) + len(inner), 1)


class HierarchicalF1(Metric):
    """F1 of label sets: each label, true or predicted, is the set of itself and all labels above it.

    With P and T the sets of a cell's predicted and true label, sums over cells give precision Σ|P∩T| / Σ|P|, recall
    Σ|P∩T| / Σ|T|, and F1, their harmonic mean: Kiritchenko, Matwin and Famili, *Functional annotation of genes using
    hierarchical text categorization* (2005); set-based measures in Kosmopoulos et al., *Evaluation measures for
    hierarchical classification* (2015). The more labels above them two labels share, the less it costs to confuse
    them. As there, labels above every class are left out, because all cells have them. If all labels are classes the F1
    is the accuracy.

    A cell with an inner label belongs to one of the classes below it, so labels that contain some of these classes, and
    are not above it, may be right or wrong: they are left out of P. An inner label is above another label if its
    classes include all of the other's.
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
        """Set the hierarchy; see `HierarchicalCrossEntropy`."""
        super().__init__()
        inner = torch.from_numpy(membership(n_classes, hierarchy))
        covers = torch.cat([torch.eye(n_classes, dtype=torch.bool), inner])  # (n, n_classes): the classes of each label
        self.register_buffer("above", _above(covers), persistent=False)
        self.register_buffer("overlapping", covers.float() @ covers.float().T > 0, persistent=False)
        is_class = torch.ones(n_classes, dtype=torch.bool)
        self.register_buffer("counted", torch.cat([is_class, ~inner.all(dim=1)]), persistent=False)
        for state in ("n_shared", "n_predicted", "n_true"):
            self.add_state(state, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Count cells.

        Args:
            predicted: (B,) codes of classes.
            labels: (B,) true codes of classes and inner labels; cells with negative ones, unknown, are left out.
        """
        predicted, labels = predicted[labels >= 0], labels[labels >= 0]
        true = self.above[labels]
        undecided = self.overlapping[labels] & ~true
        guess = self.above[predicted] & ~undecided & self.counted
        true &= self.counted
        self.n_shared += (guess & true).sum()
        self.n_predicted += guess.sum()
        self.n_true += true.sum()

    def compute(self) -> Tensor:
        """F1 of all cells so far, from 0 to 1; 0 if there is none."""
        return 2 * self.n_shared / (self.n_predicted + self.n_true).clamp(min=1)


def _above(covers: Tensor) -> Tensor:
    """(n, n) for the (n, n_classes) classes of n labels: [i, j] is True where label j is i or above i."""
    n_classes = covers.shape[1]
    above = covers.float() @ (~covers).float().T == 0  # no class of i outside j
    above[n_classes:, :n_classes] = False  # a class is not above an inner label of which it is the only class
    return above
