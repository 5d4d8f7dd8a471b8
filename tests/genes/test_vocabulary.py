"""The vocabulary, and the maps of sources to it."""

from __future__ import annotations

import numpy as np
import pytest

from scdataloader.errors import GeneOverlapError
from scdataloader.genes.vocabulary import GeneVocabulary

TP53, CD4, MYC, PTEN = "ENSG00000141510", "ENSG00000010610", "ENSG00000136997", "ENSG00000171862"


def test_parts_follow_each_other_in_the_order_given():
    vocabulary = GeneVocabulary.from_dict({"mouse": ["ENSMUSG00000059552.3"], "human": [TP53, CD4]})
    assert vocabulary.ids == ["ENSMUSG00000059552", TP53, CD4]
    assert vocabulary.organisms == {"NCBITaxon:10090": (0, 1), "NCBITaxon:9606": (1, 3)}
    assert vocabulary.genes_dict == {"NCBITaxon:10090": ["ENSMUSG00000059552"], "NCBITaxon:9606": [TP53, CD4]}
    assert len(vocabulary) == 3


def test_the_map_of_a_source():
    vocabulary = GeneVocabulary.from_dict({"mouse": ["ENSMUSG00000059552"], "human": [TP53, CD4, MYC]})
    ids = [MYC, "GFP", f"{CD4}.9", MYC, "ENSMUSG00000059552"]
    genes = vocabulary.map(ids, "human", source="a.h5ad")
    assert genes.lut.tolist() == [3, -1, 2, 3, -1]  # another organism's gene is outside
    assert genes.lut.dtype == np.int32
    assert genes.measured.tolist() == [False, False, True, True]
    assert (genes.n_matched, genes.n_dropped, genes.n_organism) == (2, 2, 3)
    assert genes.duplicates == (MYC,)
    assert not genes.monotone
    assert genes.summary("a.h5ad", ids) == (
        "a.h5ad: 3 of its 5 genes are in the vocabulary (2 of 3 for NCBITaxon:9606); "
        "genes without match, dropped: 2 (ENSMUSG00000059552, GFP); "
        f"genes that occur more than once, summed: 1 ({MYC})"
    )


@pytest.mark.parametrize(
    ("ids", "monotone"), [(["a", "x", "b", "c"], True), (["a", "a"], False), (["b", "a"], False), (["c"], True)]
)
def test_monotone_means_strictly_ascending(ids, monotone):
    assert GeneVocabulary.from_dict({"human": ["a", "b", "c"]}).map(ids, "human", source="s").monotone is monotone


def test_repeats_are_refused_by_name():
    with pytest.raises(ValueError, match=r"2 gene ids occur more than once in the vocabulary \(a, b\)"):
        GeneVocabulary.from_dict({"human": ["a", "b", "a", "b", "a", "c"]})
    with pytest.raises(ValueError, match="1 gene ids"):
        GeneVocabulary.from_dict({"human": [f"{TP53}.1", f"{TP53}.2"]})


def test_an_id_of_two_organisms_is_two_genes():
    vocabulary = GeneVocabulary.from_dict({"human": [TP53, "ERCC-00002"], "mouse": ["ERCC-00002", "eGFP"]})
    assert vocabulary.ids == [TP53, "ERCC-00002", "ERCC-00002", "eGFP"]
    assert vocabulary.map(["eGFP", "ERCC-00002"], "human", source="h").lut.tolist() == [-1, 1]
    assert vocabulary.map(["eGFP", "ERCC-00002"], "mouse", source="m").lut.tolist() == [3, 2]
    assert GeneVocabulary.from_dict(vocabulary.genes_dict) == vocabulary


def test_an_organism_named_twice_is_refused():
    with pytest.raises(ValueError, match="NCBITaxon:9606 twice, the second time as 'human'"):
        GeneVocabulary.from_dict({"homo_sapiens": ["a"], "human": ["b"]})


def test_parts_that_leave_a_gap_are_refused():
    with pytest.raises(ValueError, match="do not tile"):
        GeneVocabulary(ids=["a", "b"], organisms={"NCBITaxon:9606": (0, 1)})


def test_too_small_an_overlap_is_refused_with_numbers_and_examples():
    vocabulary = GeneVocabulary.from_dict({"human": [TP53, CD4, MYC, PTEN]})
    source = [TP53, CD4, CD4, "x", "y", "z", "w"]
    assert vocabulary.map(source, "human", source="s", min_overlap=0.5).n_matched == 2  # 2 of the 4
    with pytest.raises(GeneOverlapError) as error:
        vocabulary.map(source, "human", source="s.h5ad", min_overlap=0.51)
    for part in ("s.h5ad shares 2 genes", "its 6 genes", "4 of NCBITaxon:9606", "50.0%", "51.0%", TP53, MYC):
        assert part in str(error.value)
    # a small panel is measured by itself
    assert vocabulary.map([TP53], "human", source="s", min_overlap=1.0).n_matched == 1


@pytest.mark.parametrize("ids", [["x", "y"], []])
def test_no_shared_gene_is_refused_always(ids):
    with pytest.raises(GeneOverlapError, match="at least one gene is needed"):
        GeneVocabulary.from_dict({"human": [TP53]}).map(ids, "human", source="s")


def test_an_organism_outside_the_vocabulary_is_refused():
    with pytest.raises(GeneOverlapError, match=r"s is of NCBITaxon:10090, but .* NCBITaxon:9606 only"):
        GeneVocabulary.from_dict({"human": [TP53]}).map([TP53], "mouse", source="s")


def test_golden_digest():
    """The digest stands in checkpoints: change it only if you mean to."""
    assert GeneVocabulary.from_dict({"human": [TP53, CD4]}).digest == "8d67d8723b0f818e2e05c644841cd979"
