"""Pairs of a token and a value for the genes of each row: which genes, their order, padding, masks.

Rows are CSR arrays. Random choices in a row depend on ``key``, the row's ``position`` and the place in the row only.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.random import GAMMA, below, mix, philox, unit

STORED, RANDOM_IF_LONG, RANDOM = 0, 1, 2
"""Order of the pairs of a row: as stored, of which the first are taken; the same, but if some have to be left out, a
random choice in random order; always random."""

# Purposes in the second counter of a row's random bits; see scdataloader/kernels/rows/select.py and bins.py.
_ORDER, _WEIGHT, _MASK, _MASKED = (np.uint64(purpose) << np.uint64(32) for purpose in (17, 18, 19, 20))
_TINY = 2.0**-54


@nb.njit(nogil=True, cache=True)
def keep_known(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    token: NDArray[np.int32],
    out_indptr: NDArray[np.int64],
    out_indices: NDArray[np.int32],
    out_data: NDArray[np.float32],
) -> None:
    """Keep the entries of genes with a ``token`` ``(n_genes,)``, others have -1, and of positive value.

    ``out_indices`` are the tokens. The outputs are as long as the inputs; ``out_indptr[-1]`` entries of them are used.
    """
    size = 0
    out_indptr[0] = 0
    for row in range(len(indptr) - 1):
        begin, end = indptr[row], indptr[row + 1]
        genes, values = indices[begin:end], data[begin:end]
        kept, kept_values = out_indices[size:], out_data[size:]
        k = np.uint32(0)  # unsigned: a number that may be negative takes a test at every use as an index
        for j in range(len(genes)):
            one = token[np.uint32(genes[j])]
            kept[k] = one
            kept_values[k] = values[j]
            k += np.uint32((one >= 0) & (values[j] > 0))
        size += int(k)
        out_indptr[row + 1] = size


@nb.njit(nogil=True, cache=True)
def place_pairs(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    values: NDArray[np.float32],
    order: int,
    key: np.uint64,
    position: NDArray[np.int64],
    first: int,
    pad_token: int,
    pad_value: float,
    out_tokens: NDArray[np.int64],
    out_values: NDArray[np.float32],
) -> None:
    """Write tokens and values of each row to the columns from ``first`` on of the outputs (n_rows, L), and pad.

    ``indices`` are the tokens. ``order`` is `STORED`, `RANDOM_IF_LONG` or `RANDOM`, by which every order of every
    choice is equally likely.
    """
    width = out_tokens.shape[1] - first
    for row in range(len(indptr) - 1):
        begin, n = indptr[row], indptr[row + 1] - indptr[row]
        taken = min(n, width)
        tokens, placed = out_tokens[row, first:], out_values[row, first:]
        genes, of_genes = indices[begin : begin + n], values[begin : begin + n]
        if order == RANDOM or (order == RANDOM_IF_LONG and n > width):
            chosen = shuffled(philox(key, np.uint64(position[row]), _ORDER)[0], n, taken)
            for k in range(taken):
                j = np.uint32(chosen[k])
                tokens[k] = genes[j]
                placed[k] = of_genes[j]
        else:
            for k in range(taken):
                tokens[k] = genes[k]
                placed[k] = of_genes[k]
        tokens[taken:] = pad_token
        placed[taken:] = pad_value


@nb.njit(nogil=True, cache=True)
def shuffled(seed: np.uint64, n: int, taken: int) -> NDArray[np.int32]:
    """``taken`` different numbers of [0, n) in random order: the first steps of the shuffle of Fisher and Yates."""
    order = np.empty(n, np.int32)
    swaps = np.empty(taken, np.int32)
    for k in range(n):
        order[k] = k
    for k in range(taken):  # apart from the swaps, so that it is vectorised
        swaps[k] = k + below(mix(seed + np.uint64(k) * GAMMA), n - k)
    for k in range(taken):
        other = np.uint32(swaps[k])
        order[k], order[other] = order[other], order[k]
    return order[:taken]


@nb.njit(nogil=True, cache=True)
def choose_weighted(
    indptr: NDArray[np.int64],
    weights: NDArray[np.float32],
    width: int,
    key: np.uint64,
    position: NDArray[np.int64],
    out: NDArray[np.bool_],
) -> None:
    """Mark ``width`` entries of each row, or all of a shorter one, drawn one by one by their positive weights.

    Each has the key ``-log(u) / weight``, of which the lowest are chosen: Efraimidis and Spirakis, "Weighted random
    sampling with a reservoir" (Information Processing Letters, 2006).
    """
    for row in range(len(indptr) - 1):
        begin, n = indptr[row], indptr[row + 1] - indptr[row]
        out[begin : begin + n] = True
        if n <= width:
            continue
        seed, _ = philox(key, np.uint64(position[row]), _WEIGHT)
        keys = np.empty(n, np.float64)
        for j in range(n):
            u = unit(mix(seed + np.uint64(j) * GAMMA)) + _TINY
            keys[j] = -np.log(u) / weights[begin + j]
        limit = np.partition(keys, width - 1)[width - 1]
        left = width
        for j in range(n):
            taken = keys[j] <= limit and left > 0
            out[begin + j] = taken
            left -= int(taken)


@nb.njit(nogil=True, cache=True)
def mask_each(
    values: NDArray[np.float32],
    first: int,
    pad_value: float,
    rate: float,
    mask_value: float,
    key: np.uint64,
    position: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Copy (n_rows, L) values; from column ``first`` on, each but ``pad_value`` is masked with probability ``rate``."""
    limit = np.uint64(rate * 2.0**32)
    for row in range(len(values)):
        seed, _ = philox(key, np.uint64(position[row]), _MASK)
        one, to = values[row], out[row]
        for j in range(len(one)):
            bits = mix(seed + np.uint64(j) * GAMMA) >> np.uint64(32)
            masked = (bits < limit) & (one[j] != pad_value) & (j >= first)
            to[j] = mask_value if masked else one[j]


@nb.njit(nogil=True, cache=True)
def mask_share(
    values: NDArray[np.float32],
    first: int,
    pad_value: float,
    rate: float,
    mask_value: float,
    key: np.uint64,
    position: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Copy (n_rows, L) values; of the n but ``pad_value``, from column ``first`` on, ``int(rate * n)`` are masked."""
    for row in range(len(values)):
        one, to = values[row], out[row]
        places = np.empty(len(one), np.int64)
        n = 0
        for j in range(len(one)):
            to[j] = one[j]
            places[n] = j
            n += int(j >= first and one[j] != pad_value)
        seed, _ = philox(key, np.uint64(position[row]), _MASKED)
        for k in shuffled(seed, n, int(rate * n)):
            to[places[k]] = mask_value
