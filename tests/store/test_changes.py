"""Law R6 for stores: a shard or a table that changes after it was opened ends in an error that names it."""

import os
import shutil

import numpy as np
import pytest

from scdataloader.collection.collection import Collection
from scdataloader.errors import SourceChangedError, StoreFormatError
from scdataloader.runtime.bus_errors import IS_HANDLED
from scdataloader.store.reader import Store
from tests.store.conversions import here, write_files

CHANGED = r"00000.cells (has changed since it was opened|was removed after it was opened|cannot be read)"


def cut(shard, _):
    os.truncate(shard, 40)


def overwritten(shard, other):
    with shard.open("r+b") as file:
        file.write(other.read_bytes().ljust(shard.stat().st_size, b"\0")[: shard.stat().st_size])


def copied_over(shard, other):
    shutil.copyfile(other, shard)


def replaced(shard, other):
    other.replace(shard)


def removed(shard, _):
    shard.unlink()


@pytest.fixture(params=["source", "shuffled"])
def stores(request, out, tmp_path):
    """A store, and the folder of another one."""
    for folder, store, n_cells in (("a", out, 13), ("b", tmp_path / "other.cells", 14)):
        (tmp_path / folder).mkdir()
        here(write_files(tmp_path / folder, (n_cells, 8)), store, layout=request.param)
    return Store.open(out), tmp_path / "other.cells"


@pytest.mark.skipif(not IS_HANDLED, reason="the signal ends the process on this system")
@pytest.mark.parametrize("change", [cut, overwritten, copied_over, replaced, removed])
def test_a_shard_that_changes(stores, change):
    store, other = stores
    collection, source = Collection.open(str(store.path)), store.sources[0]
    collection.read(np.arange(3))
    located = collection.locate(np.arange(len(collection)))
    source.read(np.arange(3))
    change(store.path / "shards" / "00000.cells", other / "shards" / "00000.cells")
    for read in (
        lambda: collection.read_located(located),
        lambda: collection.read(np.arange(len(collection))),
        lambda: source.read(np.arange(source.n_obs)),
        lambda: source.read_stored(np.arange(source.n_obs)),
        store.sizes,
    ):
        with pytest.raises(SourceChangedError, match=CHANGED):
            read()


@pytest.mark.parametrize("change", [overwritten, copied_over, replaced, removed])
def test_a_store_that_is_opened_again(stores, change):
    """Its shards are checked against the manifest, and their records once more."""
    store, other = stores
    source = store.sources[0]
    source.read(np.arange(source.n_obs))
    source.close()
    change(store.path / "shards" / "00000.cells", other / "shards" / "00000.cells")
    with pytest.raises(StoreFormatError, match=r"shards/00000.cells"):
        source.read(np.arange(source.n_obs))


def test_a_record_that_changes_while_a_store_is_closed(stores):
    store, _ = stores
    source = store.sources[0]
    source.read(np.arange(source.n_obs))
    source.close()
    shard = store.path / "shards" / "00000.cells"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreFormatError, match=r"shards/00000.cells is damaged at cell 0"):
        source.read(np.arange(source.n_obs))


def test_a_table_that_changes(stores):
    store, other = stores
    source = store.sources[0]
    column = source.obs_columns[0]
    source.obs([column])
    shutil.copyfile(other / "obs" / "00000.parquet", store.path / "obs" / "00000.parquet")
    with pytest.raises(SourceChangedError, match=r"obs/00000.parquet has changed"):
        source.obs([column])
