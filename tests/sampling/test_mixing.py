"""S1 to S8 of mixtures: every window has the exact shares, and each corpus its own stream."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scdataloader as scd
from scdataloader.collection.collection import Collection
from scdataloader.errors import StateMismatchError
from scdataloader.kernels.draws.mixing import draws_before, floor_sum
from scdataloader.sampling.mixing import Mixture, MixtureSampler
from scdataloader.sampling.samplers import AFTER_CURRICULUM, SequentialSampler
from scdataloader.sampling.training_cells import CollectionCells
from scdataloader.testing import MemorySource, check_plan, check_sampler, named_values
from tests.sampling.drawn import assert_drawn_as

GENES = [f"ENSG{i:011d}" for i in range(6)]
SIZES = {"census": 250, "spatial": 40, "tahoe": 110}


def source(name, n, rng):
    obs = {
        "type": pd.Categorical(rng.choice(["B", "T", "unknown"], n, p=[0.3, 0.6, 0.1])),
        "donor": rng.integers(0, 4, n),
    }
    return MemorySource(name, named_values(n, 6), GENES, obs)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return {
        "tahoe": [source("t1", 60, rng), source("t2", 50, rng)],
        "census": source("c", 250, rng),
        "spatial": source("s", 40, rng),
    }


@pytest.fixture(scope="module")
def cells(data):
    return CollectionCells(Collection.open(data), np.arange(400))


SHARES = {"census": 0.6, "spatial": 0.15, "tahoe": 0.25}
OWN = {"tahoe": scd.Sampling(by="type", scheme="uniform"), "spatial": scd.Sampling(num_samples=13)}
SETS = scd.GroupedSampling(by=["type", "donor"], size=4)
PLANS = {
    "natural": Mixture(),
    "temperature": Mixture(temperature=3, num_samples=777),
    "shares": Mixture(shares=SHARES, num_samples=1000, window=37),
    "by epoch": Mixture(shares={"census": [1, 0.5, 0.2], "spatial": [0, 0.5], "tahoe": [0, 0, 0.3]}, window=64),
    "own plans": Mixture(
        shares=SHARES,
        sampling={"tahoe": scd.Sampling(by="type", scheme="uniform"), "spatial": scd.Sampling(num_samples=13)},
    ),
    "one plan": Mixture(sampling=scd.Sampling(by="type", unknown_share=0.2, replacement=False)),
    "sets": Mixture(shares=SHARES, sampling=SETS, window=40),
}
GOLDEN = {
    "shares": [141, 52, 83, 275, 356, 280, 98, 104, 144, 209, 326, 332],
    "by epoch": [352, 371, 385, 394, 14, 363, 397, 395, 23, 396, 201, 378],
    "own plans": [272, 300, 46, 284, 322, 32, 153, 377, 82, 57, 267, 387],
    "sets": [178, 277, 222, 235, 137, 358, 286, 140, 394, 387, 395, 383],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_stream_of_a_mixture_is_the_golden_one(cells, name):
    """Change only if you mean to."""
    sampler = PLANS[name].sampler(cells, seed=3, global_batch_size=16)
    assert sampler.draw(2, 20, 32).tolist() == GOLDEN[name]


@pytest.mark.parametrize("name", PLANS)
def test_it_is_a_plan(cells, name):
    """S1 over corpora, S2, S5, S6, by the laws of every plan."""
    check_plan(PLANS[name], cells, global_batch_size=16)


@given(st.integers(0, 200), st.integers(1, 99), st.integers(0, 500), st.integers(0, 500))
def test_floor_sum(n, m, a, b):
    assert floor_sum(n, m, a, b) == sum((a * i + b) // m for i in range(n))


class Numbered(SequentialSampler):
    """Draw t of corpus c is row ``10**9 * c + t``."""

    def __init__(self, code):
        super().__init__(10**8)
        self.code = code

    def draw(self, epoch, start, stop):
        return super().draw(epoch, start, stop) + epoch * 10**8 + self.code * 10**9


def mixture(seed):
    """A mixture of numbered draws, and its shares by epoch."""
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 6))
    schedule = rng.dirichlet(np.ones(k), size=int(rng.integers(1, 4))) * (rng.random(k) < 0.8)
    schedule[:, -1] += 1e-3
    schedule /= schedule.sum(axis=1, keepdims=True)
    window = int(rng.integers(1, 90))

    samplers = [Numbered(code) if schedule[:, code].any() else None for code in range(k)]
    return schedule, MixtureSampler(samplers, schedule, num_samples=40 * window - 7, window=window, seed=seed)


@given(st.integers(0, 2**32))
def test_shares_are_exact_in_every_window_and_in_the_long_run(seed):
    """S8."""
    schedule, sampler = mixture(seed)
    assert sampler.num_samples == sampler.n_windows * sampler.window
    total = np.zeros(schedule.shape[1])
    for epoch in range(5):
        shares = schedule[min(epoch, len(schedule) - 1)]
        codes = sampler.draw(epoch, 0, sampler.num_samples) // 10**9
        counts = np.stack([np.bincount(part, minlength=len(shares)) for part in codes.reshape(-1, sampler.window)])
        expected = sampler.window * shares
        assert (counts >= np.floor(expected - 1e-6)).all()
        assert (counts <= np.ceil(expected + 1e-6)).all()
        total += counts.sum(axis=0) - sampler.num_samples * shares
        assert (np.abs(np.cumsum(counts - expected, axis=0)) < 4).all()
    assert (np.abs(total) < 4 * len(schedule)).all()


@given(st.integers(0, 2**32))
def test_a_corpus_continues_its_own_stream_over_windows_and_epochs(seed):
    schedule, sampler = mixture(seed)
    drawn = np.concatenate([sampler.draw(epoch, 0, sampler.num_samples) for epoch in range(6)])
    for code in range(schedule.shape[1]):
        own = drawn[drawn // 10**9 == code] - code * 10**9
        assert np.array_equal(own, np.arange(len(own)))


@given(st.integers(0, 2**32), st.data())
def test_pieces_equal_the_whole(seed, data):
    _, sampler = mixture(seed)
    start = data.draw(st.integers(0, sampler.num_samples))
    stop = data.draw(st.integers(start, sampler.num_samples))
    assert np.array_equal(sampler.draw(2, 0, sampler.num_samples)[start:stop], sampler.draw(2, start, stop))


@pytest.mark.parametrize("position", [0, 5, 700])
def test_every_single_draw_is_of_a_corpus_with_the_probability_of_its_share(position):
    shares = np.array([[0.55, 0.004, 0.25, 0.196]])
    samplers = [Numbered(code) for code in range(4)]
    made = [MixtureSampler(samplers, shares, num_samples=1000, window=10, seed=seed) for seed in range(4000)]
    rows = np.concatenate([sampler.draw(0, position, position + 1) for sampler in made])
    assert_drawn_as(rows // 10**9, shares[0])


def test_a_late_epoch_does_not_overflow():
    _, sampler = mixture(4)
    assert len(np.unique(sampler.draw(AFTER_CURRICULUM, 0, 100))) == 100
    assert sampler._before(AFTER_CURRICULUM)[-1] > 2**31
    assert abs(sum(sampler._before(1 << 60)) - (1 << 60) * sampler.num_samples) == 0


def test_nothing_of_the_length_of_an_epoch_is_kept():
    samplers = [Numbered(0), Numbered(1)]
    sampler = MixtureSampler(samplers, np.array([[0.7, 0.3]]), num_samples=60 << 30, window=60)
    sampler.draw(0, 0, 60)  # compiles
    tracemalloc.start()
    rows = sampler.draw(0, sampler.num_samples - 60, sampler.num_samples)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    # the last draw of each corpus is, to within a few, its share of all
    last = sampler._before(1)
    assert last == pytest.approx([0.7 * sampler.num_samples, 0.3 * sampler.num_samples], abs=4)
    assert len(rows) == 60
    counted = np.empty(2, np.int64)
    draws_before(sampler.n_windows, sampler._edges[0], sampler._offset, counted)
    assert counted.tolist() == last
    with pytest.raises(ValueError, match="windows"):
        MixtureSampler(samplers, np.array([[0.7, 0.3]]), num_samples=(60 << 30) + 1, window=60)


def test_a_shuffled_corpus_is_passed_through_before_it_repeats(cells):
    """S4 of each corpus, whatever its share."""
    sampler = PLANS["shares"].sampler(cells, seed=1, global_batch_size=16)
    drawn = np.concatenate([sampler.draw(epoch, 0, sampler.num_samples) for epoch in range(3)])
    codes = np.asarray(cells.corpus)[drawn]
    for code, n in enumerate(SIZES.values()):
        own = drawn[codes == code]
        for at in range(0, len(own) - n, n):
            assert len(np.unique(own[at : at + n])) == n


def test_corpora_have_streams_of_their_own(cells):
    """The draws of one corpus do not depend on the shares of the others."""
    first = PLANS["own plans"].sampler(cells, seed=1, global_batch_size=16)
    other = Mixture(shares={"census": 0.1, "spatial": 0.1, "tahoe": 0.8}, sampling=OWN)
    second = other.sampler(cells, seed=1, global_batch_size=50)
    streams = []
    for sampler in (first, second):
        drawn = sampler.draw(0, 0, sampler.num_samples)
        streams.append(drawn[np.asarray(cells.corpus)[drawn] == 2][:80])
    assert np.array_equal(*streams)


def test_targets_are_by_corpus(cells):
    drawn = PLANS["by epoch"].describe(cells)
    assert drawn.names == ["census", "spatial", "tahoe"]
    assert drawn.sizes.tolist() == [250, 40, 110, 0]
    assert [drawn.target_shares(epoch).tolist() for epoch in (0, 1, 2, 9)] == [
        [1, 0, 0, 0],
        [0.5, 0.5, 0, 0],
        [0.2, 0.5, 0.3, 0],
        [0.2, 0.5, 0.3, 0],
    ]
    own = PLANS["own plans"].describe(cells)
    n_known = int((cells.obs(["type"])["type"][cells.corpus == 2] != "unknown").sum())
    assert own.sizes.tolist() == [250, 40, n_known, 0]
    assert "mixing 3 corpora: census 60.00%, spatial 15.00%, tahoe 25.00%" in own.summary()
    assert f"tahoe: sampling {n_known} cells in 2 classes" in own.summary()


def test_natural_shares_and_temperature(cells):
    assert Mixture().describe(cells).target_shares(0) == pytest.approx([250 / 400, 40 / 400, 110 / 400, 0])
    power = np.sqrt([250, 40, 110])
    assert Mixture(temperature=2).describe(cells).target_shares(0)[:-1] == pytest.approx(power / power.sum())
    assert Mixture(temperature=np.inf).describe(cells).target_shares(0)[:-1] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": {"a": 0.5, "b": 0.4}}, r"sum to 1; got a 0.5, b 0.4, in sum 0.9"),
        ({"shares": {"a": [0.5, 0.4], "b": 0.5}}, r"got a 0.4, b 0.5 in epoch 1, in sum 0.9"),
        ({"shares": {"a": 1.5, "b": -0.5}}, r"0 or more"),
        ({"shares": {"a": float("nan"), "b": 1}}, r"0 or more"),
        ({"shares": {"a": [], "b": 1}}, "a number"),
        ({"shares": {}}, "a number"),
        ({"shares": "uniform"}, "'natural', not 'uniform'"),
        ({"shares": {"a": 1}, "temperature": 2}, "temperature=2"),
        ({"temperature": 0}, "above 0"),
        ({"window": 0}, "window must be 1"),
        ({"num_samples": -1}, "num_samples must be 1"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Mixture(**options)


def test_what_is_not_a_plan_is_refused():
    with pytest.raises(TypeError, match="got str 'uniform'"):
        Mixture(sampling={"a": "uniform"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": {"census": 0.5, "tahoe": 0.5}}, "lacks the corpus 'spatial'"),
        ({"shares": SHARES | {"taho": 0}}, "'taho' .*'tahoe'"),
        ({"sampling": {"censu": scd.Sampling()}}, "sampling names the corpus 'censu' .*'census'"),
        (
            {"window": 30, "sampling": scd.GroupedSampling(by="type", size=4)},
            "window of 30 draws .* sets of 4 cells.* 32",
        ),
        ({"sampling": {"tahoe": SETS}}, "equal sets; got sets of 1 cells.*4 cells"),
        ({"sampling": {"tahoe": scd.Sampling(by="typ")}}, "corpus 'tahoe': .*'typ'"),
    ],
)
def test_mixtures_that_do_not_fit_the_cells_are_refused(cells, options, message):
    with pytest.raises((ValueError, KeyError), match=message):
        Mixture(**options).sampler(cells, global_batch_size=16)


def test_corpora_are_needed_and_have_cells(data, cells):
    alone = CollectionCells(Collection.open(data["census"]), np.arange(250))
    with pytest.raises(ValueError, match=r"not divided into any; give data as \{corpus: data\}"):
        Mixture().sampler(alone)
    some = CollectionCells(cells._collection, np.arange(110, 400))
    for plan in (Mixture(), Mixture(shares=SHARES)):
        with pytest.raises(ValueError, match="corpus 'tahoe' has no training cells"):
            plan.sampler(some)
    plan = Mixture(shares={"census": 0.5, "spatial": 0.5, "tahoe": 0})
    assert set(np.asarray(some.corpus)) == {0, 1}
    check_sampler(lambda: plan.sampler(some, global_batch_size=16), rows=some.rows)


def test_validation_is_in_sets_of_each_corpus(cells):
    """Every cell that is in a group at least once, corpus by corpus, by the plans' own evaluation."""
    some = CollectionCells(cells._collection, np.setdiff1d(np.arange(400), np.arange(110, 360)))  # none of "census"
    sampler = PLANS["sets"].evaluation.sampler(some, seed=1, global_batch_size=16)
    check_sampler(lambda: PLANS["sets"].evaluation.sampler(some, seed=1, global_batch_size=16), rows=some.rows)
    drawn = sampler.draw(0, 0, sampler.num_samples).reshape(-1, 4)
    corpus = np.asarray(CollectionCells(cells._collection, np.arange(400)).corpus)[drawn]
    assert (corpus == corpus[:, :1]).all()
    assert (np.diff(corpus[:, 0]) >= 0).all()
    codes, _ = some.classes(["type", "donor"])
    assert set(drawn.ravel()) == set(some.rows[codes >= 0])
    by_row = dict(zip(some.rows.tolist(), codes.tolist(), strict=True))
    assert all(len({by_row[row] for row in rows}) == 1 for rows in drawn.tolist())
    assert PLANS["natural"].evaluation is None
    assert PLANS["own plans"].evaluation is None


def test_a_module_validates_a_mixture_of_sets_in_sets(data):
    dm = scd.DataModule(data, labels=["type"], sampling=PLANS["sets"], split=scd.Split(val=0.2), batch_size=8)
    loaders = dm.train_dataloader(), dm.val_dataloader()
    assert all(len(batch["row"]) == 8 for loader in loaders for batch in list(loader)[:-1])
    validated = np.concatenate([batch["row"] for batch in loaders[1]])
    codes, _ = CollectionCells(dm.collection, dm.splits.val).classes(["type", "donor"])
    assert set(validated.tolist()) == set(dm.splits.val[codes >= 0].tolist())
    single = scd.DataModule(data, sampling=Mixture(), split=scd.Split(val=0.2), batch_size=8)
    assert np.concatenate([batch["row"] for batch in single.val_dataloader()]).tolist() == single.splits.val.tolist()


def test_ranks_and_resume(cells):
    """S5 and S6, by a real loader."""

    def loader(rank, world_size, batch_size):
        return scd.Loader(
            cells._collection,
            lambda size: PLANS["own plans"].sampler(cells, seed=1, global_batch_size=size),
            scd.Sparse(),
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
        )

    one = [batch["row"] for batch in loader(0, 1, 32)]
    assert {int((np.asarray(cells.corpus)[rows] == 2).sum()) for rows in one} == {8}
    two = [[batch["row"] for batch in loader(rank, 2, 16)] for rank in range(2)]
    assert np.array_equal(np.concatenate([p for step in zip(*two, strict=True) for p in step]), np.concatenate(one))
    first = loader(0, 1, 32)
    passed = iter(first)
    for _ in range(5):
        next(passed)
    resumed = loader(0, 1, 32)
    resumed.load_state_dict(first.state_dict())
    assert np.array_equal(np.concatenate([batch["row"] for batch in resumed]), np.concatenate(one[5:]))
    with pytest.raises(StateMismatchError, match="batch"):
        loader(0, 1, 16).load_state_dict(first.state_dict())
