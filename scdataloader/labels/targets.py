"""Columns of numbers in obs, such as ages, doses and size factors, as targets or covariates of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.runtime.faults import Faults
from scdataloader.runtime.messages import suggestion

if TYPE_CHECKING:
    from scdataloader.collection.collection import Collection
    from scdataloader.genes.alignment import AlignedSource

Missing: TypeAlias = Literal["error", "nan"]


def read_targets(collection: Collection, columns: Sequence[str], missing: Missing = "error") -> NDArray[np.float32]:
    """``(n, len(columns))`` float32 values of all cells in columns of numbers or truth values.

    Args:
        collection: The cells.
        columns: Their names, in order.
        missing: "error" refuses cells without a value; "nan" gives them NaN, and also the cells of sources that lack a
            column.

    Raises:
        SourcesError: several sources have errors.
        KeyError: a source lacks a column; or no source has it.
        ValueError: a column holds text, or a cell has no value and ``missing`` is "error".
    """
    if len(set(columns)) < len(columns):
        raise ValueError(f"targets names a column twice: {list(columns)}")
    faults = Faults()
    values = np.empty((len(collection), len(columns)), np.float32)
    for place, column in enumerate(columns):
        series = collection.column(column)
        parts = []
        for part, of_part in zip(collection.parts, series, strict=True):
            with faults.of(part.source.name):
                parts.append(_numbers(part, column, of_part, missing))
        if len(parts) == len(series):
            values[:, place] = collection.arrange(parts)
    faults.check()
    return values


def _numbers(part: AlignedSource, column: str, values: pd.Series[Any], missing: Missing) -> NDArray[np.float32]:
    name = part.source.name
    if column not in part.source.obs_columns:
        if missing == "nan":
            return np.full(len(values), np.nan, np.float32)
        has = suggestion(column, part.source.obs_columns)
        raise KeyError(f'{name} has no obs column {column!r} for targets; {has}; missing_targets="nan" takes NaN')
    if isinstance(values.dtype, pd.CategoricalDtype) and pd.api.types.is_numeric_dtype(values.cat.categories.dtype):
        values = values.astype(values.cat.categories.dtype if not values.isna().any() else np.float64)
    if not pd.api.types.is_numeric_dtype(values.dtype):
        examples = [str(value) for value in values.dropna().unique()[:3]]
        raise ValueError(
            f"{name} has values of {values.dtype} in obs column {column!r}, such as {examples}; targets must be "
            "numbers, use labels for text"
        )
    numbers = values.to_numpy(np.float32, na_value=np.nan)
    n_missing = int(np.isnan(numbers).sum())
    if n_missing and missing == "error":
        raise ValueError(
            f"{name} has no value in obs column {column!r} for {n_missing:,} of {len(numbers):,} cells; fill them, "
            'leave the cells out by where, or use missing_targets="nan"'
        )
    return numbers
