"""scPRINT-2 on our data: its DataModule, what its tasks need of an AnnData, and the names that it imports.

Import this before ``scprint2``.
"""

from scdataloader.integrations.scprint.anndata_batches import Collator, SimpleAnnDataset
from scdataloader.integrations.scprint.datamodule import DataModule
from scdataloader.integrations.scprint.names import install
from scdataloader.integrations.scprint.preprocessor import Preprocessor

__all__ = ["Collator", "DataModule", "Preprocessor", "SimpleAnnDataset"]

install()
