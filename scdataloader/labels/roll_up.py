"""Roll-up of ontology terms to fewer classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scdataloader.ontology.ontology import Ontology


@dataclass(frozen=True, kw_only=True)
class RollUp:
    """Rule by which labels are rolled up to terms above them; exactly one of the three.

    Args:
        terms: Ids or names. A label is rolled up to the lowest of these terms that it is under, or equals; a label
            under none of them stays.
        depth: Edges on the shortest path to a root. A deeper label is rolled up to the nearest term above it with at
            most this depth.
        min_cells: A label with fewer cells and no class below it is rolled up to its parent, which then counts its
            cells; this repeats, so that every class except roots has at least so many cells. Of several parents the
            most specific is chosen, the one with the fewest cells at and below it.

    Raises:
        ValueError: none of the three is given, or more than one, or it is out of range.
    """

    terms: list[str] | None = None
    depth: int | None = None
    min_cells: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("terms", "depth", "min_cells") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a roll-up has {' and '.join(given) or 'none'}; expected exactly one of terms, depth and min_cells"
            )
        terms: Any = self.terms
        if terms is not None and (isinstance(terms, str) or not terms):
            raise ValueError(f"terms is {self.terms!r}; expected a list of at least one term")
        if self.depth is not None and self.depth < 0:
            raise ValueError(f"depth is {self.depth}; expected 0 (roots) or more edges")
        if self.min_cells is not None and self.min_cells < 1:
            raise ValueError(f"min_cells is {self.min_cells}; expected at least 1 cell")

    def classes(self, ontology: Ontology, counts: Mapping[str, int]) -> dict[str, str]:
        """{term: the term to which it is rolled up, or itself}, for all terms that occur.

        Args:
            ontology: the ontology of the terms.
            counts: cells of each current term that occurs.

        Raises:
            LookupError: one of ``terms`` is not in the ontology, or is ambiguous.
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
                f"cannot roll up to {term} ({ontology.label(term)}): it is above none of the {len(labels)} labels; "
                "correct it, or leave it out"
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
