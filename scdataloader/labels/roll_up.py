"""Fewer classes out of the terms of an ontology: what is too fine goes up to a term above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    targets = [str(ontology.resolve(term).term) for term in dict.fromkeys(terms)]
    above = {label: set(ontology.ancestors(label, include_self=True)) for label in labels}
    for term in targets:
        if not any(term in terms_above for terms_above in above.values()):
            raise ValueError(
                f"cannot roll up to {term} ({ontology.label(term)}): none of the {len(labels)} labels is a kind of it; "
                "leave it out, or correct it"
            )
    under = [label for label in labels if above[label] & set(targets)]
    return {label: label for label in labels} | ontology.roll_up(under, targets)


def _to_cells(ontology: Ontology, counts: Mapping[str, int], n: int) -> dict[str, str]:
    graph = ontology.subgraph(counts)
    cells = [counts.get(term, 0) for term in graph.terms]
    with_below = [0] * len(cells)  # cells of the term and of all terms below it, each term once
    for own, ancestors in zip(cells, graph.ancestors, strict=True):
        for above in ancestors:
            with_below[above] += own
    targets = list(range(len(cells)))
    has_class_below = [False] * len(cells)
    for term in reversed(targets[:]):  # children before their parents
        parents = graph.parents[term]
        if 0 < cells[term] < n and not has_class_below[term] and parents:
            targets[term] = min(parents, key=lambda parent: (with_below[parent], graph.terms[parent]))
            cells[targets[term]] += cells[term]
        elif has_class_below[term] or cells[term]:
            for parent in parents:
                has_class_below[parent] = True
    for term, target in enumerate(targets):  # parents before their children
        targets[term] = targets[target]
    return {term: graph.terms[target] for term, target in zip(graph.terms, targets, strict=True) if term in counts}
