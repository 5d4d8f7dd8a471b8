"""Term ids, names and synonyms: parsing labels, looking up terms, and suggesting what a misspelt label may mean.

A joint label names several terms. The CELLxGENE schema writes the ids sorted and without repetition, as
``MONDO:0004604 || MONDO:0043004``; before its version 6.0 they were separated by commas, as
``HANCESTRO:0005,HANCESTRO:0014``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from scdataloader.runtime.messages import N_SHOWN, shown

_ID = re.compile(r"(?P<prefix>[A-Za-z]\w*?)(?::\w+|_\d{4,})")
_PREFIX = re.compile(r"[A-Za-z]\w*?(?=[:_])")
_SEPARATOR = "||"

MatchKind = Literal["id", "name", "deprecated", "obsolete", "unknown"]


def prefix_of(text: str) -> str:
    """The prefix of a text that has the form of an id, in the case in which it is written; empty for names."""
    match = _ID.fullmatch(text.strip())
    return match["prefix"] if match else ""


def terms_in(label: str) -> list[str]:
    """The ids or names in a joint label, as they are written; any other label alone.

    Commas separate terms only if all parts are ids, because names contain commas themselves.
    """
    found: list[str] = []
    for part in label.split(_SEPARATOR):
        ids = part.split(",")
        found += ids if all(map(prefix_of, ids)) else [part]
    return [term.strip() for term in found]


def is_joint(label: str) -> bool:
    """Whether a label names several terms."""
    return len(terms_in(label)) > 1


def joint_label(terms: Iterable[str]) -> str:
    """The label that names all of ``terms``, in the form of the schema; the term itself if there is only one."""
    return f" {_SEPARATOR} ".join(sorted(set(terms)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """The term of an ontology that a label means."""

    label: str
    """The label as it is written."""
    candidates: tuple[str, ...]
    """Ids of all terms that the label may mean, deprecated ones included; several if it is ambiguous."""
    term: str | None
    """Id of the current term: the only candidate, or its replacement; None if there is none."""
    consider: tuple[str, ...] = ()
    """Terms, with names, that the ontology suggests instead of a deprecated one without a replacement."""

    @property
    def kind(self) -> MatchKind:
        """What the label is.

        ``"id"`` of a current term; ``"name"`` or other spelling of one; ``"deprecated"``, with a current term instead;
        ``"obsolete"``, without; or ``"unknown"``: no term, or one of several.
        """
        if self.term is None:
            return "obsolete" if len(self.candidates) == 1 else "unknown"
        if self.term != self.candidates[0]:
            return "deprecated"
        return "id" if self.label == self.term else "name"


@dataclass(frozen=True, kw_only=True, eq=False)
class TermNames:
    """Index of the ids, names and exact synonyms of an ontology, in any case and spacing."""

    title: str
    """Name and release of the ontology, for messages."""
    labels: Mapping[str, str]
    """``{id: name}``; empty for a term without a name."""
    synonyms: Mapping[str, Iterable[str]]
    """``{id: exact synonyms}``"""
    deprecated: Collection[str]
    """Ids of deprecated terms."""

    def candidates(self, text: str) -> tuple[str, ...]:
        """Ids of all terms that ``text`` may name.

        Ids are compared first. Names take precedence over synonyms, and current terms over deprecated ones.
        """
        return self._by_id.get(_id_key(text)) or self._by_name.get(folded(text), ())

    def shown(self, terms: Iterable[str]) -> str:
        """The first few terms with their names, for a message."""
        return shown(f"{term} ({self.labels[term] or 'without a name'})" for term in terms)

    def why_unknown(self, text: str) -> str:
        """A message that ``text`` is not an id, with the nearest ids or names."""
        for what, terms in (("an id", self._by_id.get(_id_key(text))), ("a name", self._by_name.get(folded(text)))):
            if terms:
                return f"{text!r} is {what} of {self.shown(terms)}; expected the id in that form"
        prefix = prefix_of(text)
        if prefix and prefix.lower() not in map(str.lower, self.prefixes):
            return (
                f"{text!r} is an id of {prefix}, but {self.title} has only ids of {', '.join(self.prefixes)}; "
                f"correct it, or name the ontology of {prefix} instead of or beside this one"
            )
        what, near = ("ids", self._near_ids(text)) if prefix else ("names", self._near_names(text))
        hint = f"the nearest {what} are {near}" if near else f"none of its {what} is similar"
        return f"{self.title} has no term {text!r}; {hint}"

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """Prefixes of the ids, sorted."""
        return tuple(sorted({match[0] for term in self.labels if (match := _PREFIX.match(term))}))

    @cached_property
    def _by_id(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for term in self.labels:
            found[_id_key(term)] = (*found.get(_id_key(term), ()), term)
        return found

    @cached_property
    def _by_name(self) -> dict[str, tuple[str, ...]]:
        deprecated = [term for term in self.labels if term in self.deprecated]
        current = [term for term in self.labels if term not in self.deprecated]
        found: dict[str, tuple[str, ...]] = {}
        for terms in (current, deprecated):
            found |= _new_names(found, ((term, (self.labels[term],)) for term in terms))
            found |= _new_names(found, ((term, self.synonyms.get(term, ())) for term in terms))
        return found

    def _near_ids(self, text: str) -> str:
        near = [term for id_key in _one_edit(_id_key(text)) for term in self._by_id.get(id_key, ())]
        return self.shown(sorted(near, key=self.deprecated.__contains__)[:N_SHOWN])

    def _near_names(self, text: str) -> str:
        close = difflib.get_close_matches(folded(text), self._by_name, n=N_SHOWN, cutoff=0.7)
        return ", ".join(f"{name!r} ({term})" for name in close for term in self._by_name[name])


def _new_names(
    known: Mapping[str, tuple[str, ...]], names: Iterable[tuple[str, Iterable[str]]]
) -> dict[str, tuple[str, ...]]:
    """``{name: its terms}`` of the names of each term that are not known yet."""
    new: dict[str, tuple[str, ...]] = {}
    for term, some in names:
        for name in map(folded, some):
            if name and name not in known:
                terms = new.get(name, ())
                if term not in terms:
                    new[name] = (*terms, term)
    return new


def folded(text: str) -> str:
    """``text`` in lower case, with single spaces."""
    return " ".join(text.casefold().split())


def _id_key(text: str) -> str:
    """``text`` in lower case, with a colon after the prefix."""
    return folded(text).replace("_", ":")


def _one_edit(text: str) -> list[str]:
    """All texts from which ``text`` differs by one digit left out, added, swapped with the next, or replaced."""
    digits = "0123456789"
    cuts = [(text[:at], text[at:]) for at in range(len(text) + 1)]
    edits = [head + digit + tail for head, tail in cuts for digit in digits]
    edits += [head + tail[1:] for head, tail in cuts]
    edits += [head + tail[1::-1] + tail[2:] for head, tail in cuts]
    edits += [head + digit + tail[1:] for head, tail in cuts for digit in digits]
    return list(dict.fromkeys(edits))
