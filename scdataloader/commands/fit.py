"""Lightning's command line, with our data: imported only by the commands that train."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console

from scdataloader import models  # noqa: F401 (a class that is imported can be named without its path)
from scdataloader.training.datamodule import DataModule

COMMANDS = ("fit", "validate", "test", "predict")
FROM_DATA = {
    "n_genes": ("genes", len),
    "classes": ("classes", None),
    "decoders": ("decoders", None),
    "labels_hierarchy": ("labels_hierarchy", None),
}
"""{argument of a model: which property of the data it is made from, and how}."""
CHATTER = (
    "Starting from v1.9.0, `tensorboardX` has been removed",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "The number of training batches",
    "Total length of `list` across ranks is zero",  # no validation cells were asked for
    "The dirpath has changed from",  # from that of the run that wrote a checkpoint, as it should
    r"\s*(``ArgumentParser\.add_instantiator``|``instantiate_classes``|skip_none parameter) was deprecated",
    r"\s*By default only one JsonargparseDeprecationWarning",
)


class TrainingCLI(LightningCLI):
    """``fit | validate | test | predict`` of any `LightningModule` on a `DataModule`."""

    def __init__(self, args: Sequence[str]) -> None:
        """Parse ``args``, the command first, and run it."""
        short = {command: {"usage": f"scdataloader {command} --config FILE [OPTIONS]"} for command in COMMANDS}
        with _without_chatter():
            super().__init__(
                LightningModule,
                DataModule,
                subclass_mode_model=True,
                save_config_kwargs={"overwrite": True},
                trainer_defaults={"log_every_n_steps": 10},
                parser_kwargs={"prog": "scdataloader", **short},
                seed_everything_default=0,
                args=list(args),
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Hand to a model what it asks for of the data; a model without such an argument is left alone."""
        for argument, (source, compute) in FROM_DATA.items():
            target = f"model.init_args.{argument}"
            parser.link_arguments(f"data.{source}", target, compute_fn=compute, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; Lightning's own method warns of arguments that are given besides those of the process."""
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        """Apply a trained model in its own genes and label codes, whatever the data has."""
        options = self.config[self.subcommand]
        trained = options.get("ckpt_path")
        if self.subcommand == "fit" or trained is None or trained in {"best", "last", "hpc", "registry"}:
            return
        if not Path(trained).is_file():
            raise FileNotFoundError(f"there is no checkpoint {trained} (working directory {Path.cwd()})")
        if options.data.checkpoint is None:
            options.data.checkpoint = trained

    def after_instantiate_classes(self) -> None:
        """Keep to what the model takes: Lightning saves as its arguments all that the data offered.

        From such a checkpoint a model that takes less could not be made again.
        """
        options = self.config[self.subcommand].model
        for argument in FROM_DATA:
            if f"init_args.{argument}" not in options:
                self.model.hparams.pop(argument, None)

    def before_validate(self) -> None:
        """Refuse to validate on nothing."""
        _require(len(self.datamodule.splits.val), "validation", "val")

    def before_test(self) -> None:
        """Refuse to test on nothing."""
        _require(len(self.datamodule.splits.test), "test", "test")

    def after_fit(self) -> None:
        """Say where the run lies."""
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        folder = self.trainer.log_dir  # every rank has to ask for it
        if self.trainer.is_global_zero:
            _say(f"written: {folder}", *([f"checkpoint: {best}"] if best else []))

    def after_predict(self) -> None:
        """Write what the model's ``predict_step`` gave, batches joined, as ``predictions.pt`` (one for each rank)."""
        predictions = self.trainer.predict_loop.predictions
        if not predictions:
            return
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        rank = f".{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        torch.save(_joined(predictions), folder / f"predictions{rank}.pt")
        _say(f"written: {folder / f'predictions{rank}.pt'}")


def fit(args: Sequence[str]) -> None:
    """Train a model."""
    TrainingCLI(["fit", *args])


def validate(args: Sequence[str]) -> None:
    """Evaluate a model on the validation cells."""
    TrainingCLI(["validate", *args])


def test(args: Sequence[str]) -> None:
    """Evaluate a model on the test cells."""
    TrainingCLI(["test", *args])


def predict(args: Sequence[str]) -> None:
    """Apply a model to every cell."""
    TrainingCLI(["predict", *args])


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Without what Lightning says of itself: tips for other products, and deprecations that are its own to mend."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(_is_no_tip)
    try:
        with warnings.catch_warnings():
            for message in CHATTER:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.removeFilter(_is_no_tip)


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


def _joined(batches: Sequence[Any]) -> Any:
    """Tensors of several batches as one, inside dictionaries; anything else as a list."""
    first = batches[0]
    if isinstance(first, torch.Tensor) and first.ndim:
        return torch.cat(list(batches))
    if isinstance(first, dict):
        return {key: _joined([batch[key] for batch in batches]) for key in first}
    return list(batches)


def _require(n_cells: int, kind: str, option: str) -> None:
    if not n_cells:
        raise ValueError(
            f"there are no {kind} cells: give the share of them as data.split.{option}, the same as in training"
        )


def _say(*lines: str) -> None:
    Console(stderr=True, highlight=False).print(*lines, sep="\n", soft_wrap=True, markup=False)
