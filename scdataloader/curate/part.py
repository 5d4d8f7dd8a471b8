"""The cells of one organism in a file: looked at in one pass over blocks of them, written in the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scdataloader.curate.cells import ORGANISM, Cells, FileSource, constant, rows_of
from scdataloader.curate.filters import kept_cells
from scdataloader.curate.genes import Genes, match_genes
from scdataloader.curate.hooks import apply_hooks
from scdataloader.curate.labels import distinct_ids
from scdataloader.curate.outcome import Outcome
from scdataloader.curate.quality import IS_OUTLIER, JUDGED, OUTLIER_IN, cell_metrics, outliers
from scdataloader.curate.recipe import Recipe
from scdataloader.curate.writer import Writer, written

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
        StoreWriteError: the output cannot be written.
        Anything that `match_genes`, `kept_cells` or a hook raises.
    """
    source, recipe, outcome = part.source, part.recipe, part.outcome
    genes = match_genes(source.var, outcome.organism, recipe, source.name)
    obs, kept, judged = _judged(part, genes)
    rows, obs = part.rows[kept], obs[kept]
    genes, rare = _expressed(part, rows, genes)
    notes = (*genes.notes, *part.cells.notes, *judged, *rare)
    try:
        _require_size(len(rows), len(genes.var), recipe)
        with written(part.output, source.name, recipe.compression) as writer:
            _write(part, writer, genes, rows, obs)
            _require_size(writer.n_obs, len(writer.var), recipe)
            origin = {"source": outcome.source, "content": outcome.content, "recipe": outcome.recipe}
            writer.uns["curation"] = {**origin, "notes": np.array(notes, dtype=object)}
            made = writer.cells().obs
    except TooSmallError as error:
        return replace(outcome, status="dropped", reason=str(error), notes=notes)
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


def _judged(part: Part, genes: Genes) -> tuple[pd.DataFrame, NDArray[np.bool_], list[str]]:
    """The cells' table with their metrics, which of them are kept, and what is to be noted."""
    blocks = [cell_metrics(x, genes.mitochondrial) for _, x in _blocks(part, part.rows, genes)]
    metrics = pd.concat(blocks, ignore_index=True)
    obs = part.cells.obs.iloc[part.rows].copy()
    obs[ORGANISM] = constant(part.outcome.organism, len(obs))
    replaced = [name for name in JUDGED if name in obs]
    obs = obs.drop(columns=replaced)  # also those that nothing can be said of in their place
    for name in metrics:
        obs[name] = metrics[name].to_numpy()
    kept, notes = kept_cells(obs, metrics, part.recipe, part.source.name)
    found = np.full(len(obs), "", dtype=object)
    found[kept] = outliers(metrics[kept], part.recipe.n_mads)
    obs[IS_OUTLIER], obs[OUTLIER_IN] = found != "", pd.Categorical(found)
    n_outliers = int((found != "").sum())
    if replaced:
        notes.append(f"obs columns replaced, or dropped where nothing is known in their place: {', '.join(replaced)}")
    if part.recipe.drop_outliers:
        kept &= found == ""
    if n_outliers:
        notes.append(f"outliers, {'dropped' if part.recipe.drop_outliers else 'flagged'}: {n_outliers:,}")
    return obs, kept, notes


def _expressed(part: Part, rows: NDArray[np.int64], genes: Genes) -> tuple[Genes, list[str]]:
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


def _write(part: Part, writer: Writer, genes: Genes, rows: NDArray[np.int64], obs: pd.DataFrame) -> None:
    obsm = {key: rows_of(values, rows) for key, values in part.cells.obsm.items()}
    for place, x in _blocks(part, rows, genes):
        block = AnnData(x, obs.iloc[place], genes.var, obsm={key: rows_of(obsm[key], place) for key in obsm})
        writer.append(apply_hooks(part.recipe.after, block))


def _blocks(part: Part, rows: NDArray[np.int64], genes: Genes) -> Iterator[tuple[slice, csr_matrix]]:
    """Some of the part's cells in the genes of the output, and their place among ``rows``."""
    for place in places(len(rows)):
        yield place, genes.renumbered(part.source.read(rows[place]), part.source.name)
        part.source.release()
        part.advance(place.stop - place.start)


def _require_size(n_cells: int, n_genes: int, recipe: Recipe) -> None:
    for n, wanted, what in (
        (n_cells, recipe.min_cells_per_file, "cells"),
        (n_genes, recipe.min_genes_per_file, "genes"),
    ):
        if n < max(1, wanted):
            raise TooSmallError(f"{n:,} {what} are left, where at least {max(1, wanted):,} are wanted")
