"""Which cells of a file are kept, and which organisms they are of."""

import anndata as ad
import numpy as np
import pytest
from scipy.sparse import csr_matrix

from scdataloader.curation.recipe import Recipe
from tests.curation.helpers import IDS, cells, curate, failed, kept, written

CELL_TYPE, ASSAY = "cell_type_ontology_term_id", "assay_ontology_term_id"


# --- filters ----------------------------------------------------------------------------------------------------------


def test_assays_and_primary_data(tmp_path):
    assays = ["EFO:0009922", "10x 3' v2", "Smart-seq2", "EFO:0008931", None] * 2
    raw = cells(IDS, **{ASSAY: assays, "is_primary_data": [True] * 6 + [False] * 4})
    path = written(tmp_path / "a.h5ad", raw)
    outcome, found = kept(path, Recipe(assays=["10x 3' transcription profiling"], primary_only=True))
    assert list(found.obs_names) == ["cell0", "cell1", "cell5"]
    dropped = [note for note in outcome.notes if note.startswith("cells")]
    assert dropped == ["cells of other assays, dropped: 6", "cells of non-primary data, dropped: 1"]
    assert (outcome.n_cells_in, outcome.n_cells_out) == (10, 3)
    (tmp_path / "out" / "a.h5ad").unlink()
    said = failed(written(tmp_path / "b.h5ad", cells(IDS)), Recipe(assays=["EFO:0009922"]))
    assert f"b.h5ad has no obs column '{ASSAY}', by which the recipe filters" in said


@pytest.mark.parametrize("values", [[1, 0], [1.0, 0.0], ["TRUE", "FALSE"], ["True", "false"], ["1", "0"]])
def test_primary_data_is_said_by_truths_of_any_kind(tmp_path, values):
    path = written(tmp_path / "a.h5ad", cells(IDS, is_primary_data=values * 5))
    _, found = kept(path, Recipe(primary_only=True))
    assert list(found.obs_names) == [f"cell{number}" for number in range(0, 10, 2)]


def test_primary_data_that_are_not_said(tmp_path):
    raw = cells(IDS, is_primary_data=["yes", None] * 5)
    said = failed(written(tmp_path / "a.h5ad", raw), Recipe(primary_only=True))
    assert "a.h5ad has 'yes' in obs['is_primary_data'], expected true or false" in said


def test_genes_are_judged_by_the_cells_that_are_left(tmp_path):
    x = np.ones((10, 8), np.float32)
    x[5:, 1:] = 0  # these cells have one gene
    x[:3, 7] = 0  # in two of the cells that are left
    raw = cells(IDS)
    raw.X = csr_matrix(x)
    path = written(tmp_path / "a.h5ad", raw)
    outcome, found = kept(path, Recipe(min_genes_per_cell=2, min_cells_per_gene=3))
    assert found.shape == (5, 7)
    assert outcome.notes[:2] == (
        "cells with fewer than 2 genes, dropped: 5",
        "genes in fewer than 3 cells, dropped: 1",
    )
    x[5:, 7] = 1  # and in all of those that are not
    raw.X = csr_matrix(x)
    _, found = kept(written(path, raw), Recipe(min_genes_per_cell=3, min_cells_per_gene=3))
    assert list(found.var_names) == IDS[:7]


def test_a_share_of_mitochondrial_counts(tmp_path):
    raw = cells(IDS)
    raw.var["symbol"] = ["MT-1", "MT-2", *IDS[2:]]
    _, found = kept(written(tmp_path / "a.h5ad", raw), Recipe(max_pct_mt=25.0))
    share = raw.X[:, :2].sum(axis=1) / raw.X.sum(axis=1)
    assert list(found.obs_names) == [f"cell{i}" for i in np.flatnonzero(np.asarray(share).ravel() <= 0.25)]
    assert 0 < found.n_obs < 10


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"min_cells_per_file": 11}, "10 cells are left, fewer than the minimum of 11"),
        ({"min_genes_per_file": 9}, "8 genes are left, fewer than the minimum of 9"),
        (
            {"min_counts_per_cell": 10_000},
            "0 cells are left, fewer than the minimum of 1; cells with fewer than 10,000 counts, dropped: 10",
        ),
        (
            {"min_cells_per_gene": 11},
            "0 genes are left, fewer than the minimum of 1; genes in fewer than 11 cells, dropped: 8",
        ),
    ],
)
def test_too_little_is_dropped(tmp_path, options, why):
    (outcome,) = curate(written(tmp_path / "a.h5ad", cells(IDS)), Recipe(**options))
    assert (outcome.status, outcome.reason, outcome.output) == ("dropped", why, None)
    assert list((tmp_path / "out").iterdir()) == []


# --- organisms --------------------------------------------------------------------------------------------------------


def test_a_file_of_two_organisms_is_refused_or_split(tmp_path):
    mouse = [gene.replace("ENSG", "ENSMUSG") for gene in IDS]
    raw = cells([*IDS, *mouse], organism=["human", "Mus musculus", "mouse", "human", "mouse"] * 2)
    path = written(tmp_path / "a.h5ad", raw)
    said = failed(path)
    assert "a.h5ad mixes organisms: NCBITaxon:10090 (6 cells), NCBITaxon:9606 (4 cells)" in said
    assert "mixed_organisms: split" in said
    outcomes = curate(path, Recipe(mixed_organisms="split"))
    assert [(one.organism, one.n_cells_in, one.n_genes_out) for one in outcomes] == [
        ("NCBITaxon:10090", 6, 8),
        ("NCBITaxon:9606", 4, 8),
    ]
    assert [one.output.name for one in outcomes] == ["a.NCBITaxon_10090.h5ad", "a.NCBITaxon_9606.h5ad"]
    for outcome, genes in zip(outcomes, (mouse, IDS), strict=True):
        found = ad.read_h5ad(outcome.output)
        assert set(found.obs["organism_ontology_term_id"]) == {outcome.organism}
        np.testing.assert_array_equal(found.X.toarray(), raw[found.obs_names, genes].X.toarray())


def test_labels_are_those_of_each_organism(tmp_path):
    mouse = [gene.replace("ENSG", "ENSMUSG") for gene in IDS]
    stage = "development_stage_ontology_term_id"
    raw = cells([*IDS, *mouse], organism=["human", "mouse"] * 5, **{stage: ["embryonic stage"] * 10})
    outcomes = curate(written(tmp_path / "a.h5ad", raw), Recipe(mixed_organisms="split"))
    assert [(one.organism, one.labels[stage]) for one in outcomes] == [
        ("NCBITaxon:10090", ["MmusDv:0000002"]),
        ("NCBITaxon:9606", ["HsapDv:0000002"]),
    ]


def test_one_part_may_fail_alone(tmp_path):
    raw = cells([*IDS, *(f"Gene{i}" for i in range(8))], organism=["human", "mouse"] * 5)
    outcomes = curate(written(tmp_path / "a.h5ad", raw), Recipe(mixed_organisms="split"))
    assert [(one.status, one.organism) for one in outcomes] == [
        ("failed", "NCBITaxon:10090"),
        ("kept", "NCBITaxon:9606"),
    ]
    assert "has no Ensembl-style ids of it" in outcomes[0].reason
