"""Short records: records of bytes of which each value is in 4 bits and each gap in 6, but for exceptions.

They are read by writing the record of bytes that they stand for into a buffer that stays in the nearest cache: a third
less is loaded from memory, and nothing else has to know them.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from scdataloader.kernels.machine.memory import intrinsic
from scdataloader.kernels.machine.vectors import load, splat, store
from scdataloader.kernels.records.format import (
    CODE_AT,
    HEADER,
    MOST_LARGE,
    PACKED,
    SHORT_CODE,
    U8,
    Records,
    field_bytes,
    parts_of,
)

_HEADER = 24
"""Bytes before the exceptions."""
_MOST = 1 << 14
"""Values of a record: a position has 14 bits."""
_LANES = 32
_I64, _BYTES = ir.IntType(64), ir.VectorType(ir.IntType(8), _LANES)


@nb.njit(nogil=True, cache=True)
def is_short(words: NDArray[np.uint64]) -> bool:
    """Whether a record says that it is short."""
    head = words.view(np.uint32)
    return bool(head[2] >= PACKED and np.int64(head[3]) >> CODE_AT == SHORT_CODE)


@nb.njit(nogil=True, cache=True)
def plain_buffer(records: Records) -> NDArray[np.uint64]:
    """A buffer for `plain_record` of each of some records."""
    if not len(records.size):
        return np.empty(0, np.uint64)
    # exceptions are the same in both; the rest of a record of bytes is its header, two bytes per value, and padding
    return np.empty(records.length.max() // 8 + records.size.max() // 4 + HEADER // 8 + 1, np.uint64)


@nb.njit(nogil=True, cache=True)
def plain_record(words: NDArray[np.uint64], size: int, buffer: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The record of bytes that a short one of ``size`` values stands for, without checksum; other records as they are.

    It is written to ``buffer``, a `plain_buffer`. A short record whose parts are not within it comes back as it is,
    and `fits` refuses it.
    """
    head = words.view(np.uint32)
    if not is_short(words) or head[1] != size or 8 * len(words) < _HEADER:
        return words
    n, r, n_large = int(size), int(np.int64(head[2])) - PACKED, int(np.int64(head[3])) & (MOST_LARGE - 1)
    n_gaps, g = int(np.int64(head[4])), int(np.int64(head[5]))
    exceptions = n_gaps + n_large
    raised = _HEADER + 8 * exceptions
    wide, values = raised + 2 * r, raised + 2 * (r + g)
    gaps, m = values + field_bytes(n, 4), (n + 3) >> 2
    more = gaps + 3 * m
    end = more + r
    if not 8 * len(words) - 8 < end <= 8 * len(words):
        return words
    stored = words.view(np.uint8)
    out = buffer[: (HEADER + 8 * exceptions + 2 * n + 7) >> 3]
    out[-1] = 0
    to = out.view(np.uint32)
    to[0], to[1], to[2], to[3] = 0, n, n_gaps, n_large
    first = HEADER // 8
    for k in range(exceptions):
        out[first + k] = words[_HEADER // 8 + k]
    first = HEADER + 8 * exceptions
    out_values, out_gaps = out.view(np.uint8)[first : first + n], out.view(np.uint8)[first + n : first + 2 * n]
    q = gaps - values
    _write_fields(stored[values:gaps], 0, 15, out_values[:q])
    _write_fields(stored[values:gaps], 4, 15, out_values[q:])
    for plane in range(3):
        _write_fields(stored[gaps + plane * m : more], 0, 63, out_gaps[plane * m : plane * m + m])
    _write_fourths(stored[gaps:more], m, out_gaps[3 * m :])
    good = _raise_values(stored[raised:wide].view(np.uint16), stored[more:end], out_values)
    good &= _widen_gaps(stored[wide:values].view(np.uint16), out_gaps)
    return out if good else words


@intrinsic
def _unpack(typing_context: Any, planes: Any, shift: Any, mask: Any, out: Any) -> Any:
    """Write to the address ``out`` the bits ``mask`` of 32 bytes at the address ``planes``, from bit ``shift`` on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        planes, shift, mask, out = args
        words = ir.VectorType(_I64, _LANES // 8)
        moved = builder.lshr(load(builder, planes, words), splat(builder, builder.zext(shift, _I64), words))
        masks = splat(builder, mask, _BYTES)
        store(builder, builder.and_(builder.bitcast(moved, _BYTES), masks), out)
        return context.get_dummy_value()

    return nb.void(nb.uintp, nb.uint8, nb.uint8, nb.uintp), generate


@intrinsic
def _join(typing_context: Any, a: Any, b: Any, c: Any, out: Any) -> Any:
    """Write to the address ``out`` 32 bytes of the upper two bits of those at ``a``, ``b`` and ``c``, lowest first."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *planes, out = args
        two, four, six = (ir.Constant(_BYTES, [bits] * _LANES) for bits in (2, 4, 6))
        first, second, third = (builder.lshr(load(builder, plane, _BYTES), six) for plane in planes)
        store(builder, builder.or_(first, builder.or_(builder.shl(second, two), builder.shl(third, four))), out)
        return context.get_dummy_value()

    return nb.void(nb.uintp, nb.uintp, nb.uintp, nb.uintp), generate


@nb.njit(inline="always", cache=True)
def _write_fields(planes: NDArray[np.uint8], shift: int, mask: int, out: NDArray[np.uint8]) -> None:
    """Write the bits ``mask`` of bytes, from bit ``shift`` on; the last 32 at once, so that some are written twice."""
    n = len(out)
    if n < _LANES:
        for j in range(n):
            out[j] = planes[j] >> np.uint8(shift) & np.uint8(mask)
        return
    begin, end = planes.ctypes.data, out.ctypes.data
    for j in range(0, n - _LANES + 1, _LANES):
        _unpack(np.uintp(begin + j), np.uint8(shift), np.uint8(mask), np.uintp(end + j))
    _unpack(np.uintp(begin + n - _LANES), np.uint8(shift), np.uint8(mask), np.uintp(end + n - _LANES))


@nb.njit(inline="always", cache=True)
def _write_fourths(planes: NDArray[np.uint8], m: int, out: NDArray[np.uint8]) -> None:
    """Write the fields that are in the upper two bits of three planes of ``m`` bytes; as `_write_fields`."""
    n, two, four, six = len(out), np.uint8(2), np.uint8(4), np.uint8(6)
    a, b, c = planes[:m], planes[m : 2 * m], planes[2 * m : 3 * m]
    if n < _LANES:
        for j in range(n):
            out[j] = (a[j] >> six) | ((b[j] >> six) << two) | ((c[j] >> six) << four)
        return
    first, second, third, to = a.ctypes.data, b.ctypes.data, c.ctypes.data, out.ctypes.data
    for j in range(0, n - _LANES + 1, _LANES):
        _join(np.uintp(first + j), np.uintp(second + j), np.uintp(third + j), np.uintp(to + j))
    j = n - _LANES
    _join(np.uintp(first + j), np.uintp(second + j), np.uintp(third + j), np.uintp(to + j))


@nb.njit(inline="always", cache=True)
def _raise_values(positions: NDArray[np.uint16], more: NDArray[np.uint8], out: NDArray[np.uint8]) -> bool:
    """Add to values at ``positions``; returns False, without writing, if one is beyond the values."""
    last = np.uint16(0)
    for k in range(len(positions)):
        last = max(last, positions[k])
    if last >= len(out) and len(positions):
        return False
    for k in range(len(positions)):
        out[np.uint64(positions[k])] += more[k]
    return True


@nb.njit(inline="always", cache=True)
def _widen_gaps(wide: NDArray[np.uint16], out: NDArray[np.uint8]) -> bool:
    """Add to gaps the upper two bits of ``wide``, whose others are positions; False if one is beyond the gaps."""
    last = np.uint16(0)
    for k in range(len(wide)):
        last = max(last, wide[k] & np.uint16(_MOST - 1))
    if last >= len(out) and len(wide):
        return False
    for k in range(len(wide)):
        out[np.uint64(wide[k]) & np.uint64(_MOST - 1)] += np.uint8((wide[k] >> np.uint16(14)) << np.uint16(6))
    return True


@nb.njit(nogil=True, cache=True)
def shorten(words: NDArray[np.uint64], out: NDArray[np.uint64]) -> int:
    """Write to ``out`` the short record that stands for a record of bytes, without checksum; returns its words.

    Returns 0, and ``out`` has any content, if it would not be shorter, or there is none for it. ``out`` has as many
    words as the record.
    """
    parts = parts_of(words)
    n = parts.n
    if parts.is_packed or parts.code != U8 or n > _MOST or parts.n_large >= MOST_LARGE:
        return 0
    values, gaps = words.view(np.uint8)[parts.values : parts.genes], words.view(np.uint8)[parts.genes : parts.end]
    r = g = 0
    for j in range(n):
        r += int(values[j] > 15)  # noqa: PLR2004 (4 bits)
        g += int(gaps[j] > 63)  # noqa: PLR2004 (6 bits)
    exceptions, m = parts.n_gaps + parts.n_large, (n + 3) >> 2
    n_words = (_HEADER + 8 * exceptions + 3 * r + 2 * g + field_bytes(n, 4) + 3 * m + 7) >> 3
    if n_words >= len(words):
        return 0
    out[:n_words] = 0
    head = out.view(np.uint32)
    head[1], head[2] = n, r | PACKED
    head[3], head[4], head[5] = parts.n_large | SHORT_CODE << CODE_AT, parts.n_gaps, g
    out[_HEADER // 8 : _HEADER // 8 + exceptions] = words[HEADER // 8 : HEADER // 8 + exceptions]
    at = _HEADER + 8 * exceptions
    positions, wide = out.view(np.uint8)[at : at + 2 * r].view(np.uint16), out.view(np.uint16)[at // 2 + r :]
    stored = out.view(np.uint8)[at + 2 * (r + g) :]
    _put_values(values, stored, positions, stored[field_bytes(n, 4) + 3 * m :])
    _put_gaps(gaps, m, stored[field_bytes(n, 4) :], wide)
    return int(n_words)


@nb.njit(nogil=True, cache=True)
def _put_values(
    values: NDArray[np.uint8], planes: NDArray[np.uint8], positions: NDArray[np.uint16], more: NDArray[np.uint8]
) -> None:
    q, k = field_bytes(len(values), 4), 0
    for j, value in enumerate(values[:q]):
        planes[j] = value & np.uint8(15)
    for j, value in enumerate(values[q:]):
        planes[j] |= value << np.uint8(4)
    for j, value in enumerate(values):
        if value > 15:  # noqa: PLR2004 (4 bits)
            positions[k], more[k] = j, value & np.uint8(240)
            k += 1


@nb.njit(nogil=True, cache=True)
def _put_gaps(gaps: NDArray[np.uint8], m: int, planes: NDArray[np.uint8], wide: NDArray[np.uint16]) -> None:
    k = 0
    for j, gap in enumerate(gaps[: 3 * m]):
        planes[j] = gap & np.uint8(63)
    for j, gap in enumerate(gaps[3 * m :]):
        planes[j] |= gap << np.uint8(6)
        planes[m + j] |= gap >> np.uint8(2) << np.uint8(6)
        planes[2 * m + j] |= gap >> np.uint8(4) << np.uint8(6)
    for j, gap in enumerate(gaps):
        if gap > 63:  # noqa: PLR2004 (6 bits)
            wide[k] = j | np.int64(gap >> np.uint8(6)) << 14
            k += 1
