"""Features of a source that are genes, where its ``var`` also has antibodies, guides or peaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.runtime.messages import shown, suggestion

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS = ("feature_types", "feature_type")
"""Columns of ``var`` that state the type of each feature."""
GENE_TYPES = ("gene expression", "gex")
"""Types of genes, in lower case: 10x Genomics' name, and the one of the NeurIPS 2021 files."""
ALL = "all"


class LeftOut(NamedTuple):
    """Features of a source that are left out."""

    mask: NDArray[np.bool_]
    """``(len(var),)`` True for these features."""
    text: str
    """How many features of which types they are."""


def genes_of(
    var: pd.DataFrame, source: str, types: Sequence[str] | str | None = None
) -> tuple[pd.DataFrame, LeftOut | None]:
    """The features of a source that are genes, and those that are left out; None if all are genes.

    A column of ``var`` without a type of genes, such as one of biotypes, states nothing.

    Args:
        var: Features in order.
        source: Name of the source in messages.
        types: Types of the features that are kept; None for those of genes, "all" for every feature.

    Raises:
        TypeError: ``var`` is not a DataFrame.
        ValueError: no feature is of one of the ``types``, and ``var`` states types.
    """
    if not isinstance(var, pd.DataFrame):
        raise TypeError(f"{source}: var must be a DataFrame indexed by gene id; got {type(var).__name__}")
    column = next((name for name in COLUMNS if name in var.columns), None)
    if column is None or types == ALL:
        return var, None
    stated = var[column].astype(str)
    lower = stated.str.lower()
    if types is None:
        wanted: Sequence[str] = GENE_TYPES
    else:
        wanted = [name.lower() for name in ([types] if isinstance(types, str) else types)]
    kept = lower.isin(wanted).to_numpy()
    if not kept.any() and types is not None and lower.isin(GENE_TYPES).any():
        wrong = f"{source} has no features of the types {shown(wanted)} in var[{column!r}]"
        raise ValueError(f"{wrong}; {suggestion(wanted[0], stated.unique())}")
    if kept.all() or not kept.any():
        return var, None
    left_out = ~kept
    kinds = shown(f"{n:,} {kind}" for kind, n in stated[left_out].value_counts().items())
    return var[kept], LeftOut(mask=left_out, text=f"{kinds} by var[{column!r}]")
