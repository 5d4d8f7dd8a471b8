"""Going on where a checkpoint was saved, batch for batch, also where Lightning by itself would not."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from scdataloader.loading.loader import Loader
from scdataloader.training.checkpoint import STATE_KEY


class ExactResume(Callback):
    """Makes a resumed fit get the batches that it would have got uninterrupted; `DataModule` puts it into its Trainer.

    Lightning saves and restores where a `Loader` stands, but for these cases, which are put right here:

    - A batch that an error stopped, or during which a hook saves a checkpoint, counts as seen and would be left out.
    - An epoch that ``max_steps``, a time limit or ``should_stop`` broke off counts as done: its rest would be left out.
    - Between two epochs with ``max_steps``, or saved in ``on_train_epoch_start``, the next one would be left out.
    - Where the loader is wanted early, as by ``trainer.estimated_stepping_batches``, it would begin the epoch again.
    - Between two epochs, other data or other weights would go unnoticed.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None
        self._between_epochs = False

    @classmethod
    def join(cls, trainer: Trainer) -> None:
        """Put one in front of the Trainer's callbacks, unless it has one."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, cls) for callback in callbacks):
            callbacks.insert(0, cls())

    def on_save_checkpoint(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Store the state of the data under its own key, and leave out the batch that is not trained on yet."""
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
        """Keep the loader's state, and let the epoch that is begun and not over be the one that is under way."""
        self._state, self._between_epochs = None, False
        if trainer.state.fn != TrainerFn.FITTING or trainer.ckpt_path is None:
            return  # the second: the Tuner restores what it saved itself, with another batch size perhaps
        fit = checkpoint["loops"]["fit_loop"]
        self._state = _loader_state(fit)
        if self._state is not None:
            over = fit["epoch_loop.batch_progress"]["is_last_batch"]
            _settle(fit["epoch_progress"]["total"], over=over)
            self._between_epochs = _settle(fit["epoch_progress"]["current"], over=over)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Bring the loader to its state; Lightning names the epoch afterwards.

        Raises:
            StateMismatchError: the loader has another stream than the saved run.
        """
        if self._state is not None and isinstance(trainer.train_dataloader, Loader):
            trainer.train_dataloader.load_state_dict(self._state)
        if self._between_epochs:
            trainer.fit_loop.epoch_loop.restarting = False
        self._state, self._between_epochs = None, False


def _loader_state(fit_loop: dict[str, Any]) -> dict[str, Any] | None:
    """The saved state of the `Loader` that a fit trains on; None where it trains on something else."""
    states = fit_loop["state_dict"].get("combined_loader", [])
    return states[0] if len(states) == 1 and "samples_seen" in states[0] else None


def _settle(epochs: dict[str, int], *, over: bool) -> bool:
    """Correct Lightning's counts of epochs, so that just one that is under way is started and not processed.

    Args:
        epochs: How many are started, processed and completed.
        over: Whether the last batch that was trained on ended its epoch.

    Returns:
        Whether it stands between two epochs.
    """
    if not 0 < epochs["started"] == epochs["processed"]:
        return False
    if not over:
        epochs["processed"] -= 1
    epochs["completed"] = epochs["processed"]
    return over
