"""Decoder: records to rows in the vocabulary's genes, in one pass that is safe for any bytes.

Array accesses are not bounds-checked, so every record is checked first: its length against its header, the positions of
its exceptions (long gaps, raised and large values), and that no gene number is too high.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numpy.typing import NDArray

from scdataloader.kernels.machine.memory import pointer, prefetch, prefetch_bytes, settle
from scdataloader.kernels.records.format import (
    HEADER,
    U4,
    Parts,
    Records,
    parts_of,
    record_checksum,
)
from scdataloader.kernels.records.gaps import look_up_genes, number_genes
from scdataloader.kernels.records.packed import SPARE, ascending_numbers, sum_fields
from scdataloader.kernels.records.short import plain_buffer, plain_record
from scdataloader.kernels.records.values import write_values
from scdataloader.kernels.rows.align import SortBuffers, sort_buffers, sort_entries, total_of_genes
from scdataloader.kernels.rows.keep import keep_numbered

OK, BAD_INDEX, BAD_RECORD, BAD_CHECKSUM = 0, 1, 2, 3
IN_ORDER, COMPLETE, SHIFTED, GENES_ONLY = 1, 2, 4, 8
"""Flags of a look-up table: its numbers ascend, negative ones left out; it has no negative ones; all its numbers differ
from those in the records by one constant, as where the vocabulary is made of the genes of the store; some of its
features are `NOT_A_GENE`."""

MOST_PER_BYTE = 3
"""A byte holds fewer values than these: each takes a bit and two fields of 2 bits or more."""
_LONGEST_LOW = 16
_MOST_BYTES = 1 << 28
"""Of upper parts of gene numbers, whose bits are counted in 32 bits."""
_CACHED = 4 << 20
"""Bytes of entries that the caches of a core may hold until they are read."""
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
        if size[i] > MOST_PER_BYTE * length[i]:  # bounds the memory that a wrong size can ask for
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
    closed: bool,
    out: Any,
) -> tuple[int, int]:
    """Write records into row buffers in vocabulary genes, as `align_rows` does for matrices.

    Record i is looked up in table ``table[i]`` and written to row ``place[i]`` of ``out``, which are
    `scdataloader.types.RowBuffers`. ``closed`` states that all rows are written in order, by this call or several; each
    then begins where the one before ends. The checksum of a record is verified when its ``row`` is first read:
    ``checked`` has one bit per row.

    Returns (status, i): `OK`, or the error of record i. Nothing outside the buffers is written.
    """
    cell, address, length, size = records
    luts, lut_start, how, n_genes = tables
    starts, out_indices, out_data, out_size, out_depth = out
    largest = size.max() if len(size) else 0
    bits, buffer = np.empty(largest + SPARE, np.int32), plain_buffer(records)
    most = largest if (how & IN_ORDER == 0).any() else 0
    buffers = sort_buffers(most, n_genes, np.empty(n_genes if most else 0, np.float32))
    is_large = 8 * size.sum() > _CACHED
    ahead = 1 + min(_AHEAD - 1, _IN_FLIGHT * len(length) // max(1, length.sum()))
    for i in range(len(address)):
        # Random records are never in cache. The next one is fetched during this one, half before and half amid it,
        # since a core has only some tens of cache lines in flight; of short records, one of the next ones.
        following = min(i + ahead, len(address) - 1)
        half = length[following] // 2
        prefetch_bytes(address[following], half)
        words = carray(pointer(np.uintp(address[i])), (length[i] // 8,), np.uint64)
        bit = np.uint8(1 << (row[i] & 7))
        is_new = not checked[row[i] >> 3] & bit
        if is_new and np.uint32(words[0] & np.uint64(0xFFFFFFFF)) != record_checksum(words, cell[i]):
            return BAD_CHECKSUM, i
        p = table[i]
        lut = luts[lut_start[p] : lut_start[p + 1]]
        n, slot = size[i], place[i]
        words = plain_record(words, n, buffer)
        room = slice(starts[slot], starts[slot] + n)
        in_place = how[p] & COMPLETE and how[p] & IN_ORDER
        streams = bool(in_place) and is_large
        numbers, values, parts = out_indices[room], out_data[room], parts_of(words)
        if not how[p] & IN_ORDER:
            numbers, values = buffers.genes[:n], buffers.values[:n]
        if not fits(words, parts, n, len(lut)):
            return BAD_RECORD, i
        if in_place and not parts.is_packed:
            good = _look_up_gaps(words, parts, lut, how[p] & SHIFTED, numbers, streams)
        else:
            plus = np.int64(lut[0]) if in_place and how[p] & SHIFTED and n else np.int64(0)
            good = gene_numbers(words, parts, plus, bits, numbers) <= len(lut) and not (is_new and not ascend(numbers))
            if good and in_place and not how[p] & SHIFTED:
                look_up(lut, numbers)
        if not good:
            return BAD_RECORD, i
        checked[row[i] >> 3] |= bit
        prefetch_bytes(address[following] + half, length[following] - half)
        out_depth[slot] = write_values(words, parts, values, streams)
        out_size[slot] = n
        if not in_place:
            if how[p] & GENES_ONLY:
                out_depth[slot] = total_of_genes(numbers, values, lut)
            out_size[slot] = _renumber(numbers, values, lut, how[p], buffers, out_indices[room], out_data[room])
        starts[slot + 1] = starts[slot] + out_size[slot] if closed else starts[slot + 1]
    settle()
    return OK, 0


@nb.njit(nogil=True, cache=True)
def _renumber(
    genes: NDArray[np.int32],
    values: NDArray[np.float32],
    lut: NDArray[np.int32],
    how: int,
    buffers: SortBuffers,
    out_indices: NDArray[np.int32],
    out_data: NDArray[np.float32],
) -> int:
    """Look up the genes of a cell, which is in the output, or in ``buffers`` if the table is not `IN_ORDER`.

    Returns the number of entries kept, which are in the output and sorted.
    """
    look_up(lut, genes)
    kept = len(genes) if how & COMPLETE else int(keep_numbered(genes, values))
    return kept if how & IN_ORDER else int(sort_entries(kept, buffers, out_indices, out_data))


@nb.njit(nogil=True, cache=True)
def fits(words: NDArray[np.uint64], parts: Parts, size: int, n_genes: int) -> bool:
    """Whether all parts of a record are within it, whatever its gene numbers are."""
    room = 8 * len(words)
    if parts.n != size or parts.n > n_genes or not room - 8 < parts.end <= room:
        return False
    head = words.view(np.uint32)
    gaps = head[HEADER // 4 : HEADER // 4 + 2 * parts.n_gaps]
    large = head[parts.large // 4 : parts.large // 4 + 2 * parts.n_large]
    if not (_positions_ascend(gaps, parts.n) and _positions_ascend(large, parts.n)):
        return False
    if not parts.is_packed:
        return True
    steps = words.view(np.uint8)[parts.raised : (parts.raised + parts.end) // 2]
    is_known = parts.code <= U4 and 1 < parts.low <= _LONGEST_LOW and parts.values - parts.large < _MOST_BYTES
    return bool(is_known and (len(steps) == 0 or sum_fields(steps, 8) < parts.n))


@nb.njit(nogil=True, cache=True)
def _positions_ascend(exceptions: NDArray[np.uint32], n: int) -> bool:
    """Whether the positions of exceptions ascend and are below ``n``."""
    last = -1
    for k in range(0, len(exceptions), 2):
        if not last < exceptions[k] < n:
            return False
        last = int(exceptions[k])
    return True


@nb.njit(nogil=True, cache=True)
def ascend(genes: NDArray[np.int32]) -> bool:
    """Whether each number is above the one before."""
    falls = np.uint32(0)
    for k in range(1, len(genes)):
        falls += np.uint32(genes[k - 1] >= genes[k])
    return bool(falls == 0)


@nb.njit(nogil=True, cache=True)
def gene_numbers(
    words: NDArray[np.uint64],
    parts: Parts,
    plus: np.int64,
    bits: NDArray[np.int32],
    out: NDArray[np.int32],
    streams: bool = False,  # noqa: FBT002
) -> int:
    """Write the gene numbers of a record that `fits`, each plus ``plus``; returns the largest plus 1, without ``plus``.

    ``bits`` are n + `SPARE` entries for temporary use. If the result is too large for a gene, ``out`` has any numbers.
    Of a record of bytes, ``streams`` is as in `number_genes`.
    """
    genes, head = words.view(np.uint8)[parts.genes : parts.raised], words.view(np.uint32)
    if parts.is_packed:
        upper = words[parts.large // 8 + parts.n_large : parts.values // 8]
        return int(ascending_numbers(upper, genes, parts.low, plus, bits, out))
    at, begin = plus, 0
    for k in range(HEADER // 4, HEADER // 4 + 2 * parts.n_gaps, 2):
        end = int(head[k])
        at = number_genes(genes[begin:end], at, out[begin:end], streams) + np.int64(head[k + 1])
        begin = end
    return int(number_genes(genes[begin:], at, out[begin : parts.n], streams) - plus)


@nb.njit(nogil=True, cache=True)
def reach(words: NDArray[np.uint64], parts: Parts) -> int:
    """The last gene number of a record of bytes that `fits`, plus 1; below 2^63, as it has at most 2^32 gaps."""
    head, total = words.view(np.uint32), np.int64(parts.n)
    for k in range(HEADER // 4, HEADER // 4 + 2 * parts.n_gaps, 2):
        total += np.int64(head[k + 1])
    return int(total + sum_fields(words.view(np.uint8)[parts.genes : parts.end], 8))


@nb.njit(nogil=True, cache=True)
def _look_up_gaps(
    words: NDArray[np.uint64],
    parts: Parts,
    lut: NDArray[np.int32],
    shifted: bool,
    out: NDArray[np.int32],
    streams: bool,
) -> bool:
    """Look up the genes of a record of bytes if all are below ``len(lut)``; ``shifted`` is the flag `SHIFTED`.

    ``streams`` is as in `number_genes`.
    """
    if shifted and parts.n:
        return gene_numbers(words, parts, np.int64(lut[0]), out[:0], out, streams) <= len(lut)
    if reach(words, parts) > len(lut):
        return False
    gaps, head, at, begin = words.view(np.uint8)[parts.genes : parts.end], words.view(np.uint32), np.int64(0), 0
    for k in range(HEADER // 4, HEADER // 4 + 2 * parts.n_gaps, 2):
        end = int(head[k])
        at = look_up_genes(gaps[begin:end], at, lut, out[begin:end]) + np.int64(head[k + 1])
        begin = end
    look_up_genes(gaps[begin:], at, lut, out[begin : parts.n])
    return True


@nb.njit(nogil=True, cache=True)
def look_up(lut: NDArray[np.int32], numbers: NDArray[np.int32]) -> None:
    """Replace numbers below ``len(lut)`` by their entries."""
    for j in range(len(numbers)):
        numbers[j] = lut[np.uint32(numbers[j])]  # unsigned numbers avoid a test for negative ones
