"""scPRINT-2's own command line and tasks on our data."""

import json
from importlib.metadata import version

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml

import scdataloader.integrations.scprint as ours
from scdataloader.integrations.scprint.__main__ import main
from scdataloader.integrations.scprint.genes import load_genes
from tests.consumers.scprint.scprint_data import CELL_TYPE, HUMAN, MOUSE, TYPES, cells, write_cells, write_config

N_CELLS = 340


class Runs:
    """Runs of the command line in one folder."""

    def __init__(self, folder, **data):
        self.folder = folder
        self.config = write_config(folder / "config.yml", **(data or {"data": write_cells(folder)}))

    def __call__(self, command, *options, short=False):
        """The steps of a run, as `Seen` noted them; ``short`` is two for each stage."""
        seen, config = self.folder / "seen.jsonl", self.folder / "config.yml"
        seen.unlink(missing_ok=True)
        if short:  # a number of batches cannot be given on the command line, which makes a share of it
            config, limits = self.folder / "short.yml", {"limit_train_batches": 2, "limit_val_batches": 2}
            config.write_text(yaml.safe_dump(self.config | {"trainer": self.config["trainer"] | limits}))
        main([command, "--config", str(config), *options])
        return [json.loads(line) for line in seen.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scprint")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Runs(folder)


@pytest.fixture(scope="module")
def fitted(run):
    """The steps of a fit of two epochs."""
    return run("fit", "--trainer.max_epochs", "2")


def rows(steps, stage, epoch=None):
    return [step["rows"] for step in steps if step["stage"] == stage and epoch in (None, step["epoch"])]


def test_the_versions_are_those_that_are_supported():
    assert version("scprint2") == "1.0.3"


def test_the_model_is_the_real_one_and_gets_its_batches(run, fitted):
    import scprint2

    assert scprint2.scPRINT2.__module__ == "scprint2.model.model"
    first = fitted[0]["tensors"]
    assert first["x"] == [[16, 120], "torch.float32"]
    assert first["genes"] == [[16, 120], "torch.int32"]
    assert first["class"] == [[16, 4], "torch.int32"]
    assert first["dataset"] == [[16], "torch.int64"]
    assert first["depth"] == first["tp"] == [[16], "torch.float32"]
    assert "is_meta" not in first
    assert "knn_cells" not in first
    assert len(rows(fitted, "train")) == 2 * 4
    assert len(rows(fitted, "val")) == 2 * 2


def test_a_resumed_fit_continues_with_the_same_cells(run, fitted):
    first = next((run.folder / "test").glob("epoch=0-*.ckpt"))
    resumed = run("fit", "--trainer.max_epochs", "2", "--ckpt_path", str(first))
    assert rows(resumed, "train") == rows(fitted, "train", epoch=1)
    assert rows(fitted, "train", epoch=0) != rows(fitted, "train", epoch=1)


def test_validation_of_a_checkpoint_has_the_cells_that_the_fit_left_out(run, fitted):
    last = next((run.folder / "test").glob("epoch=1-*.ckpt"))
    validated = rows(run("validate", "--ckpt_path", str(last), "--trainer.limit_val_batches", "1.0"), "val")
    validated = {row for batch in validated for row in batch}
    assert len(validated) == N_CELLS // 10
    assert not validated.intersection(row for batch in rows(fitted, "train") for row in batch)


def test_prediction_has_every_cell_in_order(run, fitted):
    last = next((run.folder / "test").glob("epoch=1-*.ckpt"))
    predicted = rows(run("predict", "--ckpt_path", str(last)), "predict")
    assert [row for batch in predicted for row in batch] == list(range(N_CELLS))
    (written,) = run.folder.rglob("*predict_part*.h5ad")
    made = ad.read_h5ad(written)
    assert len(made) == N_CELLS
    assert set(made.obs[f"pred_{CELL_TYPE}"]) <= set(TYPES) - {"CL:0000084"}  # a term above others is not predicted
    assert set(made.obs[f"conv_pred_{CELL_TYPE}"]) <= {"CD4-positive, alpha-beta T cell", "B cell"} | {
        "CD8-positive, alpha-beta T cell"
    }


def test_the_codes_and_genes_of_a_model_hold_for_other_cells(run, fitted):
    other = cells("human_b", 110, seed=9)
    other.obs[CELL_TYPE] = ["CL:0000236", "CL:0000625"] * 55
    path = run.folder / "other.h5ad"
    other.write_h5ad(path)
    last = str(next((run.folder / "test").glob("epoch=1-*.ckpt")))
    steps = run("predict", "--ckpt_path", last, "--data.data", str(path), "--data.checkpoint", last)
    # leaves are B cell, CD4 and CD8 T cell in the model; without it, CD8 T cell would be 1
    assert [code[0] for code in steps[0]["classes"]] == [0, 2] * 8
    # the genes of the model are 300 of mouse, and then 320 of human, of which human_b has the first 280
    assert all(step["genes"][0] >= 300 and step["genes"][1] < 580 for step in steps)


def test_genes_that_the_model_leaves_out_are_not_in_its_batches(run):
    genes = load_genes([HUMAN, MOUSE])
    of_both = genes.groupby("organism").head(900).index
    positions = pd.DataFrame({"pos": np.arange(len(of_both))}, index=of_both)
    positions.iloc[::2].to_parquet(run.folder / "positions.parquet")
    options = ["--model.gene_pos_file", str(run.folder / "positions.parquet")]
    steps = run("fit", *options, "--data.max_len", "100", short=True)
    assert steps[0]["tensors"]["genes"] == [[16, 100], "torch.int32"]
    with pytest.raises(ValueError, match=r"human_b.h5ad measured 1\d\d of the model's genes, fewer than max_len=200"):
        run("fit", *options, "--data.max_len", "200")


@pytest.mark.parametrize(
    ("data", "model", "key", "shape"),
    [
        (["--data.get_knn_cells", "true"], ["--model.expr_emb_style", "metacell"], "knn_cells", [16, 6, 120]),
        (["--data.metacell_mode", "0.5"], ["--model.use_metacell_token", "true"], "is_meta", [16]),
    ],
    ids=["neighbours", "metacells"],
)
def test_neighbours_and_metacells_reach_the_model(run, data, model, key, shape):
    steps = run("fit", *data, *model, short=True)
    assert {step["stage"] for step in steps} == {"train", "val"}
    assert [step["tensors"][key][0] for step in steps] == [shape] * 4


def test_a_collection_of_lamindb_is_named_by_its_key(lamin, run, fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [
        lamin.Artifact(path, key=f"scprint/{number}.h5ad") for number, path in enumerate(run.config["data"]["data"])
    ]
    lamin.Collection([file.save() for file in files], key="scprint/all").save()
    of_collection = Runs(tmp_path, collection_name="scprint/all")("fit", short=True)
    assert rows(of_collection, "train") == rows(fitted, "train", epoch=0)[:2]


def test_cells_of_an_anndata_are_embedded_by_the_task_of_the_model(run, fitted):
    from scprint2 import scPRINT2
    from scprint2.tasks import Embedder

    last = next((run.folder / "test").glob("epoch=1-*.ckpt"))
    model = scPRINT2.load_from_checkpoint(last, precpt_gene_emb=None, gene_pos_file=None, weights_only=False)
    preprocess = ours.Preprocessor(
        min_dataset_size=10, min_nnz_genes=10, min_valid_genes_id=100, force_preprocess=True, do_postp=False
    )
    adata = preprocess(cells("human_a", 60, seed=3))
    embed = Embedder(how="random expr", max_len=150, batch_size=16, num_workers=0, doclass=False, doplot=False)
    embedded, _ = embed(model.float(), adata)
    assert embedded.obs_names.tolist() == adata.obs_names.tolist()
    assert embedded.obsm["scprint_emb"].shape[0] == 60
