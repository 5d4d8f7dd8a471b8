"""Fewer classes out of the terms of an ontology: what is too fine goes up to a term above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scdataloader.ontology.ontology import Ontology


@dataclass(frozen=True, kw_only=True)
class RollUp:
    """Which terms labels go up to; one of the three.

    Args:
        terms: Ids or names. A label goes up to the lowest of them that it is under, or is one of them; a label that is
            under none of them stays.
        depth: Edges from a root, on the shortest way. A label that is deeper goes up to the nearest term above it that
            is not.
        min_cells: A label goes up to its parent as long as it has fewer cells than this and no class is below it, and
            counts there with what else is there. So every class has at least as many cells, but for roots. Of several
            parents it takes the one with the fewest cells at and below it, which is the most specific.

    Raises:
        ValueError: none of the three is given, or more than one, or it is out of its range.
    """

    terms: list[str] | None = None
    depth: int | None = None
    min_cells: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("terms", "depth", "min_cells") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a roll-up takes one of terms, depth and min_cells, not {' and '.join(given) or 'none'}")
        terms: Any = self.terms
        if terms is not None and (isinstance(terms, str) or not terms):
            raise ValueError(f"terms is a list of the terms to roll up to, at least one, not {self.terms!r}")
        if self.depth is not None and self.depth < 0:
            raise ValueError(f"depth counts edges from a root, which has depth 0, and cannot be {self.depth}")
        if self.min_cells is not None and self.min_cells < 1:
            raise ValueError(f"min_cells must be at least 1 cell, not {self.min_cells}")

    def classes(self, ontology: Ontology, counts: Mapping[str, int]) -> dict[str, str]:
        """{term: the term that it goes up to, or itself}, for all terms that occur.

        Args:
            ontology: what is above what.
            counts: cells of each current term that occurs.

        Raises:
            LookupError: the ontology has none of these ``terms``, or more than one of that name.
            ValueError: one of ``terms`` is above no label, or a label is under several, none above another.
        """
        if self.terms is not None:
            return _to_terms(ontology, list(counts), self.terms)
        if self.depth is not None:
            return ontology.roll_up(counts, self.depth, ambiguous="nearest")
        assert self.min_cells is not None
        return _to_cells(ontology, counts, self.min_cells)


def _to_terms(ontology: Ontology, labels: Sequence[str], terms: Sequence[str]) -> dict[str, str]:
    targets = [_current(ontology, term) for term in dict.fromkeys(terms)]
    above = {label: set(ontology.ancestors(label, include_self=True)) for label in labels}
    for term in targets:
        if not any(term in terms_above for terms_above in above.values()):
            raise ValueError(
                f"cannot roll up to {term} ({ontology.label(term)}): none of the {len(labels)} labels is a kind of it; "
                "leave it out, or correct it"
            )
    under = [label for label in labels if above[label] & set(targets)]
    return {label: label for label in labels} | ontology.roll_up(under, targets)


def _current(ontology: Ontology, text: str) -> str:
    term = ontology.find(text)
    current = ontology.current(term)
    if current is None:
        raise ValueError(f"cannot roll up to {term}: it is deprecated, and {ontology.name} has no replacement for it")
    return current


def _to_cells(ontology: Ontology, counts: Mapping[str, int], n: int) -> dict[str, str]:
    graph = ontology.subgraph(counts)
    place = {term: number for number, term in enumerate(graph.terms)}
    cells = np.array([counts.get(term, 0) for term in graph.terms], dtype=np.int64)
    # by row, since the whole matrix as integers may take gigabytes
    at_or_below = [int(cells[row].sum()) for row in ontology.among(graph.terms)]
    goes = list(range(len(cells)))
    has_class = np.zeros(len(cells), dtype=np.bool_)
    for number in reversed(goes[:]):  # children before their parents
        class_below = bool(has_class[graph.children[graph.indptr[number] : graph.indptr[number + 1]]].any())
        has_class[number] = class_below or cells[number] > 0
        if 0 < cells[number] < n and not class_below and graph.n_parents[number]:
            has_class[number] = False
            parents = ontology.parents(graph.terms[number])
            goes[number] = place[min(parents, key=lambda term: (at_or_below[place[term]], term))]
            cells[goes[number]] += cells[number]
    for number, to in enumerate(goes):  # parents before their children
        goes[number] = goes[to]
    return {term: graph.terms[goes[place[term]]] for term in counts}
