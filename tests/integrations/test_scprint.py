"""The DataModule for scPRINT-2, and what its tasks use, without scprint2 itself."""

import logging
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from scdataloader.errors import NotCountsError
from scdataloader.integrations import versions
from scdataloader.integrations.scprint import Collator, DataModule, Preprocessor, SimpleAnnDataset
from scdataloader.integrations.scprint.batches import binned
from scdataloader.integrations.scprint.genes import load_genes, split_by_organism
from scdataloader.integrations.scprint.names import install
from scdataloader.integrations.scprint.terms import get_descendants, random_str, translate
from scdataloader.testing import MemorySource, named_values

ORGANISM = "organism_ontology_term_id"
HUMAN, MOUSE = "NCBITaxon:9606", "NCBITaxon:10090"
GENES = [f"ENSG{i:011d}" for i in range(60)]
MOUSE_GENES = [f"ENSMUSG{i:011d}" for i in range(50)]


def source(name, n, genes, seed, **obs):
    rng = np.random.default_rng(seed)
    columns = {
        ORGANISM: [MOUSE if genes[0].startswith("ENSMUSG") else HUMAN] * n,
        "type": pd.Categorical(rng.choice(["T", "B", "unknown"], n, p=[0.6, 0.2, 0.2])),
        "sex": pd.Categorical(rng.choice(["f", "m", "unknown"], n)),
        "assay_ontology_term_id": pd.Categorical(rng.choice(["EFO:1", "EFO:0030007"], n, p=[0.9, 0.1])),
        "day": rng.random(n),
    }
    values = named_values(n, len(genes), seed=seed)
    return MemorySource(name, values, list(genes), columns | obs)


def sources():
    return [
        source("a", 120, GENES, 0),
        source("b", 80, GENES[:40], 1),
        source("c", 60, MOUSE_GENES, 2),
    ]


def module(**options):
    made = {"data": sources(), "max_len": 8, "batch_size": 16, "validation_split": 0.1, "n_samples_per_epoch": 160}
    return DataModule(**(made | {"clss_to_predict": ["type", ORGANISM]} | options))


def batches(loader):
    return list(loader)


def test_importing_the_package_alone_makes_none_of_the_names():
    code = "import scdataloader as scd, sys; print([hasattr(scd, n) for n in ('Collator', 'data', 'utils')], "
    code += "'scdataloader.data' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[False, False, False] False"


def test_the_names_that_scprint2_imports_are_there():
    from scdataloader.data import SimpleAnnDataset as InstalledDataset
    from scdataloader.utils import load_genes as installed_genes

    import scdataloader
    from scdataloader import Collator as Installed

    assert (Installed, InstalledDataset, installed_genes) == (Collator, SimpleAnnDataset, load_genes)
    assert scdataloader.DataModule is not DataModule  # ours stays


def test_another_version_than_the_tested_one_is_reported_once(monkeypatch, caplog):
    versions.warn_untested.cache_clear()
    monkeypatch.setattr(versions, "version", {"scprint2": "1.1.0"}.__getitem__)
    with caplog.at_level(logging.WARNING):
        install()
        install()
    (line,) = caplog.messages
    assert all(word in line for word in ("scprint2 1.1.0", "1.0.3 to 1.0.3"))
    versions.warn_untested.cache_clear()


def test_what_the_command_line_reads_before_setup():
    dm = module(n_bins=7, hierarchical_clss=["sex"])
    assert dm.genes_dict == {MOUSE: MOUSE_GENES, HUMAN: GENES}
    assert dm.organisms == [MOUSE, HUMAN]
    assert dm.n_bins == 7
    assert dm.classes == {"type": 2, ORGANISM: 2}
    assert dm.decoders["type"] == {0: "B", 1: "T", -1: "unknown"}
    assert dm.labels_hierarchy == {}
    assert dm.num_datasets == 3
    assert not dm.metacell_mode


@pytest.mark.parametrize("how", ["random expr", "most expr", "all"])
def test_a_batch_has_the_values_of_its_genes(how):
    dm = module(how=how, tp_name="day")
    (batch, *_) = batches(dm.predict_dataloader())
    full = dm.collection.read(batch["row"].numpy()).to_scipy().toarray()
    np.testing.assert_array_equal(batch["x"], np.take_along_axis(full, batch["genes"].numpy().astype(int), axis=1))
    assert batch["genes"].shape == (16, 110 if how == "all" else 8)
    assert {batch[key].dtype for key in ("genes", "class")} == {torch.int32}
    assert (batch["dataset"].dtype, batch["depth"].dtype, batch["tp"].dtype) == (torch.int64, *[torch.float32] * 2)
    np.testing.assert_array_equal(batch["class"], dm.label_codes[batch["row"].numpy()])
    np.testing.assert_array_equal(batch["depth"], full.sum(axis=1))
    days = dm.collection.obs(["day"])["day"].to_numpy()[batch["row"].numpy()]
    np.testing.assert_allclose(batch["tp"], days, rtol=1e-6)


def test_classes_are_the_joint_values_of_columns_with_unknown_as_one():
    options = {"clss_to_weight": ["type", "sex"], "weight_scaler": 5, "n_samples_per_epoch": 50_000}
    dm = module(**options, assays_to_drop=[], validation_split=0)
    drawn = dm.drawn_classes
    assert sorted(drawn.names) == sorted(f"{t} | {s}" for t in ("B", "T", "unknown") for s in ("f", "m", "unknown"))
    weights = 5 * drawn.sizes[:-1] / (drawn.sizes[:-1] + 5)  # as scDataLoader weighs classes
    np.testing.assert_allclose(drawn.target_shares(0)[:-1], weights / weights.sum())
    assert drawn.target_shares(0)[-1] == 0
    assert drawn.sizes[:-1].sum() == 260
    obs = dm.collection.obs(["type", "sex"]).astype(str)
    assert [drawn.names[code] for code in drawn.codes] == (obs["type"] + " | " + obs["sex"]).tolist()
    rows = dm.plan.sampler(dm.training_cells, seed=0, global_batch_size=16).draw(0, 0, 50_000)
    shares = np.bincount(drawn.codes[rows], minlength=9) / 50_000
    np.testing.assert_allclose(shares, drawn.target_shares(0)[:-1], atol=0.01)


def test_values_that_mean_unknown_are_one_class_and_so_is_a_missing_column():
    values = pd.Categorical(["na", None, "unknown", "T"] * 10)
    data = [source("a", 40, GENES, 0, only=values), source("b", 80, GENES[:40], 1)]
    drawn = module(data=data, clss_to_weight=["only"], assays_to_drop=[], validation_split=0).drawn_classes
    assert dict(zip(drawn.names, drawn.sizes, strict=False)) == {"T": 10, "unknown": 110}


def test_nnz_weighs_cells_by_their_expressed_genes():
    dm = module(clss_to_weight=["type", "nnz"], assays_to_drop=[], validation_split=0)
    assert dm.plan.cell_factors == "nnz"
    assert dm.plan.columns == ["type"]
    assert len(batches(dm.train_dataloader())) == 10


def test_without_a_scaler_every_cell_comes_once():
    dm = module(weight_scaler=0, assays_to_drop=[], validation_split=0)
    rows = [row for batch in batches(dm.train_dataloader()) for row in batch["row"].tolist()]
    assert sorted(rows) == list(range(260))


def test_cells_of_dropped_assays_are_used_for_nothing():
    dm = module(test_split=0.3)
    dropped = dm.collection.obs(["assay_ontology_term_id"])["assay_ontology_term_id"] == "EFO:0030007"
    splits = dm.splits
    used = np.concatenate([splits.train, splits.val, splits.test])
    np.testing.assert_array_equal(np.sort(used), np.flatnonzero(~dropped))
    predicted = np.concatenate([batch["row"] for batch in batches(dm.predict_dataloader())])
    np.testing.assert_array_equal(predicted, np.flatnonzero(~dropped))
    assert module(assays_to_drop=["EFO:1"]).splits.train.size == dropped.sum() - 26


def test_test_cells_are_whole_sources_and_sizes_may_be_numbers():
    dm = module(test_split=80, validation_split=33, assays_to_drop=[])
    names = dm.collection.obs(["source"])["source"].astype(str).to_numpy()
    assert set(names[dm.splits.test]) == {"b"}
    assert len(dm.splits.test) == 80
    assert len(dm.splits.val) == 33
    assert not np.isin(dm.splits.val, dm.splits.test).any()
    np.testing.assert_array_equal(
        dm.splits.val, module(test_split=80, validation_split=33.0, assays_to_drop=[]).splits.val
    )


def test_no_assays_no_effect(caplog):
    data = [MemorySource("a", named_values(40, 60, seed=0), GENES, {ORGANISM: [HUMAN] * 40})]
    with caplog.at_level(logging.WARNING):
        assert len(module(data=data, clss_to_predict=None).splits.train) == 36
    assert "assay_ontology_term_id" in caplog.text


def test_prediction_can_start_at_a_row_and_organisms_can_be_chosen():
    dm = module(start_at=250, assays_to_drop=[])
    assert [row for batch in batches(dm.predict_dataloader()) for row in batch["row"].tolist()] == list(range(250, 260))
    mice = module(organisms=MOUSE)
    assert mice.genes_dict == {MOUSE: MOUSE_GENES}
    assert len(mice.collection) == 60


def test_the_genes_of_a_model_are_used_in_its_order():
    dm = module()
    chosen = [*GENES[12:2:-1], *MOUSE_GENES[5:25]]
    dm.organisms = [HUMAN, MOUSE]
    dm.set_valid_genes_collator(chosen)
    assert dm.genes == chosen
    assert dm.organisms == [HUMAN, MOUSE]
    batch = next(iter(dm.val_dataloader()))
    assert set(batch["genes"].ravel().tolist()) <= set(range(30))


def test_a_subset_of_genes_keeps_its_organisms():
    dm = module(gene_subset=[*MOUSE_GENES[:20], *GENES[30:], "ENSG99999999999"])
    assert dm.genes_dict == {MOUSE: MOUSE_GENES[:20], HUMAN: GENES[30:]}
    with pytest.raises(ValueError, match=r"none of the 1 genes of gene_subset is in the data, such as nothing"):
        _ = module(gene_subset=["nothing"]).genes


def test_a_table_of_genes_is_the_vocabulary():
    table = pd.DataFrame({"organism": [HUMAN] * 30 + [MOUSE] * 30}, index=[*GENES[10:40], *MOUSE_GENES[:30]])
    assert module(genedf=table).genes_dict == {HUMAN: GENES[10:40], MOUSE: MOUSE_GENES[:30]}


def test_sources_with_fewer_genes_than_a_cell_needs_are_refused():
    dm = module(max_len=41)
    with pytest.raises(ValueError, match=r"b measured 40 of the model's genes, fewer than max_len=41"):
        dm.train_dataloader()
    assert len(batches(module(max_len=40).val_dataloader())) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"collection_name": "x"}, "collection_name='x'"),
        ({"how": "some"}, r"gene_subset with how='all'"),
        ({"how": "most"}, "not 'most'"),
        ({"metacell_mode": 0.2, "get_knn_cells": True}, "metacell_mode=0.2 excludes get_knn_cells"),
        ({"use_default_col": False}, "use_default_col=False"),
        ({"organism_col": "organism"}, "organism_col must be 'organism_ontology_term_id'"),
        ({"restrict_to_subset": 10}, "restrict_to_subset=10"),
        ({"validation_split": 1.5}, "validation_split must be a share .* got 1.5"),
        ({"test_split": -1}, "test_split must be a share .* got -1"),
    ],
)
def test_options_without_a_counterpart_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(TypeError, match=r"no option 'weight_scale' .did you mean 'weight_scaler'"):
        module(weight_scale=5)


def test_options_without_effect_are_named_in_one_line(caplog):
    with caplog.at_level(logging.INFO):
        module(prefetch_factor=3, persistent_workers=True, store_location="x", pin_memory=True)
    (line,) = [record.getMessage() for record in caplog.records if "without effect" in record.getMessage()]
    assert all(name in line for name in ("prefetch_factor", "persistent_workers", "store_location"))


def test_a_collection_of_lamindb_is_its_data():
    assert DataModule("my/atlas").data == "lamindb:my/atlas"


def test_bins_are_those_of_numpy():
    rng = np.random.default_rng(0)
    x = rng.poisson(2, (5, 40)).astype(np.float32)
    x[3] = 0
    expected = np.zeros_like(x)
    for row, values in enumerate(x):
        there = values != 0
        if there.any():
            expected[row, there] = np.digitize(values[there], np.quantile(values[there], np.linspace(0, 1, 9)))
    np.testing.assert_array_equal(binned(torch.from_numpy(x), 10, np.arange(5)), expected)


def test_a_list_of_genes_is_split_where_the_organism_changes():
    known = {HUMAN: ["ENSG00000000001", "ERCC-1"], MOUSE: ["ENSMUSG00000000001", "ERCC-1"]}
    genes = ["ENSG00000000001", "ENSG00000000077", "ERCC-1", "ENSMUSG00000000001", "ERCC-1", "other"]
    assert split_by_organism(genes, known) == {HUMAN: genes[:3], MOUSE: genes[3:]}
    with pytest.raises(ValueError, match="mixed"):
        split_by_organism([genes[0], genes[3], genes[1]], known)


def test_gene_tables_mark_genes_by_symbol():
    genes = load_genes(["human", MOUSE])
    assert genes.index.is_unique
    assert genes["organism"].unique().tolist() == [HUMAN, MOUSE]
    marked = genes.set_index("symbol")
    assert marked.loc[["MT-CO1", "mt-Co1"], "mt"].all()
    assert marked.loc[["RPS6", "Rpl3"], "ribo"].all()
    assert marked.loc[["HBA1", "Hba-a1"], "hb"].all()
    assert not marked.loc[["HBP1", "TP53"], ["mt", "ribo", "hb"]].to_numpy().any()
    with pytest.raises(LookupError, match="NCBITaxon:9031"):
        load_genes("chicken")


def test_terms_are_translated_as_scprint_asks():
    assert translate({"CL:0000084", "unknown", "CL:9999999"}) == {
        "CL:0000084": "T cell",
        "unknown": "unknown",
        "CL:9999999": None,
    }
    assert translate("MONDO:0005148", "disease_ontology_term_id") == {"MONDO:0005148": "type 2 diabetes mellitus"}
    assert translate(["EFO:0009899", "EFO:0009922"], "assay_ontology_term_id") == ["10x 3' v2", "10x 3' v3"]
    assert translate([HUMAN, MOUSE], ORGANISM) == ["human", "mouse"]
    joint = "HANCESTRO:0005,HANCESTRO:0014"
    assert translate(joint, "self_reported_ethnicity_ontology_term_id")[joint].count(",") == 1
    assert translate({"CL:0000084": 3}) == {"T cell": 3}
    assert translate({"yes"}, "cell_culture") is None


def test_descendants_are_all_terms_below():
    parents = pd.DataFrame(
        {"parents__ontology_id": ["[]", "['CL:1']", "['CL:2', 'CL:1']", "['CL:3']", "['CL:10']", "nan"]},
        index=["CL:1", "CL:2", "CL:3", "CL:4", "CL:5", "CL:10"],
    )
    assert get_descendants("CL:1", parents) == {"CL:2", "CL:3", "CL:4"}  # not CL:5, below CL:10
    lists = parents.assign(parents__ontology_id=[None, ["CL:1"], ["CL:2", "CL:1"], ["CL:3"], ["CL:10"], np.nan])
    assert get_descendants("CL:1", lists) == {"CL:2", "CL:3", "CL:4"}
    assert get_descendants("unknown", parents) == set()


def test_random_texts_do_not_follow_a_seed():
    np.random.seed(0)
    first = random_str(12)
    np.random.seed(0)
    assert len(first) == 12
    assert first.isalnum()
    assert random_str(12) != first
    assert random_str(30, "lowercase", withdigits=False).islower()


def cells(n=30, genes=None, seed=0):
    """Cells whose genes are in another order than in the tables, with a spike that no table has."""
    rng = np.random.default_rng(seed)
    genes = load_genes(HUMAN).index[:200] if genes is None else genes
    order = rng.permutation(len(genes))
    x = np.append(rng.poisson(0.5, (n, len(genes))), np.full((n, 1), 7), axis=1).astype(np.float32)
    obs = pd.DataFrame({ORGANISM: HUMAN, "kind": rng.integers(0, 3, n)}, index=[f"cell{i}" for i in range(n)])
    distances = rng.random((n, n)) * (rng.random((n, n)) < 0.5)
    return ad.AnnData(
        csr_matrix(x),
        obs=obs,
        var=pd.DataFrame(index=[*genes[order], "spike"]),
        obsp={"distances": csr_matrix(distances)},
    )


def reference(adata, genes):
    """(n, len(genes)) values of an AnnData by gene id."""
    return adata.to_df().reindex(columns=genes, fill_value=0).to_numpy()


@pytest.mark.parametrize("how", ["random expr", "most expr", "all", "some"])
def test_batches_of_an_anndata_are_aligned_by_ids(how):
    adata = cells()
    model = load_genes(HUMAN).index[50:300].tolist()[::-1]  # another order, and genes that the data lacks
    wanted = [model[3], model[200], "ENSG99999999999"]
    collate = Collator([HUMAN], how=how, valid_genes=model, max_len=100, genelist=wanted if how == "some" else [])
    dataset = SimpleAnnDataset(adata, obs_to_output=[ORGANISM, "kind"])
    batch = collate([dataset[i] for i in (4, 0, 29)])
    expected = reference(adata, model)[[4, 0, 29]]
    genes = batch["genes"].numpy().astype(int)
    np.testing.assert_array_equal(batch["x"], np.take_along_axis(expected, genes, axis=1))
    np.testing.assert_array_equal(batch["depth"], adata.X[[4, 0, 29]].sum(axis=1).A1)
    assert genes.shape == (3, {"all": 250, "some": 2}.get(how, 100))
    if how in ("random expr", "most expr"):
        measured = np.isin(model, adata.var_names)
        assert measured[genes].all()  # zeros are of genes that the data measured
        assert ((expected > 0).sum(axis=1) == (batch["x"] > 0).sum(axis=1).numpy()).all()


def test_classes_times_and_changed_values_of_an_anndata():
    adata = cells()
    dataset = SimpleAnnDataset(adata, [ORGANISM, "kind"], encoder={ORGANISM: {HUMAN: 5}})
    collate = Collator(
        [MOUSE, HUMAN],
        org_to_id={HUMAN: 5, MOUSE: 4},
        valid_genes=adata.var_names[:-1],
        class_names=["kind"],
        tp_name="kind",
        norm_to=100,
        logp1=True,
    )
    batch = collate(list(dataset))
    np.testing.assert_array_equal(batch["class"].ravel(), adata.obs["kind"])
    np.testing.assert_array_equal(batch["tp"], adata.obs["kind"])
    x = reference(adata, adata.var_names[:-1])
    expected = np.log2(1 + x * 100 / adata.X.sum(axis=1))
    np.testing.assert_allclose(batch["x"], expected, rtol=1e-5)


def test_neighbours_of_an_anndata_are_the_nearest_six():
    adata = cells()
    model = adata.var_names[:-1].tolist()
    dataset = SimpleAnnDataset(adata, [ORGANISM], get_knn_cells=True)
    batch = Collator([HUMAN], how="all", valid_genes=model)([dataset[2], dataset[7]])
    distances = adata.obsp["distances"].toarray()
    for place, cell in enumerate((2, 7)):
        near = [at for at in np.argsort(distances[cell]) if distances[cell, at] > 0 and at != cell][:6]
        np.testing.assert_allclose(batch["knn_cells_info"][place], distances[cell, near], rtol=1e-6)
        np.testing.assert_array_equal(batch["knn_cells"][place], reference(adata, model)[near])
    with pytest.raises(KeyError, match="distances"):
        SimpleAnnDataset(ad.AnnData(np.ones((3, 3))), get_knn_cells=True)


def test_random_choices_follow_the_generator_of_torch():
    dataset = SimpleAnnDataset(cells(), [ORGANISM])
    collate = Collator([HUMAN], how="random expr", valid_genes=load_genes(HUMAN).index[:200], max_len=20)
    items = [dataset[i] for i in range(30)]
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(collate(items)["genes"])
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_batches_that_cannot_be_made_are_refused():
    dataset = SimpleAnnDataset(cells(), [ORGANISM])
    with pytest.raises(ValueError, match=r"measured 200 of the model's genes, fewer than max_len=201"):
        Collator([HUMAN], how="most expr", max_len=201)([dataset[0]])
    with pytest.raises(ValueError, match="NCBITaxon:9606; the model is of"):
        Collator([MOUSE])([dataset[0]])
    with pytest.raises(ValueError, match="add_zero_genes=5"):
        Collator([HUMAN], add_zero_genes=5)
    with pytest.raises(ValueError, match="none of the 1 genes of genelist"):
        Collator([HUMAN], how="some", genelist=["x"])


LOW = {"min_dataset_size": 5, "min_nnz_genes": 20, "min_valid_genes_id": 50}


def test_a_preprocessed_anndata_has_the_counts_of_its_known_genes():
    adata = cells(60)
    adata.obs["is_primary_data"] = np.arange(60) % 2 == 0
    made = Preprocessor(**LOW, drop_non_primary=True)(adata, dataset_id="one")
    assert made.obs_names.tolist() == adata.obs_names[::2].tolist()
    assert made.var_names.tolist() == sorted(adata.var_names[:-1])
    np.testing.assert_array_equal(made.X.toarray(), reference(adata, made.var_names)[::2])
    assert {"symbol", "mt", "organism"} <= set(made.var)
    assert made.uns["dataset_id"] == "one"
    np.testing.assert_array_equal(made.obs["total_counts"], made.X.sum(axis=1).A1)
    np.testing.assert_allclose(np.expm1(made.layers["norm"].toarray()).sum(axis=1), 1e4, rtol=1e-4)
    assert made.obsm["X_pca"].shape == (30, 1)
    assert not made.obsp


def test_counts_hooks_and_further_matrices_of_a_preprocessed_anndata():
    adata = cells(60)
    adata.layers["half"] = adata.X / 2
    adata.raw = adata
    adata.X = adata.X / 3
    keep = Preprocessor(
        **LOW,
        keepdata=True,
        additional_preprocess=lambda given: given[:40].copy(),
        additional_postprocess=lambda given: given[:10].copy(),
    )(adata)
    assert keep.shape[0] == 10
    np.testing.assert_array_equal(keep.X.toarray(), reference(cells(60), keep.var_names)[:10])
    np.testing.assert_array_equal(keep.layers["half"].toarray(), keep.X.toarray() / 2)
    assert keep.obsp["distances"].shape == (10, 10)
    without_counts = ad.AnnData(adata.X, obs=adata.obs, var=adata.var)
    with pytest.raises(NotCountsError):
        Preprocessor(**LOW, use_raw=False)(without_counts)
    forced = Preprocessor(**LOW, use_layer="half", force_preprocess=True, do_postp=False)(adata)
    np.testing.assert_array_equal(forced.X.toarray() * 2, reference(cells(60), forced.var_names))


def test_symbols_are_matched_without_being_announced():
    table = load_genes(HUMAN)
    unique = table[(table["symbol"] != "") & ~table["symbol"].duplicated(keep=False)][:300]
    adata = cells(30, genes=unique.index)
    adata.var_names = [*unique["symbol"].reindex(adata.var_names[:-1]), "spike"]
    made = Preprocessor(**LOW, do_postp=False)(adata)
    assert set(made.var_names) == set(unique.index)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_dataset_size": 100}, "30 of 30 cells pass the filters"),
        ({"min_nnz_genes": 199}, "0 of 30 cells"),
        ({"min_valid_genes_id": 10_000}, "200 of 201 genes"),
        ({"organisms": [MOUSE]}, "NCBITaxon:9606, which is not one of"),
        ({"skip_validate": False}, "skip_validate=False"),
    ],
)
def test_an_anndata_that_is_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocessor(**(LOW | {"do_postp": False} | options))(cells())
