"""Genes of a curated file."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from scdataloader.curation.recipe import Recipe, Rule
from tests.curation.helpers import IDS, cells, failed, kept, table, written


def recipe(folder, **options):
    return Recipe(**{"genes": {"Homo sapiens": table(folder)}, "min_gene_overlap": 0.0} | options)


def test_symbols_synonyms_and_ids_are_matched_and_repeats_summed(tmp_path):
    names = ["TP53", "CD4", "ENSG00000000003.7", "TWICE", "GFP", "TP53", "7SK_ENSG00000000007", "COX1"]
    raw = cells(names, organism="human")
    outcome, found = kept(written(tmp_path / "a.h5ad", raw), recipe(tmp_path))
    x = raw.X.toarray()
    assert list(found.var_names) == [IDS[0], IDS[1], IDS[2], IDS[3], IDS[6]]
    assert list(found.var["symbol"]) == ["TP53", "CD4", "MT-ND1", "MT-CO1", ""]
    expected = np.stack([x[:, 0] + x[:, 5], x[:, 1], x[:, 2], x[:, 7], x[:, 6]], axis=1)
    np.testing.assert_array_equal(found.X.toarray(), expected)
    assert outcome.notes[:3] == (
        "genes without match, dropped: 2 (GFP, TWICE)",
        "of these, ambiguous names: 1 (TWICE)",
        f"genes that occur more than once, summed: 1 ({IDS[0]})",
    )
    assert (outcome.n_genes_in, outcome.n_genes_out) == (8, 5)


@pytest.mark.parametrize("others", [["TP53"], ["ENSG00000000001.4"], ["BCC7"]])
def test_a_synonym_beside_another_name_of_the_gene_means_another_gene(tmp_path, others):
    raw = cells(["P53", *others, "CD4"], organism="human")
    outcome, found = kept(written(tmp_path / "a.h5ad", raw), recipe(tmp_path))
    expected = {"CD4": raw.X.toarray()[:, 2]} | ({} if others == ["BCC7"] else {"TP53": raw.X.toarray()[:, 1]})
    assert set(found.var["symbol"]) == set(expected)
    for place, symbol in enumerate(found.var["symbol"]):
        np.testing.assert_array_equal(found.X.toarray()[:, place], expected[symbol])
    (said,) = [note for note in outcome.notes if "ambiguous" in note]
    assert "P53" in said


def test_symbols_among_ids_are_looked_up_too(tmp_path):
    raw = cells([*IDS[2:], "TP53", "BCC7", "P53"], organism="human")
    _, found = kept(written(tmp_path / "a.h5ad", raw), recipe(tmp_path))
    assert list(found.var_names) == [IDS[0], *IDS[2:]]
    np.testing.assert_array_equal(found.X.toarray()[:, 0], raw.X.toarray()[:, len(IDS) - 2])


def test_few_ids_with_versions_and_no_table(tmp_path):
    raw = cells(["ENSG00000000001.4", "GFP", "RFP"], organism="human")
    _, found = kept(written(tmp_path / "a.h5ad", raw), Recipe(min_gene_overlap=0))
    assert list(found.var_names) == [IDS[0]]


def test_unmatched_genes_are_kept_where_asked_for(tmp_path):
    raw = cells(["CD4", "GFP", "TP53", "ERCC-1"])
    outcome, found = kept(written(tmp_path / "a.h5ad", raw), recipe(tmp_path, unmatched_genes="keep"))
    assert list(found.var_names) == [IDS[0], IDS[1], "ERCC-1", "GFP"]
    assert list(found.var["in_table"]) == [True, True, False, False]
    np.testing.assert_array_equal(found.X.toarray(), raw.X.toarray()[:, [2, 0, 3, 1]])
    assert outcome.notes[:1] == ("genes without match, kept under their own names: 2 (ERCC-1, GFP)",)


def test_a_column_of_var_that_the_rule_names(tmp_path):
    raw = cells(["a", "b", "c"])
    raw.var["symbol"] = ["CD4", "TP53", "GFP"]
    path = written(tmp_path / "a.h5ad", raw)
    _, found = kept(path, recipe(tmp_path, rules={"a*": Rule(genes="symbol")}))
    assert list(found.var_names) == [IDS[0], IDS[1]]
    (tmp_path / "out" / "a.h5ad").unlink()
    assert "no var column 'symbols' for gene ids; the nearest are 'symbol'" in failed(
        path, recipe(tmp_path, rules={"a*": Rule(genes="symbols")})
    )


def test_without_a_table_ids_of_the_organism_are_kept(tmp_path):
    raw = cells(["ENSG00000000002.1", "ENSMUSG00000000001", "ENSG00000000001", "GFP"])
    raw.var["gene_name"] = ["CD4", "Trp53", None, "GFP"]
    outcome, found = kept(written(tmp_path / "a.h5ad", raw))
    assert list(found.var_names) == IDS[:2]
    assert list(found.var["symbol"]) == ["", "CD4"]
    assert outcome.notes[:1] == ("genes without match, dropped: 2 (ENSMUSG00000000001, GFP)",)


def test_symbols_are_matched_by_the_table_of_the_package(tmp_path):
    raw = cells(["CD99", "x", "ENSG00000000001", "TP53"])
    raw.var["feature_types"] = ["Gene Expression"] * 3 + ["Antibody Capture"]
    outcome, found = kept(written(tmp_path / "a.h5ad", raw))
    assert list(found.var_names) == ["ENSG00000000001", "ENSG00000002586"]
    np.testing.assert_array_equal(found.X.toarray(), raw.X.toarray()[:, [2, 0]])
    assert outcome.notes[:2] == (
        "genes without match, dropped: 1 (x)",
        "features that are not genes, left out: 1 Antibody Capture by var['feature_types']",
    )


def test_symbols_without_any_table_are_refused(tmp_path):
    said = failed(written(tmp_path / "a.h5ad", cells(["CD4", "TP53"], organism="cow")))
    assert "a.h5ad is of NCBITaxon:9913 and has no Ensembl-style ids of it (its genes look like CD4, TP53)" in said
    assert "give the recipe a gene table" in said


def test_too_few_genes_in_common_are_refused(tmp_path):
    path = written(tmp_path / "a.h5ad", cells(["CD4", *(f"x{i}" for i in range(9))]))
    assert "shares 1 genes" in failed(path, recipe(tmp_path, min_gene_overlap=0.2))


def test_a_count_that_float32_has_not_is_refused(tmp_path):
    raw = cells(IDS[:2])
    x = raw.X.toarray().astype(np.int64)
    x[3, 1] = (1 << 24) + 1
    raw.X = csr_matrix(x)
    assert "float32 is exact up to 16,777,216" in failed(written(tmp_path / "a.h5ad", raw))
