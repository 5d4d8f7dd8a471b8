"""Ontologies by registered name, path or URL; those of a plug-in are used like our own."""

from __future__ import annotations

import pandas as pd
import pytest

import scdataloader as scd
from scdataloader import registry
from scdataloader.curation.labels import standardised
from scdataloader.curation.recipe import Recipe
from scdataloader.labels.hierarchy import Hierarchy
from scdataloader.ontology.locate import fingerprint, is_file, open_ontology
from tests.ontology.term_tables import ontology

PARENTS = {"TOY:1": [], "TOY:2": ["TOY:1"], "TOY:3": ["TOY:1"], "TOY:4": []}
TOY = ontology(PARENTS, name="TOY", labels={"TOY:2": "blood"}, deprecated=["TOY:4"], replaced_by={"TOY:4": "TOY:3"})


@pytest.fixture
def toy(monkeypatch):
    """The registered name of an ontology of a plug-in."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    scd.register("ontology", "TOY", lambda name: {"TOY": TOY}[name])
    fingerprint.cache_clear()
    return "TOY"


def test_an_ontology_is_opened_by_name_in_any_case_by_file_or_as_it_is(tmp_path, toy):
    assert open_ontology("hsapdv").name == open_ontology("HsapDv").name == "HsapDv"
    assert open_ontology("ZFS").name == "ZFA"  # which imports terms of that prefix
    assert open_ontology("toy") is open_ontology(TOY) is TOY
    path = tmp_path / "mine.obo"
    path.write_text("format-version: 1.4\nontology: mine\n\n[Term]\nid: T:1\nname: one\n")
    assert open_ontology(path).name == open_ontology(str(path)).name == "mine"
    assert [is_file(what) for what in ("CL", "toy", "bionty.CellType", str(path), "https://host/cl", path)] == [
        *[False] * 3,
        *[True] * 3,
    ]


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("UBERN", LookupError, "'UBERN' .*registered.*'UBERON'"),
        ("bionty.CelType", LookupError, r"'bionty\.CelType' .*registered.*'bionty\.CellType'"),
        ("NCBITaxon", ValueError, r"1\.5 GB"),
        (5, TypeError, "got 5"),
    ],
)
def test_what_is_not_an_ontology_is_refused(what, error, message):
    with pytest.raises(error, match=message):
        open_ontology(what)


def test_a_factory_that_returns_something_else_is_named(monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    scd.register("ontology", "TOY", lambda name: [name])
    with pytest.raises(TypeError, match=r"factory of the ontology 'TOY' returned a list; expected .*Ontology"):
        open_ontology("TOY")


@pytest.mark.parametrize("named", [None, "TOY", ["PATO", "TOY"]])
def test_a_registered_ontology_makes_hierarchies(toy, named):
    labels = pd.Series(["TOY:1", "TOY:2", "TOY:4", None])
    encoder = Hierarchy.fit("x", [labels], ontology=named).encoder
    assert encoder.encode(labels).tolist() == [2, 0, 1, -1]
    assert (encoder.classes, encoder.hierarchy) == (("TOY:2", "TOY:3"), {2: [0, 1]})


def test_a_registered_ontology_standardises_labels(toy):
    labels = pd.Series(["blood", "TOY:4", "TOY:3", "normal"])
    found, *_ = standardised(labels, [toy, "PATO"], "NCBITaxon:9606")
    assert list(found) == ["TOY:2", "TOY:3", "TOY:3", "PATO:0000461"]


def test_the_hash_of_a_recipe_changes_with_a_registered_ontology(toy, monkeypatch):
    recipe = Recipe(labels={"x": ["TOY"]})
    before = recipe.hash
    fingerprint.cache_clear()
    assert recipe.hash == before
    monkeypatch.setitem(
        registry._registered, ("ontology", "TOY"), lambda _: ontology(PARENTS, name="TOY", deprecated=["TOY:4"])
    )
    fingerprint.cache_clear()
    assert recipe.hash != before
    assert fingerprint("cl").startswith("cl ")  # not opened
