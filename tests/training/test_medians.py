"""Medians of genes that a collate function wants: those of the training cells, in checkpoints, equal on every rank."""

import logging
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

import scdataloader as scd
from scdataloader.errors import StateMismatchError
from scdataloader.loading.loader import Loader
from scdataloader.models import MaskedTokenModel
from scdataloader.sampling.samplers import SequentialSampler
from scdataloader.training.checkpoint import read_state
from tests.training.lightning_runs import QUIET, write_cells

GENEFORMER = scd.tokens.Geneformer(max_len=16)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return write_cells(tmp_path_factory.mktemp("cells"))


def module(cells, **options):
    return scd.DataModule(cells, **({"collate": GENEFORMER, "split": scd.Split(val=0.3), "batch_size": 8} | options))


def sequences(dm):
    dm.setup("fit")
    made = [batch["input_ids"] for loader in (dm.train_dataloader(), dm.val_dataloader()) for batch in loader]
    dm.teardown("fit")
    return made


def same(ours, theirs):
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def test_they_are_those_of_the_training_cells(cells, caplog):
    dm = module(cells)
    medians = scd.tokens.compute_medians(dm.collection, rows=dm.splits.train, progress=False)
    of_all = scd.tokens.compute_medians(dm.collection, progress=False)
    assert medians != of_all
    with caplog.at_level(logging.INFO, "scdataloader"):
        found = sequences(dm)
    assert caplog.text.count("computing the medians") == 1  # and once for both loaders
    assert f"{len(dm.splits.train)} training cells" in caplog.text
    assert same(found, sequences(module(cells, collate=replace(GENEFORMER, medians=medians))))
    assert not same(found, sequences(module(cells, collate=replace(GENEFORMER, medians=of_all))))


def test_they_are_the_same_on_every_rank(cells):
    whole = module(cells)
    whole.setup("fit")
    parts = [module(cells, batch_size=4, rank=rank, world_size=2) for rank in (0, 1)]
    for part in parts:
        part.setup("fit")
    batches = zip(whole.train_dataloader(), *(part.train_dataloader() for part in parts), strict=True)
    for batch, *shares in batches:
        assert torch.equal(batch["input_ids"], torch.cat([share["input_ids"] for share in shares]))
    for each in (whole, *parts):
        each.teardown("fit")


def test_a_checkpoint_brings_its_medians(cells, tmp_path):
    dm = module(cells, collate=replace(GENEFORMER, masking=scd.tokens.MaskedTokens(rate=0.5)))
    trainer = pl.Trainer(**QUIET, max_steps=2, enable_checkpointing=False, default_root_dir=tmp_path)
    trainer.fit(MaskedTokenModel(len(dm.tokens), width=8, n_layers=1, n_heads=2), dm)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = read_state(tmp_path / "a.ckpt")
    assert saved["medians"] == scd.tokens.compute_medians(dm.collection, rows=dm.splits.train, progress=False)

    # on one file of the three, whose own medians are others
    applied = module(cells[:1], checkpoint=str(tmp_path / "a.ckpt"), split=None)
    given = module(cells[:1], collate=replace(GENEFORMER, medians=saved["medians"]), split=None)
    given.alignment = scd.GeneAlignment(vocabulary=saved["genes"])
    assert same(sequences(applied), sequences(given))
    assert applied.state_dict()["medians"] == saved["medians"]
    loaded = module(cells)
    loaded.load_state_dict(saved | {"medians": dict.fromkeys(saved["medians"], 1.0)})
    assert not same(sequences(loaded), sequences(module(cells)))


def test_a_checkpoint_of_a_run_with_other_medians_is_refused(cells):
    dm = module(cells, collate=replace(GENEFORMER, medians=dict.fromkeys(module(cells).genes, 1.0)))
    sequences(dm)
    state = dm.state_dict()
    assert "medians" not in state
    again = module(cells)
    again.load_state_dict(state)
    with pytest.raises(StateMismatchError, match="no medians of genes"):
        again.train_dataloader()


def test_a_loader_without_training_cells_asks_for_medians(cells):
    collection = scd.Collection.open(cells)
    with pytest.raises(ValueError, match="no medians"):
        Loader(collection, SequentialSampler(len(collection)), GENEFORMER, batch_size=4)


def test_tokens_number_the_genes_of_the_vocabulary(cells):
    dm = module(cells)
    assert list(dm.tokens) == ["<pad>", "<mask>", "<cls>", "<eos>", *dm.genes]
    assert list(dm.tokens.values()) == list(range(4 + len(dm.genes)))
    assert list(module(cells, collate=scd.tokens.ScGPT()).tokens)[:4] == ["<pad>", "<cls>", "<eoc>", dm.genes[0]]
    assert module(cells, collate=None).tokens == {}
    made = np.unique(torch.cat([ids.flatten() for ids in sequences(dm)]))
    assert set(made) <= set(dm.tokens.values()) - {1}
