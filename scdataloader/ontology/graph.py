"""Directed acyclic graphs of terms, as ``{term: its parents}``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Parents = Mapping[str, Collection[str]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Subgraph:
    """Some terms and all their ancestors, numbered so that parents come before their children."""

    terms: tuple[str, ...]
    """``(m,)`` ids, by level and then by id."""
    parents: tuple[tuple[int, ...], ...]
    """``(m,)`` numbers of each term's parents, ascending."""
    levels: tuple[int, ...]
    """``(m,)`` edges on the longest path to a root; 0 for roots."""
    ancestors: tuple[tuple[int, ...], ...]
    """``(m,)`` numbers of each term's ancestors and of the term itself, ascending."""


def steps_up(parents: Parents, term: str) -> dict[str, int]:
    """``{ancestor: edges on the shortest path to it}`` of a term, nearest first, beginning with the term itself."""
    steps = {term: 0}
    queue = [term]
    for at in queue:
        for parent in parents[at]:
            if parent not in steps:
                steps[parent] = steps[at] + 1
                queue.append(parent)
    return steps


def lowest(parents: Parents, terms: Collection[str]) -> list[str]:
    """Those of ``terms`` that are not an ancestor of another."""
    above = {other for term in terms for other in steps_up(parents, term) if other != term}
    return [term for term in terms if term not in above]


def subgraph(parents: Parents, terms: Iterable[str]) -> Subgraph:
    """The terms with all their ancestors."""
    inside = {above: parents[above] for term in terms for above in steps_up(parents, term)}
    levels: dict[str, int] = {}
    for term in TopologicalSorter(inside).static_order():
        levels[term] = 1 + max((levels[parent] for parent in inside[term]), default=-1)
    ordered = sorted(inside, key=lambda term: (levels[term], term))
    number = {term: place for place, term in enumerate(ordered)}
    return Subgraph(
        terms=tuple(ordered),
        parents=tuple(tuple(sorted(number[parent] for parent in inside[term])) for term in ordered),
        levels=tuple(levels[term] for term in ordered),
        ancestors=tuple(tuple(sorted(number[above] for above in steps_up(inside, term))) for term in ordered),
    )


def find_cycle(parents: Parents) -> list[str]:
    """The terms of a cycle, each a child of the next, the first repeated at the end; empty if there is none."""
    n_children = Counter(chain.from_iterable(parents.values()))
    done = [term for term in parents if not n_children[term]]
    for term in done:  # grows: a term is done after all its children
        for parent in parents[term]:
            n_children[parent] -= 1
            if not n_children[parent]:
                done.append(parent)
    left = sorted(parents.keys() - set(done))
    try:
        TopologicalSorter({term: [parent for parent in parents[term] if parent in left] for term in left}).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1][:0:-1]
        first = cycle.index(min(cycle))
        return [*cycle[first:], *cycle[: first + 1]]
    return []


def with_ancestry(parents: Parents, ancestry: Mapping[str, Collection[str]]) -> dict[str, tuple[str, ...]]:
    """The graph with as few further edges as give each term all ancestors that ``ancestry`` lists for it."""
    return {term: _with_further(term, above, ancestry.get(term, ()), ancestry) for term, above in parents.items()}


def restricted(parents: Parents, keep: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The graph of the terms to keep. A path through other terms becomes an edge, unless another path exists."""
    kept = {}
    dropped = parents.keys() - keep
    for term in keep:
        above = tuple(parents[term])
        if not dropped.isdisjoint(above):
            above = tuple(parent for parent in above if parent in keep)
            further = {other for other in steps_up(parents, term) if other in keep}
            ancestry = {other: further & steps_up(parents, other).keys() for other in further}
            above = _with_further(term, above, further, ancestry)
        kept[term] = above
    return kept


def _with_further(
    term: str, parents: Collection[str], ancestors: Collection[str], ancestry: Mapping[str, Collection[str]]
) -> tuple[str, ...]:
    """A term's parents, and those of its ancestors that are neither above a parent nor above another such ancestor."""
    if len(ancestors) <= len(parents):
        return tuple(parents)
    missing = set(ancestors).difference((term,), parents, *(ancestry.get(parent, ()) for parent in parents))
    if not missing:
        return tuple(parents)
    above = (set(ancestry.get(other, ())) - {other} for other in missing)
    return tuple(sorted({*parents, *missing.difference(*above)}))


def membership(n_classes: int, hierarchy: Mapping[int, Sequence[int]]) -> NDArray[np.bool_]:
    """Which classes are below which inner labels.

    Args:
        n_classes: number of classes, which have the codes from 0.
        hierarchy: {code of an inner label: codes of the classes below it}.

    Returns:
        ``(n_inner, n_classes)``; row i is the inner label with the code ``n_classes + i``.

    Raises:
        ValueError: the codes of the inner labels do not follow those of the classes, or there are no such classes.
    """
    matrix = np.zeros((len(hierarchy), n_classes), dtype=np.bool_)
    for row, code in enumerate(sorted(hierarchy)):
        below = list(hierarchy[code])
        if code != n_classes + row or not below or not set(below) <= set(range(n_classes)):
            raise ValueError(
                f"hierarchy has {code}: {below}; expected inner labels with codes from {n_classes} on, each with codes "
                f"of classes from 0 to {n_classes - 1}"
            )
        matrix[row, below] = True
    return matrix
