"""Joint labels: parsed, written, standardised and found in a column; replaced values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.curation.labels import UNKNOWN, cached_ontology, distinct_ids, standardised, with_values
from scdataloader.labels.encoder import label_text
from scdataloader.lamin.where import CellFilter
from scdataloader.ontology.names import is_joint, joint_label, terms_in
from scdataloader.testing import MemorySource

PATO = cached_ontology("PATO")
HUMAN = "NCBITaxon:9606"

current = st.sampled_from(PATO.terms[:40])
names = st.sampled_from([PATO.label(term) for term in PATO.terms[:40]])
deprecated = st.sampled_from(PATO.deprecated[:40])
junk = st.sampled_from(["B cells", "CL:0000084", "T, or B", "unknown", "na", "", "PATO:9"])
any_term = st.one_of(current, names, deprecated, junk)
joint_labels = st.lists(any_term, min_size=1, max_size=3).map(" || ".join)
columns = st.lists(st.one_of(st.none(), joint_labels), min_size=1, max_size=6)


def standard(labels: list[str | None]) -> list[str]:
    return list(standardised(pd.Series(labels, dtype=object), ["PATO"], HUMAN)[0])


@given(st.lists(current, min_size=1, max_size=5), st.sampled_from([" || ", "||", ",", ", "]))
def test_terms_come_out_of_a_label_as_they_went_in(terms, between):
    assert terms_in(between.join(terms)) == terms
    assert terms_in(joint_label(terms)) == sorted(set(terms))
    assert is_joint(joint_label(terms)) == (len(set(terms)) > 1)


@given(st.lists(st.text(alphabet="ab, ", min_size=1), min_size=1, max_size=3))
def test_names_keep_their_commas(texts):
    assert terms_in("||".join(texts)) == [text.strip() for text in texts]


@given(columns)
def test_standardising_again_changes_nothing(labels):
    once = standard(labels)
    again, notes, _ = standardised(pd.Series(once, dtype=object), ["PATO"], HUMAN)
    assert list(again) == once
    assert notes == []


@given(st.lists(current, min_size=1, max_size=4, unique=True))
def test_a_joint_label_of_current_ids_stays(terms):
    assert standard([joint_label(terms)]) == [joint_label(terms)]


@given(st.lists(any_term, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_joint_label_is_what_its_terms_are_in_whatever_order(terms, random):
    alone = standard(terms)
    expected = UNKNOWN if UNKNOWN in alone else joint_label(alone)
    random.shuffle(terms)
    assert standard([" || ".join(terms)]) == [expected]


@given(columns)
def test_the_ids_of_a_column_are_those_of_its_terms(labels):
    column = standard(labels)
    expected = {term for label in column if label != UNKNOWN for term in label.split(" || ")}
    assert distinct_ids(pd.Series(column)) == sorted(expected)
    assert expected <= set(PATO.terms)


@pytest.mark.parametrize("dtype", [object, "category", "string"])
@given(labels=columns, asked=st.sets(st.one_of(current, names), max_size=8))
def test_a_cell_has_a_label_that_any_part_of_its_own_is(dtype, labels, asked):
    written = pd.Series(labels, dtype=object).astype(dtype)
    source = MemorySource("a", np.zeros((len(labels), 1), np.float32), ["g"], {"kind": written})
    found = CellFilter(columns=("kind", "elsewhere"), labels=frozenset(asked)).mask(source)
    expected = [label is not None and bool(asked & {label, *label.split(" || ")}) for label in labels]
    assert found.tolist() == expected


values = st.one_of(
    st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "1", ""]))),
    st.lists(st.one_of(st.none(), st.integers(0, 3))),
    st.lists(st.one_of(st.none(), st.sampled_from([0.5, 1.0, 2.0]))),
    st.lists(st.booleans()),
)


@pytest.mark.parametrize("categorical", [False, True])
@given(written=values, put=st.dictionaries(st.sampled_from(["a", "1", "2", "0.5", "", "True", "nan"]), st.text()))
def test_values_are_replaced_one_by_one_and_missing_ones_are_not(categorical, written, put):
    column = pd.Series(written).astype("category") if categorical else pd.Series(written)
    found, absent = with_values(column, put)
    texts = [None if pd.isna(value) else label_text(value) for value in column]
    expected = [None if text is None else put.get(text, text) for text in texts]
    assert [None if pd.isna(value) else value for value in found] == expected
    assert absent == [value for value in put if value not in texts]
