"""Directed graphs without cycles, as integer arrays: what `Ontology` computes on.

Nodes are numbers from 0. An edge goes from a child to a parent. An edge from a node to itself says nothing (every term
is a kind of itself) and is dropped; so are repeated edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Edges = tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]
"""Children and parents, pair by pair."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lists:
    """One list of numbers for each node, all in one array."""

    indptr: NDArray[np.int64]
    """``(n + 1,)`` offsets into ``indices``."""
    indices: NDArray[np.int32]
    """The numbers, ascending within a list."""

    @classmethod
    def group(cls, n: int, owner: NDArray[np.integer[Any]], value: NDArray[np.integer[Any]]) -> Lists:
        """The values of each of ``n`` owners, given as pairs; repeated pairs once."""
        keys = _distinct(owner.astype(np.int64) * n + value)
        owner, value = np.divmod(keys, max(n, 1))
        indptr = np.zeros(n + 1, dtype=np.int64)
        np.cumsum(np.bincount(owner, minlength=n), out=indptr[1:])
        return cls(indptr=indptr, indices=value.astype(np.int32))

    def __getitem__(self, node: int) -> NDArray[np.int32]:
        return self.indices[self.indptr[node] : self.indptr[node + 1]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """``(n,)`` length of each list."""
        return np.diff(self.indptr)

    @property
    def owners(self) -> NDArray[np.int64]:
        """The node whose list each of ``indices`` stands in."""
        return np.repeat(np.arange(len(self.indptr) - 1), self.sizes)

    def gather(self, nodes: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The lists of ``nodes`` one after another: the place in ``nodes`` that each number belongs to, the numbers."""
        place, at = spans(self.indptr[nodes], self.sizes[nodes])
        return place, self.indices[at]


def spans(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions ``starts[i] … starts[i] + sizes[i] - 1`` for each i in turn: the i of each, and the positions."""
    place = np.repeat(np.arange(len(sizes)), sizes)
    return place, np.arange(len(place)) + (starts - np.cumsum(sizes) + sizes)[place]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Closure:
    """Each node's ancestors, itself among them, and how far up they are."""

    ancestors: Lists
    """Ancestors of each node, itself included, ascending."""
    steps: NDArray[np.int32]
    """Edges on the shortest way up, for each of ``ancestors.indices``; 0 for the node itself."""

    def row(self, node: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The node's ancestors, itself included, and how far up each is."""
        row = slice(*self.ancestors.indptr[node : node + 2])
        return self.ancestors.indices[row], self.steps[row]


@dataclass(frozen=True, kw_only=True, eq=False)
class TermGraph:
    """A graph of nodes ``0 … n - 1``; cyclic ones can be made, so as to say where the cycle is, and not be used."""

    parents: Lists
    """Direct parents of each node."""
    children: Lists
    """Direct children of each node."""
    levels: NDArray[np.int32]
    """``(n,)`` edges on the longest way up, 0 for roots; -1 for nodes in a cycle or below one."""

    @classmethod
    def from_edges(cls, n: int, edges: Edges) -> TermGraph:
        """The graph of ``n`` nodes with these edges."""
        child, parent = edges
        child, parent = child[child != parent], parent[child != parent]
        parents, children = Lists.group(n, child, parent), Lists.group(n, parent, child)
        return cls(parents=parents, children=children, levels=_levels(parents, children))

    @property
    def n(self) -> int:
        """Number of nodes."""
        return len(self.levels)

    @property
    def edges(self) -> Edges:
        """All edges, sorted."""
        return self.parents.owners, self.parents.indices

    @cached_property
    def closure(self) -> Closure:
        """Everybody's ancestors; computed when first asked for."""
        return _closure(self.parents, self.levels)

    @cached_property
    def descendants(self) -> Lists:
        """Descendants of each node, itself included; computed when first asked for."""
        ancestors = self.closure.ancestors
        return Lists.group(self.n, ancestors.indices, ancestors.owners)

    def cycle(self) -> list[int]:
        """The nodes of a cycle, each a child of the next and the last of the first; empty where there is none."""
        stuck = np.flatnonzero(self.levels < 0)
        way: dict[int, int] = {}
        node = int(stuck[0]) if len(stuck) else -1
        while node >= 0 and node not in way:
            way[node] = len(way)
            above = self.parents[node]
            node = int(above[self.levels[above] < 0][0])
        return list(way)[way.get(node, 0) :]

    def completed(self, known: Edges) -> TermGraph:
        """This graph with the fewest more edges that make every pair of ``known`` descendant and ancestor."""
        have, wanted = (owner.astype(np.int64) * self.n + above for owner, above in (self._pairs(), known))
        missing = _without(_distinct(wanted), have)
        if len(missing) == 0:
            return self
        full = TermGraph.from_edges(self.n, _joined(self.edges, np.divmod(missing, self.n)))
        # of these edges, those are needed that no longer way takes the place of
        child, parent = (ends[np.isin(full.edges[0], missing // self.n)] for ends in full.edges)
        place, above = full.closure.ancestors.gather(parent)
        further = above != parent[place]
        implied = _distinct(child[place[further]] * self.n + above[further])
        return TermGraph.from_edges(self.n, _joined(self.edges, np.divmod(_without(missing, implied), self.n)))

    def restricted(self, keep: NDArray[np.bool_]) -> TermGraph:
        """The nodes to ``keep``, renumbered in order; ways that run through others are kept as edges."""
        number = np.cumsum(keep) - 1
        n_kept = int(np.count_nonzero(keep))

        def kept(pairs: Edges) -> Edges:
            both = keep[pairs[0]] & keep[pairs[1]]
            return number[pairs[0][both]], number[pairs[1][both]]

        graph = TermGraph.from_edges(n_kept, kept(self.edges))
        has_edges = (self.parents.sizes > 0) & (self.children.sizes > 0)
        # without this look, graphs whose other nodes stand alone would pay for a closure
        return graph.completed(kept(self._pairs())) if bool(np.any(has_edges & ~keep)) else graph

    def _pairs(self) -> Edges:
        ancestors = self.closure.ancestors
        return ancestors.owners, ancestors.indices


def _distinct(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The keys sorted, each once; several times faster than `numpy.unique` on these."""
    keys = np.sort(keys)
    return keys[np.diff(keys, prepend=-1) > 0]


def _without(keys: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """The keys that are not among the others; both are sorted and distinct."""
    at = np.searchsorted(others, keys)
    found = at < len(others)
    found[found] = others[at[found]] == keys[found]
    return keys[~found]


def _joined(first: Edges, second: Edges) -> Edges:
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


def _levels(parents: Lists, children: Lists) -> NDArray[np.int32]:
    """Roots first: a node's level is known once all its parents' are."""
    waiting = parents.sizes
    levels = np.full(len(waiting), -1, dtype=np.int32)
    nodes = np.flatnonzero(waiting == 0)
    level = 0
    while len(nodes):
        levels[nodes] = level
        below, times = np.unique(children.gather(nodes)[1], return_counts=True)
        waiting[below] -= times
        nodes = below[waiting[below] == 0]
        level += 1
    return levels


def _closure(parents: Lists, levels: NDArray[np.int32]) -> Closure:
    """Level by level from the roots: a node's ancestors are its parents' ancestors, one step further, and itself."""
    n, n_levels = len(levels), int(levels.max(initial=-1)) + 1
    order = np.argsort(levels, kind="stable")
    bounds = np.searchsorted(levels[order], np.arange(n_levels + 1))
    start, size = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    # (ancestor, steps) in one number, so that a sort puts the shortest way to an ancestor first
    base = n_levels + 1
    found, n_found = np.empty(8 * n + 1, dtype=np.int64), 0
    for level in range(n_levels):
        nodes = order[bounds[level] : bounds[level + 1]]
        owner, parent = parents.gather(nodes)
        place, at = spans(start[parent], size[parent])
        above = owner[place] * (n * base) + found[at] + 1
        keys = np.concatenate([above, np.arange(len(nodes)) * (n * base) + nodes * base])
        keys.sort()
        keys = keys[np.diff(keys // base, prepend=-1) > 0]
        if n_found + len(keys) > len(found):
            found = np.concatenate([found, np.empty(len(found) + len(keys), dtype=np.int64)])
        found[n_found : n_found + len(keys)] = keys % (n * base)
        size[nodes] = np.bincount(keys // (n * base), minlength=len(nodes))
        start[nodes] = n_found + np.cumsum(size[nodes]) - size[nodes]
        n_found += len(keys)
    ancestor, steps = np.divmod(found[spans(start, size)[1]], base)
    indptr = np.concatenate([[0], np.cumsum(size)])
    return Closure(ancestors=Lists(indptr=indptr, indices=ancestor.astype(np.int32)), steps=steps.astype(np.int32))
