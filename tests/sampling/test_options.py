"""Sampling as a plan: golden streams, cell factors, the source as a column, and options that are refused."""

from __future__ import annotations

import jsonargparse
import numpy as np
import pandas as pd
import pytest

import scdataloader as scd
from scdataloader.collection.collection import Collection
from scdataloader.labels.hierarchy import Hierarchies
from scdataloader.protocols import DescribesClasses, HasColumns, SamplingPlan
from scdataloader.sampling.options import Sampling, plan_columns
from scdataloader.sampling.samplers import ShuffleSampler
from scdataloader.sampling.tally import Tally
from scdataloader.sampling.training_cells import CollectionCells
from scdataloader.sampling.weights import cell_factors
from scdataloader.testing import MemorySource, named_values
from tests.ontology.term_tables import ontology

GENES = [f"ENSG{i:011d}" for i in range(6)]
ONTOLOGY = ontology({"T:0": [], "T:1": ["T:0"], "T:2": ["T:1"], "T:3": ["T:1"], "T:4": ["T:0"]})
ROWS = np.flatnonzero(np.random.default_rng(1).random(400) < 0.8)


def source(name, n, rng):
    types = np.array(["T:2", "T:3", "T:4", "unknown"])[rng.choice(4, n, p=[0.6, 0.25, 0.1, 0.05])]
    obs = {
        "type": pd.Categorical(types),
        "donor": pd.Categorical(rng.choice(["d1", "d0"], n)),
        "quality": np.round(rng.random(n), 3) * (rng.random(n) < 0.9),
    }
    return MemorySource(name, named_values(n, 6), GENES, obs)


@pytest.fixture(scope="module")
def collection():
    rng = np.random.default_rng(0)
    return Collection.open([source("b", 250, rng), source("a", 150, rng)])


@pytest.fixture(scope="module")
def cells(collection):
    return CollectionCells(collection, ROWS, Hierarchies(collection, {"type": ONTOLOGY}))


GOLDEN = {
    "shuffle": ({}, [106, 259, 147, 253, 366, 212, 303, 260, 320, 52, 76, 314]),
    "shuffle blocks": ({"block_size": 4}, [71, 384, 110, 217, 15, 5, 245, 323, 214, 33, 359, 133]),
    "no classes": ({"num_samples": 300}, [348, 392, 126, 314, 369, 342, 290, 160, 27, 20, 388, 278]),
    "uniform": ({"by": "type", "scheme": "uniform"}, [343, 392, 133, 318, 373, 342, 262, 126, 32, 21, 394, 251]),
    "power": (
        {"by": ["type", "donor"], "scheme": "power", "tau": 0.3, "num_samples": 500},
        [327, 387, 125, 334, 359, 371, 251, 184, 25, 20, 391, 251],
    ),
    "saturating": (
        {"by": ["type", "donor"], "scheme": "saturating", "saturation": 20.0, "unknown_share": 0.1},
        [327, 387, 125, 334, 359, 371, 198, 158, 25, 31, 391, 251],
    ),
    "tree": (
        {"by": ["donor", "type"], "scheme": "tree", "num_samples": 77},
        [327, 395, 125, 343, 356, 319, 251, 184, 25, 14, 380, 251],
    ),
    "factors": (
        {"cell_factors": ["quality"], "num_samples": 90},
        [337, 386, 119, 307, 356, 328, 284, 152, 19, 16, 380, 275],
    ),
    "nnz": (
        {"by": "type", "cell_factors": ["quality", "nnz"]},
        [330, 391, 130, 311, 368, 334, 262, 164, 21, 19, 384, 262],
    ),
    "quotas": (
        {"by": "type", "scheme": "uniform", "replacement": False, "num_samples": 1000},
        [45, 299, 218, 180, 274, 228, 246, 254, 60, 380, 235, 52],
    ),
    "factor quotas": (
        {"cell_factors": ["quality"], "replacement": False, "num_samples": 40},
        [103, 355, 85, 370, 179, 110, 181, 51, 205, 318, 19, 117],
    ),
    "blocks": (
        {"by": "type", "scheme": "power", "cell_factors": ["quality"], "block_size": 8},
        [278, 387, 119, 205, 321, 350, 134, 83, 143, 127, 337, 103],
    ),
    "curriculum": ({"by": "type", "curriculum_epochs": 4}, [343, 392, 133, 318, 373, 347, 262, 179, 32, 21, 388, 251]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_stream_of_a_plan_is_the_golden_one(cells, name):
    """Change only if you mean to."""
    options, stream = GOLDEN[name]
    sampler = Sampling(**options).sampler(cells, seed=3, global_batch_size=16)
    assert sampler.draw(2, 0, 12).tolist() == stream


def test_sampling_is_a_plan_by_the_protocols_alone(cells):
    plan = Sampling(by="type", scheme="power", unknown_share=0.2)
    assert isinstance(plan, SamplingPlan)
    assert isinstance(plan, DescribesClasses)
    assert isinstance(plan, HasColumns)
    drawn = plan.describe(cells)
    assert drawn.names == ["T:2", "T:3", "T:4"]
    assert drawn.sizes.tolist() == np.bincount(drawn.codes % 4, minlength=4).tolist()
    assert drawn.target_shares(0)[-1] == pytest.approx(0.2)
    assert set(plan.sampler(cells, seed=0, global_batch_size=4).draw(0, 0, 300)) <= set(ROWS)


def test_an_unweighted_plan_draws_every_training_cell_once(cells):
    sampler = Sampling().sampler(cells, seed=1)
    assert isinstance(sampler.sampler, ShuffleSampler)
    assert np.array_equal(np.sort(sampler.draw(0, 0, len(ROWS))), ROWS)
    assert Sampling().describe(cells).summary() == f"sampling {len(ROWS)} cells"


def test_columns_of_a_plan_that_states_none():
    assert plan_columns(object()) == []
    assert plan_columns(Sampling(by="a")) == ["a"]


def quality(cells):
    """A function that is a cell factor."""
    return cells.obs(["quality"])["quality"]


class Quality:
    """A class whose instances are cell factors, as named in YAML."""

    def __init__(self, exponent: float = 1.0):
        self.exponent = exponent

    def __call__(self, cells):
        return cells.obs(["quality"])["quality"].to_numpy() ** self.exponent


def test_a_column_an_array_and_a_function_weigh_alike(collection, cells):
    array = collection.obs(["quality"])["quality"].to_numpy()
    samplers = [
        Sampling(by="type", cell_factors=factors, num_samples=500).sampler(cells, seed=2)
        for factors in (["quality"], "quality", array, [array], quality, [Quality()], array.astype(np.float32))
    ]
    first = samplers[0].draw(1, 0, 500)
    assert (array[first] > 0).all()
    for sampler in samplers[:-1]:
        assert sampler.fingerprint == samplers[0].fingerprint
    for sampler in samplers:
        assert np.array_equal(sampler.draw(1, 0, 500), first)


def test_factors_are_multiplied(cells):
    squared = cell_factors(cells, ["quality", quality])
    np.testing.assert_array_equal(squared, quality(cells) ** 2)
    np.testing.assert_array_equal(cell_factors(cells, [Quality(2.0)]), squared)
    assert cell_factors(cells, []) is None


def with_value(value, row=ROWS[2]):
    array = np.ones(400)
    array[row] = value
    return array


@pytest.mark.parametrize(
    ("factor", "reason"),
    [
        (np.ones(399), r"array has shape \(399,\), but there are 400 cells of the collection"),
        (np.ones((400, 1)), r"array has shape \(400, 1\)"),
        (np.float64(3), r"must be the name of a column, an array or a function"),
        (3, r"an array or a function, not 3"),
        ([[1.0, 2.0]], r"an array or a function, not \[1.0, 2.0\]"),
        (with_value(-1), f"array is -1.0 at cell {ROWS[2]}, and invalid in 1 of {len(ROWS)}"),
        (with_value(np.nan), f"array is nan at cell {ROWS[2]}"),
        (with_value(np.inf), f"array is inf at cell {ROWS[2]}"),
        (np.full(400, "x"), "array must be numeric"),
        (np.zeros(400), r"each of the \d+ training cells of known label has a factor of 0 \(cell_factors: array\)"),
        (lambda cells: np.ones(len(cells.rows) + 1), r"<lambda> has shape \(\d+,\), but there are \d+ training cells"),
        (lambda cells: 1.0, r"<lambda> has shape \(\)"),
        (lambda cells: -np.ones(len(cells.rows)), f"<lambda> is -1.0 at cell {ROWS[0]}"),
        (Quality(-1.0), "Quality is inf at cell"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_factors_that_cannot_weigh_are_refused(cells, factor, reason):
    with pytest.raises((ValueError, TypeError), match=reason):
        Sampling(cell_factors=factor).describe(cells)


def test_values_of_cells_that_do_not_train_do_not_matter(cells):
    outside = np.setdiff1d(np.arange(400), ROWS)
    array = with_value(np.nan, outside)
    assert Sampling(cell_factors=array).describe(cells).n_zero_left_out == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"unknown_share": 1.0}, "from 0 to below 1"),
        ({"by": ["a"], "unknown_share": -0.1}, "from 0 to below 1"),
        ({"num_samples": 0}, "at least 1"),
        ({"by": ["a", "b", "a"]}, "by names a column twice"),
        ({"cell_factors": ["nnz", "nnz"]}, "cell_factors names a column twice"),
        ({"by": ["nnz"]}, "in cell_factors"),
        ({"scheme": "uniform"}, "by names no column"),
        ({"unknown_share": 0.1}, "by names no column"),
        ({"by": "a", "scheme": "weird"}, "scheme must be one of"),
        ({"by": "a", "tau": float("nan")}, "tau"),
        ({"by": "a", "saturation": float("inf")}, "saturation"),
    ],
)
def test_invalid_options_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        Sampling(**options)


def test_columns_are_a_list_however_they_are_given():
    assert Sampling(by="a").columns == ["a"]
    assert Sampling(by=["a", "b"]).columns == ["a", "b"]
    assert Sampling().columns == []
    assert Sampling(cell_factors=["nnz"]).factors == ["nnz"]


def test_the_command_line_keeps_lists_as_lists():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--sampling", type=Sampling)
    parsed = parser.parse_args(["--sampling.by", '["cell_type", "donor"]', "--sampling.scheme", "uniform"])
    assert Sampling(**parsed.sampling.as_dict()) == Sampling(by=["cell_type", "donor"], scheme="uniform")


def test_the_command_line_takes_names_and_class_paths():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--sampling", type=Sampling)
    factor = {"class_path": "tests.sampling.test_options.Quality", "init_args": {"exponent": 2}}
    config = parser.parse_object({"sampling": {"cell_factors": ["quality", "nnz", factor]}})
    names_and_function = parser.instantiate(config).sampling.factors
    assert names_and_function[:2] == ["quality", "nnz"]
    assert names_and_function[2].exponent == 2
    assert "exponent: 2" in parser.dump(config)
    assert parser.instantiate(parser.parse_args(["--sampling.cell_factors", "quality"])).sampling.factors == ["quality"]


def test_the_source_is_a_column(cells, collection):
    drawn = Sampling(by="source", scheme="uniform").describe(cells)
    assert drawn.names == ["a", "b"]
    assert np.array_equal(drawn.codes, np.where(ROWS < 250, 1, 0))  # b comes first in the collection
    assert drawn.shares.tolist() == [0.5, 0.5, 0]
    joint = Sampling(by=["source", "donor"]).describe(cells)
    assert joint.names == ["a | d0", "a | d1", "b | d0", "b | d1"]
    assert cells.source_names == ["a", "b"]


def test_a_column_of_that_name_comes_before_the_source():
    sources = []
    for name in ("a", "b"):
        obs = {"source": pd.Categorical(["x", "y", "y"])} if name == "b" else {}
        sources.append(MemorySource(name, named_values(3, 6), GENES, obs))
    cells = CollectionCells(Collection.open(sources), np.arange(6))
    codes, labels = cells.classes(["source"])
    assert labels == [("x",), ("y",)]
    assert codes.tolist() == [-1, -1, -1, 0, 1, 1]


def test_training_cells_are_what_the_collection_has(cells, collection):
    assert cells.collection_size == 400
    assert np.array_equal(cells.nnz(), collection.nnz()[ROWS])
    frame = cells.obs(["donor", "quality"])
    assert np.array_equal(frame.index, ROWS)
    assert frame["quality"].tolist() == collection.obs(["quality"])["quality"].iloc[ROWS].tolist()
    codes, labels = cells.classes(["donor", "type"])
    for code, (donor, kind) in enumerate(labels):
        table = collection.obs(["donor", "type"]).iloc[ROWS[codes == code]]
        assert set(table["donor"]) == {donor}
        assert set(table["type"]) == {kind}
    unknown = collection.obs(["type"])["type"].iloc[ROWS[codes == -1]]
    assert set(unknown) == {"unknown"}
    assert cells.classes(["donor", "type"])[0] is codes  # read once
    with pytest.raises(KeyError, match="tissue"):
        cells.classes(["tissue"])


class Guides:
    """A third party's plan: whole runs of ``size`` neighbouring training cells, each begun anywhere."""

    def __init__(self, size: int = 8):
        self.size = size

    def sampler(self, cells, *, seed, global_batch_size):
        return Runs(cells.rows, self.size, seed)


class Runs:
    def __init__(self, rows, size, seed):
        self.rows, self.size, self.seed = rows, size, seed
        self.num_samples = 40 * size

    def draw(self, epoch, start, stop):
        positions = np.arange(start, stop)
        first = (positions // self.size * 7919 + self.seed + epoch) % (len(self.rows) - self.size)
        return self.rows[first + positions % self.size]


def test_a_plan_of_ones_own_trains_on_its_draws():
    dm = scd.DataModule(
        data=[source("a", 250, np.random.default_rng(0))],
        split=scd.Split(val=0.2),
        sampling=Guides(size=4),
        batch_size=16,
        seed=5,
    )
    dm.setup("fit")
    rows = np.concatenate([batch["row"].numpy() for batch in dm.train_dataloader()])
    dm.teardown("fit")
    expected = Runs(dm.splits.train, 4, 5).draw(0, 0, 160)
    assert np.array_equal(rows, expected)
    assert dm.drawn_classes is None
    assert Tally.of(dm.drawn_classes, dm.splits.train_rows).names == ["all cells", "unknown"]


@pytest.mark.parametrize(
    "values",
    [
        pd.array([3, 0, 1, 3], dtype="Int64"),
        pd.array([3, 0, 1, 3], dtype="Float32"),
        pd.array([True, False, True, True], dtype="boolean"),
        pd.Series([3, 0, 1, 3], dtype="Int16"),
    ],
)
def test_nullable_columns_are_cell_factors(values):
    obs = {"w": values}
    other = MemorySource("other", named_values(4, 6), GENES, {"w": np.array([1.0, 2, 3, 4])})
    both = Collection.open([MemorySource("cells", named_values(4, 6, seed=1), GENES, obs), other])
    cells = CollectionCells(both, np.arange(8))
    expected = [*np.asarray(values, np.float64), 1, 2, 3, 4]
    assert cell_factors(cells, Sampling(cell_factors=["w"]).factors).tolist() == expected
    own = pd.concat([pd.Series(values), pd.Series(values)])
    assert cell_factors(cells, Sampling(cell_factors=own).factors).tolist() == [*expected[:4], *expected[:4]]


@pytest.mark.parametrize("values", [pd.array([3, None, 1, 3], dtype="Int64"), [3.0, np.nan, 1, 3]])
def test_a_missing_factor_names_its_cell(values):
    opened = Collection.open(MemorySource("cells", named_values(4, 6), GENES, {"w": values}))
    with pytest.raises(ValueError, match="cell factor 'w' is nan at cell 1, and invalid in 1 of 4 cells"):
        cell_factors(CollectionCells(opened, np.arange(4)), ["w"])
