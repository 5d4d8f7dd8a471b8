"""A third party's package works through every door of Python: by object, and by name."""

import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

import scdataloader as scd

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
N, G = 300, 50

pytestmark = pytest.mark.filterwarnings("ignore:Total length of `list`", "ignore:Be aware that when using `ckpt_path`")


@pytest.fixture
def toy():
    """The modules of the package, by name."""
    from types import SimpleNamespace

    from toyplugin import collates, model, sampling, source, terms

    return SimpleNamespace(collates=collates, model=model, sampling=sampling, source=source, terms=terms)


def values(rows, n_genes=G):
    """What toy cells hold, after their definition."""
    gene = np.arange(n_genes)
    return np.where((rows[:, None] + gene) % 3 == 0, 1000 * rows[:, None] + gene + 1, 0)


def by_name(toy):
    return {
        "data": ["toy://300x50", "toy://200x50"],
        "hierarchies": {"cell_type": "TOY"},
        "sampling": "donor-sets",
        "collate": "rank-tokens",
    }


def by_object(toy):
    return {
        "data": [toy.source.ToySource("toy://300x50"), toy.source.ToySource("toy://200x50")],
        "hierarchies": {"cell_type": toy.terms.open_terms("TOY")},
        "sampling": toy.sampling.DescribedSets(),
        "collate": toy.collates.RankTokens(),
    }


WAYS = {"by name": by_name, "by object": by_object}


def module(options, **more):
    return scd.DataModule(**({"labels": ["cell_type"], "batch_size": 16, "seed": 5} | options | more))


def fit(toy, options, *, ckpt_path=None, **trainer_options):
    """What a model saw."""
    model = toy.model.Notes()
    trainer = pl.Trainer(**(QUIET | {"max_epochs": 2, "enable_checkpointing": False} | trainer_options))
    trainer.fit(model, module(options), ckpt_path=ckpt_path)
    return [noted for noted in model.seen if noted[0] == "train"]


@pytest.mark.parametrize("way", ["toy://300x50", "object", "file"])
def test_collection_opens_the_source(toy, tmp_path, way):
    (tmp_path / "a.toy").write_text("toy://300x50\n")
    data = {"object": toy.source.ToySource("toy://300x50"), "file": tmp_path / "a.toy"}.get(way, way)
    collection = scd.Collection.open(data)
    assert (len(collection), collection.n_genes) == (N, G)
    rows = np.array([7, 299, 0, 7])
    assert np.array_equal(collection.read(rows).to_scipy().toarray(), values(rows))


def test_a_glob_opens_the_files_of_the_plugin(toy, tmp_path):
    for number, address in enumerate(("toy://30x50", "toy://20x50")):
        (tmp_path / f"{number}.toy").write_text(address)
    assert len(scd.Collection.open(str(tmp_path / "*.toy"))) == 50


def test_the_loader_takes_the_sampler_and_the_collate_function(toy):
    collection = scd.Collection.open("toy://300x50")
    sampler = toy.sampling.SetSampler([np.arange(10), np.arange(20, 90)], 4, 20, 1)
    loader = scd.Loader(collection, sampler, toy.collates.RankTokens(6), batch_size=8, seed=2)
    batches = list(loader)
    assert [len(batch["cell"]) for batch in batches] == [8] * 10
    assert np.array_equal(np.concatenate([batch["cell"] for batch in batches]), sampler.draw(0, 0, 80))
    for batch in batches:
        rows, ids = batch["cell"].numpy(), batch["input_ids"].numpy()
        expected = np.argsort(-values(rows), axis=1, kind="stable")[:, :6]
        assert np.array_equal(ids, expected)
        assert batch["attention_mask"].all()


@pytest.mark.parametrize("way", WAYS)
def test_a_fit_gets_whole_sets_of_tokens(toy, way):
    seen = fit(toy, WAYS[way](toy))
    assert len(seen) == 2 * 10
    donors = np.concatenate([np.arange(n) // 5 % 6 for n in (300, 200)])
    types = np.concatenate([np.arange(n) * 7 % 10 // 4 for n in (300, 200)])
    for _, _, batch in seen:
        assert set(batch) == {"input_ids", "attention_mask", "masked", "cell", "labels"}
        assert (np.ptp(donors[batch["cell"]].reshape(4, 4), axis=1) == 0).all()
        assert [code for (code,) in batch["labels"]] == types[batch["cell"]].tolist()


def test_both_ways_are_one_stream(toy):
    assert fit(toy, by_name(toy)) == fit(toy, by_object(toy))


def test_terms_of_the_ontology_are_a_hierarchy(toy):
    for way in WAYS.values():
        dm = module(way(toy) | {"roll_up": {"cell_type": scd.RollUp(terms=["TOY:2"])}})
        assert dm.decoders["cell_type"][0] == "TOY:2"
        assert dm.classes == {"cell_type": 2}


def test_a_term_without_an_ontology_named_is_looked_up_by_its_prefix(toy):
    dm = module(by_name(toy) | {"hierarchies": ["cell_type"]})
    assert dm.classes == {"cell_type": 3}


@pytest.mark.parametrize("way", WAYS)
def test_a_fit_resumes_in_the_middle_of_an_epoch(toy, way, tmp_path):
    options = WAYS[way](toy)
    whole = fit(toy, options)
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "kept", save_top_k=-1, every_n_train_steps=7)
    fit(toy, options, callbacks=[saver], enable_checkpointing=True, max_steps=7)
    (kept,) = (tmp_path / "kept").glob("*.ckpt")
    assert fit(toy, options, ckpt_path=kept) == whole[7:]


@pytest.fixture
def checkpoint(toy, tmp_path):
    """The checkpoint of a fit of one epoch."""
    trainer = pl.Trainer(**(QUIET | {"max_epochs": 1, "default_root_dir": tmp_path}))
    trainer.fit(toy.model.Notes(), module(by_name(toy)))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_a_checkpoint_applies_to_other_data(toy, checkpoint):
    model, trainer = toy.model.Notes(), pl.Trainer(**QUIET)
    other = module({"data": toy.source.ToySource("toy://20x50"), "collate": "rank-tokens"}, checkpoint=str(checkpoint))
    cells = torch.cat(trainer.predict(model, other))
    assert cells.tolist() == list(range(20))
    codes = [code for _, _, batch in model.seen for (code,) in batch["labels"]]
    assert codes == (np.arange(20) * 7 % 10 // 4).tolist()


def test_a_subclass_keeps_codes_too(toy, checkpoint):
    class Named(scd.DataModule):
        """A class of another name."""

    dm = Named("toy://20x50", labels=["cell_type"], checkpoint=str(checkpoint))
    assert dm.encoders == module(by_name(toy)).encoders


def test_columns_and_matrices_reach_the_collate_function(toy, tmp_path):
    (tmp_path / "a.toy").write_text("toy://60x50")
    dm = scd.DataModule(str(tmp_path / "a.toy"), collate=toy.collates.WithObs(), batch_size=8)
    model = toy.model.Notes()
    pl.Trainer(**QUIET, max_epochs=1).fit(model, dm)
    assert len(model.seen) == 7
    for _, _, batch in model.seen:
        rows = np.array(batch["cell"])
        assert np.array_equal(batch["counts"], values(rows))  # written out in full on the device
        assert np.array_equal(batch["doubled"], 2 * values(rows))
        assert np.array_equal(batch["embedding"], np.stack([rows, rows + 0.5], axis=1))
        assert batch["age"] == (rows / 2).tolist()
        assert batch["donor"] == (rows // 5 % 6).tolist()


def test_a_plan_without_classes_is_enough(toy):
    seen = fit(toy, by_name(toy) | {"sampling": toy.sampling.DonorSets(size=8, n_sets=6)})
    assert len(seen) == 2 * 3


def test_the_plan_draws_in_the_training_split_alone(toy):
    options = by_name(toy) | {"split": scd.Split(val=0.2, by="donor")}
    dm = module(options)
    seen = fit(toy, options)
    rows = {row for _, _, batch in seen for row in batch["cell"]}
    assert rows <= set(dm.splits.train.tolist())
    assert len(dm.splits.val)


def test_it_converts(toy, tmp_path):
    for name, data in (("name", "toy://60x50"), ("object", toy.source.RichSource("toy://60x50"))):
        store = scd.convert(data, tmp_path / f"{name}.cells", n_processes=1)
        collection = scd.Collection.open(tmp_path / f"{name}.cells")
        rows = np.array([59, 3, 3])
        assert np.array_equal(collection.read(rows).to_scipy().toarray(), values(rows))
        assert collection.obs(["age"])["age"].tolist() == (np.arange(60) / 2).tolist()
        assert store.n_obs == 60


def test_what_is_registered_survives_pickling(toy):
    collection = scd.Collection.open(["toy://30x50", "toy://20x50"])
    copy = pickle.loads(pickle.dumps(collection))
    assert copy.fingerprint == collection.fingerprint
    assert np.array_equal(copy.read(np.array([49])).to_scipy().toarray(), values(np.array([19])))
