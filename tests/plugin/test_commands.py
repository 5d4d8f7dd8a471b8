"""A third party's package works through the command line, by name and by class path, without a line of Python."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import scdataloader as scd
from scdataloader.commands.main import main

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")

BY_NAME = {
    "data": ["toy://300x50", "toy://200x50"],
    "hierarchies": {"cell_type": "TOY"},
    "sampling": "donor-sets",
    "collate": "rank-tokens",
}
BY_CLASS_PATH = {
    "data": [{"class_path": "toyplugin.source.ToySource", "init_args": {"name": f"toy://{n}x50"}} for n in (300, 200)],
    "hierarchies": {"cell_type": "TOY"},
    "sampling": {"class_path": "toyplugin.sampling.DescribedSets", "init_args": {"size": 4, "n_sets": 40}},
    "collate": {"class_path": "toyplugin.collates.RankTokens", "init_args": {"n_tokens": 8}},
}


def configuration(folder, data, **trainer):
    """A YAML file of `scdataloader fit`."""
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {
        "trainer": quiet | {"max_epochs": 2, "default_root_dir": str(folder)} | trainer,
        "model": {"class_path": "toyplugin.model.Notes", "init_args": {"log": str(folder / "seen.jsonl")}},
        "data": {"labels": ["cell_type"], "batch_size": 16, "seed": 5} | data,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder / "config.yaml"


def run(*args):
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "scdataloader", *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]


def read(log):
    return [json.loads(line) for line in Path(log).read_text().splitlines()]


@pytest.fixture(scope="module")
def by_name(tmp_path_factory):
    """The batches of a fit that nothing interrupts, and a checkpoint of its 7th step."""
    folder = tmp_path_factory.mktemp("by name")
    kept = folder / "kept"
    saver = {
        "class_path": "ModelCheckpoint",
        "init_args": {"dirpath": str(kept), "filename": "{step}", "save_top_k": -1, "every_n_train_steps": 7},
    }
    assert main(["fit", "--config", str(configuration(folder, BY_NAME, callbacks=[saver]))]) == 0
    return read(folder / "seen.jsonl"), kept / "step=7.ckpt"


def test_fit_trains_on_what_names_stand_for(by_name):
    seen, _ = by_name
    assert [(stage, epoch) for stage, epoch, _ in seen] == [("train", 0)] * 10 + [("train", 1)] * 10
    donors = np.concatenate([np.arange(n) // 5 % 6 for n in (300, 200)])
    for _, _, batch in seen:
        assert set(batch) == {"input_ids", "attention_mask", "masked", "cell", "labels"}
        assert (np.ptp(donors[batch["cell"]].reshape(4, 4), axis=1) == 0).all()


def test_fit_by_class_path_resumes_in_the_middle_of_an_epoch(by_name, tmp_path):
    seen, kept = by_name
    config = configuration(tmp_path, BY_CLASS_PATH, enable_checkpointing=False)
    assert main(["fit", "--config", str(config), "--ckpt_path", str(kept)]) == 0
    assert read(tmp_path / "seen.jsonl") == seen[7:]


@pytest.mark.slow
def test_two_ranks_share_the_stream(by_name, tmp_path):
    data = BY_NAME | {"batch_size": 8}
    run("fit", "--config", configuration(tmp_path, data, devices=2, strategy="ddp", enable_checkpointing=False))
    ranks = [read(tmp_path / f"seen.jsonl.{rank}") for rank in range(2)]
    together = [
        [stage, epoch, {key: [value for batch in (first, second) for value in batch[key]] for key in first}]
        for (stage, epoch, first), (_, _, second) in zip(*ranks, strict=True)
    ]
    assert [step[2]["cell"] for step in together] == [step[2]["cell"] for step in by_name[0]]
    assert [step[2]["input_ids"] for step in together] == [step[2]["input_ids"] for step in by_name[0]]


def test_predict_keeps_the_codes_of_the_checkpoint(by_name, tmp_path):
    data = BY_NAME | {"data": "toy://40x50"}
    assert main(["predict", "--config", str(configuration(tmp_path, data)), "--ckpt_path", str(by_name[1])]) == 0
    codes = [code for _, _, batch in read(tmp_path / "seen.jsonl") for (code,) in batch["labels"]]
    assert codes == (np.arange(40) * 7 % 10 // 4).tolist()
    predicted = pd.read_parquet(tmp_path / "predictions.parquet")
    assert predicted["row"].tolist() == list(range(40))
    assert predicted["prediction"].tolist() == list(range(40))


@pytest.mark.parametrize("data", [BY_NAME, BY_CLASS_PATH], ids=["names", "class paths"])
def test_inspect_shows_a_configuration(tmp_path, capsys, data):
    assert main(["inspect", "--config", str(configuration(tmp_path, data))]) == 0
    shown = capsys.readouterr().out
    assert "500" in shown
    assert "donor 3" in shown
    assert "16.67" in shown.replace(" ", "")  # each of six donors


def test_inspect_counts_the_labels_of_a_name(capsys):
    assert main(["inspect", "toy://300x50", "--by", "cell_type", "--scheme", "uniform"]) == 0
    shown = capsys.readouterr().out
    for word in ("300", "TOY:3", "120", "33.3"):
        assert word in shown


def test_inspect_shows_the_tree_of_the_ontology(capsys):
    assert main(["inspect", "toy://300x50", "--by", "cell_type", "--hierarchies", "cell_type=TOY", "--tree"]) == 0
    shown = capsys.readouterr().out
    for word in ("lymphocyte", "monocyte", "T cell"):
        assert word in shown


def test_convert_makes_a_store_of_names(tmp_path, capsys):
    (tmp_path / "a.toy").write_text("toy://40x50")
    out = str(tmp_path / "a.cells")
    assert main(["convert", "toy://60x50", str(tmp_path / "a.toy"), "--out", out, "--processes", "1"]) == 0
    collection = scd.Collection.open(out)
    assert len(collection) == 100
    rows = np.array([61, 0])
    got = collection.read(rows).to_scipy().toarray()
    gene = np.arange(50)
    assert np.array_equal(got[0], np.where((1 + gene) % 3 == 0, 1001 + gene, 0))
    assert collection.obs(["donor"])["donor"][61] == "donor 0"


def test_convert_starts_processes_that_find_the_plugin(tmp_path):
    run("convert", "toy://60x50", "toy://40x50", "--out", tmp_path / "a.cells", "--processes", "2")
    assert scd.Store.open(tmp_path / "a.cells").n_obs == 100
