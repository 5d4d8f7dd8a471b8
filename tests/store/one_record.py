"""One record of a form that is given: made, and checked and unpacked."""

import numpy as np

from scdataloader.kernels.records.encode import COMPACT, COUNTS, SHORT, encode_rows, most_words
from scdataloader.kernels.records.format import Records
from scdataloader.kernels.records.unpack import check_records, unpack_records

CELL = 3


def encoded(genes, bits, kind, n_genes=None):
    """The words of a record of a kind, as in `encode_rows`."""
    n, n_genes = len(genes), n_genes or max(genes, default=0) + 1
    words, offsets, sizes = np.empty(most_words(1, n), np.uint64), np.empty(1, np.int64), np.empty(1, np.uint32)
    given = np.array([0, n]), np.array(genes, np.int32), np.array(bits, np.uint32), np.arange(n_genes, dtype=np.int32)
    n_words = encode_rows(*given, kind, CELL, words, offsets, sizes)
    assert 0 < n_words <= len(words)
    assert (offsets[0], sizes[0]) == (0, n)
    return words[:n_words].copy()


def status_of(words, size, n_genes, kind):
    """What checking and unpacking a record say of it, and the genes and values that are unpacked."""
    records = Records(np.array([CELL]), np.array([words.ctypes.data]), np.array([words.nbytes]), np.array([size]))
    found, no_table = np.zeros(1, np.uint8), (np.zeros(1, np.int64), np.empty(0, np.bool_), np.zeros(2, np.int64))
    check_records(records, np.array([n_genes]), *no_table, kind, found)
    indices, bits = np.empty(size, np.int32), np.empty(size, np.uint32)
    order, floats = np.arange(n_genes, dtype=np.int32), kind & ~(COMPACT | SHORT) != COUNTS
    unpacked = unpack_records(records, order, floats, np.zeros(1, np.int64), indices, bits)[0]
    return found[0], unpacked, indices, bits
