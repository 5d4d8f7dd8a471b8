"""The cells of one organism in a file: looked at in one pass over blocks of them, written in the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from pandas import CategoricalDtype
from scipy.sparse import csr_matrix

from scdataloader.curation.cells import Cells, Extras, FileSource, constant, rows_of
from scdataloader.curation.filters import IS_OUTLIER, METRICS, OUTLIER_IN, cell_metrics, kept_cells, outliers
from scdataloader.curation.genes import CuratedGenes, match_genes, mitochondrial
from scdataloader.curation.hooks import apply_hooks
from scdataloader.curation.labels import distinct_ids, standardised
from scdataloader.curation.recipe import Recipe
from scdataloader.curation.report import Outcome
from scdataloader.curation.writer import Writer, canonical, written
from scdataloader.runtime.files import sync
from scdataloader.schema import ORGANISM

CELLS_PER_BLOCK = 2048
"""What is read at once, and what hooks get: with 10,000 values per cell some 160 MB."""

Advance = Callable[[int], None]
"""Told how many more cells a pass has seen."""


class TooSmallError(Exception):
    """Too little is left."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The cells of one organism."""

    source: FileSource
    """Where they lie."""
    cells: Cells
    """All cells of the file."""
    extras: Extras
    """What else is in the file."""
    rows: NDArray[np.int64]
    """``(n,)`` theirs, ascending."""
    recipe: Recipe
    """Of the file."""
    outcome: Outcome
    """What is known of them so far."""
    output: Path
    """The file to write."""
    advance: Advance
    """To be told of every pass."""


def curate_part(part: Part) -> Outcome:
    """Match the genes, judge the cells, and write what is kept.

    Raises:
        GeneOverlapError: too few genes are in the organism's table.
        WriteError: the output cannot be written.
        Anything that `match_genes`, `kept_cells` or a hook raises.
    """
    source, recipe, outcome = part.source, part.recipe, part.outcome
    genes = match_genes(source.var, outcome.organism, recipe, source.name)
    obs, named = _labelled(part)
    obs, kept, judged = _judged(part, genes, obs)
    rows, obs = part.rows[kept], obs[kept]
    genes, rare = _expressed(part, rows, genes)
    notes = (*genes.notes, *part.cells.notes, *named, *judged, *rare, *part.extras.notes)
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
        why = "; ".join([str(error), *(note for note in (*judged, *rare) if "dropped" in note)])
        return replace(outcome, status="dropped", reason=why, notes=notes)
    sync(part.output)
    return replace(
        outcome,
        status="kept",
        n_cells_out=len(made),
        n_genes_out=len(writer.var),
        output=part.output,
        labels={column: distinct_ids(made[column]) for column in recipe.labels if column in made},
        notes=notes,
    )


def places(n_cells: int) -> Iterator[slice]:
    """``range(n_cells)``, a block at a time."""
    return (slice(at, min(at + CELLS_PER_BLOCK, n_cells)) for at in range(0, n_cells, CELLS_PER_BLOCK))


def _labelled(part: Part) -> tuple[pd.DataFrame, list[str]]:
    """The table of the part's cells with standardised labels, and what is to be noted."""
    obs, organism, notes = part.cells.obs.iloc[part.rows].copy(), part.outcome.organism, []
    obs[ORGANISM] = constant(organism, len(obs))
    for column, ontologies in part.recipe.labels.items():
        if column in obs:
            obs[column], changed = standardised(obs[column], ontologies, organism)
            notes += [f"{column}: {note}" for note in changed]
    return obs, notes


def _judged(part: Part, genes: CuratedGenes, obs: pd.DataFrame) -> tuple[pd.DataFrame, NDArray[np.bool_], list[str]]:
    """The table with metrics of the cells, which of them are kept, and what is to be noted."""
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
        notes.append(f"obs columns replaced, or left out where nothing is known in their place: {', '.join(replaced)}")
    if part.recipe.drop_outliers:
        kept &= found == ""
    if n_outliers:
        notes.append(f"outliers, {'dropped' if part.recipe.drop_outliers else 'flagged'}: {n_outliers:,}")
    return obs, kept, notes


def _with_metrics(obs: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """A table with these metrics, and no others of their names."""
    obs = obs.drop(columns=[name for name in METRICS if name in obs])
    for name in metrics:
        obs[name] = metrics[name].to_numpy()
    return obs


def _expressed(part: Part, rows: NDArray[np.int64], genes: CuratedGenes) -> tuple[CuratedGenes, list[str]]:
    """The genes that enough of the cells ``rows`` express, and a note on the others."""
    n_wanted = part.recipe.min_cells_per_gene
    if not n_wanted:
        return genes, []
    n_cells = np.zeros(len(genes.var), np.int64)
    for _, x in _blocks(part, rows, genes):
        n_cells += np.bincount(x.indices, minlength=len(n_cells))
    enough = n_cells >= n_wanted
    notes = [f"genes in fewer than {n_wanted:,} cells, dropped: {int((~enough).sum()):,}"] if not enough.all() else []
    return genes.only(enough), notes


def _write(part: Part, writer: Writer, genes: CuratedGenes, rows: NDArray[np.int64], obs: pd.DataFrame) -> None:
    obsm = {key: rows_of(values, rows) for key, values in part.cells.obsm.items()}
    for place, x in _blocks(part, rows, genes):
        block = AnnData(x, obs.iloc[place], genes.var, obsm={key: rows_of(obsm[key], place) for key in obsm})
        if part.recipe.after:
            block = apply_hooks(part.recipe.after, block)
            block = block.copy() if block.is_view else block
            block.obs = _with_categories(block.obs, obs)
        if part.recipe.after or part.recipe.min_cells_per_gene:  # the genes or the counts are others by now
            block.X = canonical(block.X)
            block.obs = _with_metrics(block.obs, cell_metrics(block.X, mitochondrial(block.var)))
        writer.append(block)


def _with_categories(made: pd.DataFrame, obs: pd.DataFrame) -> pd.DataFrame:
    """A block's table, with the categories of the whole in place of those that are left in the block, and their order.

    AnnData takes away categories that a selection of cells does not have, and blocks could not be put together again.
    """
    for column in made.columns.intersection(obs.columns):
        now, before = made[column].dtype, obs[column].dtype
        if not (isinstance(now, CategoricalDtype) and isinstance(before, CategoricalDtype)):
            continue
        if now.categories.isin(before.categories).all():
            made[column] = made[column].cat.set_categories(before.categories, ordered=before.ordered)
    return made


def _require_ids(part: Part, made: pd.DataFrame) -> None:
    """Refuse labels that hooks have made and that are no ids."""
    for column, ontologies in part.recipe.labels.items() if part.recipe.after else ():
        if column in made:
            _, changes = standardised(made[column], ontologies, part.outcome.organism)
            if changes:
                raise ValueError(
                    f"{part.source.name}: hooks that come after leave labels in obs[{column!r}] that are no ids of "
                    f"current terms ({'; '.join(changes)}); have them give ids, or do it in a hook that comes before"
                )


def _blocks(part: Part, rows: NDArray[np.int64], genes: CuratedGenes) -> Iterator[tuple[slice, csr_matrix]]:
    """Some of the part's cells in the genes of the output, and their place among ``rows``."""
    for place in places(len(rows)):
        yield place, genes.renumber(part.source.read(rows[place]), part.source.name)
        part.source.release()
        part.advance(place.stop - place.start)


def _require_size(n_cells: int, n_genes: int, recipe: Recipe) -> None:
    for n, wanted, what in (
        (n_cells, recipe.min_cells_per_file, "cells"),
        (n_genes, recipe.min_genes_per_file, "genes"),
    ):
        if n < max(1, wanted):
            raise TooSmallError(f"{n:,} {what} are left, where at least {max(1, wanted):,} are wanted")
