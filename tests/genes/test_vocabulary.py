"""Genes: names of organisms, where ids are found, the vocabulary and the maps onto it."""

from __future__ import annotations

import gzip
import logging

import numpy as np
import pandas as pd
import pytest

from scdataloader.errors import GeneOverlapError
from scdataloader.genes.vocabulary import GeneVocabulary, gene_ids, infer_organism, normalise_organism, read_gene_table
from tests.conftest import DATA

TP53, CD4, MYC, PTEN = "ENSG00000141510", "ENSG00000010610", "ENSG00000136997", "ENSG00000171862"


@pytest.fixture(scope="module")
def human_table():
    path = DATA.parent / "genes" / "genes_homo_sapiens.csv.gz"
    if not path.exists():
        pytest.skip(f"no table of genes: {path} does not exist")
    return read_gene_table(path)


class TestOrganisms:
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
        ],
    )
    def test_every_way_to_name_an_organism_gives_its_taxon(self, name, organism):
        assert normalise_organism(name) == organism

    def test_an_unknown_name_is_refused_with_the_nearest_and_the_known(self):
        with pytest.raises(
            ValueError, match=r"unknown organism 'zebrafisch' \(did you mean 'zebrafish'\?\).*homo sapiens"
        ):
            normalise_organism("zebrafisch")

    @pytest.mark.parametrize(
        ("ids", "organism"),
        [
            ([TP53, CD4], "NCBITaxon:9606"),
            (["ENSMUSG00000059552.12"], "NCBITaxon:10090"),
            (["WBGene00000014", "WBGene00000018"], "NCBITaxon:6239"),
            (["FBgn0000008"], "NCBITaxon:7227"),
            ([TP53, CD4, "ERCC-00002"], "NCBITaxon:9606"),
            ([TP53, "GFP"], None),  # only half
            ([TP53] * 8 + ["ENSMUSG00000059552"] * 2, None),  # a mixture
            (["ENSXYZG00000000001"], None),  # a species of no name here
            (["TP53", "CD4"], None),
            ([], None),
        ],
    )
    def test_the_prefix_of_most_ids_tells_the_organism(self, ids, organism):
        assert infer_organism(ids) == organism


class TestGeneIds:
    def test_an_index_of_ids_loses_its_versions(self):
        var = pd.DataFrame(index=[f"{TP53}.19", CD4, "CUSTOM001_PuroR", "AC012345.1"])
        var = pd.concat([var, pd.DataFrame(index=[MYC])])
        assert gene_ids(var, name="a") == [TP53, CD4, "CUSTOM001_PuroR", "AC012345.1", MYC]

    def test_a_column_of_ids_is_found_when_the_index_has_none(self, caplog):
        var = pd.DataFrame({"length": [1, 2], "symbol": ["a", "b"], "ensembl_id": [f"{TP53}.2", CD4]}, index=["0", "1"])
        with caplog.at_level(logging.INFO, logger="scdataloader"):
            assert gene_ids(var, name="a.h5ad") == [TP53, CD4]
        assert "a.h5ad: gene ids are taken from var['ensembl_id']" in caplog.text

    @pytest.mark.parametrize("dtype", ["category", "string", object])
    def test_a_column_of_ids_is_found_whatever_its_dtype(self, dtype):
        var = pd.DataFrame({"ids": pd.Series([TP53, CD4], dtype=dtype, index=["0", "1"])})
        assert gene_ids(var, name="a") == [TP53, CD4]

    def test_a_second_column_with_other_ids_is_warned_of(self, caplog):
        var = pd.DataFrame(
            {"ortholog": ["ENSMUSG00000059552", "ENSMUSG00000023274"], "gene_id": [TP53, CD4]}, index=["0", "1"]
        )
        assert gene_ids(var, name="a") == [TP53, CD4]
        assert "not from ['ortholog']" in caplog.text

    def test_a_column_below_nine_in_ten_is_not_taken_by_itself(self):
        var = pd.DataFrame({"ids": [TP53, CD4, "x", "y"]}, index=list("abcd"))
        assert gene_ids(var, name="a") == list("abcd")
        assert gene_ids(var, column="ids", name="a") == [TP53, CD4, "x", "y"]

    def test_a_named_column_goes_before_ids_in_the_index_and_falls_back_to_it_where_empty(self):
        var = pd.DataFrame({"new": [MYC, None, PTEN]}, index=[TP53, CD4, "x"])
        assert gene_ids(var, column="new", name="a") == [MYC, CD4, PTEN]

    def test_a_missing_column_is_refused_with_the_nearest(self):
        var = pd.DataFrame({"ensembl_id": [TP53], "length": [1]}, index=["0"])
        with pytest.raises(KeyError, match=r"a\.h5ad has no var column 'ensemble'.*'ensembl_id'"):
            gene_ids(var, column="ensemble", name="a.h5ad")

    def test_symbols_go_through_a_table_and_the_rest_keep_their_names(self):
        table = {"TP53": TP53, "CD4": CD4}
        var = pd.DataFrame(index=["TP53", "CD4", "CD4-1", "7SK_ENSG00000260682", "ENSG00000136997.4", "LINC_ENSG_1"])
        expected = [TP53, CD4, "CD4-1", "ENSG00000260682", MYC, "LINC_ENSG_1"]
        assert gene_ids(var, table=table, name="a") == expected
        assert gene_ids(var.reset_index(), column="index", table=table, name="a") == expected
        assert gene_ids(var, name="a") == list(var.index)

    def test_real_files(self, real_data, human_table):
        import anndata

        found = {}
        for name in ("mouse_brain_merfish", "human_gut_scp1884", "human_cd4_perturb", "worm_l2"):
            var = anndata.read_h5ad(real_data / f"{name}.h5ad", backed="r").var
            ids = gene_ids(var, table=human_table, name=name)
            found[name] = (infer_organism(ids), ids[0])
        assert found == {
            "mouse_brain_merfish": ("NCBITaxon:10090", "ENSMUSG00000024798"),
            "human_gut_scp1884": ("NCBITaxon:9606", "ENSG00000260682"),  # named 7SK_ENSG00000260682
            "human_cd4_perturb": ("NCBITaxon:9606", "ENSG00000145365"),
            "worm_l2": ("NCBITaxon:6239", "WBGene00000010"),
        }


class TestGeneTable:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.csv", f"{TP53},TP53,20,1,protein_coding\n{CD4},CD4,1,1,protein_coding\n"),
            ("a.csv.gz", f"{TP53}.20,TP53\n{CD4},CD4\n"),
            ("a.csv", f"number,symbol,ensembl_gene_id\n0,TP53,{TP53}\n1,CD4,{CD4}\n"),
            ("a.tsv", f"gene_id\tgene_name\n{TP53}.3\tTP53\n{CD4}\tCD4\n"),
        ],
    )
    def test_with_and_without_header(self, tmp_path, name, text):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
        assert read_gene_table(tmp_path / name) == {"TP53": TP53, "CD4": CD4}

    def test_a_shared_symbol_is_left_out_and_nan_is_a_symbol(self, tmp_path, caplog):
        path = tmp_path / "a.csv"
        path.write_text(f"{TP53},A\n{CD4},A\n{MYC},NaN\n{MYC}.2,NaN\n{PTEN},\n")
        with caplog.at_level(logging.INFO, logger="scdataloader"):
            assert read_gene_table(path) == {"NaN": MYC}
        assert "1 symbols are left out" in caplog.text

    def test_another_file_is_refused(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text("cell,count\nc1,3\n")
        with pytest.raises(ValueError, match=r"a\.csv is no table of genes: expected a header.*\['cell', 'count'\]"):
            read_gene_table(path)

    def test_the_human_table(self, human_table):
        assert human_table["TP53"] == TP53
        assert len(human_table) == 78_894 - 2_111  # rows whose symbol is shared


class TestVocabulary:
    def test_parts_follow_each_other_in_the_order_given(self):
        vocabulary = GeneVocabulary.from_dict({"mouse": ["ENSMUSG00000059552.3"], "human": [TP53, CD4]})
        assert vocabulary.ids == ["ENSMUSG00000059552", TP53, CD4]
        assert vocabulary.organisms == {"NCBITaxon:10090": (0, 1), "NCBITaxon:9606": (1, 3)}
        assert vocabulary.genes_dict == {"NCBITaxon:10090": ["ENSMUSG00000059552"], "NCBITaxon:9606": [TP53, CD4]}
        assert len(vocabulary) == 3

    def test_the_map_of_a_source(self):
        vocabulary = GeneVocabulary.from_dict({"mouse": ["ENSMUSG00000059552"], "human": [TP53, CD4, MYC]})
        genes = vocabulary.map([MYC, "GFP", f"{CD4}.9", MYC, "ENSMUSG00000059552"], "human", source="a.h5ad")
        assert genes.lut.tolist() == [3, -1, 2, 3, -1]  # another organism's gene is outside
        assert genes.lut.dtype == np.int32
        assert genes.measured.tolist() == [False, False, True, True]
        assert (genes.n_matched, genes.n_dropped, genes.n_organism) == (2, 2, 3)
        assert genes.duplicates == (MYC,)
        assert not genes.monotone
        assert genes.summary("a.h5ad") == (
            "a.h5ad: 3 of its 5 genes are in the vocabulary (2 of 3 for NCBITaxon:9606), 2 dropped, "
            f"1 that occur more than once summed ({MYC})"
        )

    @pytest.mark.parametrize(
        ("ids", "monotone"), [(["a", "x", "b", "c"], True), (["a", "a"], False), (["b", "a"], False), (["c"], True)]
    )
    def test_monotone_means_strictly_ascending(self, ids, monotone):
        assert GeneVocabulary.from_dict({"human": ["a", "b", "c"]}).map(ids, "human", source="s").monotone is monotone

    def test_repeats_are_refused_by_name(self):
        with pytest.raises(ValueError, match=r"2 gene ids occur more than once in the vocabulary \(a, b\)"):
            GeneVocabulary.from_dict({"human": ["a", "b", "a", "b", "a", "c"]})
        with pytest.raises(ValueError, match="1 gene ids"):
            GeneVocabulary.from_dict({"human": [f"{TP53}.1", f"{TP53}.2"]})
        with pytest.raises(ValueError, match="over all organisms"):
            GeneVocabulary.from_dict({"human": ["CD4"], "chimp": ["CD4"]})

    def test_an_organism_named_twice_is_refused(self):
        with pytest.raises(ValueError, match="NCBITaxon:9606 twice, the second time as 'human'"):
            GeneVocabulary.from_dict({"homo_sapiens": ["a"], "human": ["b"]})

    def test_parts_that_leave_a_gap_are_refused(self):
        with pytest.raises(ValueError, match="do not tile"):
            GeneVocabulary(ids=["a", "b"], organisms={"NCBITaxon:9606": (0, 1)})

    def test_too_small_an_overlap_is_refused_with_numbers_and_examples(self):
        vocabulary = GeneVocabulary.from_dict({"human": [TP53, CD4, MYC, PTEN]})
        source = [TP53, CD4, CD4, "x", "y", "z", "w"]
        assert vocabulary.map(source, "human", source="s", min_overlap=0.5).n_matched == 2  # 2 of the 4
        with pytest.raises(GeneOverlapError) as error:
            vocabulary.map(source, "human", source="s.h5ad", min_overlap=0.51)
        for part in ("s.h5ad shares 2 genes", "of its own 6", "4 of NCBITaxon:9606", "50.0%", "51.0%", TP53, MYC):
            assert part in str(error.value)
        # a small panel is measured by itself
        assert vocabulary.map([TP53], "human", source="s", min_overlap=1.0).n_matched == 1

    @pytest.mark.parametrize("ids", [["x", "y"], []])
    def test_no_shared_gene_is_refused_always(self, ids):
        with pytest.raises(GeneOverlapError, match="at least one gene is needed"):
            GeneVocabulary.from_dict({"human": [TP53]}).map(ids, "human", source="s")

    def test_an_organism_outside_the_vocabulary_is_refused(self):
        with pytest.raises(GeneOverlapError, match=r"s is of NCBITaxon:10090, but .* NCBITaxon:9606 only"):
            GeneVocabulary.from_dict({"human": [TP53]}).map([TP53], "mouse", source="s")

    def test_golden_digest(self):
        """The digest stands in checkpoints: change it only if you mean to."""
        assert GeneVocabulary.from_dict({"human": [TP53, CD4]}).digest == "8d67d8723b0f818e2e05c644841cd979"
