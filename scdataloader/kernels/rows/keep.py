"""Remove the entries of a row without a gene number."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from scdataloader.kernels.machine.memory import intrinsic

_LANES = 16
_I1, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
_ENTRIES, _MASK = ir.VectorType(_I32, _LANES), ir.VectorType(_I1, _LANES)
_COMPRESS, _HAS_COMPRESS = "llvm.x86.avx512.mask.compress.v16i32", "+avx512f"
"""Instruction that moves the lanes of a mask to the front, and what has it. Compilers do not find it in a loop."""


@intrinsic
def _keep(typing_context: Any, numbers: Any, data: Any, n: Any) -> Any:
    """Move the entries whose number is not negative to the front of two arrays of n words of 32 bits; returns how many.

    The arguments are the addresses of the numbers (int32) and of what belongs to them.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays, n = args[:2], args[2]
        kept = cgutils.alloca_once_value(builder, ir.Constant(_I64, 0))  # type: ignore[no-untyped-call]
        first = ir.Constant(_I64, 0)
        if _HAS_COMPRESS in context.codegen().magic_tuple()[-1].split(","):
            blocks = builder.lshr(n, ir.Constant(_I64, 4))
            first = builder.shl(blocks, ir.Constant(_I64, 4))
            with cgutils.for_range(builder, blocks) as loop:
                _keep_lanes(builder, arrays, builder.shl(loop.index, ir.Constant(_I64, 4)), kept)
        with cgutils.for_range(builder, n, start=first) as loop:
            _keep_one(builder, arrays, loop.index, kept)
        return builder.load(kept)

    return nb.intp(nb.uintp, nb.uintp, nb.intp), generate


def _keep_lanes(builder: Any, arrays: Any, at: Any, kept: Any) -> None:
    """Move the entries of 16 to ``kept``, which is increased; what is written there ends at the last of the 16."""
    module, none = builder.module, ir.Constant(_ENTRIES, None)
    kind = ir.FunctionType(_ENTRIES, [_ENTRIES, _ENTRIES, _MASK])
    compress = module.globals.get(_COMPRESS) or ir.Function(module, kind, _COMPRESS)
    loaded = [builder.load(_at(builder, array, at, _ENTRIES), align=4) for array in arrays]
    mask, to = builder.icmp_signed(">=", loaded[0], none), builder.load(kept)
    for array, entries in zip(arrays, loaded, strict=True):
        builder.store(builder.call(compress, [entries, none, mask]), _at(builder, array, to, _ENTRIES), align=4)
    n = builder.ctpop(builder.bitcast(mask, _I16))
    builder.store(builder.add(to, builder.zext(n, _I64)), kept)


def _keep_one(builder: Any, arrays: Any, at: Any, kept: Any) -> None:
    loaded = [builder.load(_at(builder, array, at, _I32)) for array in arrays]
    to = builder.load(kept)
    for array, entry in zip(arrays, loaded, strict=True):
        builder.store(entry, _at(builder, array, to, _I32))
    n = builder.icmp_signed(">=", loaded[0], ir.Constant(_I32, 0))
    builder.store(builder.add(to, builder.zext(n, _I64)), kept)


def _at(builder: Any, array: Any, number: Any, kind: Any) -> Any:
    """A pointer to entry ``number`` of an array of words of 32 bits."""
    return builder.inttoptr(builder.add(array, builder.shl(number, ir.Constant(_I64, 2))), kind.as_pointer())


@nb.njit(nogil=True, cache=True)
def renumber(
    indices: NDArray[Any],
    data: NDArray[Any],
    lut: NDArray[np.int32],
    out_indices: NDArray[np.int32],
    out_data: NDArray[np.float32],
) -> int:
    """Renumber the genes of a row and drop those without a number; returns the number of entries kept.

    The outputs have room for all entries of the row.
    """
    n = min(len(indices), len(out_indices), len(out_data))
    for j in range(n):
        out_indices[j] = lut[np.uint32(indices[j])]  # unsigned numbers avoid a test for negative ones
    for j in range(n):
        out_data[j] = data[j]
    return int(keep_numbered(out_indices[:n], out_data[:n]))


@nb.njit(nogil=True, cache=True)
def keep_numbered(numbers: NDArray[np.int32], data: NDArray[np.float32]) -> int:
    """Remove the entries of a row whose number is negative, in place; returns the number of entries kept."""
    return int(_keep(np.uintp(numbers.ctypes.data), np.uintp(data.ctypes.data), min(len(numbers), len(data))))
