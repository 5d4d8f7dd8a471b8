"""One file: what is kept of it, what is dropped, what is refused, and what hooks see."""

import gc
import os
import sys
import weakref

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from curation import IDS, cells, curate, failed, kept, written
from scipy.sparse import csc_matrix, csr_matrix

import scdataloader as scd
from scdataloader.curate import part
from scdataloader.curate.recipe import Recipe, Rule
from scdataloader.curate.writer import written as writing_to

CELL_TYPE, ASSAY = "cell_type_ontology_term_id", "assay_ontology_term_id"


@pytest.fixture
def hooks(tmp_path, monkeypatch):
    """Writes a module of hooks, named anew each time; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(code):
        name = f"hooks_{abs(hash((code, tmp_path)))}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    yield write
    for name in [name for name in sys.modules if name.startswith("hooks_")]:
        del sys.modules[name]


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_every_column_of_the_file_survives(tmp_path, monkeypatch):
    monkeypatch.setattr(part, "CELLS_PER_BLOCK", 3)
    n = 10
    raw = cells(IDS, n)
    raw.obs["kind"] = pd.Categorical([f"k{i % 3}" for i in range(n)], categories=["k2", "k1", "k0", "none"])
    raw.obs["ordered"] = pd.Categorical(["low"] * 5 + ["high"] * 5, categories=["low", "high"], ordered=True)
    raw.obs["flag"] = [i % 2 == 0 for i in range(n)]
    raw.obs["number"] = np.arange(n, dtype=np.int16)
    raw.obs["maybe"] = pd.array([None if i == 3 else i for i in range(n)], dtype="Int64")
    raw.obs["share"] = np.linspace(0, 1, n)
    raw.obs["text"] = [f"cell number {i}" for i in range(n)]
    raw.obsm["X_umap"] = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    raw.obsm["scores"] = pd.DataFrame({"a": np.arange(n)}, index=raw.obs_names)
    raw.obsm["sparse"] = csr_matrix(np.eye(n))
    path = written(tmp_path / "a.h5ad", raw)
    before = ad.read_h5ad(path)
    _, found = kept(path, Recipe(min_counts_per_cell=15))
    assert 0 < found.n_obs < n
    expected = before[found.obs_names].copy()
    for column in before.obs:
        pd.testing.assert_series_equal(found.obs[column], expected.obs[column], check_categorical=column == "ordered")
    np.testing.assert_array_equal(found.obsm["X_umap"], expected.obsm["X_umap"])
    np.testing.assert_array_equal(found.obsm["sparse"].toarray(), expected.obsm["sparse"].toarray())
    pd.testing.assert_frame_equal(found.obsm["scores"], expected.obsm["scores"])


@pytest.mark.parametrize("compression", ["none", "lzf", "gzip"])
def test_the_output_is_an_anndata_that_sources_read(tmp_path, compression):
    raw = cells(IDS)
    outcome, found = kept(written(tmp_path / "a.h5ad", raw), Recipe(compression=compression))
    np.testing.assert_array_equal(found.X.toarray(), raw.X.toarray())
    assert found.X.dtype == np.float32
    assert list(found.obs["organism_ontology_term_id"].unique()) == ["NCBITaxon:9606"]
    assert list(found.uns["curation"]["notes"]) == list(outcome.notes)
    assert found.uns["curation"]["recipe"] == outcome.recipe
    read = scd.open_source(outcome.output).read(np.arange(10)).to_scipy()
    np.testing.assert_array_equal(read.toarray(), raw.X.toarray())
    with h5py.File(outcome.output) as file:
        assert (file["X/data"].chunks is None) == (compression == "none")


def test_a_hook_may_give_views_and_their_blocks_are_let_go(tmp_path):
    with writing_to(tmp_path / "a.h5ad", "a.h5ad", "none") as writer:
        block = cells(IDS)
        block.obsm["X_pca"] = np.ones((len(block), 2))
        writer.append(block[2:5])
        whole = weakref.ref(block)
        del block
        gc.collect()
        assert whole() is None
    assert list(ad.read_h5ad(tmp_path / "a.h5ad").obs_names) == ["cell2", "cell3", "cell4"]


def test_large_files_of_other_content_or_recipe_differ_at_their_beginning(tmp_path):
    outcome, _ = kept(written(tmp_path / "a.h5ad", cells(IDS, note=["somewhere in the middle"] * 10)))
    stored = outcome.output.read_bytes()
    middle = stored.index(b"somewhere in the middle")
    assert max(stored.index(outcome.content.encode()), stored.index(outcome.recipe.encode())) < middle


@pytest.mark.parametrize("form", ["csc", "dense", "layer", "raw", "zarr"])
def test_files_of_all_kinds_come_out_the_same(tmp_path, form):
    raw = cells(IDS)
    expected = raw.X.toarray()
    path = tmp_path / "a.h5ad"
    if form == "csc":
        raw.X = csc_matrix(raw.X)
    elif form == "dense":
        raw.X = expected
    elif form == "layer":
        raw.layers["counts"] = raw.X.copy()
        raw.X = csr_matrix(expected / 7)
    elif form == "raw":
        raw.raw = raw.copy()
        raw = raw[:, :2].copy()
        raw.X = csr_matrix(raw.X / 7)
    if form == "zarr":
        path = tmp_path / "a.zarr"
        raw.write_zarr(path)
        (outcome,) = curate(path)
        found = ad.read_h5ad(outcome.output)
    else:
        _, found = kept(written(path, raw))
    np.testing.assert_array_equal(found.X.toarray(), expected)


def test_plain_facts_go_along_and_what_is_left_out_is_named(tmp_path):
    raw = cells(IDS)
    counts = raw.X.copy()
    for name in ("spliced", "unspliced"):
        raw.layers[name] = counts.copy()
    raw.obsp["connectivities"] = raw.obsp["distances"] = csr_matrix(np.eye(10))
    raw.varm["PCs"] = np.zeros((8, 2))
    facts = {"title": "Cells of a test", "schema_version": "5.2.0", "n": 3, "share": 0.5, "ok": True}
    raw.uns = facts | {"neighbors": {"n": 1}, "kind_colors": ["#000000"], "long": "x" * 10_001, "organism": "mouse"}
    outcome, found = kept(written(tmp_path / "a.h5ad", raw))
    named = (
        "layers (spliced, unspliced), obsp (connectivities, distances), varm (PCs), uns (kind_colors, long, neighbors)"
    )
    assert outcome.notes == (f"left out: {named}",)
    assert {key: value for key, value in found.uns.items() if key != "curation"} == facts
    assert [np.asarray(found.uns[key]).dtype.kind for key in facts] == ["U", "U", "i", "f", "b"]

    raw.uns = {f"n{i}": [i] for i in range(10)}
    raw.X = csr_matrix(counts / 7)
    outcome, found = kept(written(tmp_path / "b.h5ad", raw), Recipe(counts="layers/spliced"))
    np.testing.assert_array_equal(found.X.toarray(), counts.toarray())
    assert outcome.notes[0].startswith("left out: X, layers (unspliced), obsp")
    assert outcome.notes[0].endswith("uns (n0, n1, n2, n3, n4, n5, n6, n7, and 2 more)")


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_facts_survive_hooks_and_being_curated_again(tmp_path, hooks, form):
    name = hooks("def same(block): return block\n")
    raw = cells(IDS)
    raw.uns = {"title": "Cells of a test"}
    path = tmp_path / f"a.{form}"
    raw.write_zarr(path) if form == "zarr" else raw.write_h5ad(path)
    if form == "h5ad":
        with h5py.File(path, "r+") as file:  # as old files have them
            file["uns"].update({"text": np.bytes_(b"x"), "latin": np.bytes_(b"\xff")})
    (outcome,) = curate(path, Recipe(before=[f"{name}:same"]))
    assert outcome.notes == (("left out: uns (latin)",) if form == "h5ad" else ())
    (again,) = curate(outcome.output.rename(tmp_path / "again.h5ad"))
    (said,) = again.notes
    assert said.endswith("in their place: total_counts, n_genes_by_counts, is_outlier, outlier_in")
    assert ad.read_h5ad(again.output).uns["title"] == "Cells of a test"


def test_columns_and_constants_of_the_rule_and_what_is_told_of_labels(tmp_path):
    labels = ["T cell", "B cell", "T cell", "?", None] * 2
    raw = cells(IDS, author=labels, donor_id="d1")
    rule = Rule(columns={"author": CELL_TYPE}, constants={ASSAY: "10x 3' v3", "batch": "7"})
    outcome, found = kept(written(tmp_path / "a.h5ad", raw), Recipe(rules={"a.*": rule, "*": Rule(organism="mouse")}))
    terms = {"T cell": "CL:0000084", "B cell": "CL:0000236"}
    assert list(found.obs[CELL_TYPE]) == [terms.get(label, "unknown") for label in labels]
    assert [None if pd.isna(label) else label for label in found.obs["author"]] == labels
    assert set(found.obs[ASSAY]) == {"EFO:0009922"}
    assert set(found.obs["batch"]) == {"7"}
    assert outcome.labels == {CELL_TYPE: ["CL:0000084", "CL:0000236"], ASSAY: ["EFO:0009922"]}
    assert outcome.organism == "NCBITaxon:9606"
    assert f"{CELL_TYPE}: labels that are no terms made \"unknown\": 1, of 2 cells ('?')" in outcome.notes


def test_values_of_the_rule_stand_in_place_of_those_of_the_file(tmp_path):
    """Before labels are standardised and organisms are looked for."""
    raw = cells(IDS, cluster=[3, 3, 4, None, 5] * 2, author=["T cell", "junk", None, "?", "B"] * 2, organism="H. s.")
    rule = Rule(
        columns={"cluster": CELL_TYPE, "author": "kind"},
        values={
            CELL_TYPE: {3: "CL:0000084", "4": "b cell", 9: "T cell"},
            "author": {"junk": "unknown"},
            "organism": {"H. s.": "human"},
        },
    )
    outcome, found = kept(written(tmp_path / "a.h5ad", raw), Recipe(rules={"*": rule}))
    (tmp_path / "out" / "a.h5ad").unlink()
    assert list(found.obs[CELL_TYPE]) == ["CL:0000084", "CL:0000084", "CL:0000236", "unknown", "unknown"] * 2
    assert list(found.obs["author"].astype(object).where(found.obs["author"].notna(), "")) == [
        *["T cell", "unknown", "", "?", "B"] * 2
    ]
    assert list(found.obs["kind"][:2]) == ["T cell", "junk"]
    assert found.obs["cluster"].dtype == np.float64
    assert outcome.organism == "NCBITaxon:9606"
    assert f"{CELL_TYPE}: values of the rule that no cell has: 1 ('9')" in outcome.notes
    assert f"{CELL_TYPE}: labels that are no terms made \"unknown\": 1, of 2 cells ('5')" in outcome.notes
    said = failed(written(tmp_path / "b.h5ad", raw), Recipe(rules={"*": Rule(values={"athor": {"a": "b"}})}))
    assert said.startswith("b.h5ad has no obs column 'athor' (the nearest are author")
    assert said.endswith("), of which its rule replaces values")


def test_labels_of_several_terms(tmp_path):
    european, latin = "HANCESTRO:0005", "HANCESTRO:0014"
    column = "self_reported_ethnicity_ontology_term_id"
    raw = cells(IDS, **{column: [f"{european},{latin}", f"{latin} || {european}", european, f"{latin} || ?", None] * 2})
    outcome, found = kept(written(tmp_path / "a.h5ad", raw))
    both = f"{european} || {latin}"
    assert list(found.obs[column]) == [both, both, european, "unknown", "unknown"] * 2
    assert outcome.labels == {column: [european, latin]}
    assert [note for note in outcome.notes if note.startswith(column)] == [
        (
            f"{column}: joint labels put in order: 2, of 4 cells "
            f"('{european},{latin}' to {both}, '{latin} || {european}' to {both})"
        ),
        f"{column}: labels that are no terms made \"unknown\": 1, of 2 cells ('{latin} || ?')",
    ]


def test_outliers_are_flagged_and_dropped_only_where_asked_for(tmp_path):
    raw = cells(IDS, 40)
    x = raw.X.toarray() + 1
    x[7] *= 50
    raw.X = csr_matrix(x)
    path = written(tmp_path / "a.h5ad", raw)
    outcome, found = kept(path)
    assert found.obs["is_outlier"].to_numpy().nonzero()[0].tolist() == [7]
    assert found.obs["outlier_in"].iloc[7] == "total_counts"
    assert "outliers, flagged: 1" in outcome.notes
    outcome, found = kept(path, Recipe(drop_outliers=True))
    assert found.n_obs == 39
    assert "outliers, dropped: 1" in outcome.notes


# --- filters ----------------------------------------------------------------------------------------------------------


def test_assays_and_primary_data(tmp_path):
    assays = ["EFO:0009922", "10x 3' v2", "Smart-seq2", "EFO:0008931", None] * 2
    raw = cells(IDS, **{ASSAY: assays, "is_primary_data": [True] * 6 + [False] * 4})
    path = written(tmp_path / "a.h5ad", raw)
    outcome, found = kept(path, Recipe(assays=["10x 3' transcription profiling"], primary_only=True))
    assert list(found.obs_names) == ["cell0", "cell1", "cell5"]
    dropped = [note for note in outcome.notes if note.startswith("cells")]
    assert dropped == ["cells of other assays, dropped: 6", "cells of no primary data, dropped: 1"]
    assert (outcome.n_cells_in, outcome.n_cells_out) == (10, 3)
    (tmp_path / "out" / "a.h5ad").unlink()
    said = failed(written(tmp_path / "b.h5ad", cells(IDS)), Recipe(assays=["EFO:0009922"]))
    assert f"b.h5ad has no obs column '{ASSAY}', and only some assays are asked for" in said


@pytest.mark.parametrize("values", [[1, 0], [1.0, 0.0], ["TRUE", "FALSE"], ["True", "false"], ["1", "0"]])
def test_primary_data_is_said_by_truths_of_any_kind(tmp_path, values):
    path = written(tmp_path / "a.h5ad", cells(IDS, is_primary_data=values * 5))
    _, found = kept(path, Recipe(primary_only=True))
    assert list(found.obs_names) == [f"cell{number}" for number in range(0, 10, 2)]


def test_primary_data_that_are_not_said(tmp_path):
    raw = cells(IDS, is_primary_data=["yes", None] * 5)
    said = failed(written(tmp_path / "a.h5ad", raw), Recipe(primary_only=True))
    assert "a.h5ad has 'yes' in obs['is_primary_data'], where true or false were expected" in said


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
        ({"min_cells_per_file": 11}, "10 cells are left, where at least 11 are wanted"),
        ({"min_genes_per_file": 9}, "8 genes are left, where at least 9 are wanted"),
        (
            {"min_counts_per_cell": 10_000},
            "0 cells are left, where at least 1 are wanted; cells with fewer than 10,000 counts, dropped: 10",
        ),
        (
            {"min_cells_per_gene": 11},
            "0 genes are left, where at least 1 are wanted; genes in fewer than 11 cells, dropped: 8",
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


# --- hooks ------------------------------------------------------------------------------------------------------------


def test_hooks_see_blocks_and_may_change_them(tmp_path, monkeypatch, hooks):
    monkeypatch.setattr(part, "CELLS_PER_BLOCK", 4)
    name = hooks(
        "import numpy as np\n"
        "def recover(block):\n"
        "    assert block.n_obs <= 4\n"
        "    block = block[block.obs['good']].copy()\n"
        "    block.X = np.rint(np.expm1(block.X.toarray()))\n"
        "    block.obs['cell_type_ontology_term_id'] = block.obs['author'].astype(str) + ' cell'\n"
        "    return block\n"
        "def last(block):\n"
        "    block.obs['n_genes'] = block.obs['n_genes_by_counts'] * 2\n"
        "    return block[block.obs['cell_type_ontology_term_id'] == 'CL:0000084'].copy()\n"
    )
    raw = cells(IDS, author=["T", "B"] * 5, good=[i != 2 for i in range(10)])
    counts = raw.X.toarray()
    raw.X = csr_matrix(np.log1p(counts))
    raw.obsm["X_pca"] = np.arange(20.0).reshape(10, 2)
    path = written(tmp_path / "a.h5ad", raw)
    outcome, found = kept(path, Recipe(before=[f"{name}:recover"], after=[f"{name}:last"]))
    rows = [0, 4, 6, 8]
    assert list(found.obs_names) == [f"cell{i}" for i in rows]
    np.testing.assert_array_equal(found.X.toarray(), counts[rows])
    np.testing.assert_array_equal(found.obsm["X_pca"], raw.obsm["X_pca"][rows])
    np.testing.assert_array_equal(found.obs["n_genes"], (counts[rows] > 0).sum(axis=1) * 2)
    assert outcome.labels == {CELL_TYPE: ["CL:0000084"]}
    assert (outcome.n_cells_in, outcome.n_cells_out) == (10, 4)
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["a.h5ad"]


def test_metrics_are_those_of_the_output(tmp_path, hooks):
    name = hooks("def hook(block):\n    block.X = block.X * 2\n    return block[:, 1:]\n")
    x = np.arange(1, 81, dtype=np.float32).reshape(10, 8)
    x[2:, 5] = 0
    raw = cells(IDS)
    raw.X = csr_matrix(x)
    for recipe in (Recipe(min_cells_per_gene=3), Recipe(after=[f"{name}:hook"])):
        outcome, found = kept(written(tmp_path / "a.h5ad", raw), recipe)
        assert outcome.n_genes_out == 7
        np.testing.assert_array_equal(found.obs["total_counts"], found.X.sum(axis=1).A1)
        np.testing.assert_array_equal(found.obs["n_genes_by_counts"], np.diff(found.X.indptr))


def test_hooks_that_drop_cells_leave_the_order_of_categories(tmp_path, monkeypatch, hooks):
    monkeypatch.setattr(part, "CELLS_PER_BLOCK", 3)
    name = hooks("def hook(block): return block[block.obs['good']]")
    day = pd.Categorical(["late", "early", "mid"] * 3 + ["late"], ["early", "mid", "late"], ordered=True)
    raw = cells(IDS, good=[True, False] * 5)
    raw.obs["day"] = day
    _, found = kept(written(tmp_path / "a.h5ad", raw), Recipe(after=[f"{name}:hook"]))
    assert found.obs["day"].dtype == day.dtype
    assert list(found.obs["day"]) == list(day[::2])


def test_what_hooks_give_is_put_in_order(tmp_path, hooks):
    name = hooks(
        "import numpy as np\n"
        "from scipy.sparse import csr_matrix\n"
        "def hook(block):\n"
        "    n, m = block.shape\n"
        "    x = block.X.toarray()[:, ::-1]\n"
        "    # genes from last to first, zeros stored, and every count in two parts\n"
        "    indices = np.tile(np.repeat(np.arange(m)[::-1], 2), n)\n"
        "    data = np.stack([x - 1, np.ones_like(x)], axis=2).clip(0).reshape(-1)\n"
        "    data[np.repeat(x.reshape(-1), 2) == 0] = 0\n"
        "    block.X = csr_matrix((data, indices, np.arange(n + 1) * 2 * m), block.shape)\n"
        "    return block\n"
    )
    raw = cells(IDS)
    outcome, found = kept(written(tmp_path / "a.h5ad", raw), Recipe(after=[f"{name}:hook"]))
    np.testing.assert_array_equal(found.X.toarray(), raw.X.toarray())
    assert found.X.nnz == np.count_nonzero(raw.X.toarray())
    assert found.X.has_canonical_format
    with h5py.File(outcome.output) as file:
        rows = np.split(file["X/indices"][:], file["X/indptr"][1:-1])
    assert all((np.diff(row) > 0).all() for row in rows)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("def hook(block): return None", "has to give an AnnData, not NoneType"),
        ("def hook(block): raise ValueError('not this one')", "raised ValueError (not this one) in line 1 of"),
        (
            "def hook(block): return block.no_such",
            "raised AttributeError ('AnnData' object has no attribute 'no_such')",
        ),
        (
            "import pandas\ndef hook(block):\n    block.obs['day'] = pandas.Timestamp(0)\n    return block",
            "No method registered for writing",
        ),
        (
            "def hook(block):\n    block.X = block.X / 2\n    return block",
            "where whole numbers from 0 up were expected; hooks have to give counts",
        ),
        (
            "def hook(block):\n    return block[:, : block.n_vars - int('cell0' in block.obs_names)].copy()",
            "a hook gives a block of cells other genes than the one before (8 and 7)",
        ),
        (
            "def hook(block):\n    block.obs_names = [str(i) for i in range(block.n_obs)]\n    return block",
            "hooks have made names of cells that occur more than once",
        ),
        ("hook = None", "has no function 'hook'"),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_that_do_what_they_must_not(tmp_path, monkeypatch, hooks, code, why, when):
    monkeypatch.setattr(part, "CELLS_PER_BLOCK", 6)
    name = hooks(code)
    path = written(tmp_path / "a.h5ad", cells(IDS))
    assert why in failed(path, Recipe(**{when: [f"{name}:hook"]}))


def test_hooks_that_leave_nothing(tmp_path, hooks):
    name = hooks("def hook(block): return block[:0].copy()")
    (outcome,) = curate(written(tmp_path / "a.h5ad", cells(IDS)), Recipe(after=[f"{name}:hook"]))
    assert (outcome.status, outcome.reason) == ("dropped", "0 cells are left, where at least 1 are wanted")


# --- bad input --------------------------------------------------------------------------------------------------------


def no_counts(raw):
    raw.X = csr_matrix(raw.X / 3)


def same_names(raw):
    raw.obs_names = ["x", "y"] * 5


def unsaid(raw):
    del raw.obs["organism"]
    raw.var_names = [f"gene{i}" for i in range(raw.n_vars)]


@pytest.mark.parametrize(
    ("change", "recipe", "why"),
    [
        (no_counts, {}, "no counts found (X: "),
        (same_names, {}, "has 8 cells whose names in obs are those of others (x, y, x)"),
        (
            None,
            {"required": ["donor_id"]},
            "has no obs column 'donor_id' (the nearest are organism), which is required",
        ),
        (
            None,
            {"rules": {"*": Rule(columns={"organisms": "x"})}},
            "has no obs column 'organisms' (the nearest are organism), which its rule makes 'x' of",
        ),
        (unsaid, {}, "does not say its organism, in obs, uns or gene ids; say it in a rule"),
    ],
)
def test_what_is_refused(tmp_path, change, recipe, why):
    raw = cells(IDS)
    if change is not None:
        change(raw)
    assert why in failed(written(tmp_path / "a.h5ad", raw), Recipe(**recipe))


def test_what_anndata_cannot_read(tmp_path):
    path = written(tmp_path / "a.h5ad", cells(IDS))
    with h5py.File(path, "a") as file:
        file["obsm"].create_group("odd").attrs.update({"encoding-type": "odd", "encoding-version": "0.1.0"})
    assert "No read method registered for IOSpec(encoding_type='odd'" in failed(path)


def test_files_that_are_none(tmp_path):
    empty = written(tmp_path / "empty.h5ad", cells(IDS, 0, organism=[]))
    assert failed(empty) == "empty.h5ad has no cells"
    text = tmp_path / "text.h5ad"
    text.write_text("not this")
    assert "is not an HDF5 file" in failed(text)
    assert "gone.h5ad does not exist" in failed(tmp_path / "gone.h5ad")
    short = written(tmp_path / "short.h5ad", cells(IDS))
    os.truncate(short, short.stat().st_size - 1)
    assert f"{short} is truncated" in failed(short)


def test_cells_and_genes_are_told_as_soon_as_they_are_known(tmp_path):
    (outcome,) = curate(written(tmp_path / "a.h5ad", cells(IDS)), Recipe(required=["donor_id"]))
    assert (outcome.n_cells_in, outcome.n_genes_in, outcome.status) == (10, 8, "failed")
