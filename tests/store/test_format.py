"""The format as docs/explanation/store.md has it, read by a program written from it; and old stores, kept forever."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scdataloader.errors import StoreFormatError
from scdataloader.kernels.records.encode import encode_rows, most_words
from scdataloader.kernels.records.format import record_checksum
from scdataloader.store.export import to_anndata
from scdataloader.store.reader import Store
from scdataloader.store.verify import verify
from tests.store import reference_store
from tests.store.fuzz_files import digest, sealed
from tests.store.kept_stores import IN_SHORT, KEPT, SOURCES
from tests.store.reference_store import read_record, read_store
from tests.store.store_damage import SHARD, index_of, patch, reseal
from tests.store.stores import Given, given_counts, given_floats, make_store

PAGE = (Path(__file__).parents[2] / "docs" / "explanation" / "store.md").read_text(encoding="utf-8")
DATA = Path(__file__).parent / "data"


def dense(cells, n_genes, dtype):
    made = np.zeros((len(cells), n_genes), dtype)
    for row, cell in enumerate(cells):
        made[row, list(cell)] = list(cell.values())
    return made


def check(folder, expected: list[Given]):
    """The reference reader, which is strict, finds in a store what it was made of."""
    for found, item in zip(read_store(folder), expected, strict=True):
        assert (found.name, found.kind) == (item.name, item.kind)
        rows = found.obs.pop("__row__") if "__row__" in found.obs else np.arange(len(found.obs))
        genes = found.var.pop("__position__")
        pd.testing.assert_frame_equal(found.obs, item.obs.iloc[rows])
        pd.testing.assert_frame_equal(found.var, item.var.iloc[genes])
        dtype = np.int64 if item.kind == "counts" else np.float32
        want = item.x.toarray()[np.asarray(rows)][:, genes]
        np.testing.assert_array_equal(dense(found.cells, len(genes), dtype), want)
        for cell, row in zip(found.cells, want, strict=True):
            assert list(cell) == np.flatnonzero(row).tolist()


@pytest.mark.parametrize("mixed", [False, True])
def test_the_page_says_all_that_is_needed_to_read_a_store(tmp_path, mixed):
    given = [given_counts("a", 9, 700, 0, per_shard=4), given_counts("b", 6, 400, 1)]
    check(make_store(tmp_path / "counts.cells", given, mixed=mixed), given)
    given = [given_floats("f", 7, 60, 2)]
    check(make_store(tmp_path / "floats.cells", given, mixed=mixed), given)


def test_the_reference_reader_has_the_code_of_the_page():
    (code,) = re.findall(r"```python\n(M = .*?)```", PAGE, re.DOTALL)
    source = Path(reference_store.__file__).read_text(encoding="utf-8")
    for function in re.split(r"\n(?=def )", code)[1:]:
        # without the types, which the page leaves out
        assert function.strip() in re.sub(r": (int|tuple\[int, \.\.\.\])|( -> int)(?=:\n)", "", source)


@settings(max_examples=200)
@given(words=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=24), cell=st.integers(0, 2**40))
def test_the_checksum_is_that_of_the_page(words, cell):
    assert record_checksum(np.array(words, np.uint64), cell) == reference_store.checksum(tuple(words), cell)


def test_the_example_of_the_page():
    (text,) = re.findall(r"```text\n( 0  d8.*?)```", PAGE, re.DOTALL)
    record = bytes.fromhex("".join(line[4:27] for line in text.splitlines()))
    cell = {5: 1, 6: 3, 10: 700, 270: 2, 271: 255, 2000: 1, 2001: 1, 2002: 4, 2003: 1}
    assert read_record(record, 3, floats=0) == cell
    words, offsets, sizes = np.empty(most_words(1, 9), np.uint64), np.empty(1, np.int64), np.empty(1, np.uint32)
    genes, bits = np.array(list(cell), np.int32), np.array(list(cell.values()), np.uint32)
    order = np.arange(3000, dtype=np.int32)
    n_words = encode_rows(np.array([0, 9]), genes, bits, order, False, 3, words, offsets, sizes)
    assert words[:n_words].tobytes() == record


@settings(max_examples=200)
@given(
    cell=st.dictionaries(
        st.integers(0, 4999),
        st.sampled_from([1, 2, 255, 256, 65535, 65536, 2**32 - 1]) | st.integers(1, 300),
        max_size=40,
    ),
    number=st.integers(0, 2**31),
)
def test_every_record_follows_the_page(cell, number):
    genes = np.array(sorted(cell), np.int32)
    bits = np.array([cell[gene] for gene in sorted(cell)], np.uint32)
    words = np.empty(most_words(1, len(cell)), np.uint64)
    offsets, sizes = np.empty(1, np.int64), np.empty(1, np.uint32)
    order = np.arange(5000, dtype=np.int32)
    n = encode_rows(np.array([0, len(cell)]), genes, bits, order, False, number, words, offsets, sizes)
    assert read_record(words[:n].tobytes(), number, floats=0) == cell


@pytest.mark.parametrize("name", sorted(KEPT))
def test_a_store_of_version_1_is_read_forever(name):
    store = Store.open(DATA / "store_v1" / name)
    verify(DATA / "store_v1" / name)
    assert store.manifest.version == 1
    assert [source.name for source in store.sources] == KEPT[name].sources
    for number, source in enumerate(KEPT[name].sources):
        expected = SOURCES[source]
        adata = to_anndata(store, number)
        pd.testing.assert_frame_equal(adata.obs, expected.obs)
        pd.testing.assert_frame_equal(adata.var, expected.var)
        np.testing.assert_array_equal(adata.X.toarray(), dense(expected.cells, expected.n_genes, expected.dtype))
        cells = store.sources[number].read(np.arange(store.sources[number].n_obs))
        assert cells.data.dtype == np.float32


@pytest.mark.parametrize(("version", "name"), [*((1, name) for name in KEPT), *((4, name) for name in IN_SHORT)])
def test_the_page_still_describes_the_stores_of_earlier_releases(version, name):
    folder, kept = DATA / f"store_v{version}" / name, (KEPT | IN_SHORT)[name]
    check(folder, [SOURCES[source].given() for source in kept.sources])
    assert json.loads((folder / "manifest.json").read_bytes())["version"] == version


def test_the_kept_stores_are_small():
    assert sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file()) < 250_000


@pytest.mark.parametrize("version", [0, 5, "1", True, None])
def test_another_version_is_refused_and_both_are_named(tmp_path, version):
    store = make_store(tmp_path / "a.cells", [given_counts("a", 3, 40, 0)])
    manifest = json.loads((store / "manifest.json").read_bytes())
    manifest["version"] = version
    (store / "manifest.json").write_bytes(sealed(manifest))
    with pytest.raises(StoreFormatError, match=rf"version is {version!r}, and .* this release reads versions 1 to 4"):
        Store.open(store)


def test_a_newer_version_names_the_release_that_wrote_it(tmp_path):
    store = make_store(tmp_path / "a.cells", [given_counts("a", 3, 40, 0)])
    manifest = json.loads((store / "manifest.json").read_bytes())
    (store / "manifest.json").write_bytes(sealed({**manifest, "release": "7.8.9", "version": 5}))
    with pytest.raises(StoreFormatError, match=r"version is 5, and release 7\.8\.9 wrote it; .* install a newer one"):
        Store.open(store)


def test_a_shard_of_another_version_is_refused(tmp_path):
    store = make_store(tmp_path / "a.cells", [given_counts("a", 3, 40, 0)])
    shard = store / "shards" / "00000.cells"
    shard.write_bytes(shard.read_bytes()[:8] + bytes([2]) + shard.read_bytes()[9:])
    with pytest.raises(
        StoreFormatError, match=r"00000.cells is damaged, or of another store: format version 2, expected 1"
    ):
        Store.open(store).sources[0].read(np.array([0]))


def test_a_shard_of_another_store_is_refused_though_its_numbers_are_the_same(tmp_path):
    one = make_store(tmp_path / "one.cells", [given_counts("a", 3, 40, 0, wide=False)])
    item = given_counts("a", 3, 40, 0, wide=False)
    item.x.data = 1 + item.x.data % 200
    other = make_store(tmp_path / "other.cells", [item])
    shards = [store / "shards" / "00000.cells" for store in (one, other)]
    assert shards[0].stat().st_size == shards[1].stat().st_size
    shutil.copy(*shards)
    with pytest.raises(StoreFormatError, match=r"or of another store: checksum of its last bytes"):
        Store.open(other).sources[0].read(np.array([0]))
    assert (
        digest(shards[0].read_bytes())
        == json.loads((one / "manifest.json").read_bytes())["shards"][0]["file"]["checksum"]
    )


@pytest.mark.parametrize(
    ("at", "width", "value", "what"),
    [
        (0, 1, 0, "first bytes"),
        (8, 4, 5, "format version"),
        (12, 4, 2, "flags"),
        (12, 4, 4, "flags"),
        (-32, 8, 5, "number of cells"),
        (-24, 8, 0, "number of values"),
        (-16, 8, 41, "number of genes"),
        (-8, 8, 0, "length of its index"),
        (-8, 8, (1 << 64) - 8, "length of its index"),
    ],
)
def test_every_number_of_a_shard_is_checked_when_it_is_opened(tmp_path, at, width, value, what):
    store = make_store(tmp_path / "a.cells", [given_counts("a", 3, 40, 0)])
    patch(store, SHARD, (at, width, value))
    reseal(store)
    with pytest.raises(StoreFormatError, match=rf"00000.cells is damaged, or of another store: {what}"):
        Store.open(store).sources[0].read(np.array([0]))


def test_an_index_of_the_right_length_but_for_fewer_cells(tmp_path):
    store = make_store(tmp_path / "a.cells", [given_counts("a", 4, 40, 0)])
    patch(store, SHARD, (-32, 8, 2), (-8, 8, index_of(store) + 8 * 2 + 4 * 2))
    reseal(store)
    with pytest.raises(StoreFormatError, match=r"number of cells 2, expected 4"):
        Store.open(store).sources[0].read(np.array([3]))


def test_an_index_that_does_not_begin_at_a_multiple_of_8(tmp_path):
    store = make_store(tmp_path / "a.cells", [given_counts("a", 4, 40, 0)])
    content, index = (store / SHARD).read_bytes(), index_of(store)
    foot = content[-48:-8] + (index + 4).to_bytes(8, "little")
    (store / SHARD).write_bytes(content[:index] + bytes(4) + content[index:-48] + foot)
    reseal(store)
    with pytest.raises(StoreFormatError, match=r"offset of its index, modulo 8, 4, expected 0"):
        Store.open(store).sources[0].read(np.array([3]))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sources__0__obs__path": "../secret/00000.parquet"}, "cannot be a file of a store"),
        ({"sources__0__obs__path": "/etc/passwd"}, "cannot be a file of a store"),
        ({"sources__0__obs__path": "shards/00000.cells"}, "cannot be a file of a store"),
        ({"shards__0__file__path": "shards/00000.cells\n"}, "cannot be a file of a store"),
        ({"shards__0__file__path": "shards/../shards/00000.cells"}, "cannot be a file of a store"),
        ({"shards__1__file__path": "shards/00000.cells"}, "lists a file twice"),
        ({"sources__1__genes": "0" * 32}, "has the gene table '0{32}', which is not listed"),
        ({"sources__1__space": 1}, "'b' has gene space 1, but there are 1"),
        ({"spaces__0__n_genes": 1 << 31}, "genes/00000.parquet cannot have 2,147,483,648 genes"),
        ({"spaces__0__file__path": "genes/../x.parquet"}, "cannot be a file of a store"),
        ({"spaces__0__file__path": "obs/00000.parquet"}, "lists a file twice"),
        ({"spaces": {}}, "has gene space 0, but there are 0"),
        ({"shards__0__source": 2}, "shards/00000.cells has source 2, but there are 2"),
        ({"shards__0__source": 1}, "source 'a' has 3 cells, but 0 in its shards"),
        ({"shards__0__n_cells": 1 << 62, "sources__0__n_cells": 1 << 62}, "do not fit into the"),
        ({"shards__0__n_values": 1 << 62}, "do not fit into the"),
        ({"sources__0__n_cells": 4}, "8 cells in sources, 7 in shards"),
        ({"sources__0__n_cells": -1}, "n_cells is -1, not a number"),
        ({"sources__0__n_cells": True}, "n_cells is True, not a number"),
        ({"sources__0__n_cells": 3.0}, "n_cells is 3.0, not a number"),
        ({"shards__0__source": "0"}, "source is '0', not a number"),
        ({"sources__0__name": 7}, "name is 7, not text"),
        ({"sources__0__uns_organism": ["human"]}, "uns_organism is .*, not text"),
        ({"sources__0__kind": "counts32"}, "kind is 'counts32', not"),
        ({"sources__0__color": "red"}, "SourceRecord has"),
        ({"sources": None}, "is not the manifest of a store, or damaged"),
        ({"genes": []}, "is not the manifest of a store, or damaged"),
    ],
)
def test_every_entry_of_a_manifest_is_checked(tmp_path, changes, why):
    store = make_store(tmp_path / "a.cells", [given_counts("a", 3, 40, 0), given_counts("b", 4, 40, 1)])
    reseal(store, **changes)
    with pytest.raises(StoreFormatError, match=rf"manifest.json .*{why}"):
        Store.open(store)
