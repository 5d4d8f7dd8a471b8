"""Where the genes of several sources fall in one vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.decode import COMPLETE, IN_ORDER, SHIFTED


class GeneTables:
    """Where the genes of several sources fall in a vocabulary, for one compiled loop over cells of all of them."""

    def __init__(self, luts: Sequence[NDArray[np.int32]], n_genes: int) -> None:
        """Join look-up tables: ``luts[p][g]`` is the number of gene g of source p in a vocabulary of ``n_genes``."""
        self.n_genes = n_genes
        self.luts = np.concatenate([*luts, np.empty(0, np.int32)])
        self.start = np.zeros(len(luts) + 1, np.int64)
        np.cumsum([len(lut) for lut in luts], out=self.start[1:])
        self.how = np.array([_how(lut) for lut in luts], np.uint8)


def _how(lut: NDArray[np.int32]) -> int:
    kept = lut[lut >= 0]
    steps = np.diff(lut)
    return (
        IN_ORDER * bool((np.diff(kept) > 0).all())
        | COMPLETE * (len(kept) == len(lut))
        | SHIFTED * bool(len(kept) == len(lut) and (steps == 1).all())
    )
