"""Which sources of a store share a gene space, and which genes these spaces have.

A gene space is a list of gene ids, each once, sorted as Python sorts text. The sources that are to be converted are
gone through from the one of most genes to that of fewest, and in the order in which they are named where they have
equally many:

1. Where a store is added to, its own spaces stay as they are. A source all of whose genes are in one of them takes it,
   the first such.
2. Any other source takes the first of the new spaces that has at least half of its genes, and the genes that this one
   lacks are added to it.
3. Where there is none, it begins a new space, of its own genes.

So sources with different parts of one annotation share a space, of all that any of them has; other organisms, and
symbols beside Ensembl ids, have spaces of their own. Nothing but the lists of genes and their order decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


class GeneNames:
    """The gene ids of many sources, each kept once, and lists of them as numbers."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._number)

    def numbers(self, ids: Iterable[str]) -> NDArray[np.int32]:
        """``(n,)`` the number of each id: they are numbered in the order in which they are first met."""
        number = self._number
        return np.array([number.setdefault(gene, len(number)) for gene in ids], np.int32)

    def sorted(self, numbers: NDArray[np.integer]) -> tuple[list[str], NDArray[np.int64]]:
        """Ids in the order of text, and their numbers."""
        ids = list(self._number)
        order = sorted(numbers.tolist(), key=ids.__getitem__)
        return [ids[number] for number in order], np.array(order, np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spaces:
    """The gene spaces of sources that are to be converted."""

    new: list[list[str]]
    """Ids of each new space, sorted."""
    of_source: tuple[int, ...]
    """The space of each source: those of the store that is added to come first, then the new ones."""
    n_genes: list[int]
    """How many genes the space of each source has."""
    ranks: list[NDArray[np.int32]]
    """``(n_genes,)`` of each source: places of its genes in its space; one array for all with the same genes."""

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the ids of each new space: what names its file."""
        return tuple(blake2b(json.dumps(ids).encode(), digest_size=16).hexdigest() for ids in self.new)


def choose_spaces(
    names: GeneNames, sources: Sequence[NDArray[np.int32]], there: Sequence[Sequence[str]] = ()
) -> Spaces:
    """Choose by the rule above.

    Args:
        names: What the numbers in ``sources`` stand for.
        sources: Genes of each source, in its own order.
        there: Ids of the spaces of the store that is added to.
    """
    fixed = [names.numbers(ids) for ids in there]
    has = [_marked(genes, len(names)) for genes in fixed]
    of_source = [0] * len(sources)
    for number in sorted(range(len(sources)), key=lambda number: -len(sources[number])):
        genes = sources[number]
        at = _first_fit(has, len(fixed), genes)
        if at == len(has):
            has.append(np.zeros(len(names), np.bool_))
        has[at][genes] = True  # of a fixed one, all are there
        of_source[number] = at
    new = [names.sorted(np.flatnonzero(marked)) for marked in has[len(fixed) :]]
    place: list[NDArray[np.int32]] = []
    orders: list[NDArray[np.integer]] = [*fixed, *(numbers for _, numbers in new)]
    for order in orders:
        place.append(np.zeros(len(names), np.int32))
        place[-1][order] = np.arange(len(order), dtype=np.int32)
    ranks: dict[tuple[int, int], NDArray[np.int32]] = {}
    for at, genes in zip(of_source, sources, strict=True):
        if (at, id(genes)) not in ranks:
            ranks[at, id(genes)] = place[at][genes]
    return Spaces(
        new=[ids for ids, _ in new],
        of_source=tuple(of_source),
        n_genes=[int(has[at].sum()) for at in of_source],
        ranks=[ranks[at, id(genes)] for at, genes in zip(of_source, sources, strict=True)],
    )


def _first_fit(has: Sequence[NDArray[np.bool_]], n_fixed: int, genes: NDArray[np.int32]) -> int:
    """The first space that a source may take; ``len(has)`` for a new one."""
    for at, marked in enumerate(has):
        n_shared = int(np.count_nonzero(marked[genes]))
        if n_shared == len(genes) if at < n_fixed else 2 * n_shared >= len(genes):
            return at
    return len(has)


def _marked(numbers: NDArray[np.int32], n: int) -> NDArray[np.bool_]:
    marked = np.zeros(n, np.bool_)
    marked[numbers] = True
    return marked
