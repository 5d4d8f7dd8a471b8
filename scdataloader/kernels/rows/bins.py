"""Quantile bins of values within each row."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.random import GAMMA, mix, philox

HIGHEST, LOWEST, RANDOM = 0, 1, 2
"""Which bin a value gets that equals several edges."""
MOST_LEVELS = 2**16 - 1
"""Maximum number of edges."""

_BIN = np.uint64(16) << np.uint64(32)
"""Purpose in the second counter of a row's random bits; see `scdataloader.kernels.rows.select`."""
_COUNTED = 256
"""Counts below this are sorted, and their bins found, by counting."""
_LARGEST = 2.0**31 - 2.0**7
"""The largest float32 below 2^31."""
_DISTINCT = 512
"""Maximum of different values of a row that are found by hashing: counts that were scaled have few."""
_SLOT_BITS = np.uint32(11)
_HASH = np.uint32(0x9E3779B1)
_LANES = 4
"""Histograms side by side: most counts are 1, and adding to one number twice in a row waits for the first."""


@nb.njit(nogil=True, cache=True)
def bin_rows(
    indptr: NDArray[np.int64],
    data: NDArray[np.float32],
    levels: NDArray[Any],
    ties: int,
    key: np.uint64,
    position: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Each value's quantile bin among the values of its row: 1 to ``len(levels)``, at most `MOST_LEVELS`.

    The edges are the quantiles ``levels`` of the row, computed in the dtype of ``levels``. A value between two edges
    has the number of edges below it as its bin. A value that equals edges ``i`` to ``j`` could be in any of the bins
    ``i + 1`` to ``j + 1``, which ``ties`` decides: `HIGHEST` is ``np.digitize``; `RANDOM` gives each the same
    probability (up to 2^-32), by ``key``, the row's ``position`` and the place of the value in the row. `LOWEST` is one
    more than ``torch.bucketize``: the number of edges below a value, plus 1, for values between edges too.
    """
    edges = np.empty(len(levels), levels.dtype)
    histogram = np.zeros((_LANES, _COUNTED), np.int32)
    bins = np.empty(_COUNTED, np.uint32)
    for row in range(len(indptr) - 1):
        begin, end = indptr[row], indptr[row + 1]
        if begin == end:
            continue
        values = data[begin:end]
        chosen = np.empty(end - begin, np.uint32)
        largest = _largest_count(values)
        if largest < 0:
            _bins_of_values(values, levels, ties, edges, chosen)
        else:
            small, ordered = _small_counts(values), np.empty(end - begin, levels.dtype)
            _sort_counts(values, small, largest, histogram, ordered)
            _quantiles(ordered, levels, edges)
            _bins_of_counts(edges, min(largest, _COUNTED - 1), ties, bins)
            for j in range(len(values)):
                chosen[j] = bins[small[j]]
            if largest >= _COUNTED:
                _bins_of_large(values, edges, ties, chosen)
        seed = philox(key, np.uint64(position[row]), _BIN)[0] if ties == RANDOM else np.uint64(0)
        _choose(chosen, seed, out[begin:end])


@nb.njit(nogil=True, cache=True)
def _small_counts(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Counts up to `_COUNTED` - 1. Vectorised."""
    small = np.empty(len(values), np.uint8)
    for j in range(len(values)):
        small[j] = min(np.int32(values[j]), np.int32(_COUNTED - 1))
    return small


@nb.njit(nogil=True, cache=True)
def _largest_count(values: NDArray[Any]) -> int:
    """The largest of the values; -1 unless all of them are counts that an int32 can hold. Vectorised."""
    bad, largest = 0, np.int32(0)
    for j in range(len(values)):
        value = values[j]
        bad |= not (value >= 0 and value < _LARGEST and value - np.floor(value) == 0)
    for j in range(len(values)):
        largest = max(largest, np.int32(values[j]))
    return -1 if bad else int(largest)


@nb.njit(nogil=True, cache=True)
def _sort_counts(
    values: NDArray[Any], small: NDArray[np.uint8], largest: int, histogram: NDArray[np.int32], out: NDArray[Any]
) -> None:
    """Sort counts, which are given up to `_COUNTED` - 1 as ``small`` too. ``histogram`` is zero before and after."""
    last, whole = _COUNTED - 1, len(values) // _LANES * _LANES
    n_counts = min(largest, _COUNTED - 1) + 1
    for j in range(0, whole, _LANES):
        for lane in range(_LANES):
            histogram[lane, small[j + lane]] += 1
    for j in range(whole, len(values)):
        histogram[0, small[j]] += 1
    k = np.int64(0)
    for count in range(n_counts):
        n = np.int32(0)
        for lane in range(_LANES):
            n += histogram[lane, count]
            histogram[lane, count] = 0
        out[k : k + n] = count
        k += n
    if largest > last:
        begin = np.int64(np.searchsorted(out, last))
        k = begin
        for value in values:
            if value >= last:
                out[k] = value
                k += 1
        out[begin:].sort()


@nb.njit(nogil=True, cache=True)
def _quantiles(ordered: NDArray[Any], levels: NDArray[Any], out: NDArray[Any]) -> None:
    """``np.quantile`` of sorted values, bit for bit: an edge that is rounded differently would change bins."""
    kind, last = levels.dtype.type, len(ordered) - 1
    for i in range(len(levels)):
        at = levels[i] * kind(last)
        below = int(at)
        a, b = ordered[below], ordered[min(below + 1, last)]
        t = kind(at - kind(below))
        out[i] = a + (b - a) * t if t + t < 1 else b - (b - a) * (kind(1) - t)


@nb.njit(inline="always", cache=True)
def _packed(below: int, high: int, ties: int) -> np.uint32:
    """The highest bin of a value and the number of bins from that down that it may get, in the lowest 16 bits.

    ``below`` edges are less than the value, ``high`` are not greater.
    """
    if ties == HIGHEST:
        return np.uint32(high << 16 | 1)
    if ties == LOWEST:
        return np.uint32(below + 1 << 16 | 1)
    return np.uint32(high << 16 | max(high - below, 1))


@nb.njit(nogil=True, cache=True)
def _bins_of(edges: NDArray[Any], value: Any, ties: int) -> np.uint32:
    """See `_packed`."""
    at = edges.dtype.type(value)
    return _packed(np.searchsorted(edges, at, side="left"), np.searchsorted(edges, at, side="right"), ties)


@nb.njit(nogil=True, cache=True)
def _bins_of_values(
    values: NDArray[np.float32], levels: NDArray[Any], ties: int, edges: NDArray[Any], out: NDArray[np.uint32]
) -> None:
    """`_bins_of` for any values; ``edges`` is written."""
    distinct, codes = np.empty(_DISTINCT, np.float32), np.empty(len(values), np.uint16)
    ordered = np.empty(len(values), levels.dtype)
    n = _distinct_values(values, distinct, codes)
    if n < 0:
        ordered[:] = values
        ordered.sort()
        _quantiles(ordered, levels, edges)
        for j in range(len(values)):
            out[j] = _bins_of(edges, values[j], ties)
        return
    times = np.zeros(n, np.int64)
    for code in codes:
        times[code] += 1
    k = 0
    for code in np.argsort(distinct[:n]):
        ordered[k : k + times[code]] = distinct[code]
        k += times[code]
    _quantiles(ordered, levels, edges)
    bins = np.empty(n, np.uint32)
    for number in range(n):
        bins[number] = _bins_of(edges, distinct[number], ties)
    for j in range(len(values)):
        out[j] = bins[codes[j]]


@nb.njit(nogil=True, cache=True)
def _distinct_values(values: NDArray[np.float32], distinct: NDArray[np.float32], codes: NDArray[np.uint16]) -> int:
    """Number the different values of a row in the order of their first occurrence, by a hash table with open addresses.

    Returns how many there are; -1 if there are more than `_DISTINCT`.
    """
    slots = np.full(1 << _SLOT_BITS, -1, np.int16)
    bits, of_code = values.view(np.uint32), distinct.view(np.uint32)
    n = 0
    for j in range(len(bits)):
        slot = np.uint32(bits[j] * _HASH) >> (np.uint32(32) - _SLOT_BITS)
        while slots[slot] >= 0 and of_code[slots[slot]] != bits[j]:
            slot = (slot + np.uint32(1)) & np.uint32((1 << _SLOT_BITS) - 1)
        if slots[slot] < 0:
            if n == len(distinct):
                return -1
            slots[slot] = n
            of_code[n] = bits[j]
            n += 1
        codes[j] = slots[slot]
    return n


@nb.njit(nogil=True, cache=True)
def _bins_of_counts(edges: NDArray[Any], largest: int, ties: int, out: NDArray[np.uint32]) -> None:
    """`_bins_of` for the counts from 0 to ``largest``."""
    below, high = 0, 0
    for count in range(largest + 1):
        while below < len(edges) and edges[below] < count:
            below += 1
        while high < len(edges) and edges[high] <= count:
            high += 1
        out[count] = _packed(below, high, ties)


@nb.njit(nogil=True, cache=True)
def _bins_of_large(values: NDArray[Any], edges: NDArray[Any], ties: int, out: NDArray[np.uint32]) -> None:
    """`_bins_of` for the counts from `_COUNTED` on."""
    for j in range(len(values)):
        if values[j] >= _COUNTED:
            out[j] = _bins_of(edges, values[j], ties)


@nb.njit(nogil=True, cache=True)
def _choose(bins: NDArray[np.uint32], seed: np.uint64, out: NDArray[np.float32]) -> None:
    """Choose one of the bins of each value. Vectorised."""
    for j in range(len(bins)):
        bits = mix(seed + np.uint64(j) * GAMMA) >> np.uint64(32)
        n = np.uint64(bins[j] & np.uint32(0xFFFF))
        out[j] = np.int32(bins[j] >> np.uint32(16)) - np.int32(bits * n >> np.uint64(32))
