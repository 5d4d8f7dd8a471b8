"""Codes of labels that are ontology terms, and labels that are refused."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest

import scdataloader as scd
from scdataloader.collection.collection import Collection
from scdataloader.labels.encoder import LabelEncoder
from scdataloader.labels.hierarchy import Hierarchies, Hierarchy
from scdataloader.testing import MemorySource, named_values
from tests.ontology.term_tables import ontology

#            1 cell
#         2 blood    3 nerve
#      4 T    5 B      |
#    6 CD4  7 CD8     8 glia
PARENTS = {
    "T:1": [],
    "T:2": ["T:1"],
    "T:3": ["T:1"],
    "T:4": ["T:2"],
    "T:5": ["T:2"],
    "T:6": ["T:4"],
    "T:7": ["T:4"],
    "T:8": ["T:3"],
    "T:9": [],
    "T:10": [],
}
NAMES = {"T:1": "cell", "T:2": "blood", "T:3": "nerve", "T:4": "T", "T:5": "B", "T:6": "CD4", "T:7": "CD8"}
TOY = ontology(
    PARENTS,
    labels=NAMES | {"T:8": "glia", "T:9": "obsolete white", "T:10": "obsolete lost"},
    synonyms={"T:4": ("lymphoid",), "T:5": ("lymphoid", "b lymphocyte")},
    deprecated=["T:9", "T:10"],
    replaced_by={"T:9": "T:2"},
)


def fit(*labels, **options):
    return Hierarchy.fit("type", [pd.Series(list(labels), dtype=object)], **({"ontology": TOY} | options))


def test_leaves_come_first_and_inner_terms_know_theirs():
    encoder = fit("T:7", "T:2", "T:6", "T:8", "T:4", "unknown", None).encoder
    assert encoder.classes == ("T:6", "T:7", "T:8")
    assert encoder.inner == ("T:2", "T:4")
    assert encoder.hierarchy == {3: [0, 1], 4: [0, 1]}
    assert encoder.decoder == {0: "T:6", 1: "T:7", 2: "T:8", 3: "T:2", 4: "T:4", -1: "unknown"}
    assert encoder.membership.tolist() == [[True, True, False], [True, True, False]]
    codes = encoder.encode(pd.Series(["T:2", "T:8", None, "T:5"], dtype="category"))
    assert (codes.tolist(), codes.dtype) == ([3, 2, -1, -1], np.int32)


def test_a_term_whose_descendants_do_not_occur_is_a_leaf():
    assert fit("T:2", "T:8").encoder.classes == ("T:2", "T:8")


def test_deprecated_terms_go_to_their_replacement_with_one_warning(caplog):
    encoder = fit("T:9", "T:9", "T:6", "T:9").encoder
    assert encoder.labels == ("T:6", "T:2")
    assert encoder.encode(pd.Series(["T:9", "T:2", "T:6"])).tolist() == [1, 1, 0]
    assert [record.getMessage() for record in caplog.records] == [
        "type: deprecated terms are replaced: T:9 (obsolete white) by T:2 (blood), 3 cells"
    ]


def test_a_deprecated_term_goes_to_the_current_term_of_its_name(caplog):
    names = {"T:2": "Blood cell", "T:3": "nerve", "T:4": "nerve", "T:9": "obsolete_blood  cell", "T:10": "nerve"}
    toy = ontology(PARENTS, labels=names, deprecated=["T:9", "T:10"])
    assert fit("T:9", "T:6", ontology=toy).encoder.labels == ("T:6", "T:2")
    assert "T:9 (obsolete_blood  cell) by T:2 (Blood cell), 1 cell" in caplog.text
    with pytest.raises(ValueError, match="'T:10' is deprecated"):  # two terms have its name
        fit("T:10", ontology=toy)


def test_labels_that_a_model_cannot_tell_from_their_only_class_are_named(caplog):
    with caplog.at_level(logging.INFO):
        fit("T:2", "T:4", "T:6", "T:5")
    (record,) = caplog.records
    assert record.getMessage().startswith("type: labels above a single class")
    assert record.getMessage().endswith(": T:4 (T) above T:6 (CD4)")


def test_names_and_synonyms_are_resolved_in_any_case():
    encoder = fit("cd4", "B lymphocyte", "Blood", "white").encoder
    assert encoder.labels == ("T:5", "T:6", "T:2")
    assert encoder.encode(pd.Series(["cd4", "B lymphocyte", "Blood", "white", "T:6"])).tolist() == [1, 0, 2, 2, 1]
    assert encoder.mapped == {"cd4": "T:6", "B lymphocyte": "T:5", "Blood": "T:2", "white": "T:2"}


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["lymphoid"], {}, r"type: 'lymphoid' may be any of 2 terms of toy: T:4 \(T\), T:5 \(B\); give the id"),
        (["T:6", "CD8"], {}, r"'type' mixes ids \(1: 'T:6'\) and names \(1: 'CD8'\)"),
        (["T:6", "PATO:0000461"], {}, "type: 'PATO:0000461' is an id of PATO, but toy has only ids of T"),
        (["T:6", "T:77", "T:99"], {}, r"no term 'T:77'; the nearest ids are T:7 .*; also wrong: 'T:99'$"),
        (["glial"], {}, r"no term 'glial'; the nearest names are 'glia' \(T:8\)"),
        (["T:10"], {}, r"'T:10' is deprecated in toy and has no current replacement \(replaced by nothing\)"),
        (["unknown", ""], {}, "all labels of 'type' are unknown"),
        (["T cell"], {"ontology": None}, r"are names \('T cell'\), from which no ontology"),
        (["NCBITaxon:9606"], {"ontology": None}, "are ids of NCBITaxon .* needs no ontology"),
        (["T:6"], {"ontology": "UBERN"}, "hierarchy of 'type': ontology 'UBERN' .*registered.*'UBERON'"),
        (["ABC:1"], {"ontology": None}, "are ids of ABC .*'ABC'.* registered"),
        (["CL:0000084", "CL:0000236", "PATO:0000461"], {"ontology": "CL"}, "'PATO:0000461' is an id of PATO, but CL"),
    ],
)
def test_labels_that_are_no_terms_are_refused(labels, options, message):
    with pytest.raises(ValueError, match=message):
        fit(*labels, **options)


def test_an_ontology_is_an_object_a_name_or_a_file(tmp_path):
    assert fit("CL:0000084", ontology="cl").ontology.name == "CL"
    assert fit("CL:0000084", ontology=None).ontology.name == "CL"
    (tmp_path / "toy.obo").write_text(
        "format-version: 1.4\nontology: mine\n\n[Term]\nid: T:1\nname: one\n\n[Term]\nid: T:2\nname: two\nis_a: T:1\n"
    )
    hierarchy = fit("T:1", "T:2", ontology=str(tmp_path / "toy.obo"))
    assert hierarchy.encoder.labels == ("T:2", "T:1")
    with pytest.raises(TypeError, match=r"expected an Ontology, .*got 5"):
        fit("T:1", ontology=5)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.obo"):
        fit("T:1", ontology="nowhere.obo")


def test_encoders_survive_json():
    encoder = fit("T:7", "T:2", "T:9", "T:6")
    state = json.loads(json.dumps(encoder.encoder.to_dict()))
    assert state == {  # in checkpoints: keys and meaning stay
        "column": "type",
        "classes": ["T:6", "T:7"],
        "inner": ["T:2"],
        "leaves": [[0, 1]],
        "mapped": {"T:9": "T:2"},
        "ontology": "toy",
    }
    again = LabelEncoder.from_dict(state)
    assert again == encoder.encoder
    assert again.hierarchy == {2: [0, 1]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"inner": ("b", "a")}, "inner labels of 'x' are .*sorted"),
        ({"inner": ("c",)}, "both a class and an inner label"),
        ({"leaves": ((0,), (0,))}, "for each of 1 inner labels"),
        ({"leaves": ((),)}, "for each of 1 inner labels"),
        ({"leaves": ((1, 0),)}, "for each of 1 inner labels"),
        ({"leaves": ((2,),)}, "from 0 to 1"),
        ({"mapped": {"z": "e"}}, "neither classes nor inner labels"),
    ],
)
def test_encoders_that_break_the_contract_are_refused(changes, reason):
    made = {"column": "x", "classes": ("c", "d"), "inner": ("a",), "leaves": ((0, 1),), "ontology": "toy"}
    LabelEncoder(**made)
    with pytest.raises(ValueError, match=reason):
        LabelEncoder(**(made | changes))


ROLLED = ["T:1", "T:4", "T:5", "T:6", "T:6", "T:7", "T:8"]


@pytest.mark.parametrize(
    ("roll_up", "classes"),
    [
        ({"terms": ["blood"]}, {"T:4": "T:2", "T:5": "T:2", "T:6": "T:2", "T:7": "T:2"}),
        ({"terms": ["T:2", "T:4"]}, {"T:5": "T:2", "T:6": "T:4", "T:7": "T:4"}),
        ({"terms": ["T:9"]}, {"T:4": "T:2", "T:5": "T:2", "T:6": "T:2", "T:7": "T:2"}),  # its replacement
        ({"depth": 0}, dict.fromkeys(["T:4", "T:5", "T:6", "T:7", "T:8"], "T:1")),
        ({"depth": 2}, {"T:6": "T:4", "T:7": "T:4"}),
        ({"min_cells": 1}, {}),
        # CD8 goes to T, but CD4 is a class below T; B goes to blood and glia to nerve and on to cell
        ({"min_cells": 2}, {"T:5": "T:2", "T:7": "T:4", "T:8": "T:1"}),
        # CD4 and CD8 to T, which has four; B to blood above it
        ({"min_cells": 4}, {"T:5": "T:2", "T:6": "T:4", "T:7": "T:4", "T:8": "T:1"}),
        ({"min_cells": 5}, {"T:4": "T:2", "T:5": "T:2", "T:6": "T:2", "T:7": "T:2", "T:8": "T:1"}),
        ({"min_cells": 100}, dict.fromkeys(["T:4", "T:5", "T:6", "T:7", "T:8"], "T:1")),
    ],
)
def test_rolling_up(roll_up, classes):
    encoder = fit(*ROLLED, roll_up=scd.RollUp(**roll_up)).encoder
    assert encoder.mapped == classes
    assert set(encoder.labels) == {classes.get(label, label) for label in ROLLED}
    codes = encoder.encode(pd.Series(ROLLED))
    assert [encoder.decoder[code] for code in codes.tolist()] == [classes.get(label, label) for label in ROLLED]


def test_of_several_parents_the_most_specific_takes_the_cells():
    dag = ontology({"T:1": [], "T:2": ["T:1"], "T:3": ["T:1"], "T:4": ["T:2", "T:3"], "T:5": ["T:2"]})
    hierarchy = fit("T:4", "T:3", *["T:5"] * 3, ontology=dag, roll_up=scd.RollUp(min_cells=2))
    assert hierarchy.encoder.mapped == {"T:4": "T:3"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "has none; expected exactly one of terms, depth and min_cells"),
        ({"depth": 1, "min_cells": 2}, "has depth and min_cells; expected exactly one"),
        ({"terms": []}, "at least one term"),
        ({"terms": "T:1"}, "list of at least one term"),
        ({"depth": -1}, "depth is -1"),
        ({"min_cells": 0}, "min_cells is 0"),
    ],
)
def test_roll_ups_without_sense_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        scd.RollUp(**options)


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        (["T:3"], r"type: cannot roll up to T:3 \(nerve\): it is above none of the 2 labels"),
        (["nerves"], "type: toy has no term 'nerves'; the nearest names"),
        (["T:10"], "type: 'T:10' is deprecated in toy"),
    ],
)
def test_targets_that_nothing_goes_up_to_are_refused(terms, reason):
    with pytest.raises(ValueError, match=reason):
        fit("T:6", "T:5", roll_up=scd.RollUp(terms=terms))


def test_targets_of_which_neither_is_above_the_other_are_refused():
    dag = ontology({"T:1": [], "T:2": [], "T:3": ["T:1", "T:2"]})
    with pytest.raises(ValueError, match="under 2 targets, none above another"):
        fit("T:3", ontology=dag, roll_up=scd.RollUp(terms=["T:1", "T:2"]))


TERMS = ["T:2", "T:4", "T:5", "T:6", "T:7", "T:8", "T:9", "unknown"]


def source(name="a", labels=TERMS, n=80):
    obs = {
        "type": pd.Categorical([labels[i % len(labels)] for i in range(n)]),
        "donor": pd.Categorical([f"d{i % 2}" for i in range(n)]),
    }
    return MemorySource(name, named_values(n, 30), [f"ENSG{i:011d}" for i in range(30)], obs)


def module(data=None, **options):
    made = {"data": data or [source()], "labels": ["type", "donor"], "hierarchies": {"type": TOY}, "batch_size": 8}
    return scd.DataModule(**(made | options))


def test_what_a_model_needs_to_know_is_there_right_after_construction():
    dm = module()
    assert dm.classes == {"type": 4, "donor": 2}
    assert dm.encoders["type"] == {"T:5": 0, "T:6": 1, "T:7": 2, "T:8": 3, "T:2": 4, "T:4": 5}
    assert dm.decoders["type"][4] == "T:2"
    assert dm.labels_hierarchy == {"type": {4: [0, 1, 2], 5: [1, 2]}}
    assert dm.membership["type"].tolist() == [[True, True, True, False], [False, True, True, False]]
    batch = next(iter(dm.predict_dataloader()))
    assert batch["labels"][:, 0].tolist() == [4, 5, 0, 1, 2, 3, 4, -1]


def test_the_reference_classifier_learns_from_all_terms(tmp_path):
    """Also from inner terms; a model from a checkpoint has the same probabilities."""
    import lightning.pytorch as pl
    import torch

    from scdataloader.models import LabelClassifier

    dm = module(split=scd.Split(val=0.2))
    model = LabelClassifier(len(dm.genes), dm.classes, dm.decoders, dm.labels_hierarchy, width=4)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = pl.Trainer(default_root_dir=tmp_path, max_epochs=1, enable_checkpointing=True, **quiet)
    trainer.fit(model, dm)
    assert {"val/hierarchical_f1", "val/leaf_recall"} <= trainer.callback_metrics.keys()
    best = trainer.checkpoint_callback.best_model_path
    kept = scd.DataModule([source()], labels=["type", "donor"], checkpoint=best)
    assert kept.labels_hierarchy == dm.labels_hierarchy
    assert np.array_equal(kept.label_codes, dm.label_codes)
    again = LabelClassifier.load_from_checkpoint(best, map_location="cpu").eval()
    batch = dict(next(iter(kept.predict_dataloader())))
    batch["x"] = batch["x"].to_dense()
    probabilities = again(batch)[0].softmax(1)
    inner = probabilities @ torch.tensor(dm.membership["type"].T, dtype=torch.float32)
    labels = batch["labels"][:, 0]
    above = labels >= 4
    torch.testing.assert_close(
        again.losses[0](probabilities.log()[above], labels[above]),
        -inner[above, labels[above] - 4].log().mean(),
    )


def test_hierarchies_have_one_warning_per_column_in_a_whole_run(caplog):
    dm = module(sampling=scd.Sampling(by=["type"], scheme="uniform"))
    dm.setup("fit")
    list(dm.train_dataloader())
    assert sum("deprecated terms" in record.getMessage() for record in caplog.records) == 1


def test_sampling_is_by_the_terms_and_not_by_how_they_are_written():
    drawn = module(sampling=scd.Sampling(by=["type", "donor"]), labels=[]).drawn_classes
    assert "T:2 | d0" in drawn.names
    assert not any(name.startswith("T:9") for name in drawn.names)
    counts = dict(zip(drawn.names, drawn.sizes.tolist(), strict=False))
    assert sum(n for name, n in counts.items() if name.startswith("T:2")) == 20


def test_a_checkpoint_brings_the_hierarchy_along(caplog):
    roll_up = {"type": scd.RollUp(terms=["T:4"])}
    trained = module(roll_up=roll_up)
    state = json.loads(json.dumps(trained.state_dict()["encoders"]))
    later = module([source(labels=["T:6", "T:8", "T:3", "T:9"])], hierarchies=None)
    later.load_state_dict(later.state_dict() | {"encoders": state})
    assert later.labels_hierarchy == trained.labels_hierarchy == {"type": {3: [0, 1]}}
    # nerve was not seen in training, though glia was, which is below it
    assert [later.decoders["type"][code] for code in later.label_codes[:4, 0].tolist()] == [
        "T:4",
        "T:8",
        "unknown",
        "T:2",
    ]
    assert "type: 20 cells have labels not seen in training; encoded as -1: T:3 (20)" in caplog.text


JOINT = ["T:4", "T:6 || T:8", "T:5", "T:8,T:6", "T:6", "T:6 || T:8"]


def test_a_joint_label_is_a_class_of_its_own_without_an_ontology():
    dm = module([source(labels=JOINT)], hierarchies=None, labels=["type"])
    assert dm.encoders["type"] == {"T:4": 0, "T:5": 1, "T:6": 2, "T:6 || T:8": 3, "T:8,T:6": 4}


@pytest.mark.parametrize("scheme", ["uniform", "tree"])
def test_a_joint_label_has_no_place_in_an_ontology_which_is_said_once(scheme, caplog):
    dm = module([source(labels=JOINT)], labels=["type"], sampling=scd.Sampling(by=["type"], scheme=scheme))
    dm.setup("fit")
    assert dm.encoders["type"] == {"T:5": 0, "T:6": 1, "T:4": 2}
    assert dm.label_codes[:6, 0].tolist() == [2, -1, 0, -1, 1, -1]
    drawn = np.concatenate([batch["labels"][:, 0] for batch in dm.train_dataloader()])
    assert set(drawn.tolist()) == {0, 1, 2}
    dm.teardown("fit")
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "joint" in line or "not seen" in line] == [
        "type: joint labels have no single place in toy and are encoded as -1, in 40 cells: 'T:6 || T:8', 'T:8,T:6'"
    ]


def test_joint_labels_that_a_trained_model_meets_are_unseen(caplog):
    state = module(labels=["type"]).state_dict()
    later = module([source(labels=JOINT)], labels=["type"], hierarchies=None)
    later.load_state_dict(state)
    assert later.label_codes[:6, 0].tolist() == [5, -1, 0, -1, 1, -1]
    assert "40 cells have labels not seen in training; encoded as -1: T:6 || T:8 (27), T:8,T:6" in caplog.text


def test_a_column_of_joint_labels_alone_has_no_hierarchy():
    with pytest.raises(ValueError, match="all labels of 'type' are unknown or joint; name a column"):
        fit("T:6 || T:8", None)


def test_later_data_may_name_its_terms_otherwise():
    state = module(labels=["type"]).state_dict()
    later = module([source(labels=["cd4", "glia", "nerve"])], labels=["type"])
    later.load_state_dict(state)
    assert later.label_codes[:3, 0].tolist() == [1, 3, -1]


def test_encoders_can_be_pushed_in_from_outside():
    trained = module(labels=["type"])
    dm = module([source(labels=["T:6", "T:2", "T:9", "T:3"])], labels=["type"])
    dm.encoders = {"type": trained.encoders["type"] | {"unknown": -1}}
    assert dm.labels_hierarchy == trained.labels_hierarchy
    assert dm.label_codes[:4, 0].tolist() == [1, 4, 4, -1]
    with pytest.raises(ValueError, match="for its 1 sorted leaves, then for its 1 sorted inner"):
        dm.encoders = {"type": {"T:2": 0, "T:6": 1}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hierarchies": ["type", "type"]}, "hierarchies names a column twice"),
        ({"hierarchies": {"tissue": TOY}}, r"hierarchies names \['tissue'\], which are neither"),
        ({"roll_up": {"donor": scd.RollUp(depth=1)}}, r"roll_up names \['donor'\], which have no ontology"),
    ],
)
def test_hierarchies_without_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _ = module(**options).classes


def test_only_hierarchies_that_are_asked_for_are_fitted():
    fitted = Hierarchies(Collection.open([source()]), {"type": TOY, "nowhere": TOY})
    assert list(fitted) == ["type", "nowhere"]
    assert len(fitted) == 2
    assert fitted["type"] is fitted["type"]
    with pytest.raises(KeyError, match="no source has the obs column 'nowhere'"):
        _ = fitted["nowhere"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('["cell_type"]', ["cell_type"]),
        ('{"cell_type": "CL", "tissue": "my.obo"}', {"cell_type": "CL", "tissue": "my.obo"}),
    ],
)
def test_the_command_line_knows_lists_and_pairs(given, expected):
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(scd.DataModule, "data")
    text = ["--data.data=x", f"--data.hierarchies={given}", '--data.roll_up={"cell_type": {"terms": ["T cell"]}}']
    dm = parser.instantiate(parser.parse_args(text)).data
    assert dm.hierarchies == expected
    assert dm.roll_up == {"cell_type": scd.RollUp(terms=["T cell"])}


def test_real_labels(real_data, caplog):
    """22 labels, one deprecated and five above others; 25 pairs, because "cell" is above all."""
    column = "cell_type_ontology_term_id"
    with caplog.at_level(logging.WARNING):
        dm = scd.DataModule(str(real_data / "human_placenta_cl22.h5ad"), labels=[column], hierarchies=[column])
        encoder = dm.encoders[column]
    assert dm.classes == {column: 17}
    assert len(encoder) == 22
    cl = scd.Ontology.from_guide("CL")
    names = {dm.decoders[column][code]: codes for code, codes in dm.labels_hierarchy[column].items()}
    assert {cl.label(term): [cl.label(dm.decoders[column][c]) for c in codes] for term, codes in names.items()} | {
        "cell": None
    } == {
        "cell": None,
        "T cell": ["regulatory T cell"],
        "macrophage": ["Hofbauer cell"],
        "stromal cell": ["embryonic fibroblast"],
        "natural killer cell": ["decidual natural killer cell, human"],
    }
    assert names["CL:0000000"] == list(range(17))
    assert int(np.count_nonzero(cl.ancestor_matrix(list(encoder)))) - 22 == 25
    assert np.bincount(dm.label_codes[:, 0]).tolist() == [10] * 22
    assert caplog.text.count("deprecated terms") == 1
    assert "CL:0000003 (obsolete native cell) by CL:0000000 (cell), 10 cells" in caplog.text


def test_real_names_are_encoded_as_the_terms_that_they_name(real_data):
    """In this file names and ids of a cell differ, but the terms are the same."""
    path = str(real_data / "human_placenta_cl22.h5ad")
    by_id = scd.DataModule(path, labels=["cell_type_ontology_term_id"], hierarchies=["cell_type_ontology_term_id"])
    by_name = scd.DataModule(path, labels=["cell_type"], hierarchies={"cell_type": "CL"})
    assert by_name.encoders["cell_type"] == by_id.encoders["cell_type_ontology_term_id"]
    cl = scd.Ontology.from_guide("CL")
    names = [cl.label(by_name.decoders["cell_type"][code]) for code in by_name.label_codes[:, 0].tolist()]
    written = by_name.collection.obs(["cell_type"])["cell_type"].tolist()
    assert names == ["cell" if name == "native cell" else name for name in written]


def test_widening_an_encoder_changes_nothing_that_it_knows():
    encoder = fit("T:6", "T:4", "T:9").encoder
    wider = encoder.widened({"T:6": "T:4", "T:9": "T:6", "cd4": "T:6", "glia": "T:8"})
    assert wider.encode(pd.Series(["T:6", "T:9", "cd4", "glia", "T:4"])).tolist() == [0, 1, 0, -1, 2]
