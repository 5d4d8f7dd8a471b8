"""The DataModule in real Lightning runs, and without a Trainer."""

import copy
import json
import pickle
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader

import scdataloader as scd
from scdataloader.errors import GeneOverlapError, StateMismatchError
from scdataloader.testing import MemorySource, named_values

GENES = [f"ENSG{i:011d}" for i in range(30)]
TYPES = np.array(["T cell", "B cell", "unknown", "NK cell"])


def sources():
    rng = np.random.default_rng(0)
    return [
        MemorySource(
            name,
            named_values(n, 30, seed=seed),
            list(rng.permutation(GENES)),
            {
                "type": pd.Categorical(TYPES[rng.choice(4, n, p=[0.6, 0.2, 0.1, 0.1])]),
                "donor": pd.Categorical([f"{name}{i % 10}" for i in range(n)]),
                "quality": rng.random(n),
            },
        )
        for seed, (name, n) in enumerate([("a", 120), ("b", 80)])
    ]


def module(**options):
    made = {"data": sources(), "labels": ["type", "donor"], "batch_size": 16}
    return scd.DataModule(**(made | options))


class Recorder(pl.LightningModule):
    """A model that notes which rows it sees, and where."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rows, self.val_rows, self.layouts = [], [], set()

    def training_step(self, batch, _):
        self.layouts.add(batch["x"].layout)
        self.rows.append(batch["row"].tolist())
        return (batch["x"].sum(1) * self.weight).mean()

    def validation_step(self, batch, _):
        self.val_rows += batch["row"].tolist()

    def predict_step(self, batch, _):
        return batch["row"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, **(quiet | {"max_epochs": 1, "enable_checkpointing": False} | options))


def test_what_a_model_needs_to_know_is_there_right_after_construction():
    dm = module(split=scd.Split(val=0.2, by="donor"))
    assert dm.classes == {"type": 3, "donor": 20}
    assert dm.encoders["type"] == {"B cell": 0, "NK cell": 1, "T cell": 2}
    assert dm.decoders["type"] == {0: "B cell", 1: "NK cell", 2: "T cell", -1: "unknown"}
    assert dm.genes == GENES
    assert dm.genes_dict == {"NCBITaxon:9606": GENES}
    assert len(dm.collection) == 200
    assert len(dm.splits.val) == 40


def test_the_genes_of_a_model_become_the_vocabulary_of_the_same_cells():
    dm = module(split=scd.Split(val=0.2), sampling=scd.Sampling(by="type", cell_factors="nnz"))
    before, splits, codes = dm.collection, dm.splits, dm.label_codes
    next(iter(dm.train_dataloader()))
    chosen = [GENES[7], GENES[2], "ENSG99999999999"]  # the last is measured by no source
    dm.use_genes({"human": chosen})
    assert dm.genes == chosen
    assert dm.state_dict()["genes"] == {"NCBITaxon:9606": chosen}
    assert dm.splits is splits
    assert dm.label_codes is codes
    for batch in (next(iter(dm.train_dataloader())), next(iter(dm.val_dataloader()))):
        full = before.read(batch["row"].numpy()).to_scipy().toarray()
        expected = np.column_stack([full[:, before.vocabulary.ids.index(gene)] for gene in chosen[:2]])
        x = batch["x"].to_dense().numpy()
        np.testing.assert_array_equal(x[:, :2], expected)
        assert not x[:, 2].any()


def test_tokens_and_medians_are_of_the_genes_in_use():
    dm = module(collate=scd.tokens.Geneformer(version="V1", max_len=8))
    assert set(GENES) < set(dm.tokens)
    next(iter(dm.train_dataloader()))
    dm.use_genes({"human": GENES[3:1:-1]})
    assert [gene for gene in dm.tokens if gene in GENES] == GENES[3:1:-1]
    next(iter(dm.train_dataloader()))
    assert set(dm.state_dict()["medians"]) <= {GENES[3], GENES[2]}


def test_genes_of_another_organism_are_refused_and_change_nothing():
    dm = module()
    with pytest.raises(GeneOverlapError, match=r"a is of NCBITaxon:9606.*NCBITaxon:10090"):
        dm.use_genes({"mouse": ["ENSMUSG00000000001"]})
    assert dm.genes == GENES


def test_genes_keep_cells_of_mixed_organisms_and_corpora():
    mixed = MemorySource(
        "mixed",
        named_values(40, 20, seed=1),
        [*GENES[:10], *(f"ENSMUSG{i:011d}" for i in range(10))],
        {"organism": ["human", "mouse"] * 20},
    )
    dm = scd.DataModule({"one": [mixed], "two": [sources()[0]]}, split=scd.Split(val=0.2, by="corpus"))
    before = dm.collection
    dm.use_genes({"mouse": ["ENSMUSG00000000003"], "human": [GENES[4]]})
    assert [part.organism for part in dm.collection.parts] == [part.organism for part in before.parts]
    assert dm.collection.corpora == before.corpora
    rows = np.arange(len(before))
    at = [before.vocabulary.ids.index(gene) for gene in dm.genes]
    np.testing.assert_array_equal(
        dm.collection.read(rows).to_scipy().toarray(), before.read(rows).to_scipy().toarray()[:, at]
    )


def test_loaders_work_without_a_trainer():
    dm = module(split=scd.Split(val=0.2, test=0.1))
    dm.setup("fit")
    batch = next(iter(dm.train_dataloader()))
    assert batch["x"].layout is torch.sparse_csr
    assert batch["labels"].shape == (16, 2)
    seen = {
        name: torch.cat([b["row"] for b in getattr(dm, f"{name}_dataloader")()]).numpy() for name in ("val", "test")
    }
    assert np.array_equal(seen["val"], dm.splits.val)
    assert np.array_equal(seen["test"], dm.splits.test)
    rows = torch.cat([b["row"] for b in dm.predict_dataloader()]).numpy()
    assert np.array_equal(rows, np.arange(200))
    dm.teardown("fit")


def test_a_loader_of_any_rows_keeps_their_order_and_its_batch_size():
    dm = module()
    counts = np.concatenate([source.dense[:, np.argsort(source.var.index)] for source in sources()])
    rows = [5, 2, 199, 2, 120]
    made = [dm.ready(batch) for batch in dm.loader(rows, batch_size=2)]
    assert [batch["row"].tolist() for batch in made] == [[5, 2], [199, 2], [120]]
    assert np.array_equal(torch.cat([batch["x"] for batch in made]).numpy(), counts[rows])
    assert len(dm.loader(np.arange(200, dtype=np.uint16))) == 13
    assert [dm.loader(rows, 2, shared=shared).ranks for shared in (True, False)] == [(0, 1), (0, 1)]
    split = module(rank=1, world_size=2)
    assert [batch["row"].tolist() for batch in split.loader(rows, 2)] == [[199, 2], [2, 199]]
    assert [batch["row"].tolist() for batch in split.loader(rows, 2, shared=False)] == [[5, 2], [199, 2], [120]]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], ValueError, "rows is empty"),
        ([True, False], TypeError, "row numbers; got bool"),
        ([0, -1], IndexError, r"\[0, 200\); got -1 to 0"),
        ([200], IndexError, "200"),
    ],
)
def test_a_loader_of_rows_that_are_not_cells_is_refused(rows, error, message):
    with pytest.raises(error, match=message):
        module().loader(rows)


def test_a_run_without_logs_leaves_no_files_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    pl.Trainer(logger=False, max_epochs=1, accelerator="cpu", **quiet).fit(Recorder(), module(split=scd.Split(val=0.1)))
    assert not list(tmp_path.iterdir())
    trainer(".").fit(Recorder(), module(split=scd.Split(val=0.1)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sampling.csv", "splits.json"]


def test_labels_of_a_batch_are_those_of_its_rows():
    dm = module()
    obs = dm.collection.obs(["type", "donor"])
    for batch in dm.predict_dataloader():
        for column, name in enumerate(dm.labels):
            got = [dm.decoders[name][code] for code in batch["labels"][:, column].tolist()]
            assert got == obs[name].astype(str).iloc[batch["row"].tolist()].tolist()


def test_a_fit_sees_training_rows_only_and_validates_all_of_its_own(tmp_path):
    dm = module(split=scd.Split(val=0.2, seed=3))
    model = Recorder()
    trainer(tmp_path, max_epochs=3, num_sanity_val_steps=0).fit(model, dm)
    assert model.layouts == {torch.strided}  # sparse on the way, written out on the device
    assert len(model.rows) == 30
    for epoch in range(3):
        rows = np.concatenate(model.rows[10 * epoch : 10 * epoch + 10])
        assert np.array_equal(np.sort(rows), dm.splits.train)
    assert model.rows[:10] != model.rows[10:20]
    assert np.array_equal(model.val_rows, np.tile(dm.splits.val, 3))
    record = json.loads((tmp_path / "splits.json").read_text())
    assert record["counts"] == {"train": 160, "val": 40, "test": 0}


def test_a_weighted_fit_draws_classes_as_asked(tmp_path):
    sampling = scd.Sampling(by=["type"], scheme="uniform", num_samples=16 * 500)
    model, dm = Recorder(), module(sampling=sampling, split=scd.Split(val=0.1))
    trainer(tmp_path).fit(model, dm)
    types = dm.collection.obs(["type"])["type"].astype(str).to_numpy()[np.concatenate(model.rows)]
    names, counts = np.unique(types, return_counts=True)
    assert names.tolist() == ["B cell", "NK cell", "T cell"]
    assert ((counts - 8000 / 3) ** 2 / (8000 / 3)).sum() < 23  # 2 degrees of freedom; by chance once in 10^5


def test_cells_of_unknown_label_get_their_share():
    dm = module(sampling=scd.Sampling(by=["type"], scheme="uniform", unknown_share=0.4, num_samples=8000))
    rows = dm.plan.sampler(dm.training_cells).draw(0, 0, 8000)
    types = dm.collection.obs(["type"])["type"].astype(str).to_numpy()[rows]
    shares = pd.Series(types).value_counts(normalize=True)
    assert shares["unknown"] == pytest.approx(0.4, abs=0.03)  # five standard errors
    assert shares["NK cell"] == pytest.approx(0.2, abs=0.03)


def test_validation_is_the_same_in_every_epoch():
    collate = scd.SelectedGenes(how="random expressed", n_genes=5)
    dm = module(split=scd.Split(val=0.2), collate=collate)
    loader = dm.val_dataloader()
    first = torch.cat([batch["genes"] for batch in loader])
    loader.sampler.set_epoch(3)
    assert torch.equal(torch.cat([batch["genes"] for batch in loader]), first)


def test_cells_left_out_are_said(caplog):
    dm = module(sampling=scd.Sampling(by=["type"], scheme="uniform", cell_factors=["quality"]))
    dm.setup("fit")
    unknown = (dm.collection.obs(["type"])["type"] == "unknown").sum()
    assert f"{unknown} cells of unknown label left out" in caplog.text


def test_joint_classes_are_weighted_by_their_joint_values():
    drawn = module(sampling=scd.Sampling(by=["type", "donor"], scheme="uniform")).drawn_classes
    assert drawn.target_shares(0)[:-1].tolist() == pytest.approx([1 / len(drawn.names)] * len(drawn.names))
    assert all(" | " in name for name in drawn.names)
    assert drawn.names == sorted(drawn.names)


def test_a_checkpoint_brings_its_encoders_along():
    trained = module()
    state = trained.state_dict()
    other = [source for source in sources() if source.name == "b"]
    other[0]._obs["type"] = pd.Categorical(["T cell", "monocyte"] * 40)
    later = scd.DataModule(other, labels=["type", "donor"])
    assert later.encoders["type"] == {"T cell": 0, "monocyte": 1}
    later.load_state_dict(state)
    assert later.encoders["type"] == trained.encoders["type"]
    assert np.bincount(later.label_codes[:, 0] + 1).tolist() == [40, 0, 0, 40]


def test_a_checkpoint_of_other_labels_or_genes_is_refused():
    state = module().state_dict()
    with pytest.raises(StateMismatchError, match=r"labels \['type', 'donor'\], but this run has \['type'\]"):
        module(labels=["type"]).load_state_dict(state)
    with pytest.raises(StateMismatchError, match=r"trained on 30 genes.*20 others"):
        module(alignment=scd.GeneAlignment(vocabulary=GENES[:20])).load_state_dict(state)


class Renamed(scd.DataModule):
    """A DataModule under another name, as every integration is."""


class Wrapped(pl.LightningDataModule):
    """A module of a user's own around a DataModule, as the page on training loops describes it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def setup(self, stage):
        self.inner.trainer = self.trainer
        self.inner.setup(stage)

    def train_dataloader(self):
        return self.inner.train_dataloader()

    def val_dataloader(self):
        return self.inner.val_dataloader()

    def test_dataloader(self):
        return self.inner.test_dataloader()

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return self.inner.on_after_batch_transfer(batch, dataloader_idx)

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, state_dict):
        self.inner.load_state_dict(state_dict)


@pytest.mark.parametrize("weights_only", [False, True])
def test_codes_of_a_checkpoint_hold_whatever_the_class_is_called(tmp_path, weights_only):
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(Recorder(), module(split=scd.Split(val=0.1)))
    run.save_checkpoint(tmp_path / "run.ckpt", weights_only=weights_only)
    fewer = sources()[1:]
    fewer[0]._obs["type"] = pd.Categorical(["T cell", "NK cell"] * 40)
    labels = []

    class Labels(Recorder):
        def test_step(self, batch, batch_idx):
            labels.extend(batch["labels"][:, 0].tolist())

    for wrap in (lambda dm: dm, Wrapped):
        labels.clear()
        dm = wrap(Renamed(fewer, labels=["type", "donor"], split=scd.Split(test=0.5)))
        trainer(tmp_path).test(Labels(), datamodule=dm, ckpt_path=tmp_path / "run.ckpt", weights_only=False)
        assert set(labels) == {1, 2}  # as trained: B cell 0, NK cell 1, T cell 2
    applied = Renamed(fewer, labels=["type", "donor"], checkpoint=str(tmp_path / "run.ckpt"))
    assert applied.encoders["type"] == {"B cell": 0, "NK cell": 1, "T cell": 2}


def test_a_checkpoint_without_our_state_is_refused(tmp_path):
    run = trainer(tmp_path)
    loader = module(collate=scd.Dense()).train_dataloader()
    run.fit(Recorder(), train_dataloaders=loader, val_dataloaders=loader)
    loader.close()
    run.save_checkpoint(tmp_path / "other.ckpt", weights_only=False)
    with pytest.raises(StateMismatchError, match=r"other\.ckpt has no entry 'scdataloader'"):
        trainer(tmp_path, limit_val_batches=0).fit(Recorder(), datamodule=module(), ckpt_path=tmp_path / "other.ckpt")
    with pytest.raises(StateMismatchError, match=r"other\.ckpt has no entry 'scdataloader'"):
        module(checkpoint=str(tmp_path / "other.ckpt")).setup("fit")


@pytest.mark.parametrize("wrap", [lambda dm: dm, Wrapped])
def test_the_state_of_the_data_has_one_key(tmp_path, wrap):
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(Recorder(), datamodule=wrap(Renamed(sources(), labels=["type", "donor"], batch_size=16)))
    run.save_checkpoint(tmp_path / "run.ckpt", weights_only=False)
    assert set(torch.load(tmp_path / "run.ckpt", weights_only=False)["scdataloader"]) >= {"encoders", "genes", "split"}


class Tokens:
    """A collate function without "x", not annotated, which binds the vocabulary and wants columns of obs."""

    obs = ("quality", "type")

    def bind(self, context):
        assert context.vocabulary.ids == GENES
        assert context.labels == ("type", "donor")
        assert context.classes["type"] == ["B cell", "NK cell", "T cell"]
        return self

    def __call__(self, batch, rng):
        assert batch.obs["quality"].dtype == np.float64
        kinds = [{None: -1}.get(kind, kind) for kind in batch.obs["type"]]
        return {
            "input_ids": torch.zeros(len(batch), 4),
            "kind": kinds,
            "quality": batch.obs["quality"],
            "row": batch.row,
        }


class TokenModel(Recorder):
    def training_step(self, batch, _):
        self.rows += list(zip(batch["row"].tolist(), batch["kind"], batch["quality"].tolist(), strict=True))
        return (batch["input_ids"].sum(1) * self.weight).mean()


def test_a_collate_function_without_x_trains_and_gets_columns_of_obs(tmp_path):
    model, dm = TokenModel(), module(collate=Tokens())
    trainer(tmp_path, limit_val_batches=0).fit(model, datamodule=dm)
    obs = dm.collection.obs(["type", "quality"])
    assert len(model.rows) == 200 // 16 * 16
    for row, kind, quality in model.rows:
        assert (kind, quality) == (obs["type"][row], obs["quality"][row])


def test_a_column_or_matrix_that_a_source_lacks_is_refused_by_name():
    lacking = sources()
    lacking[1]._obs = lacking[1]._obs.drop(columns="quality")
    lacking[1].obs_columns.remove("quality")
    with pytest.raises(KeyError, match="b has no obs column 'quality'"):
        module(data=lacking, collate=Tokens()).train_dataloader()
    wants = Tokens()
    wants.matrices = ["layers/spliced"]
    with pytest.raises(KeyError, match="a has no matrix 'layers/spliced'"):
        module(collate=wants).train_dataloader()


def test_further_matrices_come_in_vocabulary_genes():
    seen = []

    class Both(Tokens):
        matrices = ("layers/twice", "obsm/place")

        def __call__(self, batch, rng):
            twice = batch.matrices["layers/twice"].to_scipy().toarray()
            assert np.array_equal(twice, 2 * batch.x.to_scipy().toarray())
            own = np.where(batch.source == 0, batch.row, batch.row - 120)
            assert np.array_equal(batch.matrices["obsm/place"], np.stack([own, own * 2], axis=1))
            seen.extend(batch.row)
            return {"row": batch.row}

    layered = []
    for one in sources():
        place = np.arange(one.n_obs, dtype=np.float32)
        matrices = {"layers/twice": 2 * one.dense, "obsm/place": np.stack([place, place * 2], axis=1)}
        layered.append(MemorySource(one.name, one.dense, list(one.var.index), dict(one._obs), matrices=matrices))
    for _ in module(data=layered, collate=Both()).train_dataloader():
        pass
    assert len(seen) == 192


def test_a_checkpoint_that_split_the_same_cells_otherwise_is_refused():
    state = module(split=scd.Split(val=0.2)).state_dict()
    module(split=scd.Split(val=0.2)).load_state_dict(state)
    with pytest.raises(StateMismatchError, match="different rows"):
        module(split=scd.Split(val=0.2, seed=1)).load_state_dict(state)
    module(data=sources()[:1], split=scd.Split(val=0.2, seed=1), labels=["type", "donor"]).load_state_dict(state)


def test_label_columns_that_a_source_lacks_are_reported(caplog):
    lacking = sources()
    lacking[1]._obs = lacking[1]._obs.drop(columns="donor")
    lacking[1].obs_columns.remove("donor")
    module(data=lacking, labels=["type", "donor", "source"]).setup("fit")
    found = [record.getMessage() for record in caplog.records if "no column" in record.getMessage()]
    assert found == ["no column 'donor' in b: the labels of these cells are unknown (-1)"]


def test_encoders_that_lack_a_column_are_refused():
    with pytest.raises(KeyError, match=r"lack the label columns \['donor'\]; they have \['type'\]"):
        module().encoders = {"type": {"B cell": 0}}


def test_encoders_can_be_pushed_in_from_outside(caplog):
    dm = module(labels=["type"])
    dm.encoders = {"type": {"B cell": 0, "T cell": 1, "unknown": -1}}
    assert dm.classes == {"type": 2}
    nk = (dm.collection.obs(["type"])["type"] == "NK cell").sum()
    assert (dm.label_codes[:, 0] == 1).sum() == (dm.collection.obs(["type"])["type"] == "T cell").sum()
    assert f"type: {nk} cells have labels not seen in training; encoded as -1: NK cell ({nk})" in caplog.text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"labels": ["tissue"]}, KeyError, "no source has the obs column 'tissue'"),
        ({"sampling": scd.Sampling(by=["tissue"])}, KeyError, "no source has the obs column 'tissue'"),
        (
            {"sampling": scd.Sampling(cell_factors=["donor"])},
            ValueError,
            "cell factor 'donor' must be numeric",
        ),
        ({"split": scd.Split(val=0.001)}, ValueError, "val=0.001 of 200 cells is less than one cell"),
        ({"split": scd.Split(val=0.2, by="plate")}, KeyError, "no source has the obs column 'plate'"),
        ({"labels": ["type", "type"]}, ValueError, "labels names a column twice"),
        ({"data": []}, ValueError, "no data"),
        ({"data": "nowhere/*.h5ad"}, FileNotFoundError, r"no file matches 'nowhere/\*.h5ad'"),
        ({"data": "nowhere.h5ad"}, FileNotFoundError, "nowhere.h5ad does not exist"),
        ({"data": 5}, TypeError, "data must be paths, globs"),
        ({"batch_size": 500}, ValueError, "no full batch of 500 cells"),
    ],
)
def test_bad_input_is_refused_before_training(options, error, message):
    def start():
        dm = module(**options)
        dm.setup("fit")
        dm.train_dataloader()

    with pytest.raises(error, match=message):
        start()


def test_nothing_is_left_open_after_teardown(tmp_path):
    open_files = Path("/proc/self/fd")
    before = len(list(open_files.iterdir()))
    for _ in range(3):
        trainer(tmp_path, limit_train_batches=2).fit(Recorder(), module(split=scd.Split(val=0.2)))
    assert len(list(open_files.iterdir())) <= before + 1  # the listing itself


def test_loaders_that_nobody_uses_are_let_go(tmp_path):
    class Count(pl.Callback):
        def on_train_epoch_end(self, trainer, model):
            n_loaders.append(len(trainer.datamodule._loaders))

    n_loaders = []
    options = {"max_epochs": 4, "reload_dataloaders_every_n_epochs": 1, "callbacks": [Count()], "limit_val_batches": 0}
    trainer(tmp_path, **options).fit(Recorder(), module(split=scd.Split(val=0.1)))
    assert n_loaders == [1, 1, 1, 1]


@pytest.mark.parametrize("sampling", [None, scd.Sampling(by=["type"], num_samples=64)])
def test_overfit_batches_trains_on_the_same_batches(tmp_path, sampling):
    model = Recorder()
    trainer(tmp_path, max_epochs=3, overfit_batches=2).fit(model, module(sampling=sampling, split=scd.Split(val=0.2)))
    assert model.rows[:2] == model.rows[2:4] == model.rows[4:]
    assert model.rows[0] != model.rows[1]


def test_a_module_is_printed_without_reading():
    dm = module(split=scd.Split(val=0.2))
    text = str(dm)
    assert text.startswith("DataModule(data=[")
    assert "labels=['type', 'donor']" in text
    assert "split=Split(val=0.2" in text
    assert "batch_size=16" in text
    assert "drop_last" not in text
    assert "collection" not in dm.__dict__


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda dm: pickle.loads(pickle.dumps(dm))])
def test_copies_after_the_first_batch_read_the_same(copied):
    dm = module()
    dm.setup("fit")
    running = iter(dm.train_dataloader())
    batch = next(running)
    other = copied(dm)
    assert next(iter(other.train_dataloader()))["row"].tolist() == batch["row"].tolist()
    other.teardown("fit")
    dm.teardown("fit")


def test_the_seed_can_be_that_of_lightning(monkeypatch):
    def first(seed):
        return next(iter(module(seed=seed).train_dataloader()))["row"].tolist()

    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert first(None) == first(0)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert first(None) == first(7) != first(0)


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_last_batch_that_is_not_full_can_be_kept(drop_last):
    sizes = [len(batch["row"]) for batch in module(drop_last=drop_last).train_dataloader()]
    assert sizes == [16] * 12 + [8] * (not drop_last)


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (1, None), (None, 2), (-1, 2)])
def test_ranks_that_do_not_fit_are_refused(rank, world_size):
    with pytest.raises(ValueError, match=r"rank must be in \[0, world_size\)"):
        module(rank=rank, world_size=world_size).train_dataloader()


def test_fabric_trains_on_its_own_batches():
    fabric = Fabric(accelerator="cpu", devices=1)
    loader = module(seed=3).train_dataloader()
    seen = [batch["row"].tolist() for batch in fabric.setup_dataloaders(loader.as_torch())]
    assert seen == [batch["row"].tolist() for batch in module(seed=3).train_dataloader()]


class Two(pl.LightningDataModule):
    """Two modules in one of the user's own, the shorter of which repeats within an epoch."""

    def __init__(self, modules, mode):
        super().__init__()
        self.modules, self.mode = modules, mode

    def setup(self, stage):
        for each in self.modules:
            each.setup(stage)

    def train_dataloader(self):
        return CombinedLoader([each.train_dataloader() for each in self.modules], self.mode)


class Pairs(Recorder):
    """A model that notes the rows of both batches."""

    def training_step(self, batches, _):
        self.rows.append([None if batch is None else batch["row"].tolist() for batch in batches])
        return self.weight.sum()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size", "max_size"])
def test_two_modules_in_one_resume_at_every_step(tmp_path, mode):
    def fit(*callbacks, **options):
        model, data = Pairs(), [module(batch_size=batch_size) for batch_size in (20, 64)]
        run = trainer(tmp_path, max_epochs=3, callbacks=list(callbacks), enable_checkpointing=bool(callbacks))
        run.fit(model, datamodule=Two(data, mode), weights_only=False, **options)
        return model.rows

    keep = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    whole = fit(keep)
    short = [str(rows) for _, rows in whole if rows is not None]
    assert len(set(short)) == len(short)
    for n in range(1, len(whole)):
        assert fit(ckpt_path=tmp_path / f"step={n}.ckpt") == whole[n:]


@pytest.mark.parametrize(("option", "advice"), [("num_workers", "num_threads"), ("lables", "'labels'")])
def test_an_option_that_does_not_exist_is_refused_with_the_one_that_does(option, advice):
    with pytest.raises(TypeError, match=f"no option '{option}'.*{advice}"):
        module(**{option: 4})
