"""Terms as a source gives them, and what an `Ontology` is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from scdataloader.ontology_graph import Edges, TermGraph
from scdataloader.ontology_names import TermNames


@dataclass(frozen=True, kw_only=True, slots=True)
class TermTable:
    """Terms as a source gives them, in any order: what an `Ontology` is made of."""

    name: str
    """What messages call the ontology."""
    version: str
    """Release, as the source writes it; empty where it does not say."""
    ids: Sequence[str]
    """``(n,)`` ids, distinct."""
    labels: Sequence[str]
    """``(n,)`` names; empty where a term has none."""
    synonyms: Sequence[Sequence[str]]
    """``(n,)`` exact synonyms."""
    edges: Edges
    """Places in ``ids`` of children and their parents."""
    ancestry: Edges | None = None
    """Places of descendants and their ancestors, complete, where the edges alone do not tell all of them."""
    deprecated: NDArray[np.bool_]
    """``(n,)`` terms that are not to be used any more."""
    replaced_by: Mapping[str, str] = field(default_factory=dict)
    """Deprecated id to the id to be used instead, which may be deprecated itself or of another ontology."""


def assembled(table: TermTable, prefixes: Sequence[str] | None) -> tuple[TermNames, TermGraph]:
    """Names and graph of the terms that begin with one of the prefixes."""
    prefixes = [prefixes] if isinstance(prefixes, str) else prefixes
    order = sorted(range(len(table.ids)), key=table.ids.__getitem__)
    ids = [table.ids[place] for place in order]
    graph = _checked(TermGraph.from_edges(len(ids), _renumbered(table.edges, order)), ids, table)
    if table.ancestry is not None:
        graph = graph.completed(_renumbered(table.ancestry, order))
    inside = np.array([prefixes is None or term.startswith(_starts(prefixes)) for term in ids], dtype=np.bool_)
    deprecated = table.deprecated[order]
    current = inside & ~deprecated
    if not current.any():
        raise ValueError(
            f"{table.name} has no current term" + (f" whose id begins with {', '.join(prefixes)}" if prefixes else "")
        )
    places = [order[number] for part in (current, inside & deprecated) for number in np.flatnonzero(part).tolist()]
    names = TermNames(
        ontology=" ".join(filter(None, (table.name, table.version))),
        ids=tuple(table.ids[place] for place in places),
        labels=tuple(table.labels[place] for place in places),
        synonyms=tuple(tuple(table.synonyms[place]) for place in places),
        replaced_by=dict(table.replaced_by),
        n_current=int(np.count_nonzero(current)),
    )
    return names, graph.restricted(current)


def _starts(prefixes: Sequence[str]) -> tuple[str, ...]:
    return tuple(prefix.rstrip(":_") + mark for prefix in prefixes for mark in ":_")


def _renumbered(pairs: Edges, order: Sequence[int]) -> Edges:
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[pairs[0]], rank[pairs[1]]


def _checked(graph: TermGraph, ids: Sequence[str], table: TermTable) -> TermGraph:
    if len(set(ids)) < len(ids):
        raise ValueError(f"{table.name} has the id {next(a for a, b in pairwise(ids) if a == b)} more than once")
    if cycle := graph.cycle():
        label = dict(zip(table.ids, table.labels, strict=True))
        way = " → ".join(f"{ids[node]} ({label[ids[node]]})" for node in [*cycle, cycle[0]])
        raise ValueError(
            f"{table.name} has a cycle, where each term is a kind of the next: {way}; take out one of these steps"
        )
    return graph
