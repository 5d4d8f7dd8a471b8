"""Checksum of large arrays at the speed of memory, against accidental changes."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

_PRIME = np.uint64(0x9E3779B97F4A7C15)
_LEFT, _RIGHT = np.uint64(29), np.uint64(35)


@nb.njit(inline="always", cache=True)
def _step(state: np.uint64, word: np.uint64) -> np.uint64:
    state ^= word
    return ((state << _LEFT) | (state >> _RIGHT)) * _PRIME


@nb.njit(nogil=True, cache=True)
def digest_words(words: NDArray[np.uint64]) -> int:
    """Checksum of 64 bits; every step is a bijection of the state, so that any change of one word changes it."""
    a, b, c, d = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    whole = len(words) // 4 * 4
    for i in range(0, whole, 4):
        a = _step(a, words[i])
        b = _step(b, words[i + 1])
        c = _step(c, words[i + 2])
        d = _step(d, words[i + 3])
    for i in range(whole, len(words)):
        a = _step(a, words[i])
    return int(_step(_step(_step(_step(a, b), c), d), np.uint64(len(words))))
