"""Tally: counts against NumPy, statistics, ranks, and the loader."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.batches.full import Dense
from scdataloader.collection.collection import Collection
from scdataloader.kernels.draws.count import count_rows
from scdataloader.loading.loader import Loader
from scdataloader.sampling.options import Sampling
from scdataloader.sampling.rows import Rows
from scdataloader.sampling.samplers import SequentialSampler, ShuffleSampler, WeightedSampler
from scdataloader.sampling.tally import Tally
from scdataloader.testing import MemorySource, named_values
from tests.sampling.drawn import weigh

N = 1000
NAMES = ["a", "b", "c", "d", "e"]
CLASSES = np.random.default_rng(0).integers(-1, 5, N).astype(np.int32)


def tally_of(rows, **options):
    tally = Tally(N, CLASSES, NAMES, **options)
    for part in np.array_split(np.asarray(rows, np.int64), 7):
        tally.add(part)
    return tally


def counted(rows):
    return np.bincount(rows, minlength=N)


@given(
    rows=st.lists(st.integers(0, N - 1), max_size=200),
    shift=st.integers(0, 12),
    one_class=st.booleans(),
)
def test_the_kernel_counts_as_numpy_does(rows, shift, one_class):
    rows = np.array(rows, np.int64)
    classes = np.empty(0, np.int32) if one_class else CLASSES
    draws, counts = np.zeros(6, np.int64), np.zeros(-(-N >> shift), np.int32)
    count_rows(rows, classes, shift, draws, counts)
    of_class = np.zeros(len(rows), int) if one_class else CLASSES[rows]
    assert draws[:5].tolist() == [(of_class == c).sum() for c in range(5)]
    assert draws[5] == (of_class == -1).sum()
    assert np.array_equal(counts, counted(rows)[:: 1 << shift])


def test_shares_and_repeats_are_those_of_the_rows():
    rows = np.random.default_rng(1).integers(0, N, 3000)
    tally = tally_of(rows)
    assert tally.n_draws == 3000
    assert np.array_equal(tally.shares, np.bincount(CLASSES[rows] % 6, minlength=6) / 3000)
    assert tally.repeated_share == pytest.approx(1 - len(np.unique(rows)) / 3000)
    assert tally.effective_cells == pytest.approx(3000**2 / (counted(rows) ** 2).sum())
    assert tally.step == 1


@pytest.mark.parametrize(
    ("rows", "repeated", "effective"),
    [
        (range(100), 0, 100),
        ([7] * 100, 0.99, 1),
        ([*range(50)] * 2, 0.5, 50),
        ([0, 0, 0, 1], 0.5, 16 / 10),
    ],
)
def test_cases_that_can_be_counted_by_hand(rows, repeated, effective):
    tally = tally_of(list(rows))
    assert tally.repeated_share == pytest.approx(repeated)
    assert tally.effective_cells == pytest.approx(effective)


@pytest.mark.parametrize(("most", "step"), [(1000, 1), (999, 2), (500, 2), (499, 4), (100, 16), (1, 1024)])
def test_a_large_collection_is_tracked_at_every_2_to_the_k_th_cell(most, step):
    rows = np.random.default_rng(1).integers(0, N, 3000)
    tally = tally_of(rows, max_tracked=most)
    assert tally.step == step
    assert len(tally.counts) <= most
    assert np.array_equal(tally.counts, counted(rows)[::step])
    assert tally.n_draws == 3000  # classes are counted whole
    assert np.array_equal(tally.draws, tally_of(rows).draws)


def test_tracked_cells_represent_all():
    rows = WeightedSampler(np.arange(N) % 9, num_samples=20_000, seed=1).draw(0, 0, 20_000)
    whole, part = tally_of(rows), tally_of(rows, max_tracked=250)
    assert part.repeated_share == pytest.approx(whole.repeated_share, rel=0.05)
    assert part.effective_cells == pytest.approx(whole.effective_cells, rel=0.1)


def test_statistics_are_nan_before_the_first_draw():
    tally = Tally(10)
    assert np.isnan([tally.repeated_share, tally.effective_cells, *tally.shares]).all()


def test_a_tally_of_drawn_classes_counts_them():
    rows = np.arange(0, N, 3)
    sampling = Sampling(by="x", unknown_share=0.1)
    tally = Tally.of(weigh(CLASSES[rows], 5, sampling), Rows.of(rows, N))
    tally.add(rows)
    assert tally.names == [f"class {number}" for number in range(5)] + ["unknown"]
    assert tally.draws.tolist() == np.bincount(CLASSES[rows] % 6, minlength=6).tolist()
    one_class = Tally.of(weigh(np.zeros(len(rows), np.int32), 1, Sampling()), Rows.of(rows, N))
    one_class.add(rows)
    assert (one_class.names, one_class.draws.tolist()) == (["class 0", "unknown"], [len(rows), 0])
    assert Tally.of(None, Rows.of(rows, N)).names == ["all cells", "unknown"]


def test_an_epoch_is_counted_up_to_a_number_of_draws():
    sampler = WeightedSampler(np.arange(1.0, N + 1), num_samples=5000, seed=1)
    tally = Tally(N)
    tally.add_epoch(sampler, 3)
    assert np.array_equal(tally.counts, counted(sampler.draw(3, 0, 5000)))
    tally.reset()
    tally.add_epoch(sampler, 3, max_draws=700)
    assert np.array_equal(tally.counts, counted(sampler.draw(3, 0, 700)))


def test_tallies_of_several_ranks_add_up_to_that_of_all_draws():
    rows = np.random.default_rng(1).integers(0, N, 3000)
    whole = tally_of(rows, max_tracked=300)
    parts = [tally_of(rows[rank::3], max_tracked=300) for rank in range(3)]
    arrays = iter([sum(part.draws for part in parts), sum(part.counts for part in parts)])
    total = parts[0].summed(lambda _: next(arrays))
    assert np.array_equal(total.draws, whole.draws)
    assert np.array_equal(total.counts, whole.counts)
    assert total.effective_cells == whole.effective_cells
    assert parts[0].n_draws == 1000  # which the sum leaves alone


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (np.zeros(9, np.int32), "classes of 9 cells, but the collection has 10"),
        (np.full(10, 3, np.int32), "from -1 to 2, not from 3 to 3"),
        (np.full(10, -2, np.int32), "from -1 to 2, not from -2 to -2"),
    ],
)
def test_classes_that_do_not_fit_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        Tally(10, classes, ["a", "b", "c"])


@pytest.fixture(scope="module")
def collection():
    genes = [f"ENSG{i:011d}" for i in range(10)]
    return Collection.open([MemorySource("a", named_values(N, 10), genes, mapped=True)])


def test_a_loader_tallies_every_pass_from_its_start_or_where_it_resumed(collection):
    def loader():
        return Loader(collection, ShuffleSampler(N, seed=1), Dense(), batch_size=64, tally=Tally(N, CLASSES, NAMES))

    whole = loader()
    for epoch in range(2):
        rows = np.concatenate([batch["row"].numpy() for batch in whole])
        assert np.array_equal(rows, ShuffleSampler(N, seed=1).draw(epoch, 0, N))
        assert np.array_equal(whole.tally.counts, counted(rows))
        assert whole.n_drawn == N
    stopped = loader()
    stopped.set_epoch(1)
    batches = iter(stopped)
    for _ in range(5):
        next(batches)
    assert stopped.n_drawn == stopped.tally.n_draws == 320  # what was handed out, not what was read
    state = stopped.state_dict()
    stopped.close()
    resumed = loader()
    resumed.load_state_dict(state)
    assert np.array_equal(np.concatenate([batch["row"] for batch in resumed]), rows[320:])
    assert np.array_equal(resumed.tally.counts, counted(rows[320:]))


def test_a_tally_does_not_depend_on_the_keys_of_the_batch(collection):
    def collate(batch, rng):
        return {"x": Dense()(batch, rng)["x"]}

    loader = Loader(collection, SequentialSampler(100), collate, batch_size=30, tally=Tally(N))
    list(loader)
    assert loader.tally.counts[:100].tolist() == [1] * 100
    assert loader.tally.n_draws == 100


@pytest.mark.parametrize("n", [1, 5, 100])
def test_rows_that_only_keep_ranks_even_do_not_count(collection, n):
    tallies = [Tally(N) for _ in range(3)]
    for rank, tally in enumerate(tallies):
        options = {"batch_size": 8, "rank": rank, "world_size": 3, "tally": tally}
        list(Loader(collection, SequentialSampler(n), Dense(), **options))
    assert sum(tally.counts for tally in tallies).tolist() == [1] * n + [0] * (N - n)


def test_nothing_of_a_tally_enters_the_state(collection):
    options = {"sampler": ShuffleSampler(N, seed=1), "collate": Dense(), "batch_size": 64}
    assert Loader(collection, **options).state_dict() == Loader(collection, **options, tally=Tally(N)).state_dict()
