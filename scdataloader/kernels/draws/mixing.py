"""Which corpus each draw is from: shares of the draws that are exact in every window.

The shares of a window of w draws are laid end to end on a line of length w. Corpus c gets as many draws as its part of
the line has of the points 1 - u, 2 - u … w - u: its share of the window, rounded up or down (systematic sampling;
Madow, 1949). From window to window the offset u moves on by the golden section of 1, which spreads the roundings so
evenly that the sum over any number of windows stays within a few draws of its share (a Kronecker sequence). The number
of draws of a corpus in all windows before one is a sum of floors, which Euclid's algorithm finds in a few steps.

Lengths and offsets are multiples of 2^-32.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.random import GAMMA, below, mix, philox

ONE = 1 << 32
"""A length of 1."""
STEP = 2654435769
"""Motion of the offset between windows: 2^32 divided by the golden ratio."""


MOST_WINDOWS = 1 << 30
"""Windows in one epoch; their offsets, not reduced, fit in 64 bits."""


@nb.njit(nogil=True, cache=True)
def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """The sum of ``(a * i + b) // m`` over i in [0, n), for a and b of 0 or more."""
    total = 0
    while n > 0:
        total += (n - 1) * n // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        n, b = (a * n + b) // m, (a * n + b) % m
        m, a = a, m
    return total


@nb.njit(nogil=True, cache=True)
def draws_before(n_windows: int, edges: NDArray[np.int64], offset: int, out: NDArray[np.int64]) -> None:
    """``out[c]`` = draws of corpus c in windows ``[0, n_windows)``.

    ``edges[c]`` is the end of the part of corpus c of the line; ``offset`` is that of window 0.
    """
    at_start, before = floor_sum(n_windows, ONE, STEP, offset), 0
    for code in range(len(edges)):
        here = floor_sum(n_windows, ONE, STEP, edges[code] + offset) - at_start
        out[code] = here - before
        before = here


@nb.njit(nogil=True, cache=True)
def draw_corpora(
    key: np.uint64,
    start: int,
    window: int,
    edges: NDArray[np.int64],
    offset: int,
    codes: NDArray[np.int32],
    before: NDArray[np.int64],
) -> None:
    """The corpora of the draws at positions ``start``, ``start + 1`` …, and how many draws each has before ``start``.

    The draws of a window are in the random order of ``key`` and the number of the window; see `draws_before`.
    """
    order = np.empty(window, np.int32)
    stop, first = start + len(codes), start // window
    draws_before(first, edges, offset, before)
    for number in range(first, -(-stop // window)):
        moved = (offset + number * STEP) & (ONE - 1)
        place = 0
        for code in range(len(edges)):
            end = (edges[code] + moved) >> 32
            order[place:end] = code
            place = end
        bits, _ = philox(key, np.uint64(number), np.uint64(0))
        for i in range(window - 1, 0, -1):
            j = below(mix(bits + np.uint64(i) * GAMMA), i + 1)
            order[i], order[j] = order[j], order[i]
        for i in range(window):
            at = number * window + i - start
            if at < 0:
                before[order[i]] += 1
            elif at < len(codes):
                codes[at] = order[i]


@nb.njit(nogil=True, cache=True)
def interleave(
    codes: NDArray[np.int32], following: NDArray[np.int64], drawn: NDArray[np.int64], out: NDArray[np.int64]
) -> None:
    """Rows of ``out`` from those of ``drawn``: that of corpus c from row ``following[c]`` on, which moves on."""
    for i in range(len(codes)):
        at = following[codes[i]]
        following[codes[i]] = at + 1
        for j in range(out.shape[1]):  # assignments of rows are slow
            out[i, j] = drawn[at, j]
