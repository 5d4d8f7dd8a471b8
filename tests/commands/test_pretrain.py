"""Small models of Geneformer's and scGPT's kind, pre-trained by their configurations on the cells of the quickstart."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule

from scdataloader.commands.main import main
from scdataloader.training.checkpoint import load_checkpoint, read_state

ROOT = Path(__file__).parents[2]
N_STEPS, RESUMED_AT = 200, 130  # of 160 steps per epoch
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "log_every_n_steps": 1}
KEPT = [
    {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"every_n_train_steps": RESUMED_AT, "save_top_k": -1, "filename": "{step}"},
    }
]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A working directory with the files of the quickstart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        import blood
    folder = tmp_path_factory.mktemp("root")
    blood.write_datasets(folder / "quickstart" / "lamindb" / "blood")
    return folder


@pytest.fixture(autouse=True)
def own_state(cells, monkeypatch):
    monkeypatch.chdir(cells)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster for models of this size
    with torch.random.fork_rng():
        state = np.random.get_state()  # Lightning seeds all generators there are
        yield
        np.random.set_state(state)
    torch.set_num_threads(n_threads)


def fit(name, folder, *options, **trainer):
    """Losses of a fit by step; ``folder`` gets the run."""
    folder.mkdir(exist_ok=True)
    Path(folder / "test.yaml").write_text(
        json.dumps({"trainer": QUIET | {"default_root_dir": str(folder)} | trainer, "data": {"batch_size": 16}})
    )
    config = ROOT / "configs" / f"{name}.yaml"
    assert f"\nscdataloader fit --config configs/{name}.yaml\n" in (ROOT / "docs" / "howto" / "tokens.md").read_text()
    assert main(["fit", "--config", str(config), "--config", str(folder / "test.yaml"), *options]) == 0
    (path,) = folder.glob("lightning_logs/version_0/metrics.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return {int(row["step"]): float(row["train/loss"]) for row in rows if row["train/loss"]}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # predict has no ModelCheckpoint
@pytest.mark.parametrize("name", ["geneformer", "scgpt"])
def test_the_loss_falls_and_a_resumed_run_has_the_same(name, tmp_path, capsys):
    losses = fit(name, tmp_path / "whole", callbacks=KEPT)
    in_order = [losses[step] for step in range(N_STEPS)]
    assert np.mean(in_order[-20:]) < {"geneformer": 0.95, "scgpt": 0.7}[name] * np.mean(in_order[:20])

    (checkpoint,) = tmp_path.glob(f"**/step={RESUMED_AT}.ckpt")
    assert ("medians" in read_state(checkpoint)) == (name == "geneformer")
    resumed = fit(name, tmp_path / "resumed", "--ckpt_path", str(checkpoint), callbacks=KEPT)
    assert resumed == {step: losses[step] for step in range(RESUMED_AT, N_STEPS)}

    out = tmp_path / "embeddings.parquet"
    config = str(ROOT / "configs" / f"{name}.yaml")
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    assert main(["predict", "--config", config, *quiet, "--ckpt_path", str(checkpoint), "--out", str(out)]) == 0
    predicted = pd.read_parquet(out)
    assert len(predicted) == 700
    assert np.isfinite(np.stack(predicted["embedding"])).all()


def test_dictionaries_as_models_ship_them_are_read_from_files(cells, tmp_path):
    genes = ["CD3D", "CD79A", "NKG7", "LYZ", "FCER1A", "CST3", "S100A4", "TYROBP"]
    special = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3}
    tokens = special | {gene: 100 + 3 * place for place, gene in enumerate(genes)}
    files = {"tokens": tokens, "medians": {gene: 1.0 + place for place, gene in enumerate(genes)}}
    options = []
    for option, table in files.items():
        path = tmp_path / f"{option}.pkl"
        path.write_bytes(pickle.dumps(table))
        options += [f"--data.collate.init_args.{option}", str(path)]
    assert len(fit("geneformer", tmp_path / "g", *options, max_steps=2)) == 2
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 150, "<cls>": 0, "CD3D": 7, "NKG7": 8, "LYZ": 9}))
    vocabulary = ["--data.collate.init_args.vocabulary", str(tmp_path / "vocab.json")]
    assert len(fit("scgpt", tmp_path / "s", *vocabulary, max_steps=2)) == 2

    saved = {folder: load_checkpoint(next(tmp_path.glob(f"{folder}/**/*.ckpt"))) for folder in "gs"}
    assert saved["g"]["hyper_parameters"]["n_tokens"] == 100 + 3 * 7 + 1
    assert saved["s"]["hyper_parameters"]["n_tokens"] == 151
    assert saved["s"]["hyper_parameters"]["pad_token"] == 150
    assert "medians" not in read_state(next(tmp_path.glob("g/**/*.ckpt")))


class Own(LightningModule):
    """Someone else's model, with arguments of these names."""

    given: list[object] = []  # noqa: RUF012 (the command line makes the instance)

    def __init__(self, n_tokens: int = 7, pad_token: str | int = "[PAD]"):
        super().__init__()
        Own.given += [n_tokens, pad_token]
        raise ValueError("known")


@pytest.mark.parametrize(
    ("collate", "options", "expected"),
    [
        ("scdataloader.Sparse", [], [7, "[PAD]"]),
        ("scdataloader.Sparse", ["--model.n_tokens", "12"], [12, "[PAD]"]),
        ("scdataloader.tokens.ScGPT", ["--model.n_tokens", "12"], [765 + 3, 0]),
    ],
)
def test_a_model_keeps_its_own_numbers_if_the_data_has_no_tokens(collate, options, expected, capsys):
    Own.given.clear()
    data = ["--data.data", "quickstart/lamindb/blood/blood_a.h5ad", "--data.collate", collate]
    path = f"{Own.__module__}.{Own.__qualname__}"
    assert main(["fit", "--model", path, *options, *data, "--trainer.logger", "false"]) == 2
    assert Own.given == expected


def test_a_collate_function_without_tokens_is_refused(tmp_path, capsys):
    options = ["--data.collate", "scdataloader.Sparse"]
    config = str(ROOT / "configs" / "geneformer.yaml")
    assert main(["fit", "--config", config, "--trainer.logger", "false", *options]) == 2
    assert "MaskedTokenModel has no tokens; set the data's collate" in capsys.readouterr().err
