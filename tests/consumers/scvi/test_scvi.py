"""The models of scvi-tools on our data module."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scvi import external
from scvi.model import SCANVI, SCVI

import scdataloader as scd
from scdataloader.errors import GeneOverlapError
from scdataloader.integrations import versions
from scdataloader.integrations.scvi import ScviDataModule
from scdataloader.integrations.scvi.names import INSTEAD, NAMES, WITHOUT_EFFECT
from tests.consumers.scvi.cells import GENES, cells, data

MRVI = getattr(external, "TorchMRVI", external.MRVI)  # the former name of the one on torch
SMALL = {"n_latent": 4, "n_hidden": 16}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scvi.settings.seed = 0


def module(given=None, **options):
    return ScviDataModule(data() if given is None else given, **({"batch_key": "batch", "batch_size": 64} | options))


def counts(given):
    """Counts of all cells in the order of the genes."""
    return np.concatenate([source[:, GENES].X.toarray() for source in given])


def trained(dm, model_class=SCVI, max_epochs=1, **options):
    kwargs = {"datamodule": dm} if model_class is SCANVI else {}
    model = model_class(adata=None, registry=dm.registry, **SMALL, **kwargs, **options)
    model.train(max_epochs=max_epochs, datamodule=dm, **QUIET)
    return model


def latent(model, dm, **options):
    return model.get_latent_representation(dataloader=dm.inference_dataloader(**options))


@pytest.fixture(scope="module")
def reference():
    """A module for SCANVI, and its trained models."""
    dm = module(labels_key="cell_type", categorical_covariate_keys="assay", model_name="SCANVI", train_size=0.9)
    first = trained(dm, max_epochs=8)
    model = SCANVI.from_scvi_model(first, unlabeled_category="Unknown", datamodule=dm)
    model.train(max_epochs=8, datamodule=dm, **QUIET)
    return dm, first, model


def test_the_versions_are_those_that_are_supported():
    assert (1, 4) <= tuple(map(int, version("scvi-tools").split(".")[:2])) < (1, 6)


def test_a_batch_is_what_models_read():
    given = data()
    obs = pd.concat([source.obs for source in given])
    dm = module(
        given,
        labels_key="cell_type",
        sample_key="donor",
        categorical_covariate_keys=["assay", "donor"],
        continuous_covariate_keys=["age"],
        size_factor_key="size",
    )
    dm.setup()
    (batch, *_) = list(dm.train_dataloader())
    assert batch["X"].layout is torch.sparse_csr
    batch = dm.on_after_batch_transfer(batch, 0)
    keys = ["X", "batch", "labels", "extra_categorical_covs", "extra_continuous_covs"]
    assert list(batch)[:5] == keys
    rows = batch["ind_x"][:, 0].numpy()
    assert len(set(rows)) == 64
    seen = obs.iloc[rows]
    assert np.array_equal(batch["X"].numpy(), counts(given)[rows])
    names = {
        "batch": ["b1", "b2"],
        "labels": ["B", "NK", "T", "Unknown"],
        "sample": ["d1", "d2", "d3"],
    }
    for key, column in (("batch", "batch"), ("labels", "cell_type"), ("sample", "donor")):
        assert (batch[key].dtype, batch[key].shape) == (torch.int64, (64, 1))
        assert [names[key][code] for code in batch[key][:, 0]] == seen[column].tolist()
    codes = np.stack([seen["assay"] == "v3", seen["donor"].str[1].astype(int) - 1], axis=1)
    assert np.array_equal(batch["extra_categorical_covs"].numpy(), codes)
    assert np.allclose(batch["extra_continuous_covs"].numpy(), seen[["age"]])
    assert np.allclose(batch["size_factor"].numpy(), seen[["size"]])
    plain = next(iter(module(batch_key=None).inference_dataloader()))
    assert [plain[key] for key in keys[3:]] == [None, None]
    assert not plain["batch"].any()
    assert not plain["labels"].any()
    assert plain["labels"].shape == (500, 1)


def test_scvi_trains_stops_infers_in_order_and_loads(tmp_path):
    dm = module(categorical_covariate_keys=["assay"], continuous_covariate_keys="age", train_size=0.8, split_seed=3)
    model = SCVI(adata=None, registry=dm.registry, **SMALL)
    model.train(max_epochs=9, datamodule=dm, early_stopping=True, early_stopping_patience=1,
                early_stopping_min_delta=1e6, **QUIET)  # fmt: skip
    assert len(model.history["elbo_train"]) < 9
    assert len(model.history["elbo_validation"]) == len(model.history["elbo_train"])
    assert (len(model.train_indices), len(model.validation_indices)) == (400, 100)
    assert not set(model.train_indices) & set(model.validation_indices)
    assert not list(tmp_path.glob("*.json")) + list(tmp_path.glob("*.csv"))
    whole, some = latent(model, dm), [5, 2, 499, 2]
    assert np.allclose(latent(model, dm, indices=some, batch_size=3), whole[some], atol=1e-5)
    loader = dm.inference_dataloader(indices=np.array(some), batch_size=3)
    assert [batch["ind_x"][:, 0].tolist() for _ in range(2) for batch in loader] == [[5, 2, 499], [2]] * 2
    assert len(loader) == 2
    expression = model.get_normalized_expression(dataloader=loader)
    assert expression.shape == (4, 42)
    assert np.allclose(expression.sum(axis=1), 1, atol=1e-4)
    assert np.isfinite(model.get_elbo(dataloader=dm.inference_dataloader()))
    assert model.posterior_predictive_sample(dataloader=loader).shape == (4, 42)
    model.save("model", datamodule=dm)
    assert np.array_equal(latent(SCVI.load("model", adata=False), dm), whole)


def test_scanvi_learns_from_the_labelled_cells_and_loads(reference):
    dm, first, model = reference
    assert dm.n_labels == 3
    assert list(dm.labels_mapping) == ["B", "NK", "T", "Unknown"]
    truth = np.concatenate([source.obs["truth"] for source in data()])
    predicted = model.predict(dataloader=dm.inference_dataloader())
    is_unlabelled = dm.labels_ == "Unknown"
    assert 150 < is_unlabelled.sum() < 250
    assert (predicted == truth)[is_unlabelled].mean() > 0.9
    assert "train_classification_loss" in model.history
    assert "train_classification_loss" not in first.history
    model.save("model", datamodule=dm)
    again = SCANVI.load("model", adata=False, datamodule=dm)
    assert np.array_equal(again.predict(dataloader=dm.inference_dataloader()), predicted)
    assert dm.on_after_batch_transfer(next(iter(dm.loader([1]))), 0)["labels"].shape == (1, 1)  # no pair after the fit


def test_labelled_cells_are_paired_with_all_cells_in_a_fit(reference):
    pairs, model = [], reference[2]

    class Fitted(ScviDataModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            pairs.append(super().on_after_batch_transfer(batch, dataloader_idx))
            return pairs[-1]

    given = [cells(200, 5, unlabelled=0.98), cells(100, 6)]
    fitted = Fitted(given, reference=model, batch_size=20, train_size=0.9)
    fitted.load_query_data(SCANVI).train(max_epochs=2, datamodule=fitted, check_val_every_n_epoch=1, **QUIET)
    assert any(labelled is None for _, labelled in pairs)
    for whole, labelled in pairs:
        known = whole["labels"][:, 0] < 3
        if labelled is None:
            assert known.sum() < 2
        else:
            assert torch.equal(labelled["ind_x"], whole["ind_x"][known])
            assert torch.equal(labelled["X"], whole["X"][known])


@pytest.mark.parametrize("model_class", [SCVI, SCANVI])
def test_queries_with_new_batches_continue_a_model_and_each_other(reference, model_class, caplog):
    dm, *models = reference
    model = models[model_class is SCANVI]
    query = cells(150, 3, ("b2", "new", "unknown"), genes=GENES[37::-1])
    query.obs["cell_type"] = "Unknown"
    if model_class is SCVI:
        del query.obs["cell_type"]
    qd = ScviDataModule(query, reference=model, batch_size=32)
    assert qd.genes == dm.genes
    assert list(qd.batch_labels) == ["b1", "b2", "new", "unknown"]
    assert list(qd.labels_mapping) == ["B", "NK", "T", "Unknown"]
    assert "AnnData (4)" in caplog.text
    assert "the reference lacks 'new', 'unknown'" in caplog.text
    continued = qd.load_query_data(model_class)
    assert continued.module.n_batch == 4
    continued.train(max_epochs=1, datamodule=qd, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    expected = latent(continued, qd)
    assert continued.get_normalized_expression(dataloader=qd.inference_dataloader(), transform_batch="new").shape == (
        150,
        42,
    )
    continued.save("query", datamodule=qd)
    known = {"datamodule": qd} if model_class is SCANVI else {}
    assert np.array_equal(latent(model_class.load("query", adata=False, **known), qd), expected)
    further = ScviDataModule(cells(60, 4, ("b9",)), reference="query", batch_size=32)
    assert list(further.batch_labels) == ["b1", "b2", "new", "unknown", "b9"]
    assert further.load_query_data(model_class).module.n_batch == 5


def test_a_model_of_an_anndata_is_a_reference(reference):
    (first, _), query = data(), cells(80, 8, ("b2", "b3"))
    first.obs["batch"] = first.obs["batch"].astype("category")
    SCVI.setup_anndata(first, batch_key="batch", categorical_covariate_keys=["assay"])
    model = SCVI(first, **SMALL)
    model.train(max_epochs=1, **QUIET)
    same = ScviDataModule([first], reference=model)
    assert np.allclose(latent(model, same), model.get_latent_representation(), atol=1e-5)
    qd = ScviDataModule(query, reference=model, batch_size=32)
    assert list(qd.batch_labels) == ["b1", "b2", "b3"]
    qd.load_query_data(SCVI).train(max_epochs=1, datamodule=qd, **QUIET)


def test_columns_of_a_query_can_have_other_names(reference):
    query = cells(80, 8, ("b3", "b2"))
    query.obs = query.obs.rename(columns={"batch": "lane", "assay": "kit"})
    query.obs["kit"] = query.obs["kit"].replace("v3", "v9")
    qd = ScviDataModule(query, reference=reference[1], batch_key="lane", categorical_covariate_keys="kit")
    assert list(qd.batch_labels) == ["b1", "b2", "b3"]
    assert qd.registry["field_registries"]["extra_categorical_covs"]["state_registry"]["mappings"]["kit"].tolist() == [
        *("v2", "v3", "v9")
    ]
    with pytest.raises(ValueError, match=r"categorical_covariate_keys names \['kit', 'donor'\], .* has \['assay'\]"):
        ScviDataModule(query, reference=reference[1], batch_key="lane", categorical_covariate_keys=["kit", "donor"])


def test_labels_that_a_reference_lacks_are_unlabelled(reference, caplog):
    query = cells(80, 8, unlabelled=0.0)
    query.obs["cell_type"] = query.obs["cell_type"].replace("T", "new type")
    qd = ScviDataModule(query, reference=reference[2])
    assert list(qd.labels_mapping) == ["B", "NK", "T", "Unknown"]
    assert np.array_equal(qd.labels_ == "Unknown", query.obs["truth"] == "T")
    assert "new type" in caplog.text


def test_samples_for_mrvi():
    dm = module(sample_key="donor", model_name=MRVI.__name__)
    sizes = pd.concat([source.obs for source in data()])["donor"].value_counts().sort_index()
    assert dm.n_obs_per_sample.tolist() == sizes.tolist()
    model = MRVI(adata=None, registry=dm.registry)
    model.train(max_epochs=1, datamodule=dm, **QUIET)
    assert latent(model, dm).shape == (500, 10)


def test_size_factors_and_unknown_batches_and_joint_batches():
    given = data()
    given[0].obs.loc[given[0].obs_names[:9], "batch"] = "unknown"
    dm = module(given, size_factor_key="size")
    assert list(dm.batch_labels) == ["b1", "b2", "unknown"]
    model = trained(dm)
    assert model.module.use_size_factor_key == "size"
    assert np.isfinite(latent(model, dm)).all()
    joint = module(given, batch_key=["batch", "donor"])
    assert list(joint.batch_labels)[-1] == "unknown//d3"
    assert joint.n_batch == 9
    assert np.isfinite(latent(trained(joint), joint)).all()


@pytest.mark.parametrize("category", ["Unknown", "to do"])
def test_unlabelled_cells_are_drawn_with_their_share(category):
    given = data()
    for source in given:
        source.obs["cell_type"] = source.obs["cell_type"].replace("Unknown", category)
    plan = scd.Sampling(by="cell_type", scheme="uniform", num_samples=6400)
    dm = module(given, labels_key="cell_type", unlabeled_category=category, sampling=plan)
    assert list(dm.labels_mapping) == ["B", "NK", "T", category]
    drawn = np.concatenate([batch["labels"][:, 0] for batch in dm.train_dataloader()])
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    unlabelled = (dm.labels_ == category).mean()
    assert np.allclose(shares, [*[(1 - unlabelled) / 3] * 3, unlabelled], atol=0.03)
    assert dm.drawn_classes.target_shares(0)[-1] == pytest.approx(unlabelled)
    given_share = scd.Sampling(by="cell_type", scheme="uniform", unknown_share=0.1)
    assert module(given, labels_key="cell_type", sampling=given_share).sampling == given_share


def test_two_processes_share_the_cells_and_infer_all(tmp_path):
    program = Path(__file__).with_name("ddp.py")
    paths = os.pathsep.join([str(program.parents[3]), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, program, tmp_path], check=True, timeout=300, cwd=tmp_path,
                   env=os.environ | {"PYTHONPATH": paths, "PL_GLOBAL_SEED": "0"})  # fmt: skip
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    assert len(first["rows"]) == len(second["rows"]) == 7 * 32
    assert not set(first["rows"]) & set(second["rows"])
    assert first["latent"].shape == second["latent"].shape == (500, 2)


@pytest.mark.parametrize("label", ["Unknown", "to do"])
def test_data_without_a_labelled_cell_are_refused(label):
    given = cells(50, 1)
    given.obs["cell_type"] = label
    with pytest.raises(ValueError, match=r"all labels of 'cell_type' .* in 50 cells"):
        _ = module([given], labels_key="cell_type", unlabeled_category=label).registry


def test_a_split_without_a_labelled_training_cell_is_refused():
    given = data()
    for source in given:
        source.obs["part"] = np.where(source.obs["cell_type"] == "Unknown", "train", "val")
    split = scd.Split(by="part", values={"train": "train", "val": "val"})
    dm = module(given, labels_key="cell_type", model_name="SCANVI", split=split)
    with pytest.raises(ValueError, match=r"none of the \d+ training cells has a label in 'cell_type'"):
        trained(dm, SCANVI)
    with pytest.raises(ValueError, match="labels_key"):
        _ = module().labels_


def test_queries_that_lack_genes_are_refused(reference):
    query = [cells(20, 1), cells(20, 2, genes=GENES[:30])]
    with pytest.raises(GeneOverlapError, match=r"42 genes of the reference: AnnData.* \(12\); each needs 80%"):
        _ = ScviDataModule(query, reference=reference[2]).collection
    few = ScviDataModule(query, reference=reference[2], alignment=scd.GeneAlignment(min_overlap=0.5))
    assert few.n_vars == 42
    with pytest.raises(ValueError, match="genes are those of the reference"):
        ScviDataModule(query, reference=reference[2], alignment={"vocabulary": GENES})
    with pytest.raises(TypeError, match=r"reference must be a model .* got int"):
        ScviDataModule(query, reference=3)
    with pytest.raises(TypeError, match="load_query_data needs the model"):
        module().load_query_data(SCVI)


@pytest.mark.parametrize("column", ["continuous_covariate_keys", "size_factor_key"])
def test_cells_without_a_number_are_refused(column):
    given = data()
    given[1].obs.loc[given[1].obs_names[:3], "age"] = np.nan
    with pytest.raises(ValueError, match=r"'age' for 3 of 200"):
        trained(module(given, **{column: "age"}))


def test_a_version_that_is_not_tested_is_reported_once(monkeypatch, caplog):
    versions.warn_untested.cache_clear()
    monkeypatch.setattr(versions, "version", lambda _: "1.3.1")
    module()
    module()
    assert caplog.text.count("scvi-tools 1.3.1") == 1
    assert "1.4.2 to 1.5" in caplog.text
    versions.warn_untested.cache_clear()


# ---------------------------------------------------------------------------------------------- names of other modules


def test_names_of_other_data_modules_are_understood(caplog):
    dm = ScviDataModule(adatas=data(), batch_keys=["batch"], label_key="cell_type", join="inner", shuffle=False,
                        parallel=False, accelerator="cpu", batch_size=50)  # fmt: skip
    assert (dm.batch_key, dm.labels_key, dm.alignment.join) == ("batch", "cell_type", "inner")
    assert "parallel has no effect" in caplog.text
    assert "accelerator has no effect" in caplog.text
    rows = torch.cat([batch["ind_x"] for batch in dm.train_dataloader()])[:, 0]
    assert rows.tolist() == list(range(500))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_another_data_module_sets_an_option(name):
    given = {"data": data(), "batch_key": "batch", "labels_key": "truth", "batches": ["b2"], "counts": "layers/raw"}
    option, _ = NAMES[name]
    value = {"join": "inner", "var_names": GENES[:9]}.get(name, given.get(option))
    options = {key: given[key] for key in ("data", "batch_key") if key != option} | {name: value}
    dm = ScviDataModule(**options)
    expected = {"join": scd.GeneAlignment(join="inner"), "var_names": scd.GeneAlignment(vocabulary=GENES[:9])}
    assert getattr(dm, option) is given.get(option) or getattr(dm, option) == expected.get(name, value)


def test_batches_have_the_order_that_is_named():
    dm = module(batch_labels=["b2", "other"])
    assert list(dm.batch_labels) == ["b2", "other", "b1"]
    assert {int(code) for batch in dm.train_dataloader() for code in batch["batch"]} == {0, 2}


def test_validation_data_of_their_own():
    first, second = data()
    dm = module(first, collection_val=second)
    assert (dm.n_train, dm.n_val) == (300, 200)
    assert dm.collection.obs(["corpus"])["corpus"].iloc[dm.val_idx].eq("val").all()
    shares = module(train_size=0.7, validation_size=0.2)
    assert (shares.n_train, shares.n_val, len(shares.test_idx)) == (350, 100, 50)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lables_key": "x"}, TypeError, r"'lables_key'; the nearest are .*'labels_key'"),
        ({"label_key": "a", "labels_key": "b"}, TypeError, "label_key, labels_key are one option"),
        *(({name: 1}, TypeError, f"'{name}'; use ") for name in INSTEAD),
        ({"train_size": 0.8, "split": scd.Split(val=0.2)}, ValueError, "exclude each other"),
        ({"shuffle": False, "sampling": scd.Sampling()}, ValueError, "shuffle=False and sampling"),
        ({"labels_key": "batch"}, ValueError, "'batch' is also a batch"),
        ({"batches": ["b"], "batch_key": None}, ValueError, "batches are labels of batch_key"),
    ],
)
def test_options_that_cannot_be_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        ScviDataModule(**{"data": data(), "batch_key": "batch"} | options)


def test_every_name_has_one_meaning():
    own = {option for option, _ in NAMES.values()}
    assert not (NAMES.keys() & WITHOUT_EFFECT.keys()) | (NAMES.keys() & INSTEAD.keys()) | (own & INSTEAD.keys())


def test_constructors_take_what_the_other_modules_take(tmp_path):
    assert ScviDataModule.from_lamin("blood/atlas", batch_key="batch").data == "lamindb:blood/atlas"
    inner, outer = (
        ScviDataModule.from_lamin([cells(20, 1), cells(20, 2, genes=GENES[2:])], batch_key="batch", **how)
        for how in ({}, {"join": "outer"})
    )
    assert (inner.n_vars, outer.n_vars) == (40, 42)
    cells(20, 1).write_h5ad(tmp_path / "cells.h5ad")
    assert ScviDataModule.from_annbatch(tmp_path / "cells.h5ad", batch_key="batch").n_obs == 20


def test_a_model_trains_on_a_collection_of_lamindb(lamin, tmp_path):
    artifacts = []
    for number, given in enumerate(data()):
        given.write_h5ad(tmp_path / f"{number}.h5ad")
        artifacts.append(lamin.Artifact(tmp_path / f"{number}.h5ad", key=f"scvi/{number}.h5ad").save())
    collection = lamin.Collection(artifacts, key="scvi/all").save()
    options = {"batch_key": "batch", "label_key": "cell_type", "batch_size": 64}  # names of MappedCollectionDataModule
    dm = ScviDataModule.from_lamin(collection, **options)
    whole = latent(trained(dm), dm)
    assert whole.shape == (500, 4)
    by_key = ScviDataModule.from_lamin("scvi/all", **options)
    for one, other in zip(dm.inference_dataloader(), by_key.inference_dataloader(), strict=True):
        assert torch.equal(one["X"], other["X"])
        assert torch.equal(one["labels"], other["labels"])


ANNBATCH = Path(__file__).parents[4] / "shared" / "formats" / "annbatch" / "shuffled.zarr"


@pytest.mark.skipif(not ANNBATCH.exists(), reason="no collection of annbatch")
def test_a_model_trains_on_a_collection_of_annbatch():
    dm = ScviDataModule.from_annbatch(ANNBATCH, batch_key="src_path", label_key="cell_type", batch_size=64)
    assert (dm.n_obs, dm.n_batch) == (150, 2)
    assert latent(trained(dm), dm).shape == (150, 4)


def test_a_query_is_read_by_the_source_that_is_registered_for_it(monkeypatch):
    class Query:
        def __init__(self, cells):
            self.cells = cells

    with pytest.raises(TypeError, match=r"no source is registered for .*Query; install .*to_anndata"):
        ScviDataModule.from_soma_query(Query(cells(20, 1)))
    from scdataloader import registry

    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    opened = []

    def open_queries(queries, options):
        opened.append(options.counts)
        return [source for query in queries for source in scd.sources.open_anndata([query.cells], options)]

    scd.register("source", f"type:{Query.__module__}.*Query", open_queries)
    query = cells(20, 1)
    query.layers["raw"] = query.X
    dm = ScviDataModule.from_soma_query(Query(query), layer_name="raw", batch_key="batch")
    assert dm.n_obs == 20
    assert opened == ["layers/raw"]
