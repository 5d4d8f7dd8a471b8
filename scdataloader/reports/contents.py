"""Contents of a report: everything that its page shows, as values of JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.protocols import DescribesClasses, DrawnClasses, Sampler, SamplingPlan, TrainingCells
from scdataloader.reports.leaks import find_leaks
from scdataloader.reports.runs import read_run
from scdataloader.reports.sampled import cell_sizes, gene_overlap
from scdataloader.reports.tables import source_table
from scdataloader.reports.tree import tree_table
from scdataloader.runtime.messages import counted
from scdataloader.sampling.options import Sampling, plan_columns
from scdataloader.sampling.samplers import AFTER_CURRICULUM
from scdataloader.sampling.splits import Splits
from scdataloader.sampling.tally import Tally
from scdataloader.sampling.training_cells import CollectionCells
from scdataloader.sampling.weights import Tree, cell_factors, class_tree

if TYPE_CHECKING:
    from scdataloader.collection.collection import Collection

N_ROWS = 1000
"""Sources, and labels of a column, that are listed; the others are summed."""
MAX_DRAWS = 1 << 22
"""Draws of an epoch that are made and counted."""
_OF_CLASSES = ("sizes", "target", "tree", "even", "row")
"""Numbers of each class: cells, shares as configured and by the ontology, evenness, and row in the ontology."""


class ReportedData(Protocol):
    """Data, how they are split and how they are drawn; `DataModule` is one."""

    @property
    def collection(self) -> Collection:
        """The table of cells."""

    @property
    def splits(self) -> Splits:
        """Rows of training, validation and test."""

    @property
    def training_cells(self) -> CollectionCells:
        """The cells that the plan draws from, with the hierarchies of columns."""

    @property
    def plan(self) -> SamplingPlan:
        """How training cells are drawn."""

    @property
    def label_columns(self) -> Sequence[str]:
        """Columns of labels besides those of the plan."""

    @property
    def batch_size(self) -> int:
        """Cells of a step, which the draws of an epoch may depend on."""


def contents(data: ReportedData, run: Path | None = None) -> dict[str, Any]:
    """Contents of the report of ``data``.

    Args:
        data: The cells, their split and their sampling plan.
        run: Folder of the logs of a training run, or None.

    Raises:
        KeyError: a column is in no source.
        ValueError: see `SamplingPlan.sampler`.
        FileNotFoundError: ``run`` has no statistics of draws.
    """
    collection, cells = data.collection, data.training_cells
    sampler = data.plan.sampler(cells, seed=0, global_batch_size=data.batch_size)
    drawn = data.plan.describe(cells) if isinstance(data.plan, DescribesClasses) else None
    return {
        "summary": _summary(collection, data.splits),
        "sources": _sources(collection),
        "labels": _labels(data),
        "epoch": _epoch(sampler, drawn, cells),
        "classes": None if drawn is None else _classes(data.plan, cells, drawn, sampler),
        "genes": gene_overlap(collection),
        "sizes": cell_sizes(collection),
        "leaks": find_leaks(collection, data.splits),
        "run": None if run is None else read_run(run),
    }


def _summary(collection: Collection, splits: Splits) -> list[tuple[str, str]]:
    organisms = sorted(set(source_table(collection)["organism"]))
    return [
        ("cells", f"{len(collection):,}"),
        ("sources", f"{len(collection.parts):,}"),
        ("genes in the vocabulary", f"{collection.n_genes:,}"),
        ("organisms", ", ".join(organisms)),
        ("training cells", f"{len(splits.train_rows):,}"),
        ("validation cells", f"{len(splits.val_rows):,}"),
        ("test cells", f"{len(splits.test_rows):,}"),
    ]


def _sources(collection: Collection) -> dict[str, Any]:
    table = source_table(collection).sort_values("cells", ascending=False, kind="stable")
    rest = table.iloc[N_ROWS:]
    return {
        "columns": list(table.columns),
        "rows": table.iloc[:N_ROWS].to_numpy(dtype=object).tolist(),
        "n_left_out": len(rest),
        "cells_left_out": int(rest["cells"].sum()),
    }


def _labels(data: ReportedData) -> list[dict[str, Any]]:
    """For each column of labels the cells of each label, in training, validation and test."""
    collection, splits = data.collection, data.splits
    hierarchies = data.training_cells.hierarchies
    cells = CollectionCells(collection, np.arange(len(collection)), hierarchies)
    by = [] if splits.split.by is None else [splits.split.by]
    columns = dict.fromkeys([*plan_columns(data.plan), *data.label_columns, *by])
    rows = {"all": slice(None), "train": splits.train, "val": splits.val, "test": splits.test}
    tables = [_organisms(collection, rows)]
    for column in columns:
        if column not in collection.own_columns:
            codes, labels = cells.classes([column])
            names = [_named(label, [column], hierarchies) for label in labels]
            tables.append(_label_table(column, codes, names, rows))
    return tables


def _organisms(collection: Collection, rows: Mapping[str, Any]) -> dict[str, Any]:
    names = list(source_table(collection)["organism"])
    number = {name: code for code, name in enumerate(dict.fromkeys(names))}
    parts = [np.full(part.n_obs, number[name], np.int32) for part, name in zip(collection.parts, names, strict=True)]
    return _label_table("organism", collection.arrange(parts), list(number), rows)


def _label_table(
    column: str, codes: NDArray[np.integer], names: Sequence[str], rows: Mapping[str, Any]
) -> dict[str, Any]:
    """Cells of each label of a column, the most frequent first; those of unknown label are listed apart.

    ``rows`` are those of "all" cells and of each split, as indices of ``codes``.
    """
    counts = {part: np.bincount(codes[of_part] + 1, minlength=len(names) + 1) for part, of_part in rows.items()}
    order = np.argsort(-counts["all"][1:], kind="stable")
    order = order[counts["all"][1:][order] > 0]
    return {
        "column": column,
        "names": [names[code] for code in order[:N_ROWS]],
        "cells": {part: some[1:][order[:N_ROWS]].tolist() for part, some in counts.items()},
        "unknown": int(counts["all"][0]),
        "n_left_out": max(0, len(order) - N_ROWS),
        "cells_left_out": int(counts["all"][1:][order[N_ROWS:]].sum()),
    }


def _named(labels: Sequence[str], columns: Sequence[str], hierarchies: Mapping[str, Any]) -> str:
    """Joint label of columns; a term of an ontology has its name before its id."""
    texts = []
    for label, column in zip(labels, columns, strict=True):
        name = hierarchies[column].ontology.label(label) if column in hierarchies else label
        texts.append(label if name == label else f"{name} ({label})")
    return " | ".join(texts)


def _epoch(sampler: Sampler, drawn: DrawnClasses | None, cells: CollectionCells) -> dict[str, Any]:
    """Statistics of the draws of the first epoch after any curriculum."""
    tally = Tally.of(drawn, cells.selection)
    tally.add_epoch(sampler, AFTER_CURRICULUM, MAX_DRAWS)
    return {
        "num_samples": sampler.num_samples,
        "n_draws": tally.n_draws,
        "repeated": tally.repeated_share,
        "effective": tally.effective_cells,
    }


def _classes(plan: SamplingPlan, cells: TrainingCells, drawn: DrawnClasses, sampler: Sampler) -> dict[str, Any] | None:
    """The classes that the plan draws by, and the options that their shares follow from; None for a single class.

    Names are those of the first classes, the largest. The other classes are grouped: those of equal numbers are listed
    once, and ``times`` is how many there are.
    """
    if len(drawn.names) == 1:
        return None
    columns, sizes, shares = plan_columns(plan), drawn.sizes[:-1], drawn.target_shares(AFTER_CURRICULUM)
    options = plan if isinstance(plan, Sampling) else None
    numbers = {"sizes": sizes, "target": _rounded(shares[:-1])}
    tree = None if options is None else class_tree(cells, columns)
    if tree is not None:
        terms, numbers["row"] = _terms(tree, columns, cells, drawn, sampler)
        numbers["tree"] = _rounded(tree.weights(sizes))
    if options is not None and options.factors:
        numbers["even"] = _evenness(options, cells, drawn)
    table = pd.DataFrame(numbers).sort_values("sizes", ascending=False, kind="stable")
    named, others = table.iloc[:N_ROWS], table.iloc[N_ROWS:]
    grouped = others.groupby(list(others), sort=False).size().rename("times").reset_index()
    listed = pd.concat([named.assign(times=1), grouped])
    return {
        "columns": columns,
        "plan": type(plan).__name__ if options is None else options.description,
        "scheme": None if options is None else options.scheme,
        "tau": 0.5 if options is None else options.tau,
        "saturation": 100.0 if options is None else options.saturation,
        "replacement": options is None or options.replacement,
        "num_samples": sampler.num_samples,
        "names": _class_names(drawn, cells, columns, named.index),
        "unknown": int(drawn.sizes[-1]),
        "unknown_share": float(shares[-1]),
        "terms": None if tree is None else terms,
        **{name: listed[name].tolist() if name in listed else None for name in (*_OF_CLASSES, "times")},
    }


def _class_names(drawn: DrawnClasses, cells: TrainingCells, columns: Sequence[str], codes: Iterable[int]) -> list[str]:
    labels = cells.classes(columns)[1] if columns else []
    if len(labels) != len(drawn.names):  # a plan with classes of its own
        return [drawn.names[code] for code in codes]
    return [_named(labels[code], columns, cells.hierarchies) for code in codes]


def _evenness(plan: Sampling, cells: TrainingCells, drawn: DrawnClasses) -> NDArray[np.float64]:
    """``(C,)`` effective number of cells of each class by the factors of its cells, as a share of them."""
    factors = cell_factors(cells, plan.factors)
    known = drawn.codes >= 0
    values = np.ones(int(known.sum())) if factors is None else factors[known]
    codes, n = drawn.codes[known], len(drawn.names)
    squares = np.bincount(codes, values**2, n)
    effective = np.divide(np.bincount(codes, values, n) ** 2, squares, out=np.zeros(n), where=squares > 0)
    return _rounded(effective / np.maximum(drawn.sizes[:-1], 1))


def _terms(
    tree: Tree, columns: Sequence[str], cells: TrainingCells, drawn: DrawnClasses, sampler: Sampler
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """The terms of the classes in the tree of their ontology, and the row of each class among them."""
    column = next(column for column in columns if column in cells.hierarchies)
    table = tree_table(tree, cells.hierarchies[column].ontology, drawn, sampler.num_samples)
    row = {term: number for number, term in enumerate(table["term"])}
    terms = {
        "title": f"{counted(len(table), 'term')} of {column}",
        "ids": list(table["term"]),
        "names": list(table["name"]),
        "levels": table["level"].tolist(),
    }
    return terms, np.array([row[tree.graph.terms[place]] for place in tree.places])


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers of six significant digits, which keep a page of many classes small."""
    with np.errstate(divide="ignore"):
        digits = 5 - np.floor(np.log10(np.abs(values)))
    scale = 10.0 ** np.where(np.isfinite(digits), digits, 0)
    return np.rint(values * scale) / scale
