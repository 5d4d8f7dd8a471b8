"""Models of cellarium-ml on our batches: statistics equal NumPy's, training learns, checkpoints resume."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from cellarium.ml import CellariumModule
from cellarium.ml.models import LogisticRegression, OnePassMeanVarStd, SingleCellVariationalInference
from cellarium.ml.transforms import Log1p, NormalizeTotal
from lightning.pytorch.callbacks import ModelCheckpoint
from pyro.infer import Trace_ELBO

import scdataloader as scd
from scdataloader.integrations.cellarium import Cellarium, CellariumAnnDataDataModule
from scdataloader.testing import MemorySource

N_CELLS, N_GENES = 96, 20
GENES = [f"ENSG{i:011d}" for i in range(N_GENES)]
TYPES = np.array(["B cell", "T cell"])[np.arange(N_CELLS) % 2]
COUNTS = np.random.default_rng(0).poisson(2.0, (N_CELLS, N_GENES)).astype(np.float32)
COUNTS[TYPES == "T cell", 0] += 20
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # OnePassMeanVarStd writes its result to the working directory


def module(collate, kind=scd.DataModule, **options):
    obs = {"type": TYPES, "donor": [f"d{i // 2 % 3}" for i in range(N_CELLS)]}
    source = MemorySource("cells", COUNTS, GENES, obs=obs)
    options = {"labels": ["type", "donor"], "batch_size": 16, "report": False} | options
    return kind([source], collate=collate, **options)


def trainer(tmp_path, **options):
    return pl.Trainer(**(QUIET | {"default_root_dir": tmp_path, "enable_checkpointing": False} | options))


def one_pass(transforms=(), **options):
    return CellariumModule(transforms=list(transforms), model=OnePassMeanVarStd(var_names_g=np.array(GENES), **options))


def test_means_and_variances_of_one_pass_are_those_of_numpy(tmp_path):
    model = one_pass()
    trainer(tmp_path, max_epochs=1).fit(model, module("cellarium"))
    np.testing.assert_array_equal(model.model.mean_g.numpy(), COUNTS.mean(axis=0))
    np.testing.assert_allclose(model.model.var_g.numpy(), COUNTS.var(axis=0), rtol=1e-5)


def test_transforms_of_theirs_apply(tmp_path):
    model = one_pass([NormalizeTotal(target_count=10_000), Log1p()])
    trainer(tmp_path, max_epochs=1).fit(model, module("cellarium"))
    expected = np.log1p(COUNTS / COUNTS.sum(axis=1, keepdims=True) * 10_000).mean(axis=0)
    np.testing.assert_allclose(model.model.mean_g.numpy(), expected, rtol=1e-5)


def regression(**options):
    model = LogisticRegression(
        n_obs=N_CELLS, var_names_g=np.array(GENES), y_categories=np.unique(TYPES), log_metrics=False
    )
    return CellariumModule(
        transforms=[Log1p()], model=model, optim_fn=torch.optim.Adam, optim_kwargs={"lr": 0.1}, **options
    )


def test_a_logistic_regression_learns_the_type(tmp_path):
    dm = module(Cellarium(codes={"y_n": "type"}))
    model = regression()
    trainer(tmp_path, max_epochs=20).fit(model, dm)
    (predicted,) = trainer(tmp_path).predict(model, module(Cellarium(codes={"y_n": "type"}), batch_size=N_CELLS))
    classes = predicted["y_categories"][predicted["x_ng"].argmax(dim=1)]
    assert (classes == TYPES).mean() > 0.95


def layers():
    def linear(**options):
        return {"class_path": "torch.nn.Linear", "init_args": options}

    return {"hidden_layers": [linear(out_features=8)], "final_layer": linear()}


def test_variational_inference_trains_on_codes_of_batches(tmp_path):
    codes = {"batch_index_n": "donor", "categorical_covariate_index_nd": ["type"]}
    model = SingleCellVariationalInference(
        var_names_g=np.array(GENES),
        encoder=layers(),
        decoder=layers() | {"final_additive_bias": False},
        n_batch=3,
        n_latent=2,
        n_cats_per_cov=[2],
    )
    wrapped = CellariumModule(model=model, optim_fn=torch.optim.Adam, optim_kwargs={"lr": 1e-3})
    trainer(tmp_path, max_epochs=1).fit(wrapped, module(Cellarium(codes=codes)))


class Noting(CellariumModule):
    """Notes the rows of each step."""

    def training_step(self, batch, batch_idx):
        self.rows = [*getattr(self, "rows", []), batch["row"].tolist()]
        return super().training_step(batch, batch_idx)


def noting():
    model = LogisticRegression(
        n_obs=N_CELLS, var_names_g=np.array(GENES), y_categories=np.unique(TYPES), log_metrics=False
    )
    return Noting(model=model, optim_fn=torch.optim.Adam, optim_kwargs={"lr": 0.1})


@pytest.mark.parametrize("step", [4, 6, 8])
def test_a_run_resumes_exactly_also_from_the_last_batch_of_an_epoch(step, tmp_path):
    def data():
        return module(Cellarium(codes={"y_n": "type"}), CellariumAnnDataDataModule)

    # their checkpoints hold objects
    torch.serialization.add_safe_globals([LogisticRegression, Trace_ELBO, torch.optim.Adam])
    every = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    whole = noting()
    trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[every]).fit(whole, data())
    assert len(whole.rows) == 12
    resumed = noting()
    path = tmp_path / f"step={step}.ckpt"
    trainer(tmp_path, max_epochs=2).fit(resumed, data(), ckpt_path=path, weights_only=False)
    assert resumed.rows == whole.rows[step:]
    assert torch.equal(resumed.model.W_gc, whole.model.W_gc)
