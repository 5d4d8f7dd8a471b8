"""Tables of terms: what readers return and what an `Ontology` is built from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from scdataloader.ontology.graph import Parents, find_cycle, restricted, with_ancestry
from scdataloader.ontology.names import prefix_of

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
    ancestry: Mapping[str, Collection[str]] | None = None
    """``{id: ids of all its ancestors}``, where the parents alone do not lead to all of them."""

    @property
    def title(self) -> str:
        """Name and release."""
        return f"{self.name} {self.version}".rstrip()


def build(table: TermTable, prefixes: Sequence[str] | str | None = None) -> TermTable:
    """The terms with one of the prefixes, sorted, with parents among the current ones only and without ``ancestry``.

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
    starts = "" if prefixes is None else tuple(prefix.rstrip(":_") + mark for prefix in prefixes for mark in ":_")
    inside = sorted(term for term in table.labels if term.startswith(starts))
    deprecated = frozenset(table.deprecated).intersection(inside)
    current = {term: None for term in inside if term not in deprecated}
    if not current:
        which = f" whose id begins with {', '.join(prefixes)}" if prefixes else ""
        raise ValueError(f"{table.name} has no current term{which}")
    return replace(
        table,
        labels={term: table.labels[term] for term in inside},
        parents=restricted(parents, current),
        synonyms={term: tuple(table.synonyms[term]) for term in inside if term in table.synonyms},
        deprecated=deprecated,
        ancestry=None,
    )


def merge(tables: Sequence[TermTable]) -> TermTable:
    """The terms of several tables, each with its parents in all of them; independent of their order.

    Name, synonyms, deprecation and replacement of a term are those of the table with the most terms of its prefix: a
    file of UBERON contains some terms of CL, perhaps of an older release.
    """
    parents: dict[str, set[str]] = {}
    # ties are broken by the title and then by content
    words: dict[str, tuple[int, str, bool, str, Sequence[str], str]] = {}
    for table in tables:
        n_terms = Counter(map(prefix_of, table.labels))
        for term, label in table.labels.items():
            own = (table.title, term in table.deprecated, label, table.synonyms.get(term, ()))
            rank = (-n_terms[prefix_of(term)], *own, table.replaced_by.get(term, ""))
            words[term] = min(words.get(term, rank), rank)
            parents.setdefault(term, set()).update(table.parents.get(term, ()))
    return TermTable(
        name=_SEPARATOR.join(sorted({title for table in tables for title in table.title.split(_SEPARATOR)})),
        labels={term: label for term, (_, _, _, label, _, _) in words.items()},
        parents=parents,
        synonyms={term: synonyms for term, (_, _, _, _, synonyms, _) in words.items()},
        deprecated={term for term, (_, _, deprecated, _, _, _) in words.items() if deprecated},
        replaced_by={term: new for term, (_, _, _, _, _, new) in words.items() if new},
    )


def _parents(table: TermTable) -> Parents:
    """The distinct parents of every term, sorted; a term is not its own parent."""
    parents = {}
    for term in table.labels:
        above = {*table.parents.get(term, ())} - {term}
        if unknown := [parent for parent in above if parent not in table.labels]:
            raise ValueError(
                f"{table.name} has the parent {min(unknown)!r} of {term!r}, which is not one of its terms; add it to "
                "labels, or remove it from parents"
            )
        parents[term] = tuple(sorted(above))
    if stray := table.parents.keys() - table.labels.keys():
        raise ValueError(f"{table.name} has parents of {min(stray)!r}, which is not one of its terms; add it to labels")
    return parents
