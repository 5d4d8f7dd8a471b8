"""Gaps between ascending gene numbers to the numbers, or to their entries in a look-up table."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from scdataloader.kernels.machine.memory import LINE, intrinsic, store_lanes, values_to_line
from scdataloader.kernels.machine.vectors import load, splat

_LANES = 8
_MOST = 1 << 22
"""Gaps whose sum, with 1 for each, is below 2^31."""
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_BYTES, _SHORT, _NUMBERS = (ir.VectorType(ir.IntType(bits), _LANES) for bits in (8, 16, 32))
_DOT, _HAS_DOT = "llvm.x86.avx512.vpdpbusd.256", ("+avx512vnni", "+avx512vl")
"""Instruction that adds to each of 8 numbers the dot product of four bytes and four weights, and what has it."""


def _writer(*, streams: bool) -> Any:
    """A function that writes n gene numbers (int32) to the address ``out`` from n gaps (uint8) at the address ``gaps``.

    8 divides n. Each number is its predecessor plus 1 plus its gap; the predecessor of the first is ``before``. Returns
    the last number. Compilers do not vectorise such a prefix sum. If it ``streams``, stores bypass the caches; then 16
    divides n, and 64 ``out``.
    """

    @intrinsic
    def write(typing_context: Any, gaps: Any, n: Any, before: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            gaps, n, before, out = args
            features = context.codegen().magic_tuple()[-1].split(",")
            sums = _sums_by_dot_products if set(_HAS_DOT) <= set(features) else _sums_by_steps
            last = cgutils.alloca_once_value(builder, splat(builder, before, _NUMBERS))  # type: ignore[no-untyped-call]
            with cgutils.for_range(builder, builder.lshr(n, ir.Constant(_I64, 3))) as loop:
                at = builder.shl(loop.index, ir.Constant(_I64, 3))
                local, base = sums(builder, builder.add(gaps, at)), builder.load(last)
                to = builder.add(out, builder.shl(at, ir.Constant(_I64, 2)))
                store_lanes(builder, builder.add(local, base), to, streams=streams)
                total = builder.shuffle_vector(local, local, ir.Constant(_NUMBERS, [_LANES - 1] * _LANES))
                builder.store(builder.add(base, total), last)
            return builder.extract_element(builder.load(last), ir.Constant(_I32, 0))

        return nb.int32(nb.uintp, nb.intp, nb.int32, nb.uintp), generate

    return write


_write, _stream = _writer(streams=False), _writer(streams=True)


def _sums_by_steps(builder: Any, gaps: Any) -> Any:
    """Sums of the first 1 to 8 gaps at an address, each plus 1: three times, lanes add the one 1, 2, 4 before them."""
    sums = builder.add(builder.zext(load(builder, gaps, _BYTES), _SHORT), ir.Constant(_SHORT, [1] * _LANES))
    none = ir.Constant(_SHORT, [0] * _LANES)
    for far in (1, 2, 4):
        moved = [max(0, _LANES + lane - far) * (lane >= far) for lane in range(_LANES)]
        sums = builder.add(sums, builder.shuffle_vector(none, sums, ir.Constant(_NUMBERS, moved)))
    return builder.zext(sums, _NUMBERS)


def _sums_by_dot_products(builder: Any, gaps: Any) -> Any:
    """As `_sums_by_steps`: each lane adds its part of the first four gaps, then of the others, by one instruction."""
    kind = ir.FunctionType(_NUMBERS, [_NUMBERS] * 3)
    add = builder.module.globals.get(_DOT) or ir.Function(builder.module, kind, _DOT)
    sums = ir.Constant(_NUMBERS, list(range(1, _LANES + 1)))
    for first in (0, 4):
        four = builder.load(builder.inttoptr(builder.add(gaps, ir.Constant(_I64, first)), _I32.as_pointer()))
        four.align = 1
        ones = [min(4, max(0, lane + 1 - first)) for lane in range(_LANES)]
        weights = ir.Constant(_NUMBERS, [0x01010101 & (1 << 8 * n) - 1 for n in ones])
        sums = builder.call(add, [sums, splat(builder, four, _NUMBERS), weights])
    return sums


@nb.njit(nogil=True, cache=True)
def number_genes(gaps: NDArray[np.uint8], number: np.int64, out: NDArray[np.int32], streams: bool = False) -> np.int64:  # noqa: FBT002
    """Write gene numbers, of which the first is ``number`` plus its gap; returns the last one plus 1.

    Numbers beyond 32 bits are written modulo 2^32; nothing is addressed by them. If it ``streams``, whole cache lines
    bypass the caches: call `settle` before another thread reads them.
    """
    n = min(len(gaps), len(out))
    first = min(n, values_to_line(out)) if streams else 0
    full = first + ((n - first) // LINE * LINE if streams else n // _LANES * _LANES)
    number = _one_by_one(gaps[:first], number, out)
    for begin in range(first, full, _MOST):
        there, to = np.uintp(gaps.ctypes.data + begin), np.uintp(out.ctypes.data + 4 * begin)
        before, some = np.int32(number - 1), min(full - begin, _MOST)
        last = _stream(there, some, before, to) if streams else _write(there, some, before, to)
        number += np.int64(np.uint32(last - before))
    return _one_by_one(gaps[full:n], number, out[full:])


@nb.njit(inline="always", cache=True)
def _one_by_one(gaps: NDArray[np.uint8], number: np.int64, out: NDArray[np.int32]) -> np.int64:
    for j in range(len(gaps)):
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
