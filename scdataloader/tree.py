"""Mass split evenly down an ontology, from its roots to the classes that have cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scdataloader.ontology import Ontology, Subgraph


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

    def children(self, place: int) -> NDArray[np.int32]:
        """The places of a term's direct children, ascending."""
        return self.graph.children[self.graph.indptr[place] : self.graph.indptr[place + 1]]

    def mass(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Share of the draws of each class: split evenly at each term, and by cells among the classes of one term.

        The roots that have cells at or below them share a mass of 1 evenly. A term passes what it gets on, in even
        parts, to each of its children that have cells at or below them, and keeps one such part where it has cells of
        its own. A term with several parents gets a part from each. Whatever comes to a term leaves it whole, so masses
        sum to 1, and a class has one mass, however many ways lead there.

        Args:
            counts: ``(n_classes,)`` cells in each class.

        Returns:
            ``(n_classes,)`` masses that sum to 1; 0 exactly where the count is 0. All 0 without any cell.
        """
        cells = self.own(counts)
        flow, kept = self._roots(cells), np.zeros(len(cells))
        alive = self._alive(cells)
        for place in range(len(cells)):  # parents before their children
            below = self.children(place)
            below = below[alive[below]]
            n_parts = len(below) + int(cells[place] > 0)
            if n_parts:
                flow[below] += flow[place] / n_parts
                kept[place] = flow[place] / n_parts if cells[place] > 0 else 0.0
        total = cells[self.places]
        share = np.divide(counts, total, out=np.zeros(len(counts)), where=total > 0)
        return np.asarray(kept[self.places] * share, dtype=np.float64)

    def _alive(self, cells: NDArray[np.float64]) -> NDArray[np.bool_]:
        """``(m,)`` terms with cells at or below them."""
        alive = cells > 0
        for place in reversed(range(len(alive))):
            alive[place] |= alive[self.children(place)].any()
        return alive

    def _roots(self, cells: NDArray[np.float64]) -> NDArray[np.float64]:
        """``(m,)`` what the roots begin with."""
        roots = (self.graph.n_parents == 0) & self._alive(cells)
        return np.asarray(roots / max(int(np.count_nonzero(roots)), 1), dtype=np.float64)
