"""Codes of labels, and labels that are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from scdataloader.labels.encoder import LabelEncoder, joint, joint_labels


def fit(*parts, column="cell_type"):
    return LabelEncoder.fit(column, [pd.Series(part) for part in parts])


def test_codes_are_places_in_the_sorted_labels():
    encoder = fit(["T cell", "B cell", None], ["NK cell", "T cell", "unknown"])
    assert encoder.classes == ("B cell", "NK cell", "T cell")
    assert encoder.n_classes == 3
    assert encoder.encoder == {"B cell": 0, "NK cell": 1, "T cell": 2}
    assert encoder.decoder == {0: "B cell", 1: "NK cell", 2: "T cell", -1: "unknown"}
    codes = encoder.encode(pd.Series(["T cell", "B cell", "unknown", None, "neuron"]))
    assert codes.tolist() == [2, 0, -1, -1, -1]
    assert codes.dtype == np.int32


UNKNOWN = [None, np.nan, pd.NA, "", " ", "unknown", "Unknown", "na", "NA", "nan", "NaN", "None", "<NA>", "NaT"]


@pytest.mark.parametrize("label", UNKNOWN, ids=repr)
@pytest.mark.parametrize("categorical", [False, True])
def test_every_way_to_say_unknown_is_minus_one(label, categorical):
    values = pd.Series(["a", label, "b"], dtype=object)
    values = values.astype("category") if categorical else values
    encoder = LabelEncoder.fit("x", [values])
    assert encoder.classes == ("a", "b")
    assert encoder.encode(values).tolist() == [0, -1, 1]
    assert encoder.unseen(values) == {}


@pytest.mark.parametrize("label", ["none", "Nancy", "unknown cell", "n/a"])
def test_a_label_that_only_looks_like_unknown_is_a_class(label):
    assert fit(["a", label]).n_classes == 2


@pytest.mark.parametrize(
    ("values", "classes", "codes"),
    [
        (pd.Series([True, False, True]), ("False", "True"), [1, 0, 1]),
        (pd.Series([True, None], dtype=object), ("True",), [0, -1]),
        (pd.Series([10, 9, 10]), ("10", "9"), [0, 1, 0]),  # sorted as text
        (pd.Series([10, 9, None]), ("10", "9"), [0, 1, -1]),  # floats, but the same labels
        (pd.Series([10, 9, None], dtype="Int64"), ("10", "9"), [0, 1, -1]),
        (pd.Series([0.5, 2.0, np.nan]), ("0.5", "2"), [0, 1, -1]),
        (pd.Series(["b", "a", None], dtype="string"), ("a", "b"), [1, 0, -1]),
        (pd.Series([3, 1, 3], dtype="category"), ("1", "3"), [1, 0, 1]),
        (pd.Series(pd.Categorical(["a", None], categories=["c", "a", "nan"])), ("a",), [0, -1]),
    ],
)
def test_columns_of_every_dtype(values, classes, codes):
    encoder = LabelEncoder.fit("x", [values])
    assert encoder.classes == classes
    assert encoder.encode(values).tolist() == codes


@pytest.mark.parametrize(
    ("parts", "classes", "codes"),
    [
        ([[True, False], [1, 0]], ("False", "True"), [[1, 0], [1, 0]]),
        ([pd.array([True, None], "boolean"), [0.0, 1.0, np.nan]], ("False", "True"), [[1, -1], [0, 1, -1]]),
        ([pd.Categorical([True]), ["false", "unknown"]], ("False", "True"), [[1], [0, -1]]),
        ([["TRUE", "FALSE"], ["True", "0.0"]], ("False", "True"), [[1, 0], [1, 0]]),
        ([[1, 2], ["1.0", "2.0", "B"]], ("1", "2", "B"), [[0, 1], [0, 1, 2]]),
        ([["TRUE"], ["FALSE"]], ("FALSE", "TRUE"), [[1], [0]]),  # one spelling, which stays
        ([["1.0", "2.0"], ["10.0"]], ("1.0", "10.0", "2.0"), [[0, 2], [1]]),
        ([[1, 0], [2]], ("0", "1", "2"), [[1, 0], [2]]),
    ],
)
def test_spellings_of_one_number_or_truth_value_are_one_class(parts, classes, codes):
    encoder = fit(*parts)
    assert encoder.classes == fit(*reversed(parts)).classes == classes
    assert [encoder.encode(pd.Series(part)).tolist() for part in parts] == codes
    assert not any(encoder.unseen(pd.Series(part)) for part in parts)


def test_truth_values_beside_other_numbers_are_classes_of_their_own_with_a_warning(caplog):
    assert fit([True, False], [0, 1, 2]).n_classes == 5
    assert "0 and 1 are other classes than False and True, because of 2" in caplog.text


def test_a_trained_encoder_knows_labels_in_another_spelling():
    flags, clusters = fit([True, False]), fit([0, 1, 2])
    assert flags.encode(pd.Series([1.0, 0.0, np.nan])).tolist() == [1, 0, -1]
    assert flags.unseen(pd.Series(["2", "yes"])) == {"2": 1, "yes": 1}
    assert clusters.encode(pd.Series(["1.0", "True"])).tolist() == [1, -1]


def test_an_encoder_of_an_old_checkpoint_keeps_its_codes():
    old = LabelEncoder.from_dict({"column": "x", "classes": ["0", "1", "False", "None", "True"]})
    assert old.encode(pd.Series(["True", "1", "None", "<NA>", "true"])).tolist() == [4, 1, 3, -1, -1]


def test_unseen_labels_are_counted_most_first_and_unused_categories_are_not():
    values = pd.Series(pd.Categorical(list("abbcccd"), categories=list("zabcd")))
    encoder = fit(["a", "d"])
    assert encoder.encode(values).tolist() == [0, -1, -1, -1, -1, -1, 1]
    assert encoder.unseen(values) == {"c": 3, "b": 2}
    assert encoder.unseen(values.astype(str)) == {"c": 3, "b": 2}


def test_labels_of_the_same_name_are_one_label():
    values = pd.Series([1, "1", 1.0, "b"], dtype=object)
    encoder = fit(["a"])
    assert LabelEncoder.fit("x", [values]).encode(values).tolist() == [0, 0, 0, 1]
    assert encoder.unseen(values) == {"1": 3, "b": 1}


def test_encoders_survive_json():
    encoder = fit(["b", "a"])
    again = LabelEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert again == encoder
    assert again.encoder == encoder.encoder


def test_a_column_without_any_known_label_is_refused():
    with pytest.raises(ValueError, match=r"all labels of 'cell_type' are unknown .* in 3 cells"):
        fit(["unknown", None], [""])


def test_labels_that_break_the_contract_are_refused():
    with pytest.raises(ValueError, match="distinct"):
        LabelEncoder(column="x", classes=("a", "a"))
    with pytest.raises(ValueError, match="sorted"):
        LabelEncoder(column="x", classes=("a",), inner=("c", "b"), leaves=((0,), (0,)), ontology="O")


def test_classes_of_a_reference_keep_their_order():
    encoder = LabelEncoder(column="x", classes=("b", "unknown", "a"))
    assert encoder.encode(pd.Series(["a", "b", None, "na", "c"])).tolist() == [2, 0, 1, 1, 1]
    assert encoder.decoder == {0: "b", 1: "unknown", 2: "a", -1: "unknown"}
    assert LabelEncoder.from_dict(encoder.to_dict()) == encoder
    earlier = {"column": "x", "classes": ["a", "b"], "has_unknown_class": True}
    assert LabelEncoder.from_dict(earlier).classes == ("a", "b", "unknown")


def test_the_hash_seed_of_the_process_does_not_matter():
    program = (
        "import pandas as pd; from scdataloader.labels.encoder import joint_labels, LabelEncoder;"
        "print(LabelEncoder.fit('x', [pd.Series([f'label {i}' for i in range(50)])]).classes)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_real_labels(real_data):
    import anndata

    obs = anndata.read_h5ad(real_data / "mouse_brain_merfish.h5ad", backed="r").obs
    encoder = LabelEncoder.fit("cell_type_ontology_term_id", [obs["cell_type_ontology_term_id"]])
    codes = encoder.encode(obs["cell_type_ontology_term_id"])
    assert encoder.n_classes == 21
    assert [encoder.decoder[code] for code in codes.tolist()] == obs["cell_type_ontology_term_id"].tolist()


def test_joint_labels_keep_unknown_parts():
    given = pd.Categorical(["d2", None, "d1", "unknown", "d1"], categories=["d2", "d1", "unused", "unknown"])
    joined = joint_labels([pd.Series(given), pd.Series([1.0, 2.0, np.nan, np.nan, 1.0])], "//")
    assert joined.tolist() == ["d2//1", "unknown//2", "d1//unknown", "unknown", "d1//1"]
    assert sorted(joined.cat.categories) == sorted(joined)
    assert joint_labels([pd.Series(["a//b", "a"]), pd.Series(["c", "b//c"])], "//").tolist() == ["a//b//c"] * 2


def test_joint_classes_are_those_that_occur_in_the_order_of_their_codes():
    first = np.array([1, 0, 1, -1, 0, 1], np.int32)
    second = np.array([0, 2, 2, 1, -1, 0], np.int32)
    codes, n_classes = joint([first, second], [2, 3])
    #        (0, 2) → 0, (1, 0) → 1, (1, 2) → 2
    assert codes.tolist() == [1, 0, 2, -1, -1, 1]
    assert (codes.dtype, n_classes) == (np.int32, 3)


def test_joint_classes_of_many_large_columns_do_not_overflow():
    sizes = [2**31 - 1] * 4
    columns = [np.array([2**31 - 2, 0, 2**31 - 2, -1], np.int32)] * 3 + [np.array([5, 5, 4, 5], np.int32)]
    codes, n_classes = joint(columns, sizes)
    assert codes.tolist() == [2, 0, 1, -1]
    assert n_classes == 3


@pytest.mark.parametrize(
    ("columns", "sizes", "reason"),
    [
        ([], [], "one size"),
        ([[0]], [1, 1], "one size"),
        ([[0], [0, 1]], [1, 2], "equally many"),
        ([[0, 3]], [3], "codes 0 to 3, outside -1 to 2"),
        ([[0, -2]], [3], "codes -2 to 0"),
    ],
)
def test_joint_refuses_what_does_not_fit(columns, sizes, reason):
    with pytest.raises(ValueError, match=reason):
        joint([np.array(column, np.int32) for column in columns], sizes)
