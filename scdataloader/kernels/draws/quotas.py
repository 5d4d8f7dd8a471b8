"""Draws by quota: in an epoch of n draws a member of probability p is drawn n·p times, rounded up or down.

A member is a class, or a cell if there are no classes. The members are the leaves of a binary tree, and the draws of a
node are divided between its two halves twice: how many each gets (its expectation, rounded at random so that the sum is
kept: the pivotal method of Deville and Tillé, 1998), and which positions (as evenly spaced as possible). Both follow
from the random bits of the node, so the draws of any part of the epoch are found by walking down from the root, without
stored state.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.draw import GROUP
from scdataloader.kernels.draws.random import GAMMA, below, mix, permuted, philox, unit

MIXED = 512
"""Draws that are put into random order together: to get any of them, all are drawn."""

MOST_DRAWS = 1 << 31
"""Draws in one epoch; products of two numbers up to this fit in 64 bits."""

_TINY = 1e-300
_DEPTH = 130  # the walk keeps at most one node for each of up to 64 levels, and the two just found


@nb.njit(inline="always", cache=True)
def _weight_before(member: int, sums: NDArray[np.float64], weights: NDArray[np.floating]) -> Any:
    """The weight of members [0, member), from running sums over members, or over groups of cells with ``weights``."""
    if len(weights) == 0:
        return sums[member - 1] if member else 0.0
    group = member // GROUP
    total = sums[group - 1] if group else 0.0
    for cell in range(group * GROUP, member):
        total += weights[cell]
    return total


@nb.njit(inline="always", cache=True)
def _left_quota(u: np.float64, quota: int, left: np.float64, right: np.float64) -> int:
    """Draws out of ``quota`` for the left half, given the expected numbers ``left`` and ``right`` of both halves."""
    if left <= 0:
        return 0
    if right <= 0:
        return quota
    whole = int(left)
    part, other = left - whole, right - int(right)
    spare = quota - whole - int(right)  # 0, 1 or 2 draws that rounding down leaves over
    if spare > 1:
        whole += 1
    elif spare == 1:
        up = part / max(part + other, _TINY) if part + other < 1 else (1 - other) / (2 - part - other)
        whole += 1 if u < up else 0
    return min(whole, quota)


@nb.njit(nogil=True, cache=True)
def quota_members(
    key: np.uint64,
    n: int,
    window: int,
    n_members: int,
    sums: NDArray[np.float64],
    weights: NDArray[np.floating],
    member: NDArray[np.int64],
    turn: NDArray[np.int64],
) -> int:
    """The draws at positions ``[window * MIXED, (window + 1) * MIXED)`` of an epoch of ``n``; how many there are.

    ``member[i]`` is drawn at the i-th of these positions, for the ``turn[i]``-th time in the epoch.
    """
    node = np.empty((_DEPTH, 5), np.int64)  # members [low, high), their quota, and of that the draws [begin, end)
    node[0] = (0, n_members, n, window * MIXED, min((window + 1) * MIXED, n))
    before = np.empty(
        (_DEPTH, 2), np.float64
    )  # weight before the first member of a node, and before the first after it
    before[0] = (0.0, _weight_before(n_members, sums, weights))
    scale = n / before[0, 1]
    found = np.empty((MIXED, 2), np.int64)  # member, and its first turn here
    slots = np.empty(MIXED, np.int64)
    n_found, n_slots, top = 0, 0, 1
    while top:
        top -= 1
        low, high, quota, begin, end = node[top]
        at_low, at_high = before[top]
        if begin == end:
            continue
        if high - low == 1:
            found[n_found] = (low, begin)
            slots[n_slots : n_slots + end - begin] = n_found
            n_found += 1
            n_slots += end - begin
            continue
        for_quota, for_turns = philox(key, np.uint64(low), np.uint64(high))
        middle = (low + high) >> 1
        if len(weights) and high - low > GROUP:
            middle = (middle + GROUP // 2) // GROUP * GROUP  # between groups, where the sum is stored
        at = _weight_before(middle, sums, weights)
        left = scale * (at - at_low)
        right = scale * (at_high - at)
        n_left = _left_quota(unit(for_quota), quota, left, right)
        offset = below(for_turns, quota)
        left_begin, left_end = (begin * n_left + offset) // quota, (end * n_left + offset) // quota
        node[top] = (low, middle, n_left, left_begin, left_end)
        before[top], before[top + 1] = (at_low, at), (at, at_high)
        node[top + 1] = (middle, high, quota - n_left, begin - left_begin, end - left_end)
        top += 2
    bits = mix(key + np.uint64(window + 1) * GAMMA)
    for i in range(n_slots - 1, 0, -1):
        j = below(mix(bits + np.uint64(i) * GAMMA), i + 1)
        slots[i], slots[j] = slots[j], slots[i]
    for i in range(n_slots):
        chosen = slots[i]
        member[i], turn[i] = found[chosen]
        found[chosen, 1] += 1
    return n_slots


@nb.njit(nogil=True, cache=True)
def draw_quotas(
    key: np.uint64,
    n: int,
    start: int,
    starts: NDArray[np.int64],
    cells: NDArray[np.integer],
    weights: NDArray[np.floating],
    sums: NDArray[np.float64],
    out: NDArray[np.int64],
) -> None:
    """The cells drawn at positions ``start``, ``start + 1`` … of an epoch of ``n`` draws, by quota.

    With ``weights`` (not empty) the members are the cells. Otherwise they are classes of equal cells: ``sums`` are the
    running class weights, ``starts`` and ``cells`` the class index, and each class uses up its cells, in a new order
    each time, before one repeats.
    """
    n_members = len(weights) or len(sums)
    member, turn = np.empty(MIXED, np.int64), np.empty(MIXED, np.int64)
    stop, for_order = start + len(out), mix(key)
    for window in range(start // MIXED, (stop - 1) // MIXED + 1):
        n_here = quota_members(key, n, window, n_members, sums, weights, member, turn)
        first = window * MIXED
        begin, end = max(start - first, 0), min(stop - first, n_here)
        here = out[first + begin - start : first + end - start]
        here[:] = member[begin:end]
        if len(weights) == 0:
            _take_turns(for_order, turn[begin:end], starts, here)
            if len(cells):
                for i in range(len(here)):  # a separate loop, so that many reads wait for memory at once
                    here[i] = cells[here[i]]


@nb.njit(inline="always", cache=True)
def _take_turns(key: np.uint64, turn: NDArray[np.int64], starts: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    """Replace classes in ``out`` by indices in the class index: those of the cells of their ``turn`` in the class."""
    for i in range(len(out)):
        code = out[i]
        size = starts[code + 1] - starts[code]
        rnd = turn[i] // size
        order, _ = philox(key, np.uint64(code), np.uint64(rnd))
        out[i] = starts[code] + permuted(order, size, turn[i] - rnd * size)
