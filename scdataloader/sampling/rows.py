"""Sets of rows of a table: all of them, or those of a bit set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.select import SAMPLE, fill_samples, select

STEP = 1 << 20
"""Rows per step."""
_SMALL = 1 << 22
"""Rows of a table of whose sets arrays are made: they are somewhat faster to look up."""


class Rows:
    """Ascending row numbers below ``n``: all, in no memory, or a set, in a quarter of a byte for each of ``n``.

    A small set is an array of int64. `numpy.asarray` makes one of any set.
    """

    def __init__(self, n: int, is_in: NDArray[np.bool_] | None = None) -> None:
        """All rows [0, n), or those for which ``is_in`` ``(n,)`` is true."""
        self.n, self._length = n, n
        self._words: NDArray[np.uint64] | None = None
        self._array: NDArray[np.int64] | None = None
        if is_in is None or is_in.all():
            return
        self._words = np.zeros(-(-n // 64), np.uint64)
        packed = np.packbits(is_in, bitorder="little")
        self._words.view(np.uint8)[: len(packed)] = packed
        self._length = int(np.count_nonzero(is_in))
        if n <= _SMALL or self._length < n // SAMPLE:
            self._array = np.flatnonzero(is_in)
        else:
            self._samples = np.empty(-(-self._length // SAMPLE), np.int64)
            fill_samples(self._words, self._samples)

    @classmethod
    def of(cls, rows: NDArray[np.integer[Any]], n: int) -> Rows:
        """The set of ``rows``, ascending, of a table of ``n``."""
        is_in = np.zeros(n, np.bool_)
        is_in[rows] = True
        return cls(n, is_in)

    def __len__(self) -> int:
        return self._length

    @property
    def is_all(self) -> bool:
        """Whether these are all rows."""
        return self._words is None

    def take(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows at ``places`` of the set, each in [0, len(self))."""
        if self._words is None:
            return places
        if self._array is not None:
            return self._array[places]
        out = np.empty(len(places), np.int64)
        select(self._words, self._samples, places, out)
        return out

    def steps(self) -> Iterator[NDArray[np.int64]]:
        """All rows, in arrays of about a million."""
        for first in range(0, self.n, STEP):
            last = min(first + STEP, self.n)
            if self._words is None:
                yield np.arange(first, last)
            else:
                yield np.flatnonzero(self.mask(first, last)) + first

    def mask(self, first: int, last: int) -> NDArray[np.bool_]:
        """``(last - first,)`` which of the rows [first, last) are in the set; ``first`` is a multiple of 8."""
        if self._words is None:
            return np.ones(last - first, np.bool_)
        content = self._words.view(np.uint8)[first // 8 : -(-last // 8)]
        return np.unpackbits(content, count=last - first, bitorder="little").view(np.bool_)

    @cached_property
    def digest(self) -> str:
        """Hexadecimal digest of the set."""
        words = b"" if self._words is None else self._words.data.cast("B")
        return blake2b(f"{self.n}".encode() + bytes(words), digest_size=16).hexdigest()

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        """The rows, int64 by default."""
        found = np.concatenate([np.empty(0, np.int64), *self.steps()])
        return found if dtype is None else found.astype(dtype)
