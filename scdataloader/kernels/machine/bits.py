"""Sets of small numbers as bits: filled in any order, emptied in ascending order."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from scdataloader.kernels.machine.memory import intrinsic

# One word of the bit set covers 64 genes, of which a cell expresses a handful. So many are written without asking; only
# a fuller word takes a branch that the processor has to guess.
_USUAL_PER_WORD = 8


@intrinsic
def count_trailing_zeros(typing_context: Any, word: Any) -> Any:
    """Number of zero bits below the lowest set one; 64 for a word of zeros."""

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
    """Write the numbers of the set bits in ascending order, and clear them; returns how many there were."""
    size = 0
    for word in range(len(present)):
        bits = present[word]
        present[word] = 0
        base = np.int32(word << 6)
        end = size + int(count_ones(bits))
        k = size
        if size + _USUAL_PER_WORD <= len(out):
            for _ in range(_USUAL_PER_WORD):
                out[k] = base + np.int32(count_trailing_zeros(bits))
                bits &= bits - np.uint64(1)
                k += 1
        while bits:
            out[k] = base + np.int32(count_trailing_zeros(bits))
            bits &= bits - np.uint64(1)
            k += 1
        size = end
    return size
