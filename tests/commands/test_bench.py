"""``scdataloader bench``: rates, stages that add up, trials, options of a configuration, and wrong ones."""

import json

import anndata as ad
import numpy as np
import pytest

import scdataloader as scd
from scdataloader.commands.main import main
from scdataloader.loading.stages import STAGES
from scdataloader.testing import named_values

SHORT = ["--seconds", "0.2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    for seed, n in enumerate((60, 47)):
        adata = ad.AnnData(named_values(n, 30, seed=seed), {"type": np.array(["B cell", "T cell"])[np.arange(n) % 2]})
        adata.var_names = [f"ENSG{i:011d}" for i in range(30)]
        adata.write_h5ad(folder / f"{seed}.h5ad")
    return folder


def test_json_has_rates_stages_and_trials(files, capsys):
    assert main(["bench", f"{files}/*.h5ad", "--json", *SHORT, "--data.num_threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"] == {"n_cells": 107, "n_sources": 2, "n_genes": 30}
    assert list(found["stages"]) == list(STAGES)
    assert found["n_cells"] >= 64
    assert found["cells_per_s"] > 0
    # a stage may be ahead of the cells that are counted, so the sum can be above the whole, not below
    assert sum(stage["cpu_us"] for stage in found["stages"].values()) >= 0.99 * found["cpu_us"]
    assert all(found["stages"][name]["cpu_us"] > 0 for name in ("draw", "read", "decode", "collate"))
    trials = {trial["change"]: trial for trial in found["trials"]}
    assert {"sampling.block_size=16", "scdataloader convert"} <= set(trials)
    assert trials["scdataloader convert"]["how"].startswith("estimated from 107 converted cells")
    for trial in trials.values():
        assert trial["ratio"] == pytest.approx(trial["cells_per_s"] / found["cells_per_s"])


def test_a_configuration_and_options_after_it(files, tmp_path, capsys):
    config = tmp_path / "fit.yaml"
    config.write_text(
        f"model: my.Model\ndata:\n  data: {files}/0.h5ad\n  batch_size: 8\n  labels: [type]\n"
        "  collate: {class_path: scdataloader.SelectedGenes, init_args: {how: most expressed, n_genes: 5}}\n"
        "  sampling: {by: [type], scheme: uniform, replacement: false}\n"
    )
    assert main(["bench", "--config", str(config), "--data.batch_size", "12", "--no-trials", *SHORT]) == 0
    shown = capsys.readouterr().out
    assert "60 cells, 1 source, 30 genes; batches of 12 cells" in shown
    assert "cells/s with 2 threads" in shown
    assert "CPU, µs per cell" in shown
    assert "what was tried" not in shown
    assert main(["bench", f"{files}/1.h5ad", "--config", str(config), *SHORT]) == 0
    shown = capsys.readouterr().out
    assert "47 cells, 1 source, 30 genes; batches of 8 cells" in shown
    assert "block_size" not in shown  # without replacement, single cells are drawn


def test_a_store_is_not_converted_again(files, tmp_path, capsys):
    scd.convert(f"{files}/*.h5ad", tmp_path / "a.cells", progress=False)
    assert main(["bench", str(tmp_path / "a.cells"), "--json", *SHORT]) == 0
    assert "scdataloader convert" not in [trial["change"] for trial in json.loads(capsys.readouterr().out)["trials"]]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "error: no data: name files before the options"),
        (["gone.h5ad"], "error: gone.h5ad"),
        (["FILES", "--seconds", "0"], "error: --seconds must be above 0, not 0"),
        (["FILES", "--seconds", "x"], "error: --seconds must be a number, not 'x'"),
        (["FILES", "--data.batch_size", "many"], "error: --data.batch_size must be an integer, not 'many'"),
        (["FILES", "--data.batch_sise", "4"], "(did you mean '--data.batch_size'?)"),
        (["FILES", "--data.batch_size", "1000"], "an epoch of 107 draws has no full batch of 1,000 cells"),
        (["--config", "gone.yaml"], "error: configuration gone.yaml does not exist"),
    ],
)
def test_wrong_options(files, capsys, options, why):
    assert main(["bench", *[word.replace("FILES", f"{files}/*.h5ad") for word in options]]) == 2
    error = capsys.readouterr().err
    assert why in error
    assert len([line for line in error.splitlines() if line.startswith("error")]) == 1
