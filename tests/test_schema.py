"""The tables of the CELLxGENE schema agree with each other and with the guide of its ontologies."""

from __future__ import annotations

import pytest

from scdataloader.genes.organisms import infer_organism, normalise_organism
from scdataloader.ontology.readers import guide_name
from scdataloader.schema import LABEL_COLUMNS, ONTOLOGIES, ORGANISMS


@pytest.mark.parametrize("column", LABEL_COLUMNS)
def test_ontologies_of_columns_are_known(column):
    assert set(LABEL_COLUMNS[column].ontologies) <= set(ONTOLOGIES)


@pytest.mark.parametrize("name", ONTOLOGIES)
def test_ontologies_are_spelt_as_in_the_guide(name):
    assert guide_name(name) == name


def test_registries_of_columns_are_those_of_an_ontology():
    assert {known.registry for known in LABEL_COLUMNS.values()} == {known.registry for known in ONTOLOGIES.values()} - {
        None
    }


def test_organisms_of_ontologies_are_known():
    common_names = {known.names[0] for known in ORGANISMS.values()}
    for known in ONTOLOGIES.values():
        assert known.organism is None or known.organism in ORGANISMS
        assert known.source_organism == "all" or known.source_organism in common_names


def test_names_and_prefixes_belong_to_one_organism():
    for taxon, known in ORGANISMS.items():
        for name in (known.scientific_name, *known.names):
            assert name == name.lower()
            assert normalise_organism(name.title()) == taxon
        assert infer_organism([f"{known.gene_prefix}00000000001"]) == taxon
