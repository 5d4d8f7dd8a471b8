"""Weighted sampling over many single-cell datasets, exact, at full speed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scdataloader.alignment import GeneAlignment
    from scdataloader.class_index import ClassIndex
    from scdataloader.collate import Dense, SelectedGenes, Sparse
    from scdataloader.collection import Collection
    from scdataloader.conversion import convert
    from scdataloader.datamodule import DataModule
    from scdataloader.dataset import CellDataset
    from scdataloader.genes import GeneVocabulary
    from scdataloader.loader import Loader
    from scdataloader.monitor import SamplingMonitor
    from scdataloader.ontology import Ontology
    from scdataloader.roll_up import RollUp
    from scdataloader.samplers import SequentialSampler, ShuffleSampler, WeightedSampler
    from scdataloader.sources import open_source
    from scdataloader.splits import Split
    from scdataloader.store.reader import Store
    from scdataloader.tally import Tally
    from scdataloader.transforms import Log1p, Normalize, QuantileBins
    from scdataloader.types import CellBatch, Collate, CSRRows, Sampler, Source, Transform
    from scdataloader.weights import Sampling

__version__ = "0.1.0"

__all__ = [
    "CSRRows",
    "CellBatch",
    "CellDataset",
    "ClassIndex",
    "Collate",
    "Collection",
    "DataModule",
    "Dense",
    "GeneAlignment",
    "GeneVocabulary",
    "Loader",
    "Log1p",
    "Normalize",
    "Ontology",
    "QuantileBins",
    "RollUp",
    "Sampler",
    "Sampling",
    "SamplingMonitor",
    "SelectedGenes",
    "SequentialSampler",
    "ShuffleSampler",
    "Source",
    "Sparse",
    "Split",
    "Store",
    "Tally",
    "Transform",
    "WeightedSampler",
    "convert",
    "open_source",
]

# Modules are imported when a name of theirs is first used: torch takes seconds, and reading a file does not need it.
_NAMES = {
    "alignment": "GeneAlignment",
    "class_index": "ClassIndex",
    "collate": "Dense SelectedGenes Sparse",
    "collection": "Collection",
    "conversion": "convert",
    "datamodule": "DataModule",
    "dataset": "CellDataset",
    "genes": "GeneVocabulary",
    "loader": "Loader",
    "monitor": "SamplingMonitor",
    "ontology": "Ontology",
    "roll_up": "RollUp",
    "samplers": "SequentialSampler ShuffleSampler WeightedSampler",
    "sources": "open_source",
    "splits": "Split",
    "store.reader": "Store",
    "tally": "Tally",
    "transforms": "Log1p Normalize QuantileBins",
    "types": "CSRRows CellBatch Collate Sampler Source Transform",
    "weights": "Sampling",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return ["__version__", *__all__]
