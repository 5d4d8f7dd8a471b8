"""Decoder: records to rows in the vocabulary's genes, in one pass that is safe for any bytes.

Array accesses are not bounds-checked, so every record is checked first: its length against its header, the positions of
its exceptions (long gaps and large values), and, by the sum of its gaps, that no gene number is too high.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numpy.typing import NDArray

from scdataloader.kernels.machine.memory import pointer, prefetch, prefetch_bytes
from scdataloader.kernels.records.format import (
    F32,
    HEADER,
    LARGE_MASK,
    U8,
    U16,
    WIDTH_SHIFT,
    Records,
    record_checksum,
    record_length,
    value_width,
)
from scdataloader.kernels.records.gaps import look_up_genes, number_genes
from scdataloader.kernels.rows.align import renumber, scatter, total_of_genes

OK, BAD_INDEX, BAD_RECORD, BAD_CHECKSUM = 0, 1, 2, 3
IN_ORDER, COMPLETE, SHIFTED, GENES_ONLY = 1, 2, 4, 8
"""Flags of a look-up table: its numbers ascend, negative ones left out; it has no negative ones; all its numbers differ
from those in the records by one constant, as where the vocabulary is made of the genes of the store; some of its
features are `NOT_A_GENE`."""

_AHEAD = 16
"""Distance, in records, at which index entries are prefetched, so that their cache misses overlap."""
_IN_FLIGHT = 2048
"""Bytes of records that are prefetched ahead of the decoder, if the next record has fewer."""


@nb.njit(nogil=True, cache=True)
def locate_records(
    base: NDArray[np.int64],
    index: NDArray[np.int64],
    n_cells: NDArray[np.int64],
    shard: NDArray[np.integer],
    records: Records,
) -> int:
    """Fill in address, length and size of ``records``, which are cells ``records.cell`` of shards ``shard``.

    Shard s is mapped at address ``base[s]``. From byte ``index[s]`` on it has the ``n_cells[s] + 1`` offsets of its
    records (int64), then their sizes (uint32). Returns the first i whose entries are impossible, or -1.
    """
    cell, address, length, size = records
    for i in range(len(cell)):
        if i + _AHEAD < len(cell):
            s, k = shard[i + _AHEAD], cell[i + _AHEAD]
            prefetch(np.uintp(base[s] + index[s] + 8 * k))
            prefetch(np.uintp(base[s] + index[s] + 8 * (n_cells[s] + 1) + 4 * k))
        s, k = shard[i], cell[i]
        offsets = carray(pointer(np.uintp(base[s] + index[s] + 8 * k)), (2,), np.int64)
        sizes = carray(pointer(np.uintp(base[s] + index[s] + 8 * (n_cells[s] + 1) + 4 * k)), (1,), np.uint32)
        begin, end = offsets[0], offsets[1]
        if not 0 <= begin < end <= index[s] or end - begin < HEADER or (begin | end) & 7:
            return i
        address[i], length[i], size[i] = base[s] + begin, end - begin, sizes[0]
        if 2 * size[i] > length[i]:  # bounds the memory that a wrong size can ask for
            return i
    return -1


@nb.njit(nogil=True, cache=True)
def wrong_checksums(records: Records) -> NDArray[np.bool_]:
    """``(m,)`` whether the checksum of each record differs from its content."""
    cell, address, length, _ = records
    wrong = np.empty(len(cell), np.bool_)
    for i in range(len(cell)):
        words = carray(pointer(np.uintp(address[i])), (length[i] // 8,), np.uint64)
        wrong[i] = np.uint32(words[0] & np.uint64(0xFFFFFFFF)) != record_checksum(words, cell[i])
    return wrong


class LookUpTables(NamedTuple):
    """Vocabulary numbers of the genes of T tables."""

    luts: NDArray[np.int32]
    """The tables, concatenated: per gene of a space a number below ``n_genes``; negative only if not `COMPLETE`."""
    start: NDArray[np.int64]
    """``(T + 1,)`` offsets of the tables in ``luts``."""
    how: NDArray[np.uint8]
    """``(T,)`` flags `IN_ORDER`, `COMPLETE`, `SHIFTED`, `GENES_ONLY`."""
    n_genes: int
    """Length of the vocabulary."""


@nb.njit(nogil=True, cache=True)
def decode_records(
    records: Records,
    row: NDArray[np.int64],
    checked: NDArray[np.uint8],
    tables: LookUpTables,
    table: NDArray[np.integer],
    place: NDArray[np.int64],
    out: Any,
) -> tuple[int, int]:
    """Write records into row buffers in vocabulary genes, as `align_rows` does for matrices.

    Record i is looked up in table ``table[i]`` and written to row ``place[i]`` of ``out``, which are
    `scdataloader.types.RowBuffers`. The checksum of a record is verified when its ``row`` is first read: ``checked``
    has one bit per row.

    Returns (status, i): `OK`, or the error of record i. Nothing outside the buffers is written.
    """
    cell, address, length, size = records
    luts, lut_start, how, n_genes = tables
    starts, out_indices, out_data, out_size, out_depth = out
    most = size.max() if len(size) and (how & (COMPLETE | IN_ORDER) != COMPLETE | IN_ORDER).any() else 0
    genes, values = np.empty(most, np.int32), np.empty(most, np.float32)
    dense = np.zeros(n_genes + 1 if most else 0, np.float32)
    present = np.zeros(n_genes // 64 + 1, np.uint64)
    ahead = 1 + min(_AHEAD - 1, _IN_FLIGHT * len(length) // max(1, length.sum()))
    for i in range(len(address)):
        # Random records are never in cache. The next one is fetched during this one, half before and half amid it,
        # since a core has only some tens of cache lines in flight; of short records, one of the next ones.
        following = min(i + ahead, len(address) - 1)
        half = length[following] // 2
        prefetch_bytes(address[following], half)
        words = carray(pointer(np.uintp(address[i])), (length[i] // 8,), np.uint64)
        bit = np.uint8(1 << (row[i] & 7))
        if not checked[row[i] >> 3] & bit:
            if np.uint32(words[0] & np.uint64(0xFFFFFFFF)) != record_checksum(words, cell[i]):
                return BAD_CHECKSUM, i
            checked[row[i] >> 3] |= bit
        p = table[i]
        lut = luts[lut_start[p] : lut_start[p + 1]]
        n, slot = size[i], place[i]
        room = slice(starts[slot], starts[slot] + n)
        in_place = how[p] & COMPLETE and how[p] & IN_ORDER
        if in_place:
            good = fits(words, n, len(lut)) and _look_up(words, n, lut, how[p] & SHIFTED, out_indices[room])
        else:
            good = fits(words, n, len(lut)) and bool(gene_numbers(words, n, np.int64(0), genes[:n]) <= len(lut))
        if not good:
            return BAD_RECORD, i
        prefetch_bytes(address[following] + half, length[following] - half)
        out_depth[slot] = _values(words, n, out_data[room] if in_place else values[:n])
        if in_place:
            out_size[slot] = n
            continue
        if how[p] & GENES_ONLY:
            out_depth[slot] = total_of_genes(genes[:n], values[:n], lut)
        if how[p] & IN_ORDER:
            out_size[slot] = renumber(genes[:n], values[:n], lut, out_indices[room], out_data[room])
        else:
            out_size[slot] = scatter(
                genes[:n], values[:n], lut, n_genes, dense, present, out_indices[room], out_data[room]
            )
    return OK, 0


@nb.njit(inline="always", cache=True)
def header(words: NDArray[np.uint64]) -> tuple[int, int, int, int]:
    """Numbers of values, of long gaps and of large values of a record, and the width of a value."""
    head = words.view(np.uint32)
    return int(head[1]), int(head[2]), int(head[3]) & LARGE_MASK, int(head[3]) >> WIDTH_SHIFT


@nb.njit(nogil=True, cache=True)
def is_valid(words: NDArray[np.uint64], size: int, n_genes: int) -> bool:
    """Whether all parts of a record are within it, and all gene numbers below ``n_genes``."""
    return bool(fits(words, size, n_genes) and reach(words, size) <= n_genes)


@nb.njit(nogil=True, cache=True)
def fits(words: NDArray[np.uint64], size: int, n_genes: int) -> bool:
    """Whether all parts of a record are within it, whatever its gene numbers are."""
    n, n_gaps, n_large, code = header(words)
    if n != size or n > n_genes or record_length(n, n_gaps, n_large, code) != 8 * len(words):
        return False
    head, first = words.view(np.uint32), HEADER // 4
    return _ascend(head[first : first + 2 * n_gaps], n) and _ascend(
        head[first + 2 * n_gaps : first + 2 * (n_gaps + n_large)], n
    )


@nb.njit(nogil=True, cache=True)
def _ascend(exceptions: NDArray[np.uint32], n: int) -> bool:
    """Whether the positions of exceptions ascend and are below ``n``."""
    last = -1
    for k in range(0, len(exceptions), 2):
        if not last < exceptions[k] < n:
            return False
        last = int(exceptions[k])
    return True


@nb.njit(nogil=True, cache=True)
def reach(words: NDArray[np.uint64], n: int) -> int:
    """The last gene number of a record that `fits`, plus 1; below 2^63, as it has at most 2^32 gaps of 32 bits."""
    head, total = words.view(np.uint32), np.int64(n)
    for k in range(HEADER // 4, HEADER // 4 + 2 * int(head[2]), 2):
        total += np.int64(head[k + 1])
    return int(total + _sum(_gaps(words, n)))


@nb.njit(nogil=True, cache=True)
def _sum(values: NDArray[np.uint8]) -> np.int64:
    total = np.int64(0)
    for begin in range(0, len(values), 1 << 16):  # 32 bits suffice then, and are faster
        some = np.uint32(0)
        for value in values[begin : begin + (1 << 16)]:
            some += np.uint32(value)
        total += np.int64(some)
    return total


@nb.njit(inline="always", cache=True)
def _gaps(words: NDArray[np.uint64], n: int) -> NDArray[np.uint8]:
    """The gap bytes of a record of ``n`` values."""
    _, n_gaps, n_large, code = header(words)
    first = HEADER + 8 * (n_gaps + n_large) + n * value_width(code)
    return words.view(np.uint8)[first : first + n]


@nb.njit(nogil=True, cache=True)
def gene_numbers(words: NDArray[np.uint64], n: int, shift: np.int64, out: NDArray[np.int32]) -> np.int64:
    """Write the gene numbers of a record, each plus ``shift``; returns the last one plus 1."""
    gaps, head, at, begin = _gaps(words, n), words.view(np.uint32), shift, 0
    for k in range(HEADER // 4, HEADER // 4 + 2 * int(head[2]), 2):
        end = int(head[k])
        at = number_genes(gaps[begin:end], at, out[begin:end]) + np.int64(head[k + 1])
        begin = end
    return number_genes(gaps[begin:], at, out[begin:n])


@nb.njit(nogil=True, cache=True)
def _look_up(words: NDArray[np.uint64], n: int, lut: NDArray[np.int32], shifted: bool, out: NDArray[np.int32]) -> bool:
    """Look up the genes of a record if all are below ``len(lut)``; ``shifted`` is the flag `SHIFTED` of the table."""
    if shifted and n:
        first = np.int64(lut[0])
        return bool(gene_numbers(words, n, first, out) - first <= len(lut))
    if reach(words, n) > len(lut):
        return False
    look_up(words, n, lut, out)
    return True


@nb.njit(nogil=True, cache=True)
def look_up(words: NDArray[np.uint64], n: int, lut: NDArray[np.int32], out: NDArray[np.int32]) -> None:
    """Write the ``lut`` entries of a record's genes, which must be below ``len(lut)``."""
    gaps, head, at, begin = _gaps(words, n), words.view(np.uint32), np.int64(0), 0
    for k in range(HEADER // 4, HEADER // 4 + 2 * int(head[2]), 2):
        end = int(head[k])
        at = look_up_genes(gaps[begin:end], at, lut, out[begin:end]) + np.int64(head[k + 1])
        begin = end
    look_up_genes(gaps[begin:], at, lut, out[begin:n])


@nb.njit(nogil=True, cache=True)
def _values(words: NDArray[np.uint64], n: int, out: NDArray[np.float32]) -> float:
    """Write the values of a record as float32; returns their sum."""
    _, n_gaps, n_large, code = header(words)
    head = words.view(np.uint32)
    exceptions = HEADER // 4 + 2 * n_gaps
    first = 4 * (exceptions + 2 * n_large)
    if code == U8:
        total = float(_widened(words.view(np.uint8)[first : first + n], out))
    elif code == U16:
        total = float(_widened(words.view(np.uint16)[first // 2 : first // 2 + n], out))
    elif code == F32:
        total = 0.0
        for j in range(n):
            out[j] = words.view(np.float32)[first // 4 + j]
            total += np.float64(out[j])
    else:
        total = float(_widened(head[first // 4 : first // 4 + n], out))
    for k in range(exceptions, exceptions + 2 * n_large, 2):
        out[head[k]] = np.float32(head[k + 1])
        total += float(head[k + 1])
    return total


@nb.njit(inline="always", cache=True)
def _widened(values: NDArray[Any], out: NDArray[np.float32]) -> np.int64:
    """Write values as float32; returns their sum. 32 bits hold the sum of 2^16 values of up to 16 bits."""
    total = np.int64(0)
    step = 1 << 16 if values.itemsize <= 2 else 1  # noqa: PLR2004 (bytes)
    for begin in range(0, len(values), step):
        some, room, part = np.uint32(0), out[begin : begin + step], values[begin : begin + step]
        for j in range(len(part)):
            room[j] = np.float32(part[j])
            some += np.uint32(part[j])
        total += np.int64(some)
    return total
