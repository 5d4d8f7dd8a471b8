"""Quality metrics of cells, outliers, and which cells are kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scdataloader.curation.labels import cached_ontology, resolve
from scdataloader.curation.recipe import Recipe
from scdataloader.labels.encoder import truth_of
from scdataloader.schema import ASSAY, IS_PRIMARY, LABEL_COLUMNS, UNKNOWN

TWO_SIDED = ("total_counts", "n_genes_by_counts")
"""Metrics whose log1p is tested for outliers on both sides."""
PCT_MT = "pct_counts_mt"
IS_OUTLIER, OUTLIER_IN = "is_outlier", "outlier_in"
METRICS = (*TWO_SIDED, "total_counts_mt", PCT_MT)
"""Columns of obs that `cell_metrics` computes."""


def cell_metrics(x: csr_matrix, mitochondrial: NDArray[np.bool_]) -> pd.DataFrame:
    """Metrics of a block of cells, named and defined as by ``scanpy.pp.calculate_qc_metrics``.

    Args:
        x: ``(n, n_genes)`` float32 counts without stored zeros.
        mitochondrial: ``(n_genes,)`` mask of mitochondrial genes; without any, the two metrics of them are left out.

    Returns:
        ``n`` rows: ``n_genes_by_counts`` int32, and as float32 ``total_counts``, ``total_counts_mt`` and
        ``pct_counts_mt``, the latter in percent, and missing for cells without any count.
    """
    total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
    metrics = {"n_genes_by_counts": np.diff(x.indptr).astype(np.int32), "total_counts": total.astype(np.float32)}
    if mitochondrial.any():
        of_mt = x @ mitochondrial.astype(np.float64)
        metrics["total_counts_mt"] = of_mt.astype(np.float32)
        with np.errstate(invalid="ignore"):  # 0 of 0
            metrics[PCT_MT] = (of_mt / total * 100).astype(np.float32)
    return pd.DataFrame(metrics)


def outliers(metrics: pd.DataFrame, n_mads: float) -> pd.Series:
    """``(n,)`` the metrics in which each cell is an outlier, as text: "", or names joined by commas.

    A cell is an outlier in a metric where |x - median| > ``n_mads`` · MAD, MAD = median |x - median|: x is
    log1p(total_counts) or log1p(n_genes_by_counts), or pct_counts_mt itself, where only large values count. If more
    than half of the cells have the same value (MAD = 0), there are no outliers. (Germain, Sonrel & Robinson, Genome
    Biology 2020, with 5 MADs; Heumos et al., Nature Reviews Genetics 2023.)
    """
    values = {name: np.log1p(metrics[name].to_numpy(np.float64)) for name in TWO_SIDED}
    if PCT_MT in metrics:
        values[PCT_MT] = metrics[PCT_MT].to_numpy(np.float64)
    found = np.full(len(metrics), "", dtype=object)
    for name, x in values.items():
        known = x[~np.isnan(x)]
        median = np.median(known) if len(known) else 0.0
        mad = np.median(np.abs(known - median)) if len(known) else 0.0
        if mad > 0:
            distance = x - median
            is_outlier = (distance if name == PCT_MT else np.abs(distance)) > n_mads * mad
            found[is_outlier] += np.where(found[is_outlier] == "", name, "," + name)
    return pd.Series(found, index=metrics.index)


def kept_cells(
    obs: pd.DataFrame, metrics: pd.DataFrame, recipe: Recipe, name: str
) -> tuple[NDArray[np.bool_], list[str]]:
    """``(n,)`` mask of the cells that pass all filters, and a note on each filter that dropped cells.

    A filter whose column a file lacks keeps all cells, with a note.

    Args:
        obs: Table of the cells, with standardised labels.
        metrics: `cell_metrics` of the same cells.
        recipe: Names the filters.
        name: Name of the file in messages.

    Raises:
        KeyError: the recipe filters by assay, and the file has no assays.
        ValueError: an assay of the recipe is not a term, or ``is_primary_data`` has other values than true and false.
    """
    kept = np.ones(len(obs), dtype=np.bool_)
    notes = []
    for passes, what in _filters(obs, metrics, recipe, name):
        if passes is None:
            notes.append(what)
            continue
        n_dropped = int((kept & ~passes).sum())
        kept &= passes
        if n_dropped:
            notes.append(f"cells {what}, dropped: {n_dropped:,}")
    return kept, notes


def _filters(
    obs: pd.DataFrame, metrics: pd.DataFrame, recipe: Recipe, name: str
) -> Iterator[tuple[NDArray[np.bool_] | None, str]]:
    """Mask of the cells that pass each filter, and a description of the others; None and a note if not applicable."""
    if recipe.assays:
        if ASSAY not in obs:
            raise KeyError(
                f"{name} has no obs column {ASSAY!r}, by which the recipe filters; give it by a rule, as "
                f"constants: {{{ASSAY}: EFO:0009899}}, or from another column, as columns: {{assay: {ASSAY}}}"
            )
        yield obs[ASSAY].isin(with_descendants(recipe.assays)).to_numpy(), "of other assays"
    if recipe.primary_only and IS_PRIMARY in obs:
        yield _is_primary(obs[IS_PRIMARY], name), "of non-primary data"
    elif recipe.primary_only:
        yield None, f"no obs column {IS_PRIMARY!r}: primary_only has dropped nothing"
    n_genes, total = metrics["n_genes_by_counts"].to_numpy(), metrics["total_counts"].to_numpy()
    yield n_genes >= recipe.min_genes_per_cell, f"with fewer than {recipe.min_genes_per_cell:,} genes"
    yield total >= recipe.min_counts_per_cell, f"with fewer than {recipe.min_counts_per_cell:,} counts"
    if recipe.max_pct_mt is not None and PCT_MT not in metrics:
        yield None, "no gene has a mitochondrial symbol: max_pct_mt has dropped nothing"
    elif recipe.max_pct_mt is not None:
        yield (
            ~(metrics[PCT_MT].to_numpy() > recipe.max_pct_mt),
            f"with more than {recipe.max_pct_mt:g} % mitochondrial counts",
        )


def _is_primary(values: pd.Series, name: str) -> NDArray[np.bool_]:
    """``(n,)`` mask from a column of truth values."""
    parsed = {value: truth_of(value) for value in values.unique()}
    unclear = [value for value, is_primary in parsed.items() if is_primary is None]
    if unclear:
        raise ValueError(
            f"{name} has {unclear[0]!r} in obs[{IS_PRIMARY!r}], expected true or false; give it by a rule, as "
            f"constants: {{{IS_PRIMARY}: true}}, or leave primary_only out"
        )
    return values.map(parsed).to_numpy(np.bool_)


def with_descendants(assays: list[str]) -> set[str]:
    """Ids of assays and of all their descendants in EFO.

    Raises:
        ValueError: one is not a term.
    """
    ontologies = LABEL_COLUMNS[ASSAY].ontologies
    found: set[str] = set()
    for assay in assays:
        term = resolve(assay, ontologies).term
        if term == UNKNOWN:
            raise ValueError(f"assays of the recipe: {assay!r} is not a term of EFO; give an id or a name")
        found.update(cached_ontology(ontologies[0]).descendants(term, include_self=True))
    return found
