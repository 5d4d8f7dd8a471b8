"""Exact resumption of a training run, in the cases that Lightning does not restore."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from scdataloader.loading.loader import Loader
from scdataloader.training.checkpoint import STATE_KEY


class ExactResume(Callback):
    """Gives a resumed fit the batches of an uninterrupted one; `DataModule` adds it to its Trainer.

    Lightning saves and restores the position of a `Loader`. This callback corrects the cases in which it is wrong:

    - A batch that fails, or during which a hook saves a checkpoint, counts as seen and would be skipped.
    - An epoch that ``max_steps``, a time limit or ``should_stop`` ends early counts as complete, so that the rest of it
      would be skipped.
    - A checkpoint that is saved between two epochs with ``max_steps``, or in ``on_train_epoch_start``, would skip the
      next epoch.
    - A loader that is created early, as by ``trainer.estimated_stepping_batches``, would restart the epoch.
    - Between two epochs, changed data or weights would not be detected.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None
        self._between_epochs = False

    @classmethod
    def join(cls, trainer: Trainer) -> None:
        """Insert one before the callbacks of the Trainer, unless it has one."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, cls) for callback in callbacks):
            callbacks.insert(0, cls())

    def on_save_checkpoint(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Store the state of the data under its own key, without counting a batch that is not trained on yet."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, LightningDataModule) and STATE_KEY in (state := data.state_dict()):
            checkpoint[STATE_KEY] = state
        fit = checkpoint["loops"]["fit_loop"]
        position = _loader_state(fit)
        if position is not None:
            n_trained = fit["epoch_loop.batch_progress"]["current"]["processed"]
            position["samples_seen"] = min(position["samples_seen"], n_trained * position["global_batch_size"])

    def on_load_checkpoint(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Keep the state of the loader, and mark an incomplete epoch as the current one."""
        self._state, self._between_epochs = None, False
        if trainer.state.fn != TrainerFn.FITTING or trainer.ckpt_path is None:
            return  # without a path, the Tuner restores its own checkpoint, perhaps with another batch size
        fit = checkpoint["loops"]["fit_loop"]
        self._state = _loader_state(fit)
        if self._state is not None:
            over = fit["epoch_loop.batch_progress"]["is_last_batch"]
            _settle(fit["epoch_progress"]["total"], over=over)
            self._between_epochs = _settle(fit["epoch_progress"]["current"], over=over)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Restore the state of the loader; Lightning sets the epoch afterwards.

        Raises:
            StateMismatchError: the stream of the loader differs from that of the saved run.
        """
        if self._state is not None and isinstance(trainer.train_dataloader, Loader):
            trainer.train_dataloader.load_state_dict(self._state)
        if self._between_epochs:
            trainer.fit_loop.epoch_loop.restarting = False
        self._state, self._between_epochs = None, False


def _loader_state(fit_loop: dict[str, Any]) -> dict[str, Any] | None:
    """The saved state of the `Loader` of a fit; None if it trains on anything else."""
    states = fit_loop["state_dict"].get("combined_loader", [])
    return states[0] if len(states) == 1 and "samples_seen" in states[0] else None


def _settle(epochs: dict[str, int], *, over: bool) -> bool:
    """Correct Lightning's counts of epochs, so that only an incomplete epoch is started and not processed.

    Args:
        epochs: Numbers of epochs that are started, processed and completed; modified in place.
        over: Whether the last trained batch was the last of its epoch.

    Returns:
        Whether the checkpoint is between two epochs.
    """
    if not 0 < epochs["started"] == epochs["processed"]:
        return False
    if not over:
        epochs["processed"] -= 1
    epochs["completed"] = epochs["processed"]
    return over
