"""Samplers: golden streams (change only if you mean to) and refusals."""

import re

import numpy as np
import pandas as pd
import pytest

from scdataloader.protocols import Sampler
from scdataloader.sampling.samplers import (
    SequentialSampler,
    ShuffleSampler,
    Subset,
    WeightedSampler,
    stream_fingerprint,
)
from scdataloader.sampling.splits import Split
from scdataloader.store.writing.scan import Options
from scdataloader.training.datamodule import DataModule

CLASSES = np.array([0, 0, 0, 1, 1, 2, -1, 0])
SAMPLERS = {
    "sequential": SequentialSampler(12),
    "shuffle": ShuffleSampler(12, seed=7),
    "shuffle of many": ShuffleSampler(1_000_000, seed=7),
    "classes": WeightedSampler(classes=CLASSES, num_samples=12, seed=7),
    "weights": WeightedSampler([0, 1, 2, 3, 0, 5], num_samples=12, seed=7),
    "both": WeightedSampler(np.arange(8.0), classes=CLASSES, class_weights=[1, 2, 0], num_samples=12, seed=7),
    "blocks": WeightedSampler(np.arange(8.0), classes=CLASSES, num_samples=12, seed=7, block_size=2, window=6),
    "shuffled blocks": ShuffleSampler(12, seed=7, block_size=3, window=6),
    "quotas": WeightedSampler(classes=CLASSES, class_weights=[3, 2, 1], num_samples=12, seed=7, replacement=False),
    "cells by quota": WeightedSampler(np.arange(1, 40), num_samples=12, seed=7, replacement=False),
    "curriculum": WeightedSampler(
        classes=CLASSES, class_weights=[9, 4, 0], num_samples=12, seed=7, curriculum_epochs=8
    ),
}
GOLDEN = {
    "sequential": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    "shuffle": [4, 5, 8, 7, 2, 11, 1, 3, 0, 6, 9, 10],
    "shuffle of many": [512230, 977205, 166928, 475046, 872713, 559425, 474879, 955254, 325812, 436498, 401935, 445630],
    "classes": [2, 2, 5, 5, 5, 1, 5, 3, 4, 1, 5, 4],
    "weights": [5, 5, 5, 5, 2, 2, 5, 3, 5, 3, 2, 5],
    "both": [7, 7, 4, 4, 3, 2, 4, 3, 4, 7, 3, 4],
    "blocks": [4, 3, 5, 5, 2, 4, 4, 2, 2, 5, 3, 3],
    "shuffled blocks": [11, 8, 1, 9, 0, 10, 5, 3, 6, 2, 7, 4],
    "quotas": [7, 4, 1, 3, 3, 5, 2, 0, 5, 0, 4, 7],
    "cells by quota": [16, 34, 15, 28, 31, 38, 10, 20, 37, 22, 36, 24],
    "curriculum": [2, 2, 4, 4, 3, 1, 4, 3, 2, 1, 3, 2],
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_stream_is_the_golden_one(name):
    assert isinstance(SAMPLERS[name], Sampler)
    assert SAMPLERS[name].draw(3, 0, 12).tolist() == GOLDEN[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs weights, classes or both"),
        ({"weights": [1, -2, 3]}, "weight of cell 1 is -2.0"),
        ({"weights": [1, 2, float("nan")]}, "weight of cell 2 is nan"),
        ({"weights": [float("inf"), 2]}, "weight of cell 0 is inf"),
        ({"weights": [0.0, 0.0]}, "all weights are zero"),
        ({"weights": []}, "at least one entry"),
        ({"weights": [1.0], "classes": np.array([0, 1])}, "1 weights for 2 cells"),
        ({"classes": np.array([-1, -1])}, "no cell has a class"),
        ({"classes": np.array([0, 1]), "class_weights": [0.0, 0.0]}, "all class weights are zero"),
        ({"classes": np.array([0, 1]), "class_weights": [1.0, -1.0]}, "weight of class 1 is -1.0"),
        ({"classes": np.array([0, 2]), "class_weights": [1.0, 1.0, 1.0]}, "class 1 has weight 1.0 but no cell"),
        ({"classes": np.array([0, 1]), "class_weights": [1.0]}, "1 class weights for 2 classes"),
        ({"classes": np.array([0, 1]), "class_weights": [1.0, 0.0, 2.0]}, "class 2 has weight 2.0 but no cell"),
        (
            {"weights": [1.0, 0.0], "classes": np.array([0, 1]), "class_weights": [1.0, 1.0]},
            "class 1 has weight 1.0 but",
        ),
    ],
)
def test_invalid_weights_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightedSampler(**arguments, num_samples=10)


@pytest.mark.parametrize("make", [SequentialSampler, ShuffleSampler, lambda n: WeightedSampler([1.0], num_samples=n)])
def test_an_empty_epoch_is_refused(make):
    with pytest.raises(ValueError, match="must be 1 or more, not 0"):
        make(0)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: ShuffleSampler(9, seed=seed),
        lambda seed: WeightedSampler([1.0, 2.0], num_samples=3, seed=seed),
        lambda seed: Split(val=0.5, seed=seed),
        lambda seed: DataModule("x.h5ad", seed=seed),
        lambda seed: Options(seed=seed),
    ],
)
def test_a_seed_is_an_integer_of_64_bits(make):
    for seed, error in ((-1, ValueError), (2**64, ValueError), (np.int64(-3), ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=re.escape(f"to 2**64 - 1, not {seed}")):
            make(seed)
    assert type(make(np.uint64(2**64 - 1)).seed) is int


class Bare:
    """A sampler with the members of the protocol alone."""

    num_samples = 20_000

    def __init__(self, step=7):
        self.step = step

    def draw(self, epoch, start, stop):
        return np.arange(start, stop) * (self.step + epoch) % 50


def test_a_sampler_without_a_fingerprint_is_identified_by_its_first_draws():
    rows = np.arange(100, 150)
    bare, subset = Bare(), Subset(sampler=Bare(), rows=rows)
    looked_up = Subset(sampler=Subset(sampler=Bare(), rows=np.arange(50)), rows=rows)
    assert stream_fingerprint(bare) == stream_fingerprint(Bare()) != stream_fingerprint(Bare(9))
    assert subset.fingerprint == Subset(sampler=Bare(), rows=rows).fingerprint != stream_fingerprint(bare)
    assert subset.fingerprint != Subset(sampler=Bare(9), rows=rows).fingerprint
    assert np.array_equal(looked_up.draw(1, 5, 9), subset.draw(1, 5, 9))
    assert subset.window is None
    weighted = SAMPLERS["blocks"]
    assert stream_fingerprint(weighted) == weighted.fingerprint
    assert Subset(sampler=weighted, rows=np.arange(8)).window == weighted.window


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("stretch", [(-1, 3), (5, 4), (0, 1_000_001)])
def test_positions_outside_the_epoch_are_refused(sampler, stretch):
    with pytest.raises(IndexError, match=r"not within an epoch of 1(2|000000) draws"):
        sampler.draw(0, *stretch)


@pytest.mark.parametrize(
    "classes",
    [
        np.array(["T", "B", "T", "unknown", "NK"]),
        np.array(["T", "B", "T", None, "NK"], dtype=object),
        ["T", "B", "T", "", "NK"],
        pd.Series(["T", "B", "T", None, "NK"]),
        pd.Categorical(["T", "B", "T", None, "NK"], categories=["T", "monocyte", "NK", "B"]),
        pd.array([2, 0, 2, None, 1], dtype="Int64"),
    ],
)
def test_classes_given_as_labels_are_drawn_as_their_codes(classes):
    coded = WeightedSampler(classes=np.array([2, 0, 2, -1, 1]), class_weights=[1, 0, 3], num_samples=50)
    labelled = WeightedSampler(classes=classes, class_weights=[1, 0, 3], num_samples=50)
    assert labelled.draw(0, 0, 50).tolist() == coded.draw(0, 0, 50).tolist()
    assert labelled.fingerprint == coded.fingerprint


def test_class_weights_by_label():
    classes = ["T", "B", "T", "NK"]
    by_label = WeightedSampler(classes=classes, class_weights={"T": 3, "B": 1}, num_samples=50)
    in_order = WeightedSampler(classes=classes, class_weights=[1, 0, 3], num_samples=50)
    assert by_label.fingerprint == in_order.fingerprint
    with pytest.raises(KeyError, match=r"class_weights names the class 'Tcell'.*'T'"):
        WeightedSampler(classes=classes, class_weights={"Tcell": 3}, num_samples=5)
    with pytest.raises(KeyError, match=r"names the class '0'.*one weight per code"):
        WeightedSampler(classes=CLASSES, class_weights={0: 3}, num_samples=5)


def test_classes_of_fractions_are_refused():
    with pytest.raises(TypeError, match="integer codes or labels, not numbers of dtype float64"):
        WeightedSampler(classes=[0.5, 1.0], num_samples=5)
