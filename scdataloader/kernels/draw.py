"""Weighted draws: a class by its mass, then a cell of the class, each from the random bits of the draw's position."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.random import below, philox, unit

BLOCK = 256
"""Cells of one class whose weights are summed up, so that a draw searches sums of blocks and then one block."""


@nb.njit(nogil=True, cache=True)
def class_index(codes: NDArray[np.integer], starts: NDArray[np.int64], out: NDArray[np.integer]) -> None:
    """Sort cell numbers by class, stably: those of class c to ``out[starts[c]:starts[c + 1]]``; code -1 is left out."""
    following = starts[:-1].copy()
    for cell in range(len(codes)):
        code = codes[cell]
        if code >= 0:
            out[following[code]] = cell
            following[code] += 1


@nb.njit(nogil=True, cache=True)
def block_sums(
    starts: NDArray[np.int64], cells: NDArray[np.integer], weights: NDArray[np.float64], first: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Sums of the weights of the cells of each class, running over its blocks, from 0 anew in each class.

    Class c has blocks ``first[c]`` to ``first[c + 1] - 1``. ``cells`` is the class index; empty where the cells lie in
    order, all in one class.
    """
    sums = np.zeros(first[-1], np.float64)
    for code in range(len(starts) - 1):
        total = 0.0
        for k in range(starts[code], starts[code + 1]):
            total += weights[cells[k] if len(cells) else k]
            sums[first[code] + (k - starts[code]) // BLOCK] = total
    return sums


@nb.njit(inline="always", cache=True)
def _first_above(sums: NDArray[np.float64], low: int, high: int, target: float) -> int:
    """The first index in [low, high) whose running sum is above ``target``; the last that adds anything if none is."""
    end = high
    while low < high:
        middle = (low + high) >> 1
        if sums[middle] > target:
            high = middle
        else:
            low = middle + 1
    # Rounding can make the target reach the total: step back to the last entry with a share of its own.
    if low == end:
        low -= 1
        while low > 0 and sums[low - 1] == sums[low]:
            low -= 1
    return low


@nb.njit(nogil=True, cache=True)
def draw_weighted(
    key: np.uint64,
    start: int,
    mass: NDArray[np.float64],
    starts: NDArray[np.int64],
    cells: NDArray[np.integer],
    weights: NDArray[np.float64],
    first: NDArray[np.int64],
    sums: NDArray[np.float64],
    out: NDArray[np.int64],
) -> None:
    """The cells drawn at positions ``start``, ``start + 1`` … of the epoch that ``key`` names.

    ``mass`` holds the running sum of the class masses. Without ``weights`` (empty) the cells of a class are alike.
    Position p uses the two words of ``philox(key, p, 0)``: the first for the class, the second for the cell.
    """
    for i in range(len(out)):
        for_class, for_cell = philox(key, np.uint64(start + i), np.uint64(0))
        code = 0
        if len(mass) > 1:
            code = _first_above(mass, 0, len(mass), unit(for_class) * mass[-1])
        begin, size = starts[code], starts[code + 1] - starts[code]
        if len(weights) == 0:
            k = begin + below(for_cell, size)
        else:
            k = begin + _weighted_member(unit(for_cell), code, starts, cells, weights, first, sums)
        out[i] = cells[k] if len(cells) else k


@nb.njit(inline="always", cache=True)
def _weighted_member(
    u: np.float64,
    code: int,
    starts: NDArray[np.int64],
    cells: NDArray[np.integer],
    weights: NDArray[np.float64],
    first: NDArray[np.int64],
    sums: NDArray[np.float64],
) -> int:
    """Which cell of its class a uniform number names: the block by the running sums, then the cell by its weight."""
    low, high = first[code], first[code + 1]
    target = u * sums[high - 1]
    block = _first_above(sums, low, high, target)
    total = sums[block - 1] if block > low else 0.0
    begin = starts[code]
    k = begin + (block - low) * BLOCK
    end = min(k + BLOCK, starts[code + 1])
    chosen = int(k)
    while k < end:
        weight = weights[cells[k] if len(cells) else k]
        total += weight
        if weight > 0:
            chosen = int(k)
            if total > target:
                break
        k += 1
    return int(chosen - begin)
