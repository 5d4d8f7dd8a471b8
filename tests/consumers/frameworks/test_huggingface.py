"""The Trainer of transformers on cells: exact resumption, evaluation, prediction, refusals."""

import anndata as ad
import numpy as np
import pytest
import torch
import transformers
from transformers import BertConfig, BertForMaskedLM, TrainingArguments

import scdataloader as scd
from scdataloader.collection.collection import Collection
from scdataloader.errors import StateMismatchError
from scdataloader.integrations.huggingface import CellTrainer
from scdataloader.testing import named_values

N_CELLS, N_GENES, BATCH = 83, 30, 16
GENES = [f"ENSG{i:011d}" for i in range(N_GENES)]
TOKENS = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3} | {gene: 4 + i for i, gene in enumerate(GENES)}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    types = np.array(["B cell", "T cell", "unknown"])[np.arange(N_CELLS) % 3]
    adata = ad.AnnData(named_values(N_CELLS, N_GENES), {"type": types}, {"gene": GENES})
    adata.var_names = GENES
    adata.write_h5ad(path)
    return path


def tokens(data, **options):
    """64 of 83 cells train: 4 batches of 16."""
    collate = scd.tokens.Geneformer(
        tokens=TOKENS,
        medians=dict.fromkeys(GENES, 1.0),
        max_len=16,
        masking=scd.tokens.MaskedTokens(rate=0.3),
    )
    made = {"labels": ["type"], "split": scd.Split(val=0.22), "collate": collate, "batch_size": BATCH}
    return scd.DataModule(data, **(made | options))


def bert(n_layers=1):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": n_layers}
    return BertForMaskedLM(BertConfig(vocab_size=len(TOKENS), max_position_embeddings=16, **sizes))


class Noting:
    """Notes what the model gets in training and in evaluation."""

    def __init__(self, model):
        self.seen = {True: [], False: []}
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, model, args, kwargs):
        assert not args
        given = {key: value for key, value in kwargs.items() if key != "num_items_in_batch"}  # the Trainer adds it
        kept = {key: value.tolist() for key, value in given.items()}
        self.seen[model.training].append(kept)


def trainer(out, dm, model=None, **options):
    model = bert() if model is None else model
    quiet = {
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_steps": 3,
        "logging_steps": 1,
        "learning_rate": 3e-3,
    }
    made = CellTrainer(model, TrainingArguments(str(out), **(quiet | options)), datamodule=dm)
    made.noted = Noting(model).seen
    return made


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def uninterrupted(cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run = trainer(out, tokens(cells), max_steps=10, eval_strategy="steps", eval_steps=2)
    run.train()
    return run


def test_ten_steps_go_through_two_and_a_half_epochs_of_masked_tokens(cells, uninterrupted):
    seen = uninterrupted.noted[True]
    dm = tokens(cells)
    loader = dm.train_dataloader()
    expected = [batch for _ in range(3) for batch in loader][:10]
    assert [set(batch) for batch in seen] == [{"input_ids", "attention_mask", "labels"}] * 10
    for key in seen[0]:
        assert [batch[key] for batch in seen] == [batch[key].tolist() for batch in expected]
    assert uninterrupted.state.epoch == 2.5
    assert losses(uninterrupted)[-1] < losses(uninterrupted)[0]


@pytest.mark.parametrize("step", [3, 6, 9])
def test_a_resumed_run_has_the_batches_and_losses_of_the_uninterrupted_one(cells, uninterrupted, step, tmp_path):
    run = trainer(tmp_path, tokens(cells), max_steps=10)
    checkpoint = f"{uninterrupted.args.output_dir}/checkpoint-{step}"
    saved = torch.load(f"{checkpoint}/scdataloader.ckpt")["loader"]
    assert (saved["epoch"], saved["samples_seen"]) == (step // 4, step % 4 * BATCH)
    run.train(resume_from_checkpoint=checkpoint)
    assert run.noted[True] == uninterrupted.noted[True][step:]
    assert losses(run)[-(10 - step) :] == losses(uninterrupted)[step:]
    assert run.datamodule.train_dataloader().position == (0, 0)  # others do not move


def test_the_last_checkpoint_is_found_and_no_batch_before_it_is_read(cells, uninterrupted, monkeypatch):
    read = []
    locate = Collection.locate
    monkeypatch.setattr(Collection, "locate", lambda self, *a: read.extend(a[0].tolist()) or locate(self, *a))
    run = trainer(uninterrupted.args.output_dir, tokens(cells), max_steps=11, save_strategy="no")
    run.train(resume_from_checkpoint=True)
    loader = tokens(cells).train_dataloader()
    loader.set_epoch(2)
    epoch = [batch["labels"].tolist() for batch in loader]
    assert [batch["labels"] for batch in run.noted[True]] == epoch[2:3]
    assert len(read) == 2 * BATCH + 4 * BATCH  # the rest of the third epoch, and this comparison


def test_accumulated_gradients_resume_too(cells, tmp_path):
    options = {"max_steps": 5, "gradient_accumulation_steps": 2, "save_steps": 1}
    whole = trainer(tmp_path / "whole", tokens(cells), **options)
    whole.train()
    assert len(whole.noted[True]) == 10
    for step in (1, 2, 3):
        run = trainer(tmp_path / str(step), tokens(cells), **options)
        run.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert run.noted[True] == whole.noted[True][2 * step :]


def test_evaluation_during_training_is_on_the_cells_of_validation_and_moves_no_batch(cells, uninterrupted):
    dm = tokens(cells)
    expected = [batch["input_ids"].tolist() for batch in dm.val_dataloader()]
    n = sum(map(len, expected))
    assert n == len(dm.splits.val)
    assert [batch["input_ids"] for batch in uninterrupted.noted[False]] == expected * 5
    assert [entry["step"] for entry in uninterrupted.state.log_history if "eval_loss" in entry] == [2, 4, 6, 8, 10]


class Linear(torch.nn.Module):
    """A classifier of counts, as transformers would write it."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(N_GENES, 2)
        torch.nn.init.zeros_(self.linear.weight)

    def forward(self, x, labels=None):
        assert x.layout is torch.strided
        logits = self.linear(x) + x[:, :1]
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def counts(data, **options):
    return scd.DataModule(data, **({"labels": ["type"], "split": scd.Split(val=0.22), "batch_size": BATCH} | options))


def test_a_model_of_counts_trains_evaluates_and_predicts_every_cell_in_order(cells, tmp_path):
    dm = counts(cells)
    run = trainer(tmp_path, dm, Linear(), num_train_epochs=1)
    run.train()
    assert {code for batch in run.noted[True] for code in batch["labels"]} == {0, 1, -100}
    output = run.predict(dm)
    assert output.predictions.shape == (N_CELLS, 2)
    first_gene = ad.read_h5ad(cells).X[:, 0]
    weights = run.model.linear.weight.detach().numpy()
    expected = ad.read_h5ad(cells).X @ weights.T + run.model.linear.bias.detach().numpy() + first_gene[:, None]
    np.testing.assert_allclose(output.predictions, expected, rtol=1e-4)
    assert output.label_ids.tolist() == [[0, 1, -100][i % 3] for i in range(N_CELLS)]
    assert run.evaluate()["eval_loss"] > 0
    by_loader = run.predict(dm.val_dataloader())
    assert by_loader.label_ids.tolist() == [[0, 1, -100][row % 3] for row in dm.splits.val]
    assert run.args.per_device_train_batch_size == BATCH


def test_all_keys_are_handed_over_on_request(cells, tmp_path):
    class Open(Linear):
        def forward(self, x, labels, **others):
            self.others = set(others)
            return super().forward(x, labels)

    run = trainer(tmp_path, counts(cells), Open(), max_steps=1, remove_unused_columns=False)
    run.train()
    assert run.model.others == {"depth", "row", "source", "num_items_in_batch"}


def test_a_saved_model_reads_other_cells_with_its_genes_and_codes(cells, tmp_path):
    run = trainer(tmp_path / "run", counts(cells), Linear(), max_steps=1)
    run.train()
    run.save_model(str(tmp_path / "model"))
    other = ad.read_h5ad(cells)[:, ::-1].copy()
    other.obs["type"] = ["T cell", "new"] * 41 + ["B cell"]
    saved = scd.DataModule(other, labels=["type"], checkpoint=str(tmp_path / "model" / "scdataloader.ckpt"))
    assert saved.genes == GENES
    assert saved.label_codes.ravel().tolist() == [1, -1] * 41 + [0]


def test_codes_of_a_checkpoint_are_kept_where_the_data_have_more_labels(cells, tmp_path):
    run = trainer(tmp_path / "run", counts(cells), Linear(), max_steps=1, save_steps=1)
    run.train()
    (tmp_path / "run" / "checkpoint-1" / "scdataloader.ckpt").unlink()
    with pytest.raises(StateMismatchError, match=r"checkpoint-1 has no scdataloader.ckpt"):
        trainer(tmp_path / "run", counts(cells), Linear(), max_steps=2).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "saved state has seed 0, but this loader has 1"),
        ({"batch_size": 8}, "global_batch_size 16, but this loader has 8"),
        ({"split": scd.Split(val=0.22, seed=5)}, "split"),
    ],
)
def test_a_run_of_other_batches_is_refused(cells, uninterrupted, options, message, tmp_path):
    run = trainer(tmp_path, tokens(cells, **options), max_steps=10)
    with pytest.raises(StateMismatchError, match=message):
        run.train(resume_from_checkpoint=f"{uninterrupted.args.output_dir}/checkpoint-3")
    assert run.noted[True] == []


def test_what_cannot_be_evaluated_or_trained_is_refused(cells, tmp_path):
    no_validation = trainer(tmp_path, counts(cells, split=None), Linear())
    with pytest.raises(ValueError, match=r"no cells of validation; set split"):
        no_validation.evaluate()
    with pytest.raises(TypeError, match="DataModule or one of its loaders, not list"):
        no_validation.predict([1, 2])
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        no_validation.train(resume_from_checkpoint=True)

    class Other(Linear):
        def forward(self, counts):
            return super().forward(counts)

    with pytest.raises(ValueError, match=r"Other names none of the keys of a batch, x, labels, depth, row, source;"):
        trainer(tmp_path, counts(cells), Other(), max_steps=1).train()


def test_it_is_a_trainer():
    assert issubclass(CellTrainer, transformers.Trainer)
