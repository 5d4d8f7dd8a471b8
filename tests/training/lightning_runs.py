"""Real Lightning runs that note every batch to the last bit, in this process or in processes of their own.

Called as a script, it does the runs that a file describes, as one rank of several or alone.
"""

import json
import os
import pickle
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Checkpoint

import scdataloader as scd
from scdataloader.testing import named_values

GENES = [f"ENSG{i:011d}" for i in range(30)]
STAGES = ("train", "validate", "test", "predict")
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
TIMEOUT = 400
"""Seconds after which processes that still run are taken to hang."""


def write_cells(folder):
    """Paths of three .h5ad files with 107 cells, shared out below as 75, 21 and 11: never full batches of 8 or 16."""
    rng = np.random.default_rng(0)
    paths = []
    for seed, n in enumerate((50, 34, 23)):
        types = pd.Categorical(rng.choice(["T cell", "B cell", "NK cell", "unknown"], n, p=[0.6, 0.2, 0.1, 0.1]))
        obs = pd.DataFrame({"type": types}, index=[f"{seed}-{i}" for i in range(n)])
        var = pd.DataFrame(index=rng.permutation(GENES)[: 30 - 2 * seed])
        paths.append(str(folder / f"{seed}.h5ad"))
        ad.AnnData(named_values(n, len(var), seed=seed), obs=obs, var=var).write_h5ad(paths[-1])
    return paths


def module(data, **options):
    made = {
        "labels": ["type"],
        "batch_size": 16,
        "split": scd.Split(val=0.2, test=0.1),
        "collate": scd.SelectedGenes(how="random expressed", n_genes=6),
    }
    return scd.DataModule(data, **(made | options))


class Recorder(pl.LightningModule):
    """A model of one weight that notes each batch, in ``seen`` and, line by line, in a file.

    Args:
        log: File to note in; None for none.
        before_step: Called with the number of batches trained on so far, before the next one is.
        after_step: Called likewise, after a batch and its callbacks, and so after the checkpoint of that step.
    """

    def __init__(self, log=None, before_step=None, after_step=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {stage: [] for stage in STAGES}
        self.n_earlier = 0
        self.log_file = log
        self.before_step, self.after_step = before_step, after_step

    @property
    def n_seen(self):
        """Training batches seen, those of the run that this one resumes included."""
        return self.n_earlier + len(self.seen["train"])

    def note(self, stage, batch):
        if self.trainer.sanity_checking:
            return
        noted = {"epoch": self.current_epoch} | {key: value.tolist() for key, value in batch.items()}
        self.seen[stage].append(noted)
        if self.log_file is not None:
            with Path(self.log_file).open("a") as file:
                file.write(json.dumps([stage, noted]) + "\n")

    def training_step(self, batch, batch_idx):
        if self.before_step is not None:
            self.before_step(self.n_seen)
        self.note("train", batch)
        return (batch["x"] * self.weight).mean()

    def on_train_batch_end(self, *_):
        if self.after_step is not None:
            self.after_step(self.n_seen)

    def validation_step(self, batch, batch_idx):
        self.note("validate", batch)

    def test_step(self, batch, batch_idx):
        self.note("test", batch)

    def predict_step(self, batch, batch_idx):
        self.note("predict", batch)
        return batch["row"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["n_seen"] = self.n_seen

    def on_load_checkpoint(self, checkpoint):
        self.n_earlier = checkpoint["n_seen"]


class SaveIn(pl.Callback):
    """Saves a checkpoint in every call of one hook, by hand; ``<n>.ckpt`` in a folder is from after n batches."""

    def __init__(self, folder, hook="on_train_batch_end"):
        self.folder = folder
        setattr(self, hook, self.save)

    def save(self, trainer, model, *_):
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"{model.n_seen}.ckpt", weights_only=False)


@dataclass
class Stop:
    """Asks the Trainer to stop once ``n`` batches are trained on, as a time limit does."""

    n: int
    model: Recorder

    def __call__(self, n):
        self.model.trainer.should_stop = n == self.n


@dataclass
class Signal:
    """Sends this process a signal once ``n`` batches are trained on."""

    n: int
    number: int

    def __call__(self, n):
        if n == self.n:
            os.kill(os.getpid(), self.number)


@dataclass
class Fail:
    """Raises once ``n`` batches are trained on."""

    n: int
    error: BaseException

    def __call__(self, n):
        if n == self.n:
            raise self.error


@dataclass
class FailOn:
    """A transform that raises at the batch of these rows."""

    rows: list[int]
    error: BaseException

    def __call__(self, batch, rng):
        if batch.row.tolist() == self.rows:
            raise self.error
        return batch


def kept(folder):
    """{batches seen so far: checkpoint}, in this order."""
    paths = {torch.load(path, weights_only=False)["n_seen"]: path for path in folder.glob("*.ckpt")}
    return dict(sorted(paths.items()))


def fit(data, *, ckpt=None, model=None, options=None, then=(), **trainer_options):
    """What a model saw in a fit and in other things that it did ``then``, such as "test"; a list for each stage."""
    model = Recorder() if model is None else model
    keeps = any(isinstance(callback, Checkpoint) for callback in trainer_options.get("callbacks", ()))
    trainer = pl.Trainer(**(QUIET | {"max_epochs": 3, "enable_checkpointing": keeps} | trainer_options))
    dm = module(data, **(options or {}))
    trainer.fit(model, dm, ckpt_path=ckpt)
    for what in then:
        getattr(trainer, what)(model, dm)
    return model.seen


def start(runs, folder, **environment):
    """A process that does ``runs`` one after another, each the arguments of `fit` and of `Recorder`; it logs them."""
    folder.mkdir(parents=True)
    logged = [run | {"log": folder / f"{number:02}.jsonl"} for number, run in enumerate(runs)]
    (folder / "runs.pkl").write_bytes(pickle.dumps(logged))
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, __file__, folder / "runs.pkl"],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def finish(processes, folders, codes=None):
    """What the processes saw in each of their runs; fails if one hangs or ends with another code. None stays behind."""
    wanted = codes or [0] * len(processes)
    deadline = time.monotonic() + TIMEOUT
    try:
        while None in (got := [process.poll() for process in processes]) and time.monotonic() < deadline:
            if any(code not in {None, right} for code, right in zip(got, wanted, strict=True)):
                break  # the others might wait for it
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert got == wanted, "\n".join((folder / "output.txt").read_text()[-3000:] for folder in folders)
    return [[_read(log) for log in sorted(folder.glob("*.jsonl"))] for folder in folders]


def _read(log):
    seen = {stage: [] for stage in STAGES}
    for line in log.read_text().splitlines():
        stage, noted = json.loads(line)
        seen[stage].append(noted)
    return seen


def on_ranks(runs, folder, world_size):
    """What each rank saw in each run: DDP over gloo, every rank a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    runs = [run | {"strategy": "ddp", "devices": world_size} for run in runs]
    folders = [folder / f"rank{rank}" for rank in range(world_size)]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    return finish([start(runs, own, LOCAL_RANK=str(rank), **where) for rank, own in enumerate(folders)], folders)


def main(path):
    for run in pickle.loads(Path(path).read_bytes()):
        about_model = {name: run.pop(name, None) for name in ("log", "before_step", "after_step")}
        fit(model=Recorder(**about_model), **run)


if __name__ == "__main__":
    main(sys.argv[1])
