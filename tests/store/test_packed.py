"""Packed records: as docs/explanation/store.md has them, with the values and genes of their cells; and stores."""

import json
import re
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import scdataloader as scd
from scdataloader.commands.main import main
from scdataloader.kernels.records.decode import BAD_RECORD, OK
from scdataloader.kernels.records.encode import COMPACT, COUNTS, EITHER, FLOATS, encode_rows, most_words
from scdataloader.kernels.records.format import parts_of, record_checksum
from scdataloader.kernels.records.packed import sum_fields
from scdataloader.kernels.records.unpack import BAD_FORM, BAD_KIND
from scdataloader.store.reader import Store
from scdataloader.store.verify import verify
from tests.store.one_record import CELL, encoded, status_of
from tests.store.reference_store import read_record, read_store

PAGE = (Path(__file__).parents[2] / "docs" / "explanation" / "store.md").read_text(encoding="utf-8")


def packed(genes, bits, kind=COUNTS, n_genes=None):
    """The words of one packed record."""
    return encoded(genes, bits, kind | COMPACT, n_genes)


SIZES = st.sampled_from([0, 1, 2, 15, 16, 17, 63, 64, 65, 200]) | st.integers(0, 400)
VALUES = st.sampled_from([1, 2, 4, 5, 16, 17, 256, 257, 1024, 1025, 65536, 65537, 1 << 24, (1 << 32) - 1])


@given(st.data(), SIZES, st.sampled_from([1, 3, 14, 60, 900, 70_000]), st.sampled_from([1, 2, 30, 400, 100_000]))
def test_records_hold_what_they_are_made_of(data, n, gap, top):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    genes = np.cumsum(rng.integers(1, gap + 1, n)) - 1
    values = rng.integers(1, top + 1, n)
    for value in data.draw(st.lists(VALUES, max_size=5)) if n else []:
        values[rng.integers(n)] = value
    words = packed(genes.tolist(), values)
    assert read_record(words.tobytes(), CELL, 0) == dict(zip(genes.tolist(), values.tolist(), strict=True))
    n_genes = int(genes[-1]) + 1 if n else 5
    checked, unpacked, indices, bits = status_of(words, n, n_genes, COUNTS | COMPACT)
    assert (checked, unpacked) == (OK, OK)
    assert indices.tolist() == genes.tolist()
    assert bits.tolist() == values.tolist()
    if n:  # no gene is let through that the space does not have
        assert status_of(words, n, n_genes - 1, COUNTS | COMPACT)[:2] == (BAD_RECORD, BAD_RECORD)
    assert status_of(words, n, n_genes, COUNTS)[0] == BAD_KIND


@pytest.mark.parametrize("kind", [FLOATS, EITHER])
def test_floats_are_kept_as_they_are(kind):
    values = np.array([1.5, -2, np.nan, np.inf, 1e-45], np.float32)
    for own in (values, np.array([1, 2, 70_000, 5, 1 << 24], np.float32)):
        words = packed([0, 3, 4, 90, 1000], own.view(np.uint32), kind)
        checked, unpacked, indices, bits = status_of(words, 5, 1001, kind | COMPACT)
        assert (checked, unpacked) == (OK, OK)
        assert indices.tolist() == [0, 3, 4, 90, 1000]
        assert bits.tolist() == own.view(np.uint32).tolist()


def test_genes_with_large_numbers():
    rank = np.array([(1 << 22) - 1, 0, 1], np.int32)
    words, offsets, sizes = np.empty(most_words(1, 3), np.uint64), np.empty(1, np.int64), np.empty(1, np.uint32)
    rows = np.array([0, 3]), np.arange(3, dtype=np.int32), np.ones(3, np.uint32)
    n_words = encode_rows(*rows, rank, COMPACT, CELL, words, offsets, sizes)
    assert list(read_record(words[:n_words].tobytes(), CELL, 0)) == sorted(rank.tolist())


@given(st.binary(max_size=3000), st.sampled_from([2, 4, 8]))
def test_sums_of_fields(planes, bits):
    expected = sum(byte >> shift & ((1 << bits) - 1) for byte in planes for shift in range(0, 8, bits))
    assert sum_fields(np.frombuffer(planes, np.uint8), bits) == expected


@pytest.mark.parametrize(
    ("byte", "value", "status"),
    [
        (4, 9, BAD_RECORD),  # of another size
        (11, 0x81, BAD_RECORD),  # millions of raised values
        (12, 1, BAD_RECORD),  # a large value, for which there is no room
        (15, 0x0D, BAD_RECORD),  # no such width
        (15, 0x54, BAD_RECORD),
        (16, 0, BAD_RECORD),  # fewer genes
        (-2, 1, BAD_FORM),  # padding
        (-3, 0, BAD_FORM),  # a raised value that is none
        (-4, 200, BAD_RECORD),  # one beyond the last
    ],
)
def test_every_rule_of_a_record_is_checked(byte, value, status):
    words = packed([1, 5, 9, 40, 41], [1, 2, 3, 4, 100], n_genes=64)
    parts = parts_of(words)
    assert (parts.raised, parts.end) == (len(words) * 8 - 4, len(words) * 8 - 2)
    content = bytearray(words.tobytes())
    content[byte] = value
    words = np.frombuffer(bytes(content), np.uint64).copy()
    words.view(np.uint32)[0] = record_checksum(words, CELL)
    checked, unpacked, *_ = status_of(words, 5, 64, COUNTS | COMPACT)
    assert checked == status
    assert unpacked == (OK if status == BAD_FORM else status)


def test_the_example_of_the_page():
    (text,) = re.findall(r"```text\n( 0  c1.*?)```", PAGE, re.DOTALL)
    record = bytes.fromhex("".join(line[4:27] for line in text.splitlines()))
    cell = {5: 1, 6: 3, 10: 700, 270: 2, 271: 255, 2000: 1, 2001: 1, 2002: 4, 2003: 1}
    assert read_record(record, CELL, 0) == cell
    assert packed(list(cell), list(cell.values())).tobytes() == record


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(0.3, 4, 300) * 0.4, (50, 300)) * rng.choice([1, 1, 1, 300], (50, 1))
    adata = ad.AnnData(
        sp.csr_matrix(x.astype(np.float32)), layers={"log": sp.csr_matrix(np.log1p(x).astype(np.float32))}
    )
    adata.var_names = [f"ENSG{i:011d}" for i in range(300)]
    adata.obs["kind"] = rng.choice(["a", "b"], 50)
    adata.obsm["X_pca"] = rng.normal(size=(50, 4)).astype(np.float32)
    adata.write_h5ad(tmp_path / "a.h5ad")
    return adata


@pytest.mark.parametrize("layout", ["source", "shuffled"])
def test_a_compact_store_has_the_cells_of_a_plain_one(tmp_path, source, layout):
    more = {"layout": layout, "n_processes": 1, "layers": ["log"], "obsm": ["X_pca"]}
    plain = scd.convert(tmp_path / "a.h5ad", tmp_path / "plain.cells", **more)
    compact = scd.convert(tmp_path / "a.h5ad", tmp_path / "compact.cells", compact=True, **more)
    assert plain.manifest.version == 4
    assert compact.manifest.version == 3
    size = [sum(shard.file.n_bytes - 12 * 50 for shard in store.manifest.shards) for store in (plain, compact)]
    assert size[1] < 0.9 * size[0]
    verify(tmp_path / "compact.cells")
    assert [len(cell) for cell in read_store(tmp_path / "compact.cells")[0].cells]
    rows = np.arange(50)
    for read in (
        lambda store: store.sources[0].read(rows),
        lambda store: store.sources[0].read_matrix("layers/log", rows),
    ):
        a, b = read(plain), read(compact)
        assert (a.indices.tolist(), a.data.tolist()) == (b.indices.tolist(), b.data.tolist())
    a, b = (store.sources[0].read_matrix("obsm/X_pca", rows) for store in (plain, compact))
    np.testing.assert_array_equal(a, b)


def test_stores_are_converted_and_appended_in_either_version(tmp_path, source):
    plain, out = tmp_path / "plain.cells", tmp_path / "compact.cells"
    scd.convert(tmp_path / "a.h5ad", plain, n_processes=1)
    assert main(["convert", str(plain), "--out", str(out), "--compact", "--processes", "1"]) == 0
    source[:7].copy().write_h5ad(tmp_path / "b.h5ad")
    scd.convert(tmp_path / "b.h5ad", out, append=True, n_processes=1)  # its records are not packed
    scd.convert(tmp_path / "b.h5ad", plain, append=True, compact=True, n_processes=1)
    for folder, versions in ((out, [3, 4]), (plain, [4, 3])):
        shards = [(folder / "shards" / f"0000{number}.cells").read_bytes() for number in range(2)]
        assert [shard[8] for shard in shards] == versions
        assert json.loads((folder / "manifest.json").read_bytes())["version"] == 4
        verify(folder)
        store = Store.open(folder)
        found = [part.read(np.arange(part.n_obs)).to_scipy().toarray() for part in store.sources]
        np.testing.assert_array_equal(
            np.concatenate(found), np.concatenate([source.X.toarray(), source.X[:7].toarray()])
        )
