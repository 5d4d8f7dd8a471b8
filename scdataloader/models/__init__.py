"""Small reference models, and a loss and a metric for labels with a hierarchy.

`LabelClassifier` and `MaskedExpression` take raw counts and normalise them to ``log1p(x * 10,000 / depth)``;
`MaskedTokenModel` and `MaskedValueModel` take the sequences of `scdataloader.tokens`. The command line sets
``n_genes``, ``n_tokens``, ``pad_token``, ``classes``, ``decoders`` and ``labels_hierarchy`` from the data; checkpoints
keep them, so that `load_from_checkpoint` needs no data.
"""

from scdataloader.models.classifier import LabelClassifier
from scdataloader.models.losses import HierarchicalCrossEntropy, HierarchicalF1
from scdataloader.models.masked import MaskedExpression
from scdataloader.models.tokens import MaskedTokenModel, MaskedValueModel

__all__ = [
    "HierarchicalCrossEntropy",
    "HierarchicalF1",
    "LabelClassifier",
    "MaskedExpression",
    "MaskedTokenModel",
    "MaskedValueModel",
]
