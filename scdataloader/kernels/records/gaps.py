"""Gaps between ascending gene numbers to the numbers themselves, or to what a look-up table has for them."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from scdataloader.kernels.machine.memory import intrinsic

_LANES = 16
_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)


@intrinsic
def _sixteen_numbers(typing_context: Any, gaps: Any, before: Any, out: Any) -> Any:
    """Write 16 numbers (int32) to the address ``out``, of which the first lies 1 + its gap after ``before``.

    Each of the others lies 1 + its gap after the one before it; the 16 gaps (uint8) are at the address ``gaps``.
    Returns how far the last lies after ``before``. A compiler finds no such form for a sum in which each term needs the
    one before: four steps, each of which adds to every lane the one 1, 2, 4, 8 lanes before it.
    """

    def lanes(kind: Any) -> Any:
        return ir.VectorType(kind, _LANES)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bytes_there = builder.load(builder.inttoptr(args[0], lanes(_I8).as_pointer()))
        bytes_there.align = 1
        steps = builder.zext(bytes_there, lanes(_I16))  # up to 16 · 256, which 16 bits hold
        sums = builder.add(steps, ir.Constant(lanes(_I16), [1] * _LANES))
        none = ir.Constant(lanes(_I16), [0] * _LANES)
        for far in (1, 2, 4, 8):
            moved = ir.Constant(lanes(_I32), [max(0, _LANES + lane - far) * (lane >= far) for lane in range(_LANES)])
            sums = builder.add(sums, builder.shuffle_vector(none, sums, moved))
        undefined, first = ir.Constant(lanes(_I32), ir.Undefined), ir.Constant(_I32, 0)
        base = builder.insert_element(undefined, args[1], first)
        base = builder.shuffle_vector(base, undefined, ir.Constant(lanes(_I32), [0] * _LANES))
        stored = builder.store(
            builder.add(builder.zext(sums, lanes(_I32)), base), builder.inttoptr(args[2], lanes(_I32).as_pointer())
        )
        stored.align = 4
        return builder.zext(builder.extract_element(sums, ir.Constant(_I32, _LANES - 1)), _I32)

    return nb.int32(nb.uintp, nb.int32, nb.uintp), generate


@nb.njit(nogil=True, cache=True)
def number_genes(gaps: NDArray[np.uint8], number: np.int64, out: NDArray[np.int32]) -> np.int64:
    """Write the numbers of genes, the first of which lies its own gap after ``number``.

    Returns the number after the last. Numbers beyond 32 bits come out wrong: nothing is read or written at them.
    """
    n = min(len(gaps), len(out))
    full = n // _LANES * _LANES
    for j in range(0, full, _LANES):
        number += _sixteen_numbers(
            np.uintp(gaps.ctypes.data + j), np.int32(number - 1), np.uintp(out.ctypes.data + 4 * j)
        )
    for j in range(full, n):
        number += np.int64(gaps[j])
        out[j] = np.int32(number)
        number += np.int64(1)
    return number


@nb.njit(nogil=True, cache=True)
def look_up_genes(
    gaps: NDArray[np.uint8], number: np.int64, lut: NDArray[np.int32], out: NDArray[np.int32]
) -> np.int64:
    """As `number_genes`, with ``lut[number]`` in the place of each number; all must be below ``len(lut)``.

    Unsigned numbers, and loops from 0, spare a test for negative indices; four at once shorten the chain of additions.
    """
    at, four = np.uint64(number), len(gaps) // 4 * 4
    for j in range(0, four, 4):
        a = at + np.uint64(gaps[j])
        b = a + np.uint64(gaps[j + 1])
        c = b + np.uint64(gaps[j + 2])
        d = c + np.uint64(gaps[j + 3])
        out[j] = lut[a]
        out[j + 1] = lut[b + np.uint64(1)]
        out[j + 2] = lut[c + np.uint64(2)]
        out[j + 3] = lut[d + np.uint64(3)]
        at = d + np.uint64(4)
    for j in range(four, len(gaps)):
        at += np.uint64(gaps[j])
        out[j] = lut[at]
        at += np.uint64(1)
    return np.int64(at)
