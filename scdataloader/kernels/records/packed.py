"""Packed numbers: fields of 2, 4 or 8 bits, and ascending numbers as a bit set and fields.

m fields of w bits take ``(m w + 7) // 8`` bytes, their planes: of q bytes, field j is in byte ``j % q``, from bit
``w (j // q)`` on. The first fields of all bytes thus come first, so that a processor unpacks many at once.

Ascending numbers are stored as by Elias (1974, J. ACM 21(2)) and Fano: the lower l bits of each as a field, the others,
h_j of number j, as bits ``h_j + j`` of a bit set. A number takes about l + 1 + u / (2^l n) bits for n numbers below u.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from scdataloader.kernels.machine.memory import intrinsic
from scdataloader.kernels.machine.vectors import load, splat, store

SPARE = 72
"""Entries after the last one that may be overwritten."""
IMPOSSIBLE = 1 << 62
_LANES, _LONG = 16, 16
_TWO, _FOUR, _EIGHT, _SIXTEEN = (
    np.uint64(mask) for mask in (0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF)
)
_WORDS_PER_SUM = 128
"""Words whose bytes add up to less than 2^16 in each of four lanes."""
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_POSITIONS = np.zeros((256, 8), np.int32)
"""Positions of the set bits of each byte."""
_ROW = 5
"""Log2 of the bytes of a row of it."""
for _byte in range(256):
    _set = [bit for bit in range(8) if _byte >> bit & 1]
    _POSITIONS[_byte, : len(_set)] = _set


@intrinsic
def _word_bits(typing_context: Any, word: Any, base: Any, table: Any, out: Any) -> Any:
    """Write the positions of the set bits of a word, each plus ``base``, as int32 to the address ``out``.

    ``table`` is the address of `_POSITIONS`. Returns the address after the last; up to 8 entries more are overwritten.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, base, table, at = args
        numbers = ir.VectorType(_I32, 8)
        bases = splat(builder, base, numbers)
        for first in range(0, 64, 8):
            far = ir.Constant(_I64, abs(first - _ROW))
            moved = builder.shl(word, far) if first < _ROW else builder.lshr(word, far)
            row = builder.and_(moved, ir.Constant(_I64, 255 << _ROW))
            found = builder.add(load(builder, builder.add(table, row), numbers), bases)
            store(builder, found, at)
            at = builder.add(at, builder.shl(builder.ctpop(row), ir.Constant(_I64, 2)))
            bases = builder.add(bases, ir.Constant(numbers, [8] * 8))
        return at

    return nb.uintp(nb.uint64, nb.int32, nb.uintp, nb.uintp), generate


@intrinsic
def _sixteen_numbers(typing_context: Any, high: Any, planes: Any, shift: Any, width: Any, plus: Any, out: Any) -> Any:
    """Write 16 numbers of two parts as int32 to the address ``out``.

    The positions of the bits of their upper parts are at the address ``high``, the bytes with their lower parts at
    ``planes``, from bit ``shift`` on, of ``width`` bits. ``plus``, less j of the first times 2^width, is added to each.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        high, planes, shift, width, plus, out = args
        numbers, pairs, bytes_of = (ir.VectorType(*kind) for kind in ((_I32, _LANES), (_I64, 2), (_I8, _LANES)))
        mask = builder.trunc(builder.sub(builder.shl(ir.Constant(_I32, 1), width), ir.Constant(_I32, 1)), _I8)
        moved = builder.lshr(load(builder, planes, pairs), splat(builder, builder.zext(shift, _I64), pairs))
        low = builder.and_(builder.bitcast(moved, bytes_of), splat(builder, mask, bytes_of))
        widths = splat(builder, width, numbers)
        before = builder.shl(ir.Constant(numbers, list(range(_LANES))), widths)
        upper = builder.shl(load(builder, high, numbers), widths)
        both = builder.add(builder.add(upper, builder.zext(low, numbers)), splat(builder, plus, numbers))
        store(builder, builder.sub(both, before), out)
        return context.get_dummy_value()

    return nb.void(nb.uintp, nb.uintp, nb.int32, nb.int32, nb.int32, nb.uintp), generate


@nb.njit(nogil=True, cache=True)
def ascending_numbers(
    words: NDArray[np.uint64],
    planes: NDArray[np.uint8],
    low: int,
    plus: np.int64,
    bits: NDArray[np.int32],
    out: NDArray[np.int32],
) -> int:
    """Write numbers whose upper parts are in ``words`` and whose lower ``low`` bits in ``planes``, each plus ``plus``.

    Returns the largest plus 1, without ``plus``; `IMPOSSIBLE` if there are not ``len(out)``, or one of 2^31 or more.
    ``bits`` are ``len(out)`` + `SPARE` entries for temporary use.
    """
    n = len(out)
    if not _set_bits(words, n, bits):
        return IMPOSSIBLE
    if n == 0:
        return 0
    top = np.int64(bits[n - 1]) - (n - 1)  # upper parts ascend, so that only numbers with this one can be the largest
    if top << low >= 1 << 31:
        return IMPOSSIBLE
    if low == _LONG:
        for j in range(n):
            lower = np.int64(planes[2 * j]) | np.int64(planes[2 * j + 1]) << 8
            out[j] = np.int32(((np.int64(bits[j]) - j) << low | lower) + plus)
    else:
        _join(bits, planes, low, plus, out)
    j, largest = n - 1, np.int64(0)
    while j >= 0 and np.int64(bits[j]) - j == top:
        largest = max(largest, np.int64(np.uint32(out[j])) - plus)
        j -= 1
    return int(largest) + 1


@nb.njit(nogil=True, cache=True)
def _set_bits(words: NDArray[np.uint64], n: int, out: NDArray[np.int32]) -> bool:
    """Write the positions of the set bits of ``words`` to the n + `SPARE` entries of ``out``; whether there are n."""
    table, begin = np.uintp(_POSITIONS.ctypes.data), np.uintp(out.ctypes.data)
    at, end = begin, begin + np.uintp(4 * n)
    for k in range(len(words)):
        if at > end:
            return False
        at = _word_bits(words[k], np.int32(64 * k), table, at)
    return bool(at == end)


@nb.njit(nogil=True, cache=True)
def _join(high: NDArray[np.int32], planes: NDArray[np.uint8], low: int, plus: np.int64, out: NDArray[np.int32]) -> None:
    """Write numbers of two parts; ``high`` are the positions of the bits of their upper parts."""
    n, q, shift = len(out), len(planes), 0
    for begin in range(0, n, q):
        end = min(begin + q, n)
        if end - begin < _LANES:
            for k in range(begin, end):
                lower = np.int64(planes[k - begin]) >> shift & ((1 << low) - 1)
                out[k] = np.int32(((np.int64(high[k]) - k) << low | lower) + plus)
        else:
            for j in range(begin, end - _LANES + 1, _LANES):
                _sixteen_at(j, high, planes, begin, shift, low, plus, out)
            _sixteen_at(end - _LANES, high, planes, begin, shift, low, plus, out)  # faster than one by one
        shift += low


@nb.njit(inline="always", cache=True)
def _sixteen_at(
    j: int,
    high: NDArray[np.int32],
    planes: NDArray[np.uint8],
    begin: int,
    shift: int,
    low: int,
    plus: np.int64,
    out: NDArray[np.int32],
) -> None:
    """Write numbers j to j + 15; those of ``begin`` on are at bit ``shift`` of the planes."""
    _sixteen_numbers(
        np.uintp(high.ctypes.data + 4 * j),
        np.uintp(planes.ctypes.data + j - begin),
        np.int32(shift),
        np.int32(low),
        np.int32(plus - (j << low)),
        np.uintp(out.ctypes.data + 4 * j),
    )


@nb.njit(nogil=True, cache=True)
def widen_fields(planes: NDArray[np.uint8], bits: int, out: NDArray[Any]) -> None:
    """Write ``len(out)`` fields of 2, 4 or 8 bits, each plus 1."""
    q = len(planes)
    if bits == 8:  # noqa: PLR2004 (bits)
        _widen(planes, 0, 255, out)
    elif bits == 4:  # noqa: PLR2004
        _widen(planes, 0, 15, out[:q])
        _widen(planes, 4, 15, out[q:])
    else:
        _widen(planes, 0, 3, out[:q])
        _widen(planes, 2, 3, out[q : 2 * q])
        _widen(planes, 4, 3, out[2 * q : 3 * q])
        _widen(planes, 6, 3, out[3 * q :])


@nb.njit(inline="always", cache=True)
def _widen(planes: NDArray[np.uint8], shift: int, mask: int, out: NDArray[Any]) -> None:
    for j in range(len(out)):
        out[j] = np.int16((planes[j] >> np.uint8(shift) & np.uint8(mask)) + np.uint8(1))


@nb.njit(nogil=True, cache=True)
def sum_fields(planes: NDArray[np.uint8], bits: int) -> int:
    """Sum of fields of 2, 4 or 8 bits, eight bytes at a time."""
    total, whole = np.int64(0), len(planes) >> 3
    words = planes[: 8 * whole].view(np.uint64)
    for begin in range(0, whole, _WORDS_PER_SUM):
        some = words[begin : begin + _WORDS_PER_SUM]
        if bits == 2:  # noqa: PLR2004 (bits)
            total += _sum_words(some, 2)
        elif bits == 4:  # noqa: PLR2004
            total += _sum_words(some, 4)
        else:
            total += _sum_words(some, 8)
    for k in range(8 * whole, len(planes)):
        rest = np.int64(planes[k])
        while rest:
            total += rest & ((1 << bits) - 1)
            rest >>= bits
    return int(total)


@nb.njit(inline="always", cache=True)
def _sum_words(words: NDArray[np.uint64], bits: int) -> np.int64:
    """Sum of the fields of some words; constant ``bits`` leave no branch."""
    total = np.uint64(0)
    for k in range(len(words)):
        x = words[k]
        if bits == 2:  # noqa: PLR2004 (bits)
            x = (x & _TWO) + (x >> np.uint64(2) & _TWO)
        if bits <= 4:  # noqa: PLR2004
            x = (x & _FOUR) + (x >> np.uint64(4) & _FOUR)
        total += (x & _EIGHT) + (x >> np.uint64(8) & _EIGHT)
    total = (total & _SIXTEEN) + (total >> np.uint64(16) & _SIXTEEN)
    return np.int64((total & np.uint64(0xFFFFFFFF)) + (total >> np.uint64(32)))
