"""Small ontologies for tests, and the same graphs in networkx."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction

import networkx as nx
from hypothesis import strategies as st

from scdataloader.ontology import Ontology, TermTable


def table(parents: Mapping[str, Iterable[str]], **fields) -> TermTable:
    """A table of ``{id: parents}``; names are "term <number>", except those in ``labels``."""
    labels = fields.pop("labels", {})
    return TermTable(
        name=fields.pop("name", "toy"),
        labels={term: labels.get(term, f"term {term.partition(':')[2]}") for term in parents},
        parents={term: list(above) for term, above in parents.items()},
        **fields,
    )


def ontology(parents: Mapping[str, Iterable[str]], **fields) -> Ontology:
    return Ontology.from_table(table(parents, **fields))


def digraph(parents: Mapping[str, Iterable[str]]) -> nx.DiGraph:
    """The graph with edges from parent to child, which gives networkx the same ancestors."""
    graph = nx.DiGraph((parent, child) for child, above in parents.items() for parent in above)
    graph.add_nodes_from(parents)
    return graph


def placed(graph: nx.DiGraph, cells: Mapping[str, int]) -> dict[str, str | None]:
    """The parent of each term in the tree: the fewest terms with cells at or below it, then the longest path up."""
    own = {term for term, n in cells.items() if n}
    n_below = {term: len(own & {term, *nx.descendants(graph, term)}) for term in graph}
    level: dict[str, int] = {}
    for term in nx.topological_sort(graph):
        level[term] = 1 + max((level[above] for above in graph.pred[term]), default=-1)
    return {
        term: min(graph.pred[term], key=lambda above: (n_below[above], -level[above], above), default=None)
        for term in graph
    }


def even_split(graph: nx.DiGraph, cells: Mapping[str, int]) -> dict[str, Fraction]:
    """The weight of each term with cells: along its path up the tree, the product of 1 / branches at each term."""
    own = {term for term, n in cells.items() if n}
    above = placed(graph, cells)
    lines = {term: way_up(term, above) for term in own}
    alive = set().union(*lines.values())
    n_roots = sum(above[term] is None for term in alive)

    def n_ways(term: str) -> int:
        return sum(above[other] == term for other in alive) + (term in own)

    return {term: Fraction(1, n_roots * math.prod(map(n_ways, line))) for term, line in lines.items()}


def way_up(term: str, above: Mapping[str, str | None]) -> list[str]:
    """The term and the terms above it in the tree, up to a root."""
    line: list[str] = []
    at: str | None = term
    while at is not None:
        line.append(at)
        at = above[at]
    return line


@st.composite
def dags(draw: st.DrawFn, max_size: int = 9) -> dict[str, list[str]]:
    """``{id: parents}`` without cycles: several roots and parents, single terms, ids in any order."""
    n = draw(st.integers(1, max_size))
    ids = [f"T:{number}" for number in draw(st.permutations(range(n)))]
    parents = {term: [above for above in ids[:place] if draw(st.integers(0, 2)) == 0] for place, term in enumerate(ids)}
    return {term: parents[term] for term in draw(st.permutations(ids))}
