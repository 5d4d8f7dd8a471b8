"""What `Ontology` is asked about its graph, in numbers of terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.ontology.graph import Lists, TermGraph

Nodes = NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Subgraph:
    """Some terms and all their ancestors."""

    terms: tuple[str, ...]
    """``(m,)`` ids; every term comes after all its parents."""
    given: NDArray[np.bool_]
    """``(m,)`` terms that were asked for; the others are ancestors of theirs."""
    indptr: NDArray[np.int64]
    """``(m + 1,)`` offsets into ``children``; a term whose two are equal is a leaf here."""
    children: NDArray[np.int32]
    """Places in ``terms`` of each term's direct children, ascending. A term with two parents stands in two lists."""
    n_parents: NDArray[np.int64]
    """``(m,)`` number of direct parents, all of which are here; 0 for roots."""
    levels: NDArray[np.int32]
    """``(m,)`` edges on the longest way up, ascending; 0 for roots. Terms of one level are sorted by id."""
    ancestors: Lists
    """Places in ``terms`` of each term's ancestors, itself included."""


def lowest(graph: TermGraph, nodes: Nodes) -> Nodes:
    """Those of ``nodes``, which are distinct, that are no ancestor of another."""
    place, above = graph.closure.ancestors.gather(nodes)
    return nodes[~np.isin(nodes, above[above != nodes[place]])]


def common(graph: TermGraph, nodes: Nodes) -> Nodes:
    """The ancestors that all of ``nodes``, which are distinct, have in common, themselves included."""
    times = np.bincount(graph.closure.ancestors.gather(nodes)[1], minlength=graph.n)
    return np.flatnonzero(times == len(nodes)) if len(nodes) else nodes


def distance(graph: TermGraph, first: int, second: int) -> int | None:
    """Edges on the shortest way from one node up to a common ancestor and down to the other; None without one."""
    (above, steps), (others, other_steps) = graph.closure.row(first), graph.closure.row(second)
    _, at, other_at = np.intersect1d(above, others, assume_unique=True, return_indices=True)
    return int(np.min(steps[at] + other_steps[other_at])) if len(at) else None


def depths(graph: TermGraph) -> NDArray[np.int32]:
    """``(n,)`` edges on the shortest way up to any root."""
    ancestors, steps = graph.closure.ancestors, graph.closure.steps
    to_roots = np.where(graph.levels[ancestors.indices] == 0, steps, np.int32(graph.n))
    return np.minimum.reduceat(to_roots, ancestors.indptr[:-1])


def mass(graph: TermGraph, own: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(n,)`` each node's own mass and that of all its descendants, each counted once."""
    ancestors = graph.closure.ancestors
    return np.bincount(ancestors.indices, weights=own[ancestors.owners], minlength=graph.n).astype(np.float64)


def standing_in(graph: TermGraph, node: int, targets: NDArray[np.bool_]) -> tuple[Nodes, NDArray[np.int32]]:
    """The lowest of a node's ancestors, itself included, that are targets, and how far up they are."""
    above, steps = graph.closure.row(node)
    hit = np.isin(above, lowest(graph, above[targets[above]]))
    return above[hit], steps[hit]


def among(graph: TermGraph, nodes: Nodes) -> NDArray[np.bool_]:
    """[i, j] is True where ``nodes[i]`` is an ancestor of ``nodes[j]``, or the same."""
    distinct, inverse = np.unique(nodes, return_inverse=True)
    below, above = graph.closure.ancestors.gather(distinct)
    at = _places(graph, distinct)[above]
    matrix = np.zeros((len(distinct), len(distinct)), dtype=np.bool_)
    matrix[at[at >= 0], below[at >= 0]] = True
    return matrix[np.ix_(inverse, inverse)]


def subgraph(graph: TermGraph, nodes: Nodes, ids: tuple[str, ...]) -> Subgraph:
    """The nodes with all their ancestors, parents before children and else in order."""
    inside = np.unique(graph.closure.ancestors.gather(nodes)[1])
    order = inside[np.argsort(graph.levels[inside], kind="stable")]
    places = _places(graph, order)
    owner, children = graph.children.gather(order)
    at = places[children]
    lists = Lists.group(len(order), owner[at >= 0], at[at >= 0])
    below, above = graph.closure.ancestors.gather(order)
    return Subgraph(
        terms=tuple(ids[node] for node in order.tolist()),
        given=np.isin(order, nodes),
        indptr=lists.indptr,
        children=lists.indices,
        n_parents=graph.parents.sizes[order],
        levels=graph.levels[order],
        ancestors=Lists.group(len(order), below, places[above]),
    )


def _places(graph: TermGraph, nodes: Nodes) -> NDArray[np.int64]:
    """``(n,)`` the place of each node of the graph in ``nodes``, -1 where it is not there."""
    places = np.full(graph.n, -1, dtype=np.int64)
    places[nodes] = np.arange(len(nodes))
    return places
