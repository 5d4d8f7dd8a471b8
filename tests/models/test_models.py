"""The reference models on small batches: learning, unknown labels, metrics, checkpoints."""

import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.metrics import f1_score, recall_score
from torch.utils.data import DataLoader

from scdataloader.models import LabelClassifier, MaskedExpression
from scdataloader.models.reference import log_expression

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You are trying to `self.log"),  # steps are also called without a trainer here
]

N_GENES = 12
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
         "enable_model_summary": False}  # fmt: skip


def cells(n=64, *, seed=0):
    """Cells of two classes, each expressing one half of the genes; every fourth label is unknown."""
    rng = torch.Generator().manual_seed(seed)
    kind = torch.arange(n) % 2
    x = torch.poisson(torch.where((torch.arange(N_GENES) < N_GENES // 2) == kind[:, None].bool(), 9.0, 0.3), rng)
    labels = torch.stack([kind, torch.full((n,), -1)], dim=1)
    labels[::4] = -1
    genes = torch.arange(N_GENES, dtype=torch.int32).repeat(n, 1)
    return {"x": x, "depth": x.sum(1), "labels": labels, "row": torch.arange(n), "genes": genes}


def batches(n=64, *, batch_size=16, seed=0):
    table = cells(n, seed=seed)
    return [
        {key: value[start : start + batch_size] for key, value in table.items()} for start in range(0, n, batch_size)
    ]


def loader(items):
    return DataLoader(items, batch_size=None)


@pytest.fixture(autouse=True)
def own_seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def classifier():
    return LabelClassifier(
        N_GENES, {"kind": 2, "other": 3}, {"kind": {0: "early", 1: "late"}}, width=16, learning_rate=0.01
    )


def test_the_classifier_learns_what_can_be_learnt(classifier):
    Trainer(max_epochs=8, **QUIET).fit(classifier, loader(batches()), loader(batches()))
    (result,) = Trainer(**QUIET).test(classifier, loader(batches(seed=1)), verbose=False)
    assert result["test/macro_f1/kind"] > 0.95
    assert result["test/recall/kind/early"] > 0.9
    assert result["test/recall/kind/late"] > 0.9
    # nothing is known of the other column, so none of its classes has a recall
    assert not any(name.startswith("test/recall/other") for name in result)


def test_unknown_labels_and_repeated_rows_change_nothing(classifier):
    (batch,) = batches(32, batch_size=32)
    known = batch["labels"][:, 0] >= 0
    kept = {key: value[known] for key, value in batch.items()}
    loss = classifier.eval()._loss(classifier(batch), batch["labels"])
    torch.testing.assert_close(loss, classifier._loss(classifier(kept), kept["labels"]))

    repeated = {key: torch.cat([value, value[:5]]) for key, value in batch.items()}
    repeated["pad"] = torch.arange(37) >= 32
    without = Trainer(**QUIET).test(classifier, loader([batch]), verbose=False)
    assert Trainer(**QUIET).test(classifier, loader([repeated]), verbose=False) == [pytest.approx(without[0], abs=1e-6)]


def test_a_batch_of_unknown_labels_has_a_loss_of_zero(classifier):
    (batch,) = batches(8, batch_size=8)
    batch["labels"][:] = -1
    loss = classifier.training_step(batch, 0)
    loss.backward()
    assert loss == 0
    assert all(torch.isfinite(p.grad).all() for p in classifier.parameters() if p.grad is not None)


def test_metrics_are_those_of_scikit_learn(classifier):
    items = batches(40)
    (result,) = Trainer(**QUIET).test(classifier, loader(items), verbose=False)
    true = torch.cat([batch["labels"][:, 0] for batch in items]).numpy()
    guessed = torch.cat([classifier.eval().predict_step(batch, 0)["codes"][:, 0] for batch in items]).numpy()
    known = true >= 0
    recalls = recall_score(true[known], guessed[known], average=None, labels=[0, 1])
    assert [result["test/recall/kind/early"], result["test/recall/kind/late"]] == pytest.approx(list(recalls))
    assert result["test/macro_f1/kind"] == pytest.approx(f1_score(true[known], guessed[known], average="macro"))


# --- labels above the classes -----------------------------------------------------------------------------------------

HIERARCHY = {"kind": {4: [0, 1], 5: [2, 3]}}


def inner_batches(**options):
    """Cells with inner labels only: class 0 or 1, and class 2 or 3; the other column is unknown."""
    items = batches(**options)
    for batch in items:
        batch["labels"][:, 0] = torch.where(batch["labels"][:, 0] < 0, -1, batch["labels"][:, 0] + 4)
    return items


def hierarchical(labels_hierarchy=HIERARCHY):
    return LabelClassifier(
        N_GENES, {"kind": 4, "other": 3}, labels_hierarchy=labels_hierarchy, width=16, learning_rate=0.01
    )


def test_the_classifier_learns_from_labels_above_the_classes():
    model = hierarchical()
    Trainer(max_epochs=8, **QUIET).fit(model, loader(inner_batches()), loader(inner_batches()))
    (batch,) = inner_batches(batch_size=64, seed=1)
    probabilities = model.eval().predict_step(batch, 0)["probabilities"]["kind"].reshape(-1, 2, 2).sum(2)
    right = torch.arange(64) % 2
    assert (probabilities.argmax(1) == right).double().mean() > 0.95
    (result,) = Trainer(**QUIET).test(model, loader(inner_batches(seed=1)), verbose=False)
    assert result["test/hierarchical_f1/kind"] == result["test/hierarchical_f1"] > 0.95
    assert result["test/leaf_recall"] == 0  # no cell is known to be of a class


def test_without_a_hierarchy_labels_above_the_classes_are_unknown():
    model = hierarchical(labels_hierarchy=None)
    (batch,) = inner_batches(batch_size=64)
    assert model.training_step(batch, 0) == 0
    (result,) = Trainer(**QUIET).test(model, loader([batch]), verbose=False)
    assert result["test/loss"] == 0
    assert not any("hierarchical" in name or "leaf" in name for name in result)


def test_metrics_of_a_hierarchy_are_shares_that_can_be_counted():
    model = hierarchical()
    items = batches()
    (result,) = Trainer(**QUIET).test(model, loader(items), verbose=False)
    true = torch.cat([batch["labels"][:, 0] for batch in items])
    guessed = torch.cat([model.eval().predict_step(batch, 0)["codes"][:, 0] for batch in items])
    right, same_half = ((true // step == guessed // step)[true >= 0].double().mean().item() for step in (1, 2))
    assert result["test/leaf_recall"] == pytest.approx(right)
    assert result["test/hierarchical_f1"] == pytest.approx((right + same_half) / 2)


def test_a_checkpoint_keeps_the_hierarchy(tmp_path):
    model = hierarchical()
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(model, loader(inner_batches()), loader(inner_batches()))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = LabelClassifier.load_from_checkpoint(tmp_path / "model.ckpt", map_location="cpu")
    (batch,) = inner_batches(batch_size=64, seed=1)
    assert again.hierarchies == HIERARCHY
    loss, loss_again = (each.eval()._loss(each(batch), batch["labels"]) for each in (model, again))
    assert loss_again == loss > 0


def test_a_hierarchy_of_no_label_is_refused():
    with pytest.raises(ValueError, match=r"labels_hierarchy is of \['tissue'\], but the labels are \['kind'\]"):
        LabelClassifier(N_GENES, {"kind": 4}, labels_hierarchy={"tissue": {4: [0]}})


# --- what it gives, and masked expression -----------------------------------------------------------------------------


def test_predictions_name_their_rows(classifier):
    (batch,) = batches(8, batch_size=8)
    found = classifier.eval().predict_step(batch, 0)
    assert found["row"].tolist() == list(range(8))
    assert found["codes"].shape == (8, 2)
    assert found["probabilities"]["other"].shape == (8, 3)
    torch.testing.assert_close(found["probabilities"]["kind"].sum(1), torch.ones(8))


@pytest.mark.parametrize("model", ["classifier", "masked"])
def test_a_checkpoint_needs_no_data(model, classifier, tmp_path):
    module = classifier if model == "classifier" else MaskedExpression(N_GENES, width=16)
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(module, loader(batches()), loader(batches()))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = type(module).load_from_checkpoint(tmp_path / "model.ckpt", map_location="cpu")
    (batch,) = batches(8, batch_size=8)
    before, after = module.eval().predict_step(batch, 0), again.eval().predict_step(batch, 0)
    torch.testing.assert_close(before, after)


def test_hidden_genes_are_learnt_from_the_others():
    model = MaskedExpression(N_GENES, width=32, learning_rate=3e-3)
    (before,) = Trainer(**QUIET).test(model, loader(batches(seed=1)), verbose=False)
    Trainer(max_epochs=40, **QUIET).fit(model, loader(batches(128)), loader(batches()))
    (after,) = Trainer(**QUIET).test(model, loader(batches(seed=1)), verbose=False)
    assert after["test/loss"] < before["test/loss"] / 2
    assert after["test/r2"] > 0.7


def test_evaluation_hides_the_same_genes_every_time():
    model = MaskedExpression(N_GENES, width=16)
    first = Trainer(**QUIET).test(model, loader(batches()), verbose=False)
    torch.rand(100)
    assert Trainer(**QUIET).test(model, loader(batches()), verbose=False) == first


def test_pads_and_hidden_values_are_never_seen():
    model = MaskedExpression(N_GENES, width=16).eval()
    (batch,) = batches(4, batch_size=4)
    values = log_expression(batch["x"], batch["depth"])
    hidden = torch.zeros_like(values, dtype=torch.bool)
    hidden[:, 3] = True
    predicted, cell = model(values, batch["genes"], batch["depth"], hidden)
    changed = values.clone()
    changed[:, 3] = 99
    torch.testing.assert_close(model(changed, batch["genes"], batch["depth"], hidden), (predicted, cell))

    pad = torch.full((4, 5), -1, dtype=torch.int32)
    longer = torch.cat([batch["genes"], pad], dim=1)
    wide_values, wide_hidden = (
        torch.nn.functional.pad(t, (0, 5), value=v) for t, v in ((values, 7.0), (hidden, False))
    )
    predicted_with, cell_with = model(wide_values, longer, batch["depth"], wide_hidden)
    torch.testing.assert_close(predicted_with[:, :N_GENES], predicted)
    torch.testing.assert_close(cell_with, cell)


def test_an_empty_cell_gives_numbers():
    model = MaskedExpression(N_GENES, width=16)
    batch = {"x": torch.zeros(2, 3), "genes": torch.full((2, 3), -1), "depth": torch.zeros(2), "row": torch.arange(2)}
    assert torch.isfinite(model.eval().predict_step(batch, 0)["embedding"]).all()
    assert model.training_step(batch, 0) == 0


def test_batches_of_another_kind_are_refused(classifier):
    (batch,) = batches(4, batch_size=4)
    with pytest.raises(ValueError, match=r"expects all 12 genes .* have 5; .*scdataloader\.Sparse"):
        classifier({**batch, "x": batch["x"][:, :5]})
    del batch["genes"]
    with pytest.raises(ValueError, match=r"MaskedExpression needs batches of selected genes.*SelectedGenes"):
        MaskedExpression(N_GENES).training_step(batch, 0)
    with pytest.raises(ValueError, match="no label column to predict"):
        LabelClassifier(N_GENES, {})
    with pytest.raises(ValueError, match="mask_share is 1; expected a fraction between 0 and 1"):
        MaskedExpression(N_GENES, mask_share=1)
