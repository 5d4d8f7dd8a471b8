"""Values of records: those that bypass the caches are the others, with the same sum, wherever they lie."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from scdataloader.kernels.records.decode import OK, decode_records
from scdataloader.kernels.records.encode import COUNTS, encode_rows, most_words
from scdataloader.kernels.records.format import Records, parts_of
from scdataloader.kernels.records.values import write_values
from scdataloader.runtime.memory import row_buffers
from scdataloader.store.gene_spaces import GenePlaces, GeneTables

GUARD = 77


@pytest.mark.parametrize("dtype", [np.float32, np.uint32])
@given(
    values=st.lists(st.sampled_from([1, 2, 254, 255, 256, 70_000]) | st.integers(1, 255), max_size=120),
    at=st.integers(0, 17),
)
def test_streamed_values_are_the_values(dtype, values, at):
    n, words = len(values), np.empty(most_words(1, len(values)), np.uint64)
    rows = np.array([0, n]), np.arange(n, dtype=np.int32), np.array(values, np.uint32)
    size = encode_rows(
        *rows, np.arange(n, dtype=np.int32), COUNTS, 0, words, np.empty(1, np.int64), np.empty(1, np.uint32)
    )
    record = words[:size]
    for streams in (False, True):
        out = np.full(at + n + 20, GUARD, dtype)
        total = write_values(record, parts_of(record), out[at : at + n], streams)
        assert out[at : at + n].tolist() == values
        assert total == sum(values)
        assert (out[:at] == GUARD).all()
        assert (out[at + n :] == GUARD).all()


def test_many_cells_decoded_at_once_are_those_decoded_one_by_one():
    rng, n_genes, n_cells = np.random.default_rng(0), 3000, 300
    counts = rng.integers(1, 300, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.7)
    counts[7, 5] = 70_000
    matrix, order = sparse.csr_matrix(counts), np.arange(n_genes, dtype=np.int32)
    words = np.empty(most_words(n_cells, matrix.nnz), np.uint64)
    offsets, sizes = np.empty(n_cells + 1, np.int64), np.empty(n_cells, np.uint32)
    bits = matrix.data.astype(np.uint32)
    offsets[-1] = 8 * encode_rows(
        matrix.indptr.astype(np.int64), matrix.indices, bits, order, COUNTS, 0, words, offsets[:-1], sizes
    )
    tables = GeneTables([order], [GenePlaces.all_of(n_genes)], n_genes)
    cells, nothing = np.arange(n_cells), np.zeros(n_cells, np.int64)
    records = Records(cells, words.ctypes.data + offsets[:-1], np.diff(offsets), sizes.astype(np.int64))
    made = [row_buffers(records.size), row_buffers(records.size)]
    assert 8 * matrix.nnz > 4 << 20
    for out, parts in zip(made, ([cells], cells[:, None]), strict=True):
        for at in parts:
            some = Records(*(field[at] for field in records))
            found = decode_records(some, at, np.zeros(99, np.uint8), tables.look_up, nothing[at], at, False, out)
            assert found == (OK, 0)
    for many, one in zip(*made, strict=True):
        assert (many == one).all()
    assert (made[0].indices == matrix.indices).all()
    assert (made[0].data == matrix.data).all()
