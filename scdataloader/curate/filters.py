"""Which cells of a file are kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.curate.labels import UNKNOWN, open_ontology, resolve
from scdataloader.curate.quality import PCT_MT
from scdataloader.curate.recipe import STANDARD_LABELS, Recipe

ASSAY = "assay_ontology_term_id"
PRIMARY = "is_primary_data"


def kept_cells(
    obs: pd.DataFrame, metrics: pd.DataFrame, recipe: Recipe, name: str
) -> tuple[NDArray[np.bool_], list[str]]:
    """``(n,)`` the cells that all filters keep, and a note for each filter on what it dropped of those before it.

    Args:
        obs: the cells, with standardised labels.
        metrics: of the same cells: see `cell_metrics`.
        recipe: says which filters there are.
        name: what messages call the file.

    Raises:
        KeyError: assays are asked for, and the file has none.
        ValueError: an assay that is asked for is no term.
    """
    kept = np.ones(len(obs), dtype=np.bool_)
    notes = []
    for passes, why in _filters(obs, metrics, recipe, name):
        n_dropped = int((kept & ~passes).sum())
        kept &= passes
        if n_dropped:
            notes.append(f"cells {why}, dropped: {n_dropped:,}")
    return kept, notes


def _filters(
    obs: pd.DataFrame, metrics: pd.DataFrame, recipe: Recipe, name: str
) -> Iterator[tuple[NDArray[np.bool_], str]]:
    """The cells that pass each filter, and what is said of the others."""
    if recipe.assays:
        if ASSAY not in obs:
            raise KeyError(
                f"{name} has no obs column {ASSAY!r}, and only some assays are asked for; give it by a rule, as "
                f"constants: {{{ASSAY}: EFO:0009899}}, or from another column, as columns: {{assay: {ASSAY}}}"
            )
        yield obs[ASSAY].isin(_with_kinds(recipe.assays)).to_numpy(), "of other assays"
    if recipe.primary_only and PRIMARY in obs:
        yield (obs[PRIMARY].astype(str).str.lower() != "false").to_numpy(), "of no primary data"
    n_genes, total = metrics["n_genes_by_counts"].to_numpy(), metrics["total_counts"].to_numpy()
    yield n_genes >= recipe.min_genes_per_cell, f"with fewer than {recipe.min_genes_per_cell:,} genes"
    yield total >= recipe.min_counts_per_cell, f"with fewer than {recipe.min_counts_per_cell:,} counts"
    if recipe.max_pct_mt is not None and PCT_MT in metrics:
        yield (
            ~(metrics[PCT_MT].to_numpy() > recipe.max_pct_mt),
            f"with more than {recipe.max_pct_mt:g} % mitochondrial counts",
        )


def _with_kinds(assays: list[str]) -> set[str]:
    """The ids of assays and of all kinds of them."""
    found: set[str] = set()
    for assay in assays:
        term, _ = resolve(assay, STANDARD_LABELS[ASSAY])
        if term == UNKNOWN:
            raise ValueError(f"the recipe's assays name {assay!r}, which is no term of EFO; give its id or its name")
        found.update(open_ontology(STANDARD_LABELS[ASSAY][0]).descendants(term, include_self=True))
    return found
