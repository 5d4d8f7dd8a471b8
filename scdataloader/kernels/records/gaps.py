"""Gaps between ascending gene numbers to the numbers, or to their entries in a look-up table."""

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
    """Write 16 numbers (int32) to the address ``out`` from 16 gaps (uint8) at the address ``gaps``.

    Each number is its predecessor plus 1 plus its gap; the predecessor of the first is ``before``. Returns the last
    number minus ``before``. Compilers do not vectorise such a prefix sum: four steps, of which each adds to every lane
    the one 1, 2, 4, 8 lanes before it.
    """

    def lanes(kind: Any) -> Any:
        return ir.VectorType(kind, _LANES)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bytes_there = builder.load(builder.inttoptr(args[0], lanes(_I8).as_pointer()))
        bytes_there.align = 1
        steps = builder.zext(bytes_there, lanes(_I16))  # sums are at most 16 · 256
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
    """Write gene numbers, of which the first is ``number`` plus its gap; returns the last one plus 1.

    Numbers beyond 32 bits are written modulo 2^32; nothing is addressed by them.
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
    """As `number_genes`, but writes ``lut[number]`` for each number; all must be below ``len(lut)``.

    Unsigned numbers and loops from 0 avoid a test for negative indices; four at once shorten the chain of additions.
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
