"""Short records: as docs/explanation/store.md has them, with the values and genes of their cells; stores of them."""

import re
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import scdataloader as scd
from scdataloader.kernels.records.decode import BAD_RECORD, OK
from scdataloader.kernels.records.encode import COUNTS, EITHER, SHORT
from scdataloader.kernels.records.format import Records, record_checksum
from scdataloader.kernels.records.short import is_short, plain_buffer, plain_record, shorten
from scdataloader.kernels.records.unpack import BAD_FORM, BAD_KIND
from scdataloader.store.reader import Store
from scdataloader.store.verify import verify
from tests.store.one_record import CELL, encoded, status_of
from tests.store.reference_store import read_record

PAGE = (Path(__file__).parents[2] / "docs" / "explanation" / "store.md").read_text(encoding="utf-8")


SIZES = st.sampled_from([0, 1, 2, 3, 31, 32, 33, 64, 125, 126, 127, 128, 129, 200, 257]) | st.integers(0, 700)
VALUES = st.sampled_from([15, 16, 17, 255, 256, 257, 65536, (1 << 32) - 1])
GAPS = st.sampled_from([63, 64, 65, 255, 256, 257, 1000])


@given(st.data(), SIZES, st.sampled_from([1, 3, 14, 70]), st.sampled_from([1, 2, 15, 30]))
def test_records_hold_what_they_are_made_of(data, n, gap, top):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    gaps, values = rng.integers(0, gap, n), rng.integers(1, top + 1, n)
    for value in data.draw(st.lists(VALUES, max_size=5)) if n else []:
        values[rng.integers(n)] = value
    for far in data.draw(st.lists(GAPS, max_size=5)) if n else []:
        gaps[rng.integers(n)] = far
    genes = np.cumsum(gaps + 1) - 1
    words, plain = encoded(genes.tolist(), values, SHORT), encoded(genes.tolist(), values, COUNTS)
    cell = dict(zip(genes.tolist(), values.tolist(), strict=True))
    assert read_record(words.tobytes(), CELL, 0) == cell
    assert len(words) < len(plain) if is_short(words) else (words == plain).all()
    if is_short(words):  # what it stands for is the record of bytes, but for the checksum
        records = Records(np.array([CELL]), np.array([0]), np.array([words.nbytes]), np.array([n]))
        stands_for = plain_record(words, n, plain_buffer(records))
        assert stands_for.view(np.uint32)[1:].tolist() == plain.view(np.uint32)[1:].tolist()
    n_genes = int(genes[-1]) + 1 if n else 5
    checked, unpacked, indices, bits = status_of(words, n, n_genes, COUNTS | SHORT)
    assert (checked, unpacked) == (OK, OK)
    assert (indices.tolist(), bits.tolist()) == (genes.tolist(), values.tolist())
    if n:  # no gene is let through that the space does not have
        assert status_of(words, n, n_genes - 1, COUNTS | SHORT)[:2] == (BAD_RECORD, BAD_RECORD)
    assert status_of(words, n, n_genes, COUNTS)[0] == (BAD_KIND if is_short(words) else OK)


def test_cells_that_would_not_be_shorter_are_records_of_bytes():
    assert not is_short(encoded([], [], SHORT))
    assert not is_short(encoded([7], [1], SHORT))
    assert not is_short(encoded(range(200), [200] * 200, SHORT))  # each value would be raised
    assert not is_short(encoded(range(200), [1000] * 200, SHORT))  # two bytes a value
    assert not is_short(encoded(range(200), np.full(200, 1.5, np.float32).view(np.uint32), SHORT | EITHER))
    assert is_short(encoded(range(200), np.full(200, 3, np.float32).view(np.uint32), SHORT | EITHER))
    assert is_short(encoded(range(1 << 14), [1] * (1 << 14), SHORT))
    assert not is_short(encoded(range((1 << 14) + 1), [1] * ((1 << 14) + 1), SHORT))  # a position has 14 bits
    packed = encoded(range(200), [1] * 200, 4)
    assert shorten(packed, np.empty(len(packed), np.uint64)) == 0


def a_record():
    """40 values with two raised, one large, three wide gaps and one of these long."""
    values, gaps = np.arange(40) % 15 + 1, np.full(40, 2)
    values[[3, 39]], values[20] = (16, 255), 300
    gaps[[5, 38]], gaps[17] = (64, 255), 256 + 130
    genes = np.cumsum(gaps + 1) - 1
    return encoded(genes.tolist(), values, SHORT, n_genes=1000), len(genes)


@pytest.mark.parametrize(
    ("byte", "value", "status"),
    [
        (4, 39, BAD_RECORD),  # of another size
        (8, 3, BAD_RECORD),  # more raised values than there is room for
        (11, 0x81, BAD_RECORD),  # millions of them
        (12, 2, BAD_RECORD),  # more large values
        (16, 2, BAD_RECORD),  # more long gaps
        (20, 200, BAD_RECORD),  # more wide gaps
        (24, 40, BAD_RECORD),  # positions beyond the last: of a long gap,
        (32, 40, BAD_RECORD),  # of a large value,
        (42, 40, BAD_RECORD),  # of a raised one,
        (48, 40, BAD_RECORD),  # and of a wide gap
        (42, 3, BAD_FORM),  # the same position again
        (45, 0, BAD_FORM),  # a wide gap that is none
        (-4, 0, BAD_FORM),  # a raised value that is none
        (-1, 1, BAD_FORM),  # padding
    ],
)
def test_every_rule_of_a_record_is_checked(byte, value, status):
    words, n = a_record()
    assert is_short(words)
    assert len(words) == 13
    assert status_of(words, n, 1000, COUNTS | SHORT)[:2] == (OK, OK)
    content = bytearray(words.tobytes())
    assert content[byte] != value
    content[byte] = value
    words = np.frombuffer(bytes(content), np.uint64).copy()
    words.view(np.uint32)[0] = record_checksum(words, CELL)
    checked, unpacked, *_ = status_of(words, n, 1000, COUNTS | SHORT)
    assert checked == status
    assert unpacked == (OK if status == BAD_FORM else status)


def test_a_short_record_without_a_value_is_read():
    words = np.zeros(3, np.uint64)
    words.view(np.uint32)[[2, 3]] = 1 << 31, 6 << 24
    words.view(np.uint32)[0] = record_checksum(words, CELL)
    assert status_of(words, 0, 5, COUNTS | SHORT)[:2] == (BAD_FORM, OK)  # as it is not shorter


def test_the_example_of_the_page():
    (text,) = re.findall(r"```text\n( 0  .*?)```", PAGE.partition("### Example of a short record")[2], re.DOTALL)
    record = bytes.fromhex("".join(line[4:27] for line in text.splitlines()))
    words, _ = a_record()
    assert words.tobytes() == record


def test_a_store_is_written_in_short_records_and_in_fewer_bytes(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.geometric(0.4, (40, 9000)) * (rng.random((40, 9000)) < 0.07)
    adata = ad.AnnData(sp.csr_matrix(x.astype(np.float32)))
    adata.var_names = [f"ENSG{gene:011d}" for gene in range(9000)]
    adata.write_h5ad(tmp_path / "a.h5ad")
    made = scd.convert(tmp_path / "a.h5ad", tmp_path / "a.cells", n_processes=1)
    assert (made.manifest.version, made.manifest.release) == (4, scd.__version__)
    (shard,) = made.manifest.shards
    assert (shard.file.n_bytes - 12 * 40) / shard.n_values < 1.45
    verify(tmp_path / "a.cells")
    scd.convert(tmp_path / "a.cells", tmp_path / "b.cells", n_processes=1)
    first, again = ((tmp_path / name / shard.file.path).read_bytes() for name in ("a.cells", "b.cells"))
    assert first == again
    found = Store.open(tmp_path / "b.cells").sources[0].read(np.arange(40))
    np.testing.assert_array_equal(found.to_scipy().toarray(), x)
