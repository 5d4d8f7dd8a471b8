"""Where the names of a source's genes are found."""

from __future__ import annotations

import logging

import pandas as pd
import pytest

from scdataloader.genes.names import gene_names, without_version

TP53, CD4, MYC, PTEN = "ENSG00000141510", "ENSG00000010610", "ENSG00000136997", "ENSG00000171862"


def test_an_index_of_ids_loses_its_versions():
    var = pd.DataFrame(index=[f"{TP53}.19", CD4, "CUSTOM001_PuroR", "AC012345.1"])
    var = pd.concat([var, pd.DataFrame(index=[MYC])])
    assert gene_names(var, source="a") == [TP53, CD4, "CUSTOM001_PuroR", "AC012345.1", MYC]


def test_a_column_of_ids_is_found_when_the_index_has_none(caplog):
    var = pd.DataFrame({"length": [1, 2], "symbol": ["a", "b"], "ensembl_id": [f"{TP53}.2", CD4]}, index=["0", "1"])
    with caplog.at_level(logging.INFO, logger="scdataloader"):
        assert gene_names(var, source="a.h5ad") == [TP53, CD4]
    assert "a.h5ad: gene ids are read from var['ensembl_id']" in caplog.text


@pytest.mark.parametrize("dtype", ["category", "string", object])
def test_a_column_of_ids_is_found_whatever_its_dtype(dtype):
    var = pd.DataFrame({"ids": pd.Series([TP53, CD4], dtype=dtype, index=["0", "1"])})
    assert gene_names(var, source="a") == [TP53, CD4]


def test_a_second_column_with_other_ids_is_warned_of(caplog):
    var = pd.DataFrame(
        {"ortholog": ["ENSMUSG00000059552", "ENSMUSG00000023274"], "gene_id": [TP53, CD4]}, index=["0", "1"]
    )
    assert gene_names(var, source="a") == [TP53, CD4]
    assert "not from ['ortholog']" in caplog.text


def test_a_column_below_nine_in_ten_is_not_taken_by_itself():
    var = pd.DataFrame({"ids": [TP53, CD4, "x", "y"]}, index=list("abcd"))
    assert gene_names(var, source="a") == list("abcd")
    assert gene_names(var, column="ids", source="a") == [TP53, CD4, "x", "y"]


def test_a_named_column_goes_before_ids_in_the_index_and_falls_back_to_it_where_empty():
    var = pd.DataFrame({"new": [MYC, None, PTEN]}, index=[TP53, CD4, "x"])
    assert gene_names(var, column="new", source="a") == [MYC, CD4, PTEN]


def test_a_missing_column_is_refused_with_the_nearest():
    var = pd.DataFrame({"ensembl_id": [TP53], "length": [1]}, index=["0"])
    with pytest.raises(KeyError, match=r"a\.h5ad has no var column 'ensemble'.*'ensembl_id'"):
        gene_names(var, column="ensemble", source="a.h5ad")


def test_symbols_stay_as_written():
    names = ["TP53", "CD4-1", "7SK_ENSG00000260682", "LINC_ENSG_1", "AC012345.1"]
    assert gene_names(pd.DataFrame(index=names), source="a") == names


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("ENSG00000182378.15_PAR_Y", "ENSG00000182378_PAR_Y"),
        ("ENSG00000182378_PAR_Y", "ENSG00000182378_PAR_Y"),
        ("ENSGR0000182378.10", "ENSG00000182378_PAR_Y"),
        ("ENSGR0000182378", "ENSG00000182378_PAR_Y"),
        ("ENSG00000223972.5_2", "ENSG00000223972"),
        ("AC012345.1", "AC012345.1"),
    ],
)
def test_versions_in_all_forms_are_ignored(name, plain):
    assert without_version([name]) == [plain]
