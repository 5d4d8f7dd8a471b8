"""The command line as a user types it: real trainings of small files, other people's models, and what errors say."""

import logging
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
    """The line that refuses ``args``."""
    assert main(list(args)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


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
    (path,) = Path().glob("lightning_logs/*/predictions.parquet")
    predictions = pd.read_parquet(path)
    assert predictions["row"].tolist() == list(range(2 * N_CELLS))
    assert predictions["source"].tolist() == ["a.h5ad"] * N_CELLS + ["b.h5ad"] * N_CELLS
    names = [name for file in ("a.h5ad", "b.h5ad") for name in ad.read_h5ad(file, backed="r").obs_names]
    assert predictions["obs_name"].tolist() == names
    true = np.where(np.arange(2 * N_CELLS) % 4 == 0, "late", "early")
    assert (predictions["cell_type"] == true).mean() > 0.95
    assert predictions["cell_type_probability"].between(0.5, 1).all()

    Path("ours.parquet").touch()  # nothing is overwritten
    assert main(["predict", "--config", config, "--ckpt_path", str(checkpoint), "--out", "ours.parquet"]) == 2
    assert "ours.parquet exists" in capsys.readouterr().err


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
    (path,) = Path().glob("lightning_logs/*/predictions.parquet")
    labels = pd.read_parquet(path)["cell_type"]
    assert (labels == np.where(np.arange(N_CELLS) % 4 == 0, "late", "early")).mean() > 0.9
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


@pytest.mark.parametrize(
    "words",
    [
        ["--data.labels", "cell_type", "donor"],
        ["--data.labels", "cell_type", "--data.labels", "donor"],
        ["--data.labels", "[cell_type, donor]"],
        ["--data.labels=[cell_type, donor]"],
    ],
)
def test_a_list_is_words_or_a_repeated_option_or_yaml(words, config, capsys):
    found = printed_config(capsys, "fit", "--config", config, *words, "--data.batch_size", "8")["data"]
    assert (found["labels"], found["batch_size"], found["data"]) == (["cell_type", "donor"], 8, ["a.h5ad", "b.h5ad"])
    assert main(["inspect", "a.h5ad", *[word.replace("data.labels", "by") for word in words]]) == 0
    assert "cell_type | donor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["where", "donor=007", "donor=b", "kind=T cell"], {"donor": ["007", "b"], "kind": "T cell"}),
        (["where", "donor=x=y", "--data.where", "kind=[T]"], {"donor": "x=y", "kind": "[T]"}),
        (["where", "{donor: a=b}"], {"donor": "a=b"}),
        (["where.donor", "a"], {"donor": "a"}),
        (["hierarchies", "cell_type=CL", "disease=MONDO", "disease=PATO"],
         {"cell_type": "CL", "disease": ["MONDO", "PATO"]}),
        (["hierarchies", "cell_type", "disease"], ["cell_type", "disease"]),
        (["alignment.organisms", "a.h5ad=human", "*b*=mouse"], {"a.h5ad": "human", "*b*": "mouse"}),
        (["alignment.organisms", "human"], "human"),
        (["alignment.tables", "human=genes.csv"], {"human": "genes.csv"}),
        (["split.values", "val=dev"], {"val": "dev"}),
    ],
)  # fmt: skip
def test_a_dictionary_is_pairs_or_yaml(words, found, config, capsys):
    data = printed_config(capsys, "fit", "--config", config, f"--data.{words[0]}", *words[1:])["data"]
    for name in words[0].removesuffix(".donor").split("."):
        data = data[name]
    assert data == found


def test_a_word_among_pairs_that_is_none_is_refused(config, capsys):
    assert main(["fit", "--config", config, "--data.where", "donor=a", "b"]) == 2
    assert capsys.readouterr().err == "error: --data.where takes NAME=VALUE pairs, got 'b'\n"


@pytest.mark.parametrize("data", ["a.h5ad", "lamindb:some/key", "*.h5ad"])
def test_data_may_be_one_string(data, config, capsys):
    assert printed_config(capsys, "fit", "--config", config, "--data.data", data)["data"]["data"] == data


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {data: a.h5ad, colate: dense}", "wrong.yaml: data.colate is not an option (did you mean 'collate'?)"),
        ("dta: {data: a.h5ad}", "wrong.yaml: dta is not an option (did you mean 'data'?)"),
        ("trainer: {max_epoch: 1}", "wrong.yaml: trainer.max_epoch is not an option (did you mean 'max_epochs'?)"),
        ("data: {data: a.h5ad, sampling: {schema: uniform}}", "data.sampling.schema is not an option (did you"),
        ("data: {data: a.h5ad, sampling: {by: x, scheme: unifrom}}", "data.sampling.scheme must be natural, "),
        ("data: {data: a.h5ad, batch_size: many}", "wrong.yaml: data.batch_size must be an integer, not 'many'"),
        ("data: {data: a.h5ad, values: coutns}", "data.values must be counts or any, not 'coutns' (did you"),
        ("data: {data: a.h5ad, collate: {class_path: scdataloader.SelectedGenes, init_args: {n_gene: 5}}}",
         "wrong.yaml: data.collate.n_gene is not an option (did you mean 'n_genes'?)"),
        ("model: LabelClasifier\ndata: {data: a.h5ad}", "model names the class 'LabelClasifier', which does not exist"),
        ("model: {class_path: LabelClassifier, init_args: {widht: 3}}", "wrong.yaml: model.widht is not an option"),
        ("model: my_model.Net\ndata: {data: a.h5ad}", "model names my_model.Net, but there is no module my_model"),
        ("data: {labels: [cell_type]}", "--data.data must be given"),
        ("data: [a.h5ad", "wrong.yaml is not YAML"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_refused_by_file_and_key(text, said, capsys, files):
    Path("wrong.yaml").write_text(text)
    model = [] if "model" in text else ["--model", f"{__name__}.Rows"]
    assert said in refused(capsys, "fit", "--config", "wrong.yaml", *model)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("fitt", "not 'fitt' (did you mean 'fit'?)"),
        ("fit --confg fit.yaml", "--confg is not an option of scdataloader fit (did you mean '--config'?)"),
        ("fit --config gone.yaml", "configuration gone.yaml does not exist"),
        (
            "fit --data.batch_sizes 3",
            "--data.batch_sizes is not an option of scdataloader fit (did you mean '--data.ba",
        ),
        ("fit --config fit.yaml --data.split.vall 0.1", "--data.split.vall is not an option (did you mean 'val'?)"),
        (
            "fit --config fit.yaml --data.transforms+ scdataloader.Log2p",
            "names scdataloader.Log2p, which does not",
        ),
        ("fit --data a.h5ad", "--data takes a YAML file of options; name data by --data.data a.h5ad"),
        ("fit a.h5ad", "a.h5ad is not an option of scdataloader fit; name data by --data.data"),
        ("inspect a.h5ad --bye cell_type", "--bye is not an option of scdataloader inspect (did you mean '--by'?)"),
        ("inspect a.h5ad --by cell_type --tau high", "tau must be a number, not 'high'"),
        (
            "convert a.h5ad --otu x.cells",
            "--otu is not an option (did you mean '--out'?); --out/--save-path must be given",
        ),
        ("convert a.h5ad --out x.cells --values coutns", "--values must be counts or any, not 'coutns' (did"),
        ("convert a.h5ad --out x.cells --seed q", "--seed must be an integer, not 'q'"),
        ("curate a.h5ad --outt x", "--outt is not an option of scdataloader curate (did you mean '--out'?)"),
        ("curate a.h5ad --out x --processes many", "--processes must be an integer, not 'many'"),
        ("export x --format h5da --out y", "--format must be h5ad or zarr, not 'h5da' (did you mean 'h5ad'?)"),
        ("instance ini", "not 'ini' (did you mean 'init'?)"),
        ("verify", "STORE must be given; see scdataloader verify --help"),
    ],
)
def test_a_typo_is_answered_in_one_line(command, said, config, capsys):
    assert said in refused(capsys, *command.split())


def test_a_model_in_the_working_directory_is_found_by_the_console_script(tmp_path, capsys):
    write(tmp_path / "my_net.py", "from lightning.pytorch import LightningModule\n\nclass Net(LightningModule): ...\n")
    # the directory of the script, not that of the user, comes first on the path of a console script
    script = "import sys; sys.path.pop(0); from scdataloader.commands.main import main; sys.exit(main())"
    options = ["fit", "--data.data", "a.h5ad", "--print_config", "--model"]
    command = [sys.executable, "-c", script, *options, "my_net.Net"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["model"]["class_path"] == "my_net.Net"
    assert "names my_net.Nett, which does not exist (did you mean 'Net'?)" in refused(capsys, *options, "my_net.Nett")


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
    notes = capsys.readouterr().err.splitlines()
    (first,) = (number for number, line in enumerate(notes) if line.startswith("error: "))
    assert first == len(notes) - 1 or all(line.startswith("  ") for line in notes[first + 1 :])  # one per source
    assert said in notes[-1]


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
from pathlib import Path
from scdataloader.commands.main import main

options = ["--config", "fit.yaml", "--trainer.devices", "2"]
code = main(["fit", *options])
(checkpoint,) = Path().glob("lightning_logs/version_0/checkpoints/*.ckpt")
options += ["--ckpt_path", str(checkpoint)]
code += main(["validate", *options]) + main(["test", *options])
sys.exit(code + main(["predict", *options, "--out", "two.parquet", "--data.batch_size", "13"]))
"""


@pytest.mark.slow
def test_commands_run_on_two_processes(config):
    write("on_two.py", ON_TWO)
    done = subprocess.run([sys.executable, "on_two.py"], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    # the second rank is silent, except for its share of the draws of each epoch
    assert done.stderr.count("192 cells, sources: 2") == 4
    assert done.stderr.count("draws on 2 ranks") == 3
    assert done.stderr.count("written: ") == 2
    (checkpoint,) = Path().glob("lightning_logs/version_0/checkpoints/*.ckpt")
    one = ["predict", "--config", config, "--ckpt_path", str(checkpoint), "--out", "one.parquet"]
    assert main(one) == 0
    pd.testing.assert_frame_equal(pd.read_parquet("two.parquet"), pd.read_parquet("one.parquet"))
    assert not list(Path().glob("**/*.partial"))
