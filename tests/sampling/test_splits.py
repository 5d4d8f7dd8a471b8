"""Splits: exact sizes, golden rows, records and refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import scdataloader as scd
from scdataloader.errors import StateMismatchError
from scdataloader.sampling.splits import Split, SplitRecord, make_splits
from scdataloader.testing import MemorySource, named_values


def by_sizes(sizes, split):
    """Split cells whose group is named for its place; groups lie one after the other."""
    groups = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return make_splits(len(groups), split, groups, [f"g{number:03d}" for number in range(len(sizes))])


@pytest.mark.parametrize(
    ("n_cells", "val", "test", "sizes"),
    [
        (10, 0.0, 0.0, (10, 0, 0)),
        (10, 0.2, 0.0, (8, 2, 0)),
        (10, 0.0, 0.3, (7, 0, 3)),
        (10, 0.1, 0.25, (6, 1, 3)),  # 2.5 is rounded up
        (1000, 0.333, 0.333, (334, 333, 333)),
    ],
)
def test_sizes_by_cell_are_exact(n_cells, val, test, sizes):
    splits = make_splits(n_cells, Split(val=val, test=test))
    assert (len(splits.train), len(splits.val), len(splits.test)) == sizes
    assert {rows.dtype for rows in (splits.train, splits.val, splits.test)} == {np.dtype(np.int64)}
    assert splits.groups is None


def test_golden_splits():
    """The split of a run must stay what it was: change these only if you mean to."""
    splits = make_splits(20, Split(val=0.2, test=0.1, seed=7))
    assert (splits.val.tolist(), splits.test.tolist()) == ([1, 4, 8, 16], [3, 6])
    splits = by_sizes([5, 4, 3, 3, 2, 2, 1], Split(val=0.2, test=0.1, by="donor", seed=7))
    assert splits.groups == {"train": ["g000", "g001", "g003", "g004"], "val": ["g002", "g006"], "test": ["g005"]}


def test_seeds_differ():
    assert len({tuple(make_splits(100, Split(val=0.1, seed=seed)).val) for seed in range(20)}) == 20
    assert len({tuple(by_sizes([3] * 50, Split(val=0.1, by="d", seed=seed)).groups["val"]) for seed in range(20)}) == 20


def test_every_group_has_its_chance():
    chosen = [
        name for seed in range(200) for name in by_sizes([3] * 10, Split(val=0.3, by="d", seed=seed)).groups["val"]
    ]
    counts = pd.Series(chosen).value_counts()
    assert len(counts) == 10
    assert counts.between(30, 95).all()  # 60 on average, of 200; 6 standard deviations are 39


def test_neither_the_global_generator_nor_the_hash_seed_is_used():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    splits = by_sizes([9, 5, 4, 2, 2, 1, 1], Split(val=0.2, by="d", seed=1))
    assert (np.random.get_state()[1] == before).all()
    program = (
        "import numpy as np; from scdataloader.sampling.splits import *;"
        "g = np.repeat(np.arange(7, dtype=np.int32), [9, 5, 4, 2, 2, 1, 1]);"
        "print(make_splits(24, Split(val=0.2, by='d', seed=1), g, [f'g{i:03d}' for i in range(7)]).record().digest)"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program]
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert output.strip() == splits.record().digest


def test_rows_of_unknown_group_train():
    groups = np.array([0, -1, 1, 2, -1, 0, 1, 2], np.int32)
    splits = make_splits(8, Split(val=0.25, by="donor"), groups, ["a", "b", "c"])
    assert {1, 4} <= set(splits.train)
    assert len(splits.val) == 2
    assert sorted(name for names in splits.groups.values() for name in names) == ["a", "b", "c"]


def test_names_without_cells_are_not_recorded_and_change_nothing():
    groups = np.array([1, 1, 3, 3, 4, 4, 4, 4], np.int32)
    splits = make_splits(8, Split(val=0.25, by="d"), groups, ["x", "a", "y", "b", "c"])
    same = make_splits(8, Split(val=0.25, by="d"), np.array([0, 0, 1, 1, 2, 2, 2, 2], np.int32), ["a", "b", "c"])
    assert splits.groups == same.groups
    assert splits.record().digest == same.record().digest


@pytest.mark.parametrize(
    ("sizes", "val", "test"),
    [
        ([298, 202, 129, 90, 60, 40, 30, 20, 10, 5, 3, 2, 1, 1], 0.1, 0.1),
        ([144, *range(1, 69)], 0.1, 0.2),
        ([20] * 11, 0.09, 0.0),  # a group is a little more than what is asked
        ([900, 50, 50], 0.05, 0.05),
        ([500, 499, 1], 0.5, 0.0),
        ([1] * 500, 0.1, 0.1),
        ([70, 14, 1], 10 / 85, 0.0),  # only the middle one will do
        ([100, 41, 41], 0.2, 0.2),
        ([1500, 8010, *[1] * 490], 0.1, 0.0),  # only the first will do, alone
        ([160] * 400 + [100], 100 / 64_100, 0.0),  # only the last
    ],
)
def test_splits_of_skewed_groups_are_within_half_of_their_target_or_much_closer(sizes, val, test):
    n_cells = sum(sizes)
    for seed in range(5):
        splits = by_sizes(sizes, Split(val=val, test=test, by="donor", seed=seed))
        for rows, share in ((splits.val, val), (splits.test, test)):
            assert abs(len(rows) - share * n_cells) <= 0.5 * share * n_cells
            if set(sizes) >= {1, 2, 3} or set(sizes) == {1}:
                assert abs(len(rows) - share * n_cells) <= 0.05 * share * n_cells


@pytest.mark.parametrize(
    ("sizes", "val", "test", "reason"),
    [
        (
            [500, 500],
            0.1,
            0.0,
            r"2 groups of 'donor' .* 10% for val \(100 cells\) of 1,000, .* 'g000' \(500\)",
        ),
        ([960, 20, 20], 0.1, 0.0, r"'g000' \(960\), 'g001' \(20\)"),  # the small ones together are too few
        ([500, 500], 0.4, 0.4, "left for training"),
        ([10], 0.5, 0.0, "the 1 group of"),
        ([], 0.5, 0.0, "0 groups"),
    ],
)
def test_groups_that_cannot_be_split_are_refused(sizes, val, test, reason):
    with pytest.raises(ValueError, match=reason):
        by_sizes(sizes, Split(val=val, test=test, by="donor"))


@pytest.mark.parametrize(
    ("n_cells", "val", "test", "reason"),
    [
        (10, 0.01, 0.0, r"val=0\.01 of 10 cells is less than one cell"),
        (10, 0.5, 0.04, r"test=0\.04 of 10 cells is less than one cell"),
        (2, 0.5, 0.49, "leave none for training"),
        (0, 0.0, 0.0, "leave none for training"),
    ],
)
def test_cells_that_cannot_be_split_are_refused(n_cells, val, test, reason):
    with pytest.raises(ValueError, match=reason):
        make_splits(n_cells, Split(val=val, test=test))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"val": 1.0}, "val must be a share"),
        ({"test": -0.1}, "test must be a share"),
        ({"val": float("nan")}, "val must be a share"),
        ({"val": 0.5, "test": 0.5}, "no cells for training"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_invalid_options_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        Split(**options)


def test_the_largest_seed_works():
    assert len(make_splits(10, Split(val=0.1, seed=2**64 - 1)).val) == 1


def test_groups_need_a_column_and_names():
    groups, names = np.zeros(3, np.int32), ["a"]
    for split, arguments in [
        (Split(val=0.3, by="d"), ()),
        (Split(val=0.3), (groups, names)),
        (Split(val=0.3, by="d"), (groups,)),
        (Split(val=0.3, by="d"), (groups[:2], names)),
        (Split(val=0.3, by="d"), (groups, ["a", "a"])),
    ]:
        with pytest.raises(ValueError, match="need"):
            make_splits(3, split, *arguments)


def test_a_record_is_saved_as_json_and_loaded(tmp_path):
    splits = by_sizes([5, 4, 3, 3, 2, 2, 1], Split(val=0.2, test=0.1, by="donor", seed=7))
    splits.save(tmp_path / "splits.json")
    saved = SplitRecord.load(tmp_path / "splits.json")
    assert saved == splits.record()
    assert saved.split == splits.split
    assert saved.counts == {"train": 14, "val": 4, "test": 2}
    assert saved.groups == splits.groups
    assert json.loads((tmp_path / "splits.json").read_text())["digest"] == saved.digest
    assert [path.name for path in tmp_path.iterdir()] == ["splits.json"]
    splits.check(saved)


def test_a_record_of_other_rows_is_refused_with_both_named(tmp_path):
    saved = make_splits(20, Split(val=0.2, seed=7)).record()
    with pytest.raises(StateMismatchError, match=r"20 cells .*seed=7.* 20 cells .*seed=8"):
        make_splits(20, Split(val=0.2, seed=8)).check(saved)


def test_rows_that_change_sides_are_other_rows():
    splits = make_splits(20, Split(val=0.2, test=0.2))
    with pytest.raises(StateMismatchError, match="different rows"):
        dataclasses.replace(splits, val_rows=splits.test_rows, test_rows=splits.val_rows).check(splits.record())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "split": {"x": 1}}', '{"format": 2}'])
def test_other_files_are_refused_as_records(tmp_path, text):
    path = tmp_path / "splits.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"splits\.json (is not a record|has format 2)"):
        SplitRecord.load(path)


def test_real_donors(real_data):
    import anndata

    donors = anndata.read_h5ad(real_data / "human_gut_scp1884.h5ad", backed="r").obs["donor_id"].astype("category")
    codes = donors.cat.codes.to_numpy().astype(np.int32)
    splits = make_splits(len(codes), Split(val=0.1, test=0.1, by="donor_id"), codes, list(donors.cat.categories))
    parts = [set(donors.iloc[rows]) for rows in (splits.train, splits.val, splits.test)]
    assert sum(map(len, parts)) == len(set(donors)) == 69
    assert (len(splits.val), len(splits.test)) == pytest.approx((102, 102), abs=2)


def predefined(values, **options):
    obs = {
        "split": pd.Categorical(["train"] * 5 + ["val", "dev"] + ["test"] * 2 + [None]),
        "held": [False] * 8 + [True] * 2,
    }
    source = MemorySource("cells", named_values(10, 3, seed=0), [f"ENSG{i:011d}" for i in range(3)], obs)
    return scd.DataModule(source, split=scd.Split(values=values, **({"by": "split"} | options))).splits


@pytest.mark.parametrize(
    ("values", "options", "rows"),
    [
        ({"train": "train", "val": ["val", "dev"], "test": "test"}, {}, ([0, 1, 2, 3, 4], [5, 6], [7, 8])),
        ({"val": ["val"], "test": ["test"]}, {}, ([0, 1, 2, 3, 4, 6, 9], [5], [7, 8])),  # all other cells train
        ({"train": ["train", "dev"], "val": "val"}, {}, ([0, 1, 2, 3, 4, 6], [5], [])),  # test cells are in no part
        ({"test": True}, {"by": "held"}, ([0, 1, 2, 3, 4, 5, 6, 7], [], [8, 9])),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_column_can_say_which_cell_is_in_which_part(values, options, rows, seed):
    splits = predefined(values, seed=seed, **options)
    assert (splits.train.tolist(), splits.val.tolist(), splits.test.tolist()) == rows


def test_a_predefined_split_is_recorded(tmp_path):
    splits = predefined({"train": "train", "val": "val"})
    splits.save(tmp_path / "splits.json")
    record = SplitRecord.load(tmp_path / "splits.json")
    assert record.groups == {"train": ["train"], "val": ["val"], "test": []}
    assert record.n_cells == 6
    splits.check(record)
    with pytest.raises(StateMismatchError, match="different rows"):
        predefined({"train": "train", "val": "dev"}).check(record)


@pytest.mark.parametrize(
    ("values", "options", "error", "message"),
    [
        ({"valid": "val"}, {}, ValueError, r"values has no part 'valid' \(did you mean 'val'\?\)"),
        (
            {"val": "validation"},
            {},
            ValueError,
            "'split' has no value 'validation', which the split has for val.*'dev'",
        ),
        ({"val": "val", "test": ["val"]}, {}, ValueError, "the value 'val' of 'split' for val and for test"),
        ({"val": "val"}, {"by": None}, ValueError, "by=None"),
        ({"val": "val"}, {"test": 0.1}, ValueError, r"replace shares, but .*test=0\.1"),
        ({"val": "val"}, {"by": "splits"}, KeyError, "no source has the obs column 'splits'"),
        ({"val": ["train", "val", "dev", "test"], "train": []}, {}, ValueError, "leaves no cells for training"),
    ],
)
def test_a_predefined_split_that_does_not_fit_is_refused(values, options, error, message):
    with pytest.raises(error, match=message):
        predefined(values, **options)


def test_whole_sources_are_held_out():
    genes = [f"ENSG{i:011d}" for i in range(3)]
    sources = [MemorySource(name, named_values(4, 3, seed=i), genes, {}) for i, name in enumerate("abc")]
    dm = scd.DataModule(sources, labels="source", split={"by": "source", "values": {"test": "b"}})
    assert dm.splits.test.tolist() == [4, 5, 6, 7]
    assert dm.classes == {"source": 3}
    assert dm.label_codes[:, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    shares = scd.DataModule(sources, split={"by": "source", "val": 1 / 3}).splits
    assert len(shares.val) == 4
    assert len(set(shares.val // 4)) == 1


def test_a_column_that_states_the_parts_is_not_split_by_shares_without_a_word(caplog):
    obs = {"split": ["train"] * 32 + ["Val"] * 4 + ["test"] * 4, "plate": list("abcd") * 10}
    source = MemorySource("cells", named_values(40, 3, seed=0), [f"ENSG{i:011d}" for i in range(3)], obs)
    assert scd.DataModule(source, split=scd.Split(val=0.1, test=0.1, by="split")).splits.groups["train"] == ["train"]
    assert "the values of 'split' are Val, test, train, but it is split by shares" in caplog.text
    caplog.clear()
    scd.DataModule(source, split=scd.Split(val=0.25, by="plate")).splits  # noqa: B018 (made on first use)
    assert not caplog.text
