"""Lookup of terms by id, name and synonym, and the messages about unknown terms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ontology.term_tables import ontology

CELLS = {"CL:0000000": [], "CL:0000084": ["CL:0000000"], "CL:0000236": ["CL:0000000"], "CL:0000540": ["CL:0000000"]}
OLD = {"CL:0000001": [], "CL:0000002": [], "CL:0000003": [], "CL:0000004": [], "CL:0000005": []}
NAMES = {
    "CL:0000000": "cell",
    "CL:0000084": "T cell",
    "CL:0000236": "B cell",
    "CL:0000540": "",
    "CL:0000003": "",
    "CL:0000005": "",
    "CL:0000001": "obsolete lymphocyte",
    "CL:0000002": "B cell",
}
SYNONYMS = {
    "CL:0000084": ["T-cell", "lymphocyte", "  Thymus  derived cell"],
    "CL:0000236": ["lymphocyte", "cell", "B lymphocyte", "b Lymphocyte"],
    "CL:0000001": ["old cell", "B lymphocyte"],
}
REPLACED = {
    "CL:0000001": "CL:0000002",
    "CL:0000002": "CL:0000236",
    "CL:0000003": "CLO:0000019",
    "CL:0000004": "CL:0000005",
    "CL:0000005": "CL:0000004",
}


@pytest.fixture(scope="module")
def cells():
    return ontology(
        CELLS | OLD,
        name="CL",
        version="v1",
        labels=NAMES,
        synonyms=SYNONYMS,
        deprecated=OLD,
        replaced_by=REPLACED,
    )


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("CL:0000084", "CL:0000084"),
        ("cl:0000084", "CL:0000084"),
        (" CL_0000084\n", "CL:0000084"),
        ("T cell", "CL:0000084"),
        ("t  CELL", "CL:0000084"),
        ("T-CELL", "CL:0000084"),
        ("thymus derived cell", "CL:0000084"),
        ("b lymphocyte", "CL:0000236"),  # twice a synonym of the same term, and of a deprecated one
        ("cell", "CL:0000000"),  # a name goes before another term's synonym
        ("B cell", "CL:0000236"),  # and a current term before a deprecated one
        ("obsolete lymphocyte", "CL:0000001"),
        ("old cell", "CL:0000001"),
        ("CL:0000003", "CL:0000003"),
    ],
)
def test_a_term_is_found_by_id_name_or_synonym_in_any_case(cells, text, term):
    assert cells.find(text) == term


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "Lymphocyte",
            r"^'Lymphocyte' may be any of 2 terms of CL v1: CL:0000084 \(T cell\), CL:0000236 \(B cell\); give the id",
        ),
        ("CL:000084", r"^CL v1 has no term 'CL:000084'; the nearest ids are CL:0000084 \(T cell\)$"),
        ("CL:00000840", r"the nearest ids are CL:0000084 \(T cell\)$"),
        ("CL:0000048", r"the nearest ids are CL:0000084 \(T cell\)$"),
        ("CL:0000085", r"the nearest ids are CL:0000084 \(T cell\), CL:0000005 \(without a name\)$"),
        ("CL:7777777", r"none of its ids is similar$"),
        ("T cells", r"^CL v1 has no term 'T cells'; the nearest names are 't cell' \(CL:0000084\), "),
        ("hepatic stellate", r"none of its names is similar$"),
        (
            "PATO:0000461",
            r"^'PATO:0000461' is an id of PATO, but CL v1 has only ids of CL; correct it, or name the ontology",
        ),
        ("UBERON_0002107", r"^'UBERON_0002107' is an id of UBERON, but CL v1 has only"),
        ("CD8_T", r"has no term 'CD8_T'; none of its names"),  # not an id of an ontology named CD8
        ("", r"has no term ''; none of its names"),
    ],
)
def test_what_is_not_found_is_refused_with_what_may_have_been_meant(cells, text, message):
    with pytest.raises(LookupError, match=message):
        cells.find(text)


def test_ids_that_are_asked_about_are_refused_in_the_same_words(cells):
    for ask in (cells.label, cells.synonyms, cells.is_deprecated, cells.current, cells.parents, cells.depth):
        with pytest.raises(LookupError, match=r"'PATO:0000461' is an id of PATO"):
            ask("PATO:0000461")
    with pytest.raises(LookupError, match=r"'T cell' is a name of CL:0000084 \(T cell\); expected the id"):
        cells.ancestors("T cell")
    with pytest.raises(LookupError, match=r"'cl_0000084' is an id of CL:0000084 \(T cell\)"):
        cells.ancestor_matrix(["CL:0000236", "cl_0000084"])
    with pytest.raises(LookupError, match="has no term 'nan'"):
        cells.ancestor_matrix([float("nan")])


def test_names_synonyms_and_what_has_none(cells):
    assert cells.label("CL:0000084") == "T cell"
    assert cells.label("CL:0000540") == "CL:0000540"
    assert cells.synonyms("CL:0000236") == ("lymphocyte", "cell", "B lymphocyte", "b Lymphocyte")
    assert cells.synonyms("CL:0000540") == ()
    assert cells.prefixes == ("CL",)


def test_deprecated_terms_have_a_replacement_or_none_and_no_place(cells):
    assert cells.terms == tuple(CELLS)
    assert cells.deprecated == tuple(OLD)
    assert [cells.is_deprecated(term) for term in ("CL:0000001", "CL:0000084")] == [True, False]
    assert "CL:0000001" not in cells
    assert cells.current("CL:0000084") == "CL:0000084"
    assert cells.current("CL:0000001") == cells.current("CL:0000002") == "CL:0000236"
    assert cells.replaced_by("CL:0000001") == "CL:0000002"
    assert cells.replaced_by("CL:0000084") is None
    assert cells.current("CL:0000003") is None  # replaced by a term of another ontology
    assert cells.replaced_by("CL:0000003") == "CLO:0000019"
    assert cells.current("CL:0000004") is None  # replaced in a circle
    for term, message in {
        "CL:0000001": r"CL:0000001 \(obsolete lymphocyte\) is deprecated .*; use CL:0000236",
        "CL:0000003": r"CL:0000003 \(without a name\) is deprecated .*; its replacement CLO:0000019 is not",
    }.items():
        for ask in (
            cells.ancestors,
            cells.parents,
            cells.descendants,
            cells.depth,
            lambda term: cells.subgraph([term]),
        ):
            with pytest.raises(ValueError, match=message):
                ask(term)
    alone = ontology({"CL:1": [], "CL:2": []}, deprecated={"CL:2"})
    assert alone.current("CL:2") is None
    with pytest.raises(ValueError, match="it has no replacement"):
        alone.parents("CL:2")


def test_a_message_names_a_few_terms_of_many():
    many = ontology({f"T:{n}": [] for n in range(20)}, synonyms={f"T:{n}": ["it"] for n in range(20)})
    with pytest.raises(LookupError, match=r"any of 20 terms of toy: T:0 \(term 0\), .*, T:12 \(term 12\) and 15 more;"):
        many.find("it")


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters=":_"), max_size=8), min_size=1, max_size=6, unique=True
    )
)
def test_every_name_finds_its_term_or_is_shared(names):
    labels = {f"T:{number}": name for number, name in enumerate(names)}
    terms = ontology(dict.fromkeys(labels, ()), labels=labels)
    for term, name in labels.items():
        folded = [" ".join(other.casefold().split()) for other in names]
        mine = " ".join(name.casefold().split())
        if not mine:
            assert terms.label(term) == (name or term)
        elif folded.count(mine) == 1:
            assert terms.find(name) == term
        else:
            with pytest.raises(LookupError, match="may be any of"):
                terms.find(name)
