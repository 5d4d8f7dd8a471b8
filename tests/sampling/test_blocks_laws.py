"""S1 and S4 in blocks: every single draw is exact, a shuffle takes every cell once, and blocks are spread as promised.

Draws of one block depend on each other, so a chi-square takes one draw of each block: those at one place of it.
False alarms: each is compared with the quantile that chance passes once in 10⁵ times; the seeds are fixed.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.sampling.samplers import ShuffleSampler, WeightedSampler
from tests.sampling.drawn import assert_drawn_as, weightings

N_BLOCKS = 1_000_000


def at_place(sampler, place, n_blocks=N_BLOCKS, epoch=0):
    """The draws at one place of each of the first blocks: independent of each other."""
    stride = sampler.window // sampler.block_size
    starts = range(place * stride, n_blocks * sampler.block_size, sampler.window)
    return np.concatenate([sampler.draw(epoch, start, start + stride) for start in starts])


def blocks_and_weightings():
    for block_size, every in ((2, 1), (16, 1), (128, 5)):  # a draw of a block takes as long as the whole block
        for parameters in list(weightings())[::every]:
            yield pytest.param(block_size, *parameters.values, id=f"{block_size}-{parameters.id}")


@pytest.mark.parametrize(("block_size", "classes", "shares", "weights"), list(blocks_and_weightings()))
def test_every_draw_of_a_block_has_the_probabilities_of_the_cells(block_size, classes, shares, weights):
    sampler = WeightedSampler(
        weights,
        classes=classes,
        class_weights=shares,
        num_samples=N_BLOCKS * block_size,
        seed=1,
        block_size=block_size,
        window=block_size * N_BLOCKS // 4,
    )
    k = classes.max() + 1
    shares = np.ones(k) if shares is None else shares
    cell = np.where(classes < 0, 0, 1 if weights is None else weights)
    totals = np.bincount(classes[classes >= 0], cell[classes >= 0], k)
    probability = np.where(classes < 0, 0, (shares / shares.sum() / totals)[classes] * cell)
    rows = at_place(sampler, block_size // 3)
    assert len(rows) == N_BLOCKS
    assert_drawn_as(rows, probability)
    assert_drawn_as(classes[rows], shares / shares.sum())


@pytest.mark.parametrize("n", [1, 5, 16, 17, 40])
def test_a_last_block_that_is_short_or_alone_is_exact(n):
    weights = np.random.default_rng(n).random(n)
    weights[-1] = 3
    sampler = WeightedSampler(weights, num_samples=16 * N_BLOCKS, block_size=16, window=16 * 250_000)
    for place in (0, 7):
        assert_drawn_as(at_place(sampler, place), weights / weights.sum())


def test_cells_of_equal_weight_are_drawn_once_per_drawn_block():
    sampler = WeightedSampler(np.ones(4096), num_samples=64 * 160, block_size=16, window=64 * 16)
    draws = sampler.draw(3, 0, 64 * 160).reshape(-1, 16, 64).transpose(0, 2, 1).reshape(-1, 16)
    assert (draws // 16 == draws[:, :1] // 16).all()
    assert np.array_equal(np.sort(draws % 16, axis=1), np.tile(np.arange(16), (len(draws), 1)))
    assert len(np.unique(draws % 16, axis=0)) > len(draws) * 0.99  # each in an order of its own


@given(st.integers(1, 30), st.integers(2, 9), st.integers(1, 40), st.data())
def test_a_draw_in_blocks_depends_on_its_position_alone(n, block_size, stride, data):
    options = {"seed": data.draw(st.integers(0, 2**63)), "block_size": block_size, "window": block_size * stride}
    weighted = WeightedSampler(np.arange(1.0, n + 1), classes=np.arange(n) % 3, num_samples=500, **options)
    for sampler in (weighted, ShuffleSampler(500, **options)):
        start = data.draw(st.integers(0, 500))
        stop = data.draw(st.integers(start, 500))
        assert np.array_equal(sampler.draw(2, 0, 500)[start:stop], sampler.draw(2, start, stop))


@given(st.integers(1, 3000), st.integers(2, 40), st.integers(1, 100), st.integers(0, 2**63))
def test_a_shuffle_in_blocks_takes_every_cell_once(n, block_size, stride, seed):
    sampler = ShuffleSampler(n, seed=seed, block_size=block_size, window=block_size * stride)
    first, second = sampler.draw(0, 0, n), sampler.draw(1, 0, n)
    assert np.array_equal(np.sort(first), np.arange(n))
    assert np.array_equal(np.sort(second), np.arange(n))
    assert n < 50 or not np.array_equal(first, second)


def blocks_of(sampler, epoch):
    """The draws of an epoch, one line for each block."""
    stride = sampler.window // sampler.block_size
    draws = sampler.draw(epoch, 0, sampler.num_samples)
    return draws.reshape(-1, sampler.block_size, stride).transpose(0, 2, 1).reshape(-1, sampler.block_size)


def test_a_shuffle_draws_neighbours_as_a_unit_with_new_blocks_each_epoch():
    sampler = ShuffleSampler(1600, seed=1, block_size=16, window=16 * 25)
    first_cells = []
    for epoch in (0, 1):
        from_the_first = (blocks_of(sampler, epoch) - blocks_of(sampler, epoch)[:, :1] + 800) % 1600
        assert (np.ptp(from_the_first, axis=1) == 15).all()
        ordered = np.sort(blocks_of(sampler, epoch), axis=1)
        first_cells.append(set(ordered[ordered[:, -1] - ordered[:, 0] == 15, 0]))
    assert not first_cells[0] & first_cells[1]


def test_every_position_of_a_shuffled_epoch_has_equal_probabilities():
    rows = [ShuffleSampler(40, seed=seed, block_size=4, window=12).draw(0, 0, 40) for seed in range(20_000)]
    for place in (0, 1, 13, 39):
        assert_drawn_as(np.array(rows)[:, place], np.full(40, 1 / 40))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_all_draws_of_a_block_fall_to_one_rank_and_to_other_batches(world_size):
    global_batch, block_size = 64, 16
    n = 20 * block_size * global_batch * 2
    sampler = ShuffleSampler(n, block_size=block_size, window=block_size * global_batch * 2)
    position = np.empty(n, np.int64)
    position[sampler.draw(0, 0, n)] = np.arange(n)
    of_blocks = position[blocks_of(sampler, 0)]
    rank = of_blocks % global_batch // (global_batch // world_size)
    assert (rank == rank[:, :1]).all()
    assert all(len(set(batches)) == block_size for batches in of_blocks // global_batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_size": 0}, "block_size must be 1 or more, not 0"),
        ({"block_size": 8, "window": 20}, "window must be a multiple of block_size=8 draws, not 20"),
        ({"block_size": 8, "window": 0}, "window must be a multiple of block_size=8 draws, not 0"),
        ({"window": 64}, "window=64 applies to blocks, but block_size is 1"),
        ({"block_size": 8, "replacement": False}, "blocks of 8 cells need replacement=True"),
    ],
)
def test_blocks_that_cannot_be_drawn_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightedSampler(np.ones(30), num_samples=10, **arguments)
