"""The classes of a weighting in the tree of their ontology: as a plain table, and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from scdataloader.labels.hierarchy import Hierarchy
from scdataloader.ontology.ontology import Ontology
from scdataloader.sampling.tree import Tree, with_below
from scdataloader.sampling.weighting import Weighting


def tree_table(weighting: Weighting, ontology: Ontology) -> pd.DataFrame:
    """One row for each term that is a class or where the tree branches, those below it after it, most cells first.

    ``level`` counts the rows above it that it is below. A term with several parents stands below the one that
    `Tree.parents` takes. ``cells`` can be drawn, ``asked`` is the share of the draws and ``draws`` how many these are
    in an epoch; the three ``… below`` are of the term and all that stands below it.

    Raises:
        ValueError: the weighting has no tree: not just one of its columns has a hierarchy.
    """
    tree = weighting.tree
    if tree is None:
        raise ValueError(
            f"there is no tree to show of {weighting.sampling.columns}: just one of the columns must have a hierarchy"
        )
    counts = weighting.weights.counts[:-1]
    parents = tree.parents(counts)
    own = {
        "cells": tree.own(counts),
        "asked": tree.own(weighting.weights.mass[:-1]),
        "draws": tree.own(weighting.weights.mass[:-1] * weighting.num_samples),
    }
    sums = {name: with_below(values, parents) for name, values in own.items()}
    order, levels = _listed(tree, parents, sums["cells"])
    terms = [tree.graph.terms[place] for place in order]
    table = {"term": terms, "name": [ontology.label(term) for term in terms], "level": levels}
    for name in own:
        table |= {name: own[name][order], f"{name} below": sums[name][order]}
    return pd.DataFrame(table).astype({"cells": np.int64, "cells below": np.int64})


def show_tree(console: Console, weighting: Weighting, hierarchies: Mapping[str, Hierarchy]) -> None:
    """Print the tree.

    Raises:
        ValueError: see `tree_table`.
    """
    columns = [column for column in weighting.sampling.columns if column in hierarchies]
    if weighting.tree is None or not columns:
        raise ValueError(
            f"there is no tree to show of {weighting.sampling.columns}: name one of the columns in --hierarchies"
        )
    frame = tree_table(weighting, hierarchies[columns[0]].ontology)
    title = f"{columns[0]}: cells and draws of each term, and with all that is below it"
    table = Table(title=title, title_justify="left")
    table.add_column("term", overflow="fold")
    names = ("cells", "with below", "asked", "with below", "draws per epoch", "with below")
    for name in names:
        table.add_column(name, justify="right")
    for row in frame.to_dict("records"):
        numbers = [
            _shown(row[f"{name}{which}"], name) for name in ("cells", "asked", "draws") for which in ("", " below")
        ]
        table.add_row("  " * int(row["level"]) + f"{row['name']} ({row['term']})", *numbers)
    console.print(table)


def show_mapped(console: Console, hierarchy: Hierarchy) -> None:
    """Print which labels are encoded as another term: rolled up, deprecated, or written otherwise."""
    taken: dict[str, list[str]] = {}
    for label, term in hierarchy.encoder.mapped.items():
        name = f" ({hierarchy.ontology.label(label)})" if label in hierarchy.ontology else ""
        taken.setdefault(term, []).append(f"{label}{name}")
    for term, labels in sorted(taken.items()):
        line = f"{hierarchy.encoder.column}: {', '.join(labels)} → {term} ({hierarchy.ontology.label(term)})"
        console.print(line, markup=False, soft_wrap=True)


def _listed(tree: Tree, parents: NDArray[np.int64], cells_below: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """The places of the terms to list, in order, and how far in each stands."""
    children: dict[int, list[int]] = {place: [] for place in range(-1, len(parents))}
    for place, above in enumerate(parents.tolist()):
        children[above].append(place)
    is_class = np.bincount(tree.places, minlength=len(parents)) > 0
    has_class = with_below(is_class.astype(np.float64), parents) > 0
    order: list[int] = []
    levels: list[int] = []
    waiting = [(place, 0) for place in children[-1]]
    waiting.sort(key=lambda found: (cells_below[found[0]], -found[0]))
    while waiting:
        place, level = waiting.pop()
        below = [child for child in children[place] if has_class[child]]
        if is_class[place] or len(below) > 1:
            order.append(place)
            levels.append(level)
            level += 1
        below.sort(key=lambda child: (cells_below[child], -child))
        waiting += [(child, level) for child in below]
    return order, levels


def _shown(value: float, name: str) -> str:
    if not value:
        return ""
    return {"cells": f"{value:,.0f}", "asked": f"{value:.2%}", "draws": f"{value:,.1f}"}[name]
