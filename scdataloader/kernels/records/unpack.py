"""Records as stored: check of every rule of the format, and exact values."""

from __future__ import annotations

import numba as nb
import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numpy.typing import NDArray

from scdataloader.kernels.machine.bits import drain
from scdataloader.kernels.machine.memory import pointer
from scdataloader.kernels.records.decode import BAD_CHECKSUM, BAD_RECORD, OK, gene_numbers, header, is_valid, look_up
from scdataloader.kernels.records.encode import COUNTS, EITHER, FLOATS
from scdataloader.kernels.records.format import F32, HEADER, U8, U16, Records, record_checksum, value_width

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

    Record i is in a space of ``n_genes[i]`` genes and a shard of records of this ``kind``; see `encode_rows`.
    ``known[known_start[p]:known_start[p + 1]]``, p = ``table[i]``, is True for the genes that its source has; if it is
    empty, any gene is accepted. Returns the largest of all counts.
    """
    cell, address, length, size = records
    largest = np.uint32(0)
    for i in range(len(address)):
        words = carray(pointer(np.uintp(address[i])), (length[i] // 8,), np.uint64)
        status[i] = OK
        if np.uint32(words[0] & np.uint64(0xFFFFFFFF)) != record_checksum(words, cell[i]):
            status[i] = BAD_CHECKSUM
        elif not is_valid(words, size[i], n_genes[i]):
            status[i] = BAD_RECORD
        elif kind != EITHER and (header(words)[3] == F32) != (kind == FLOATS):
            status[i] = BAD_KIND
        else:
            has = known[known_start[table[i]] : known_start[table[i] + 1]]
            if len(has) and not _are_known(words, size[i], has):
                status[i] = BAD_GENE
            values = np.empty(size[i], np.uint32)
            if not (_exceptions_are_due(words) and _is_padded(words) and _values(words, values)):
                status[i] = BAD_FORM
            if kind == COUNTS:
                for value in values:
                    largest = max(largest, value)
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
    for i in range(len(address)):
        words = carray(pointer(np.uintp(address[i])), (length[i] // 8,), np.uint64)
        if np.uint32(words[0] & np.uint64(0xFFFFFFFF)) != record_checksum(words, cell[i]):
            return BAD_CHECKSUM, i
        n = size[i]
        if not is_valid(words, n, len(order)):
            return BAD_RECORD, i
        room = slice(starts[i], starts[i] + n)
        genes, bits = out_indices[room], out_bits[room]
        look_up(words, n, order, genes)
        if n and genes.min() < 0:
            return BAD_GENE, i
        _values(words, bits)
        if floats and header(words)[3] != F32:
            _as_floats(bits)
        if not _ascend(genes):
            _sort(genes, bits, dense, present)
    return OK, 0


@nb.njit(nogil=True, cache=True)
def _as_floats(bits: NDArray[np.uint32]) -> None:
    """Replace counts by the bits of float32."""
    values = bits.view(np.float32)
    for k in range(len(bits)):
        values[k] = np.float32(bits[k])


@nb.njit(nogil=True, cache=True)
def _ascend(genes: NDArray[np.int32]) -> bool:
    ascending = True
    for k in range(1, len(genes)):
        ascending &= genes[k - 1] < genes[k]
    return ascending


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


@nb.njit(nogil=True, cache=True)
def _are_known(words: NDArray[np.uint64], n: int, has: NDArray[np.bool_]) -> bool:
    """Whether a valid record has only genes that ``has`` marks."""
    genes = np.empty(n, np.int32)
    gene_numbers(words, n, np.int64(0), genes)
    known = True
    for gene in genes:
        known &= has[gene]
    return known


@nb.njit(nogil=True, cache=True)
def _values(words: NDArray[np.uint64], out: NDArray[np.uint32]) -> bool:
    """Write the values of a valid record as bits; whether none is zero, and the entries of large values are."""
    _, n_gaps, n_large, code = header(words)
    head = words.view(np.uint32)
    exceptions, n = HEADER // 4 + 2 * n_gaps, len(out)
    first = exceptions + 2 * n_large
    if code == U8:
        out[:] = words.view(np.uint8)[4 * first : 4 * first + n]
    elif code == U16:
        out[:] = words.view(np.uint16)[2 * first : 2 * first + n]
    else:
        out[:] = head[first : first + n]
    in_form = True
    for k in range(exceptions, first, 2):
        in_form &= out[head[k]] == 0
        out[head[k]] = head[k + 1]
    for j in range(n):
        in_form &= out[j] != 0 and not (code == F32 and out[j] == _MINUS_ZERO)
    return in_form


@nb.njit(nogil=True, cache=True)
def _exceptions_are_due(words: NDArray[np.uint64]) -> bool:
    """Whether all exceptions of a valid record are needed: their gaps and values do not fit otherwise."""
    _, n_gaps, n_large, code = header(words)
    head = words.view(np.uint32)
    first = HEADER // 4
    due = code <= U16 or n_large == 0
    for k in range(first, first + 2 * n_gaps, 2):
        due &= head[k + 1] >= _BYTE and head[k + 1] % _BYTE == 0
    for k in range(first + 2 * n_gaps, first + 2 * (n_gaps + n_large), 2):
        due &= head[k + 1] >= (_BYTE if code == U8 else _TWO_BYTES)
    return due


@nb.njit(nogil=True, cache=True)
def _is_padded(words: NDArray[np.uint64]) -> bool:
    """Whether the padding of a valid record is zeros."""
    n, n_gaps, n_large, code = header(words)
    padded = True
    for byte in words.view(np.uint8)[HEADER + 8 * (n_gaps + n_large) + n * (value_width(code) + 1) :]:
        padded &= byte == 0
    return padded
