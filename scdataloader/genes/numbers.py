"""Numbers for the names of genes of many sources, so that what is found about a name is found once."""

from __future__ import annotations

from itertools import islice, repeat
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scdataloader.genes.organisms import organism_of_prefix, prefix_of

if TYPE_CHECKING:
    from collections.abc import Iterable


class GeneNumbers:
    """Names of genes of many sources, each once, numbered in the order in which they first occur."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._names: list[str] = []
        self._prefixes: dict[str | None, int] = {None: 0}
        self._prefix = np.empty(0, np.int32)

    def __len__(self) -> int:
        return len(self._number)

    @property
    def names(self) -> list[str]:
        """The names, by number."""
        if len(self._names) < len(self):
            self._names += islice(self._number, len(self._names), None)
        return self._names

    def numbers(self, ids: Iterable[str]) -> NDArray[np.int32]:
        """``(n,)`` the number of each name; new names get new numbers."""
        ids, number = list(ids), self._number
        found = np.fromiter(map(number.get, ids, repeat(-1)), np.int32, len(ids))
        for at in np.flatnonzero(found < 0).tolist():
            found[at] = number.setdefault(ids[at], len(number))
        return found

    def sorted(self, numbers: NDArray[np.integer]) -> tuple[list[str], NDArray[np.int64]]:
        """The names of some numbers, sorted as text, and their numbers in that order."""
        names = self.names
        order = sorted(numbers.tolist(), key=names.__getitem__)
        return [names[number] for number in order], np.array(order, np.int64)

    def prefixes(self, numbers: NDArray[np.integer]) -> dict[str | None, int]:
        """{Ensembl prefix: number of names that have it}, None for names that are not Ensembl-style ids."""
        times = np.bincount(self._prefix_of_name[numbers], minlength=1).tolist()
        return dict(zip(self._prefixes, times, strict=False))

    def may_be_of(self, organism: str) -> NDArray[np.bool_]:
        """``(len(self),)`` whether each name is not one of another organism by its prefix."""
        fits = [prefix is None or organism_of_prefix(prefix) in {None, organism} for prefix in self._prefixes]
        found: NDArray[np.bool_] = np.array(fits, np.bool_)[self._prefix_of_name]
        return found

    @property
    def _prefix_of_name(self) -> NDArray[np.int32]:
        """``(len(self),)`` number of the Ensembl prefix of each name; 0 for names that are not such ids."""
        if len(self._prefix) < len(self):
            known = self._prefixes
            new = [known.setdefault(prefix_of(name), len(known)) for name in self.names[len(self._prefix) :]]
            self._prefix = np.concatenate([self._prefix, np.array(new, np.int32)])
        return self._prefix
