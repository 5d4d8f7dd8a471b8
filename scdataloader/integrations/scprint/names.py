"""The names that scPRINT-2 imports from scDataLoader, made available under these."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import scdataloader
from scdataloader.integrations.scprint import genes, terms
from scdataloader.integrations.scprint.anndata_batches import Collator, SimpleAnnDataset
from scdataloader.integrations.scprint.preprocessor import Preprocessor
from scdataloader.integrations.versions import warn_untested

_MODULES: dict[str, dict[str, Any]] = {
    "data": {"SimpleAnnDataset": SimpleAnnDataset},
    "utils": {
        "_adding_scbasecamp_genes": terms.add_genes_of_other_organisms,
        "get_descendants": terms.get_descendants,
        "load_genes": genes.load_genes,
        "populate_my_ontology": terms.populate_my_ontology,
        "random_str": terms.random_str,
        "translate": terms.translate,
    },
}
"""Module of scDataLoader to those of its names that scPRINT-2 uses."""


def install() -> None:
    """Make ``scdataloader.data``, ``.utils``, ``.Collator`` and ``.Preprocessor`` available to imports.

    Warns of a version of scprint2 that is not tested. ``scdataloader.DataModule`` stays ours; the command line of this
    package puts its own in place.
    """
    warn_untested("scprint2", "1.0.3", "1.0.3")
    for name, members in _MODULES.items():
        module = ModuleType(f"scdataloader.{name}", f"Names of scDataLoader's ``{name}`` that scPRINT-2 imports.")
        vars(module).update(members)
        sys.modules[module.__name__] = module
        setattr(scdataloader, name, module)
    for member in (Collator, Preprocessor):
        setattr(scdataloader, member.__name__, member)
