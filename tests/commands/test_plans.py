"""Sets and mixtures from YAML: in fit with its log of shares, and in inspect."""

from pathlib import Path

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from scdataloader.commands.main import main
from scdataloader.testing import named_values

GENES = [f"ENSG{i:011d}" for i in range(20)]


class Rows(pl.LightningModule):
    """A model that notes the rows of its batches in ``rows.txt``."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch):
        with Path("rows.txt").open("a") as file:
            file.write(" ".join(map(str, batch["row"].tolist())) + "\n")
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Files of 60, 30 and 30 cells in the working folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number, (name, n) in enumerate({"a": 60, "b": 30, "c": 30}.items()):
        obs = {
            "cell_type": rng.choice(list("BT"), n),
            "perturbation": rng.choice(["ctrl", "x", "y"], n),
            "batch": ["1"] * n,
        }
        table = pd.DataFrame(obs, index=[f"{name}{row}" for row in range(n)])
        ad.AnnData(named_values(n, 20, seed=number), table, pd.DataFrame(index=GENES)).write_h5ad(f"{name}.h5ad")


def configured(data, **trainer):
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet["default_root_dir"] = "."  # without it and a logger, a run writes no file
    config = {
        "trainer": quiet | {"max_epochs": 2, "enable_checkpointing": False} | trainer,
        "model": {"class_path": "tests.commands.test_plans.Rows"},
        "data": data,
    }
    Path("run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return ["--config", "run.yaml"]


def rows():
    return np.array([list(map(int, line.split())) for line in Path("rows.txt").read_text().splitlines()])


MIXTURE = {
    "data": {"census": "a.h5ad", "tahoe": ["b.h5ad", "c.h5ad"]},
    "batch_size": 20,
    "sampling": {
        "class_path": "scdataloader.Mixture",
        "init_args": {
            "shares": {"census": [0.75, 0.5], "tahoe": [0.25, 0.5]},
            "num_samples": 200,
            "sampling": {
                "census": {
                    "class_path": "scdataloader.Sampling",
                    "init_args": {"by": ["cell_type"], "scheme": "uniform"},
                },
            },
        },
    },
}
SETS = {
    "data": ["a.h5ad", "b.h5ad"],
    "batch_size": 16,
    "labels": ["cell_type", "perturbation", "batch"],
    "collate": {"class_path": "scdataloader.batches.sets.PerturbationSets"},
    "sampling": {
        "class_path": "scdataloader.GroupedSampling",
        "init_args": {
            "by": ["cell_type", "perturbation"],
            "size": 4,
            "controls": {"perturbation": "ctrl"},
            "num_sets": 40,
        },
    },
}


@pytest.mark.filterwarnings("ignore")
def test_a_mixture_is_fitted_and_its_shares_are_logged(files):
    assert main(["fit", *configured(MIXTURE)]) == 0
    of_census = (rows() < 60).sum(axis=1)
    assert of_census.tolist() == [15] * 10 + [10] * 10
    log = pd.read_csv("sampling.csv")
    assert log[["epoch", "class", "target", "observed", "draws"]].to_numpy().tolist() == [
        [0, "census", 0.75, 0.75, 150],
        [0, "tahoe", 0.25, 0.25, 50],
        [1, "census", 0.5, 0.5, 100],
        [1, "tahoe", 0.5, 0.5, 100],
    ]


@pytest.mark.filterwarnings("ignore")
def test_sets_are_fitted_and_their_shares_are_logged(files):
    assert main(["fit", *configured(SETS)]) == 0
    assert rows().shape == (40, 8)
    log = pd.read_csv("sampling.csv")
    controls = log[log["class"].str.contains("ctrl")]
    assert len(controls) == 4
    assert controls["observed"].sum() == pytest.approx(1.0)
    assert controls["target"].sum() == pytest.approx(1.0)
    assert np.abs(log["target"] - log["observed"]).max() < 0.2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("data", [MIXTURE, SETS], ids=["mixture", "sets"])
def test_a_fit_resumes_within_an_epoch(files, data):
    """S6: the same batches as without the interruption, in the rest of the epoch and in the next one."""
    saver = {"dirpath": ".", "filename": "{step}", "save_top_k": -1, "every_n_train_steps": 7}
    callbacks = [{"class_path": "ModelCheckpoint", "init_args": saver}]
    assert main(["fit", *configured(data, enable_checkpointing=True, callbacks=callbacks)]) == 0
    whole = rows()
    Path("rows.txt").unlink()
    assert main(["fit", *configured(data), "--ckpt_path", "step=7.ckpt"]) == 0
    assert np.array_equal(rows(), whole[7:])


def test_a_mixture_is_inspected(files, capsys):
    assert main(["inspect", *configured(MIXTURE)]) == 0
    shown = capsys.readouterr().out
    assert "corpus: 2 classes" in shown
    assert "mixing 2 corpora: census 75.00%, tahoe 25.00% at first, changing over 2 epochs" in shown
    assert "census: sampling 60 cells in 2 classes" in shown
    assert "tahoe" in next(line for line in shown.splitlines() if "b.h5ad" in line)


def test_sets_are_inspected(files, capsys):
    assert main(["inspect", *configured(SETS)]) == 0
    shown = capsys.readouterr().out
    assert "cell_type | perturbation: 6 classes" in shown
    assert "sampling 40 sets of 4 cells from 4 groups, each with 4 controls" in shown


def test_a_mixture_by_its_registered_name(files, capsys):
    assert main(["inspect", *configured(MIXTURE | {"sampling": "mixture"})]) == 0
    assert "mixing 2 corpora: census 50.00%, tahoe 50.00%" in capsys.readouterr().out


def test_a_wrong_share_is_one_line(files, capsys):
    wrong = {"class_path": "scdataloader.Mixture", "init_args": {"shares": {"census": 0.5, "tahoe": 0.4}}}
    assert main(["fit", *configured(MIXTURE | {"sampling": wrong})]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: shares must be 0 or more and sum to 1; got census 0.5, tahoe 0.4, in sum 0.9"]


def test_what_a_command_line_cannot_change_is_one_line(files, capsys):
    assert main(["inspect", *configured(MIXTURE), "--by", "cell_type"]) == 2
    assert "--by is an option of Sampling, but run.yaml has sampling by scdataloader.Mixture" in capsys.readouterr().err
    short = MIXTURE["sampling"] | {"class_path": "Mixture"}
    assert main(["inspect", *configured(MIXTURE | {"sampling": short})]) == 2
    assert "'Mixture' without its module; write scdataloader.Mixture" in capsys.readouterr().err
