"""Values of records, as float32 or uint32."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from scdataloader.kernels.machine.memory import LINE, intrinsic, store_lanes, values_to_line
from scdataloader.kernels.machine.vectors import load
from scdataloader.kernels.records.format import F32, U8, U16, U32, Parts, field_bytes, value_bits
from scdataloader.kernels.records.packed import sum_fields, widen_fields

_LANES = 8
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_BYTES, _NUMBERS = ir.VectorType(ir.IntType(8), _LANES), ir.VectorType(_I32, _LANES)


@nb.njit(nogil=True, cache=True)
def write_values(words: NDArray[np.uint64], parts: Parts, out: NDArray[Any], streams: bool = False) -> float:  # noqa: FBT002
    """Write the values of a record that `fits`: as float32, or their bits as uint32; returns the sum of all.

    If it ``streams``, stores may bypass the caches: call `settle` before another thread reads them.
    """
    content = words.view(np.uint8)[parts.values : parts.values + field_bytes(parts.n, value_bits(parts.code))]
    if parts.is_packed and parts.code not in {U16, U32, F32}:
        bits = value_bits(parts.code)
        widen_fields(content, bits, out)
        total = float(parts.n + sum_fields(content, bits))
        total += _raise_values(words.view(np.uint8)[parts.raised : parts.end], bits, out)
    elif parts.code == U8:
        total = float(_streamed(content, out) if streams else _widened(content, out))
    elif parts.code == U16:
        total = float(_widened(content.view(np.uint16), out))
    elif parts.code == U32:
        total = float(_widened(content.view(np.uint32), out))
    else:
        out.view(np.uint32)[:] = content.view(np.uint32)
        total = 0.0
        for value in content.view(np.float32):
            total += np.float64(value)
    head = words.view(np.uint32)
    for k in range(parts.large // 4, parts.large // 4 + 2 * parts.n_large, 2):
        # bytes are read where they came from: the lines of the output may have left the caches
        is_byte = not parts.is_packed and parts.code == U8
        total += float(head[k + 1]) - float(content[head[k]] if is_byte else out[head[k]])
        out[head[k]] = head[k + 1]
    return total


@nb.njit(nogil=True, cache=True)
def _raise_values(raised: NDArray[np.uint8], bits: int, out: NDArray[Any]) -> float:
    """Add to values that do not fit into ``bits`` bits; returns what is added in all."""
    n, total, at = len(raised) // 2, np.int64(0), np.uint64(0)
    steps, parts = raised[:n], raised[n:]
    for k in range(n):
        more = np.int32(parts[k]) << bits
        at += np.uint64(steps[k])
        out[at] += more
        total += more
    return float(total)


@nb.njit(inline="always", cache=True)
def _widened(values: NDArray[Any], out: NDArray[Any]) -> np.int64:
    """Write values as float32 or uint32; returns their sum. 32 bits hold the sum of 2^16 values of up to 16 bits."""
    total = np.int64(0)
    step = 1 << 16 if values.itemsize <= 2 else 1  # noqa: PLR2004 (bytes)
    for begin in range(0, len(values), step):
        some, room, part = np.uint32(0), out[begin : begin + step], values[begin : begin + step]
        for j in range(len(part)):
            room[j] = part[j]
            some += np.uint32(part[j])
        total += np.int64(some)
    return total


@nb.njit(nogil=True, cache=True)
def _streamed(values: NDArray[np.uint8], out: NDArray[Any]) -> np.int64:
    """As `_widened`; whole cache lines bypass the caches. 32 bits hold the sum of 2^24 of 8 sums."""
    n = min(len(values), len(out))
    first = min(n, values_to_line(out))
    full = first + (n - first) // LINE * LINE
    total = _widened(values[:first], out)
    for begin in range(first, full, 1 << 24):
        total += _stream(values.ctypes.data + begin, min(full - begin, 1 << 24), out.ctypes.data + 4 * begin, out)
    return total + _widened(values[full:], out[full:])


@intrinsic
def _stream(typing_context: Any, values: Any, n: Any, to: Any, out: Any) -> Any:
    """Write n bytes at the address ``values`` to the address ``to`` in the type of ``out``; returns their sum.

    16 divides n, and 64 ``to``.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, n, to, _ = args
        sums = cgutils.alloca_once_value(builder, ir.Constant(_NUMBERS, [0] * _LANES))  # type: ignore[no-untyped-call]
        with cgutils.for_range(builder, builder.lshr(n, ir.Constant(_I64, 3))) as loop:
            at = builder.shl(loop.index, ir.Constant(_I64, 3))
            numbers = builder.zext(load(builder, builder.add(values, at), _BYTES), _NUMBERS)
            builder.store(builder.add(builder.load(sums), numbers), sums)
            if signature.args[3].dtype == nb.float32:
                numbers = builder.sitofp(numbers, ir.VectorType(ir.FloatType(), _LANES))
            store_lanes(builder, numbers, builder.add(to, builder.shl(at, ir.Constant(_I64, 2))), streams=True)
        lanes = (builder.extract_element(builder.load(sums), ir.Constant(_I32, lane)) for lane in range(_LANES))
        total = ir.Constant(_I64, 0)
        for lane in lanes:
            total = builder.add(total, builder.zext(lane, _I64))
        return total

    return nb.int64(nb.intp, nb.intp, nb.intp, out), generate
