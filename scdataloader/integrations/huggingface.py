"""Trainer of Hugging Face transformers on the cells of a `DataModule`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from scdataloader.errors import StateMismatchError
from scdataloader.integrations.versions import warn_untested
from scdataloader.loading.loader import Loader
from scdataloader.training.checkpoint import STATE_KEY, find_state, load_checkpoint
from scdataloader.training.datamodule import DataModule

__all__ = ["Evaluation", "TrainsOnCells"]

STATE_FILE = "scdataloader.ckpt"
"""File of a saved model with the label codes, genes and split of its data, and the position in the stream."""
_LOADER_KEY = "loader"
_NO_TARGET = -100
"""Code of labels that losses of transformers leave out."""


class TrainsOnCells:
    """A Trainer on the cells of a `DataModule`: `CellTrainer` is this and `transformers.Trainer`.

    To combine it with another subclass of the Trainer, name it first: ``class Mine(TrainsOnCells, Seq2SeqTrainer)``.

    - Training resumes at the next batch of an uninterrupted run, without reading those before. Checkpoints, and folders
      of ``save_model``, have a file ``scdataloader.ckpt`` with the label codes, the genes and the split of the data.
      Resuming with other data, another seed or another global batch size is refused, and
      ``DataModule(checkpoint=".../scdataloader.ckpt")`` reads other cells for the model.
    - Where the Trainer takes a data set, it takes a `DataModule` or a `Loader`. Of a `DataModule`, ``evaluate`` has the
      cells of validation, and ``predict`` every cell, in order.
    - The model gets the keys of a batch that its ``forward`` names, or all of them with
      ``remove_unused_columns=False``; sparse tensors are made dense on its device. Codes of one label column are
      ``labels`` (B,), with -100 in place of -1.
    - The batch size is that of the `DataModule`; ``per_device_train_batch_size`` has no effect. On several ranks,
      predictions leave out the rows that are repeated to fill the last batch.

    Args:
        args: Arguments of the Trainer, without ``train_dataset``.
        datamodule: The cells.
        eval_dataset: What ``evaluate`` runs on, one or by name; None for the cells of validation.
        kwargs: Arguments of the Trainer.
    """

    args: Any
    model: Any
    eval_dataset: Any

    def __init__(self, *args: Any, datamodule: DataModule, eval_dataset: Any = None, **kwargs: Any) -> None:
        warn_untested("transformers", "4.57", "5.24")
        self.datamodule = datamodule
        self._training: Loader | None = None
        self._resumed: Mapping[str, Any] | None = None
        trainer: Any = super()
        trainer.__init__(*args, eval_dataset=datamodule if eval_dataset is None else eval_dataset, **kwargs)
        # the number of examples and the speed in the Trainer's log are computed from these
        self.args.per_device_train_batch_size = self.args.per_device_eval_batch_size = datamodule.batch_size
        self._train_batch_size = self.args.train_batch_size

    def train(self, resume_from_checkpoint: str | Literal[True] | None = None, **kwargs: Any) -> Any:
        """Train, from the start or from a checkpoint; see `transformers.Trainer.train`.

        Raises:
            FileNotFoundError: the output folder has no checkpoint.
            StateMismatchError: the checkpoint is not one of this class, or of other data; see `Loader.load_state_dict`.
        """
        from transformers.trainer_utils import get_last_checkpoint

        folder = resume_from_checkpoint or None
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
            if folder is None:
                raise FileNotFoundError(f"{self.args.output_dir} has no checkpoint to resume from; train without one")
        self._resumed = None if folder is None else _read_state(folder)
        if self._resumed is not None:
            self.datamodule.load_state_dict(find_state(self._resumed, f"{folder}/{STATE_FILE}"))
        trainer: Any = super()
        try:
            return trainer.train(resume_from_checkpoint=folder, **kwargs)
        finally:
            self.datamodule.teardown("fit")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:  # noqa: FBT001, FBT002
        """Save the model with the state of its data; see `transformers.Trainer.save_model`."""
        trainer: Any = super()
        trainer.save_model(output_dir, _internal_call)
        if self.args.should_save:
            loader = self._training or self.datamodule.train_dataloader()
            state = {STATE_KEY: self.datamodule.state_dict(), _LOADER_KEY: loader.state_dict()}
            torch.save(state, Path(output_dir or self.args.output_dir) / STATE_FILE)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of the training cells; the Trainer leaves out those of the epoch that are before a checkpoint."""
        self.datamodule.setup("fit")
        self._training = self.datamodule.train_dataloader()
        if self._resumed is not None:
            saved = self.datamodule.train_dataloader()
            saved.load_state_dict(self._resumed[_LOADER_KEY])
            self._training.set_epoch(saved.epoch)  # transformers 5.0 does not, if it leaves out batches
        return self._batches(self._training)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Evaluation:
        """Batches of the cells of validation, or of what is given: a name, a `DataModule` or a `Loader`."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        data = self.eval_dataset[data] if isinstance(data, str) else data
        return self._evaluation(data.val_dataloader() if isinstance(data, DataModule) else data)

    def get_test_dataloader(self, test_dataset: Any) -> Evaluation:
        """Batches of every cell of a `DataModule`, or those of a `Loader`."""
        is_module = isinstance(test_dataset, DataModule)
        return self._evaluation(test_dataset.predict_dataloader() if is_module else test_dataset)

    def _evaluation(self, loader: Any) -> Evaluation:
        if loader == []:
            raise ValueError(
                "the DataModule has no cells of validation; set split=scd.Split(val=0.1), or another share"
            )
        if not isinstance(loader, Loader):
            raise TypeError(f"a CellTrainer takes a DataModule or one of its loaders, not {type(loader).__name__}")
        return Evaluation(self._batches(loader), loader.state_dict())

    def _batches(self, loader: Loader) -> DataLoader[Any]:
        """The batches of a loader, with the keys and labels that the model takes."""
        batches = loader.as_torch()
        collate: Any = batches.collate_fn
        batches.collate_fn = lambda drawn: self._selected(collate(drawn))
        return batches

    def _selected(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        named = dict(batch)
        if "cell_labels" not in batch and "labels" in batch:
            named["labels"] = _labels(batch["labels"])
        if self.args.remove_unused_columns:
            trainer: Any = self
            trainer._set_signature_columns_if_needed()  # noqa: SLF001 (which also looks into adapters of peft)
            named = {key: value for key, value in named.items() if key in trainer._signature_columns}  # noqa: SLF001
            if not named:
                raise ValueError(
                    f"forward of {type(self.model).__name__} names none of the keys of a batch, {', '.join(batch)}; "
                    "name those that it takes, or set remove_unused_columns=False to get all as keywords"
                )
        return {key: value for key, value in named.items() if value is not None}

    def _prepare_inputs(self, inputs: Any) -> Any:
        """The inputs on the model's device, without sparse tensors."""
        trainer: Any = super()
        return self.datamodule.on_after_batch_transfer(trainer._prepare_inputs(inputs), 0)  # noqa: SLF001 (of its base)


class Evaluation:
    """Batches of an evaluation that Accelerate knows, so that it leaves out rows repeated to fill the last one."""

    def __init__(self, batches: DataLoader[Any], state: Mapping[str, Any]) -> None:
        """Take the batches, and the state of their loader."""
        self._batches = batches
        self.dataset = range(state["num_samples"])
        self.remainder = state["num_samples"] % state["global_batch_size"]
        self.end_of_dataloader = False

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        """The batches, each of which is the last or not while the caller has it."""
        from accelerate.state import GradientState

        running: Any = GradientState()
        running._add_dataloader(self)  # noqa: SLF001 (as Accelerate's own loaders do)
        try:
            for number, batch in enumerate(self._batches, 1):
                self.end_of_dataloader = number == len(self)
                yield batch
        finally:
            running._remove_dataloader(self)  # noqa: SLF001


def _labels(codes: torch.Tensor) -> torch.Tensor | None:
    """(B,) or (B, C) codes as losses of transformers take them; None without label columns."""
    if not codes.shape[1]:
        return None
    codes = codes.masked_fill(codes < 0, _NO_TARGET)
    return codes[:, 0] if codes.shape[1] == 1 else codes


def _read_state(folder: str | os.PathLike[str]) -> Mapping[str, Any]:
    try:
        state: Mapping[str, Any] = load_checkpoint(Path(folder) / STATE_FILE)
    except FileNotFoundError:
        raise StateMismatchError(
            f"{folder} has no {STATE_FILE}, which a CellTrainer writes; its run cannot be continued exactly: start a "
            "new one from its weights, with from_pretrained()"
        ) from None
    return state


def __getattr__(name: str) -> Any:
    """`CellTrainer`, made at its first use: this module is imported without transformers."""
    if name != "CellTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from transformers import Trainer

    made = type(name, (TrainsOnCells, Trainer), {"__module__": __name__, "__doc__": TrainsOnCells.__doc__})
    globals()[name] = made
    return made
