"""Ontologies: terms, their names, and the hierarchy of their parents.

A term is identified by its id (``CL:0000084``). *Current* terms form a directed acyclic graph, in which a term may have
several parents. *Deprecated* terms have a name and perhaps a replacement, but no place in the graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scdataloader.ontology.graph import Subgraph, lowest, steps_up, subgraph
from scdataloader.ontology.names import Match, TermNames
from scdataloader.ontology.readers import read_bionty, read_guide, read_obo
from scdataloader.ontology.table import TermTable, build, merge


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Ontology:
    """Terms with names and parents; made by `from_guide`, `from_bionty`, `from_obo`, `from_table` or `union`.

    Methods that take an id raise LookupError if the ontology has no such term; methods about the hierarchy raise
    ValueError if the term is deprecated. Lists of ids are sorted. A term is not its own ancestor or descendant, unless
    ``include_self`` is given.
    """

    _table: TermTable

    @classmethod
    def from_guide(cls, name: str, *, schema_version: str | None = None) -> Ontology:
        """An ontology of the CELLxGENE schema, from the package cellxgene-ontology-guide; needs no network.

        Args:
            name: ``"CL"``, ``"UBERON"``, ``"MONDO"``, ``"EFO"``, ``"HsapDv"`` …, in any case. Ancestors are those of
                the guide; in UBERON they include what a term is part of.
            schema_version: version of the CELLxGENE schema, which fixes the releases; the newest by default.

        Raises:
            ValueError: the guide has no such ontology or schema, or the ontology is NCBITaxon.
        """
        return cls.from_table(read_guide(name, schema_version))

    @classmethod
    def from_bionty(cls, registry: Any) -> Ontology:
        """The terms of a registry of the connected lamindb instance, in two queries.

        Records without an ontology id are left out; records named "obsolete …" are deprecated. If no record has an id,
        the terms are those that ``registry.import_source()`` would save; nothing is saved.

        Args:
            registry: ``bionty.CellType`` or another registry whose records have parents, or its name.

        Raises:
            RuntimeError: no lamindb instance is connected.
            ConnectionError: the registry is empty, and its source cannot be downloaded.
            TypeError: the records of the registry have no parents.
        """
        return cls.from_table(read_bionty(registry))

    @classmethod
    def from_obo(
        cls, path_or_url: str | Path, *, relations: Sequence[str] = (), prefixes: Sequence[str] | None = None
    ) -> Ontology:
        """A file in OBO, OWL (RDF/XML) or OBO graph (JSON) format, compressed or not.

        Args:
            path_or_url: path or URL of the file.
            relations: relations that lead to a parent besides ``is_a``, such as ``["part_of"]``.
            prefixes: keep only terms whose ids begin with one of these, such as ``["CL"]``; all by default. A path
                through terms that are left out becomes an edge, unless another path exists.

        Raises:
            FileNotFoundError: the file does not exist.
            ConnectionError: the file cannot be downloaded.
            SourceFormatError: the file is not an ontology, or is damaged.
            ValueError: terms are their own ancestors, the file lacks one of ``relations``, or no term is left.
        """
        return cls.from_table(read_obo(path_or_url, relations), prefixes=prefixes)

    @classmethod
    def from_table(cls, table: TermTable, *, prefixes: Sequence[str] | None = None) -> Ontology:
        """An ontology of your own; ``prefixes`` as in `from_obo`.

        Raises:
            ValueError: a parent is not a term, terms are their own ancestors, or no term is left.
        """
        return cls(_table=build(table, prefixes))

    @classmethod
    def union(cls, ontologies: Sequence[Ontology]) -> Ontology:
        """Several ontologies side by side, in any order; a term that some share has its parents of each.

        Name and deprecation of such a term are those of the ontology with the most terms of its prefix.

        Raises:
            ValueError: no ontology is given, or terms are their own ancestors in the union.
        """
        if not ontologies:
            raise ValueError("union of no ontologies; expected at least one")
        if len(ontologies) == 1:
            return ontologies[0]
        return cls.from_table(merge([ontology._table for ontology in ontologies]))  # noqa: SLF001 (of this class)

    def __repr__(self) -> str:
        return f"Ontology({self.name!r}, version={self.version!r}, {len(self):,} terms)"

    def __len__(self) -> int:
        return len(self._table.parents)

    def __contains__(self, term: object) -> bool:
        """Whether ``term`` is the id of a current term."""
        return term in self._table.parents

    @property
    def name(self) -> str:
        """Name, such as ``CL``."""
        return self._table.name

    @property
    def version(self) -> str:
        """Release, as its source writes it; empty if the source does not give it."""
        return self._table.version

    @property
    def title(self) -> str:
        """Name and release."""
        return self._table.title

    @cached_property
    def terms(self) -> tuple[str, ...]:
        """Ids of the current terms."""
        return tuple(self._table.parents)

    @cached_property
    def deprecated(self) -> tuple[str, ...]:
        """Ids of the deprecated terms."""
        return tuple(sorted(self._table.deprecated))

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Prefixes of the ids, such as ``("CL",)``."""
        return self._names.prefixes

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that change with the terms, their names and their parents."""
        table = self._table
        parts = [sorted(part.items()) for part in (table.labels, table.parents, table.synonyms, table.replaced_by)]
        return hashlib.blake2b(repr((table.title, self.deprecated, parts)).encode(), digest_size=16).hexdigest()

    def label(self, term: str) -> str:
        """The term's name; its id if it has none."""
        return self._table.labels[self._known(term)] or term

    def synonyms(self, term: str) -> tuple[str, ...]:
        """The term's exact synonyms."""
        return tuple(self._table.synonyms.get(self._known(term), ()))

    def is_deprecated(self, term: str) -> bool:
        """Whether the term is deprecated."""
        return self._known(term) in self._table.deprecated

    def replaced_by(self, term: str) -> str | None:
        """The replacement of a deprecated term, which may be deprecated as well or belong to another ontology.

        If the ontology states none, it is the current term of the same name, if there is one.
        """
        return self._table.replaced_by.get(term) if self.is_deprecated(term) else None

    def current(self, term: str) -> str | None:
        """The term itself, or the current term at the end of its replacements; None if there is none here."""
        at, seen = self._known(term), {""}
        while at not in self:
            seen.add(at)
            at = self._table.replaced_by.get(at, "")
            if at in seen or at not in self._table.labels:
                return None
        return at

    def find(self, text: str) -> str:
        """The id of the term with this id, name or exact synonym, in any case; ``CL_0000084`` is ``CL:0000084``.

        Names take precedence over synonyms, and current terms over deprecated ones, which are found too.

        Raises:
            LookupError: no term (the message shows the nearest) or several terms go by that name.
        """
        return self._only(text, self._names.candidates(text))

    def match(self, label: str) -> Match:
        """The current term that a label means, if any; training and curation use this same rule.

        A label is looked up as in `find`, then as the name of a term before it was deprecated ("obsolete …"). A
        deprecated term means its replacement.
        """
        found = self._names.candidates(label) or self._names.candidates(f"obsolete {label}")
        term = self.current(found[0]) if len(found) == 1 else None
        advice = self._table.consider.get(found[0], ()) if len(found) == 1 and term is None else ()
        consider = tuple(self._names.shown([other]) for other in advice)
        return Match(label=label, candidates=found, term=term, consider=consider)

    def resolve(self, label: str) -> Match:
        """The `match` of a label that has to mean a current term.

        Raises:
            LookupError: no term or several terms go by that name, or the term is deprecated without replacement.
        """
        match = self.match(label)
        if match.term is None:
            old = self._only(label, match.candidates)
            advice = f"the ontology says to consider {' or '.join(match.consider)}" if match.consider else "correct it"
            raise LookupError(
                f"{label!r} is deprecated in {self.name} and has no current replacement "
                f"(replaced by {self.replaced_by(old) or 'nothing'}); {advice}, or leave it empty"
            )
        return match

    def parents(self, term: str) -> list[str]:
        """The term's direct parents."""
        return list(self._table.parents[self._current(term)])

    def ancestors(self, term: str, *, include_self: bool = False) -> list[str]:
        """All terms above the term."""
        above = steps_up(self._table.parents, self._current(term))
        if not include_self:
            del above[term]
        return sorted(above)

    def descendants(self, term: str, *, include_self: bool = False) -> list[str]:
        """All terms below the term."""
        below = steps_up(self._children, self._current(term))
        if not include_self:
            del below[term]
        return sorted(below)

    def depth(self, term: str) -> int:
        """Edges on the shortest path to a root; 0 for roots."""
        parents = self._table.parents
        return next(n for above, n in steps_up(parents, self._current(term)).items() if not parents[above])

    def roll_up(
        self, terms: Iterable[str], to: Iterable[str] | int, *, ambiguous: Literal["refuse", "nearest"] = "refuse"
    ) -> dict[str, str]:
        """``{term: target}``: for each term its lowest ancestor, or the term itself, among the targets.

        Args:
            terms: ids.
            to: ids of the targets; or a depth, so that deeper terms are rolled up to terms of that depth and the others
                stay.
            ambiguous: what to do if several targets are lowest, none of them above another. ``"nearest"`` chooses the
                one with the fewest edges to it, and of these the one with the smallest id.

        Raises:
            ValueError: a term is under no target, or under several lowest targets and ``ambiguous`` is ``"refuse"``.
        """
        is_target, shown = self._targets(to)
        chosen: dict[str, str] = {}
        for term in self._all_current(terms):
            steps = steps_up(self._table.parents, term)
            targets = [term] if is_target(term) else sorted(filter(is_target, steps))
            found = lowest(self._table.parents, targets)
            if not found:
                raise ValueError(
                    f"{self._names.shown([term])} is under none of the targets {shown}; add one of its ancestors to "
                    "them, or leave the term out"
                )
            if len(found) > 1 and ambiguous == "refuse":
                raise ValueError(
                    f"{self._names.shown([term])} is under {len(found)} targets, none above another: "
                    f"{self._names.shown(found)}; keep one of them, or set ambiguous='nearest'"
                )
            chosen[term] = min(found, key=lambda target: (steps[target], target))
        return chosen

    def ancestor_matrix(self, terms: Iterable[str]) -> NDArray[np.bool_]:
        """``(n, n)`` for n terms: [i, j] is True if term i is term j or one of its ancestors."""
        terms = self._all_current(terms)
        number = {term: place for place, term in enumerate(dict.fromkeys(terms))}
        matrix = np.zeros((len(number), len(number)), dtype=np.bool_)
        for term, column in number.items():
            matrix[[number[above] for above in steps_up(self._table.parents, term) if above in number], column] = True
        order = [number[term] for term in terms]
        return matrix[np.ix_(order, order)]

    def subgraph(self, terms: Iterable[str]) -> Subgraph:
        """The terms with all their ancestors."""
        return subgraph(self._table.parents, self._all_current(terms))

    @cached_property
    def _names(self) -> TermNames:
        table = self._table
        return TermNames(title=table.title, labels=table.labels, synonyms=table.synonyms, deprecated=table.deprecated)

    @cached_property
    def _children(self) -> dict[str, tuple[str, ...]]:
        children: dict[str, list[str]] = {term: [] for term in self._table.parents}
        for term, parents in self._table.parents.items():
            for parent in parents:
                children[parent].append(term)
        return {term: tuple(below) for term, below in children.items()}

    def _known(self, term: str) -> str:
        if term not in self._table.labels:
            raise LookupError(self._names.why_unknown(str(term)))
        return term

    def _current(self, term: str) -> str:
        if term in self._table.parents:
            return term
        replacement = self.replaced_by(term)
        if replacement is None:
            instead = "it has no replacement"
        elif current := self.current(term):
            instead = f"use {current}, which current() returns for it"
        else:
            instead = f"its replacement {replacement} is not a current term of this ontology"
        raise ValueError(
            f"{self._names.shown([term])} is deprecated and has no place in the hierarchy of {self.title}; {instead}"
        )

    def _all_current(self, terms: Iterable[str]) -> list[str]:
        if isinstance(terms, str):
            raise TypeError(f"expected ids of terms, got the text {terms!r}; give [{terms!r}]")
        return [self._current(term) for term in terms]

    def _only(self, text: str, candidates: Sequence[str]) -> str:
        """The only candidate for ``text``."""
        if not candidates:
            raise LookupError(self._names.why_unknown(text))
        if len(candidates) > 1:
            raise LookupError(
                f"{text!r} may be any of {len(candidates)} terms of {self.title}: {self._names.shown(candidates)}; "
                "give the id"
            )
        return candidates[0]

    def _targets(self, to: Iterable[str] | int) -> tuple[Callable[[str], bool], str]:
        """Whether a term is a target, and the targets for a message."""
        if isinstance(to, int | np.integer):
            if to < 0:
                raise ValueError(f"cannot roll up to depth {to}; roots have depth 0")
            return cache(lambda term: self.depth(term) <= to), f"of depth {to}"
        targets = set(self._all_current(to))
        if not targets:
            raise ValueError("there is no term to roll up to; give at least one, or a depth")
        return targets.__contains__, self._names.shown(sorted(targets))
