"""Cells of a file: obs with standard columns, obsm, organisms; and what else of the file is kept or left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.curation.labels import with_values
from scdataloader.curation.recipe import Recipe, Rule
from scdataloader.errors import SourceFormatError
from scdataloader.genes.features import genes_of
from scdataloader.genes.names import gene_names
from scdataloader.genes.organisms import UNSTATED, find_organisms, infer_organism, remedy
from scdataloader.runtime.messages import shown, suggestion
from scdataloader.schema import ORGANISM_KEYS
from scdataloader.sources import AnnDataSource
from scdataloader.sources.anndata.layout import matrix_names
from scdataloader.sources.anndata.nodes import Node, is_array, lookup, read_value

MAX_CHARACTERS = 10_000
"""Longer texts of ``uns`` are left out."""
_N_NAMED = 8

PlainValue = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Cells:
    """All cells of a file, before any filter."""

    obs: pd.DataFrame
    """Every column of the file and of the rule; names are text."""
    obsm: dict[str, Any]
    """Arrays, sparse matrices or tables."""
    organisms: list[tuple[str, NDArray[np.int64]]]
    """NCBITaxon ids, each with the rows of its cells."""
    notes: tuple[str, ...]
    """Changes."""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Content of a file besides its counts and tables."""

    uns: dict[str, PlainValue]
    """Texts, numbers and booleans, for the output."""
    notes: tuple[str, ...]
    """What is left out, in one line, if anything is."""


def read_cells(source: AnnDataSource, recipe: Recipe) -> Cells:
    """Read the cells of a file and apply its rule.

    Args:
        source: The file.
        recipe: Recipe of the file.

    Raises:
        KeyError: a column that the rule names, or that is required, is missing.
        ValueError: there are no cells, their names are not unique, or their organism is unknown or not unique.
    """
    obs = named_obs(source)
    obs = obs.copy(deep=False)
    notes = _apply(recipe.rule, obs, source.name)
    for column in recipe.required:
        if column not in obs:
            raise KeyError(
                f"{_lacks(source.name, column, obs.columns)}, which is required; a rule can make it from another column"
            )
    organisms = _organisms(source, obs, recipe)
    return Cells(obs=obs, obsm=read_obsm(source), organisms=organisms, notes=tuple(notes))


def named_obs(source: AnnDataSource) -> pd.DataFrame:
    """The obs of a file, with its names converted to text.

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
            f"{source.name} has {len(again):,} cells whose names in obs occur before ({shown(again)}); make them "
            "unique, e.g. with AnnData.obs_names_make_unique, and write the file again"
        )
    return obs


def constant(value: str, n: int) -> pd.Categorical[Any]:
    """A column of one value for ``n`` cells."""
    return pd.Categorical.from_codes(np.zeros(n, np.int64), categories=pd.Index([value]))


def read_obsm(source: AnnDataSource) -> dict[str, Any]:
    """All of a file's obsm."""
    with source.opened() as root:
        node = lookup(root, "obsm")
        if node is None or is_array(node):  # an array of records is an old encoding
            return {}
        return {key: read_value(root, f"obsm/{key}") for key in node}


def read_extras(source: AnnDataSource) -> Extras:
    """Read the plain values of ``uns``, and list what the output leaves out."""
    with source.opened() as root:
        values = _plain_values(root)
        left_out = [_listed(group, names) for group, names in _left_out(root, source.counts, values)]
    # the organism is in the output's obs, where a rule may have corrected it
    uns = {key: value for key, value in values.items() if key not in ORGANISM_KEYS}
    return Extras(uns=uns, notes=(f"left out: {', '.join(left_out)}",) if left_out else ())


def rows_of(values: Any, rows: NDArray[np.int64] | slice) -> Any:
    """Rows of a value of obsm: an array, a sparse matrix or a table."""
    return values.iloc[rows] if isinstance(values, pd.DataFrame) else values[rows]


def _apply(rule: Rule, obs: pd.DataFrame, name: str) -> list[str]:
    """Add the columns of a rule to ``obs``; returns notes on values that no cell has."""
    notes = []
    for column, standard in rule.columns.items():
        if column not in obs:
            raise KeyError(f"{_lacks(name, column, obs.columns)}, from which its rule makes {standard!r}")
        obs[standard] = obs[column]
    for column, put in rule.values.items():  # noqa: PD011 (of a rule, not of a table)
        if column not in obs:
            raise KeyError(f"{_lacks(name, column, obs.columns)}, whose values its rule replaces")
        obs[column], absent = with_values(obs[column], put)
        if absent:
            notes.append(f"{column}: values of the rule that no cell has: {len(absent):,} ({shown(map(repr, absent))})")
    for column, value in rule.constants.items():
        obs[column] = constant(value, len(obs))
    return notes


def _organisms(source: AnnDataSource, obs: pd.DataFrame, recipe: Recipe) -> list[tuple[str, NDArray[np.int64]]]:
    """The organisms, each with the row numbers of its cells."""
    found = find_organisms(
        source.name,
        given=recipe.rule.organism,
        obs=((column, obs[column]) for column in ORGANISM_KEYS if column in obs),
        uns=lambda: source.organism,
        by_ids=lambda: infer_organism(
            gene_names(genes_of(source.var, source.name)[0], column=recipe.rule.genes, source=source.name)
        ),
    )
    if found[0][0] == UNSTATED:
        raise ValueError(
            f"no organism found for {source.name} (looked in obs, uns and gene ids); {remedy(source.name)}"
        )
    if len(found) > 1 and recipe.mixed_organisms == "refuse":
        parts = ", ".join(f"{organism} ({0 if rows is None else len(rows):,} cells)" for organism, rows in found)
        raise ValueError(f"{source.name} mixes organisms: {parts}; mixed_organisms: split writes one output for each")
    return [(organism, np.arange(len(obs)) if rows is None else rows) for organism, rows in found]


def _lacks(name: str, column: str, columns: Iterable[object]) -> str:
    return f"{name} has no obs column {column!r} ({suggestion(column, columns)})"


def _plain_values(root: Node) -> dict[str, PlainValue]:
    found = {key: _plain_value(root, f"uns/{key}") for key in _names_in(root, "uns") or ()}
    return {key: value for key, value in found.items() if value is not None}


def _plain_value(root: Node, location: str) -> PlainValue | None:
    """A number, a boolean or a text of up to `MAX_CHARACTERS`; None for anything else, or if it cannot be read."""
    try:
        node = lookup(root, location)
        if node is None or not is_array(node) or node.shape != ():
            return None
        value = np.asarray(read_value(root, location)).item()
    except SourceFormatError:
        return None
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:  # an unknown encoding
            return None
    if isinstance(value, str):
        return value if len(value) <= MAX_CHARACTERS else None
    return value if isinstance(value, bool | int | float) else None


def _left_out(root: Node, counts: str, values: dict[str, PlainValue]) -> Iterator[tuple[str, Sequence[str]]]:
    """Groups that the output does not have, each with the names in it."""
    matrices = matrix_names(root)
    yield from ((key, ()) for key in ("X", "raw") if key in matrices and key != counts)
    taken = {"uns": {*values, "curation"}, "layers": {counts.removeprefix("layers/")}}
    for group in ("layers", "obsp", "varm", "varp", "uns"):
        there = _names_in(root, group)
        names = sorted(set(there or ()) - taken.get(group, set()))
        if names or there is None:
            yield group, names


def _names_in(root: Node, group: str) -> Sequence[str] | None:
    """Names in a group, if there is one; None for what is there and is not a group, or cannot be opened."""
    try:
        node = lookup(root, group)
    except SourceFormatError:
        return None
    return None if node is not None and is_array(node) else list(node or ())


def _listed(group: str, names: Sequence[str]) -> str:
    more = [f"and {len(names) - _N_NAMED:,} more"] if len(names) > _N_NAMED else []
    return f"{group} ({', '.join([*names[:_N_NAMED], *more])})" if names else group
