"""Label columns of a store in pieces and in files: the same codes, draws and states as without."""

import logging
import shutil

import numpy as np
import pandas as pd
import pytest

import scdataloader as scd
from scdataloader.collection.collection import Collection
from scdataloader.errors import StoreFormatError
from scdataloader.labels.column import label_column
from scdataloader.runtime import arrays
from scdataloader.store import tables
from scdataloader.testing import check_source

GENES = [f"ENSG{i:011d}" for i in range(20)]


def source(name, n=40, shift=0):
    types = [["B cell", "T cell", "unknown", None, "NK cell"][(i * i + shift) % 5] for i in range(n)]
    obs = {
        "type": pd.Categorical(types),
        "donor": [f"d{(i + shift) // 3 % 4}" for i in range(n)],
        "age": [None if i % 7 == 0 else float(i % 3) for i in range(n)],
    }
    x = (np.arange(n)[:, None] * (np.arange(20) % 3 == 0) + 1).astype(np.float32)
    return scd.testing.MemorySource(name, x, GENES, obs)


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Arrays of any collection are kept, and tables are read in pieces of three rows."""
    monkeypatch.setattr(arrays, "LEAST_CELLS", 1)
    monkeypatch.setattr(tables, "_ROWS_PER_GROUP", 3)
    monkeypatch.setattr(tables, "_GROUPS_PER_PIECE", 1)
    monkeypatch.setattr(tables, "_ROWS_PER_PIECE", 3)
    monkeypatch.setenv("SCDATALOADER_CACHE", str(tmp_path / "cache"))
    return tmp_path


def convert(out, layout="source", names="ab", **options):
    scd.convert(
        [source(names[0], **options), source(names[1], 30 + options.get("shift", 0), 1)],
        out,
        n_processes=1,
        layout=layout,
    )
    return out


def state(store, **options):
    made = {
        "labels": ["type", "donor", "age"],
        "sampling": scd.Sampling(by=["type", "donor"], scheme="uniform", unknown_share=0.1),
        "split": scd.Split(val=0.2),
        "batch_size": 8,
    }
    dm = scd.DataModule(store, **(made | options))
    dm.setup("fit")
    loader = dm.train_dataloader()
    batches = [(batch["row"].tolist(), batch["labels"].tolist()) for batch in loader]
    held = [batch["row"].tolist() for batch in dm.val_dataloader()]
    position = loader.state_dict()
    dm.teardown("fit")
    found = (dm.label_codes.tolist(), dm.label_codes.dtype, dm.encoders, batches, held, dm.drawn_classes.summary())
    return found, position["fingerprint"], dm.state_dict()


def files(folder):
    return sorted(folder.glob(".*.cells.cache/*/*.arrays"))


@pytest.mark.parametrize("layout", ["source", "shuffled"])
def test_runs_are_equal_without_files_with_new_ones_and_with_those_of_a_run_before(kept, monkeypatch, layout):
    store = convert(kept / "a.cells", layout)
    first, second = state(store), state(store)
    assert first == second
    n_files = len(files(kept))
    assert n_files == 6  # three columns, the codes of all, the classes of the split, and their index
    monkeypatch.setattr(tables, "_ROWS_PER_PIECE", 1 << 20)
    monkeypatch.setattr(arrays, "LEAST_CELLS", 1 << 22)
    shutil.rmtree(kept / ".a.cells.cache")
    assert state(store) == first
    assert not files(kept)


def test_a_second_run_reads_no_cell_table(kept, monkeypatch):
    store = convert(kept / "a.cells")
    first = state(store)
    read = []
    monkeypatch.setattr(tables.Table, "pieces", lambda table, *_: read.append(table.path))
    whole = tables.Table.read
    monkeypatch.setattr(
        tables.Table, "read", lambda table, *a, **b: (read.append(table.path), whole(table, *a, **b))[1]
    )
    assert state(store) == first
    assert "obs" not in {path.parent.name for path in read}


def test_files_of_a_store_that_was_replaced_are_not_used(kept):
    store = convert(kept / "a.cells")
    state(store)
    shutil.rmtree(store)
    convert(store, shift=2)
    replaced = state(store)
    shutil.rmtree(kept / ".a.cells.cache")
    assert state(store) == replaced


def test_selections_and_orders_of_sources_have_files_of_their_own(kept):
    store = convert(kept / "a.cells")
    whole = state(store)
    donors = {"donor": ["d0", "d1"]}
    selected = state(store, where=donors)
    assert len(selected[0][0]) < len(whole[0][0])
    assert state(store) == whole
    shutil.rmtree(kept / ".a.cells.cache")
    assert state(store, where=donors) == selected


def test_two_stores_share_the_cache_folder(kept):
    stores = [convert(kept / "a.cells"), convert(kept / "b.cells", shift=1, n=41)]
    assert state(stores) == state(stores)
    assert not files(kept)
    assert len(list((kept / "cache" / "arrays").rglob("*.arrays"))) == 6


def test_a_damaged_file_is_made_again(kept, caplog):
    store = convert(kept / "a.cells")
    first = state(store)
    for file in files(kept):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.unlink()
        file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert state(store) == first
    assert caplog.text.count("damaged") >= 6


def test_a_damaged_table_is_refused_in_pieces(kept):
    store = convert(kept / "a.cells")
    (table, _) = sorted((store / "obs").iterdir())
    content = bytearray(table.read_bytes())
    content[len(content) // 3] ^= 1
    table.write_bytes(content)
    with pytest.raises(StoreFormatError, match=rf"{table.name} is damaged"):
        label_column(Collection.open(store), "type")
    assert not files(kept)


def test_pieces_are_the_column(kept):
    store = convert(kept / "a.cells")
    collection = Collection.open(store)
    assert len(list(collection.pieces("type"))) == 24
    check_source(lambda: Collection.open(store).parts[0].source)
    column = label_column(collection, "age")
    assert column.labels == ("0", "1", "2")
    assert column.codes.dtype == np.int8
    assert column.counts.sum() == (column.codes >= 0).sum()
