"""Bit sets of small numbers: filled in any order, emptied in ascending order."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from scdataloader.kernels.machine.memory import intrinsic

# A word of the bit set covers 64 genes, of which a cell expresses a handful. This many are written without a branch;
# only a fuller word takes one that the processor has to predict.
USUAL_PER_WORD = 8


@intrinsic
def count_trailing_zeros(typing_context: Any, word: Any) -> Any:
    """Number of zero bits below the lowest set bit; 64 for zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return nb.uint64(nb.uint64), generate


@intrinsic
def count_ones(typing_context: Any, word: Any) -> Any:
    """Number of set bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return nb.uint64(nb.uint64), generate


@nb.njit(nogil=True, cache=True)
def drain(present: NDArray[np.uint64], out: NDArray[np.int32]) -> int:
    """Write the numbers of the set bits in ascending order, and clear them; returns their count."""
    size = 0
    for word in range(len(present)):
        bits = present[word]
        present[word] = 0
        base = np.int32(word << 6)
        end = size + int(count_ones(bits))
        k = size
        if size + USUAL_PER_WORD <= len(out):
            for _ in range(USUAL_PER_WORD):
                out[k] = base + np.int32(count_trailing_zeros(bits))
                bits &= bits - np.uint64(1)
                k += 1
        while bits:
            out[k] = base + np.int32(count_trailing_zeros(bits))
            bits &= bits - np.uint64(1)
            k += 1
        size = end
    return size
