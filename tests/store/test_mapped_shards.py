"""What the bytes of a shard say is believed only where it can be, every time that they are read."""

import errno
import os
import resource
import sys

import numpy as np
import pytest

from scdataloader.errors import StoreFormatError
from scdataloader.kernels.records.decode import locate_records, reach
from scdataloader.kernels.records.format import Records, parts_of
from scdataloader.store.reader import Store
from tests.store.store_damage import SHARD, index_of, patch
from tests.store.stores import given_counts, make_store

INDEX = 96
"""Where the index begins."""


def located(begin, end, size):
    """(status, place, length, size) of the only cell of a shard in memory."""
    shard = np.zeros(INDEX // 8 + 3, np.int64)
    shard[INDEX // 8 :] = begin, end, size
    base, cell = np.array([shard.ctypes.data]), np.zeros(1, np.int64)
    records = Records(cell, *(np.full(1, -1) for _ in range(3)))
    status = locate_records(base, np.array([INDEX]), np.array([1]), cell, records)
    return status, records.address[0] - base[0], records.length[0], records.size[0]


@pytest.mark.parametrize(
    ("begin", "end", "size"),
    [(16, 32, 0), (16, 32, 8), (16, 40, 12), (24, INDEX, 36), (INDEX - 16, INDEX, 8)],
)
def test_what_can_be(begin, end, size):
    assert located(begin, end, size) == (-1, begin, end - begin, size)


@pytest.mark.parametrize(
    ("begin", "end", "size"),
    [
        (-16, 32, 0),
        (-(1 << 63), 32, 0),
        (16, 16, 0),
        (32, 16, 0),
        (16, INDEX + 8, 0),
        (INDEX, INDEX + 16, 0),
        (16, (1 << 63) - 8, 0),
        (1 << 62, -(1 << 63), 0),  # whose difference is positive in 64 bits
        (16, 24, 0),  # less than a header
        (20, 40, 0),
        (16, 36, 0),
        (20, 36, 0),
        (16, 32, 49),
        (16, 40, 73),
        (16, 32, (1 << 32) - 1),
    ],
)
def test_what_cannot_be(begin, end, size):
    assert located(begin, end, size)[0] == 0


def test_a_damaged_cell_is_refused_every_time_and_the_others_are_read(tmp_path):
    given = given_counts("a", 12, 40, 0)
    store = make_store(tmp_path / "a.cells", [given])
    offsets = np.frombuffer((store / SHARD).read_bytes(), np.int64, 12, index_of(store))
    patch(store, SHARD, (int(offsets[5]) + 16, 1, 99))
    source = Store.open(store).sources[0]
    for _ in range(2):
        with pytest.raises(StoreFormatError, match=r"00000.cells is damaged at cell 5 .*its checksum does not match"):
            source.read(np.arange(12))
    others = np.delete(np.arange(12), 5)
    np.testing.assert_array_equal(source.read(others).to_scipy().toarray(), given.sorted_x()[others].toarray())


def test_gaps_that_come_to_more_than_32_bits():
    n = 17_000_000
    words = np.zeros(16 + 2 * n, np.uint8)
    words[16 + n :] = 255
    words.view(np.uint32)[1] = n
    words = words.view(np.uint64)
    assert reach(words, parts_of(words)) == 256 * n > 1 << 32


def test_a_damaged_index_is_refused_where_all_of_it_is_read(tmp_path):
    given = given_counts("a", 12, 40, 0)
    store = make_store(tmp_path / "a.cells", [given])
    patch(store, SHARD, (index_of(store) + 8 * 13 + 4 * 5, 4, 1))
    source = Store.open(store).sources[0]
    with pytest.raises(StoreFormatError, match=r"00000.cells is damaged.*checksum of its index"):
        source.nnz()
    with pytest.raises(StoreFormatError, match=r"damaged at cell 5 "):
        source.read(np.arange(12))
    others = np.delete(np.arange(12), 5)
    np.testing.assert_array_equal(source.read(others).to_scipy().toarray(), given.sorted_x()[others].toarray())


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="maps need no descriptors")
def test_more_shards_than_files_that_may_be_open(tmp_path):
    store = Store.open(make_store(tmp_path / "s.cells", [given_counts("a", 40, 50, 0, per_shard=1)]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = os.dup(0) + 30
    os.close(limit - 30)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        with pytest.raises(OSError, match=rf"limit of {limit} open files.*`ulimit -n`") as caught:
            store.locate(np.arange(40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE
    assert caught.value.filename.startswith(str(store.path / "shards"))
    assert len(store.locate(np.arange(40)).rows) == 40
