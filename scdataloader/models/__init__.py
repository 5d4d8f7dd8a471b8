"""Two small reference models, and a loss and a metric for labels with a hierarchy.

The models take raw counts and normalise them to ``log1p(x * 10,000 / depth)``. The command line sets ``n_genes``,
``classes``, ``decoders`` and ``labels_hierarchy`` from the data; checkpoints keep them, so that `load_from_checkpoint`
needs no data.
"""

from scdataloader.models.classifier import LabelClassifier
from scdataloader.models.losses import HierarchicalCrossEntropy, HierarchicalF1
from scdataloader.models.masked import MaskedExpression

__all__ = ["HierarchicalCrossEntropy", "HierarchicalF1", "LabelClassifier", "MaskedExpression"]
