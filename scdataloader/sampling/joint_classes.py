"""Joint classes of cells by several columns of labels, in steps that need little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.labels.encoder import narrowest
from scdataloader.runtime.arrays import Arrays, Recipe
from scdataloader.sampling.rows import STEP, Rows

_TABLE_LIMIT = 1 << 24
"""Most values that are numbered by a table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodedColumn:
    """A column of labels of all cells of a collection."""

    codes: NDArray[np.signedinteger[Any]]
    """``(n,)`` label of each cell; -1 if it is missing."""
    lut: NDArray[np.int64]
    """Code of each label; the last entry is for -1."""
    size: int
    """One more than the highest code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Numbering:
    """Values that occur, ascending, numbered from 0."""

    known: NDArray[np.int64]
    lut: NDArray[np.int64] | None
    """Number of every value; the last entry is for -1. None if there would be too many."""

    @classmethod
    def of(cls, steps: Iterable[NDArray[np.int64]], size: int) -> _Numbering:
        """Number the values of ``steps``, from -1 to ``size - 1``."""
        if size > _TABLE_LIMIT:
            found = np.empty(0, np.int64)
            for values in steps:
                found = np.union1d(found, values)
            return cls(known=found[found >= 0], lut=None)
        occurs = np.zeros(size + 1, np.bool_)
        for values in steps:
            occurs[values] = True
        known = np.flatnonzero(occurs[:-1])
        lut = np.full(size + 1, -1, np.int64)
        lut[known] = np.arange(len(known))
        return cls(known=known, lut=lut)

    def number(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of each value, which occurs; -1 of -1."""
        if self.lut is not None:
            return self.lut[values]
        return np.where(values < 0, -1, np.searchsorted(self.known, values))


def joint_recipe(columns: Sequence[CodedColumn], rows: Rows) -> Recipe:
    """How the classes of ``rows`` are computed: the combinations of codes that occur, numbered in their order.

    The recipe has ``codes``, -1 where a code is, and states the combinations as lists of codes, by class.
    """
    numbered: list[_Numbering] = []
    for number, column in enumerate(columns):
        size = column.size * (len(numbered[-1].known) if number else 1)
        values = (values for _, values in _steps(columns[: number + 1], numbered, rows))
        numbered.append(_Numbering.of(values, size))
    last = numbered[-1]

    def fill(arrays: Arrays) -> None:
        for place, values in _steps(columns, numbered, rows):
            arrays["codes"][place] = last.number(values)

    shapes = {"codes": (narrowest(len(last.known)), len(rows))}
    return Recipe(shapes=shapes, fill=fill, about=_combinations(columns, numbered))


def _steps(
    columns: Sequence[CodedColumn], numbered: Sequence[_Numbering], rows: Rows
) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """By step: which of the rows, and a value for the codes of each; -1 if one is unknown.

    It is the code in the last column, plus its size times the number of the value of the columns before.
    """
    at = 0
    for first in range(0, rows.n, STEP):
        cells = slice(first, min(first + STEP, rows.n))
        chosen = slice(None) if rows.is_all else rows.mask(cells.start, cells.stop)
        values = columns[0].lut[columns[0].codes[cells][chosen]]
        for column, before in zip(columns[1:], numbered, strict=False):
            number, code = before.number(values), column.lut[column.codes[cells][chosen]]
            values = np.where((number < 0) | (code < 0), -1, number * column.size + code)
        yield slice(at, at + len(values)), values
        at += len(values)


def _combinations(columns: Sequence[CodedColumn], numbered: Sequence[_Numbering]) -> list[list[int]]:
    """``(n_classes, n_columns)`` codes of each class."""
    codes, values = [], numbered[-1].known
    for column, before in zip(columns[:0:-1], numbered[-2::-1], strict=True):
        number, own = np.divmod(values, column.size)
        codes.append(own)
        values = before.known[number]
    codes.append(values)
    found: list[list[int]] = np.stack(codes[::-1], axis=1).tolist()
    return found
