"""Ontologies of cellxgene-ontology-guide: equal to the guide's own answers, and examples of real terms."""

from __future__ import annotations

import networkx as nx
import pytest
from cellxgene_ontology_guide.ontology_parser import OntologyParser
from cellxgene_ontology_guide.supported_versions import clear_ontology_file_cache, load_ontology_file

from scdataloader import Ontology

T_CELL, CD4, CD8, MEMORY = "CL:0000084", "CL:0000624", "CL:0000625", "CL:0000813"


@pytest.fixture(scope="module")
def guide() -> Ontology:
    return Ontology.from_guide("CL", schema_version="7.1.0")


@pytest.mark.parametrize("name", ["CL", "UBERON", "MONDO", "EFO", "HsapDv", "HANCESTRO"])
def test_ancestors_are_those_that_the_guide_itself_names(name):
    terms, parser = Ontology.from_guide(name.lower()), OntologyParser()
    assert terms.name == name
    asked = parser.cxg_schema.ontology(name)
    assert sorted(asked) == sorted((*terms.terms, *terms.deprecated))
    edges = nx.DiGraph()
    for term in terms.terms:
        assert terms.ancestors(term) == sorted(parser.get_term_ancestors(term))
        parents = parser.get_term_parents(term)
        assert set(parents) <= set(terms.parents(term))
        # one edge for a way through terms of other ontologies, where there is no other way
        edges.add_edges_from((term, parent) for parent in terms.parents(term))
        assert terms.label(term) == (parser.get_term_label(term) or term)
        assert terms.synonyms(term) == tuple(parser.get_term_synonyms(term))
    assert nx.is_directed_acyclic_graph(edges)
    for term in terms.deprecated:
        assert parser.is_term_deprecated(term)
        stated = parser.get_term_replacement(term)
        assert terms.replaced_by(term) == stated or (stated is None and terms.replaced_by(term) in terms)
    clear_ontology_file_cache()


def test_a_deprecated_term_without_a_replacement_goes_to_the_current_term_of_its_name():
    stages = Ontology.from_guide("HsapDv")
    assert stages.current("HsapDv:0000087") == stages.find("adult stage") == "HsapDv:0000258"
    assert stages.match("HsapDv:0000087").kind == "deprecated"
    assert Ontology.from_guide("UBERON").current("UBERON:0001055") == "UBERON:0000056"  # obsolete ureter
    match = stages.match("HsapDv:0000088")  # 60-79 year-old stage, of which there are two now
    assert (match.kind, match.term) == ("obsolete", None)
    assert match.consider == ("HsapDv:0000266 (young adult stage)", "HsapDv:0000267 (middle aged stage)")
    with pytest.raises(LookupError, match=r"no current replacement .*consider HsapDv:0000266 .*HsapDv:0000267"):
        stages.resolve("HsapDv:0000088")


def test_real_cells(guide: Ontology):
    assert (guide.name, guide.version, len(guide)) == ("CL", "v2026-03-26", 3324)
    assert [term for term in guide.terms if not guide.parents(term)] == ["CL:0000000"]
    assert guide.label(T_CELL) == "T cell"
    assert guide.find("t LYMPHOCYTE") == T_CELL
    assert guide.parents(T_CELL) == ["CL:0000542"]
    assert guide.depth(T_CELL) == 5
    assert len(guide.descendants(T_CELL)) == 171
    cd4_memory = guide.find("CD4-positive, alpha-beta memory T cell")
    assert guide.roll_up([cd4_memory, CD8], [CD4, CD8, T_CELL]) == {cd4_memory: CD4, CD8: CD8}
    with pytest.raises(ValueError, match=r"is under 2 targets.*: CL:0000624 .*, CL:0000813 \(memory T cell\); "):
        guide.roll_up([cd4_memory], [CD4, MEMORY])
    assert guide.current("CL:0000003") == "CL:0000000"  # native cell
    with pytest.raises(LookupError, match=r"'PATO:0000461' is an id of PATO, but CL v2026-03-26 has only ids of CL"):
        guide.find("PATO:0000461")


def test_assays_keep_ways_that_lead_through_other_ontologies():
    assays = Ontology.from_guide("EFO", schema_version="7.1.0")
    tenx = assays.find("10x 3' v3")
    roots = [term for term in assays.terms if not assays.parents(term)]
    assert roots == ["EFO:0000001"]  # whose children are mostly of BFO and OBI, which are not here
    assert [assays.label(term) for term in assays.ancestors(tenx)] == [
        "experimental factor",
        "experimental process",
        "planned process",
        "10x technology",
        "single cell library construction",
        "10x 3' transcription profiling",
        "10x transcription profiling",
    ]


def test_the_guides_own_cache_is_left_as_it_was(guide: Ontology):
    clear_ontology_file_cache()
    Ontology.from_guide("HsapDv")
    assert load_ontology_file.cache_info().currsize == 0
    OntologyParser().get_term_label("MmusDv:0000000")
    Ontology.from_guide("HsapDv")
    assert load_ontology_file.cache_info().currsize == 2
    clear_ontology_file_cache()


@pytest.mark.parametrize(
    ("name", "schema", "message"),
    [
        ("NCBITaxon", None, "NCBITaxon .* not supported, .*1.5 GB .*from_obo"),
        ("ncbitaxon", None, "NCBITaxon"),
        ("GO", None, r"has no ontology 'GO' in schema \d.* has CHEBI, CL, .*, ZFA; .*from_obo"),
        ("CL", "1.0.0", r"has no CELLxGENE schema '1\.0\.0'; it has 7"),
    ],
)
def test_what_the_guide_has_not_is_refused(name, schema, message):
    with pytest.raises(ValueError, match=message):
        Ontology.from_guide(name, schema_version=schema)


def test_an_ontology_is_found_by_the_prefix_of_terms_that_it_took_in():
    assert Ontology.from_guide("ZFS").name == "ZFA"
