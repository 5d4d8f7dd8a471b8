"""Genes that a recipe takes from the lamindb instance: written to a table before any file is looked at.

From there on nobody asks the database: what the registry holds may change while files are curated, and processes on
SQLite would be in each other's way.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scdataloader.curation.outcome import Outcome
from scdataloader.curation.recipe import BIONTY, Recipe
from scdataloader.genes.organisms import normalise_organism
from scdataloader.lamin.genes import n_imported_genes, registered_genes
from scdataloader.runtime.files import write_atomically, writing

FOLDER = "genes"
"""Of the tables, in the folder of the outputs; a table is never written over."""

logger = logging.getLogger(__name__)


def with_bionty_genes(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with a file in place of every ``bionty``, which holds the genes that the connected instance has now.

    Args:
        recipe: as given by the user.
        folder: that of the outputs; the tables lie in ``genes`` in it, under names that tell their content.

    Raises:
        LookupError: the instance has no genes of an organism; says how to fill it.
        RuntimeError: no instance is connected, it has no bionty, or its database does not answer.
        WriteError: a table cannot be written.
    """
    tables = {name: _written(name, folder) if table == BIONTY else table for name, table in recipe.genes.items()}
    return replace(recipe, genes=tables)


def tell_of_genes(outcomes: Sequence[Outcome], recipe: Recipe) -> None:
    """Note in the log of which organisms files had no gene table, though the connected instance has one.

    It is not taken without being asked for: what becomes of a file would then change with what others do to the
    instance, and with whether it is connected.
    """
    has_table = {normalise_organism(organism) for organism in recipe.genes}
    for organism in sorted({outcome.organism for outcome in outcomes if outcome.organism} - has_table):
        n_genes = n_imported_genes(organism)
        if n_genes:
            logger.info(
                "no gene table was given for %s, and the lamindb instance has %s genes of it: to match files by these, "
                "give genes: {%s: %s}",
                *(organism, f"{n_genes:,}", organism, BIONTY),
            )


def _written(name: str, folder: Path) -> str:
    """The path of a table of an organism's genes, written unless it is there."""
    table = registered_genes(name)
    if not n_imported_genes(name):
        logger.warning(
            "bionty has %s genes of %s, saved one by one: files lose all others, or keep them without a match; "
            "`scdataloader instance import-genes` fills the registry",
            *(f"{len(table):,}", name),
        )
    content = table.to_csv(index=False).encode()
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    path = folder / FOLDER / f"{BIONTY}-{normalise_organism(name).replace(':', '_')}-{digest}.csv"
    if not path.exists():
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
    logger.info("genes of %s: %s of bionty, as in %s", name, f"{len(table):,}", path)
    return str(path)
