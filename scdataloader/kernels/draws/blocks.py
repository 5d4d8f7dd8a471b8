"""Draws in blocks of neighbouring cells, spread so that the draws of one block are far apart.

A window of ``stride`` blocks of b draws each is laid out in columns: the draws of a block are ``stride`` positions
apart. A batch of up to ``stride`` draws thus never has two of one block, and if the stride is a multiple of the global
batch, all draws of a block fall to the same rank.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.draw import first_above_share
from scdataloader.kernels.draws.random import GAMMA, below, mix, permuted, philox, unit


@nb.njit(inline="always", cache=True)
def _row_weight(
    row: int, codes: NDArray[np.integer], share: NDArray[np.float64], weights: NDArray[np.floating]
) -> float:
    weight = float(weights[row]) if len(weights) else 1.0
    if len(codes):
        code = codes[row]
        weight = weight * share[code] if code >= 0 else 0.0
    return weight


@nb.njit(nogil=True, cache=True)
def block_sums(
    n: int,
    block_size: int,
    codes: NDArray[np.integer],
    share: NDArray[np.float64],
    weights: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Running sums of the weights of blocks ``[k * block_size, (k + 1) * block_size)`` of ``n`` cells.

    The weight of a cell is the ``share`` of its class times its own weight; empty ``codes`` or ``weights`` are 1
    everywhere, code -1 is 0.
    """
    sums = np.empty(-(-n // block_size), np.float64)
    total = 0.0
    for block in range(len(sums)):
        for row in range(block * block_size, min((block + 1) * block_size, n)):
            total += _row_weight(row, codes, share, weights)
        sums[block] = total
    return sums


@nb.njit(nogil=True, cache=True)
def draw_blocks(
    key: np.uint64,
    start: int,
    n: int,
    block_size: int,
    stride: int,
    codes: NDArray[np.integer],
    share: NDArray[np.float64],
    weights: NDArray[np.floating],
    sums: NDArray[np.float64],
    guide: NDArray[np.integer],
    out: NDArray[np.int64],
) -> None:
    """The cells drawn at positions ``start``, ``start + 1`` … in blocks chosen by weight, with replacement.

    The draws of a chosen block are a systematic sample of its cells (one random offset, then steps of one
    ``block_size``-th of the block's weight: Madow 1949), in random order: each single draw takes a cell with exactly
    its share of the block, and together they are as even as possible; cells of equal weight are drawn once each.
    """
    sample = np.empty(block_size, np.int64)
    stop, window = start + len(out), stride * block_size
    for slot in range(start // window * stride, (stop - 1) // window * stride + stride):
        at = slot // stride * window + slot % stride
        low = max(0, -((at - start) // stride))
        high = min(block_size, -((at - stop) // stride))
        if low >= high:
            continue
        for_block, for_cells = philox(key, np.uint64(slot), np.uint64(1))
        block = first_above_share(sums, guide, unit(for_block))
        first = block * block_size
        _sample_block(for_cells, first, min(first + block_size, n), codes, share, weights, sample)
        for j in range(low, high):
            out[at + j * stride - start] = sample[j]


@nb.njit(inline="always", cache=True)
def _sample_block(
    bits: np.uint64,
    first: int,
    stop: int,
    codes: NDArray[np.integer],
    share: NDArray[np.float64],
    weights: NDArray[np.floating],
    out: NDArray[np.int64],
) -> None:
    """A systematic sample of the cells [first, stop) by weight, in random order."""
    total = 0.0
    for row in range(first, stop):
        total += _row_weight(row, codes, share, weights)
    offset, step = unit(mix(bits)), total / len(out)
    row, chosen, running = first, first, 0.0
    for i in range(len(out)):
        # if rounding makes the last point reach the total, it is the last cell with a weight
        while row < stop and running <= (i + offset) * step:
            weight = _row_weight(row, codes, share, weights)
            running += weight
            chosen = row if weight > 0 else chosen
            row += 1
        j = below(mix(bits + np.uint64(i + 1) * GAMMA), i + 1)
        out[i] = out[j]
        out[j] = chosen


@nb.njit(nogil=True, cache=True)
def permute_blocks(key: np.uint64, n: int, block_size: int, stride: int, start: int, out: NDArray[np.int64]) -> None:
    """``out[i]`` = the image of ``start + i`` in a random order of [0, n) that keeps blocks of neighbours together.

    Blocks begin at a random cell, and the last wraps around to cell 0, so that the boundaries differ between orders.
    Cells that do not fill a block come last.
    """
    for_shift, for_cells = philox(key, np.uint64(0), np.uint64(1))
    shift = below(for_shift, n)
    n_blocks = n // block_size
    whole = n_blocks * block_size
    for i in range(len(out)):
        position = start + i
        if position < whole:
            first_slot = position // (stride * block_size) * stride
            width = min(stride, n_blocks - first_slot)
            j, column = divmod(position - first_slot * block_size, width)
            slot = first_slot + column
            inside = permuted(mix(for_cells + np.uint64(slot + 1) * GAMMA), block_size, j)
            place = permuted(key, n_blocks, slot) * block_size + inside
        else:
            place = whole + permuted(for_cells, n - whole, position - whole)
        out[i] = (place + shift) % n
