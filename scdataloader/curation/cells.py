"""The cells of a file: their table with standard columns and labels, and the organisms they are of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata.io import read_elem
from numpy.typing import NDArray

from scdataloader.curation.labels import shown, with_values
from scdataloader.curation.recipe import Recipe, Rule
from scdataloader.genes.alignment import split_organisms
from scdataloader.genes.names import examples, gene_ids
from scdataloader.genes.organisms import infer_organism, normalise_organism
from scdataloader.schema import ORGANISM_KEYS
from scdataloader.sources import H5adSource, ZarrSource
from scdataloader.sources.anndata.file import AnnDataFile
from scdataloader.sources.anndata.layout import is_array, lookup, old_formats

FileSource = H5adSource | ZarrSource


@dataclass(frozen=True, kw_only=True)
class Cells:
    """All cells of a file, before any filter."""

    obs: pd.DataFrame
    """Every column of the file, with those of the rule; names are text."""
    obsm: dict[str, Any]
    """Further values of each cell."""
    organisms: list[tuple[str, NDArray[np.int64]]]
    """The organisms, each with the rows of its cells."""
    notes: tuple[str, ...]
    """What was changed."""


def read_cells(source: FileSource, recipe: Recipe) -> Cells:
    """Read the table of a file's cells, and do to it what the rule says.

    Args:
        source: the file.
        recipe: of the file.

    Raises:
        KeyError: a column that the rule names, or that is required, is missing.
        ValueError: there are no cells, their names are not unique, or they are of no known organism, or of several.
    """
    obs = named_obs(source)
    obs = obs.copy(deep=False)
    notes = _follow(recipe.rule, obs, source.name)
    for column in recipe.required:
        if column not in obs:
            raise KeyError(
                f"{_lacks(source.name, column, obs.columns)}, which is required; name the column that has it in a rule"
            )
    organisms = _organisms(source, obs, recipe)
    return Cells(obs=obs, obsm=read_obsm(source), organisms=organisms, notes=tuple(notes))


def named_obs(source: FileSource) -> pd.DataFrame:
    """The table of a file's cells as it is, but for their names, which are made text.

    Raises:
        ValueError: there are no cells, or their names are not unique.
    """
    if not source.n_obs:
        raise ValueError(f"{source.name} has no cells")
    obs = source.whole_obs()
    obs.index = obs.index.astype(str)
    again = obs.index[obs.index.duplicated()]
    if len(again):
        raise ValueError(
            f"{source.name} has {len(again):,} cells whose names in obs are those of others ({examples(list(again))}); "
            "make them unique, as with AnnData.obs_names_make_unique, and write the file again"
        )
    return obs


def constant(value: str, n: int) -> pd.Categorical[Any]:
    """A column with one value for ``n`` cells."""
    return pd.Categorical.from_codes(np.zeros(n, np.int64), categories=pd.Index([value]))


def read_obsm(source: FileSource) -> dict[str, Any]:
    """All of a file's obsm."""
    file = AnnDataFile(source.path)
    try:
        node = lookup(file.root, "obsm")
        if node is None or is_array(node):  # an array of records is an encoding of long ago
            return {}
        with old_formats():
            return {key: read_elem(node[key]) for key in node}
    finally:
        file.close()


def rows_of(values: Any, rows: NDArray[np.int64] | slice) -> Any:
    """Some rows of a value of obsm: an array, sparse or not, or a table."""
    return values.iloc[rows] if isinstance(values, pd.DataFrame) else values[rows]


def _follow(rule: Rule, obs: pd.DataFrame, name: str) -> list[str]:
    """Make the columns of a rule in ``obs``; notes on what it says of no cell."""
    notes = []
    for column, standard in rule.columns.items():
        if column not in obs:
            raise KeyError(f"{_lacks(name, column, obs.columns)}, which its rule makes {standard!r} of")
        obs[standard] = obs[column]
    for column, put in rule.values.items():  # noqa: PD011 (of a rule, not of a table)
        if column not in obs:
            raise KeyError(f"{_lacks(name, column, obs.columns)}, of which its rule replaces values")
        obs[column], absent = with_values(obs[column], put)
        if absent:
            notes.append(f"{column}: values of the rule that no cell has: {len(absent):,} ({shown(map(repr, absent))})")
    for column, value in rule.constants.items():
        obs[column] = constant(value, len(obs))
    return notes


def _organisms(source: FileSource, obs: pd.DataFrame, recipe: Recipe) -> list[tuple[str, NDArray[np.int64]]]:
    every = np.arange(len(obs))
    found = _stated(source, obs, recipe)
    if len(found) > 1 and recipe.mixed_organisms == "refuse":
        parts = ", ".join(f"{organism} ({0 if rows is None else len(rows):,} cells)" for organism, rows in found)
        raise ValueError(
            f"{source.name} mixes organisms: {parts}; to have an output for each, give mixed_organisms: split"
        )
    return [(organism, every if rows is None else rows) for organism, rows in found]


def _stated(source: FileSource, obs: pd.DataFrame, recipe: Recipe) -> list[tuple[str, NDArray[np.int64] | None]]:
    """The organisms that the rule, obs, uns or the gene ids state, with their rows where there are several."""
    if recipe.rule.organism is not None:
        return [(normalise_organism(recipe.rule.organism), None)]
    for column in ORGANISM_KEYS:
        if column in obs and not obs[column].isna().all():
            return split_organisms(obs[column].astype("category"), source.name, column)
    if source.uns_organism:
        return [(normalise_organism(source.uns_organism), None)]
    inferred = infer_organism(gene_ids(source.var, column=recipe.rule.genes, name=source.name))
    if inferred is None:
        raise ValueError(
            f"{source.name} does not say its organism, in obs, uns or gene ids; say it in a rule, as rules: "
            f"{{{source.name!r}: {{organism: human}}}}"
        )
    return [(inferred, None)]


def _lacks(name: str, column: str, columns: Iterable[object]) -> str:
    known = [str(other) for other in columns]
    near = difflib.get_close_matches(column, known, n=3, cutoff=0.5) or known[:10]
    return f"{name} has no obs column {column!r} (the nearest are {', '.join(near) or 'none'})"
