"""Small ontologies for tests, and the same graphs in networkx."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

import networkx as nx
import numpy as np
from hypothesis import strategies as st

from scdataloader.ontology import Ontology, TermTable


def table(parents: Mapping[str, Iterable[str]], **fields) -> TermTable:
    """Terms by id with their parents, in the order given; names are "term <number>" unless given as ``{id: name}``."""
    ids = list(parents)
    place = {term: number for number, term in enumerate(ids)}
    pairs = [(place[child], place[parent]) for child, above in parents.items() for parent in above]
    edges = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    labels, synonyms, deprecated = (fields.pop(name, {}) for name in ("labels", "synonyms", "deprecated"))
    return TermTable(
        name=fields.pop("name", "toy"),
        version=fields.pop("version", ""),
        ids=ids,
        labels=[labels.get(term, f"term {term.partition(':')[2]}") for term in ids],
        synonyms=[synonyms.get(term, ()) for term in ids],
        edges=(edges[0], edges[1]),
        deprecated=np.array([term in deprecated for term in ids], dtype=np.bool_),
        **fields,
    )


def ontology(parents: Mapping[str, Iterable[str]], **fields) -> Ontology:
    return Ontology.from_table(table(parents, **fields))


def digraph(parents: Mapping[str, Iterable[str]]) -> nx.DiGraph:
    """Edges from parent to child, as `networkx` wants them for its "ancestors"."""
    graph = nx.DiGraph((parent, child) for child, above in parents.items() for parent in above)
    graph.add_nodes_from(parents)
    return graph


def even_walk(graph: nx.DiGraph, cells: Mapping[str, int]) -> dict[str, Fraction]:
    """The chance that a walk from the roots down, each way on being as likely, ends at each term with cells."""
    own = {term for term, n in cells.items() if n}
    alive = own.union(*(nx.ancestors(graph, term) for term in own))
    roots = [term for term in alive if graph.in_degree(term) == 0]
    reaches = {}
    for term in nx.topological_sort(graph.subgraph(alive)):
        come = [
            reaches[above] / n_ways for above, n_ways in ((p, ways(graph, p, alive, own)) for p in graph.pred[term])
        ]
        reaches[term] = sum(come, Fraction(term in roots, len(roots)))
    return {term: reaches[term] / ways(graph, term, alive, own) for term in own}


def ways(graph: nx.DiGraph, term: str, alive: set[str], own: set[str]) -> int:
    """How many ways lead on from a term: to children with cells at or below them, and to its own cells."""
    return len(alive.intersection(graph.succ[term])) + (term in own)


@st.composite
def dags(draw: st.DrawFn, max_size: int = 9) -> dict[str, list[str]]:
    """``{id: parents}`` without cycles: several roots and parents, lone terms, ids that do not follow the hierarchy."""
    n = draw(st.integers(1, max_size))
    ids = [f"T:{number}" for number in draw(st.permutations(range(n)))]
    parents = {term: [above for above in ids[:place] if draw(st.integers(0, 2)) == 0] for place, term in enumerate(ids)}
    return {term: parents[term] for term in draw(st.permutations(ids))}
