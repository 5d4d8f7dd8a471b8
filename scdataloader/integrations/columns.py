"""A column of obs over several files, as categories and codes, whatever it is in each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.sources.anndata.file import AnnDataFile
from scdataloader.sources.anndata.layout import frame_columns, frame_length, read_columns

MISSING = -1
"""Code of a label that is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelColumn:
    """One column of one file's obs."""

    codes: NDArray[np.integer[Any]]
    """``(n_obs,)`` which category, -1 where the label is missing."""
    categories: NDArray[Any]
    """Labels, or what they are encoded to."""
    missing: Any = np.nan
    """What stands for a missing label."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The labels of some cells; of the categories' dtype where that can hold them."""
        codes = self.codes[rows]
        known = codes >= 0
        if known.all():
            return np.asarray(self.categories[codes])
        holds = self.categories.dtype.kind == "f" or not isinstance(self.missing, float)
        out = np.full(len(rows), self.missing, self.categories.dtype if holds else object)
        out[known] = self.categories[codes[known]]
        return out

    def encoded(self, encoder: Mapping[Any, int]) -> LabelColumn:
        """The same column with codes for labels."""
        codes = np.array([encoder[label] for label in self.categories.tolist()], np.int64)
        return LabelColumn(codes=self.codes, categories=codes, missing=MISSING)


def read_column(files: Sequence[AnnDataFile], key: str) -> list[LabelColumn]:
    """A column of each file; all missing where a file lacks it."""
    present = [key in frame_columns(file.root["obs"]) for file in files]
    if not any(present):
        known = sorted({column for file in files for column in frame_columns(file.root["obs"])})
        raise KeyError(f"no file has the obs column {key!r}; there are {', '.join(known) or 'none'}")
    columns = []
    for file, here in zip(files, present, strict=True):
        if not here:
            n_obs = frame_length(file.root["obs"])
            columns.append(LabelColumn(codes=np.full(n_obs, MISSING, np.int8), categories=np.empty(0, object)))
            continue
        values = read_columns(file.root, [key], file.path.name)[key]
        if isinstance(values.dtype, pd.CategoricalDtype):
            codes, categories = values.cat.codes.to_numpy(), values.cat.categories
        else:
            codes, categories = pd.factorize(values)
        columns.append(LabelColumn(codes=codes, categories=categories.to_numpy()))
    return columns


def make_encoder(key: str, columns: Iterable[LabelColumn], unknown: str | None) -> dict[Any, int]:
    """Codes from 0 for the sorted labels of all columns; -1 for ``unknown``, where it is one of them.

    Raises:
        TypeError: the labels have no common order.
    """
    labels = {label for column in columns for label in column.categories.tolist()}
    try:
        known = sorted(labels - {unknown})
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in labels})
        raise TypeError(
            f"labels of obs column {key!r} are of several types ({', '.join(kinds)}) in different files, which have no "
            "common order: write the column with one type, or leave it out of encode_labels"
        ) from error
    return ({unknown: MISSING} if unknown in labels else {}) | {label: code for code, label in enumerate(known)}
