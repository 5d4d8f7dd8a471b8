"""Weighted sampling over many single-cell datasets, exact, at full speed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scdataloader.registry import register
from scdataloader.schema import LABEL_COLUMNS, ONTOLOGIES

if TYPE_CHECKING:
    from scdataloader.batches import tokens
    from scdataloader.batches.full import Dense, Sparse
    from scdataloader.batches.selected_genes import SelectedGenes
    from scdataloader.batches.transforms import Log1p, Normalize, QuantileBins
    from scdataloader.collection.collection import Collection
    from scdataloader.collection.predictions import write_predictions
    from scdataloader.genes.alignment import GeneAlignment
    from scdataloader.genes.vocabulary import GeneVocabulary
    from scdataloader.integrations.mapped_collection import CellDataset
    from scdataloader.labels.roll_up import RollUp
    from scdataloader.loading.loader import Loader
    from scdataloader.ontology.ontology import Ontology
    from scdataloader.reports.report import report
    from scdataloader.sampling.groups import GroupedSampling
    from scdataloader.sampling.mixing import Mixture
    from scdataloader.sampling.options import Sampling
    from scdataloader.sampling.splits import Split
    from scdataloader.sources import open_source
    from scdataloader.store.convert import convert
    from scdataloader.store.reader import Store
    from scdataloader.training.datamodule import DataModule
    from scdataloader.types import CellBatch, CSRRows

__version__ = "0.1.0"

# What the package itself plugs in, by the door that other packages use; a factory is imported at its first use.
register("source", "*", "scdataloader.sources:open_anndata")
register("source", "type:anndata.*", "scdataloader.sources:open_anndata")
register("source", "type:upath.*", "scdataloader.sources:open_anndata")
register("source", "*.cells", "scdataloader.store.reader:open_stores")
register("source", "*/manifest.json", "scdataloader.store.reader:open_stores")
register("source", "*/header.sch", "scdataloader.sources.scdl:open_archives")
register("source", "*/version.json", "scdataloader.sources.scdl:open_archives")
for _name in (
    "dataset_[0-9]*/zarr.json",
    "dataset_[0-9]*.h5ad",
    "chunk_[0-9]*.zarr/zarr.json",
    "chunk_[0-9]*.zarr/.z*",
):
    register("source", f"*/{_name}", "scdataloader.sources.annbatch:open_collections")
for _name in ("*.parquet", "*.pq", "parquet:"):
    register("source", _name, "scdataloader.sources.parquet:open_tables")
register("source", "scdl:", "scdataloader.sources.scdl:open_archives")
for _name in ("soma:", "*/__tiledb_group.tdb", "type:tiledbsoma.*"):
    register("source", _name, "scdataloader.sources.soma:open_experiments")
register("source", "lamindb:", "scdataloader.lamin.collections:open_lamindb")
register("source", "type:lamindb.*", "scdataloader.lamin.collections:open_lamindb")
register("collate", "cellarium", "scdataloader.integrations.cellarium:Cellarium")
register("collate", "dense", "scdataloader.batches.full:Dense")
register("collate", "perturbation-sets", "scdataloader.batches.sets:PerturbationSets")
register("collate", "sparse", "scdataloader.batches.full:Sparse")
register("sampler", "mixture", "scdataloader.sampling.mixing:Mixture")
for _name in (*ONTOLOGIES, "AfPO", "CHEBI", "CVCL", "NCBITaxon", "UniProt", "ZFS"):
    register("ontology", _name, "scdataloader.ontology.locate:open_guide")
for _name in {column.registry for column in LABEL_COLUMNS.values()}:
    register("ontology", f"bionty.{_name}", "scdataloader.ontology.locate:open_bionty")

__all__ = [
    "CSRRows",
    "CellBatch",
    "CellDataset",
    "Collection",
    "DataModule",
    "Dense",
    "GeneAlignment",
    "GeneVocabulary",
    "GroupedSampling",
    "Loader",
    "Log1p",
    "Mixture",
    "Normalize",
    "Ontology",
    "QuantileBins",
    "RollUp",
    "Sampling",
    "SelectedGenes",
    "Sparse",
    "Split",
    "Store",
    "convert",
    "open_source",
    "register",
    "report",
    "write_predictions",
]

# Modules are imported when a name of theirs is first used: torch takes seconds, and reading a file does not need it.
_MODULE_OF = {
    "CSRRows": "types",
    "CellBatch": "types",
    "CellDataset": "integrations.mapped_collection",
    "Collection": "collection.collection",
    "DataModule": "training.datamodule",
    "Dense": "batches.full",
    "GeneAlignment": "genes.alignment",
    "GeneVocabulary": "genes.vocabulary",
    "GroupedSampling": "sampling.groups",
    "Loader": "loading.loader",
    "Log1p": "batches.transforms",
    "Mixture": "sampling.mixing",
    "Normalize": "batches.transforms",
    "Ontology": "ontology.ontology",
    "QuantileBins": "batches.transforms",
    "RollUp": "labels.roll_up",
    "Sampling": "sampling.options",
    "SelectedGenes": "batches.selected_genes",
    "Sparse": "batches.full",
    "Split": "sampling.splits",
    "Store": "store.reader",
    "convert": "store.convert",
    "open_source": "sources",
    "report": "reports.report",
    "write_predictions": "collection.predictions",
}
_ROOMS = (
    "batches",
    "collection",
    "curation",
    "genes",
    "integrations",
    "labels",
    "lamin",
    "loading",
    "models",
    "ontology",
    "protocols",
    "registry",
    "reports",
    "sampling",
    "schema",
    "sources",
    "store",
    "testing",
    "training",
    "types",
)


def __getattr__(name: str) -> Any:
    if name == "tokens":
        return import_module(f"{__name__}.batches.tokens")
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return ["__version__", *__all__, *_ROOMS, "tokens"]
