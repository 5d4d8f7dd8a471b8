"""Memory is used again when nobody refers to it, and never before."""

import gc
import pickle
import threading

import numpy as np
import pytest
import torch

from scdataloader.runtime import memory
from scdataloader.runtime.memory import BufferPool


def address(array):
    return array.__array_interface__["data"][0]


def test_what_is_still_referred_to_is_never_handed_out():
    pool = BufferPool()
    rng = np.random.default_rng(0)
    held = []
    for i in range(2000):
        array = pool.take(int(rng.integers(1, 500)), [np.int32, np.float32][i % 2])
        array[:] = i
        # kept as itself, as a slice of a slice, or as a tensor that shares its memory
        kept = [array, array[1:][1:], torch.from_numpy(array)[:2]][i % 3]
        held.append((i, kept))
        del array, kept
        if len(held) > 10:
            held.pop(int(rng.integers(len(held))))
        assert all((np.asarray(kept) == number).all() for number, kept in held)


def test_memory_is_used_again():
    pool = BufferPool()
    addresses = {address(pool.take(1000 + i % 7, np.float32)) for i in range(50)}
    assert len(addresses) == 1


def test_arrays_begin_at_multiples_of_64_bytes():
    pool = BufferPool()
    taken = [pool.take(n, np.uint8) for n in range(1, 300, 7)]
    assert {address(array) % 64 for array in taken} == {0}
    assert [len(array) for array in taken] == list(range(1, 300, 7))


@pytest.mark.parametrize(("stated", "kept"), [("400", 2), ("0", 0), ("1 KB", 6), (None, 9)])
def test_no_more_is_kept_than_the_budget(monkeypatch, stated, kept):
    monkeypatch.delenv(memory.BUDGET, raising=False)
    if stated is not None:
        monkeypatch.setenv(memory.BUDGET, stated)
    memory.budget.cache_clear()
    pool = BufferPool()
    taken = [pool.take(10, np.int64) for _ in range(9)]  # 157 bytes each, to be aligned and with headroom
    memory.budget.cache_clear()
    assert len(pool._buffers) == kept
    assert len({address(array) for array in taken}) == 9


def test_a_budget_that_is_no_size(monkeypatch):
    monkeypatch.setenv(memory.BUDGET, "much")
    memory.budget.cache_clear()
    with pytest.raises(ValueError, match=r"SCDATALOADER_BUFFERS is 'much'; set it to .* such as '200GB'"):
        BufferPool().take(1, np.int64)


def test_threads_never_share_a_buffer():
    pool, wrong = BufferPool(), []

    def work(number):
        for _ in range(500):
            array = pool.take(64, np.int64)
            array[:] = number
            if not (array == number).all():
                wrong.append(number)
            del array

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_pickled_pool_is_empty():
    pool = BufferPool()
    kept = pool.take(10, np.int64)
    assert not pickle.loads(pickle.dumps(pool))._buffers
    del kept
    gc.collect()
