"""Batches of sets have the keys and shapes of cell-load and State."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

import scdataloader as scd
from scdataloader.batches.sets import PerturbationSets
from scdataloader.genes.vocabulary import GeneVocabulary
from scdataloader.protocols import BatchContext
from scdataloader.testing import MemorySource, check_collate, named_values
from scdataloader.testing.data import named_batch

GENES = [f"ENSG{i:011d}" for i in range(6)]
SHARED = Path(__file__).parents[3] / "shared/tokens/grouped_sets.json"
CELLS = {
    "cell_type": [*"TTTTTTTTBBBBBBBBB", "unknown"],
    "perturbation": [*"ccAAAAAAccAAAAAB", "B", "A"],
    "batch": [*"010101010101010101"],
}
SAMPLING = scd.GroupedSampling(
    by=["cell_type", "perturbation"], size=3, n_controls=2, controls={"perturbation": "c"}, num_sets=24
)


def module(obs=None, **options):
    obs = CELLS if obs is None else obs
    n = len(obs["batch"])
    data = MemorySource("a", named_values(n, 6, density=0.9), GENES, obs)
    made = {"labels": ["batch", "perturbation", "cell_type"], "sampling": SAMPLING, "batch_size": 20, "seed": 3}
    return scd.DataModule(data, **(made | {"collate": PerturbationSets()} | options))


def test_a_batch_has_perturbed_cells_and_their_controls_in_order():
    dm = module()
    batches = list(dm.train_dataloader())
    assert len(batches) == 6
    x = dm.collection.read(np.arange(18)).to_scipy().toarray()
    sets = dm.train_dataloader()
    drawn = np.concatenate([SAMPLING.sampler(dm.training_cells, seed=3).draw(0, 0, 120)]).reshape(6, 4, 5)
    for batch, rows in zip(batches, drawn, strict=True):
        targets, controls = rows[:, :3].ravel(), rows[:, 3:].ravel()
        assert batch["row"].tolist() == targets.tolist()
        assert batch["ctrl_row"].tolist() == controls.tolist()
        assert np.array_equal(batch["pert_cell_emb"], x[targets])
        assert np.array_equal(batch["ctrl_cell_emb"], x[controls])
        names = {"pert_name": "perturbation", "cell_type": "cell_type", "batch_name": "batch"}
        for key, column in names.items():
            assert batch[key] == [CELLS[column][row] for row in targets]
        for key, name, column in (
            ("pert_emb", "pert_name", "perturbation"),
            ("cell_type_onehot", "cell_type", "cell_type"),
            ("batch", "batch_name", "batch"),
        ):
            assert batch[key].dtype == torch.float32
            assert batch[key].shape == (12, dm.classes[column])
            assert (batch[key].sum(axis=1) == 1).all()
            assert [dm.decoders[column][code] for code in batch[key].argmax(axis=1).tolist()] == batch[name]
    assert len(sets) == 6


def test_the_law_of_collate_functions():
    classes = {"perturbation": ("A", "B", "c"), "cell_type": ("T",)}
    vocabulary = GeneVocabulary.from_dict({"human": [f"ENSG{i:011d}" for i in range(60)]})
    context = BatchContext(vocabulary=vocabulary, labels=tuple(classes), classes=classes, set_size=4, n_controls=1)
    labels = np.stack([np.arange(24) % 4 - 1, np.zeros(24, int)], axis=1)
    cells = replace(named_batch(24, 60), labels=labels, pad=np.arange(24) > 15)
    collate = PerturbationSets(batch=None, collate=scd.SelectedGenes(how="most expressed", n_genes=5))
    check_collate(collate, cells=cells, context=context)
    made = collate.bind(context)(cells, np.random.default_rng(0))
    assert made["pert_cell_emb"].shape == (18, 5)
    assert made["ctrl_cell_emb"].shape == (6, 5)
    assert made["pert_name"][:4] == ["unknown", "A", "B", "unknown"]
    assert made["pert_emb"][:3].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert made["pad"].tolist() == [False] * 12 + [True] * 6
    assert "batch" not in made


def test_the_shapes_of_the_vectors():
    if not SHARED.exists():
        pytest.skip("no test vectors")
    vectors = json.loads(SHARED.read_text())
    obs = {name: [str(value) for value in vectors["cells"][name]] for name in CELLS}
    plan = scd.GroupedSampling(
        by=["cell_type", "perturbation"],
        size=vectors["size"],
        n_controls=vectors["controls"],
        controls={"perturbation": "ctrl"},
        num_sets=8,
    )
    dm = module(obs, sampling=plan, batch_size=2 * (vectors["size"] + vectors["controls"]))
    batch = next(iter(dm.train_dataloader()))
    assert set(vectors["collated"]) == set(batch) - {"row", "ctrl_row"}
    assert batch["pert_cell_emb"].shape == batch["ctrl_cell_emb"].shape == (2 * 3, 6)
    widths = {"pert_emb": 2, "cell_type_onehot": 2, "batch": 2}
    assert {key: tuple(batch[key].shape) for key in widths} == {key: (6, width) for key, width in widths.items()}
    assert all(len(batch[key]) == 6 for key in ("pert_name", "cell_type", "batch_name"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sampling": None}, ValueError, "sets with controls.*got single cells"),
        ({"sampling": scd.GroupedSampling(by="batch", size=4)}, ValueError, "got sets of 4 cells without controls"),
        ({"labels": ["batch", "perturbation"]}, KeyError, "'cell_type'; name it in labels"),
        ({"batch_size": 64}, ValueError, "batch_size of 64 .* sets of 5;.* 65"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        module(**options).train_dataloader()


def test_a_loader_of_evaluation_can_be_pickled():
    obs = {name: values * 6 for name, values in CELLS.items()}
    loader = module(obs, split=scd.Split(val=0.4), sampling=SAMPLING).val_dataloader()
    copied = pickle.loads(pickle.dumps(loader))
    first, second = ([batch["row"].tolist() for batch in one] for one in (loader, copied))
    assert first == second == [batch["row"].tolist() for batch in loader]


class Noting(pl.LightningModule):
    """A model that notes the rows of its batches."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), {"train": [], "val": []}

    def training_step(self, batch):
        self.seen["train"].append(batch["row"].tolist())
        return self.weight * batch["pert_cell_emb"].sum()

    def validation_step(self, batch):
        self.seen["val"].append((batch["row"].tolist(), batch["ctrl_row"].tolist()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_fit_validates_on_sets_of_its_own_split(tmp_path):
    """Every validation cell at least once, with controls that are validation cells too."""
    obs = {name: values * 6 for name, values in CELLS.items()}
    model, dm = Noting(), module(obs, split=scd.Split(val=0.4), collate="perturbation-sets")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "default_root_dir": tmp_path}
    trainer = pl.Trainer(**quiet, max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(model, dm)
    assert len(model.seen["train"]) == 6
    assert trainer.callback_metrics["data/share_error"] < 0.3
    targets, controls = ({row for batch in model.seen["val"] for row in batch[part]} for part in (0, 1))
    known = np.array([kind != "unknown" for kind in obs["cell_type"]])
    is_control = np.array([kind == "c" for kind in obs["perturbation"]])
    val = np.zeros(len(known), bool)
    val[dm.splits.val] = True
    assert targets == set(np.flatnonzero(val & known & ~is_control))
    assert controls <= set(np.flatnonzero(val & is_control))
