"""Mass split evenly down an ontology, from its roots to the classes that have cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scdataloader.ontology.ontology import Ontology, Subgraph


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tree:
    """Classes at terms of an ontology. Several classes may be at one term: its joint values with other columns."""

    graph: Subgraph
    """The classes' terms with all that is above them, parents before children."""
    places: NDArray[np.int64]
    """``(n_classes,)`` the term of each class, as its place in the graph."""

    @classmethod
    def of(cls, ontology: Ontology, terms: Sequence[str]) -> Tree:
        """The tree of classes, given by the term of each.

        Raises:
            LookupError: a term is not in the ontology.
            ValueError: a term is deprecated.
        """
        graph = ontology.subgraph(sorted(set(terms)))
        place = {term: number for number, term in enumerate(graph.terms)}
        return cls(graph=graph, places=np.array([place[term] for term in terms], dtype=np.int64))

    def own(self, values: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
        """``(m,)`` sums by term of ``(n_classes,)`` values of classes; nothing of the terms below."""
        return np.bincount(self.places, weights=values, minlength=len(self.graph.terms)).astype(np.float64)

    def parents(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """``(m,)`` the place of the one parent that each term stands below; -1 for roots.

        Of the parents of a term this is the one that is above the fewest terms with cells, itself included: the most
        specific. Among equals it is the one farthest from the roots, by the longest way, and then the first by id.

        Args:
            counts: ``(n_classes,)`` cells in each class.
        """
        graph = self.graph
        n_below = [0] * len(graph.terms)
        for place in np.flatnonzero(self.own(counts)).tolist():
            for above in graph.ancestors[place]:
                n_below[above] += 1

        def preference(parent: int) -> tuple[int, int, int]:
            # places of one level are in order of the ids
            return n_below[parent], -graph.levels[parent], parent

        return np.array([min(parents, key=preference, default=-1) for parents in graph.parents], dtype=np.int64)

    def mass(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Share of the draws of each class: split evenly at each term, and by cells among the classes of one term.

        Each term stands below one of its `parents`, so that one way leads to each class. The roots that have cells at
        or below them share a mass of 1 evenly. A term passes what it gets on, in even parts, to each of the terms right
        below it that have cells at or below them, and keeps one such part where it has cells of its own.

        Args:
            counts: ``(n_classes,)`` cells in each class.

        Returns:
            ``(n_classes,)`` masses that sum to 1; 0 exactly where the count is 0. All 0 without any cell.
        """
        cells, parents = self.own(counts), self.parents(counts)
        alive = with_below(cells, parents) > 0
        passed_on = alive & (parents >= 0)
        n_parts = np.bincount(parents[passed_on], minlength=len(cells)) + (cells > 0)
        comes = (alive & (parents < 0)).astype(np.float64)
        comes /= max(comes.sum(), 1)
        for place in np.flatnonzero(passed_on).tolist():  # parents before their children
            comes[place] = comes[parents[place]] / n_parts[parents[place]]
        at = self.places
        # cells times parts: what a term keeps is one part, of which a class has its share of the cells
        return np.divide(comes[at] * counts, cells[at] * n_parts[at], out=np.zeros(len(at)), where=cells[at] > 0)


def with_below(values: NDArray[np.float64], parents: NDArray[np.int64]) -> NDArray[np.float64]:
    """``(m,)`` sums of the ``(m,)`` values of each term and of all that stands below it, given `Tree.parents`."""
    sums = values.copy()
    for place in reversed(np.flatnonzero(parents >= 0).tolist()):  # children before their parents
        sums[parents[place]] += sums[place]
    return sums
