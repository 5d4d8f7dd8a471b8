"""Independent weighted draws: a class by its weight, then a cell of the class, from the random bits of the position.

A uniform number u draws the first entry of a running sum that is above u times the total. A guide stores, for equal
intervals of [0, 1), where the search begins, so that it takes about one step for any number of entries (Chen and Asau,
"On generating random variates from an empirical distribution", 1974).
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.random import below, philox, unit

GROUP = 8
"""Cells of one class whose weights are summed: a draw searches the sums of groups, then one group."""

_AT_ONCE = 64
# Draws that are processed together, one step at a time. A step that reads memory is a loop that does nothing else, so
# that many reads wait for memory at once; a branch that depends on the value read would serialise them.


@nb.njit(nogil=True, cache=True)
def group_sums(
    starts: NDArray[np.int64], cells: NDArray[np.integer], weights: NDArray[np.floating], first: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Running sums of the weights of the cells of each class, one entry per group, restarting at 0 in each class.

    Class c has groups ``first[c]`` to ``first[c + 1] - 1``. ``cells`` is the class index; empty if all cells are of one
    class, in order.
    """
    sums = np.zeros(first[-1], np.float64)
    for code in range(len(starts) - 1):
        total = 0.0
        for k in range(starts[code], starts[code + 1]):
            total += weights[cells[k] if len(cells) else k]
            sums[first[code] + (k - starts[code]) // GROUP] = total
    return sums


@nb.njit(nogil=True, cache=True)
def guide_starts(first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Offset of the guide of each part of running sums, for parts ``[first[c], first[c + 1])``.

    A guide has as many entries as its part, rounded up to a power of two, which makes the edges exact in float64.
    """
    starts = np.zeros(len(first), np.int64)
    for code in range(len(first) - 1):
        size = 1
        while size < first[code + 1] - first[code]:
            size *= 2
        starts[code + 1] = starts[code] + size
    return starts


@nb.njit(nogil=True, cache=True)
def fill_guide(
    sums: NDArray[np.float64], first: NDArray[np.int64], starts: NDArray[np.int64], out: NDArray[np.integer]
) -> None:
    """For each part c, ``out[starts[c] + g]`` = the first index in the part whose sum is above the g-th edge."""
    for code in range(len(first) - 1):
        place, last = first[code], first[code + 1] - 1
        size = starts[code + 1] - starts[code]
        for g in range(size):
            edge = g / size * sums[last] if last >= place else 0.0
            while place < last and sums[place] <= edge:
                place += 1
            out[starts[code] + g] = place


@nb.njit(inline="always", cache=True)
def first_above(sums: NDArray[np.float64], low: int, high: int, begin: int, target: float) -> int:
    """The first index in [low, high) whose running sum is above ``target``, searched from ``begin`` on.

    If rounding makes the target reach the total, it is the last index with a positive weight.
    """
    while begin < high and sums[begin] <= target:
        begin += 1
    if begin == high:
        begin -= 1
        while begin > low and sums[begin - 1] == sums[begin]:
            begin -= 1
    return begin


@nb.njit(inline="always", cache=True)
def first_above_share(sums: NDArray[np.float64], guide: NDArray[np.integer], u: np.float64) -> int:
    """The first index whose running sum is above ``u`` times the total, for one part and its guide."""
    return first_above(sums, 0, len(sums), guide[int(u * len(guide))], u * sums[-1])


@nb.njit(nogil=True, cache=True)
def draw_equal(
    key: np.uint64,
    start: int,
    class_sums: NDArray[np.float64],
    guide: NDArray[np.integer],
    starts: NDArray[np.int64],
    cells: NDArray[np.integer],
    out: NDArray[np.int64],
) -> None:
    """The cells drawn at positions ``start``, ``start + 1`` … with equal weights within each class.

    ``class_sums`` is the running sum of the class weights, ``guide`` its guide, ``cells`` the class index (empty: one
    class of all cells). Position p uses the two words of ``philox(key, p, 0)``: the first for the class, the second for
    the cell.
    """
    for begin in range(0, len(out), _AT_ONCE):
        end = min(begin + _AT_ONCE, len(out))
        for i in range(begin, end):
            for_class, for_cell = philox(key, np.uint64(start + i), np.uint64(0))
            code = first_above_share(class_sums, guide, unit(for_class))
            out[i] = starts[code] + below(for_cell, starts[code + 1] - starts[code])
        if len(cells):
            for i in range(begin, end):
                out[i] = cells[out[i]]


@nb.njit(nogil=True, cache=True)
def draw_weighted(
    key: np.uint64,
    start: int,
    class_sums: NDArray[np.float64],
    class_guide: NDArray[np.integer],
    starts: NDArray[np.int64],
    cells: NDArray[np.integer],
    weights: NDArray[np.floating],
    first: NDArray[np.int64],
    sums: NDArray[np.float64],
    guide_start: NDArray[np.int64],
    guide: NDArray[np.integer],
    out: NDArray[np.int64],
) -> None:
    """The cells drawn at positions ``start``, ``start + 1`` … with a weight for each cell.

    As `draw_equal`, but the second word selects a cell by the sums of `group_sums`, whose groups of class c are
    ``[first[c], first[c + 1])``, their guide, and the weights of one group.
    """
    code = np.empty(_AT_ONCE, np.int64)
    group = np.empty(_AT_ONCE, np.int64)
    target = np.empty(_AT_ONCE, np.float64)
    before = np.empty(_AT_ONCE, np.float64)
    end = np.empty(_AT_ONCE, np.int64)
    member = np.empty((_AT_ONCE, GROUP), np.int64)
    weight = np.empty((_AT_ONCE, GROUP), np.float64)
    for begin in range(0, len(out), _AT_ONCE):
        n = min(_AT_ONCE, len(out) - begin)
        for i in range(n):
            for_class, for_cell = philox(key, np.uint64(start + begin + i), np.uint64(0))
            c = first_above_share(class_sums, class_guide, unit(for_class))
            u = unit(for_cell)
            code[i] = c
            target[i] = u * sums[first[c + 1] - 1]
            group[i] = guide_start[c] + int(u * (guide_start[c + 1] - guide_start[c]))
        for i in range(n):
            group[i] = guide[group[i]]
        for i in range(n):
            before[i] = sums[group[i]]
        for i in range(n):
            low, high = first[code[i]], first[code[i] + 1]
            place = first_above(sums, low, high, group[i], target[i])
            before[i] = sums[place - 1] if place > low else 0.0
            group[i], end[i] = starts[code[i]] + (place - low) * GROUP, starts[code[i] + 1]
        _read_groups(cells, weights, group[:n], end[:n], member, weight)
        for i in range(n):
            n_members = min(GROUP, end[i] - group[i])
            out[begin + i] = member[i, _chosen(weight[i], n_members, before[i], target[i])]


@nb.njit(nogil=True, cache=True)
def _read_groups(
    cells: NDArray[np.integer],
    weights: NDArray[np.floating],
    first: NDArray[np.int64],
    stop: NDArray[np.int64],
    member: NDArray[np.int64],
    weight: NDArray[np.float64],
) -> None:
    """The cells at places ``[first[i], first[i] + GROUP)`` of the class index, up to ``stop[i]``, and their weights."""
    for i in range(len(first)):
        for j in range(GROUP):
            k = min(first[i] + j, stop[i] - 1)
            member[i, j] = cells[k] if len(cells) else k
    for i in range(len(first)):
        for j in range(GROUP):
            weight[i, j] = weights[member[i, j]]


@nb.njit(inline="always", cache=True)
def _chosen(weights: NDArray[np.float64], n: int, total: float, target: float) -> int:
    """The first of ``n`` weights that takes a running sum from ``total`` above ``target``."""
    chosen = 0
    for j in range(n):
        total += weights[j]
        if weights[j] > 0:
            chosen = j
            if total > target:
                break
    return chosen
