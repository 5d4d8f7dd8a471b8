"""Sentences of genes that are drawn from each row, with tokens of structure between them.

Rows are CSR arrays. Random choices in a row depend on ``key``, the row's ``position`` and the place in the row only.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.random import GAMMA, below, mix, philox, unit
from scdataloader.kernels.machine.bits import drain
from scdataloader.kernels.tokens.pairs import shuffled

# Purposes in the second counter of a row's random bits; see scdataloader/kernels/tokens/pairs.py.
_DRAW, _CHROMOSOMES, _RANK, _REPEAT, _PLACE = (np.uint64(purpose) << np.uint64(32) for purpose in range(21, 26))
_COUNTED = 256
"""Logarithms of counts below this are looked up."""


@nb.njit(nogil=True, cache=True)
def draw_by_chromosome(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    chromosome: NDArray[np.int32],
    token: NDArray[np.int64],
    n_draws: int,
    cls: int,
    chromosome_token: NDArray[np.int64],
    right: int,
    key: np.uint64,
    position: NDArray[np.int64],
    out: NDArray[np.int64],
    out_sizes: NDArray[np.int64],
) -> None:
    """Draw genes of each row by the logarithms of their values, and write them chromosome by chromosome.

    A sentence is ``cls``, then for each chromosome with drawn genes, in random order, its token, the tokens of the
    genes, as often as they were drawn, and ``right``. A row without entries is ``cls`` alone.

    Args:
        indptr: ``(n_rows + 1,)`` offsets.
        indices: Place of the gene of each entry: its number when genes are ordered by chromosome, then by start.
        data: Value of each entry, positive; a gene is drawn with a probability proportional to its ``log1p``.
        chromosome: Chromosome of the gene at each place, ascending.
        token: Token of the gene at each place.
        n_draws: Number of draws, with replacement.
        cls: First token.
        chromosome_token: Token of each chromosome.
        right: Token after the genes of a chromosome.
        key: See the module.
        position: ``(n_rows,)``, see the module.
        out: ``(n_rows, L)`` sentences; the rest of each row is left as it is. Chromosomes for which ``L`` leaves no
            room, besides ``1 + n_draws`` tokens, are left out.
        out_sizes: ``(n_rows,)`` length of each sentence.
    """
    logarithms = np.log1p(np.arange(_COUNTED).astype(np.float64))
    present = np.zeros(len(chromosome) // 64 + 1, np.uint64)
    times = np.zeros(len(chromosome), np.int32)
    places = np.empty(n_draws + 64, np.int32)
    firsts = np.empty(len(chromosome_token) + 1, np.int32)
    most = (out.shape[1] - 1 - n_draws) // 2
    for row in range(len(indptr) - 1):
        begin, end = indptr[row], indptr[row + 1]
        sentence = out[row]
        sentence[0] = cls
        size = 1
        if begin < end:
            genes = indices[begin:end]
            _draw(
                _cumulative(data[begin:end], logarithms),
                n_draws,
                philox(key, np.uint64(position[row]), _DRAW)[0],
                genes,
                times,
                present,
            )
            n = drain(present, places)
            n_chromosomes = _starts_of_runs(chromosome, places[:n], firsts)
            order = shuffled(philox(key, np.uint64(position[row]), _CHROMOSOMES)[0], n_chromosomes, n_chromosomes)
            for k in order[:most]:
                sentence[size] = chromosome_token[chromosome[places[firsts[k]]]]
                size += 1
                for at in places[firsts[k] : firsts[k + 1]]:
                    sentence[size : size + times[at]] = token[at]
                    size += times[at]
                    times[at] = 0
                sentence[size] = right
                size += 1
        out_sizes[row] = size


@nb.njit(nogil=True, cache=True)
def _cumulative(values: NDArray[np.float32], logarithms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cumulative sum of ``log1p`` of the values, given it for small counts."""
    sums = np.empty(len(values), np.float64)
    total = 0.0
    for j in range(len(values)):
        count = np.int32(min(values[j], np.float32(_COUNTED - 1)))
        total += logarithms[np.uint8(count)] if count == values[j] else np.log1p(np.float64(values[j]))
        sums[j] = total
    return sums


@nb.njit(nogil=True, cache=True)
def _draw(
    sums: NDArray[np.float64],
    n_draws: int,
    seed: np.uint64,
    genes: NDArray[np.int32],
    times: NDArray[np.int32],
    present: NDArray[np.uint64],
) -> None:
    """Count the draws of each place in ``times``, and mark it in the bit set ``present``.

    A draw is the first entry whose cumulative sum is above u times the total. A guide table has, for each of as many
    equal parts of [0, 1) as there are entries, where to start the search, so that a step or two are expected: Chen and
    Asau, "On generating random variates from an empirical distribution" (AIIE Transactions, 1974).
    """
    n, total = len(sums), sums[-1]
    n_parts = 64
    while n_parts < n:
        n_parts *= 2
    guide = np.empty(n_parts, np.int32)
    j = 0
    for part in range(n_parts):
        while sums[j] <= total * (part / n_parts):
            j += 1
        guide[part] = j
    for draw in range(n_draws):
        u = unit(mix(seed + np.uint64(draw) * GAMMA))
        j = guide[np.uint32(u * n_parts)]
        while j < n - 1 and sums[np.uint32(j)] <= u * total:
            j += 1
        at = np.uint32(genes[np.uint32(j)])
        times[at] += 1
        present[at >> np.uint32(6)] |= np.uint64(1) << np.uint64(at & np.uint32(63))


@nb.njit(nogil=True, cache=True)
def _starts_of_runs(chromosome: NDArray[np.int32], places: NDArray[np.int32], out: NDArray[np.int32]) -> int:
    """Write where each run of one chromosome begins, and the end of the last; returns the number of runs."""
    n = 0
    for k in range(len(places)):
        if k == 0 or chromosome[places[k]] != chromosome[places[k - 1]]:
            out[n] = k
            n += 1
    out[n] = len(places)
    return n


@nb.njit(nogil=True, cache=True)
def rank_shuffled(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    values: NDArray[np.float32],
    key: np.uint64,
    position: NDArray[np.int64],
    first: int,
    out: NDArray[np.int32],
) -> None:
    """Write the genes of each row by descending value to the columns from ``first`` on of ``out``, then -1.

    Of equal values, every order is equally likely.
    """
    width = out.shape[1] - first
    for row in range(len(indptr) - 1):
        begin, n = indptr[row], indptr[row + 1] - indptr[row]
        order = shuffled(philox(key, np.uint64(position[row]), _RANK)[0], n, n)
        ranked = np.argsort(-values[begin : begin + n][order], kind="mergesort")  # stable
        for k in range(min(n, width)):
            out[row, first + k] = indices[begin + order[ranked[k]]]
        out[row, first + min(n, width) :] = -1


@nb.njit(nogil=True, cache=True)
def repeat_random(
    pool: NDArray[np.int32],
    pool_starts: NDArray[np.int64],
    of: NDArray[np.int64],
    key: np.uint64,
    position: NDArray[np.int64],
    out: NDArray[np.int32],
) -> None:
    """Replace each -1 in row r of ``out`` by a random entry of pool ``of[r]``, with replacement.

    Pool p is ``pool[pool_starts[p] : pool_starts[p + 1]]``; of an empty one nothing is taken.
    """
    for row in range(len(out)):
        own = pool[pool_starts[of[row]] : pool_starts[of[row] + 1]]
        seed, _ = philox(key, np.uint64(position[row]), _REPEAT)
        for k in range(out.shape[1]):
            if out[row, k] < 0 and len(own):
                out[row, k] = own[below(mix(seed + np.uint64(k) * GAMMA), len(own))]


@nb.njit(nogil=True, cache=True)
def choose_places(
    preferred: NDArray[np.bool_],
    first: int,
    n: int,
    key: np.uint64,
    position: NDArray[np.int64],
    out: NDArray[np.bool_],
) -> None:
    """Mark ``n`` random places of each row, from column ``first`` on: those that are ``preferred`` before others."""
    for row in range(len(preferred)):
        out[row] = False
        places = np.empty(preferred.shape[1] - first, np.int64)
        left = min(n, len(places))
        for kind in range(2):
            size = 0
            for k in range(first, preferred.shape[1]):
                if preferred[row, k] == (kind == 0):
                    places[size] = k
                    size += 1
            seed, _ = philox(key, np.uint64(position[row]), _PLACE + np.uint64(kind))
            for k in shuffled(seed, size, min(size, left)):
                out[row, places[k]] = True
            left -= min(size, left)


@nb.njit(nogil=True, cache=True)
def look_up(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    values: NDArray[np.float32],
    n_genes: int,
    genes: NDArray[np.int32],
    out: NDArray[np.float32],
) -> None:
    """Values (n_rows, L) of some genes (n_rows, L) of each row; 0 for genes that it does not have, and for gene -1."""
    row_values = np.zeros(n_genes + 1, np.float32)
    for row in range(len(genes)):
        for j in range(indptr[row], indptr[row + 1]):
            row_values[indices[j]] = values[j]
        for k in range(genes.shape[1]):
            gene = genes[row, k]
            out[row, k] = row_values[gene] if gene >= 0 else 0
        for j in range(indptr[row], indptr[row + 1]):
            row_values[indices[j]] = 0


@nb.njit(nogil=True, cache=True)
def are_among(tokens: NDArray[np.int64], others: NDArray[np.int64], n_tokens: int, out: NDArray[np.bool_]) -> None:
    """Whether each of the tokens (n_rows, L), below ``n_tokens``, is among the others (n_rows, M) of its row."""
    present = np.zeros(n_tokens, np.bool_)
    for row in range(len(tokens)):
        for token in others[row]:
            present[token] = True
        for k in range(tokens.shape[1]):
            out[row, k] = present[tokens[row, k]]
        for token in others[row]:
            present[token] = False
