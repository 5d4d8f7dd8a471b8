"""What really was drawn, and whether the model waited for it: logged while it trains."""

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
from scdataloader.sampling.tally import Tally
from scdataloader.sampling.weighting import Weighting

FILE = "sampling.csv"
COLUMNS = ("epoch", "class", "asked", "realised", "draws")
_SECONDS_SHOWN = 0.5
"""How long the progress bar shows a rate before the next."""

logger = logging.getLogger(__name__)


class SamplingMonitor(Callback):
    """Reports on the draws of each training epoch, over all ranks; `DataModule` puts it into its Trainer.

    Logged once per epoch, about the draws that were handed out in it (of a resumed epoch, those after the resume):

    | name                   | meaning                                                                               |
    |------------------------|---------------------------------------------------------------------------------------|
    | `data/waiting_share`   | share of the time, validation apart, for which the training loop waited for a batch   |
    | `data/cells_per_s`     | cells trained on per second, over all ranks, validation apart                         |
    | `data/repeated_share`  | share of the draws whose cell had been drawn before in the epoch                      |
    | `data/effective_cells` | effective sample size of the epoch, in cells; see `Tally.effective_cells`             |
    | `data/share_error`     | half the sum of the differences between the shares of the classes that were asked for |
    |                        | and those that were drawn: 0 is as asked, 1 nothing in common                         |

    ``sampling.csv``, next to ``splits.json``, has a line for each epoch and class: the shares of the draws that were
    asked for and realised, and the draws. A resumed run goes on in its file. The progress bar shows ``cells/s``.

    The loop runs ahead of a GPU, so a batch that it waits for need not have kept the GPU waiting: a waiting share near
    0 says that data is no bottleneck, one near 1 that it is.
    """

    def __init__(self) -> None:
        self._folder = Path()
        self._trained = False
        self._show_at = 0.0
        self._shown: tuple[float, int] | None = None
        self._validating_since = 0.0
        self._validated = 0.0

    @classmethod
    def join(cls, trainer: Trainer) -> None:
        """Put one in front of the Trainer's callbacks, unless it has one."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, cls) for callback in callbacks):
            callbacks.insert(0, cls())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Note where the run's logs lie: a question to be asked on every rank."""
        if stage == "fit":
            self._folder = Path(trainer.log_dir or trainer.default_root_dir)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Begin anew; say so if there is nothing to report on."""
        self._begin()
        if _weighting(trainer) is None or not isinstance(trainer.train_dataloader, Loader):
            logger.warning(
                "SamplingMonitor reports nothing: it needs a Loader and a weighting, as scdataloader.DataModule has "
                "them, but this run trains on a %s",
                type(trainer.train_dataloader).__name__,
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Show the rate since it was last shown, a few times a second at most."""
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
        """Stop the clock."""
        self._validating_since = perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Let the clock go on."""
        now = perf_counter()
        self._validated += now - self._validating_since
        if isinstance(trainer.train_dataloader, Loader):
            self._shown = now, trainer.train_dataloader.n_drawn

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the epoch came to."""
        loader, weighting = trainer.train_dataloader, _weighting(trainer)
        if weighting is None or not isinstance(loader, Loader) or loader.tally is None or not self._trained:
            return  # the last: a run that was stopped before the epoch's first batch
        seconds = loader.elapsed - self._validated
        tally = loader.tally.summed(partial(_sum_over_ranks, trainer))
        asked = weighting.mass(loader.epoch)
        values = {
            "data/waiting_share": loader.waited / seconds,
            "data/cells_per_s": tally.n_draws / seconds,
            "data/repeated_share": tally.repeated_share,
            "data/effective_cells": tally.effective_cells,
            "data/share_error": float(np.abs(asked - tally.shares).sum() / 2),
        }
        if not trainer.barebones:
            pl_module.log_dict(values, sync_dist=trainer.world_size > 1, batch_size=1)
        if trainer.is_global_zero:
            logger.info(_line(loader.epoch, tally.n_draws, values))
            _append(self._folder / FILE, loader.epoch, weighting, asked, tally)
        self._begin()

    def _begin(self) -> None:
        self._trained, self._shown, self._validated = False, None, 0.0


def _weighting(trainer: Trainer) -> Weighting | None:
    weighting = getattr(trainer.datamodule, "weighting", None)  # type: ignore[attr-defined]
    return weighting if isinstance(weighting, Weighting) else None


def _sum_over_ranks(trainer: Trainer, array: NDArray[np.integer]) -> NDArray[np.integer]:
    if trainer.world_size == 1:
        return array
    # a copy, since it is reduced in place; on the device, since NCCL reduces nowhere else
    tensor = torch.tensor(array, device=trainer.strategy.root_device)
    total: NDArray[np.integer] = trainer.strategy.reduce(tensor, reduce_op="sum").cpu().numpy()
    return total


def _line(epoch: int, n_draws: int, values: dict[str, float]) -> str:
    return (
        f"epoch {epoch}: {n_draws:,} draws at {values['data/cells_per_s']:,.0f} cells/s, "
        f"{values['data/waiting_share']:.1%} of the time waiting for data; class shares within "
        f"{values['data/share_error']:.2%} of those asked for, {values['data/repeated_share']:.1%} repeated draws, "
        f"{values['data/effective_cells']:,.0f} effective cells"
    )


def _append(path: Path, epoch: int, weighting: Weighting, asked: NDArray[np.float64], tally: Tally) -> None:
    """Add a line for each class that was asked for or drawn, in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists():
        writer.writerow(COLUMNS)
    columns = (weighting.names_and_unknown, asked.tolist(), tally.shares.tolist(), tally.draws.tolist())
    for name, share, realised, draws in zip(*columns, strict=True):
        if share or draws:
            writer.writerow((epoch, name, share, realised, draws))
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())
