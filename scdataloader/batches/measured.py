"""The genes that each source measured, from which unexpressed genes of a cell are drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_KEPT: dict[tuple[int, int], tuple[object, NDArray[np.int32], NDArray[np.int64]]] = {}


def measured_genes(
    measured: NDArray[np.bool_], among: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The genes that each source measured, concatenated over sources, and the offset of each source.

    The last result is kept, because all batches of a collection have the same one.

    Args:
        measured: ``(n_sources, G)`` as in `CellBatch`.
        among: ``(G,)`` which genes count; None for all.
    """
    which = id(measured), id(among)
    kept = _KEPT.get(which)
    if kept is None:
        chosen = measured if among is None else measured & among
        starts = np.zeros(len(chosen) + 1, np.int64)
        np.cumsum(chosen.sum(axis=1), out=starts[1:])
        # with the arrays themselves, so that no other array can have their ids
        kept = (measured, among), np.nonzero(chosen)[1].astype(np.int32), starts
        _KEPT.clear()
        _KEPT[which] = kept
    return kept[1], kept[2]
