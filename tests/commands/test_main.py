"""The command line as a user types it: real trainings of small files, other people's models, and what errors say."""

import logging
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from scipy.sparse import csr_matrix

from scdataloader.commands.main import main
from scdataloader.models import LabelClassifier

N_CELLS, N_GENES = 96, 12

# true of the model below, and no concern here
pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")


class Rows(LightningModule):
    """Someone else's model, which asks for nothing of the data and keeps the rows that it is trained on."""

    seen: list[list[int]] = []  # noqa: RUF012 (the command line makes the instance, so the class has to keep them)

    def __init__(self, rate: float = 0.1):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.rate = rate

    def training_step(self, batch, batch_idx):
        Rows.seen.append(batch["row"].tolist())
        return self.layer(batch["x"].sum(1, keepdim=True)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate * 1e-9)


class OwnClasses(Rows):
    """Someone else's model, which asks for one of the things that the data can give."""

    given: int | None = None

    def __init__(self, n_genes: int):
        super().__init__()
        OwnClasses.given = n_genes


class Keeps(OwnClasses):
    """Someone else's model, which keeps its arguments in checkpoints as Lightning does it."""

    def __init__(self, n_genes: int):
        super().__init__(n_genes)
        self.save_hyperparameters()

    def test_step(self, batch, batch_idx):
        self.log("test/mean", self.layer(batch["x"].sum(1, keepdim=True)).mean())


@pytest.fixture(autouse=True)
def own_state(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Rows.seen.clear()
    package = logging.getLogger("scdataloader")
    before = package.level, package.propagate, list(package.handlers)
    with torch.random.fork_rng():
        state = np.random.get_state()  # Lightning seeds all generators there are
        yield
        np.random.set_state(state)
    assert (package.level, package.propagate, list(package.handlers)) == before


@pytest.fixture
def files(tmp_path):
    """Two files with the same two kinds of cells, three to one; the genes of the second are reversed."""
    rng = np.random.default_rng(0)
    paths = []
    for name, order in (("a.h5ad", slice(None)), ("b.h5ad", slice(None, None, -1))):
        late = np.arange(N_CELLS) % 4 == 0
        x = rng.poisson(np.where((np.arange(N_GENES) < N_GENES // 2) == late[:, None], 8.0, 0.5)).astype(np.float32)
        obs = pd.DataFrame(
            {"cell_type": np.where(late, "late", "early"), "donor": [f"d{i % 8}" for i in range(N_CELLS)]},
            index=[f"cell{i}" for i in range(N_CELLS)],
        )
        var = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(N_GENES)])
        cells = ad.AnnData(csr_matrix(x), obs=obs, var=var)[:, order].copy()
        cells.write_h5ad(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths


def write(path, text):
    Path(path).write_text(textwrap.dedent(text), encoding="utf-8")
    return str(path)


@pytest.fixture
def config(files, tmp_path):
    return write(
        tmp_path / "fit.yaml",
        """
        trainer: {max_epochs: 3, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
        model:
          class_path: LabelClassifier
          init_args: {width: 16, learning_rate: 0.01}
        data:
          data: [a.h5ad, b.h5ad]
          labels: [cell_type]
          sampling: {by: [cell_type], scheme: uniform}
          split: {val: 0.2, test: 0.2}
          batch_size: 16
        """,
    )


def printed_config(capsys, *args):
    with pytest.raises(SystemExit) as done:
        main([*args, "--print_config"])
    assert done.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def refused(capsys, *args):
    """What the last line says after the parser has refused ``args``."""
    with pytest.raises(SystemExit) as done:
        main(list(args))
    assert done.value.code == 2
    return capsys.readouterr().err


# --- the commands -----------------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = """
import sys
from scdataloader.commands.main import main
try:
    main(["--help"])
except SystemExit:
    print(sorted({"torch", "lightning", "numpy", "rich"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("fit", "validate", "test", "predict", "inspect"):
        assert f"\n    {command} " in done.stdout
    assert done.stdout.endswith("[]\n")


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == "scdataloader 0.1.0\n"


def test_fit_test_and_predict(config, capsys):
    assert main(["fit", "--config", config]) == 0
    notes = capsys.readouterr().err
    assert "192 cells, sources: 2, genes: 12, label columns: 1\n" in notes
    (checkpoint,) = Path().glob("lightning_logs/version_0/checkpoints/*.ckpt")
    assert str(checkpoint) in notes
    assert Path("lightning_logs/version_0/splits.json").exists()
    saved = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert saved["data"]["sampling"]["scheme"] == "uniform"

    assert main(["test", "--config", config, "--ckpt_path", str(checkpoint)]) == 0
    shown = capsys.readouterr().out
    for metric in ("test/macro_f1", "test/recall/early", "test/recall/late"):
        assert metric in shown

    assert main(["predict", "--config", config, "--ckpt_path", str(checkpoint)]) == 0
    (path,) = Path().glob("lightning_logs/*/predictions.pt")
    predictions = torch.load(path)
    assert predictions["row"].tolist() == list(range(2 * N_CELLS))
    true = (np.arange(2 * N_CELLS) % 4 == 0).astype(int)
    assert (predictions["codes"][:, 0].numpy() == true).mean() > 0.95
    assert predictions["probabilities"]["cell_type"].shape == (2 * N_CELLS, 2)


def test_a_trained_model_is_applied_to_other_data(config, files, capsys):
    assert main(["fit", "--config", config]) == 0
    (checkpoint,) = Path().glob("lightning_logs/version_0/checkpoints/*.ckpt")
    # fewer genes in another order, one that training has not seen, a kind of cell that it has not seen, then no labels
    other = ad.read_h5ad(files[0])[:, [7, 2, 0, 9, 11, 4, 5, 6]].copy()
    other.var_names = [*other.var_names[:-1], "ENSG00000000999"]
    other.obs["cell_type"] = np.where(np.arange(N_CELLS) % 4 == 0, "late", "another")
    other.write_h5ad("other.h5ad")
    options = ["--config", config, "--ckpt_path", str(checkpoint), "--data.data", "other.h5ad"]
    assert main(["test", *options]) == 0
    assert "cells have labels not seen in training; encoded as -1: another" in capsys.readouterr().err
    del other.obs["cell_type"]
    other.write_h5ad("unlabelled.h5ad")
    assert main(["predict", *options[:-1], "unlabelled.h5ad"]) == 0
    (path,) = Path().glob("lightning_logs/*/predictions.pt")
    codes = torch.load(path)["codes"][:, 0].numpy()
    assert (codes == (np.arange(N_CELLS) % 4 == 0)).mean() > 0.9
    assert main(["test", *options[:-1], "unlabelled.h5ad"]) == 2
    assert "error: no source has the obs column 'cell_type'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ckpt_path", "gone.ckpt"], "checkpoint gone.ckpt does not exist"),
        (["--data.alignment.vocabulary", "gone.txt"], "No such file or directory: 'gone.txt'"),
        (["--data.alignment.tables", "{human: gone.csv}"], "No such file or directory: 'gone.csv'"),
        (["--data.split.val", "0.001"], "val=0.001 of 192 cells is less than one cell"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(config, capsys, options, message):
    assert main(["test", "--config", config, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_the_same_command_twice_in_a_row(config):
    assert main(["fit", "--config", config]) == 0
    assert main(["fit", "--config", config]) == 0


def test_a_run_goes_on_from_its_checkpoint(config, files):
    rows = ["--model", f"{__name__}.Rows", "--data.labels", "null"]
    assert main(["fit", "--config", config, *rows]) == 0
    whole = list(Rows.seen)
    Rows.seen.clear()
    assert (
        main(["fit", "--config", config, *rows, "--trainer.max_epochs", "2", "--trainer.default_root_dir", "first"])
        == 0
    )
    (checkpoint,) = Path("first").glob("**/*.ckpt")
    assert main(["fit", "--config", config, *rows, "--ckpt_path", str(checkpoint)]) == 0
    assert Rows.seen == whole


def test_masked_expression_trains_on_selected_genes(files, tmp_path):
    config = write(
        tmp_path / "pretrain.yaml",
        """
        trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
        model: {class_path: MaskedExpression, init_args: {width: 16}}
        data:
          data: "*.h5ad"
          split: {val: 0.2}
          collate:
            class_path: scdataloader.SelectedGenes
            init_args: {how: random expressed, n_genes: 8, fill: unexpressed}
        """,
    )
    assert main(["fit", "--config", config]) == 0
    metrics = pd.read_csv("lightning_logs/version_0/metrics.csv")
    assert np.isfinite(metrics["val/loss"].dropna()).all()


# --- other people's models --------------------------------------------------------------------------------------------


def test_any_module_by_class_path(config):
    assert main(["fit", "--config", config, "--model", f"{__name__}.Rows", "--model.rate", "0.5"]) == 0
    assert len(Rows.seen) == 3 * 7  # 192 cells less 20 % and 20 % in batches of 16, three epochs


def test_a_module_gets_what_it_asks_for_and_no_more(config):
    assert main(["fit", "--config", config, "--model", f"{__name__}.OwnClasses"]) == 0
    assert OwnClasses.given == N_GENES


@pytest.fixture
def terms(files):
    """The files with cells of the Cell Ontology: CD4 and CD8 T cells, of which every other is only "T cell"."""
    for path in files:
        cells = ad.read_h5ad(path)
        fine = np.where(cells.obs["cell_type"] == "late", "CL:0000624", "CL:0000625")
        cells.obs["cell_type"] = np.where(np.arange(N_CELLS) % 8 < 5, fine, "CL:0000084")
        cells.write_h5ad(path)
    return ["--data.hierarchies", "[cell_type]"]


def test_the_classifier_gets_the_hierarchy_of_its_labels(config, terms, capsys):
    assert main(["fit", "--config", config, *terms]) == 0
    (checkpoint,) = Path().glob("lightning_logs/version_0/checkpoints/*.ckpt")
    column = pd.read_csv("lightning_logs/version_0/metrics.csv")["val/hierarchical_f1"]
    assert column.dropna().between(0, 1).all()
    capsys.readouterr()
    assert main(["test", "--config", config, *terms, "--ckpt_path", str(checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert "test/hierarchical_f1" in shown
    assert "test/leaf_recall" in shown
    assert LabelClassifier.load_from_checkpoint(checkpoint, map_location="cpu").hierarchies == {
        "cell_type": {2: [0, 1]}
    }


def test_a_checkpoint_keeps_of_the_data_what_its_model_takes_and_no_more(config, terms, capsys):
    model = ["--model", f"{__name__}.Keeps"]
    assert main(["fit", "--config", config, *terms, *model]) == 0
    (checkpoint,) = Path().glob("lightning_logs/version_0/checkpoints/*.ckpt")
    assert dict(Keeps.load_from_checkpoint(checkpoint, map_location="cpu").hparams)["n_genes"] == N_GENES
    assert main(["test", "--config", config, *terms, *model, "--ckpt_path", str(checkpoint)]) == 0
    assert "test/mean" in capsys.readouterr().out


# --- options ----------------------------------------------------------------------------------------------------------


def test_yaml_and_the_command_line_come_together(config, capsys):
    found = printed_config(
        capsys, "fit", "--config", config, "--data.batch_size", "128", "--data.sampling.scheme", "power",
        "--data.sampling.tau", "0.25", "--data.split.by", "donor", "--data.collate", "scdataloader.SelectedGenes",
        "--data.collate.n_genes", "5", "--data.alignment.organisms", "human",
    )["data"]  # fmt: skip
    assert found["data"] == ["a.h5ad", "b.h5ad"]
    assert found["batch_size"] == 128
    assert (found["sampling"]["by"], found["sampling"]["scheme"], found["sampling"]["tau"]) == (
        ["cell_type"],
        "power",
        0.25,
    )
    assert (found["split"]["val"], found["split"]["by"]) == (0.2, "donor")
    assert found["collate"]["init_args"]["n_genes"] == 5
    assert found["alignment"]["organisms"] == "human"


def test_a_printed_configuration_is_one_to_train_with(config, capsys):
    found = printed_config(
        capsys, "fit", "--config", config, "--data.transforms+", "scdataloader.Normalize",
        "--data.transforms+", "scdataloader.Log1p", "--data.collate", "scdataloader.Dense",
    )  # fmt: skip
    assert [step["class_path"] for step in found["data"]["transforms"]] == [
        "scdataloader.Normalize",
        "scdataloader.Log1p",
    ]
    Path("again.yaml").write_text(yaml.safe_dump(found))
    assert main(["fit", "--config", "again.yaml"]) == 0


@pytest.mark.parametrize("data", ["a.h5ad", "lamindb:some/key", "*.h5ad"])
def test_data_may_be_one_string(data, config, capsys):
    assert printed_config(capsys, "fit", "--config", config, "--data.data", data)["data"]["data"] == data


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {data: a.h5ad, colate: scdataloader.Sparse}", "'data.colate"),
        ("data: {data: a.h5ad, sampling: {schema: uniform}}", "schema"),
        ("data: {data: a.h5ad, sampling: {by: cell_type, scheme: even}}", "even"),
        ("data: {data: a.h5ad, batch_size: many}", "many"),
        ("data: {data: a.h5ad, collate: {class_path: scdataloader.SelectedGenes, init_args: {n: 5}}}", "'n'"),
        ("model: NoSuchModel\ndata: {data: a.h5ad}", "NoSuchModel"),
        ("data: {labels: [cell_type]}", "data.data"),
        ("data: [a.h5ad", "line 1"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(text, said, capsys, files):
    Path("wrong.yaml").write_text(text)
    model = [] if "model" in text else ["--model", f"{__name__}.Rows"]
    message = refused(capsys, "fit", "--config", "wrong.yaml", *model)
    assert "error:" in message
    assert said in message
    assert len(message.splitlines()) < 25


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.data", "c.h5ad"], "c.h5ad does not exist"),
        (["--data.data", "*.zarr"], "no file matches '*.zarr'"),
        (["--data.data", "fit.yaml"], "fit.yaml is not an HDF5 file"),
        (["--data.labels", "[celltype]"], "no source has the obs column 'celltype'"),
        (["--data.counts", "layers/counts"], "layers/counts"),
        (["--data.split.by", "donor", "--data.split.val", "0.01"], "donor"),
        (
            ["--data.collate", "scdataloader.SelectedGenes"],
            'how="random expressed") needs n_genes of 1 or more, not None',
        ),
        (["--data.batch_size", "1000"], "no full batch of 1,000 cells"),
        (["--data.labels", "null"], "LabelClassifier has no label column"),
    ],
)
def test_bad_input_is_told_in_one_line(options, said, config, capsys):
    assert main(["fit", "--config", config, *options]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last


@pytest.mark.parametrize(("command", "share"), [("test", "test"), ("validate", "val")])
def test_nothing_to_evaluate_is_told(command, share, config, capsys):
    assert main([command, "--config", config, f"--data.split.{share}", "0"]) == 2
    assert f"set data.split.{share}" in capsys.readouterr().err.splitlines()[-1]


def test_the_traceback_is_there_for_those_who_ask(config, monkeypatch):
    monkeypatch.setenv("SCDATALOADER_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match=r"c\.h5ad"):
        main(["fit", "--config", config, "--data.data", "c.h5ad"])


def test_what_is_no_fault_of_the_user_keeps_its_traceback(config, monkeypatch):
    def broken(self):
        return {}["no such thing"]

    monkeypatch.setattr("scdataloader.training.datamodule.DataModule.setup", lambda self, stage: broken(self))
    with pytest.raises(KeyError, match="no such thing"):
        main(["fit", "--config", config])


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["classify", "pretrain"])
def test_the_configurations_run_as_they_stand(name, real_data, tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    options = ["--trainer.max_steps", "3", "--trainer.limit_val_batches", "2", "--trainer.accelerator", "cpu"]
    assert main(["fit", "--config", f"configs/{name}.yaml", "--trainer.default_root_dir", str(tmp_path), *options]) == 0


def test_two_species_need_a_word_on_the_one_that_is_silent(real_data, capsys):
    files = [str(real_data / name) for name in ("mouse_brain_merfish.h5ad", "human_placenta_cl22.h5ad")]
    options = ["--model", "LabelClassifier", "--data.labels", "[cell_type_ontology_term_id]", "--trainer.max_steps",
               "2", "--trainer.accelerator", "cpu"]  # fmt: skip
    assert main(["fit", "--data.data", str(files), *options]) == 2
    assert "no organism found for human_placenta_cl22.h5ad" in capsys.readouterr().err
    assert (
        main(["fit", "--data.data", str(files), *options, "--data.alignment.organisms", '{"*placenta*": human}']) == 0
    )


ON_TWO = """
import sys
from scdataloader.commands.main import main

options = ["--config", "fit.yaml", "--trainer.devices", "2", "--ckpt_path", sys.argv[1]]
sys.exit(sum(main([command, *options]) for command in ("validate", "test", "predict")))
"""


def test_commands_run_on_two_processes(config, tmp_path):
    fit = [sys.executable, "-m", "scdataloader", "fit", "--config", config, "--trainer.devices", "2"]
    done = subprocess.run(fit, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    for note in ("192 cells, sources: 2", "draws on 2 ranks", "written: "):
        assert done.stderr.count(note) == (3 if note == "draws on 2 ranks" else 1)
    (checkpoint,) = Path().glob("lightning_logs/version_0/checkpoints/*.ckpt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "NODE_RANK": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ON_TWO, checkpoint],
            env=os.environ | where | {"LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    notes = [process.communicate(timeout=400)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], notes
    assert "192 cells, sources: 2" in notes[0]
    assert "192 cells, sources: 2" not in notes[1]
