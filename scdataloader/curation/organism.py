"""Curation of the cells of one organism in a file: one pass to measure and filter, one to write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from pandas import CategoricalDtype
from scipy.sparse import csr_matrix

from scdataloader.curation.cells import Cells, Extras, constant, rows_of
from scdataloader.curation.filters import IS_OUTLIER, METRICS, OUTLIER_IN, cell_metrics, kept_cells, outliers
from scdataloader.curation.genes import CuratedGenes, match_genes, mitochondrial
from scdataloader.curation.hooks import apply_hooks
from scdataloader.curation.labels import distinct_ids, standardised
from scdataloader.curation.recipe import Recipe
from scdataloader.curation.report import Outcome
from scdataloader.curation.writer import Writer, canonical, written
from scdataloader.runtime.files import sync
from scdataloader.runtime.progress import Advance
from scdataloader.schema import ORGANISM
from scdataloader.sources import AnnDataSource

CELLS_PER_BLOCK = 2048
"""Cells that are read at once and passed to hooks: 160 MB with 10,000 values per cell."""


class TooSmallError(Exception):
    """Too few cells or genes are left."""


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """The cells of one organism in a file."""

    source: AnnDataSource
    cells: Cells
    """All cells of the file."""
    extras: Extras
    rows: NDArray[np.int64]
    """``(n,)`` rows of the organism's cells, ascending."""
    recipe: Recipe
    """Recipe of the file."""
    outcome: Outcome
    """The outcome as far as it is known."""
    output: Path
    """The file to write."""
    advance: Advance
    """Called with the number of cells of each block, in every pass."""


def curate_part(part: FilePart) -> Outcome:
    """Match the genes, filter the cells and write the curated file.

    Raises:
        GeneOverlapError: the file shares too few genes with the gene table.
        WriteError: the output cannot be written.
        Exception: anything that `match_genes`, `kept_cells` or a hook raises.
    """
    source, recipe, outcome = part.source, part.recipe, part.outcome
    genes = match_genes(source.var, outcome.organism, recipe, source.name)
    obs, of_labels, lost = _standardise_labels(part)
    obs, kept, of_cells = _filter_cells(part, genes, obs)
    rows, obs = part.rows[kept], obs[kept]
    genes, of_genes = _filter_genes(part, rows, genes)
    notes = (*genes.notes, *part.cells.notes, *of_labels, *of_cells, *of_genes, *part.extras.notes)
    try:
        _require_size(len(rows), len(genes.var), recipe)
        with written(part.output, source.name, recipe.compression) as writer:
            _write(part, writer, genes, rows, obs)
            _require_size(writer.n_obs, len(writer.var), recipe)
            _require_ids(part, writer.cells().obs)
            origin = {"source": outcome.source, "content": outcome.content, "recipe": outcome.recipe}
            writer.uns |= {**part.extras.uns, "curation": {**origin, "notes": np.array(notes, dtype=object)}}
            made = writer.cells().obs
    except TooSmallError as error:
        why = "; ".join([str(error), *(note for note in (*of_cells, *of_genes) if "dropped" in note)])
        return replace(outcome, status="dropped", reason=why, notes=notes)
    sync(part.output)
    return replace(
        outcome,
        status="kept",
        n_cells_out=len(made),
        n_genes_out=len(writer.var),
        output=part.output,
        labels={column: distinct_ids(made[column]) for column in recipe.labels if column in made},
        lost=lost,
        notes=notes,
    )


def cell_blocks(n_cells: int) -> Iterator[slice]:
    """Slices of `CELLS_PER_BLOCK` cells that cover ``range(n_cells)``."""
    return (slice(at, min(at + CELLS_PER_BLOCK, n_cells)) for at in range(0, n_cells, CELLS_PER_BLOCK))


def _standardise_labels(part: FilePart) -> tuple[pd.DataFrame, list[str], dict[str, dict[str, int]]]:
    """The obs of the part with standardised labels, notes, and `Outcome.lost`."""
    obs, organism, notes, lost = part.cells.obs.iloc[part.rows].copy(), part.outcome.organism, [], {}
    obs[ORGANISM] = constant(organism, len(obs))
    for column, ontologies in part.recipe.labels.items():
        if column in obs:
            obs[column], changes, lost[column] = standardised(obs[column], ontologies, organism)
            notes += [f"{column}: {note}" for note in changes]
    return obs, notes, {column: labels for column, labels in lost.items() if labels}


def _filter_cells(
    part: FilePart, genes: CuratedGenes, obs: pd.DataFrame
) -> tuple[pd.DataFrame, NDArray[np.bool_], list[str]]:
    """The obs with quality metrics, ``(n,)`` which cells are kept, and notes."""
    is_mt = mitochondrial(genes.var)
    metrics = pd.concat([cell_metrics(x, is_mt) for _, x in _blocks(part, part.rows, genes)], ignore_index=True)
    replaced = [name for name in (*METRICS, IS_OUTLIER, OUTLIER_IN) if name in obs]
    obs = _with_metrics(obs, metrics)
    kept, notes = kept_cells(obs, metrics, part.recipe, part.source.name)
    found = np.full(len(obs), "", dtype=object)
    found[kept] = outliers(metrics[kept], part.recipe.n_mads)
    obs[IS_OUTLIER], obs[OUTLIER_IN] = found != "", pd.Categorical(found)
    n_outliers = int((found != "").sum())
    if replaced:
        notes.append(f"obs columns of earlier metrics, replaced or removed: {', '.join(replaced)}")
    if part.recipe.drop_outliers:
        kept &= found == ""
    if n_outliers:
        notes.append(f"outliers, {'dropped' if part.recipe.drop_outliers else 'flagged'}: {n_outliers:,}")
    return obs, kept, notes


def _with_metrics(obs: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """The obs with these metrics instead of all columns that are called like metrics."""
    obs = obs.drop(columns=[name for name in METRICS if name in obs])
    for name in metrics:
        obs[name] = metrics[name].to_numpy()
    return obs


def _filter_genes(part: FilePart, rows: NDArray[np.int64], genes: CuratedGenes) -> tuple[CuratedGenes, list[str]]:
    """The genes that enough of the cells ``rows`` express, and a note on the others."""
    min_cells = part.recipe.min_cells_per_gene
    if not min_cells:
        return genes, []
    n_cells = np.zeros(len(genes.var), np.int64)
    for _, x in _blocks(part, rows, genes):
        n_cells += np.bincount(x.indices, minlength=len(n_cells))
    enough = n_cells >= min_cells
    notes = [f"genes in fewer than {min_cells:,} cells, dropped: {int((~enough).sum()):,}"] if not enough.all() else []
    return genes.only(enough), notes


def _write(part: FilePart, writer: Writer, genes: CuratedGenes, rows: NDArray[np.int64], obs: pd.DataFrame) -> None:
    obsm = {key: rows_of(values, rows) for key, values in part.cells.obsm.items()}
    for place, x in _blocks(part, rows, genes):
        block = AnnData(x, obs.iloc[place], genes.var, obsm={key: rows_of(obsm[key], place) for key in obsm})
        if part.recipe.after:
            block = apply_hooks(part.recipe.after, block)
            block = block.copy() if block.is_view else block
            block.obs = _with_categories(block.obs, obs)
        if part.recipe.after or part.recipe.min_cells_per_gene:  # genes or counts have changed
            block.X = canonical(block.X)
            block.obs = _with_metrics(block.obs, cell_metrics(block.X, mitochondrial(block.var)))
        writer.append(block)


def _with_categories(made: pd.DataFrame, obs: pd.DataFrame) -> pd.DataFrame:
    """The obs of a block with all categories of the file, in their order, so that blocks can be concatenated.

    AnnData removes categories that a selection of cells does not have.
    """
    for column in made.columns.intersection(obs.columns):
        now, before = made[column].dtype, obs[column].dtype
        if not (isinstance(now, CategoricalDtype) and isinstance(before, CategoricalDtype)):
            continue
        if now.categories.isin(before.categories).all():
            made[column] = made[column].cat.set_categories(before.categories, ordered=before.ordered)
    return made


def _require_ids(part: FilePart, made: pd.DataFrame) -> None:
    """Refuse labels from hooks that are not ids of current terms."""
    for column, ontologies in part.recipe.labels.items() if part.recipe.after else ():
        if column in made:
            notes = standardised(made[column], ontologies, part.outcome.organism).notes
            if notes:
                raise ValueError(
                    f"{part.source.name}: hooks in after leave labels in obs[{column!r}] that are not ids of current "
                    f"terms ({'; '.join(notes)}); assign ids, or move the hook to before"
                )


def _blocks(part: FilePart, rows: NDArray[np.int64], genes: CuratedGenes) -> Iterator[tuple[slice, csr_matrix]]:
    """Cells ``rows`` in the genes of the output, block by block, each with its slice of ``rows``."""
    for place in cell_blocks(len(rows)):
        yield place, genes.renumber(part.source.read(rows[place]), part.source.name)
        part.source.release()
        part.advance(place.stop - place.start)


def _require_size(n_cells: int, n_genes: int, recipe: Recipe) -> None:
    for n, n_min, what in (
        (n_cells, max(1, recipe.min_cells_per_file), "cells"),
        (n_genes, max(1, recipe.min_genes_per_file), "genes"),
    ):
        if n < n_min:
            raise TooSmallError(f"{n:,} {what} are left, fewer than the minimum of {n_min:,}")
