"""Label columns are standardised to current ids of ontologies."""

import pandas as pd
import pytest

from scdataloader.curation.labels import cached_ontology, distinct_ids, standardised

CELLS = ["CL", "FBbt", "ZFA", "WBbt"]
HUMAN = "NCBITaxon:9606"


def test_each_kind_of_label_and_what_is_noted():
    written = ["CL:0000084", "T cell", "CL:0000003", "t-cell", None, "na", "B cells", "CL:9999999", "cl_0000236"]
    found, notes, _ = standardised(pd.Series(written, dtype="object"), CELLS, HUMAN)
    assert list(found) == [
        "CL:0000084",
        "CL:0000084",
        "CL:0000000",  # what stands for native cell, which is deprecated
        "CL:0000084",
        "unknown",
        "unknown",
        "unknown",
        "unknown",
        "CL:0000236",
    ]
    assert notes == [
        "names set to ids: 3, of 3 cells ('T cell' to CL:0000084, 'cl_0000236' to CL:0000236, 't-cell' to CL:0000084)",
        "deprecated terms replaced: 1, of 1 cells ('CL:0000003' to CL:0000000)",
        "labels that are not terms set to \"unknown\": 2, of 2 cells ('B cells', 'CL:9999999')",
    ]


def test_deprecated_terms_without_a_replacement():
    """HsapDv:0000087 has the name of HsapDv:0000258; a tissue is replaced by a cell type; 88 has none."""
    stages = pd.Series(["HsapDv:0000087", "HsapDv:0000088", "HsapDv:0000088"])
    found, notes, lost = standardised(stages, ["HsapDv"], HUMAN)
    assert list(found) == ["HsapDv:0000258", "unknown", "unknown"]
    advice = "consider HsapDv:0000266 (young adult stage) or HsapDv:0000267 (middle aged stage)"
    assert notes == [
        "deprecated terms replaced: 1, of 1 cells ('HsapDv:0000087' to HsapDv:0000258)",
        f"deprecated terms without a replacement set to \"unknown\": 1, of 2 cells ('HsapDv:0000088' ({advice}))",
    ]
    assert lost == {f"'HsapDv:0000088' ({advice})": 2}
    assert list(standardised(pd.Series(["UBERON:4000041"]), ["UBERON", "CL"], HUMAN).labels) == ["CL:0007003"]


def test_ids_and_names_that_are_current_are_no_news():
    values = pd.Series(pd.Categorical(["CL:0000236", "CL:0000084"], categories=["CL:0000084", "CL:0000236", "unused"]))
    found, notes, _ = standardised(values, CELLS, HUMAN)
    assert list(found) == ["CL:0000236", "CL:0000084"]
    assert notes == []


@pytest.mark.parametrize(
    ("organism", "stage"),
    [("NCBITaxon:10090", "MmusDv:0000003"), ("NCBITaxon:9606", "HsapDv:0000003")],
)
def test_a_name_is_looked_for_in_ontologies_of_the_organism(organism, stage):
    stages = ["HsapDv", "MmusDv", "WBls"]
    found, *_ = standardised(pd.Series(["Carnegie stage 01", "Theiler stage 01"]), stages, organism)
    assert {str(label).partition(":")[0] for label in found} == {stage.partition(":")[0], "unknown"}


def test_an_id_is_looked_for_where_it_belongs():
    found, *_ = standardised(pd.Series(["PATO:0000461", "MONDO:0005812", "normal"]), ["MONDO", "PATO"], HUMAN)
    assert list(found) == ["PATO:0000461", "MONDO:0005812", "PATO:0000461"]


HODGKIN, WEIL = "MONDO:0004604", "MONDO:0043004"


@pytest.mark.parametrize(
    ("written", "expected", "note"),
    [
        (f"{HODGKIN} || {WEIL}", f"{HODGKIN} || {WEIL}", None),
        (f"{WEIL}||{HODGKIN} || {WEIL}", f"{HODGKIN} || {WEIL}", "joint labels normalised"),
        (f"{WEIL},{HODGKIN}", f"{HODGKIN} || {WEIL}", "joint labels normalised"),  # before schema 6.0
        (f"{HODGKIN} || {HODGKIN}", HODGKIN, "joint labels normalised"),
        ("PATO:0000461 || weil's disease", f"{WEIL} || PATO:0000461", "names set to ids"),
        ("MONDO:0000002 || Weil's disease", f"MONDO:0009299 || {WEIL}", "deprecated terms replaced"),
        ("hodgkin's lymphoma, lymphocytic-histiocytic predominance", HODGKIN, "names set to ids"),  # one name
        (f"{HODGKIN} || Weil", "unknown", 'labels that are not terms set to "unknown"'),
        (f"{HODGKIN},Weil's disease", "unknown", 'labels that are not terms set to "unknown"'),
        (f"{HODGKIN} || unknown", "unknown", 'labels that are not terms set to "unknown"'),
        (f"{HODGKIN} || ", "unknown", 'labels that are not terms set to "unknown"'),
    ],
)
def test_joint_labels(written, expected, note):
    found, notes, _ = standardised(pd.Series([written]), ["MONDO", "PATO"], HUMAN)
    to = "" if expected == "unknown" else f" to {expected}"
    assert list(found) == [expected]
    assert notes == ([f"{note}: 1, of 1 cells ({written!r}{to})"] if note else [])
    assert distinct_ids(pd.Series(found)) == ([] if expected == "unknown" else expected.split(" || "))


def test_a_word_for_unknown_is_no_synonym_in_a_joint_label():
    uberon = cached_ontology("UBERON")
    assert uberon.match("na").candidates  # so that the label below would have two terms
    assert list(standardised(pd.Series(["UBERON:0000178 || na"]), ["UBERON"], HUMAN)[0]) == ["unknown"]


def test_an_ontology_from_a_file(tmp_path):
    path = tmp_path / "tiny.obo"
    path.write_text(
        "format-version: 1.2\nontology: tiny\n\n[Term]\nid: T:1\nname: one\n\n"
        '[Term]\nid: T:2\nname: two\nsynonym: "zwei" EXACT []\nis_a: T:1\n\n'
        "[Term]\nid: T:3\nname: one || two\n"
    )
    found, *_ = standardised(pd.Series(["zwei", "T:1", "three", "two || one", "one || two"]), [str(path)], HUMAN)
    # the last is a name as a whole
    assert list(found) == ["T:2", "T:1", "unknown", "T:1 || T:2", "T:3"]
