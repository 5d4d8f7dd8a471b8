"""Weighted sampling over many single-cell datasets, exact, at full speed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scdataloader.registry import register
from scdataloader.schema import LABEL_COLUMNS, ONTOLOGIES

if TYPE_CHECKING:
    from scdataloader.batches.full import Dense, Sparse
    from scdataloader.batches.selected_genes import SelectedGenes
    from scdataloader.batches.transforms import Log1p, Normalize, QuantileBins
    from scdataloader.collection.collection import Collection
    from scdataloader.genes.alignment import GeneAlignment
    from scdataloader.genes.vocabulary import GeneVocabulary
    from scdataloader.integrations.mapped_collection import CellDataset
    from scdataloader.labels.roll_up import RollUp
    from scdataloader.loading.loader import Loader
    from scdataloader.ontology.ontology import Ontology
    from scdataloader.protocols import Collate, Sampler, Source, Transform
    from scdataloader.sampling.class_index import ClassIndex
    from scdataloader.sampling.options import Sampling
    from scdataloader.sampling.samplers import SequentialSampler, ShuffleSampler, WeightedSampler
    from scdataloader.sampling.splits import Split
    from scdataloader.sampling.tally import Tally
    from scdataloader.sources import open_source
    from scdataloader.store.convert import convert
    from scdataloader.store.reader import Store
    from scdataloader.training.datamodule import DataModule
    from scdataloader.training.monitor import SamplingMonitor
    from scdataloader.types import CellBatch, CSRRows

__version__ = "0.1.0"

# What the package itself plugs in, by the door that other packages use; a factory is imported at its first use.
register("source", "*", "scdataloader.sources:open_anndata")
register("source", "*.cells", "scdataloader.store.reader:open_stores")
register("source", "*/manifest.json", "scdataloader.store.reader:open_stores")
register("source", "lamindb:", "scdataloader.lamin.collections:open_lamindb")
register("source", "type:lamindb.*", "scdataloader.lamin.collections:open_lamindb")
for _name in (*ONTOLOGIES, "AfPO", "CHEBI", "CVCL", "NCBITaxon", "UniProt", "ZFS"):
    register("ontology", _name, "scdataloader.ontology.locate:open_guide")
for _name in {column.registry for column in LABEL_COLUMNS.values()}:
    register("ontology", f"bionty.{_name}", "scdataloader.ontology.locate:open_bionty")

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
    "register",
]

# Modules are imported when a name of theirs is first used: torch takes seconds, and reading a file does not need it.
_NAMES = {
    "genes.alignment": "GeneAlignment",
    "sampling.class_index": "ClassIndex",
    "batches.full": "Dense Sparse",
    "batches.selected_genes": "SelectedGenes",
    "collection.collection": "Collection",
    "store.convert": "convert",
    "training.datamodule": "DataModule",
    "integrations.mapped_collection": "CellDataset",
    "genes.vocabulary": "GeneVocabulary",
    "loading.loader": "Loader",
    "training.monitor": "SamplingMonitor",
    "ontology.ontology": "Ontology",
    "labels.roll_up": "RollUp",
    "sampling.samplers": "SequentialSampler ShuffleSampler WeightedSampler",
    "sources": "open_source",
    "sampling.splits": "Split",
    "store.reader": "Store",
    "sampling.tally": "Tally",
    "batches.transforms": "Log1p Normalize QuantileBins",
    "protocols": "Collate Sampler Source Transform",
    "types": "CSRRows CellBatch",
    "sampling.options": "Sampling",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return ["__version__", *__all__]
