"""One file: what is kept of it, what is dropped, what is refused, and what hooks see."""

import os

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

import scdataloader as scd
from scdataloader.curation import organism as part
from scdataloader.curation.recipe import Recipe, Rule
from tests.curation.helpers import IDS, cells, curate, failed, kept, written

CELL_TYPE, ASSAY = "cell_type_ontology_term_id", "assay_ontology_term_id"


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
    assert f"{CELL_TYPE}: labels that are not terms set to \"unknown\": 1, of 2 cells ('?')" in outcome.notes


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
    assert f"{CELL_TYPE}: labels that are not terms set to \"unknown\": 1, of 2 cells ('5')" in outcome.notes
    said = failed(written(tmp_path / "b.h5ad", raw), Recipe(rules={"*": Rule(values={"athor": {"a": "b"}})}))
    assert said.startswith("b.h5ad has no obs column 'athor' (the nearest are 'author'")
    assert said.endswith("), whose values its rule replaces")


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
            f"{column}: joint labels normalised: 2, of 4 cells "
            f"('{european},{latin}' to {both}, '{latin} || {european}' to {both})"
        ),
        f"{column}: labels that are not terms set to \"unknown\": 1, of 2 cells ('{latin} || ?')",
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
        (same_names, {}, "has 8 cells whose names in obs occur before (x, y, x"),
        (
            None,
            {"required": ["donor_id"]},
            "has no obs column 'donor_id' (there are 'organism'), which is required",
        ),
        (
            None,
            {"rules": {"*": Rule(columns={"organisms": "x"})}},
            "has no obs column 'organisms' (the nearest are 'organism'), from which its rule makes 'x'",
        ),
        (unsaid, {}, "no organism found for a.h5ad (looked in obs, uns and gene ids)"),
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
