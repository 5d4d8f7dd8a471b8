"""Select in a bit set: the number at a place of the set, from a directory of every 64th number (Jacobson, 1989)."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.machine.bits import count_ones

SAMPLE = 64
"""Every so many numbers of the set, one is stored."""
_AT_ONCE = 64
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


_IN_BYTE = np.zeros(8 * 256, np.uint8)
"""Position of the set bit at place p of byte b, at index 256 · p + b."""
for _byte in range(256):
    for _place, _position in enumerate(at for at in range(8) if _byte >> at & 1):
        _IN_BYTE[256 * _place + _byte] = _position
_ONES, _MOST = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
_TWO, _FOUR, _EIGHT = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333), np.uint64(0x0F0F0F0F0F0F0F0F)


@nb.njit(inline="always", cache=True)
def _in_word(bits: np.uint64, place: int) -> int:
    """Position of the set bit at ``place``, counted from 0; the word has more set bits than that.

    By sums of all bytes at once (Vigna, "Broadword implementation of rank/select queries", 2008).
    """
    sums = bits - ((bits >> np.uint64(1)) & _TWO)
    sums = (sums & _FOUR) + ((sums >> np.uint64(2)) & _FOUR)
    sums = ((sums + (sums >> np.uint64(4))) & _EIGHT) * _ONES
    full = ((np.uint64(place) * _ONES | _MOST) - sums) & _MOST  # bytes that end before the bit
    at = count_ones(full) * np.uint64(8)
    left = np.uint64(place) - (((sums << np.uint64(8)) >> at) & np.uint64(255))
    return int(at) + int(_IN_BYTE[left * np.uint64(256) + ((bits >> at) & np.uint64(255))])


@nb.njit(nogil=True, cache=True)
def fill_samples(words: NDArray[np.uint64], samples: NDArray[np.int64]) -> int:
    """``samples[j]`` = number at place ``j * SAMPLE`` of the set; returns how many numbers there are."""
    total = 0
    for word in range(len(words)):
        n = int(count_ones(words[word]))
        place = -total % SAMPLE
        if place < n:
            samples[(total + place) // SAMPLE] = word * 64 + _in_word(words[word], place)
        total += n
    return total


@nb.njit(nogil=True, cache=True)
def select(
    words: NDArray[np.uint64], samples: NDArray[np.int64], places: NDArray[np.integer], out: NDArray[np.int64]
) -> None:
    """``out[i]`` = the number at ``places[i]`` of the set, in ascending order, counted from 0.

    On average over all places, a look-up reads as many words as there are words for 64 numbers of the set.
    """
    word = np.empty(_AT_ONCE, np.uint64)
    for begin in range(0, len(places), _AT_ONCE):
        n_here = min(_AT_ONCE, len(places) - begin)
        for i in range(n_here):  # separate loops, so that many reads wait for memory at once
            out[begin + i] = samples[places[begin + i] // SAMPLE]
        for i in range(n_here):
            word[i] = words[out[begin + i] >> 6]
        for i in range(n_here):
            at = out[begin + i] >> 6
            bits = word[i] & (_ALL << np.uint64(out[begin + i] & 63))
            left = int(places[begin + i]) % SAMPLE
            n = int(count_ones(bits))
            following = words[min(at + 1, len(words) - 1)]
            is_next = n <= left  # as likely as not: chosen without a branch
            bits = following if is_next else bits
            left -= n if is_next else 0
            at += 1 if is_next else 0
            n = int(count_ones(bits))
            while n <= left:
                left -= n
                at += 1
                bits = words[at]
                n = int(count_ones(bits))
            out[begin + i] = at * 64 + _in_word(bits, left)
