"""Random bits as a function of a counter, and random order as a function of an index; stateless."""

from __future__ import annotations

from operator import index as whole_number
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

_MASK32 = np.uint64(0xFFFFFFFF)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_S32 = np.uint64(32)
GAMMA = np.uint64(0x9E3779B97F4A7C15)
_TO_UNIT = 2.0**-53

_SEEDS = 2**64
_FEISTEL_ROUNDS = 8
# Below 2^6 indices a Feistel network has too few keys to reach all orders evenly. A longer cycle costs little there.
_FEISTEL_MIN_BITS = 6


@nb.njit(inline="always", cache=True)
def philox(key: np.uint64, c0: np.uint64, c1: np.uint64) -> tuple[np.uint64, np.uint64]:
    """128 random bits, as two uint64, of a uint64 ``key`` and two uint64 counters.

    Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
    """
    x0, x1 = c0 & _MASK32, c0 >> _S32
    x2, x3 = c1 & _MASK32, c1 >> _S32
    k0, k1 = key & _MASK32, key >> _S32
    for _ in range(10):
        p0, p1 = _M0 * x0, _M1 * x2
        x0, x1, x2, x3 = (p1 >> _S32) ^ x1 ^ k0, p1 & _MASK32, (p0 >> _S32) ^ x3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + _W0) & _MASK32, (k1 + _W1) & _MASK32
    return x0 | (x1 << _S32), x2 | (x3 << _S32)


@nb.njit(inline="always", cache=True)
def unit(bits: np.uint64) -> np.float64:
    """A float64 in [0, 1) from 64 random bits, a multiple of 2^-53."""
    return np.float64(bits >> np.uint64(11)) * _TO_UNIT


@nb.njit(inline="always", cache=True)
def below(bits: np.uint64, n: int) -> np.int64:
    """An integer in [0, n) from 64 random bits: ``bits * n / 2^64``, with a bias below n / 2^64."""
    size = np.uint64(n)
    lo, hi = bits & _MASK32, bits >> _S32
    n_lo, n_hi = size & _MASK32, size >> _S32
    mid = (lo * n_lo >> _S32) + (hi * n_lo & _MASK32) + (lo * n_hi & _MASK32)
    return np.int64(hi * n_hi + (hi * n_lo >> _S32) + (lo * n_hi >> _S32) + (mid >> _S32))


@nb.njit(inline="always", cache=True)
def below_32(bits: np.uint64, n: np.uint64) -> np.uint64:
    """`below` for ``n`` below 2^32, in a form that vectorises."""
    return ((bits >> _S32) * n + ((bits & _MASK32) * n >> _S32)) >> _S32


@nb.njit(inline="always", cache=True)
def mix(x: np.uint64) -> np.uint64:
    """Scramble 64 bits, one to one: the finaliser "Mix13" of Stafford.

    ``mix(seed + j * GAMMA)`` for j = 1, 2 … is the stream of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), cheaper
    than `philox` if one counter needs many random words.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@nb.njit(cache=True)
def permuted(key: np.uint64, n: int, index: int) -> np.int64:
    """The image of ``index`` in the random order of [0, n) given by ``key``: a bijection of [0, n) for every key.

    A Feistel network over the smallest power of two that holds n, walked until it lands below n (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002): at most two steps are expected for n of 64 and more. A network over
    all of [0, n) has even permutations only, so a bit of the key exchanges the first two indices.
    """
    bits = _FEISTEL_MIN_BITS
    while (np.int64(1) << bits) < n:
        bits += 1
    low = np.uint64(bits // 2)
    high = np.uint64(bits) - low
    low_mask = (np.uint64(1) << low) - np.uint64(1)
    high_mask = (np.uint64(1) << high) - np.uint64(1)
    x = np.uint64(index)
    if index < 2 and n > 1:  # noqa: PLR2004 (the first two)
        x ^= mix(~key) >> np.uint64(63)
    while True:
        left, right = x >> low, x & low_mask
        for r in range(_FEISTEL_ROUNDS // 2):
            left = (left ^ mix(right + key + np.uint64(2 * r) * GAMMA)) & high_mask
            right = (right ^ mix(left + key + np.uint64(2 * r + 1) * GAMMA)) & low_mask
        x = (left << low) | right
        if x < np.uint64(n):
            return np.int64(x)


@nb.njit(nogil=True, cache=True)
def permute_range(key: np.uint64, n: int, start: int, out: NDArray[np.int64]) -> None:
    """``out[i]`` = the image of ``start + i`` in the random order of [0, n) given by ``key``."""
    for i in range(len(out)):
        out[i] = permuted(key, n, start + i)


def derive_key(*parts: int) -> np.uint64:
    """64 random bits from a few integers in [0, 2^64) (a seed, an epoch, a purpose); their order matters.

    Raises:
        ValueError: a part is outside this range, where it would give the bits of another one.
    """
    key = np.uint64(0)
    for part in parts:
        bits, _ = philox(key, np.uint64(seed_of(part, "a part of a key")), np.uint64(len(parts)))
        key = np.uint64(bits)  # called from Python, the kernel returns a plain integer
    return key


def seed_of(value: Any, name: str = "seed") -> int:
    """A seed, which may be an integer of NumPy, as a plain integer.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is outside [0, 2^64).
    """
    try:
        seed = whole_number(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer from 0 to 2**64 - 1, not {value!r}") from error
    if not 0 <= seed < _SEEDS:
        raise ValueError(f"{name} must be from 0 to 2**64 - 1, not {seed}")
    return seed
