"""All that can be wrong with a store is found by reading it whole, and told by file and cell."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from scdataloader.commands.main import main
from scdataloader.errors import StoreFormatError
from scdataloader.kernels.records.decode import BAD_CHECKSUM, BAD_RECORD, OK
from scdataloader.kernels.records.encode import COUNTS, encode_rows, most_words
from scdataloader.kernels.records.format import Records, record_checksum
from scdataloader.kernels.records.unpack import BAD_FORM, BAD_KIND, check_records
from scdataloader.store.manifest import Manifest
from scdataloader.store.reader import Store
from scdataloader.store.verify import Verification, verify
from scdataloader.store.writing.shard_writer import ShardWriter
from tests.store.fuzz_files import put
from tests.store.store_damage import SHARD, index_of, patch, reseal
from tests.store.stores import given_counts, given_floats, make_store


@pytest.fixture
def store(tmp_path):
    given = [given_counts("a", 9, 700, 0, per_shard=4), given_counts("b", 6, 400, 1)]
    return make_store(tmp_path / "s.cells", given)


@pytest.fixture
def mixed(tmp_path):
    given = [given_counts("a", 9, 700, 0), given_counts("b", 6, 400, 1)]
    return make_store(tmp_path / "m.cells", given, mixed=True)


def problems(store):
    with pytest.raises(StoreFormatError) as caught:
        verify(store)
    first, *rest = str(caught.value).split("\n  ")
    assert first.startswith(f"{store} is damaged, {len(rest)} problem")
    return [line.removeprefix(f"{store}/") for line in rest]


def test_a_whole_store(store, mixed):
    (store / "shards" / "00000.cells.partial").touch()
    (store / "notes.txt").touch()
    n_bytes = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    manifest = json.loads((store / "manifest.json").read_bytes())
    assert verify(store, progress=True) == Verification(
        n_files=10,
        n_bytes=n_bytes,
        n_cells=15,
        n_values=sum(shard["n_values"] for shard in manifest["shards"]),
        unnamed=("notes.txt", "shards/00000.cells.partial"),
    )
    assert verify(mixed).n_cells == 15


@pytest.mark.parametrize("name", ["store", "mixed"])
def test_a_flipped_bit_anywhere_is_found(name, request):
    store = request.getfixturevalue(name)
    rng = np.random.default_rng(0)
    for file in sorted(file for file in store.rglob("*") if file.is_file()):
        content = file.read_bytes()
        for at in [0, len(content) - 1, *rng.integers(len(content), size=12)]:
            damaged = bytearray(content)
            damaged[at] ^= 1 << rng.integers(8)
            file.write_bytes(damaged)
            with pytest.raises(StoreFormatError, match=file.name):
                verify(store)
        file.write_bytes(content)
    verify(store)


def test_all_that_is_wrong_is_told_at_once(store):
    patch(store, SHARD, (40, 1, 99))
    (store / "shards" / "00001.cells").unlink()
    (store / "shards" / "00002.cells").write_bytes(b"short")
    patch(store, "obs/00001.parquet", (50, 1, 0xAA))
    found = problems(store)
    assert [line.replace(f"{store}/", "").split(":")[0].split(" is ")[0].split(" has ")[0] for line in found] == [
        "shards/00001.cells",
        "shards/00002.cells",
        "obs/00001.parquet",
        SHARD,
        SHARD,
    ]
    assert "is missing; the manifest states" in found[0]
    assert "has 5 bytes; the manifest states" in found[1]
    assert "its checksum does not match" in found[2]
    assert "cell 0: its checksum does not match" in found[3]
    assert "the checksum is" in found[4]


def test_not_every_damaged_cell_is_named(tmp_path):
    store = make_store(tmp_path / "s.cells", [given_counts("a", 30, 100, 0)])
    offsets = np.frombuffer((store / SHARD).read_bytes(), np.uint64, 30, index_of(store))
    patch(store, SHARD, *((int(at) + 4, 4, 1000) for at in offsets))
    found = problems(store)
    assert len(found) == 12
    assert found[9] == f"{SHARD}: cell 9: its checksum does not match"
    assert found[10] == f"{SHARD}: 20 more cells: its checksum does not match"


def test_an_index_that_contradicts_itself(store):
    index = index_of(store)
    size = index + 8 * 5
    cases = {
        (index + 8, 8, 1 << 40): "impossible position or size",
        (index + 8, 8, 24): "impossible position or size",
        (index, 8, 24): "the records do not fill the bytes between header and index",
        (size, 4, 1 << 31): "values of its cells 2147483735, expected",
        (size, 4, 1): "values of its cells",
    }
    content = (store / SHARD).read_bytes()
    for change, why in cases.items():
        patch(store, SHARD, change)
        reseal(store)
        assert any(why in line for line in problems(store)), why
        (store / SHARD).write_bytes(content)
    reseal(store)
    verify(store)


def test_sources_of_cells_that_are_not_there_or_too_many(mixed):
    at = index_of(mixed) + 8 * 16 + 4 * 16
    patch(mixed, SHARD, (at, 4, 2), (at + 8, 4, 1 << 31))
    reseal(mixed)
    assert f"{SHARD}: cell 0: the index names a source that the store does not have" in problems(mixed)
    assert f"{SHARD}: cell 2: the index names a source that the store does not have" in problems(mixed)


def test_shards_with_other_cells_of_a_source_than_the_manifest_says(mixed):
    reseal(mixed, sources__0__n_cells=8, sources__1__n_cells=7)
    assert "the shards have 9 cells of a, the manifest states 8" in problems(mixed)


def test_values_of_the_other_kind(tmp_path):
    store = make_store(tmp_path / "f.cells", [given_floats("f", 3, 30, 0)])
    reseal(store, sources__0__kind="counts")
    assert problems(store) == [f"{SHARD}: the values are float32, the manifest states that f has counts"]
    patch(store, SHARD, (12, 4, 0))
    reseal(store, sources__0__kind="counts")
    assert any(f"{SHARD}: cell 0: it has float32 values in a shard of counts" in problem for problem in problems(store))


def test_digests_in_the_foot_count_as_well(store):
    patch(store, SHARD, (-48, 8, 7))
    reseal(store)
    assert problems(store) == [
        f"{SHARD}: the checksum at the end of the file does not match the bytes before the index"
    ]


def renumbered(frame):
    return frame.assign(__position__=range(len(frame)))


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("var", lambda frame: frame.iloc[::-1], "has gene ids that are not text, not sorted"),
        ("var", lambda frame: frame.assign(__position__=0), "has no column __position__ that numbers its 400 rows"),
        ("var", lambda frame: frame.drop(columns="__position__"), "has no column __position__"),
        ("var", lambda frame: renumbered(frame.iloc[90:]), ": it has a gene that its source does not have"),
        ("genes", lambda frame: frame.iloc[::-1], "has gene ids that are not text, not sorted, or not unique"),
        ("genes", lambda frame: frame.assign(gene="ENSG0"), "has gene ids that are not text, not sorted, or not"),
        ("genes", lambda frame: frame.rename(columns={"gene": "id"}), "has gene ids that are not text, not sorted"),
        ("genes", lambda frame: frame.assign(gene=range(len(frame))), "has gene ids that are not text, not sorted"),
        ("genes", lambda frame: frame.iloc[1:], "has 699 rows, the manifest states 700"),
        (
            "genes",
            lambda frame: frame.replace({"ENSG00000000000": "A"}),
            "has the gene 'ENSG00000000000', which is not",
        ),
        ("obs", lambda frame: frame.iloc[1:], "has 5 rows, the manifest states 6"),
        ("obs", lambda frame: frame.assign(__row__=1.5), "has no column __row__ that numbers its 6 rows"),
        ("obs", lambda frame: b"no table", "is not a table of a store"),
    ],
)
def test_tables_that_break_a_rule(store, name, change, why):
    manifest = json.loads((store / "manifest.json").read_bytes())
    source = manifest["sources"][1]
    tables = {
        "obs": source["obs"],
        "var": manifest["genes"][source["genes"]],
        "genes": manifest["spaces"][source["space"]]["file"],
    }
    path = store / tables[name]["path"]
    changed = change(pd.read_parquet(path))
    path.write_bytes(changed) if isinstance(changed, bytes) else changed.to_parquet(path)
    reseal(store)
    found = problems(store)
    assert any(why in line for line in found), found


@pytest.mark.parametrize("columns", [[{"field_name": "type"}], [{"field_name": "gone", "name": "gone"}], 5])
def test_columns_that_a_table_does_not_have(store, columns):
    path = next((store / "obs").iterdir())
    table = pq.read_table(path)
    stated = json.dumps({"index_columns": [], "column_indexes": [], "columns": columns}).encode()
    pq.write_table(table.replace_schema_metadata({b"pandas": stated}), path)
    reseal(store)
    source = next(source for source in Store.open(store).sources if source.obs_table.path == path)
    with pytest.raises(StoreFormatError, match="is not a table of a store"):
        source.obs(source.obs_columns)


def test_an_escape_that_is_no_text(store):
    reseal(store, layout="\ud800")
    with pytest.raises(StoreFormatError, match=r"manifest.json is not the manifest of a store"):
        Store.open(store)


def test_a_shard_of_no_cells_that_has_something_in_their_place(store):
    manifest = Manifest.load(store)
    with ShardWriter(store, "shards/00009.cells", kind="counts", n_genes=700) as writer:
        none = np.empty(0, np.int64), np.empty(0, np.uint32)
        writer.append_records(np.ones(1, np.uint64), *none)
        more = writer.finish(0)
    replace(manifest, shards=(*manifest.shards, more)).save(store)
    assert problems(store) == ["shards/00009.cells: the records do not fill the bytes between header and index"]


def test_cells_in_another_order_without_their_rows(mixed):
    table = json.loads((mixed / "manifest.json").read_bytes())["sources"][1]["obs"]["path"]
    pd.read_parquet(mixed / table).drop(columns="__row__").to_parquet(mixed / table)
    reseal(mixed)
    assert problems(mixed) == [f"{table} has no column __row__ that numbers its 6 rows"]


ALL_KNOWN = np.zeros(1, np.int64), np.ones(1000, np.bool_), np.array([0, 1000])
"""Genes that the source of a record has."""


def record(genes, values, *, floats=False):
    bits = np.array(values, np.float32).view(np.uint32) if floats else np.array(values, np.uint32)
    words, offsets, sizes = (
        np.empty(most_words(1, len(genes)), np.uint64),
        np.empty(1, np.int64),
        np.empty(1, np.uint32),
    )
    indptr, order = np.array([0, len(genes)]), np.arange(1000, dtype=np.int32)
    n = encode_rows(indptr, np.array(genes, np.int32), bits, order, floats, 0, words, offsets, sizes)
    return words[:n].copy()


@pytest.mark.parametrize(
    ("genes", "values", "byte", "width", "value", "status"),
    [
        ([1, 2], [1, 2], 16, 1, 9, OK),
        ([1, 2], [1, 2], 16, 1, 0, BAD_FORM),  # a stored zero
        ([1, 2], [1, 2], 20, 1, 1, BAD_FORM),  # no padding
        ([1, 2], [1, 2], 4, 4, 3, BAD_RECORD),  # of another size than the index says
        ([1, 600], [1, 2], 20, 4, 256, OK),
        ([1, 600], [1, 2], 20, 4, 0, BAD_FORM),  # a long gap that is none
        ([1, 600], [1, 2], 20, 4, 255, BAD_FORM),
        ([1, 600], [1, 2], 20, 4, 1024, BAD_RECORD),  # more genes than there are
        ([1, 400, 800], [1, 2, 3], 24, 4, 1, BAD_RECORD),  # two long gaps at a place
        ([1, 400, 800], [1, 2, 3], 24, 4, 0, BAD_RECORD),  # in disorder
        (range(20), [1] * 18 + [300, 301], 24, 4, 18, BAD_RECORD),  # two large values at a place
        (range(20), [1] * 18 + [300, 301], 24, 4, 17, BAD_RECORD),
        (range(10), [1] * 9 + [300], 20, 4, 256, OK),
        (range(10), [1] * 9 + [300], 20, 4, 255, BAD_FORM),  # a large value that is none
        (range(10), [1] * 9 + [300], 16, 4, 8, BAD_FORM),  # its own entry is not 0
        (range(10), [1] * 9 + [300], 16, 4, 10, BAD_RECORD),
    ],
)
def test_every_rule_of_a_record_is_checked(genes, values, byte, width, value, status):
    words = record(list(genes), values)
    content = bytearray(words.tobytes())
    put(content, byte, width, value)
    words = np.frombuffer(bytes(content), np.uint64).copy()
    words.view(np.uint32)[0] = record_checksum(words, 0)
    size, found = np.array([len(genes)]), np.zeros(1, np.uint8)
    at = Records(np.array([0]), np.array([words.ctypes.data]), np.array([words.nbytes]), size), np.array([1000])
    at += ALL_KNOWN
    check_records(*at, COUNTS, found)
    assert found[0] == status
    words.view(np.uint32)[0] ^= 1
    check_records(*at, COUNTS, found)
    assert found[0] == BAD_CHECKSUM


def test_the_largest_value_and_the_kind_of_a_record():
    for values, floats, status in (([7, 1 << 31], False, OK), ([7, 2], True, BAD_KIND)):
        words, found = record([0, 5], values, floats=floats), np.zeros(1, np.uint8)
        records = Records(np.array([0]), np.array([words.ctypes.data]), np.array([words.nbytes]), np.array([2]))
        at = records, np.array([1000]), *ALL_KNOWN
        assert check_records(*at, COUNTS, found) == (max(values) if status == OK else 0)
        assert found[0] == status


def test_no_store_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a store"):
        verify(tmp_path / "nowhere")
    with pytest.raises(StoreFormatError, match=r"is not a store .manifest.json is missing"):
        verify(tmp_path)


def test_from_the_command_line(store, capsys):
    (store / "more").touch()
    assert main(["verify", str(store)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{store} is undamaged: 15 cells, ")
    assert first.endswith("GB/s)")
    assert second == "not part of the store: more"
    patch(store, SHARD, (40, 1, 99))
    assert main(["verify", str(store)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {store} is damaged, 2 problems:\n  {store / SHARD}: cell 0: ")
