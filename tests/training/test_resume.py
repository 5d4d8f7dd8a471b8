"""A run that was stopped goes on bit for bit as if it had not been, however its checkpoint was made."""

import re
import signal
import threading
from datetime import timedelta
from itertools import product

import anndata as ad
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

import scdataloader as scd
from scdataloader.errors import StateMismatchError
from tests.training.lightning_runs import (
    Fail,
    FailOn,
    Recorder,
    SaveIn,
    Signal,
    Stop,
    finish,
    fit,
    kept,
    module,
    start,
    write_cells,
)

# A fit of three epochs of four batches; a resumed one reads in other stretches, in other threads.
OTHER_READING = {"num_threads": 3, "window": 24}
EVERY_STEP = list(range(1, 13))
EVERY_EPOCH = [4, 8, 12]
ACROSS_EPOCHS = {"val_check_interval": 3, "check_val_every_n_epoch": None}
RELOADED = {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2}
IN_STEPS = {"max_steps": 11, "max_epochs": -1}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return write_cells(tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="module")
def whole(cells, tmp_path_factory):
    """The training batches of the fit that nothing stops; none could pass for another."""
    seen = fit(cells, default_root_dir=tmp_path_factory.mktemp("whole"))["train"]
    assert len({tuple(batch["row"]) for batch in seen}) == 12
    return seen


def by_model_checkpoint(**options):
    return lambda folder: ModelCheckpoint(folder, "{epoch}-{step}", save_top_k=-1, **options)


def in_hook(name):
    return lambda folder: SaveIn(folder, name)


each_step = by_model_checkpoint(every_n_train_steps=1)
each_moment = by_model_checkpoint(train_time_interval=timedelta(microseconds=1))
each_epoch = by_model_checkpoint(every_n_epochs=1, save_on_train_epoch_end=True)
each_error = by_model_checkpoint(save_on_exception=True)
each_validation = by_model_checkpoint(save_on_train_epoch_end=False)
CASES = {
    "each step": (each_step, {}, EVERY_STEP),
    "each moment": (each_moment, {"max_epochs": 2}, EVERY_STEP[:8]),
    "end of epoch": (each_epoch, {}, EVERY_EPOCH),
    "end of epoch, after validation": (each_validation, {}, EVERY_EPOCH),
    "validation twice per epoch": (each_validation, {"val_check_interval": 0.5}, [2, 4, 6, 8, 10, 12]),
    "validation after three batches": (each_validation, {"val_check_interval": 3}, [3, 7, 11]),
    "validation across epochs": (each_validation, ACROSS_EPOCHS, [3, 6, 9, 12]),
    "validation of every other epoch": (each_validation, {"check_val_every_n_epoch": 2}, [8]),
    "accumulated gradients": (each_step, {"accumulate_grad_batches": 3}, [3, 4, 7, 8, 11, 12]),
    "amid accumulated gradients": (in_hook("on_train_batch_end"), {"accumulate_grad_batches": 3}, EVERY_STEP),
    "limited": (each_step, {"limit_train_batches": 3}, EVERY_STEP[:9]),
    "limited to a share": (each_step, {"limit_train_batches": 0.5}, EVERY_STEP[:6]),
    "limited, end of epoch": (each_epoch, {"limit_train_batches": 3}, [3, 6, 9]),
    "reloaded": (each_step, RELOADED, EVERY_STEP[:8]),
    "reloaded, end of epoch": (each_epoch, RELOADED, EVERY_EPOCH[:2]),
    "counted in steps": (each_step, IN_STEPS, EVERY_STEP[:11]),
    "counted in steps, end of epoch": (each_epoch, IN_STEPS, [4, 8, 11]),
    "counted in steps, limited, end of epoch": (each_epoch, IN_STEPS | {"limit_train_batches": 3}, [3, 6, 9, 11]),
    "by hand, on_train_epoch_start": (in_hook("on_train_epoch_start"), {}, [0, 4, 8]),
    "by hand, on_train_batch_start": (in_hook("on_train_batch_start"), {}, list(range(12))),
    "by hand, on_validation_batch_end": (in_hook("on_validation_batch_end"), {}, EVERY_EPOCH),
    "by hand, on_train_epoch_end": (in_hook("on_train_epoch_end"), {}, EVERY_EPOCH),
}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # each resumed run keeps its own checkpoints
@pytest.mark.parametrize(("keep", "options", "expected"), CASES.values(), ids=CASES)
def test_a_fit_resumed_from_any_checkpoint_goes_on_like_the_uninterrupted_one(cells, tmp_path, keep, options, expected):
    seen = fit(cells, default_root_dir=tmp_path, callbacks=[keep(tmp_path / "kept")], **options)["train"]
    checkpoints = kept(tmp_path / "kept")
    assert list(checkpoints) == expected
    for n, path in checkpoints.items():
        again = {"ckpt": path, "callbacks": [keep(tmp_path / path.stem)], "options": OTHER_READING}
        assert fit(cells, default_root_dir=tmp_path, **again, **options)["train"] == seen[n:], path.name


def test_a_weighted_fit_resumed_at_any_step_goes_on_like_the_uninterrupted_one(cells, tmp_path):
    sampling = scd.Sampling(by=["type"], scheme="uniform", num_samples=70, block_size=4, curriculum_epochs=2)
    options = {"sampling": sampling}
    seen = fit(cells, default_root_dir=tmp_path, callbacks=[SaveIn(tmp_path)], options=options)["train"]
    for n, path in kept(tmp_path).items():
        assert fit(cells, ckpt=path, default_root_dir=tmp_path, options=options | OTHER_READING)["train"] == seen[n:]


class Scheduled(Recorder):
    """Asks how long the training will be, for which Lightning gets the training data before it restores anything."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        n_steps = self.trainer.estimated_stepping_batches
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=n_steps)]


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end"])
def test_a_fit_that_asks_for_its_length_resumes_as_well(cells, whole, tmp_path, hook):
    fit(cells, model=Scheduled(), default_root_dir=tmp_path, callbacks=[SaveIn(tmp_path, hook)])
    for n, path in kept(tmp_path).items():
        assert fit(cells, model=Scheduled(), ckpt=path, default_root_dir=tmp_path)["train"] == whole[n:]


@pytest.mark.parametrize("hook", ["on_before_zero_grad", "on_after_backward", "on_before_optimizer_step"])
def test_a_batch_that_is_not_trained_on_yet_comes_again(cells, whole, tmp_path, hook):
    fit(cells, default_root_dir=tmp_path, callbacks=[SaveIn(tmp_path, hook)])
    checkpoints = kept(tmp_path)
    assert list(checkpoints) == EVERY_STEP
    for n in (1, 3, 4, 5, 12):
        assert fit(cells, ckpt=checkpoints[n], default_root_dir=tmp_path)["train"] == whole[n - 1 :]


STOPS = [*product(["max_steps", "should_stop"], [1, 3, 4, 6, 8]), ("max_epochs", 4), ("max_epochs", 8)]


@pytest.mark.parametrize("saved", ["on_train_epoch_end", "afterwards"])
@pytest.mark.parametrize(("how", "n"), STOPS)
def test_a_fit_that_was_told_to_stop_goes_on_where_it_did(cells, whole, tmp_path, how, n, saved):
    model = Recorder()
    if how == "should_stop":
        model.after_step = Stop(n, model)
    until = {"max_steps": {"max_steps": n, "max_epochs": -1}, "max_epochs": {"max_epochs": n // 4}}.get(how, {})
    save = [SaveIn(tmp_path, "on_train_epoch_end")]
    assert fit(cells, model=model, default_root_dir=tmp_path, callbacks=save, **until)["train"] == whole[:n]
    path = tmp_path / f"{n}.ckpt"
    if saved == "afterwards":
        model.trainer.save_checkpoint(path, weights_only=False)
    longer = {"max_steps": 12, "max_epochs": -1} if how == "max_steps" else {}
    assert fit(cells, ckpt=path, default_root_dir=tmp_path, **longer)["train"] == whole[n:]


def test_a_trainer_that_fits_again_for_longer_goes_on(cells, whole, tmp_path):
    model = Recorder()
    fit(cells, model=model, default_root_dir=tmp_path, max_epochs=1)
    model.trainer.fit_loop.max_epochs = 3
    model.trainer.fit(model, module(cells))
    assert model.seen["train"] == whole


ENDS = [(OSError("disk"), OSError, OnExceptionCheckpoint), (KeyboardInterrupt(), SystemExit, each_error)]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.filterwarnings(r"ignore:`?.fit\(ckpt_path=")  # two remarks on every fit with OnExceptionCheckpoint
@pytest.mark.parametrize("where", ["before_step", "after_step", "in the loader"])
@pytest.mark.parametrize("n", [1, 4, 6])
@pytest.mark.parametrize(("error", "raised", "keep"), ENDS, ids=["error", "interrupt"])
def test_a_fit_that_an_error_ended_goes_on_with_the_batch_that_it_did_not_train_on(
    cells, whole, tmp_path, error, raised, keep, n, where
):
    model, options = Recorder(), {}
    if where == "in the loader":
        options = {"transforms": [FailOn(whole[n]["row"], error)]}
    else:
        setattr(model, where, Fail(n, error))
    interrupt, threads = signal.getsignal(signal.SIGINT), set(threading.enumerate())
    try:
        with pytest.raises(raised):
            fit(cells, model=model, default_root_dir=tmp_path, callbacks=[keep(tmp_path / "kept")], options=options)
    finally:
        signal.signal(signal.SIGINT, interrupt)  # which Lightning ignores from the first on
    assert not [each for each in set(threading.enumerate()) - threads if each.name.startswith("scdataloader")]
    n_kept, path = max(kept(tmp_path / "kept").items())
    assert n_kept == len(model.seen["train"])
    assert n_kept == n or where == "in the loader"  # which makes several at once and gives out none of those
    rest = fit(cells, ckpt=path, default_root_dir=tmp_path, callbacks=[keep(tmp_path / "again")])["train"]
    assert rest == whole[n_kept:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings(r"ignore:`?.fit\(ckpt_path=")
def test_what_a_signal_ended_goes_on_in_another_process(cells, whole, tmp_path):
    # One is killed after its seventh batch, with a checkpoint of its sixth; one is asked to end before its sixth.
    keep = ModelCheckpoint(tmp_path / "killed", every_n_train_steps=2, save_last=True)
    last_words = OnExceptionCheckpoint(tmp_path / "ended")
    ends = {
        "killed": {"after_step": Signal(7, signal.SIGKILL), "callbacks": [keep]},
        "ended": {"before_step": Signal(5, signal.SIGTERM), "callbacks": [last_words]},
    }
    folders = [tmp_path / "processes" / name for name in ends]
    about = {"data": cells, "default_root_dir": tmp_path}
    processes = [start([run | about], own) for run, own in zip(ends.values(), folders, strict=True)]
    killed, ended = finish(processes, folders, [-signal.SIGKILL, 0])
    assert killed[0]["train"] == whole[:7]
    assert ended[0]["train"] == whole[:6]  # Lightning finishes the batch

    for path, callbacks in (
        (tmp_path / "killed" / "last.ckpt", [keep]),
        (tmp_path / "ended" / "on_exception.ckpt", []),
    ):
        assert fit(cells, ckpt=path, callbacks=callbacks, default_root_dir=tmp_path)["train"] == whole[6:]


# ------------------------------------------------------------------------------------------------------ plain PyTorch


def train(loader, n_epochs, *, folder=None, saved=None, name_epochs):
    """What any training loop does: the batches that it saw and the trained weights; saves after each step."""
    model = torch.nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    if saved is not None:
        state = torch.load(saved, weights_only=True)  # plain values alone, so that it needs no pickle
        model.load_state_dict(state["model"])
        loader.load_state_dict(state["loader"])
    seen = []
    for epoch in range(loader.state_dict()["epoch"], n_epochs):
        if name_epochs:
            loader.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            (model(batch["x"].log1p()).mean() - 1).square().backward()
            optimizer.step()
            seen.append({key: value.tolist() for key, value in batch.items()})
            if folder is not None:
                state = {"model": model.state_dict(), "loader": loader.state_dict()}
                torch.save(state, folder / f"{len(seen)}.pt")
    return seen, model.state_dict()


@pytest.mark.parametrize("name_epochs", [True, False])
def test_a_hand_written_loop_resumed_at_any_step_ends_with_the_same_weights(cells, tmp_path, name_epochs):
    def make(**reading):
        return module(cells, sampling=scd.Sampling(by=["type"], num_samples=70), **reading).train_dataloader()

    seen, weights = train(make(), 3, folder=tmp_path, name_epochs=name_epochs)
    assert len(seen) == 12
    readings = [{"num_threads": threads, "window": window} for threads, window in ((1, 1), (3, 40), (4, None))]
    for n in range(1, 13):
        rest, own = train(make(**readings[n % 3]), 3, saved=tmp_path / f"{n}.pt", name_epochs=name_epochs)
        assert rest == seen[n:]
        assert all(torch.equal(own[name], weights[name]) for name in weights)


# ------------------------------------------------------------------------------------------ what cannot be gone on with
SAMPLING = scd.Sampling(by=["type"], scheme="uniform", num_samples=64)
OTHERS = {
    "weights": ({"sampling": scd.Sampling(by=["type"], scheme="natural", num_samples=64)}, "fingerprint"),
    "draws": ({"sampling": scd.Sampling(by=["type"], scheme="uniform", num_samples=80)}, "num_samples"),
    "seed": ({"seed": 4}, "seed"),
    "batch size": ({"batch_size": 8}, "global_batch_size"),
    "values": ({"data": "values"}, "fingerprint"),
    "order of files": ({"data": "order"}, "fingerprint"),
}


@pytest.fixture(scope="module")
def stopped(cells, tmp_path_factory):
    """A folder with checkpoints of a weighted fit: 4.ckpt from between two epochs, 6.ckpt from within one."""
    folder = tmp_path_factory.mktemp("stopped")
    save = [SaveIn(folder), SaveIn(folder, "on_train_epoch_end")]
    fit(cells, default_root_dir=folder, callbacks=save, options={"sampling": SAMPLING})
    return folder


@pytest.fixture(scope="module")
def other_cells(cells, tmp_path_factory):
    """The same files in another order, and files of which one has another value."""
    folder = tmp_path_factory.mktemp("other")
    changed = ad.read_h5ad(cells[0])
    changed.X[3, 5] += 1
    changed.write_h5ad(folder / "0.h5ad")
    return {"order": cells[::-1], "values": [str(folder / "0.h5ad"), *cells[1:]]}


@pytest.mark.parametrize("n", [4, 6])
@pytest.mark.parametrize(("changes", "key"), OTHERS.values(), ids=OTHERS)
def test_a_fit_on_another_stream_is_refused_with_both_values(
    stopped, cells, other_cells, tmp_path, caplog, n, changes, key
):
    options = {"sampling": SAMPLING} | changes
    data = other_cells.get(options.pop("data", None), cells)
    path = stopped / f"{n}.ckpt"
    (saved,) = torch.load(path, weights_only=False)["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    own = module(data, **options).train_dataloader().state_dict()
    assert saved[key] != own[key]
    with pytest.raises(StateMismatchError, match=f"has {key} {saved[key]!r}, but this loader has {own[key]!r}"):
        fit(data, ckpt=path, default_root_dir=tmp_path, options=options)
    assert ("X of 0.h5ad changed since the checkpoint was saved" in caplog.text) == (changes.get("data") == "values")


@pytest.mark.parametrize("n", [4, 6])
def test_a_fit_on_another_split_is_refused_with_both_splits(stopped, cells, tmp_path, n):
    splits = [scd.Split(val=0.2, test=0.1), scd.Split(val=0.2, test=0.1, seed=4)]
    saved, own = (re.escape(str(split)) for split in splits)
    with pytest.raises(StateMismatchError, match=f"{saved}.*{own}.* different rows"):
        fit(cells, ckpt=stopped / f"{n}.ckpt", default_root_dir=tmp_path, options={"split": splits[1]})
