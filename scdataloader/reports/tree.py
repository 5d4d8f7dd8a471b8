"""Sampled classes in the tree of their ontology, as a data frame and on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from scdataloader.labels.hierarchy import Hierarchy
from scdataloader.ontology.ontology import Ontology
from scdataloader.protocols import DrawnClasses, Sampler, TrainingCells
from scdataloader.sampling.samplers import AFTER_CURRICULUM
from scdataloader.sampling.weights import Tree, class_tree, with_below


def tree_table(tree: Tree, ontology: Ontology, drawn: DrawnClasses, num_samples: int) -> pd.DataFrame:
    """One row per term that is a class or a branch of the tree, followed by the terms below it, most cells first.

    ``level`` is the number of rows that the term is below. A term with several parents is placed below that of
    `Tree.parents`. ``cells`` can be drawn, ``target`` is their target share of the draws and ``draws`` the expected
    draws of an epoch of ``num_samples``; the columns ``… below`` are sums over the term and all terms below it.
    """
    counts = drawn.sizes[:-1]
    target = drawn.target_shares(AFTER_CURRICULUM)[:-1]
    parents = tree.parents(counts)
    own = {"cells": tree.own(counts), "target": tree.own(target), "draws": tree.own(target * num_samples)}
    sums = {name: with_below(values, parents) for name, values in own.items()}
    order, levels = _listed(tree, parents, sums["cells"])
    terms = [tree.graph.terms[place] for place in order]
    table = {"term": terms, "name": [ontology.label(term) for term in terms], "level": levels}
    for name in own:
        table |= {name: own[name][order], f"{name} below": sums[name][order]}
    return pd.DataFrame(table).astype({"cells": np.int64, "cells below": np.int64})


def show_tree(
    console: Console, cells: TrainingCells, columns: Sequence[str], drawn: DrawnClasses, sampler: Sampler
) -> None:
    """Print the classes of ``columns`` in the tree of their ontology.

    Raises:
        ValueError: not exactly one of the columns has a hierarchy.
    """
    tree = class_tree(cells, columns)
    if tree is None:
        raise ValueError(f"the classes of {columns} are not in one ontology; name one of the columns in --hierarchies")
    column = next(column for column in columns if column in cells.hierarchies)
    frame = tree_table(tree, cells.hierarchies[column].ontology, drawn, sampler.num_samples)
    title = f"{column}: cells and draws of each term, alone and with all terms below it"
    table = Table(title=title, title_justify="left")
    table.add_column("term", overflow="fold")
    names = ("cells", "with below", "target", "with below", "draws per epoch", "with below")
    for name in names:
        table.add_column(name, justify="right")
    for row in frame.to_dict("records"):
        numbers = [
            _shown(row[f"{name}{which}"], name) for name in ("cells", "target", "draws") for which in ("", " below")
        ]
        table.add_row("  " * int(row["level"]) + f"{row['name']} ({row['term']})", *numbers)
    console.print(table)


def show_mapped(console: Console, hierarchy: Hierarchy) -> None:
    """Print the labels that are encoded as another term: rolled up, deprecated, or written differently."""
    taken: dict[str, list[str]] = {}
    for label, term in hierarchy.encoder.mapped.items():
        name = f" ({hierarchy.ontology.label(label)})" if label in hierarchy.ontology else ""
        taken.setdefault(term, []).append(f"{label}{name}")
    for term, labels in sorted(taken.items()):
        line = f"{hierarchy.encoder.column}: {', '.join(labels)} → {term} ({hierarchy.ontology.label(term)})"
        console.print(line, markup=False, soft_wrap=True)


def _listed(tree: Tree, parents: NDArray[np.int64], cells_below: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Indices of the terms to list, in order, and their levels."""
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
    return {"cells": f"{value:,.0f}", "target": f"{value:.2%}", "draws": f"{value:,.1f}"}[name]
