"""Tokens of each row masked at random, for masked language modelling."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.random import GAMMA, below, mix, philox, unit

# Purpose in the second counter of a row's random bits; see scdataloader/kernels/rows/select.py.
_MASK = np.uint64(33) << np.uint64(32)
_HALF, _LOW, _2_32 = np.uint64(32), np.uint64(0xFFFFFFFF), 2.0**32
IGNORED = -100
"""Label of places that a loss leaves out."""


@nb.njit(nogil=True, cache=True)
def mask_tokens(
    ids: NDArray[np.int64],
    first: int,
    counts: NDArray[np.int64],
    key: np.uint64,
    position: NDArray[np.int64],
    rates: tuple[float, float, float],
    mask: int,
    dictionary: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> None:
    """Mask some of the places ``[first, first + counts[i])`` of each row of ``ids``, in place.

    The choices depend on ``key``, the row's ``position`` and the place only.

    Args:
        ids: ``(n_rows, L)`` tokens.
        first: First place that can be masked.
        counts: ``(n_rows,)`` number of places that can be masked.
        key: Random bits of the epoch.
        position: ``(n_rows,)`` position of each row in the epoch.
        rates: Probability that a place is masked; and of these, that its token becomes ``mask``, or a random one.
        mask: The token of masked places.
        dictionary: Tokens of which random ones are drawn, each equally likely.
        labels: ``(n_rows, L)`` the original token of the masked places, `IGNORED` elsewhere.
    """
    rate, as_mask, as_random = rates
    limit = np.uint64(np.round(rate * _2_32))
    hit = np.empty(ids.shape[1] + 2, np.int64)
    for row in range(len(ids)):
        seed, seed_of_token = philox(key, np.uint64(position[row]), _MASK)
        n = _hits(first, first + counts[row], seed, limit, hit)
        labels[row] = IGNORED
        for j in hit[:n]:
            labels[row, j] = ids[row, j]
            bits = mix(seed_of_token + np.uint64(j) * GAMMA)
            share = unit(bits)
            if share < as_mask:
                ids[row, j] = mask
            elif share < as_mask + as_random:
                ids[row, j] = dictionary[below(mix(bits), len(dictionary))]


@nb.njit(nogil=True, cache=True)
def _hits(first: int, stop: int, seed: np.uint64, limit: np.uint64, hit: NDArray[np.int64]) -> int:
    """Write the places in [first, stop) whose 32 random bits are below ``limit``; two places share a word of 64."""
    n = 0
    for pair in range(first >> 1, (stop + 1) >> 1):
        bits = mix(seed + np.uint64(pair) * GAMMA)
        even, odd = 2 * pair, 2 * pair + 1
        # Written in any case; the next place overwrites it if it is not masked.
        hit[n] = even
        n += int((bits & _LOW < limit) & (even >= first))
        hit[n] = odd
        n += int((bits >> _HALF < limit) & (odd < stop))
    return n
