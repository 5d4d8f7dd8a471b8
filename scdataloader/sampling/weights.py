"""Weights of classes, by scheme, and of cells within their class.

| scheme       | weight of a class of c cells | effect                                                            |
|--------------|------------------------------|-------------------------------------------------------------------|
| `natural`    | c                            | classes as frequent as in the data                                |
| `uniform`    | 1                            | all classes equally frequent                                      |
| `power`      | c^τ                          | between the two: τ = 0 is uniform, τ = 1 natural                  |
| `saturating` | s·c / (s + c)                | small s → nearly uniform; large s → natural. Classes far below    |
|              |                              | s cells count by their size, those far above count equally        |
| `tree`       | from the ontology            | split evenly down the ontology of the classes (`Tree.weights`)    |

Class weights are normalised over the classes that have training cells. The probability of a cell is the weight of its
class times the cell's share of the factors of the class. To add a scheme, add a function to `SCHEMES` and its name to
`Scheme`.

`tree` splits a weight of 1 evenly among the roots of the ontology, and at each term among its children that have
training cells at or below them. A term with its own cells counts as one more child of itself:

    cell                        1
    ├── leukocyte               1/2
    │   ├── (itself)  5 cells         1/6
    │   ├── B cell  900 cells         1/6
    │   └── T cell              1/6
    │       ├── CD4  40 cells         1/12
    │       └── CD8   2 cells         1/12
    └── neuron        3 cells         1/2

A term with several parents is placed below the most specific one (`Tree.parents`), so that a single path leads to each
class and no class counts twice. Joint classes of one term (`by` names another column as well) share its weight in
proportion to their cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.ontology import Ontology, Subgraph
from scdataloader.protocols import TrainingCells

__all__ = ["Tree", "class_tree", "class_weights"]

Scheme = Literal["natural", "uniform", "power", "saturating", "tree"]

NNZ = "nnz"
"""The name in ``cell_factors`` that means `nnz_factor` instead of a column."""

CellFactor = str | NDArray[Any] | Callable[[TrainingCells], Any]
"""A numeric column, an array over the collection, or a function that returns an array over the training cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemeArguments:
    """What a weighting scheme can use."""

    counts: NDArray[np.float64]
    """``(n_classes,)`` training cells of each class that can be drawn."""
    tau: float
    """Exponent of ``power``."""
    saturation: float
    """s of ``saturating``, in cells."""
    tree: Tree | None
    """Positions of the classes in an ontology, for ``tree``."""


def _tree_weights(classes: SchemeArguments) -> NDArray[np.float64]:
    if classes.tree is None:
        raise ValueError("scheme 'tree' needs an ontology, but the classes have none; name the column in hierarchies")
    return classes.tree.weights(classes.counts)


SCHEMES: dict[Scheme, Callable[[SchemeArguments], NDArray[np.float64]]] = {
    "natural": lambda classes: classes.counts,
    "uniform": lambda classes: np.ones(len(classes.counts)),
    "power": lambda classes: classes.counts**classes.tau,
    # divided by s, which is finite for every s
    "saturating": lambda classes: classes.counts / (classes.saturation + classes.counts),
    "tree": _tree_weights,
}
"""``(n_classes,)`` class weights before normalisation; those of classes without cells are ignored."""


def check_scheme(scheme: str, tau: float, saturation: float) -> None:
    """Check the options of a scheme.

    Raises:
        ValueError: the scheme does not exist, or an option is out of its range.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(get_args(Scheme))}, not {scheme!r}")
    if not 0 <= tau <= 1:
        raise ValueError(f"tau must be from 0 (uniform) to 1 (natural), not {tau}")
    if not 0 < saturation < np.inf:
        raise ValueError(f"saturation must be a positive number of cells, not {saturation}")


def class_weights(
    counts: NDArray[np.int64],
    scheme: Scheme,
    tau: float = 0.5,
    saturation: float = 100.0,
    tree: Tree | None = None,
) -> NDArray[np.float64]:
    """Normalised weights of classes; see the table in the module docstring.

    Args:
        counts: ``(n_classes,)`` cells in each class.
        scheme: Row of the table.
        tau: τ of ``power``.
        saturation: s of ``saturating``, in cells.
        tree: Positions of the classes in the ontology, for ``tree``.

    Returns:
        ``(n_classes,)`` weights that sum to 1; 0 exactly where the count is 0.

    Raises:
        ValueError: no class has a cell, a count is negative, an option is out of its range, or there is no tree.
    """
    check_scheme(scheme, tau, saturation)
    if counts.size and counts.min() < 0:
        raise ValueError(f"a class cannot have {counts.min()} cells")
    present = counts > 0
    if not present.any():
        raise ValueError(f"no cell can be drawn: none of {len(counts)} classes has any")
    arguments = SchemeArguments(counts=counts.astype(np.float64), tau=tau, saturation=saturation, tree=tree)
    unscaled = SCHEMES[scheme](arguments)[present]
    weights = np.zeros(len(counts), dtype=np.float64)
    weights[present] = unscaled / unscaled.sum()
    return weights


def cell_factors(cells: TrainingCells, factors: Sequence[CellFactor]) -> NDArray[np.float64] | None:
    """``(n,)`` product of the factors of each training cell; None without factors.

    Raises:
        KeyError: a column is in no source.
        ValueError: a factor is not numeric, has another length, or holds a missing, infinite or negative value.
    """
    product: NDArray[np.float64] | None = None
    for factor in factors:
        values = _factor_values(cells, factor)
        product = values if product is None else product * values
    return product


def _factor_values(cells: TrainingCells, factor: CellFactor) -> NDArray[np.float64]:
    if isinstance(factor, str):
        return nnz_factor(cells.nnz()) if factor == NNZ else cell_factor(cells.obs([factor])[factor], repr(factor))
    name = factor_name(factor)
    if callable(factor):
        values, expected = factor(cells), len(cells.rows)
        what = f"{expected:,} training cells"
    else:
        values, expected = factor, cells.collection_size
        what = f"{expected:,} cells of the collection"
    shape = np.shape(values)
    if shape != (expected,):
        raise ValueError(f"cell factor {name} has shape {shape}, but there are {what}; give one number per cell")
    if not callable(factor):
        values = np.asarray(values)[cells.rows]
    return cell_factor(pd.Series(np.asarray(values), index=cells.rows), name)


def factor_name(factor: CellFactor) -> str:
    """The name of a factor in messages."""
    if isinstance(factor, str):
        return repr(factor)
    if callable(factor):
        return str(getattr(factor, "__name__", type(factor).__name__))
    return "array"


def nnz_factor(nnz: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """``(n,)`` factor of cells with ``nnz`` expressed genes: ``1 + 999·σ(0.003·(nnz - 2000))``, up to 1000."""
    return np.asarray(1 + 999 / (1 + np.exp(-0.003 * (nnz.astype(np.float64) - 2000))), dtype=np.float64)


def cell_factor(values: pd.Series[Any], name: str) -> NDArray[np.float64]:
    """``(n,)`` factors from a numeric column; ``name`` and the index are used in messages.

    Raises:
        ValueError: the values are not numeric, or one is missing, infinite or negative; names the first.
    """
    missing = values.isna()
    if values.dtype == object and all(isinstance(value, Number | np.bool_) for value in values[~missing]):
        values = values.mask(missing, np.nan).astype(np.float64)  # of nullable columns, or of sources that differ
    if not (pd.api.types.is_numeric_dtype(values.dtype) and values.dtype.kind in "biuf"):
        raise ValueError(f"cell factor {name} must be numeric, not of dtype {values.dtype}")
    factors = values.to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.flatnonzero(~(np.isfinite(factors) & (factors >= 0)))
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"cell factor {name} is {factors[first]} at cell {values.index[first]}, and invalid in {len(wrong):,} of "
            f"{len(factors):,} cells; factors must be finite and 0 or more, so fill or clip them first"
        )
    return factors


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tree:
    """Classes at terms of an ontology. Several classes can share a term: its joint values with other columns."""

    graph: Subgraph
    """The terms of the classes and all their ancestors, parents before children."""
    places: NDArray[np.int64]
    """``(n_classes,)`` index of the term of each class in the graph."""

    @classmethod
    def of(cls, ontology: Ontology, terms: Sequence[str]) -> Tree:
        """The tree of classes, given the term of each.

        Raises:
            LookupError: a term is not in the ontology.
            ValueError: a term is deprecated.
        """
        graph = ontology.subgraph(sorted(set(terms)))
        place = {term: number for number, term in enumerate(graph.terms)}
        return cls(graph=graph, places=np.array([place[term] for term in terms], dtype=np.int64))

    def own(self, values: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
        """``(m,)`` sums by term of ``(n_classes,)`` values of classes, without the terms below."""
        return np.bincount(self.places, weights=values, minlength=len(self.graph.terms)).astype(np.float64)

    def parents(self, counts: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.int64]:
        """``(m,)`` index of the one parent that each term is placed below; -1 for roots.

        Of the parents of a term this is the most specific one: the one with the fewest terms that have cells at or
        below it. Ties are resolved by the longest distance from the roots, then by the first id.

        Args:
            counts: ``(n_classes,)`` cells in each class.
        """
        graph = self.graph
        n_below = [0] * len(graph.terms)
        for place in np.flatnonzero(self.own(counts)).tolist():
            for above in graph.ancestors[place]:
                n_below[above] += 1

        def preference(parent: int) -> tuple[int, int, int]:
            # within one level, the lower index is the first by id
            return n_below[parent], -graph.levels[parent], parent

        return np.array([min(parents, key=preference, default=-1) for parents in graph.parents], dtype=np.int64)

    def weights(self, counts: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Class weights: split evenly at each term, and by cells among the classes of one term.

        Each term is placed below one of its `parents`, so that a single path leads to each class. The roots that have
        cells at or below them share a weight of 1 evenly. A term divides its weight evenly among the child terms that
        have cells at or below them, and keeps one such part if it has its own cells.

        Args:
            counts: ``(n_classes,)`` cells in each class.

        Returns:
            ``(n_classes,)`` weights that sum to 1; 0 exactly where the count is 0. All 0 without any cell.
        """
        cells, parents = self.own(counts), self.parents(counts)
        alive = with_below(cells, parents) > 0
        has_parent = alive & (parents >= 0)
        n_parts = np.bincount(parents[has_parent], minlength=len(cells)) + (cells > 0)
        weights = (alive & (parents < 0)).astype(np.float64)
        weights /= max(weights.sum(), 1)
        for place in np.flatnonzero(has_parent).tolist():  # parents before their children
            weights[place] = weights[parents[place]] / n_parts[parents[place]]
        at = self.places
        # cells times parts: a term keeps one part, which its classes share in proportion to their cells
        return np.divide(weights[at] * counts, cells[at] * n_parts[at], out=np.zeros(len(at)), where=cells[at] > 0)


def class_tree(cells: TrainingCells, columns: Sequence[str]) -> Tree | None:
    """The tree of the joint classes of ``columns``; None unless exactly one of the columns has an ontology."""
    places = [place for place, column in enumerate(columns) if column in cells.hierarchies]
    if len(places) != 1:
        return None
    (place,) = places
    ontology: Ontology = cells.hierarchies[columns[place]].ontology
    return Tree.of(ontology, [labels[place] for labels in cells.classes(columns)[1]])


def with_below(values: NDArray[np.float64], parents: NDArray[np.int64]) -> NDArray[np.float64]:
    """``(m,)`` sums of the ``(m,)`` values of each term and of all terms below it, given `Tree.parents`."""
    sums = values.copy()
    for place in reversed(np.flatnonzero(parents >= 0).tolist()):  # children before their parents
        sums[parents[place]] += sums[place]
    return sums
