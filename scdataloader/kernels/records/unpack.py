"""Records as stored: check of every rule of the format, and exact values."""

from __future__ import annotations

import numba as nb
import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numpy.typing import NDArray

from scdataloader.kernels.machine.bits import drain
from scdataloader.kernels.machine.memory import pointer
from scdataloader.kernels.records.decode import (
    BAD_CHECKSUM,
    BAD_RECORD,
    OK,
    ascend,
    fits,
    gene_numbers,
    look_up,
)
from scdataloader.kernels.records.encode import COMPACT, COUNTS, EITHER, FLOATS, SHORT, write_record
from scdataloader.kernels.records.format import F32, HEADER, U8, U16, Parts, Records, parts_of, record_checksum
from scdataloader.kernels.records.packed import SPARE
from scdataloader.kernels.records.short import is_short, plain_buffer, plain_record, shorten
from scdataloader.kernels.records.values import write_values

BAD_FORM, BAD_KIND, BAD_GENE = 4, 5, 6
_BYTE, _TWO_BYTES = 1 << 8, 1 << 16
_MINUS_ZERO = 1 << 31
"""As bits of a float32."""


@nb.njit(nogil=True, cache=True)
def check_records(
    records: Records,
    n_genes: NDArray[np.int64],
    table: NDArray[np.int64],
    known: NDArray[np.bool_],
    known_start: NDArray[np.int64],
    kind: int,
    status: NDArray[np.uint8],
) -> int:
    """Check every rule of the format for every record: ``status[i]`` is `OK`, or the first rule that record i breaks.

    Record i is in a space of ``n_genes[i]`` genes and a shard of records of this ``kind``; see `encode_rows`. With the
    flag `COMPACT`, records may be packed, and with `SHORT`, short.
    ``known[known_start[p]:known_start[p + 1]]``, p = ``table[i]``, is True for the genes that its source has; if it is
    empty, any gene is accepted. Returns the largest of all counts.
    """
    cell, address, length, size = records
    largest, most = np.uint32(0), size.max() if len(size) else 0
    bits = np.empty(most + SPARE, np.int32)
    buffer, again = plain_buffer(records), plain_buffer(records)
    for i in range(len(address)):
        stored = carray(pointer(np.uintp(address[i])), (length[i] // 8,), np.uint64)
        words = plain_record(stored, size[i], buffer)
        parts, genes = parts_of(words), np.empty(size[i], np.int32)
        status[i] = OK
        if np.uint32(stored[0] & np.uint64(0xFFFFFFFF)) != record_checksum(stored, cell[i]):
            status[i] = BAD_CHECKSUM
        elif not _are_genes(words, parts, size[i], n_genes[i], bits, genes):
            status[i] = BAD_RECORD
        elif not _is_of_kind(parts, is_short(stored), kind):
            status[i] = BAD_KIND
        else:
            has = known[known_start[table[i]] : known_start[table[i] + 1]]
            if len(has) and not has[genes].all():
                status[i] = BAD_GENE
            values = np.empty(size[i], np.uint32)
            write_values(words, parts, values)
            if kind & ~(COMPACT | SHORT) == COUNTS:
                for value in values:
                    largest = max(largest, value)
            if not (_is_in_form(words, parts, genes, values, again) and _is_shortened(stored, words, again)):
                status[i] = BAD_FORM
    return int(largest)


@nb.njit(nogil=True, cache=True)
def unpack_records(
    records: Records,
    order: NDArray[np.int32],
    floats: bool,
    starts: NDArray[np.int64],
    out_indices: NDArray[np.int32],
    out_bits: NDArray[np.uint32],
) -> tuple[int, int]:
    """Write the exact values of records, sorted by gene: uint32 counts, or with ``floats`` the bits of float32.

    Gene g of the records is ``order[g]`` in the output, distinct for each gene, or -1 if the source does not have it.
    Record i fills the entries from ``starts[i]`` on. Returns (status, i): `OK`, or the error of record i.
    """
    cell, address, length, size = records
    dense, present = np.empty(len(order), np.uint32), np.zeros(len(order) // 64 + 1, np.uint64)
    temporary, buffer = np.empty((size.max() if len(size) else 0) + SPARE, np.int32), plain_buffer(records)
    for i in range(len(address)):
        words = carray(pointer(np.uintp(address[i])), (length[i] // 8,), np.uint64)
        if np.uint32(words[0] & np.uint64(0xFFFFFFFF)) != record_checksum(words, cell[i]):
            return BAD_CHECKSUM, i
        words = plain_record(words, size[i], buffer)
        parts, room = parts_of(words), slice(starts[i], starts[i] + size[i])
        genes, bits = out_indices[room], out_bits[room]
        if not _are_genes(words, parts, size[i], len(order), temporary, genes):
            return BAD_RECORD, i
        look_up(order, genes)
        if size[i] and genes.min() < 0:
            return BAD_GENE, i
        write_values(words, parts, bits)
        if floats and parts.code != F32:
            _as_floats(bits)
        if not ascend(genes):
            _sort(genes, bits, dense, present)
    return OK, 0


@nb.njit(nogil=True, cache=True)
def _are_genes(
    words: NDArray[np.uint64], parts: Parts, size: int, n_genes: int, bits: NDArray[np.int32], genes: NDArray[np.int32]
) -> bool:
    """Whether all of a record is within it, and its genes, which are written, ascend and are below ``n_genes``."""
    if not fits(words, parts, size, n_genes):
        return False
    return gene_numbers(words, parts, np.int64(0), bits, genes) <= n_genes and ascend(genes)


@nb.njit(nogil=True, cache=True)
def _as_floats(bits: NDArray[np.uint32]) -> None:
    """Replace counts by the bits of float32."""
    values = bits.view(np.float32)
    for k in range(len(bits)):
        values[k] = np.float32(bits[k])


@nb.njit(nogil=True, cache=True)
def _sort(
    genes: NDArray[np.int32], bits: NDArray[np.uint32], dense: NDArray[np.uint32], present: NDArray[np.uint64]
) -> None:
    """Sort a cell by gene, by way of a dense row and a set of genes that is empty before and after."""
    for k in range(len(genes)):
        dense[genes[k]] = bits[k]
        present[genes[k] >> 6] |= np.uint64(1) << np.uint64(genes[k] & 63)
    drain(present, genes)
    for k in range(len(genes)):
        bits[k] = dense[genes[k]]


@nb.njit(inline="always", cache=True)
def _is_of_kind(parts: Parts, short: bool, kind: int) -> bool:
    if (parts.is_packed and not kind & COMPACT) or (short and not kind & SHORT):
        return False
    values = kind & ~(COMPACT | SHORT)
    return bool(values == EITHER or (parts.code == F32) == (values == FLOATS))


@nb.njit(nogil=True, cache=True)
def _is_in_form(
    words: NDArray[np.uint64],
    parts: Parts,
    genes: NDArray[np.int32],
    values: NDArray[np.uint32],
    again: NDArray[np.uint64],
) -> bool:
    """Whether a record has no zeros among its ``values``, and is what is written for its genes and values.

    ``values`` and ``again``, a `plain_buffer`, are overwritten.
    """
    for value in values:
        if value == 0 or (parts.code == F32 and value == _MINUS_ZERO):
            return False
    if not parts.is_packed:
        return _exceptions_are_due(words, parts) and _is_padded(words, parts)
    n_words = write_record(genes, values, parts.code, parts.low, again[: len(words)])
    return _are_equal(again[:n_words], words)


@nb.njit(nogil=True, cache=True)
def _is_shortened(stored: NDArray[np.uint64], words: NDArray[np.uint64], again: NDArray[np.uint64]) -> bool:
    """Whether a record, if it is short, is what is written for the record of bytes ``words``."""
    return not is_short(stored) or _are_equal(again[: shorten(words, again)], stored)


@nb.njit(nogil=True, cache=True)
def _are_equal(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> bool:
    """Whether two records are the same but for their checksums."""
    return len(a) == len(b) and np.uint64(a[0] ^ b[0]) >> np.uint64(32) == 0 and bool((a[1:] == b[1:]).all())


@nb.njit(nogil=True, cache=True)
def _exceptions_are_due(words: NDArray[np.uint64], parts: Parts) -> bool:
    """Whether all exceptions of a record of bytes are needed, and the entries of large values are 0."""
    head, first = words.view(np.uint32), parts.large // 4
    due = parts.code <= U16 or parts.n_large == 0
    for k in range(HEADER // 4, first, 2):
        due &= head[k + 1] >= _BYTE and head[k + 1] % _BYTE == 0
    for k in range(first, parts.values // 4, 2):
        due &= head[k + 1] >= (_BYTE if parts.code == U8 else _TWO_BYTES)
        at = parts.values + head[k] * (1 if parts.code == U8 else 2)
        due &= words.view(np.uint8)[at] == 0 and (parts.code == U8 or words.view(np.uint8)[at + 1] == 0)
    return due


@nb.njit(nogil=True, cache=True)
def _is_padded(words: NDArray[np.uint64], parts: Parts) -> bool:
    """Whether the padding of a record of bytes is zeros."""
    return bool((words.view(np.uint8)[parts.end :] == 0).all())
