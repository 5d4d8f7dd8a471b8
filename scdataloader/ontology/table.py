"""Tables of terms: what readers return and what an `Ontology` is built from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from scdataloader.ontology.graph import Parents, find_cycle, restricted, with_ancestry
from scdataloader.ontology.names import folded, prefix_of

_SEPARATOR = " + "
"""Between the names and releases of several ontologies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TermTable:
    """Terms of an ontology as their source gives them, in any order.

    ::

        TermTable(
            name="TOY",
            labels={"TOY:1": "cell", "TOY:2": "blood cell", "TOY:3": "glia"},
            parents={"TOY:2": ["TOY:1"], "TOY:3": ["TOY:1"]},
            synonyms={"TOY:3": ["glial cell"]},
        )
    """

    name: str
    """Name of the ontology, such as ``CL``."""
    version: str = ""
    """Release, as the source writes it; empty if the source does not give it."""
    labels: Mapping[str, str]
    """``{id: name}`` of every term; an empty name if it has none."""
    parents: Mapping[str, Collection[str]]
    """``{id: ids of its direct parents}``; roots may be left out."""
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """``{id: exact synonyms}``"""
    deprecated: Collection[str] = frozenset()
    """Ids of terms that are not to be used any more."""
    replaced_by: Mapping[str, str] = field(default_factory=dict)
    """``{deprecated id: its replacement}``, which may be deprecated as well or belong to another ontology."""
    consider: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """``{deprecated id: ids to choose from instead}``; only for messages."""
    ancestry: Mapping[str, Collection[str]] | None = None
    """``{id: ids of all its ancestors}``, where the parents alone do not lead to all of them."""

    @property
    def title(self) -> str:
        """Name and release."""
        return f"{self.name} {self.version}".rstrip()


def build(table: TermTable, prefixes: Sequence[str] | str | None = None) -> TermTable:
    """The terms with one of the prefixes, sorted, with parents among the current ones only and without ``ancestry``.

    A deprecated term without a replacement is replaced by the current term of the same name, if there is one.

    Raises:
        ValueError: no term is left, a parent is not a term, or terms are their own ancestors.
    """
    prefixes = [prefixes] if isinstance(prefixes, str) else prefixes
    parents = _parents(table)
    if cycle := find_cycle(parents):
        path = " → ".join(f"{term} ({table.labels[term]})" for term in cycle)
        raise ValueError(f"{table.name} has a cycle of terms and their parents: {path}; remove one of these edges")
    if table.ancestry is not None:
        parents = with_ancestry(parents, table.ancestry)
    inside = sorted(table.labels)
    if prefixes is not None:
        starts = tuple(prefix.rstrip(":_") + mark for prefix in prefixes for mark in ":_")
        inside = [term for term in inside if term.startswith(starts)]
    deprecated = frozenset(table.deprecated).intersection(inside)
    current = dict.fromkeys(term for term in inside if term not in deprecated)
    if not current:
        which = f" whose id begins with {', '.join(prefixes)}" if prefixes else ""
        raise ValueError(f"{table.name} has no current term{which}")
    return replace(
        table,
        labels={term: table.labels[term] for term in inside},
        parents=restricted(parents, current),
        synonyms={term: tuple(table.synonyms[term]) for term in inside if table.synonyms.get(term)},
        deprecated=deprecated,
        replaced_by=_namesakes(table.labels, current, deprecated)
        | {term: new for term, new in table.replaced_by.items() if term in deprecated},
        consider={
            term: tuple(other for other in table.consider[term] if other in current)
            for term in deprecated.intersection(table.consider)
        },
        ancestry=None,
    )


def _namesakes(labels: Mapping[str, str], current: Collection[str], deprecated: Collection[str]) -> dict[str, str]:
    """``{deprecated id: current id}`` of terms with one name, if only one of the current ones has it.

    "obsolete" before the name of a deprecated term does not count.
    """
    by_name: dict[str, list[str]] = {}
    for term in current:
        by_name.setdefault(folded(labels[term]), []).append(term)
    found = {}
    for term in deprecated:
        name = folded(labels[term])
        same = by_name.get(name.removeprefix("obsolete ").removeprefix("obsolete_"), []) if name else []
        if len(same) == 1:
            found[term] = same[0]
    return found


def merge(tables: Sequence[TermTable]) -> TermTable:
    """The terms of several tables, each with its parents in all of them; independent of their order.

    Name, synonyms, deprecation and replacement of a term are those of the table with the most terms of its prefix: a
    file of UBERON contains some terms of CL, perhaps of an older release.
    """
    labels: dict[str, str] = {}
    parents: dict[str, Collection[str]] = {}
    synonyms: dict[str, Sequence[str]] = {}
    replaced_by: dict[str, str] = {}
    consider: dict[str, Sequence[str]] = {}
    deprecated: set[str] = set()
    shared: set[str] = set()
    for table in tables:
        shared |= labels.keys() & table.labels.keys()
        labels |= table.labels
        parents |= table.parents
        synonyms |= table.synonyms
        replaced_by |= table.replaced_by
        consider |= table.consider
        deprecated |= set(table.deprecated)
    n_terms = [Counter(map(prefix_of, table.labels)) for table in tables] if shared else []
    for term in shared:
        owners = [number for number, table in enumerate(tables) if term in table.labels]
        best = tables[min((_rank(term, tables[number], n_terms[number]), number) for number in owners)[1]]
        labels[term] = best.labels[term]
        parents[term] = [parent for number in owners for parent in tables[number].parents.get(term, ())]
        synonyms[term] = best.synonyms.get(term, ())
        if term not in best.deprecated:
            deprecated.discard(term)
        replaced_by.pop(term, None)
        if term in best.replaced_by:
            replaced_by[term] = best.replaced_by[term]
    return TermTable(
        name=_SEPARATOR.join(sorted({title for table in tables for title in table.title.split(_SEPARATOR)})),
        labels=labels,
        parents=parents,
        synonyms=synonyms,
        deprecated=deprecated,
        replaced_by=replaced_by,
        consider=consider,
    )


def _rank(term: str, table: TermTable, n_terms: Counter[str]) -> tuple[Any, ...]:
    """Least for the table that names a term; ties are broken by the title and then by the content."""
    words = (table.labels[term], tuple(table.synonyms.get(term, ())), table.replaced_by.get(term, ""))
    return (-n_terms[prefix_of(term)], table.title, term in table.deprecated, *words)


def _parents(table: TermTable) -> Parents:
    """The distinct parents of every term, sorted; a term is not its own parent."""
    parents: dict[str, tuple[str, ...]] = dict.fromkeys(table.labels, ())
    for term, above in table.parents.items():
        if above:
            parents[term] = tuple(sorted({*above} - {term}))
    if stray := parents.keys() - table.labels.keys():
        raise ValueError(f"{table.name} has parents of {min(stray)!r}, which is not one of its terms; add it to labels")
    if unknown := set(chain.from_iterable(parents.values())) - table.labels.keys():
        child = next(term for term, above in parents.items() if not unknown.isdisjoint(above))
        raise ValueError(
            f"{table.name} has the parent {min(unknown.intersection(parents[child]))!r} of {child!r}, which is not one "
            "of its terms; add it to labels, or remove it from parents"
        )
    return parents
