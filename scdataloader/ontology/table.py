"""Terms as a source gives them, and what an `Ontology` is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdataloader.ontology.graph import Edges, TermGraph
from scdataloader.ontology.names import TermNames
from scdataloader.ontology.term_ids import prefix_of

_BETWEEN = " + "
"""Between the names and releases of several ontologies."""


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


def united(parts: Sequence[tuple[TermNames, TermGraph]]) -> TermTable:
    """The terms of several ontologies, each once, with the edges that it has in any; the same in whatever order.

    Names, synonyms and deprecation of a term are those of the part that has the most terms of its prefix: a file of
    UBERON has some terms of CL too, and may be older than CL.
    """
    said: dict[str, _Said] = {}
    for names, _ in parts:
        for term, words in _words(names):
            said[term] = min(said.get(term, words), words)
    place = {term: number for number, term in enumerate(said)}
    children, parents = [], []
    for names, graph in parts:
        at = np.fromiter(map(place.__getitem__, names.ids), dtype=np.int64, count=len(names.ids))
        child, parent = graph.edges
        children.append(at[child])
        parents.append(at[parent])
    titles = {title for names, _ in parts for title in names.ontology.split(_BETWEEN)}
    return TermTable(
        name=_BETWEEN.join(sorted(titles)),
        version="",
        ids=list(said),
        labels=[words.label for words in said.values()],
        synonyms=[words.synonyms for words in said.values()],
        edges=(np.concatenate(children), np.concatenate(parents)),
        deprecated=np.array([words.deprecated for words in said.values()], dtype=np.bool_),
        replaced_by={term: words.replaced_by for term, words in said.items() if words.replaced_by},
    )


class _Said(NamedTuple):
    """What an ontology says of a term. Of what several say, the least holds; the order of the fields decides."""

    minus_known: int
    """Minus the number of terms of the same prefix that the ontology has."""
    ontology: str
    deprecated: bool
    label: str
    synonyms: tuple[str, ...]
    replaced_by: str


def _words(names: TermNames) -> Iterator[tuple[str, _Said]]:
    prefixes = [prefix_of(term) for term in names.ids]
    known = Counter(prefixes)
    for number, (term, prefix) in enumerate(zip(names.ids, prefixes, strict=True)):
        yield (
            term,
            _Said(
                minus_known=-known[prefix],
                ontology=names.ontology,
                deprecated=number >= names.n_current,
                label=names.labels[number],
                synonyms=names.synonyms[number],
                replaced_by=names.replaced_by.get(term, ""),
            ),
        )


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
