"""Tokens of each row masked at random, for masked language modelling."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.random import GAMMA, mix, philox

# Purpose in the second counter of a row's random bits; see scdataloader/kernels/rows/select.py.
_MASK = np.uint64(33) << np.uint64(32)
_HALF, _LOW, _2_32 = np.uint64(32), np.uint64(0xFFFFFFFF), 2.0**32
_THIRD, _21_BITS, _2_21, _LANES = np.uint64(21), np.uint64((1 << 21) - 1), 2.0**21, 3
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
    limit = np.uint64(np.round(rate * _2_21))
    to_mask, to_random = np.uint64(np.round(as_mask * _2_32)), np.uint64(np.round((as_mask + as_random) * _2_32))
    n_tokens = np.uint64(len(dictionary))
    hit = np.empty(ids.shape[1] + _LANES, np.uint32)
    for row in range(len(ids)):
        seed, seed_of_token = philox(key, np.uint64(position[row]), _MASK)
        labels[row] = IGNORED
        for j in _hits(first, first + counts[row], seed, limit, hit):
            token = ids[row, j]
            labels[row, j] = token
            bits = mix(seed_of_token + np.uint64(j) * GAMMA)
            # Both are computed in any case: which one it is cannot be predicted.
            drawn = dictionary[(bits & _LOW) * n_tokens >> _HALF]
            token = drawn if bits >> _HALF < to_random else token
            ids[row, j] = mask if bits >> _HALF < to_mask else token


@nb.njit(nogil=True, cache=True)
def _hits(first: int, stop: int, seed: np.uint64, limit: np.uint64, hit: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The places in [first, stop) whose random 21 bits are below ``limit``; three places share a word of 64 bits."""
    n = 0
    for word in range(first // _LANES, (stop + _LANES - 1) // _LANES):
        bits = mix(seed + np.uint64(word) * GAMMA)
        for lane in range(_LANES):
            hit[n] = word * _LANES + lane  # in any case; the next place overwrites it if it is not masked
            n += int((bits & _21_BITS) < limit)
            bits >>= _THIRD
    begin = 0
    while begin < n and hit[begin] < first:
        begin += 1
    while n > begin and hit[n - 1] >= stop:
        n -= 1
    return hit[begin:n]
