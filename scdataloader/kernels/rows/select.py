"""Selection of a fixed number of genes per row."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.random import GAMMA, below, below_32, mix, philox, unit

# Purposes in the second counter of a row's random bits, so that two choices in one row never share bits.
_CHOOSE, _FILL = np.uint64(1) << np.uint64(32), np.uint64(2) << np.uint64(32)
_BINS, _LANES = 256, 4
_LAST_BIN = _BINS - 1
"""Bin of all larger counts; as a mask, it shows the compiler that bins are in range."""
_MAX_COUNT = np.float32(2**24)


@nb.njit(nogil=True, cache=True)
def select_random(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    key: np.uint64,
    position: NDArray[np.int64],
    out_genes: NDArray[np.int32],
    out_data: NDArray[np.float32],
) -> None:
    """Select L random entries of each row, for outputs (n_rows, L): all subsets equally likely, genes ascending.

    The selection in a row depends on ``key`` and the row's ``position`` only. Unused entries have gene -1 and value 0.
    Selection sampling: an entry is taken with probability (still needed) / (still to come); Knuth, TAOCP 2, 3.4.2 S.
    """
    width = out_genes.shape[1]
    ranks = np.empty(np.diff(indptr).max() if len(indptr) > 1 else 0, np.uint32)
    for row in range(len(indptr) - 1):
        genes, values = indices[indptr[row] : indptr[row + 1]], data[indptr[row] : indptr[row + 1]]
        taken = min(len(genes), width)
        if len(genes) <= width:
            out_genes[row, :taken] = genes
            out_data[row, :taken] = values
        else:
            _rank(key, position[row], ranks[: len(genes)])
            _choose(genes, values, ranks, out_genes[row], out_data[row])
        out_genes[row, taken:] = -1
        out_data[row, taken:] = 0


@nb.njit(nogil=True, cache=True)
def _rank(key: np.uint64, position: int, out: NDArray[np.uint32]) -> None:
    """For each of the n entries of a row, a random number below the number of entries from it to the end."""
    seed, _ = philox(key, np.uint64(position), _CHOOSE)
    for j in range(len(out)):
        out[j] = below_32(mix(seed + np.uint64(j) * GAMMA), np.uint64(len(out) - j))


@nb.njit(nogil=True, cache=True)
def _choose(
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    ranks: NDArray[np.uint32],
    out_genes: NDArray[np.int32],
    out_data: NDArray[np.float32],
) -> None:
    """Take the entries whose rank is below the number of entries still needed; these are fewer than all."""
    needed = width = np.uint32(len(out_genes))
    for j in range(len(indices)):
        if needed == 0:
            break
        # Written in any case; the next entry overwrites it if it is not taken. Unsigned places avoid a test for
        # negative ones.
        k = width - needed
        out_genes[k] = indices[j]
        out_data[k] = data[j]
        needed -= np.uint32(ranks[j] < needed)


@nb.njit(nogil=True, cache=True)
def select_largest(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    out_genes: NDArray[np.int32],
    out_data: NDArray[np.float32],
) -> None:
    """Select the L largest entries of each row, for outputs (n_rows, L), genes ascending.

    Of equal values the lower gene is preferred; NaN is never selected. Unused entries have gene -1 and value 0.
    """
    width = out_genes.shape[1]
    counts = np.empty((_LANES, _BINS), np.int32)
    for row in range(len(indptr) - 1):
        genes, values = indices[indptr[row] : indptr[row + 1]], data[indptr[row] : indptr[row + 1]]
        kept, kept_values = out_genes[row], out_data[row]
        k = 0
        if len(values) <= width and not _has_nan(values):
            k = len(values)
            kept[:k] = genes
            kept_values[:k] = values
        else:
            threshold, ties = _threshold(values, width, counts)
            k = _take_largest(genes, values, threshold, ties, kept, kept_values)
        kept[k:] = -1
        kept_values[k:] = 0


@nb.njit(nogil=True, cache=True)
def _take_largest(
    genes: NDArray[np.int32],
    values: NDArray[np.float32],
    threshold: np.float32,
    ties: int,
    out_genes: NDArray[np.int32],
    out_data: NDArray[np.float32],
) -> int:
    """Write the entries above the threshold and the first ``ties`` equal to it, up to the length of the outputs."""
    width = len(out_genes)
    last = width - 1
    k = 0
    for j in range(len(values)):
        value = values[j]
        # Written in any case; the next entry overwrites it if it is not taken.
        at = min(k, last)
        out_genes[at] = genes[j]
        out_data[at] = value
        is_tie = np.int32(value == threshold) & np.int32(ties > 0)
        k += int(np.int32(value > threshold) | is_tie)
        ties -= int(is_tie)
        if k == width:
            break
    return k


@nb.njit(nogil=True, cache=True)
def _threshold(values: NDArray[np.float32], width: int, counts: NDArray[np.int32]) -> tuple[np.float32, int]:
    """The ``width``-th largest value, and how many equal to it are among the largest; -inf if there are fewer.

    Counts below 255 have few different values: a histogram finds it in a third of the time of a partition.
    """
    if len(values) <= width:
        return np.float32(-np.inf), width
    if _are_counts(values):
        _histogram(values, counts)
        value, above, at = _BINS, 0, 0
        while above + at < width:
            above += at
            value -= 1
            at = int(counts[0, value] + counts[1, value] + counts[2, value] + counts[3, value])
        if value < _LAST_BIN:  # which has all larger values
            return np.float32(value), width - above
    threshold = np.partition(values, len(values) - width)[len(values) - width]
    return threshold, width - (values > threshold).sum()


@nb.njit(nogil=True, cache=True)
def _has_nan(values: NDArray[np.float32]) -> bool:
    found = False
    for j in range(len(values)):
        found |= values[j] != values[j]
    return found


@nb.njit(nogil=True, cache=True)
def _are_counts(values: NDArray[np.float32]) -> bool:
    """Whether all values are whole numbers from 0 to 2^24."""
    wrong = False
    for j in range(len(values)):
        value = values[j]
        wrong |= not ((value >= 0) & (value < _MAX_COUNT) & (np.float32(np.int32(value)) == value))
    return not wrong


@nb.njit(nogil=True, cache=True)
def _histogram(counts_of: NDArray[np.float32], out: NDArray[np.int32]) -> None:
    """Count each count, in four lanes: adding to the same bin twice in a row would wait for the first addition."""
    out[:] = 0
    whole = len(counts_of) // _LANES * _LANES
    for j in range(0, whole, _LANES):
        for lane in range(_LANES):
            out[lane, min(int(counts_of[j + lane]), _LAST_BIN) & _LAST_BIN] += 1
    for value in counts_of[whole:]:
        out[0, min(int(value), _LAST_BIN) & _LAST_BIN] += 1


@nb.njit(nogil=True, cache=True)
def fill_unexpressed(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    candidates: NDArray[np.int32],
    candidate_starts: NDArray[np.int64],
    group: NDArray[np.int32],
    n_genes: int,
    key: np.uint64,
    position: NDArray[np.int64],
    out_genes: NDArray[np.int32],
) -> None:
    """Replace the -1 at the end of each row of ``out_genes`` by random genes that were measured but not expressed.

    The candidates of row r are ``candidates[candidate_starts[group[r]] : candidate_starts[group[r] + 1]]``, of which
    its ``indices`` are a subset. Those that are not in ``indices`` are equally likely, each at most once; -1 stays if
    there are not enough.
    """
    used = np.zeros(n_genes, np.bool_)
    for row in range(len(indptr) - 1):
        begin, end = indptr[row], indptr[row + 1]
        genes = out_genes[row]
        filled = len(genes)
        while filled > 0 and genes[filled - 1] < 0:
            filled -= 1
        pool = candidates[candidate_starts[group[row]] : candidate_starts[group[row] + 1]]
        for j in range(begin, end):
            used[indices[j]] = True
        free = len(pool) - (end - begin)
        _take_free(pool, free, used, key, position[row], genes[filled : filled + min(free, len(genes) - filled)])
        for j in range(begin, end):
            used[indices[j]] = False


@nb.njit(nogil=True, cache=True)
def _take_free(
    pool: NDArray[np.int32], free: int, used: NDArray[np.bool_], key: np.uint64, position: int, out: NDArray[np.int32]
) -> None:
    """Write random genes of ``pool`` that are not ``used`` to ``out``; ``used`` is restored afterwards."""
    if 2 * len(out) <= free:
        tries = np.uint64(0)
        for k in range(len(out)):
            gene = np.int32(-1)
            while gene < 0 or used[gene]:
                bits, _ = philox(key, np.uint64(position), _FILL + tries)
                gene = pool[below(bits, len(pool))]
                tries += np.uint64(1)
            out[k] = gene
            used[gene] = True
        for gene in out:
            used[gene] = False
        return
    # Most free genes are needed: random trials would fail too often, so go through the pool once.
    needed, k = len(out), 0
    for gene in pool:
        if needed and not used[gene]:
            bits, _ = philox(key, np.uint64(position), _FILL + np.uint64(gene))
            if unit(bits) * free < needed:
                out[k] = gene
                k += 1
                needed -= 1
            free -= 1
