"""Cells sorted by class, in memory or in a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.classes import class_sizes, code_range, sort_by_class
from scdataloader.runtime.arrays import Arrays, Recipe

__all__ = ["ClassIndex"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassIndex:
    """The cells of each class: those of class c are ``cells[starts[c]:starts[c + 1]]``, ascending."""

    starts: NDArray[np.int64]
    """``(K + 1,)`` offset of each class in ``cells``."""
    cells: NDArray[np.integer]
    """Cell numbers, int32 if these suffice; empty if all ``starts[1]`` cells are of one class, in order."""
    n_cells: int
    """Cells of the table, including those without a class."""

    @classmethod
    def of(
        cls, classes: NDArray[np.integer], file: str | os.PathLike[str] | None = None, unknown: int = -1
    ) -> ClassIndex:
        """Sort cells by class.

        Args:
            classes: ``(n,)`` class of each cell, may be memory-mapped.
            unknown: Class of cells of class -1, above all others; -1 leaves them out.
            file: Memory-mapped file for ``cells`` (4 bytes each, 8 in a table of more than 2³¹); it is overwritten.
                None keeps them in memory.

        Raises:
            ValueError: no cell has a class, or a code is below -1.
        """
        codes = np.asarray(classes)
        recipe = index_recipe(codes, unknown)
        starts = np.empty(recipe.shapes["starts"][1], np.int64)
        dtype, n_cells = recipe.shapes["cells"]
        cells: NDArray[np.integer] = (
            np.empty(n_cells, dtype)
            if file is None
            else np.asarray(np.memmap(Path(file), dtype, "w+", shape=(n_cells,)))
        )
        recipe.fill({"starts": starts, "cells": cells})
        return cls(starts=starts, cells=cells, n_cells=len(codes))

    @classmethod
    def of_one_class(cls, n: int) -> ClassIndex:
        """All ``n`` cells of a table in one class, in order."""
        return cls(starts=np.array([0, n], np.int64), cells=np.empty(0, np.int32), n_cells=n)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """``(K,)`` cells of each class."""
        return np.diff(self.starts)


def index_recipe(codes: NDArray[np.integer], unknown: int = -1) -> Recipe:
    """How ``starts`` and ``cells`` of the index of the classes ``codes`` are computed; see `ClassIndex.of`."""
    n_classes = count_classes(codes)
    sizes = class_sizes(codes, n_classes)
    n_unknown = len(codes) - int(sizes.sum()) if unknown >= 0 else 0
    if n_unknown:
        sizes = np.concatenate([sizes, np.zeros(unknown - n_classes, np.int64), [n_unknown]])
    starts = np.append(0, np.cumsum(sizes))

    def fill(arrays: Arrays) -> None:
        arrays["starts"][:] = starts
        sort_by_class(codes, unknown, starts, arrays["cells"])

    dtype = np.dtype(np.int32 if len(codes) <= np.iinfo(np.int32).max else np.int64)
    shapes = {"starts": (np.dtype(np.int64), len(starts)), "cells": (dtype, int(starts[-1]))}
    return Recipe(shapes=shapes, fill=fill)


def count_classes(codes: NDArray[np.integer]) -> int:
    """One more than the highest of ``codes``.

    Raises:
        ValueError: no cell has a class, or a code is below -1.
    """
    lowest, n_classes = code_range(codes)
    if lowest < -1:
        raise ValueError(f"a class code is {lowest}; codes must be 0, 1, … or -1 for no class")
    if not n_classes:
        raise ValueError("no cell has a class: every code is -1")
    return n_classes
