"""Log sampling statistics and data-wait time of each training epoch."""

from __future__ import annotations

import csv
import io
import logging
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from scdataloader.loading.loader import Loader
from scdataloader.protocols import DrawnClasses
from scdataloader.sampling.tally import Tally

__all__ = ["SamplingMonitor"]

FILE = "sampling.csv"
COLUMNS = ("epoch", "class", "target", "observed", "draws")
_SECONDS_SHOWN = 0.5
"""Interval between updates of the rate on the progress bar."""

logger = logging.getLogger(__name__)


class SamplingMonitor(Callback):
    """Reports on the draws of each training epoch, over all ranks; `DataModule` adds it to its Trainer.

    Logged once per epoch, for the draws of the epoch (of a resumed epoch, those after the resume):

    | name                   | meaning                                                                               |
    |------------------------|---------------------------------------------------------------------------------------|
    | `data/waiting_share`   | share of the time, without validation, that the training loop waited for a batch      |
    | `data/cells_per_s`     | cells trained on per second, over all ranks, without validation                       |
    | `data/repeated_share`  | share of the draws whose cell was drawn before in the epoch                           |
    | `data/effective_cells` | effective sample size of the epoch, in cells; see `Tally.effective_cells`             |
    | `data/share_error`     | total variation distance between the target and observed shares of the classes:       |
    |                        | 0 is equal, 1 disjoint; only if the sampling plan states targets                      |

    ``sampling.csv``, in the folder of the run (`run_folder`), has a line for each epoch and class: its target and
    observed share of the draws, and the draws. A resumed run appends to its file. The progress bar shows ``cells/s``.

    The training loop runs ahead of a GPU, so the GPU need not idle when the loop waits for a batch: a waiting share
    near 0 means that data is not the bottleneck, one near 1 that it is.
    """

    def __init__(self) -> None:
        self._drawn: DrawnClasses | None = None
        self._folder: Path | None = None
        self._trained = False
        self._show_at = 0.0
        self._shown: tuple[float, int] | None = None
        self._validating_since = 0.0
        self._validated = 0.0

    @classmethod
    def join(cls, trainer: Trainer, drawn: DrawnClasses | None = None) -> None:
        """Insert a monitor before the callbacks of the Trainer, unless it has one, and set the drawn classes."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        monitors = [callback for callback in callbacks if isinstance(callback, cls)]
        if not monitors:
            monitors = [cls()]
            callbacks[:0] = monitors
        for monitor in monitors:
            monitor._drawn = drawn  # noqa: SLF001 (of this class)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Determine the log folder of the run; Lightning requires it on every rank."""
        if stage == "fit":
            self._folder = run_folder(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Reset; warn if there is nothing to report on."""
        self._begin()
        loader = trainer.train_dataloader
        if not isinstance(loader, Loader) or loader.tally is None:
            logger.warning(
                "SamplingMonitor reports nothing: it needs a Loader with a tally, as of scdataloader.DataModule, but "
                "this run trains on a %s without one",
                type(loader).__name__,
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Show the rate since the last update, at most a few times per second."""
        self._trained = True
        now = perf_counter()
        if now < self._show_at or trainer.progress_bar_callback is None:
            return
        loader = trainer.train_dataloader
        if not isinstance(loader, Loader):
            return
        since, n_before = self._shown or (now - loader.elapsed, 0)
        rate = (loader.n_drawn - n_before) * trainer.world_size / max(now - since, 1e-9)
        self._show_at, self._shown = now + _SECONDS_SHOWN, (now, loader.n_drawn)
        # a tensor on the CPU, which the bar can read without waiting for the device
        pl_module.log("cells/s", torch.tensor(rate), prog_bar=True, logger=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Pause the clock."""
        self._validating_since = perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Resume the clock."""
        now = perf_counter()
        self._validated += now - self._validating_since
        if isinstance(trainer.train_dataloader, Loader):
            self._shown = now, trainer.train_dataloader.n_drawn

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the statistics of the epoch."""
        loader = trainer.train_dataloader
        if not isinstance(loader, Loader) or loader.tally is None or not self._trained:
            return  # without a trained batch, the run was stopped before the epoch began
        seconds = loader.elapsed - self._validated
        tally = loader.tally.summed(partial(_sum_over_ranks, trainer))
        target = None if self._drawn is None else self._drawn.target_shares(loader.epoch)
        values = {
            "data/waiting_share": loader.waited / seconds,
            "data/cells_per_s": tally.n_draws / seconds,
            "data/repeated_share": tally.repeated_share,
            "data/effective_cells": tally.effective_cells,
        }
        if target is not None:
            values["data/share_error"] = float(np.abs(target - tally.shares).sum() / 2)
        if not trainer.barebones:
            pl_module.log_dict(values, sync_dist=trainer.world_size > 1, batch_size=1)
        if trainer.is_global_zero:
            logger.info("epoch %d: %s", loader.epoch, _line(tally.n_draws, loader.ranks[1], values))
            if self._folder is not None:
                _append(self._folder / FILE, loader.epoch, target, tally)
        self._begin()

    def _begin(self) -> None:
        self._trained, self._shown, self._validated = False, None, 0.0


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of the logs of a run; None if nobody chose one.

    Without a logger that has a folder, Lightning uses ``default_root_dir``, which is the working directory by default;
    a run must not leave files there. To have them there, set ``default_root_dir="."``. Must be called on every rank.
    """
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    return None if folder == Path.cwd() else folder


def _sum_over_ranks(trainer: Trainer, array: NDArray[np.integer]) -> NDArray[np.integer]:
    if trainer.world_size == 1:
        return array
    # copied, because it is reduced in place; on the device, because NCCL reduces only there
    tensor = torch.tensor(array, device=trainer.strategy.root_device)
    total: NDArray[np.integer] = trainer.strategy.reduce(tensor, reduce_op="sum").cpu().numpy()
    return total


def _line(n_draws: int, n_ranks: int, values: dict[str, float]) -> str:
    error = values.get("data/share_error")
    ranks = f"{n_ranks} ranks" if n_ranks > 1 else "1 rank"
    shares = "" if error is None else f"class shares within {error:.2%} of target, "
    return (
        f"{n_draws:,} draws on {ranks} at {values['data/cells_per_s']:,.0f} cells/s, "
        f"{values['data/waiting_share']:.1%} of the time waiting for data; {shares}"
        f"{values['data/repeated_share']:.1%} repeated draws, {values['data/effective_cells']:,.0f} effective cells"
    )


def _append(path: Path, epoch: int, target: NDArray[np.float64] | None, tally: Tally) -> None:
    """Append a line for each class with a target or draws, in one write; without targets the column is empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists():
        writer.writerow(COLUMNS)
    targets = [""] * len(tally.names) if target is None else target.tolist()
    for name, share, observed, draws in zip(
        tally.names, targets, tally.shares.tolist(), tally.draws.tolist(), strict=True
    ):
        if share or draws:
            writer.writerow((epoch, name, share, observed, draws))
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())
