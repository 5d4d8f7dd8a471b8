"""Genes that the sources of one organism share, where no vocabulary states what they should have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scdataloader.errors import GeneOverlapError
from scdataloader.genes.names import are_ids
from scdataloader.genes.organisms import UNSTATED
from scdataloader.runtime.messages import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scdataloader.genes.vocabulary import GeneMap, GeneVocabulary
    from scdataloader.runtime.faults import Faults

N_EXAMPLES = 3
_N_GENES_OF_A_GENOME = 60_000


def check_shared_genes(
    vocabulary: GeneVocabulary, maps: Sequence[tuple[str, GeneMap]], min_overlap: float, faults: Faults
) -> None:
    """Note an error for each group of sources whose genes are hardly those of most sources of their organism.

    From the source with most genes on, each source has to share the fraction ``min_overlap`` of its genes with those
    before it, in any order: a small panel fits a large atlas that has its genes. Two groups of sources that have no
    genes in common, such as one with ids and one with symbols, are thus found whatever their sizes. Two small panels
    with Ensembl-style ids may share fewer, but not fewer than random genes of one genome.

    Args:
        vocabulary: All genes of all sources.
        maps: ``(name, map)`` of each source.
        min_overlap: Fraction from 0, which checks nothing, to 1.
        faults: Takes a GeneOverlapError for each group but the largest of an organism.
    """
    if min_overlap == 0:
        return
    for organism, (start, stop) in vocabulary.organisms.items():
        names, has = [], []
        for name, genes in maps:
            if genes.organism == organism:
                names.append(name)
                has.append(genes.measured[start:stop])
        groups = _groups(has, vocabulary.ids[start:stop], min_overlap)
        largest = max(groups, key=len)
        for odd in groups:
            if odd is not largest:
                message = _message(names, has, odd, vocabulary.ids[start:stop], organism, min_overlap)
                faults.add(names[odd[0]], GeneOverlapError(message))


def _groups(has: Sequence[NDArray[np.bool_]], ids: Sequence[str], min_overlap: float) -> list[list[int]]:
    """Numbers of the sources that fit each other, in groups; ``has`` are the genes of each, of ``ids``."""
    sizes = [int(np.count_nonzero(genes)) for genes in has]

    def fits(number: int, joint: NDArray[np.bool_]) -> bool:
        n_shared, size = np.count_nonzero(has[number] & joint), sizes[number]
        if n_shared >= min_overlap * size:
            return True
        by_chance = size * np.count_nonzero(joint) / _N_GENES_OF_A_GENOME
        if not n_shared or n_shared < by_chance:
            return False
        return all(are_ids(np.asarray(ids, object)[genes]) for genes in (has[number], joint))

    rest = sorted(range(len(has)), key=lambda number: -sizes[number])
    groups = []
    while rest:
        group, joint = [rest[0]], has[rest[0]].copy()
        rest = rest[1:]
        while more := [number for number in rest if fits(number, joint)]:
            for number in more:
                joint |= has[number]
            group += more
            rest = [number for number in rest if number not in more]
        groups.append(group)
    return groups


def _message(
    names: Sequence[str],
    has: Sequence[NDArray[np.bool_]],
    odd: Sequence[int],
    ids: Sequence[str],
    organism: str,
    min_overlap: float,
) -> str:
    others = sorted(set(range(len(names))) - set(odd))
    own, theirs = (np.logical_or.reduce([has[number] for number in some]) for some in (odd, others))
    n_own, n_shared = np.count_nonzero(own), np.count_nonzero(own & theirs)
    like = [shown(np.asarray(ids, object)[genes][:N_EXAMPLES]) for genes in (own & ~theirs, theirs & ~own)]
    of = "of no stated organism" if organism == UNSTATED else f"of {organism}"
    return (
        f"{shown(names[number] for number in odd)} shares {n_shared:,} of its {n_own:,} genes ({n_shared / n_own:.1%}) "
        f"with the other sources {of}, {shown(names[number] for number in others)}, where {min_overlap:.1%} is needed; "
        f"its genes look like {like[0]}, theirs like {like[1]}; name the column of var with the same ids, correct the "
        "organism, give a gene table, or lower min_overlap"
    )
