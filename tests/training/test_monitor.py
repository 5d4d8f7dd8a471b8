"""What a training run reports of itself, against what its model saw."""

import json
import logging
import time
from collections import Counter

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

import scdataloader as scd
from scdataloader.loading.loader import Loader
from scdataloader.sampling.samplers import SequentialSampler, Subset
from scdataloader.testing import MemorySource, named_values
from scdataloader.training.monitor import SamplingMonitor

GENES = [f"ENSG{i:011d}" for i in range(12)]
NAMES = np.array(["T cell", "B cell", "unknown", "NK cell"])
SCALARS = ["waiting_share", "cells_per_s", "repeated_share", "effective_cells", "share_error"]


class Slow(MemorySource):
    """A source that takes its time."""

    seconds = 0.0

    def read(self, rows):
        time.sleep(self.seconds)
        return super().read(rows)


def source(n=300, seconds=0.0):
    rng = np.random.default_rng(0)
    types = NAMES[rng.choice(4, n, p=[0.6, 0.25, 0.1, 0.05])]
    made = Slow("a", named_values(n, 12), GENES, {"type": pd.Categorical(types), "quality": rng.random(n)})
    made.seconds = seconds
    return made


def module(seconds=0.0, n=300, **options):
    made = {"data": source(n, seconds), "labels": ["type"], "batch_size": 16}
    return scd.DataModule(**(made | options))


class Recorder(pl.LightningModule):
    """A model that notes which rows it sees in which epoch, and takes its time."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seconds = seconds
        self.rows = {}

    def training_step(self, batch, _):
        time.sleep(self.seconds)
        self.rows.setdefault(self.current_epoch, []).extend(batch["row"].tolist())
        return (batch["x"].sum(1) * self.weight).mean()

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SlowlyValidated(Recorder):
    def validation_step(self, batch, _):
        time.sleep(1.0)


def fit(folder, dm, model=None, ckpt_path=None, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    csv = CSVLogger(folder, name=None, version="run")
    made = {"logger": csv, "max_epochs": 1, "enable_checkpointing": False, "log_every_n_steps": 1}
    made["limit_val_batches"] = len(dm.splits.val)  # 0 of nothing
    trainer = pl.Trainer(default_root_dir=folder, **(quiet | made | options))
    model = model or Recorder()
    trainer.fit(model, dm, ckpt_path=ckpt_path)
    return trainer, model


def scalars(folder):
    """One row for each epoch."""
    logged = pd.read_csv(folder / "run" / "metrics.csv")
    return logged.dropna(subset="data/cells_per_s").set_index("epoch").filter(like="data/")


def classes(folder):
    return pd.read_csv(folder / "run" / "sampling.csv")


SAMPLING = scd.Sampling(by="type", scheme="uniform", num_samples=640)


def test_what_is_reported_is_what_the_model_saw(tmp_path):
    dm = module(sampling=SAMPLING, split=scd.Split(val=0.1))
    _, model = fit(tmp_path, dm, max_epochs=3)
    types = dm.collection.obs(["type"])["type"].astype(str).to_numpy()
    table, logged = classes(tmp_path), scalars(tmp_path)
    assert list(table.columns) == ["epoch", "class", "target", "observed", "draws"]
    assert sorted(logged.columns) == sorted(f"data/{name}" for name in SCALARS)
    assert list(logged.index) == [0, 1, 2]
    for epoch, rows in model.rows.items():
        assert len(rows) == 640
        of_epoch = table[table["epoch"] == epoch].set_index("class")
        assert of_epoch["draws"].to_dict() == Counter(types[rows])
        assert (of_epoch["observed"] == of_epoch["draws"] / 640).all()
        assert of_epoch["target"].tolist() == pytest.approx([1 / 3] * 3)
        counts = np.bincount(rows)
        assert logged["data/repeated_share"][epoch] == pytest.approx(1 - np.count_nonzero(counts) / 640)
        assert logged["data/effective_cells"][epoch] == pytest.approx(640**2 / (counts**2).sum())
        error = (of_epoch["target"] - of_epoch["observed"]).abs().sum() / 2
        assert logged["data/share_error"][epoch] == pytest.approx(error, abs=1e-6)
    assert (tmp_path / "run" / "splits.json").exists()


def test_unknown_labels_are_a_class_of_the_report(tmp_path):
    fit(tmp_path, module(sampling=scd.Sampling(by="type", unknown_share=0.4, num_samples=6400)))
    table = classes(tmp_path).set_index("class")
    assert list(table.index) == ["B cell", "NK cell", "T cell", "unknown"]
    assert table["target"]["unknown"] == pytest.approx(0.4)
    assert table["observed"]["unknown"] == pytest.approx(0.4, abs=0.03)  # five standard errors
    assert table["draws"].sum() == 6400


class EveryThird:
    """A plan that does not describe its classes."""

    def sampler(self, cells, *, seed, global_batch_size):
        rows = cells.rows[::3]
        return Subset(sampler=SequentialSampler(len(rows)), rows=rows)


def test_a_plan_without_classes_is_reported_without_targets(tmp_path):
    fit(tmp_path, module(sampling=EveryThird()))
    (logged,) = scalars(tmp_path).to_dict("records")
    assert logged["data/effective_cells"] == 96
    assert "data/share_error" not in logged
    (line,) = classes(tmp_path).to_dict("records")
    assert (line["class"], line["observed"], line["draws"]) == ("all cells", 1.0, 96)
    assert np.isnan(line["target"])


def test_a_shuffled_epoch_repeats_nothing(tmp_path):
    fit(tmp_path, module())
    (logged,) = scalars(tmp_path).to_dict("records")
    assert logged["data/repeated_share"] == 0
    assert logged["data/effective_cells"] == 288  # 18 full batches of 300 cells
    assert logged["data/share_error"] == 0
    assert classes(tmp_path).to_dict("records") == [
        {"epoch": 0, "class": "all cells", "target": 1.0, "observed": 1.0, "draws": 288}
    ]


def test_targets_follow_the_curriculum(tmp_path):
    sampling = scd.Sampling(by="type", scheme="natural", num_samples=3200, curriculum_epochs=3)
    dm = module(sampling=sampling)
    fit(tmp_path, dm, max_epochs=4)
    table = classes(tmp_path)
    shares = dm.drawn_classes.target_shares(99)[:-1]
    for epoch, exponent in enumerate([1 / 3, 2 / 3, 1, 1]):
        raised = shares**exponent
        of_epoch = table[table["epoch"] == epoch]
        assert of_epoch["target"].tolist() == pytest.approx(raised / raised.sum())
        assert of_epoch["observed"].tolist() == pytest.approx(of_epoch["target"], abs=0.045)  # five standard errors


def test_the_waiting_share_tells_slow_data_from_a_slow_model(tmp_path):
    options = {"batch_size": 30, "window": 30, "num_threads": 1}
    fit(tmp_path / "data", module(seconds=0.05, **options))
    fit(tmp_path / "model", module(**options), Recorder(seconds=0.05))
    slow_data, slow_model = (scalars(tmp_path / name).iloc[0] for name in ("data", "model"))
    assert slow_data["data/waiting_share"] > 0.6
    assert slow_model["data/waiting_share"] < 0.4
    for logged in (slow_data, slow_model):
        assert logged["data/cells_per_s"] < 30 / 0.05


def test_time_spent_in_validation_is_not_held_against_the_data(tmp_path):
    dm = module(seconds=0.03, batch_size=30, window=30, num_threads=1, split=scd.Split(val=0.1))
    fit(tmp_path, dm, SlowlyValidated(), num_sanity_val_steps=1)
    (logged,) = scalars(tmp_path).to_dict("records")
    assert logged["data/cells_per_s"] > 270 / 1.0  # validation alone took longer
    assert logged["data/waiting_share"] > 0.3


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_run_goes_on_in_its_file_and_says_how_much_it_covers(tmp_path):
    def run(dm, **options):
        steps = ModelCheckpoint(tmp_path / "steps", "{step}", save_top_k=-1, every_n_train_steps=10)
        return fit(tmp_path, dm, logger=False, callbacks=[steps], enable_checkpointing=True, **options)

    run(module(sampling=SAMPLING))
    path = tmp_path / "sampling.csv"
    assert pd.read_csv(path)["draws"].sum() == 640
    for checkpoint, covered in (("step=10", [480, 640]), ("step=40", [640])):
        before = path.read_text()
        dm = module(sampling=SAMPLING)
        _, model = run(dm, ckpt_path=tmp_path / "steps" / f"{checkpoint}.ckpt", max_epochs=2)
        assert path.read_text().startswith(before)
        more = pd.read_csv(path).iloc[before.count("\n") - 1 :]
        assert more.groupby("epoch")["draws"].sum().tolist() == covered
        types = dm.collection.obs(["type"])["type"].astype(str).to_numpy()
        for epoch, rows in model.rows.items():
            of_epoch = more[more["epoch"] == epoch].set_index("class")
            assert of_epoch["draws"].to_dict() == Counter(types[rows])


def test_an_epoch_that_is_cut_short_reports_what_was_handed_out(tmp_path):
    fit(tmp_path, module(sampling=SAMPLING), limit_train_batches=7)
    assert classes(tmp_path)["draws"].sum() == 7 * 16


def test_an_epoch_without_a_batch_is_none(tmp_path):
    class Stop(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 1

    fit(tmp_path, module(sampling=SAMPLING), max_epochs=3, callbacks=[Stop()])
    assert set(classes(tmp_path)["epoch"]) == {0}


def test_the_progress_bar_shows_a_rate_now_and_then(tmp_path):
    shown = []

    class Bar(TQDMProgressBar):
        def get_metrics(self, trainer, pl_module):
            metrics = super().get_metrics(trainer, pl_module)
            shown.append(metrics.get("cells/s"))
            return metrics

    options = {"enable_progress_bar": True, "callbacks": [Bar(refresh_rate=1)]}
    began = time.perf_counter()
    fit(tmp_path, module(batch_size=30, n=900), Recorder(seconds=0.05), **options)
    seconds = time.perf_counter() - began
    rates = [rate for rate in shown if rate is not None]
    assert len(rates) >= 29
    assert 2 <= len(set(rates)) <= 1 + seconds / 0.5
    assert 0 < rates[-1] < 30 / 0.05


def test_one_line_a_run_can_be_read_by(tmp_path, caplog):
    caplog.set_level(logging.INFO, "scdataloader")
    fit(tmp_path, module(sampling=SAMPLING), max_epochs=2)
    lines = [record.getMessage() for record in caplog.records if record.name == "scdataloader.training.monitor"]
    heads = [line.partition(" at ")[0] for line in lines]
    assert heads == ["epoch 0: 640 draws on 1 rank", "epoch 1: 640 draws on 1 rank"]
    assert "of the time waiting for data" in lines[0]


def test_no_report_where_none_is_wanted(tmp_path):
    dm = module(sampling=SAMPLING, report=False)
    trainer, _ = fit(tmp_path, dm)
    assert not any(isinstance(callback, SamplingMonitor) for callback in trainer.callbacks)
    assert not (tmp_path / "run" / "sampling.csv").exists()
    assert dm.train_dataloader().tally is None


def test_there_is_one_monitor_in_front_however_often_a_trainer_fits(tmp_path):
    own = SamplingMonitor()
    trainer, _ = fit(tmp_path / "own", module(), callbacks=[own])
    assert [callback for callback in trainer.callbacks if isinstance(callback, SamplingMonitor)] == [own]
    trainer, model = fit(tmp_path / "twice", module(n=300))
    assert isinstance(trainer.callbacks[0], SamplingMonitor)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, module(n=200))
    assert sum(isinstance(callback, SamplingMonitor) for callback in trainer.callbacks) == 1
    assert classes(tmp_path / "twice")["draws"].tolist() == [288, 192]


def test_other_data_is_told_that_there_is_nothing_to_report(tmp_path, caplog):
    class Other:
        def __len__(self):
            return 3

        def __iter__(self):
            return iter([{"x": torch.ones(4, 2), "row": torch.arange(4)}] * 3)

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"max_epochs": 1, "enable_checkpointing": False, "logger": False}
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[SamplingMonitor()], **quiet, **options)
    trainer.fit(Recorder(), Other(), Other())
    assert "SamplingMonitor reports nothing" in caplog.text
    assert "trains on a Other" in caplog.text
    assert not list(tmp_path.glob("**/sampling.csv"))


def test_without_a_logger_the_file_lies_in_the_root_folder(tmp_path):
    fit(tmp_path, module(), logger=False)
    assert (tmp_path / "sampling.csv").exists()
    assert json.loads((tmp_path / "splits.json").read_text())["counts"]["train"] == 300


def test_a_metric_can_be_watched_like_any_other(tmp_path):
    trainer, _ = fit(tmp_path, module(sampling=SAMPLING))
    assert {f"data/{name}" for name in SCALARS} <= set(trainer.callback_metrics)


def test_a_loader_measures_how_long_it_was_waited_for():
    dm = module(seconds=0.05, batch_size=30, window=30, num_threads=1)
    loader = dm.train_dataloader()
    assert isinstance(loader, Loader)
    assert (loader.waited, loader.elapsed, loader.n_drawn) == (0, 0, 0)
    batches = iter(loader)
    for number in range(1, 6):
        next(batches)
        assert loader.n_drawn == 30 * number
    assert 0.05 <= loader.waited <= loader.elapsed
    waited, elapsed = loader.waited, loader.elapsed
    time.sleep(0.2)
    assert loader.waited == waited
    assert loader.elapsed >= elapsed + 0.2
    dm.teardown("fit")
