"""Weights that follow an ontology: worked examples and whole runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scdataloader as scd
from scdataloader.labels.hierarchy import Hierarchies
from scdataloader.sampling.training_cells import CollectionCells
from scdataloader.sampling.weights import Tree, class_weights
from scdataloader.testing import MemorySource, named_values
from tests.ontology.term_tables import digraph, even_split, ontology

NAMES = {
    "T:0": "cell",
    "T:1": "leukocyte",
    "T:2": "B cell",
    "T:3": "T cell",
    "T:4": "CD4",
    "T:5": "CD8",
    "T:6": "neuron",
    "T:7": "glia",
}
BLOOD = ontology(
    {
        "T:0": [],
        "T:1": ["T:0"],
        "T:2": ["T:1"],
        "T:3": ["T:1"],
        "T:4": ["T:3"],
        "T:5": ["T:3"],
        "T:6": ["T:0"],
        "T:7": ["T:0"],  # without cells
    },
    labels=NAMES,
)


def test_the_worked_example_of_the_documentation():
    tree = Tree.of(BLOOD, ["T:1", "T:2", "T:4", "T:5", "T:6"])
    weights = class_weights(np.array([5, 900, 40, 2, 3], np.int64), "tree", tree=tree)
    np.testing.assert_allclose(weights, [1 / 6, 1 / 6, 1 / 12, 1 / 12, 1 / 2])


@pytest.mark.parametrize(
    ("parents", "terms", "above", "weights"),
    [
        pytest.param(
            {"T:0": [], "T:1": ["T:0"], "T:2": ["T:0"], "T:3": ["T:1", "T:2"], "T:4": ["T:1"]},
            ["T:3", "T:4"],
            "T:2",
            [1 / 2, 1 / 2],
            id="the parent with one class below it before that with two",
        ),
        pytest.param(
            {
                "T:0": [],
                "T:1": ["T:0"],
                "T:2": ["T:0"],
                "T:3": ["T:1"],
                "T:4": ["T:2"],
                "T:5": ["T:4"],
                "T:6": ["T:3", "T:5"],
                "T:7": ["T:3"],
                "T:8": ["T:5"],
                "T:9": ["T:1"],
            },
            ["T:6", "T:7", "T:8", "T:9"],
            "T:5",
            [1 / 4, 1 / 4, 1 / 4, 1 / 4],
            id="of parents with as many, the one further down",
        ),
        pytest.param(
            {"T:0": [], "T:1": ["T:0"], "T:2": ["T:0"], "T:3": ["T:2", "T:1"]},
            ["T:3", "T:2", "T:1"],
            "T:1",
            [1 / 4, 1 / 2, 1 / 4],
            id="else the first by id",
        ),
        pytest.param(
            {"T:0": [], "T:1": ["T:0"], "T:2": ["T:1"], "T:3": ["T:1"], "T:4": ["T:2", "T:3"], "T:5": ["T:0", "T:4"]},
            ["T:1", "T:5"],
            "T:4",
            [1 / 2, 1 / 2],
            id="a class that four ways lead to counts once, in what is above it as well",
        ),
    ],
)
def test_a_term_with_several_parents_is_placed_below_one(parents, terms, above, weights):
    tree, counts = Tree.of(ontology(parents), terms), np.ones(len(terms), np.int64)
    np.testing.assert_allclose(tree.weights(counts), weights)
    several = [term for term in terms if len(parents[term]) > 1]
    assert [tree.graph.terms[tree.parents(counts)[tree.graph.terms.index(term)]] for term in several] == [above]


def test_the_place_of_a_term_depends_on_the_classes_that_have_cells():
    dag = ontology({"T:0": [], "T:1": ["T:0"], "T:2": ["T:0"], "T:3": ["T:1", "T:2"], "T:4": ["T:1"], "T:5": ["T:2"]})
    tree = Tree.of(dag, ["T:3", "T:4", "T:5"])
    np.testing.assert_allclose(tree.weights(np.array([9, 1, 0], np.int64)), [1 / 2, 1 / 2, 0])
    np.testing.assert_allclose(tree.weights(np.array([9, 1, 5], np.int64)), [1 / 4, 1 / 4, 1 / 2])


def test_several_roots_get_equal_weights():
    dag = ontology({"T:0": [], "T:1": ["T:0"], "T:2": ["T:0"], "T:3": [], "T:4": []})
    weights = Tree.of(dag, ["T:1", "T:2", "T:3", "T:4"]).weights(np.array([1, 1, 9, 0], np.int64))
    np.testing.assert_allclose(weights, [1 / 4, 1 / 4, 1 / 2, 0])


COUNTS = {"T:1": 20, "T:2": 300, "T:4": 60, "T:5": 10, "T:6": 10, "unknown": 100}


def source():
    types = np.repeat(list(COUNTS), list(COUNTS.values()))
    obs = {
        "type": pd.Categorical(np.random.default_rng(0).permutation(types)),
        "donor": pd.Categorical([f"d{i % 3}" for i in range(500)]),
        "quality": np.ones(500),
    }
    return MemorySource("a", named_values(500, 5), [f"ENSG{i:011d}" for i in range(5)], obs)


def module(**options):
    made = {"data": [source()], "hierarchies": {"type": BLOOD}, "batch_size": 50}
    return scd.DataModule(**(made | options))


def test_a_data_module_draws_down_the_tree():
    dm = module(labels=["type"], sampling=scd.Sampling(by="type", scheme="tree", num_samples=20_000))
    dm.setup("fit")
    codes = np.concatenate([batch["labels"][:, 0].numpy() for batch in dm.train_dataloader()])
    dm.teardown("fit")
    shares = dict(zip(dm.encoders["type"], np.bincount(codes, minlength=5) / 20_000, strict=True))
    expected = {"T:1": 1 / 6, "T:2": 1 / 6, "T:4": 1 / 12, "T:5": 1 / 12, "T:6": 1 / 2}
    assert shares == pytest.approx(expected, abs=4 * 0.5 / 20_000**0.5)
    assert (codes >= 0).all()


def test_joint_classes_share_the_weight_of_their_term_by_cells():
    drawn = module(sampling=scd.Sampling(by=["donor", "type"], scheme="tree")).drawn_classes
    table = pd.DataFrame({"share": drawn.shares[:-1], "cells": drawn.sizes[:-1]})
    table["type"] = [name.split(" | ")[1] for name in drawn.names]
    sums = table.groupby("type").sum()
    np.testing.assert_allclose(sums["share"], [1 / 6, 1 / 6, 1 / 12, 1 / 12, 1 / 2])
    for _, part in table.groupby("type"):
        np.testing.assert_allclose(part["share"] / part["share"].sum(), part["cells"] / part["cells"].sum())


def test_unknown_labels_have_their_own_share():
    drawn = module(sampling=scd.Sampling(by="type", scheme="tree", unknown_share=0.2)).drawn_classes
    np.testing.assert_allclose(drawn.shares, [0.8 / 6, 0.8 / 12, 0.8 / 12, 0.4, 0.8 / 6, 0.2])


def test_only_training_cells_count():
    dm = module(sampling=scd.Sampling(by="type", scheme="tree"))
    types = dm.collection.obs(["type"])["type"].to_numpy()
    rows = np.flatnonzero(types != "T:6")
    hierarchies = Hierarchies(dm.collection, {"type": BLOOD})
    drawn = dm.plan.describe(CollectionCells(dm.collection, rows, hierarchies))
    assert drawn.names == ["T:2", "T:4", "T:5", "T:1"]
    np.testing.assert_allclose(drawn.shares[:-1], [1 / 3, 1 / 6, 1 / 6, 1 / 3])


def test_terms_whose_cells_have_a_factor_of_zero_do_not_count():
    data = source()
    data._obs["quality"] = (data._obs["type"] != "T:6").astype(float)
    sampling = scd.Sampling(by="type", scheme="tree", cell_factors=["quality"])
    shares = module(data=[data], sampling=sampling).drawn_classes.shares
    np.testing.assert_allclose(shares[:-1], [1 / 3, 1 / 6, 1 / 6, 0, 1 / 3])


def test_the_tree_is_that_of_rolled_up_labels():
    roll_up = {"type": scd.RollUp(terms=["T cell"])}
    drawn = module(sampling=scd.Sampling(by="type", scheme="tree"), roll_up=roll_up).drawn_classes
    assert dict(zip(drawn.names, drawn.shares, strict=False)) == pytest.approx(
        {"T:1": 1 / 6, "T:2": 1 / 6, "T:3": 1 / 6, "T:6": 1 / 2}
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hierarchies": None}, r"exactly one column of by with an ontology, but none of \['type', 'donor'\] has one"),
        ({"hierarchies": {"type": BLOOD, "donor": BLOOD}}, "but type and donor have one each; name one"),
    ],
)
def test_a_tree_needs_the_ontology_of_just_one_column(options, message):
    dm = module(sampling=scd.Sampling(by=["type", "donor"], scheme="tree"), **options)
    with pytest.raises(ValueError, match=message):
        _ = dm.drawn_classes
    with pytest.raises(ValueError, match="by names no column"):
        scd.Sampling(scheme="tree")


@pytest.mark.parametrize(
    ("file", "golden"),
    [
        (
            "human_placenta_cl22.h5ad",
            {"cell": 1 / 6, "uterine smooth muscle cell": 1 / 6, "macrophage": 1 / 24, "B cell": 1 / 72},
        ),
        (
            "mouse_brain_merfish.h5ad",
            {"astrocyte": 1 / 420, "oligodendrocyte": 1 / 210, "macrophage": 1 / 14, "pericyte": 1 / 7},
        ),
    ],
)
def test_real_cells(real_data, file, golden):
    """Equal to an even split of the guide's graph, and golden for one release of it."""
    column = "cell_type_ontology_term_id"
    dm = scd.DataModule(str(real_data / file), hierarchies=[column], sampling=scd.Sampling(by=column, scheme="tree"))
    cl = scd.Ontology.from_guide("CL")
    names, shares = dm.drawn_classes.names, dm.drawn_classes.shares[:-1]
    split = even_split(digraph({term: cl.parents(term) for term in cl.terms}), dict.fromkeys(names, 10))
    np.testing.assert_allclose(shares, [float(split[term]) for term in names], rtol=1e-12)
    if cl.version == "v2026-03-26":
        share = dict(zip(map(cl.label, names), shares.tolist(), strict=True))
        assert {name: share[name] for name in golden} == pytest.approx(golden, rel=1e-12)
