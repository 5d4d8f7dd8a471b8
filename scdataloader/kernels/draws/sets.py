"""Draws of sets: a group by its weight or quota, cells of it in a random order, and controls of its pools.

A set has `size` cells of one group, then controls. Its cells are piece p of a random order of the group, the places
``p * size`` to ``(p + 1) * size - 1`` modulo the size of the group: no cell repeats in a set while the group has that
many, and otherwise each occurs the same number of times or once more.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.draw import first_above_share
from scdataloader.kernels.draws.quotas import MIXED, quota_members
from scdataloader.kernels.draws.random import GAMMA, below, mix, permuted, philox, unit


@nb.njit(nogil=True, cache=True)
def choose_groups(
    key: np.uint64,
    first: int,
    sums: NDArray[np.float64],
    guide: NDArray[np.integer],
    group: NDArray[np.int64],
    order: NDArray[np.uint64],
) -> None:
    """The group of sets ``first``, ``first + 1`` …, independently by the running weights ``sums``, and its order.

    Set s uses the two words of ``philox(key, s, 0)``: the first for the group, the second is the key of the order.
    """
    for i in range(len(group)):
        for_group, order[i] = philox(key, np.uint64(first + i), np.uint64(0))
        group[i] = first_above_share(sums, guide, unit(for_group))


@nb.njit(nogil=True, cache=True)
def choose_group_quotas(
    key: np.uint64,
    n: int,
    first: int,
    starts: NDArray[np.int64],
    size: int,
    sums: NDArray[np.float64],
    group: NDArray[np.int64],
    order: NDArray[np.uint64],
    piece: NDArray[np.int64],
) -> None:
    """The group of sets ``first``, ``first + 1`` … of ``n``, by quota, the key of its order, and the piece of that.

    The sets of a group are the successive pieces of one order until all its cells are used, then those of another.
    """
    no_weights = np.empty(0, np.float64)
    member, turn = np.empty(MIXED, np.int64), np.empty(MIXED, np.int64)
    stop, for_order = first + len(group), mix(key)
    for window in range(first // MIXED, (stop - 1) // MIXED + 1):
        n_here = quota_members(key, n, window, len(sums), sums, no_weights, member, turn)
        begin = window * MIXED
        for at in range(max(first - begin, 0), min(stop - begin, n_here)):
            code, i = member[at], begin + at - first
            n_pieces = (starts[code + 1] - starts[code] + size - 1) // size
            rnd = turn[at] // n_pieces
            group[i], piece[i] = code, turn[at] - rnd * n_pieces
            order[i], _ = philox(for_order, np.uint64(code), np.uint64(rnd))


@nb.njit(nogil=True, cache=True)
def fill_sets(
    size: int,
    group: NDArray[np.int64],
    order: NDArray[np.uint64],
    piece: NDArray[np.int64],
    starts: NDArray[np.int64],
    cells: NDArray[np.integer],
    out: NDArray[np.int64],
) -> None:
    """The first ``size`` columns of ``out`` ``(n_sets, width)``: cells of the group of each set.

    ``starts`` and ``cells`` are the index of the groups. The columns of a row are the places
    ``piece * size``, ``piece * size + 1`` … of its order, started over at the end.
    """
    for i in range(len(group)):
        low = starts[group[i]]
        n = starts[group[i] + 1] - low
        place = piece[i] * size % n
        for j in range(size):
            out[i, j] = low + permuted(order[i], n, place)
            place = place + 1 if place + 1 < n else 0
    for i in range(len(group)):  # a separate loop, so that many reads wait for memory at once
        for j in range(size):
            out[i, j] = cells[out[i, j]]


@nb.njit(nogil=True, cache=True)
def fill_controls(
    key: np.uint64,
    first: int,
    size: int,
    group: NDArray[np.int64],
    pools: NDArray[np.integer],
    by_cell: bool,
    starts: NDArray[np.int64],
    cells: NDArray[np.integer],
    out: NDArray[np.int64],
) -> None:
    """The columns of ``out`` from ``size`` on: independent draws from pools, with equal weights within each.

    Control j of a set is drawn from the pool of cell ``j % size`` of the set: ``pools`` of that cell, or of the group
    unless ``by_cell``. ``starts`` and ``cells`` are the index of the pools; ``first`` is the number of the first set.
    """
    n_controls = out.shape[1] - size
    bits = mix(key + GAMMA)
    for i in range(len(group)):
        target = -1
        for j in range(n_controls):
            target = target + 1 if target + 1 < size else 0
            pool = pools[out[i, target]] if by_cell else pools[group[i]]
            for_cell = mix(bits + np.uint64((first + i) * n_controls + j + 1) * GAMMA)
            out[i, size + j] = starts[pool] + below(for_cell, starts[pool + 1] - starts[pool])
    for i in range(len(group)):
        for j in range(n_controls):
            out[i, size + j] = cells[out[i, size + j]]
