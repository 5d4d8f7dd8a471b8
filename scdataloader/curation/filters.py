"""Which cells of a file are kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.curation.labels import open_ontology, resolve
from scdataloader.curation.quality import PCT_MT
from scdataloader.curation.recipe import Recipe
from scdataloader.schema import ASSAY, IS_PRIMARY, LABEL_COLUMNS, UNKNOWN

_BOOLS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def kept_cells(
    obs: pd.DataFrame, metrics: pd.DataFrame, recipe: Recipe, name: str
) -> tuple[NDArray[np.bool_], list[str]]:
    """``(n,)`` the cells that all filters keep, and a note for each filter on what it dropped of those before it.

    A filter that a file has nothing for keeps all cells, and a note says so.

    Args:
        obs: the cells, with standardised labels.
        metrics: of the same cells: see `cell_metrics`.
        recipe: says which filters there are.
        name: what messages call the file.

    Raises:
        KeyError: assays are asked for, and the file has none.
        ValueError: an assay that is asked for is no term, or whether cells are primary data is not said by true and
            false.
    """
    kept = np.ones(len(obs), dtype=np.bool_)
    notes = []
    for passes, why in _filters(obs, metrics, recipe, name):
        if passes is None:
            notes.append(why)
            continue
        n_dropped = int((kept & ~passes).sum())
        kept &= passes
        if n_dropped:
            notes.append(f"cells {why}, dropped: {n_dropped:,}")
    return kept, notes


def _filters(
    obs: pd.DataFrame, metrics: pd.DataFrame, recipe: Recipe, name: str
) -> Iterator[tuple[NDArray[np.bool_] | None, str]]:
    """The cells that pass each filter, and what is said of the others; None, and why, of one that cannot be applied."""
    if recipe.assays:
        if ASSAY not in obs:
            raise KeyError(
                f"{name} has no obs column {ASSAY!r}, and only some assays are asked for; give it by a rule, as "
                f"constants: {{{ASSAY}: EFO:0009899}}, or from another column, as columns: {{assay: {ASSAY}}}"
            )
        yield obs[ASSAY].isin(with_kinds(recipe.assays)).to_numpy(), "of other assays"
    if recipe.primary_only and IS_PRIMARY in obs:
        yield _is_primary(obs[IS_PRIMARY], name), "of no primary data"
    elif recipe.primary_only:
        yield None, f"no obs column {IS_PRIMARY!r}: primary_only has dropped nothing"
    n_genes, total = metrics["n_genes_by_counts"].to_numpy(), metrics["total_counts"].to_numpy()
    yield n_genes >= recipe.min_genes_per_cell, f"with fewer than {recipe.min_genes_per_cell:,} genes"
    yield total >= recipe.min_counts_per_cell, f"with fewer than {recipe.min_counts_per_cell:,} counts"
    if recipe.max_pct_mt is not None and PCT_MT not in metrics:
        yield None, "no gene is known to be mitochondrial, by its symbol: max_pct_mt has dropped nothing"
    elif recipe.max_pct_mt is not None:
        yield (
            ~(metrics[PCT_MT].to_numpy() > recipe.max_pct_mt),
            f"with more than {recipe.max_pct_mt:g} % mitochondrial counts",
        )


def _is_primary(values: pd.Series, name: str) -> NDArray[np.bool_]:
    """``(n,)`` which cells are; of a column of bool, of 0 and 1, or of such words."""
    said = {value: _BOOLS.get(str(value).lower()) for value in values.unique()}
    unclear = [value for value, is_primary in said.items() if is_primary is None]
    if unclear:
        raise ValueError(
            f"{name} has {unclear[0]!r} in obs[{IS_PRIMARY!r}], where true or false were expected; give it by a "
            f"rule, as constants: {{{IS_PRIMARY}: true}}, or leave primary_only out"
        )
    return values.map(said).to_numpy(np.bool_)


def with_kinds(assays: list[str]) -> set[str]:
    """The ids of assays and of all kinds of them.

    Raises:
        ValueError: one is no term.
    """
    found: set[str] = set()
    for assay in assays:
        term, _ = resolve(assay, LABEL_COLUMNS[ASSAY].ontologies)
        if term == UNKNOWN:
            raise ValueError(f"the recipe's assays name {assay!r}, which is no term of EFO; give its id or its name")
        found.update(open_ontology(LABEL_COLUMNS[ASSAY].ontologies[0]).descendants(term, include_self=True))
    return found
