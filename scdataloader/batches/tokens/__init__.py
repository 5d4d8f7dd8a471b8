"""Token sequences of foundation models: one collate function per family of models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scdataloader.batches.tokens.cellfm import CellFM
    from scdataloader.batches.tokens.geneformer import Geneformer
    from scdataloader.batches.tokens.masking import MaskedTokens
    from scdataloader.batches.tokens.nicheformer import Nicheformer
    from scdataloader.batches.tokens.pairs import MaskedValues
    from scdataloader.batches.tokens.scfoundation import ScFoundation
    from scdataloader.batches.tokens.scgpt import ScGPT
    from scdataloader.batches.tokens.state_se import StateSE
    from scdataloader.batches.tokens.tables import ModelTable, PerGene, per_gene, read_numbers, read_tokens
    from scdataloader.batches.tokens.tahoe import TahoeX1
    from scdataloader.batches.tokens.transcriptformer import TranscriptFormer
    from scdataloader.batches.tokens.uce import UCE

__all__ = [
    "UCE",
    "CellFM",
    "Geneformer",
    "MaskedTokens",
    "MaskedValues",
    "ModelTable",
    "Nicheformer",
    "PerGene",
    "ScFoundation",
    "ScGPT",
    "StateSE",
    "TahoeX1",
    "TranscriptFormer",
    "compute_medians",
    "per_gene",
    "read_numbers",
    "read_tokens",
]

# Imported at first use: `scd.tokens` should not import torch before a class of it is used.
_MODULE_OF = {
    "CellFM": "batches.tokens.cellfm",
    "Geneformer": "batches.tokens.geneformer",
    "MaskedTokens": "batches.tokens.masking",
    "MaskedValues": "batches.tokens.pairs",
    "ModelTable": "batches.tokens.tables",
    "Nicheformer": "batches.tokens.nicheformer",
    "PerGene": "batches.tokens.tables",
    "ScFoundation": "batches.tokens.scfoundation",
    "ScGPT": "batches.tokens.scgpt",
    "StateSE": "batches.tokens.state_se",
    "TahoeX1": "batches.tokens.tahoe",
    "TranscriptFormer": "batches.tokens.transcriptformer",
    "UCE": "batches.tokens.uce",
    "compute_medians": "collection.gene_medians",
    "per_gene": "batches.tokens.tables",
    "read_numbers": "batches.tokens.tables",
    "read_tokens": "batches.tokens.tables",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"scdataloader.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
