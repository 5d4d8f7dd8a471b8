"""Laws L1 and L4, and joint classes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.labels import encoder as module
from scdataloader.labels.encoder import LabelEncoder, joint

words = st.sampled_from(["b", "B", "a", "10", "9", "é", "unknown", "NaN", "", None])
columns = st.lists(st.lists(words), min_size=1, max_size=4)


def known(label):
    return label is not None and label.lower() not in {"", "unknown", "na", "nan"}


def categorical(values, random):
    """The labels as a categorical column with categories in any order, some unused."""
    categories = list({label for label in values if label is not None} | {"unused", "a"})
    return pd.Series(pd.Categorical(values, categories=random.sample(categories, len(categories))))


@given(columns, st.randoms(use_true_random=False))
def test_l1_codes_depend_on_the_sorted_set_of_labels_alone(parts, random):
    expected = tuple(sorted({label for part in parts for label in part if known(label)}))
    plain = [pd.Series(part, dtype=object) for part in parts]
    others = [categorical(random.sample(part, len(part)) * 2, random) for part in random.sample(parts, len(parts))]
    if not expected:
        with pytest.raises(ValueError, match="all labels"):
            LabelEncoder.fit("x", plain)
        return
    encoder = LabelEncoder.fit("x", plain)
    assert encoder.classes == expected
    assert LabelEncoder.fit("x", others) == encoder
    for part in parts:
        codes = [expected.index(label) if known(label) else -1 for label in part]
        assert encoder.encode(pd.Series(part, dtype=object)).tolist() == codes
        assert encoder.encode(categorical(part, random)).tolist() == codes


@given(columns, st.lists(words, min_size=1), st.randoms(use_true_random=False))
def test_l4_labels_unseen_in_training_are_unknown_and_counted(parts, later, random):
    classes = tuple(sorted({label for part in parts for label in part if known(label)}))
    encoder = LabelEncoder.from_dict(LabelEncoder(column="x", classes=classes).to_dict())
    unseen = [label for label in later if known(label) and label not in classes]
    for values in (pd.Series(later, dtype=object), categorical(later, random)):
        assert encoder.unseen(values) == {label: unseen.count(label) for label in unseen}
        n_unknown = sum(not known(label) for label in later)
        assert (encoder.encode(values) == -1).sum() == len(unseen) + n_unknown


@given(st.data())
def test_joint_classes_equal_the_sorted_tuples(data):
    n_columns = data.draw(st.integers(1, 3))
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 2**31 - 1]), min_size=n_columns, max_size=n_columns))
    rows = data.draw(st.lists(st.tuples(*(st.integers(-1, min(size, 4) - 1) for size in sizes))))
    tuples = sorted({row for row in rows if min(row) >= 0})
    expected = [tuples.index(row) if min(row) >= 0 else -1 for row in rows]
    table = np.array(rows, np.int32).reshape(len(rows), n_columns)
    codes, n_classes = joint(list(table.T), sizes)
    assert codes.tolist() == expected
    assert n_classes == len(tuples)


@given(st.lists(st.sampled_from(["a", "b", "unknown"]), min_size=1, max_size=12))
def test_working_in_steps_changes_nothing(values):
    column = pd.Series(values, dtype="category")
    encoder = LabelEncoder(column="x", classes=("b",))
    codes = encoder.encode(column)
    whole = codes.tolist(), encoder.unseen(column), [part.tolist() for part in joint([codes, codes], [1, 1])[:1]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_STEP", 5)
        codes = encoder.encode(column)
        assert (codes.tolist(), encoder.unseen(column), [joint([codes, codes], [1, 1])[0].tolist()]) == whole
        if set(values) != {"unknown"}:
            assert set(LabelEncoder.fit("x", [column]).classes) == set(values) - {"unknown"}
