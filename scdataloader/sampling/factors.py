"""Factors that weigh cells within their class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

NNZ = "nnz"
"""The name in ``cell_factors`` that stands for `nnz_factor`, not for a column."""


def nnz_factor(nnz: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """``(n,)`` factor of cells with ``nnz`` expressed genes: ``1 + 999·σ(0.003·(nnz - 2000))``, up to 1000."""
    return np.asarray(1 + 999 / (1 + np.exp(-0.003 * (nnz.astype(np.float64) - 2000))), dtype=np.float64)


def cell_factor(values: pd.Series[Any] | NDArray[Any], name: str) -> NDArray[np.float64]:
    """``(n,)`` factors out of a numeric column of the cell table.

    Raises:
        ValueError: the column is not numeric, or a value is missing, infinite or negative; names the first.
    """
    if not (pd.api.types.is_numeric_dtype(values.dtype) and values.dtype.kind in "biuf"):
        raise ValueError(f"cell factor {name!r} must be a column of numbers, not of {values.dtype}")
    if isinstance(values, pd.Series):
        factors = values.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        factors = values.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(factors) & (factors >= 0)))
    if len(wrong):
        first = int(wrong[0])
        label = f" ({values.index[first]})" if isinstance(values, pd.Series) else ""
        raise ValueError(
            f"cell factor {name!r} must be finite and not negative, but is {factors[first]} at cell {first}{label} and "
            f"wrong in {len(wrong):,} of {len(factors):,} cells; fill or clip the column first"
        )
    return factors
