"""Ontologies from files: a real one line by line, unusual ones, and those that are refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import networkx as nx
import pytest

from scdataloader import Ontology
from scdataloader.errors import SourceFormatError
from tests.ontology.term_tables import digraph

HEAD = "format-version: 1.2\nontology: my\n"
SMALL = """
[Term]
id: MY:1
name: one

[Term]
id: MY:2
name: two
alt_id: MY:7
synonym: "zwei" EXACT []
synonym: "pair" RELATED []
is_a: MY:1

[Term]
id: X:3
name: three
is_a: MY:2

[Term]
id: MY:4
name: four
is_a: X:3
relationship: part_of MY:5
relationship: part_of OTHER:1
relationship: near MY:1

[Term]
id: MY:5
name: five

[Term]
id: MY:6
name: obsolete six
is_obsolete: true
replaced_by: MY:7

[Term]
id: MY:8
name: obsolete eight
is_obsolete: true
replaced_by: MY:1
replaced_by: MY:2
consider: MY:5
consider: OTHER:1

[Typedef]
id: part_of
name: part of

[Typedef]
id: near
name: near
"""

CYCLE = """
[Term]
id: MY:1
name: a
is_a: MY:3

[Term]
id: MY:2
name: b
is_a: MY:1

[Term]
id: MY:3
name: c
is_a: MY:2

[Term]
id: MY:4
is_a: MY:2
"""


def written(path: Path, text: str) -> Path:
    path.write_text(HEAD + text, encoding="utf-8")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return written(tmp_path / "small.obo", SMALL)


@pytest.fixture(scope="module")
def real_file(real_data: Path) -> Path:
    path = real_data.parent / "ontology" / "cl-basic.obo"
    if not path.is_file():
        pytest.skip(f"no real ontology: {path} does not exist")
    return path


def stanzas(path: Path) -> dict[str, list[tuple[str, str]]]:
    """{id: lines} of the terms of an OBO file, parsed without a library."""
    terms = {}
    for stanza in path.read_text(encoding="utf-8").split("\n\n"):
        kind, *lines = stanza.strip().split("\n")
        if kind == "[Term]":
            pairs = [tuple(line.split(": ", 1)) for line in lines]
            terms[dict(pairs)["id"]] = pairs
    return terms


def test_a_real_file_is_what_its_lines_say(real_file: Path):
    terms, lines = Ontology.from_obo(real_file), stanzas(real_file)
    assert (terms.name, terms.version) == ("cl/cl-basic", "cl/releases/2022-12-15/cl-basic.owl")
    current = {term for term, pairs in lines.items() if ("is_obsolete", "true") not in pairs}
    assert len(terms) == len(current) == 2644
    assert set(terms.terms) == current
    above = {term: [value.split()[0] for key, value in lines[term] if key == "is_a"] for term in sorted(current)}
    graph = digraph(above)
    for term in terms.terms:
        assert terms.parents(term) == sorted(above[term])
        assert terms.ancestors(term) == sorted(nx.ancestors(graph, term))
        assert terms.label(term) == dict(lines[term])["name"]
    merged = {value: term for term, pairs in lines.items() for key, value in pairs if key == "alt_id"}
    assert set(terms.deprecated) == (lines.keys() - current) | (merged.keys() - lines.keys())
    assert [terms.replaced_by(old) for old in merged if old not in lines] == [
        new for old, new in merged.items() if old not in lines
    ]


def test_two_releases_agree_wherever_they_have_the_same_terms_and_edges(real_file: Path):
    old, new = Ontology.from_obo(real_file), Ontology.from_guide("CL", schema_version="7.1.0")

    def edges(terms: Ontology, top: str) -> set[tuple[str, str]]:
        below = set(terms.descendants(top, include_self=True))
        return {(term, parent) for term in below for parent in terms.parents(term) if parent in below}

    tops = [term for term in new.terms if term in old and new.descendants(term)]
    unchanged = [top for top in tops if edges(old, top) == edges(new, top)]
    assert len(unchanged) == 574  # of 1,066; the largest has 63 descendants
    for top in unchanged:
        below = new.descendants(top, include_self=True)
        assert old.descendants(top, include_self=True) == below
        assert (old.ancestor_matrix(below) == new.ancestor_matrix(below)).all()
        children = [term for term in below if top in new.parents(term)]
        rolled = [terms.roll_up(below, [top, *children], ambiguous="nearest") for terms in (old, new)]
        assert rolled[0] == rolled[1]
    # and all in all a term's ancestors are mostly the same: the releases are three years apart
    shared = [term for term in new.terms if term in old]
    both = old.ancestor_matrix(shared) & new.ancestor_matrix(shared)
    assert both.sum() / new.ancestor_matrix(shared).sum() > 0.9
    assert both.sum() / old.ancestor_matrix(shared).sum() > 0.9


def test_a_small_file_by_hand(small: Path):
    terms = Ontology.from_obo(small)
    assert terms.terms == ("MY:1", "MY:2", "MY:4", "MY:5", "X:3")
    assert terms.prefixes == ("MY", "X")
    assert terms.synonyms("MY:2") == ("zwei",)  # a related name is another thing's
    assert terms.ancestors("MY:4") == ["MY:1", "MY:2", "X:3"]
    assert terms.deprecated == ("MY:6", "MY:7", "MY:8")
    assert terms.current("MY:7") == terms.current("MY:6") == "MY:2"
    assert terms.current("MY:8") is None  # to choose between two replacements takes an expert
    assert terms.match("MY:8").consider == ("MY:1 (one)", "MY:2 (two)", "MY:5 (five)")
    assert Ontology.from_obo(str(small)).terms == terms.terms


def test_more_relations_lead_up_where_they_are_asked_for(small: Path):
    terms = Ontology.from_obo(small, relations=["part_of"])
    assert terms.parents("MY:4") == ["MY:5", "X:3"]
    assert Ontology.from_obo(small, relations=["part_of", "near"]).parents("MY:4") == ["MY:1", "MY:5", "X:3"]
    with pytest.raises(ValueError, match=r"small\.obo declares no relation 'develops_from'; it has .*near, part_of"):
        Ontology.from_obo(small, relations=["develops_from"])


@pytest.mark.parametrize("prefixes", [["MY"], "MY", ["MY:"], ["MY_", "NOT"]])
def test_only_terms_of_some_prefixes_and_the_ways_between_them(small: Path, prefixes):
    terms = Ontology.from_obo(small, prefixes=prefixes)
    assert terms.terms == ("MY:1", "MY:2", "MY:4", "MY:5")
    assert terms.parents("MY:4") == ["MY:2"]
    with pytest.raises(LookupError, match="'X:3' is an id of X"):
        terms.label("X:3")
    with pytest.raises(ValueError, match=r"no current term whose id begins with M$"):
        Ontology.from_obo(small, prefixes=["M"])


def test_compressed_files_are_read(small: Path, tmp_path: Path):
    packed = tmp_path / "small.obo.gz"
    packed.write_bytes(gzip.compress(small.read_bytes()))
    assert Ontology.from_obo(packed).terms == Ontology.from_obo(small).terms


def test_names_in_any_script(tmp_path: Path):
    text = '\n[Term]\nid: MY:1\nname: célula Ω\nsynonym: "клетка" EXACT []\n'
    terms = Ontology.from_obo(written(tmp_path / "utf8.obo", text))
    assert terms.find("CÉLULA ω") == terms.find("Клетка") == "MY:1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n[Term]\nid: MY:1\nis_a: MY:9\n", r"has the parent 'MY:9', but no such term"),
        ("\n[Term]\nid: MY:1\nnme: a\n", r"is not a readable ontology \(.*line 6"),
        ("\n[Term]\nid: MY:1\nis_a:", "is not a readable ontology"),
        ("\n[Typedef]\nid: part_of\n", "my has no current term"),
        (
            CYCLE,
            r"my has a cycle .*: MY:1 \(a\) → MY:3 \(c\) → MY:2 \(b\) → MY:1 \(a\); remove one of these edges",
        ),
    ],
)
def test_files_that_are_no_ontology_are_refused_by_name(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        Ontology.from_obo(written(tmp_path / "bad.obo", text))


def test_paths_and_addresses_that_lead_nowhere(tmp_path: Path):
    for nothing in (tmp_path / "none.obo", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"ontology file .* does not exist; give the path .*\.obo"):
            Ontology.from_obo(nothing)
    with pytest.raises(ConnectionError, match=r"cannot download http://127\.0\.0\.1:9/x\.obo .*offline, .*from_guide"):
        Ontology.from_obo("http://127.0.0.1:9/x.obo")
    text = tmp_path / "notes.md"
    text.write_text("# Notes\n")
    with pytest.raises(SourceFormatError, match=r"notes\.md is not a readable ontology .*; expected OBO, OWL"):
        Ontology.from_obo(text)
