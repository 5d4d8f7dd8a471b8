"""Columns of labels of a whole collection: their labels, and which one each cell has."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from scdataloader.collection.collection import Collection
from scdataloader.kernels.draws.classes import class_sizes, recode
from scdataloader.labels.encoder import factorize, joint_labels, narrowest
from scdataloader.runtime.arrays import Arrays, Recipe
from scdataloader.schema import is_unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

JOINT = "//"
"""Joins the names of columns to the name of their joint labels, and their labels to the latter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelColumn:
    """A column of labels, in the order of the cells."""

    labels: tuple[str, ...]
    """Labels that occur, as text, sorted; words for unknown are among them."""
    counts: NDArray[np.int64]
    """``(K,)`` cells of each label."""
    codes: NDArray[np.signedinteger[Any]]
    """``(n,)`` place of the label of each cell in ``labels``, in the narrowest type; -1 if it is missing."""

    @classmethod
    def unknown(cls, n: int) -> LabelColumn:
        """The column of ``n`` cells without a label."""
        return cls(labels=(), counts=np.empty(0, np.int64), codes=np.full(n, -1, np.int8))

    @property
    def known(self) -> dict[str, int]:
        """``{label: cells}`` of the labels that are not unknown."""
        found = zip(self.labels, self.counts.tolist(), strict=True)
        return {label: n for label, n in found if not is_unknown(label)}


_read: WeakKeyDictionary[Collection, dict[str, LabelColumn]] = WeakKeyDictionary()


def label_column(collection: Collection, column: str) -> LabelColumn:
    """A label column; for "a//b" the joint labels, such as "donor 1//10x 3' v3".

    It is read once per collection, and kept in a file by `Collection.kept`. An unknown part of a joint label is
    "unknown"; the label itself is unknown where all parts are.

    Raises:
        KeyError: no source has a column.
    """
    known = _read.setdefault(collection, {})
    if column not in known:
        kept = collection.kept.get(column, ["labels"], lambda: _recipe(collection, column))
        known[column] = LabelColumn(labels=tuple(kept.about), **kept.arrays)
    return known[column]


def columns_of(collection: Collection, column: str) -> list[str]:
    """The columns of obs that a label column is made of: "a" and "b" for "a//b", unless a source has that column."""
    is_own = any(column in part.source.obs_columns for part in collection.parts)
    return [column] if is_own else column.split(JOINT)


def _pieces(collection: Collection, column: str) -> Iterator[tuple[int, pd.Series[Any]]]:
    columns = columns_of(collection, column)
    if len(columns) == 1:
        return collection.pieces(column)
    return enumerate(joint_labels(of_part, JOINT) for of_part in zip(*map(collection.column, columns), strict=True))


def _recipe(collection: Collection, column: str) -> Recipe:
    number: dict[str, int] = {}
    found = np.empty(len(collection), np.int16)
    at = 0
    for _, piece in _pieces(collection, column):
        names, codes = factorize(piece)
        lut = np.array([*(number.setdefault(name, len(number)) for name in names), -1], np.int64)
        if len(number) > np.iinfo(found.dtype).max:
            found = found.astype(np.int64 if len(number) > np.iinfo(np.int32).max else np.int32)
        recode(codes, lut, found[at : at + len(codes)])
        at += len(codes)
    counts = class_sizes(found, len(number))
    occurring = sorted(name for name, place in number.items() if counts[place])
    places = [number[name] for name in occurring]
    order = np.full(len(number) + 1, -1, np.int64)
    order[places] = np.arange(len(occurring))

    def fill(arrays: Arrays) -> None:
        codes = arrays["codes"]
        arrays["counts"][:] = counts[places]
        recode(found, order, codes)
        if collection.is_interleaved:
            edges = np.cumsum([0, *(part.n_obs for part in collection.parts)])
            codes[:] = collection.arrange([codes[a:b] for a, b in pairwise(edges)])

    shapes = {"counts": (np.dtype(np.int64), len(occurring)), "codes": (narrowest(len(occurring)), at)}
    return Recipe(shapes=shapes, fill=fill, about=occurring)


def is_identity(lut: NDArray[np.integer[Any]]) -> bool:
    """Whether a look-up table gives every code itself."""
    return bool(lut[-1] == -1 and np.array_equal(lut[:-1], np.arange(len(lut) - 1)))


def digest_of_array(values: NDArray[Any]) -> str:
    """Hexadecimal digest of the values of an array."""
    return blake2b(np.ascontiguousarray(values).data.cast("B"), digest_size=16).hexdigest()
