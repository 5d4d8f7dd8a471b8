"""Two small reference models, so that training does something true out of the box.

Both take raw counts and normalise by themselves: ``log1p(x * 10,000 / depth)``. The command line gives them the data's
``n_genes``, ``classes``, ``decoders`` and ``labels_hierarchy``; a checkpoint keeps these, so `load_from_checkpoint`
needs no data.
"""

from scdataloader.models.classifier import LabelClassifier
from scdataloader.models.masked import MaskedExpression

__all__ = ["LabelClassifier", "MaskedExpression"]
