"""lamindb instances: create and fill them, and curate files into their collections.

Functions are imported on first use, and lamindb when one is called.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scdataloader.lamin.curate import collection_folder, curate_into
    from scdataloader.lamin.genes import import_genes
    from scdataloader.lamin.instance import connect, init
    from scdataloader.lamin.terms import import_ontologies

__all__ = ["collection_folder", "connect", "curate_into", "import_genes", "import_ontologies", "init"]

_MODULE_OF = {
    "collection_folder": "curate",
    "connect": "instance",
    "curate_into": "curate",
    "import_genes": "genes",
    "import_ontologies": "terms",
    "init": "instance",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
