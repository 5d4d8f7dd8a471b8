"""Ids, names and synonyms of terms: from text to a term, and what to say where there is no such term."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scdataloader.ontology.term_ids import prefix_of

N_SHOWN = 5
"""Terms that a message names at most."""

_PREFIX = re.compile(r"[A-Za-z]\w*?(?=[:_])")


@dataclass(frozen=True, kw_only=True, eq=False)
class TermNames:
    """What terms are called, current ones first and each part sorted by id. A term's number is its place."""

    ontology: str
    """What messages call the ontology."""
    ids: tuple[str, ...]
    """``(n,)`` ids."""
    labels: tuple[str, ...]
    """``(n,)`` names; empty where a term has none."""
    synonyms: tuple[tuple[str, ...], ...]
    """``(n,)`` exact synonyms."""
    replaced_by: Mapping[str, str]
    """Deprecated id to the id to be used instead."""
    n_current: int
    """Terms that are not deprecated."""

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """What the ids begin with, sorted."""
        return tuple(sorted({match[0] for term in self.ids if (match := _PREFIX.match(term))}))

    def number(self, term: str) -> int:
        """The number of an id.

        Raises:
            LookupError: no term has it.
        """
        number = self._numbers.get(term)
        if number is None:
            raise LookupError(self._unknown(str(term)))
        return number

    def is_current(self, term: object) -> bool:
        """Whether ``term`` is the id of a current term."""
        return isinstance(term, str) and self._numbers.get(term, self.n_current) < self.n_current

    def node(self, term: str) -> int:
        """The number of a current term's id.

        Raises:
            LookupError: no term has it.
            ValueError: the term is deprecated.
        """
        number = self.number(term)
        if number >= self.n_current:
            raise ValueError(
                f"{self.shown([number])} is deprecated and has no place in the hierarchy of {self.ontology}; "
                + self._instead(term)
            )
        return number

    def nodes(self, terms: Iterable[str]) -> NDArray[np.int64]:
        """The numbers of current terms' ids."""
        if isinstance(terms, str):
            raise TypeError(f"expected ids of terms, got the text {terms!r}; give [{terms!r}]")
        return np.fromiter(map(self.node, terms), dtype=np.int64)

    def current(self, term: str) -> str | None:
        """A current term of this ontology at the end of the term's replacements."""
        seen: set[str] = set()
        while self.number(term) >= self.n_current:
            seen.add(term)
            term = self.replaced_by.get(term, "")
            if term not in self._numbers or term in seen:
                return None
        return term

    def find(self, text: str) -> int:
        """The number of the term that ``text`` names: see `Ontology.find`.

        Raises:
            LookupError: no term, or more than one, goes by that name.
        """
        numbers = self.candidates(text)
        if not numbers:
            raise LookupError(self._unknown(text))
        if len(numbers) > 1:
            raise LookupError(
                f"{text!r} may be any of {len(numbers)} terms of {self.ontology}: {self.shown(numbers)}; "
                "give the id of the one that is meant"
            )
        return numbers[0]

    def shown(self, numbers: Iterable[int]) -> str:
        """Some terms, by id and name, for a message."""
        numbers = list(numbers)
        parts = [f"{self.ids[n]} ({self.labels[n] or 'without a name'})" for n in numbers[:N_SHOWN]]
        return ", ".join(parts) + (f" and {len(numbers) - N_SHOWN:,} more" if len(numbers) > N_SHOWN else "")

    def candidates(self, text: str) -> tuple[int, ...]:
        """The numbers of all terms that ``text`` may name: see `Ontology.find`."""
        return self._by_id.get(_id_key(text)) or self._by_name.get(_folded(text), ())

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {term: number for number, term in enumerate(self.ids)}

    @cached_property
    def _by_id(self) -> dict[str, tuple[int, ...]]:
        """Ids in any case."""
        found: dict[str, tuple[int, ...]] = {}
        for number, term in enumerate(self.ids):
            found[_id_key(term)] = (*found.get(_id_key(term), ()), number)
        return found

    @cached_property
    def _by_name(self) -> dict[str, tuple[int, ...]]:
        """Names and synonyms in any case. Each step adds what no earlier one has."""
        found: dict[str, tuple[int, ...]] = {}
        for part in (slice(self.n_current), slice(self.n_current, None)):
            for names in (((label,) for label in self.labels[part]), self.synonyms[part]):
                step: dict[str, tuple[int, ...]] = {}
                for number, folded in _each(names, part.start or 0):
                    if folded not in found:
                        step[folded] = (*step.get(folded, ()), number)
                found |= step
        return found

    def _unknown(self, text: str) -> str:
        """Why ``text`` names no term, and what may have been meant."""
        for what, numbers in (("an id", self._by_id.get(_id_key(text))), ("a name", self._by_name.get(_folded(text)))):
            if numbers:
                return f"{text!r} is {what} of {self.shown(numbers)}; where an id is asked for, give it in that form"
        own = prefix_of(text)
        if own and own.lower() not in {prefix.lower() for prefix in self.prefixes}:
            return (
                f"{text!r} is an id of {own}, and {self.ontology} has only those of "
                f"{', '.join(self.prefixes)}: take the ontology that it belongs to, alone or beside this one, or "
                "correct it"
            )
        what, near = ("ids", self._near_ids(text)) if own else ("names", self._near_names(text))
        hint = f"the nearest {what} are {near}" if near else f"none of its {what} is like it"
        return f"{self.ontology} has no term {text!r}; {hint}"

    def _instead(self, term: str) -> str:
        if term not in self.replaced_by:
            return "no term is said to replace it"
        if current := self.current(term):
            return f"current() gives {current} in its place"
        return f"its replacement {self.replaced_by[term]} is no current term of it"

    def _near_ids(self, text: str) -> str:
        near = [number for id_key in _one_edit(_id_key(text)) for number in self._by_id.get(id_key, ())]
        return self.shown(sorted(near, key=lambda number: number >= self.n_current)[:N_SHOWN])

    def _near_names(self, text: str) -> str:
        close = difflib.get_close_matches(_folded(text), self._by_name, n=N_SHOWN, cutoff=0.7)
        return ", ".join(f"{name!r} ({self.ids[number]})" for name in close for number in self._by_name[name])


def _folded(text: str) -> str:
    """``text`` without case, and with single spaces."""
    return " ".join(text.casefold().split())


def _id_key(text: str) -> str:
    """``text`` without case, and with the mark that most ids have before the number."""
    return _folded(text).replace("_", ":")


def _one_edit(text: str) -> list[str]:
    """What ``text`` may have been before one digit was left out, added, swapped with the next, or mistaken."""
    digits = "0123456789"
    cuts = [(text[:at], text[at:]) for at in range(len(text) + 1)]
    edits = [head + digit + tail for head, tail in cuts for digit in digits]
    edits += [head + tail[1:] for head, tail in cuts]
    edits += [head + tail[1::-1] + tail[2:] for head, tail in cuts]
    edits += [head + digit + tail[1:] for head, tail in cuts for digit in digits]
    return list(dict.fromkeys(edits))


def _each(names: Iterable[Iterable[str]], first: int) -> Iterator[tuple[int, str]]:
    """The folded names of each term, once for each, with the term's number."""
    for number, some in enumerate(names, start=first):
        for folded in {_folded(name) for name in some} - {""}:
            yield number, folded
