"""Exact resumption of a training run, in the cases that Lightning does not restore."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils._pytree import tree_leaves

from scdataloader.loading.loader import Loader
from scdataloader.training.checkpoint import STATE_KEY


class ExactResume(Callback):
    """Gives a resumed fit the batches of an uninterrupted one; `DataModule` adds it to its Trainer.

    Lightning saves and restores the position of a `Loader`. This callback corrects the cases in which it is wrong:

    - A batch that fails, or during which a hook saves a checkpoint, counts as seen and would be skipped. The position
      after the last trained batch is saved instead, of each `Loader` of a `CombinedLoader`.
    - An epoch that ``max_steps``, a time limit or ``should_stop`` ends early counts as complete, so that the rest of it
      would be skipped.
    - A checkpoint that is saved between two epochs with ``max_steps``, or in ``on_train_epoch_start``, would skip the
      next epoch.
    - A loader that is created early, as by ``trainer.estimated_stepping_batches``, would restart the epoch.
    - Between two epochs, changed data or weights would not be detected.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] = []
        self._between_epochs = False
        self._trained: list[tuple[int, int]] = []

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
        for state, (epoch, step) in zip(_loader_states(checkpoint), self._trained, strict=False):  # empty before a fit
            n_seen = min(step * state["global_batch_size"], state["num_samples"])
            state.update(epoch=epoch, samples_seen=n_seen)

    def on_load_checkpoint(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Keep the states of the loaders, and mark an incomplete epoch as the current one."""
        self._states, self._between_epochs = [], False
        if trainer.state.fn != TrainerFn.FITTING or trainer.ckpt_path is None:
            return  # without a path, the Tuner restores its own checkpoint, perhaps with another batch size
        fit = checkpoint["loops"]["fit_loop"]
        self._states = _loader_states(checkpoint)
        if self._states:
            over = fit["epoch_loop.batch_progress"]["is_last_batch"]
            _settle(fit["epoch_progress"]["total"], over=over)
            self._between_epochs = _settle(fit["epoch_progress"]["current"], over=over)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the states of the loaders; Lightning sets the epoch afterwards.

        Raises:
            StateMismatchError: the stream of a loader differs from that of the saved run.
        """
        for loader, state in zip(_loaders(trainer), self._states, strict=False):  # another kind of data has none
            loader.load_state_dict(state)
        if self._between_epochs:
            trainer.fit_loop.epoch_loop.restarting = False
        self._states, self._between_epochs = [], False
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Note where the loaders are."""
        self._trained = [loader.position for loader in _loaders(trainer)]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Note where the loaders are."""
        self.on_train_epoch_start(trainer, pl_module)


def _loaders(trainer: Trainer) -> list[Loader]:
    """The loaders that a fit trains on, those of a `CombinedLoader` in its order."""
    return [loader for loader in tree_leaves(trainer.train_dataloader) if isinstance(loader, Loader)]


def _loader_states(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """The saved states of the loaders of a fit, without those of other classes."""
    states = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
    return [state for state in states if "samples_seen" in state]


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
