"""Names of organisms, the organism of gene ids, and the organisms of a source's cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.genes.organisms import UNSTATED, find_organisms, infer_organism, normalise_organism

TP53, CD4 = "ENSG00000141510", "ENSG00000010610"


@pytest.mark.parametrize(
    ("name", "organism"),
    [
        ("human", "NCBITaxon:9606"),
        ("Homo sapiens", "NCBITaxon:9606"),
        ("homo_sapiens", "NCBITaxon:9606"),
        ("NCBITaxon:9606", "NCBITaxon:9606"),
        ("ncbitaxon_9606", "NCBITaxon:9606"),
        ("9606", "NCBITaxon:9606"),
        (" Mouse ", "NCBITaxon:10090"),
        ("Caenorhabditis elegans", "NCBITaxon:6239"),
        ("crab-eating macaque", "NCBITaxon:9541"),
        ("NCBITaxon:8296", "NCBITaxon:8296"),
        ("9606.0", "NCBITaxon:9606"),  # a number in a column with missing values
        ("C. elegans", "NCBITaxon:6239"),
        ("H. sapiens", "NCBITaxon:9606"),
        ("NCBITaxon:9825", "NCBITaxon:9823"),
        ("Sus scrofa domesticus", "NCBITaxon:9823"),
        ("NCBITaxon:10092", "NCBITaxon:10090"),
        ("Gorilla gorilla", "NCBITaxon:9595"),
        ("NCBITaxon:9593", "NCBITaxon:9595"),
    ],
)
def test_every_way_to_name_an_organism_gives_its_taxon(name, organism):
    assert normalise_organism(name) == organism


def test_an_unknown_name_is_refused_with_the_nearest_and_the_known():
    with pytest.raises(ValueError, match=r"unknown organism 'zebrafisch' \(did you mean 'zebrafish'\?\).*homo sapiens"):
        normalise_organism("zebrafisch")


@pytest.mark.parametrize(
    ("ids", "organism"),
    [
        ([TP53, CD4], "NCBITaxon:9606"),
        (["ENSMUSG00000059552.12"], "NCBITaxon:10090"),
        (["WBGene00000014", "WBGene00000018"], "NCBITaxon:6239"),
        (["FBgn0000008"], "NCBITaxon:7227"),
        ([TP53, CD4, "ERCC-00002"], "NCBITaxon:9606"),
        (["ENSG00000182378.15_PAR_Y"], "NCBITaxon:9606"),
        ([TP53, "GFP"], None),  # only half
        ([TP53] * 8 + ["ENSMUSG00000059552"] * 2, None),  # a mixture
        (["ENSXYZG00000000001"], None),  # a species of no name here
        (["TP53", "CD4"], None),
        ([], None),
    ],
)
def test_the_prefix_of_most_ids_tells_the_organism(ids, organism):
    assert infer_organism(ids) == organism


HUMAN, MOUSE, WORM = "NCBITaxon:9606", "NCBITaxon:10090", "NCBITaxon:6239"
names = st.sampled_from([None, "human", "Mus musculus", WORM])


@given(names, st.dictionaries(st.sampled_from(["a", "b"]), names), names, st.sampled_from([[TP53], ["TP53"]]))
def test_g4_the_user_goes_before_obs_and_uns_and_gene_ids(by_user, by_column, in_uns, genes):
    """What comes after the first that states an organism is not read."""
    read = []

    def columns():
        for column, organism in by_column.items():
            read.append(column)
            yield column, pd.Series([organism] * 3, dtype=object)

    def note(what, value):
        read.append(what)
        return value

    found = find_organisms(
        "s",
        given=by_user,
        obs=columns(),
        uns=lambda: note("uns", in_uns),
        by_ids=lambda: infer_organism(note("genes", genes)),
    )
    stated = [by_user, *by_column.values(), in_uns]
    first = next((place for place, organism in enumerate(stated) if organism), len(stated))
    by_ids = HUMAN if genes == [TP53] else UNSTATED
    assert found == [(normalise_organism(stated[first]) if first < len(stated) else by_ids, None)]
    assert read == [*by_column, "uns", "genes"][:first]


@given(st.lists(st.sampled_from(["human", "Homo sapiens", "mouse", "worm"]), min_size=1))
def test_each_cell_is_a_row_of_its_organism(labels):
    column = pd.Series(labels, index=[f"cell{i}" for i in range(len(labels))])
    found = find_organisms("s", given=None, obs=[("organism", column)], uns=lambda: None, by_ids=lambda: None)
    expected = [normalise_organism(label) for label in labels]
    assert [organism for organism, _ in found] == sorted(set(expected))
    for organism, rows in found:
        assert (rows is None) == (len(found) == 1)
        at = np.arange(len(labels)) if rows is None else rows
        assert at.tolist() == [row for row, other in enumerate(expected) if other == organism]


def test_unused_categories_state_nothing():
    column = pd.Series(pd.Categorical(["human"] * 2, categories=["human", "mouse", "no organism"]))
    assert find_organisms("s", given=None, obs=[("o", column)], uns=lambda: None, by_ids=lambda: None) == [
        (HUMAN, None)
    ]


def test_cells_without_organism_beside_others_are_refused():
    column = pd.Series(["human", None, "mouse"])
    with pytest.raises(ValueError, match=r"1 of the 3 cells of s have no organism in obs\['o'\]"):
        find_organisms("s", given=None, obs=[("o", column)], uns=lambda: None, by_ids=lambda: None)


@pytest.mark.parametrize("word", ["unknown", "", "NaN", "<NA>", "NCBITaxon:32644", None])
@pytest.mark.parametrize("others", [[], ["human"]])
def test_words_for_unknown_count_as_missing(word, others):
    column = pd.Series([word, *others], dtype=object)
    columns = [("organism_ontology_term_id", column), ("organism", pd.Series(["human", *others]))]
    for stated in (columns[:1], columns):
        assert find_organisms("s", given=None, obs=stated, uns=lambda: "unknown", by_ids=lambda: HUMAN) == [
            (HUMAN, None)
        ]
    if others:
        found = find_organisms("s", given=None, obs=columns[:1], uns=lambda: None, by_ids=lambda: MOUSE)
        assert [(organism, rows.tolist()) for organism, rows in found] == [(MOUSE, [0]), (HUMAN, [1])]


@pytest.mark.parametrize("where", ["obs['organism']", "uns"])
def test_an_unknown_organism_names_file_place_and_option(where):
    obs = [("organism", pd.Series(["hg38"]))] if where != "uns" else []
    with pytest.raises(ValueError, match="hg38") as error:
        find_organisms("a.h5ad", given=None, obs=obs, uns=lambda: "hg38", by_ids=lambda: HUMAN)
    for part in ("a.h5ad", where, "organisms={'a.h5ad': 'human'}", "--organisms a.h5ad=human", "rule"):
        assert part in str(error.value)
