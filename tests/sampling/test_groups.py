"""S1 to S7 of sets: cells of one group, then controls that match them, at consecutive positions."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scdataloader as scd
from scdataloader.collection.collection import Collection
from scdataloader.sampling.class_index import ClassIndex
from scdataloader.sampling.groups import GroupedSampling, MatchedControls, SetSampler
from scdataloader.sampling.training_cells import CollectionCells
from scdataloader.testing import MemorySource, check_plan, named_values
from tests.sampling.drawn import assert_drawn_as

GENES = [f"ENSG{i:011d}" for i in range(6)]
CTRL = {"perturbation": "ctrl"}
T_CTRL = {"perturbation": "ctrl", "type": "T"}
SHARED = Path(__file__).parents[3] / "shared/tokens/grouped_sets.json"


def opened(obs):
    """A collection of cells with these columns."""
    n = len(next(iter(obs.values())))
    return Collection.open(MemorySource("a", named_values(n, 6), GENES, obs))


def cells_of(obs, rows=None):
    collection = opened(obs)
    return CollectionCells(collection, np.arange(len(collection)) if rows is None else rows)


OBS = {
    "type": list("TTTTTTBBBBT"),
    "perturbation": ["ctrl", "ctrl", "A", "A", "A", "A", "ctrl", "A", "A", "ctrl", "unknown"],
    "batch": [0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0],
}


@pytest.fixture(scope="module")
def few():
    return cells_of(OBS)


@pytest.fixture(scope="module")
def many():
    """3,000 cells of 12 groups, of 1 to about 600 cells, and controls of each type and most batches."""
    rng = np.random.default_rng(0)
    types = np.array(list("ABCD"))[rng.choice(4, 3000, p=[0.5, 0.3, 0.15, 0.05])]
    perturbations = np.array(["ctrl", "x", "y", "z"])[rng.choice(4, 3000, p=[0.4, 0.4, 0.199, 0.001])]
    batches = rng.integers(0, 3, 3000)
    perturbations[(types == "D") & (batches == 2) & (perturbations == "ctrl")] = "x"
    return cells_of(
        {"type": types, "perturbation": perturbations, "batch": batches}, np.flatnonzero(rng.random(3000) < 0.9)
    )


def drawn(cells, plan, seed=3):
    """(targets, controls) of every set, as rows of the table of ``cells``, one row for each set."""
    sampler = plan.sampler(cells, seed=seed)
    sets = sampler.draw(1, 0, sampler.num_samples).reshape(-1, sampler.set_size)
    return sets[:, : plan.size], sets[:, plan.size :]


GOLDEN = {
    "sets": ({}, [1608, 2594, 565, 1115, 2099, 522, 196, 811, 333, 2481, 1950, 1641]),
    "quotas": ({"replacement": False}, [1683, 2564, 687, 2209, 2523, 1912, 158, 782, 220, 2487, 2266, 2285]),
    "uniform": (
        {"scheme": "uniform", "match": ["type", "batch"], "fallback": "type", "n_controls": 2},
        [2759, 1634, 1393, 383, 1689, 2564, 1950, 1641, 84, 2835, 277, 747],
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_stream_of_sets_is_the_golden_one(many, name):
    """Change only if you mean to."""
    options, stream = GOLDEN[name]
    sampler = GroupedSampling(by=["type", "perturbation"], size=4, controls=CTRL, num_sets=50, **options).sampler(
        many, seed=3
    )
    assert sampler.draw(2, 6, 18).tolist() == stream


@pytest.mark.parametrize("match", [None, ["type", "batch"]])
@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("scheme", ["natural", "uniform"])
def test_it_is_a_plan(many, match, replacement, scheme):
    """S1 over groups with their controls, S2, S5, S6, by the laws of every plan."""
    plan = GroupedSampling(
        by=["type", "perturbation"],
        size=5,
        controls=CTRL,
        n_controls=3,
        match=match,
        fallback=None if match is None else "type",
        replacement=replacement,
        scheme=scheme,
    )
    check_plan(plan, many, max_draws=4000)


def groups_and_sampler(seed, *, replacement, n_controls):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 9))
    codes = rng.permutation(np.concatenate([np.arange(k), rng.integers(0, k, rng.integers(1, 60))])).astype(np.int32)
    size, weights = int(rng.integers(1, 9)), rng.random(k) + 0.05
    pools = rng.integers(0, 2, len(codes)).astype(np.int32)
    pools[:2] = 0, 1  # k and the further cells are at least 2
    index = ClassIndex.of(pools)
    controls = MatchedControls(n=n_controls, index=index, pools=pools, by_cell=True) if n_controls else None
    sampler = SetSampler(
        ClassIndex.of(codes),
        weights / weights.sum(),
        size=size,
        num_sets=40,
        controls=controls,
        seed=seed,
        replacement=replacement,
    )
    return codes, pools, weights / weights.sum(), sampler


@given(st.integers(0, 2**32), st.booleans(), st.integers(0, 5))
def test_a_set_is_of_one_group_and_repeats_no_cell_needlessly(seed, replacement, n_controls):
    codes, pools, weights, sampler = groups_and_sampler(seed, replacement=replacement, n_controls=n_controls)
    sets = sampler.draw(1, 0, sampler.num_samples).reshape(40, sampler.set_size)
    for cells in sets:
        targets, controls = cells[: sampler.size], cells[sampler.size :]
        (group,) = set(codes[targets])
        times = np.bincount(targets, minlength=len(codes))[codes == group]
        assert times.max() - times.min() <= 1
        assert pools[controls].tolist() == [pools[targets[j % sampler.size]] for j in range(n_controls)]
    if not replacement:
        of_group = np.bincount(codes[sets[:, 0]], minlength=len(weights))
        assert (np.abs(of_group - 40 * weights) < 1 + 1e-6).all()


@given(st.integers(0, 2**32), st.booleans())
def test_without_replacement_every_cell_of_a_group_is_used_before_the_next_order(seed, replacement):
    codes, _, _, sampler = groups_and_sampler(seed, replacement=False, n_controls=int(replacement))
    sets = sampler.draw(1, 0, sampler.num_samples).reshape(40, -1)[:, : sampler.size]
    for group in range(codes.max() + 1):
        own, n = sets[codes[sets[:, 0]] == group], int((codes == group).sum())
        n_pieces = -(-n // sampler.size)
        for at in range(0, len(own) - n_pieces + 1, n_pieces):
            times = np.bincount(own[at : at + n_pieces].ravel(), minlength=len(codes))[codes == group]
            assert times.min() >= 1
            assert times.max() - times.min() <= 1


@given(st.integers(0, 2**32), st.booleans(), st.data())
def test_pieces_equal_the_whole(seed, replacement, data):
    *_, sampler = groups_and_sampler(seed, replacement=replacement, n_controls=2)
    start = data.draw(st.integers(0, sampler.num_samples))
    stop = data.draw(st.integers(start, sampler.num_samples))
    assert np.array_equal(sampler.draw(3, 0, sampler.num_samples)[start:stop], sampler.draw(3, start, stop))


def test_an_order_of_a_group_is_another_in_each_epoch_and_round():
    sampler = SetSampler(ClassIndex.of(np.zeros(60, np.int8)), np.ones(1), size=20, num_sets=6, replacement=False)
    orders = [tuple(part) for e in range(3) for part in sampler.draw(e, 0, 120).reshape(2, 60)]
    assert len(set(orders)) == 6


@pytest.mark.parametrize("replacement", [True, False])
def test_nothing_of_the_length_of_an_epoch_is_kept(replacement):
    groups = ClassIndex.of(np.arange(100, dtype=np.int32) % 7)
    num_sets = 10**12 if replacement else 2**31
    sampler = SetSampler(groups, np.full(7, 1 / 7), size=4, num_sets=num_sets, replacement=replacement)
    sampler.draw(0, 0, 4)  # compiles
    tracemalloc.start()
    cells = sampler.draw(0, sampler.num_samples - 400, sampler.num_samples)
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()
    assert (np.ptp(cells.reshape(100, 4) % 7, axis=1) == 0).all()


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("place", [0, 3])
def test_cells_of_a_group_and_controls_of_a_pool_are_equally_likely(many, replacement, place):
    """S1: single draws, one of each set, by chi-square."""
    plan = GroupedSampling(
        by=["type", "perturbation"], size=4, controls=CTRL, num_sets=20_000, replacement=replacement, scheme="uniform"
    )
    targets, controls = drawn(many, plan)
    groups = plan.describe(many)
    per_cell = np.zeros(3000)
    for group in np.flatnonzero(groups.n_targets):
        per_cell[many.rows[groups.codes == group]] = groups.weights[group] / groups.n_targets[group]
    assert_drawn_as(targets[:, place], per_cell)
    obs = many.obs(["type", "perturbation"])
    is_control = (obs["perturbation"] == "ctrl").to_numpy()
    per_control = np.zeros(3000)
    for kind in "ABCD":
        pool = many.rows[is_control & (obs["type"] == kind).to_numpy()]
        per_control[pool] = per_cell[many.rows[(obs["type"] == kind).to_numpy()]].sum() / len(pool)
    assert_drawn_as(controls[:, place], per_control)


def test_one_control_of_each_target_matches_in_every_column_of_match(many):
    plan = GroupedSampling(
        by=["type", "perturbation"], size=6, controls=CTRL, match=["type", "batch"], fallback=["type"], num_sets=3000
    )
    targets, controls = drawn(many, plan)
    obs = many.obs(["type", "perturbation", "batch"])
    kind, what, batch = (obs[column].astype(object).reindex(range(3000)).to_numpy() for column in obs)
    assert (what[controls] == "ctrl").all()
    assert (what[targets] != "ctrl").all()
    assert (kind[controls] == kind[targets]).all()
    without = (kind[targets] == "D") & (batch[targets] == 2)
    assert without.any()
    assert (batch[controls] == batch[targets])[~without].all()
    assert "D" not in set(kind[controls[~without & (batch[targets] == 2)]])
    n = int(((kind == "D") & (batch == 2)).sum())
    assert f"controls of {n} cells match by fallback, in type" in plan.describe(many).summary()


def test_controls_come_from_the_same_split(many):
    plan = GroupedSampling(by=["type", "perturbation"], size=8, controls=CTRL, num_sets=3000)
    for part in drawn(many, plan):
        assert set(part.ravel()) <= set(many.rows)


def test_controls_are_targets_only_on_request(few):
    plan = GroupedSampling(by=["type", "perturbation"], size=2, controls=CTRL, num_sets=300)
    targets, controls = drawn(few, plan)
    assert set(targets.ravel()) == {2, 3, 4, 5, 7, 8}
    assert set(controls.ravel()) == {0, 1, 6, 9}
    both = GroupedSampling(by=["type", "perturbation"], size=2, controls=CTRL, num_sets=300, controls_as_targets=True)
    targets, controls = drawn(few, both)
    assert set(targets.ravel()) == set(range(10))
    assert set(controls.ravel()) == {0, 1, 6, 9}


def test_small_groups_and_cells_left_out_are_reported(few, caplog):
    plan = GroupedSampling(by=["type", "perturbation"], size=3, controls=CTRL)
    plan.sampler(few)
    assert "sets of 3 cells repeat cells of 1 group with fewer: B | A (2)" in caplog.text
    assert plan.describe(few).summary() == (
        "sampling 2 sets of 3 cells from 2 groups, each with 3 controls; 1 cell left out, of unknown label or controls "
        "of no group"
    )


def test_sets_without_controls(few):
    plan = GroupedSampling(by="type", size=4, num_sets=100)
    targets, controls = drawn(few, plan)
    assert controls.shape == (100, 0)
    assert plan.sampler(few).n_controls == 0
    assert plan.describe(few).target_shares(0) == pytest.approx([4 / 11, 7 / 11, 0])
    assert all(len({OBS["type"][cell] for cell in cells}) == 1 == 5 - len(set(cells)) for cells in targets)


def test_the_source_can_be_a_column():
    sources = [
        MemorySource(name, named_values(9, 6, seed=i), GENES, {"type": list("TTTBBBBBB")})
        for i, name in enumerate("ab")
    ]
    cells = CollectionCells(Collection.open(sources), np.arange(18))
    plan = GroupedSampling(by=["source", "type"], size=3, num_sets=200)
    targets, _ = drawn(cells, plan)
    assert plan.describe(cells).names == ["a | B", "a | T", "b | B", "b | T"]
    assert (np.ptp(targets // 9, axis=1) == 0).all()


def test_other_spellings_of_a_value_of_controls():
    cells = cells_of({"type": list("TTTT"), "is_control": [True, False, False, True], "dose": [0.0, 1.0, 2.5, 0.0]})
    for controls in ({"is_control": True}, {"is_control": ["true"]}, {"is_control": 1}, {"dose": 0}, {"dose": ["0.0"]}):
        targets, drawn_controls = drawn(cells, GroupedSampling(by="type", size=2, num_sets=50, controls=controls))
        assert set(targets.ravel()) == {1, 2}
        assert set(drawn_controls.ravel()) == {0, 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be 1 or more, not 0"),
        ({"num_sets": 0}, "num_sets must be 1"),
        ({"n_controls": 0, "controls": CTRL}, "n_controls must be 1"),
        ({"by": []}, "by must name at least one column"),
        ({"by": ["type", "type"]}, "each once"),
        ({"match": ["type"]}, "match need controls"),
        ({"n_controls": 3, "controls_as_targets": True}, "n_controls and controls_as_targets need controls"),
        ({"controls": {}}, "names no column"),
        ({"controls": CTRL, "fallback": ["type"]}, r"fallback must be some of the columns of match, \['type'\]"),
        ({"controls": CTRL, "match": ["type", "batch"], "fallback": "plate"}, "got 'plate'"),
        ({"scheme": "even"}, "scheme must be one of"),
        ({"scheme": "power", "tau": 3}, "tau"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GroupedSampling(**({"by": ["type", "perturbation"], "size": 3} | options))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"by": "typ"}, KeyError, "typ"),
        ({"controls": {"perturbation": "control"}}, ValueError, "'control' in the column 'perturbation'.*'ctrl'"),
        ({"controls": {"perturbation": ["A", "ctrl"]}, "match": "type"}, ValueError, "none of 11 cells"),
        (
            {"controls": {"perturbation": "ctrl", "batch": 1, "type": "B"}, "match": []},
            ValueError,
            "no cell of the split has all",
        ),
        ({"controls": T_CTRL, "match": "type"}, ValueError, r"4 cells of 2 groups \(B \| A, B \| ctrl\)"),
        ({"scheme": "tree"}, ValueError, "tree"),
    ],
)
def test_cells_that_are_refused(few, options, error, message):
    with pytest.raises(error, match=message):
        GroupedSampling(**({"by": ["type", "perturbation"], "size": 3} | options)).sampler(few)


def test_any_control_is_a_fallback(few):
    options = {"by": ["type", "perturbation"], "size": 3, "controls": T_CTRL}
    plan = GroupedSampling(**options, match="type", fallback=[], num_sets=200)
    targets, controls = drawn(few, plan)
    assert set(controls[np.isin(targets, [7, 8])]) == {0, 1}
    assert "controls of 4 cells match by fallback, in no column" in plan.describe(few).summary()


def test_the_vectors(few):
    if not SHARED.exists():
        pytest.skip("no test vectors")
    vectors = json.loads(SHARED.read_text())
    obs = {name: vectors["cells"][name] for name in ("cell_type", "perturbation", "batch")}
    cells = cells_of(obs)
    plan = GroupedSampling(
        by=["cell_type", "perturbation"],
        size=vectors["size"],
        n_controls=vectors["controls"],
        controls=CTRL,
        match=["cell_type", "batch"],
        fallback="cell_type",
        num_sets=200,
    )
    groups = plan.describe(cells)
    for name, rows in vectors["groups"].items():
        assert (
            groups.index.cells[slice(*groups.index.starts[groups.names.index(name.replace("|", " | ")) :][:2])].tolist()
            == rows
        )
    pools = vectors["pools_same_cell_type_and_batch"]
    for targets, controls in zip(*drawn(cells, plan), strict=True):
        for target, control in zip(targets, controls, strict=True):
            pool = f"{obs['cell_type'][target]}|{obs['batch'][target]}"
            assert control in pools[pool]


def test_batches_of_whole_sets_on_every_rank_and_after_a_resume(many):
    """S5 and S6, by a real loader."""
    plan = GroupedSampling(by=["type", "perturbation"], size=4, controls=CTRL, num_sets=64)

    def loader(rank, world_size, batch_size):
        return scd.Loader(
            many._collection,
            plan.sampler(many, seed=1),
            scd.Sparse(),
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
        )

    one = np.concatenate([batch["row"] for batch in loader(0, 1, 32)])
    assert np.array_equal(one, plan.sampler(many, seed=1).draw(0, 0, 512))
    two = [[batch["row"] for batch in loader(rank, 2, 16)] for rank in range(2)]
    assert np.array_equal(np.concatenate([part for step in zip(*two, strict=True) for part in step]), one)
    first = loader(0, 1, 32)
    passed = iter(first)
    for _ in range(5):
        next(passed)
    resumed = loader(0, 1, 32)
    resumed.load_state_dict(first.state_dict())
    assert np.array_equal(np.concatenate([batch["row"] for batch in resumed]), one[5 * 32 :])
    with pytest.raises(ValueError, match=r"batch_size of 20 cells .* sets of 8"):
        loader(0, 1, 20)
