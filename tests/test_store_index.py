"""What an index says is believed only where it can be: no place outside of the records, no size beyond the length."""

import numpy as np
import pytest

from scdataloader.kernels.decode import locate_records

INDEX = 96
"""Where the index begins."""


def located(begin, end, size):
    """(status, place, length, size) of the only cell of a shard in memory."""
    shard = np.zeros(INDEX // 8 + 3, np.int64)
    shard[INDEX // 8 :] = begin, end, size
    base, cell = np.array([shard.ctypes.data]), np.zeros(1, np.int64)
    address, length, found = (np.full(1, -1) for _ in range(3))
    status = locate_records(base, np.array([INDEX]), np.array([1]), cell, cell, address, length, found)
    return status, address[0] - base[0], length[0], found[0]


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
        (16, 32, 9),
        (16, 40, 24),
        (16, 32, (1 << 32) - 1),
    ],
)
def test_what_cannot_be(begin, end, size):
    assert located(begin, end, size)[0] == 0
