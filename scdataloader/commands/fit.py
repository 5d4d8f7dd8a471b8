"""``fit``, ``validate``, ``test`` and ``predict``: Lightning's command line with a `DataModule`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console
from torch import distributed

from scdataloader import models  # noqa: F401 (imported models can be named without their path)
from scdataloader.collection.predictions import refuse_existing
from scdataloader.commands.usage import OneLineErrors, UsageError, gathered
from scdataloader.training.checkpoint import allow_harmless_types, load_checkpoint
from scdataloader.training.datamodule import DataModule
from scdataloader.training.predictions import NAME, PredictionWriter

logger = logging.getLogger(__name__)

_TRAINED = "--config config.yaml --ckpt_path lightning_logs/version_0/checkpoints/last.ckpt"
COMMANDS = {
    "fit": ("Train a model, and validate it along the way.", "fit --config config.yaml --data.batch_size 128"),
    "validate": ("Evaluate a trained model on the validation cells.", f"validate {_TRAINED}"),
    "test": ("Evaluate a trained model on the test cells.", f"test {_TRAINED}"),
    "predict": ("Apply a trained model to every cell.", f"predict {_TRAINED} --out predictions.parquet"),
}
"""{command: (purpose, example)}."""
_ORDER = ("data", "model", "", "trainer")
"""Prefixes of options in the order of the help; "" is those without one."""
_CONFIG_SUFFIXES = {".yaml", ".yml", ".json"}
FROM_DATA = {
    "n_genes": ("genes", len),
    "classes": ("classes", None),
    "decoders": ("decoders", None),
    "labels_hierarchy": ("labels_hierarchy", None),
}
"""{argument of a model: (property of the data, function of its value)}."""
FROM_TOKENS: dict[str, Callable[[Mapping[str, int]], int | None]] = {
    "n_tokens": lambda tokens: max(tokens.values()) + 1,
    "pad_token": lambda tokens: tokens.get("<pad>"),
}
"""{argument of a model: function of the data's tokens}; it keeps its own value if there are none."""
CHATTER = (
    "Starting from v1.9.0, `tensorboardX` has been removed",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "The number of training batches",
    "Total length of `list` across ranks is zero",  # the split has no validation cells
    "The dirpath has changed from",  # expected: a checkpoint of another run is loaded
    r"\s*(``ArgumentParser\.add_instantiator``|``instantiate_classes``|skip_none parameter) was deprecated",
    r"\s*By default only one JsonargparseDeprecationWarning",
)


class TrainingParser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser of options."""


class TrainingCLI(LightningCLI):
    """Command line to fit, validate, test or apply any `LightningModule` on a `DataModule`."""

    def __init__(self, args: Sequence[str]) -> None:
        """Parse and run a command.

        Args:
            args: The command, followed by its options.
        """
        set_parsing_settings(instantiate_subclass_spec_in_any=True)  # sources in data by class path
        short = {
            command: {
                "usage": _usage(command),
                "description": text,
                "epilog": f"Example: scdataloader {example}",
            }
            for command, (text, example) in COMMANDS.items()
        }
        with _without_chatter():
            super().__init__(
                LightningModule,
                DataModule,
                parser_class=TrainingParser,
                subclass_mode_model=True,
                save_config_kwargs={"overwrite": True},
                trainer_defaults={"log_every_n_steps": 10},
                parser_kwargs={"prog": "scdataloader", **short},
                seed_everything_default=0,
                args=list(args),
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer.

        Raises:
            ValueError: Lightning refuses its options.
        """
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise ValueError(f"trainer: {error}") from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set arguments of the model from the data, if the model has them; see `FROM_DATA` and `FROM_TOKENS`."""
        for argument, (source, compute) in FROM_DATA.items():
            target = f"model.init_args.{argument}"
            parser.link_arguments(f"data.{source}", target, compute_fn=compute, apply_on="instantiate")
        for argument in FROM_TOKENS:
            compute = partial(self._from_tokens, argument)
            parser.link_arguments("data.tokens", f"model.init_args.{argument}", compute, apply_on="instantiate")
        if parser.usage == _usage("predict"):
            text = f"Parquet file to write; default: {NAME} in the folder of the run's logs"
            parser.add_argument("--out", type=str | None, help=text)
        groups: Any = parser._action_groups  # noqa: SLF001 (argparse lists groups in the order of their creation)
        groups.sort(key=_place)

    def _from_tokens(self, argument: str, tokens: Mapping[str, int]) -> Any:
        if tokens:
            return FROM_TOKENS[argument](tokens)
        return self.config[self.subcommand].model.get("init_args", {}).get(argument)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse ``args``, without Lightning's warning if they differ from the arguments of the process.

        Raises:
            UsageError: an option is wrong.
            StateMismatchError: the checkpoint cannot be loaded.
        """
        for option, value in pairwise(args):
            if option == "--data" and not value.lstrip().startswith("{") and Path(value).suffix not in _CONFIG_SUFFIXES:
                raise UsageError(f"--data takes a YAML file of options; name data by --data.data {value}")
        allow_harmless_types()
        self.config = parser.parse_args(gathered(args, parser))
        trained = self.config[self.config.subcommand].get("ckpt_path")
        if trained is not None and Path(trained).exists():
            load_checkpoint(trained)  # Lightning loads it as well, but does not name the file

    def before_instantiate_classes(self) -> None:
        """Evaluate a trained model with the genes and label codes of its checkpoint.

        Raises:
            FileNotFoundError: the checkpoint does not exist.
            FileExistsError: the file of predictions exists.
        """
        options = self.config[self.subcommand]
        if self.subcommand == "predict":
            options.return_predictions = False  # they are written as they come
            if options.out is not None:
                refuse_existing(Path(options.out))
        trained = options.get("ckpt_path")
        if self.subcommand == "fit" or trained is None or trained in {"best", "last", "hpc", "registry"}:
            return
        if not Path(trained).is_file():
            raise FileNotFoundError(f"checkpoint {trained} does not exist (working directory: {Path.cwd()})")
        if options.data.checkpoint is None:
            options.data.checkpoint = trained

    def after_instantiate_classes(self) -> None:
        """Remove hyperparameters that are not arguments of the model.

        Lightning saves all values that come from the data, and a model without such an argument could not be loaded.
        """
        options = self.config[self.subcommand].model
        for argument in (*FROM_DATA, *FROM_TOKENS):
            if f"init_args.{argument}" not in options:
                self.model.hparams.pop(argument, None)

    def before_validate(self) -> None:
        """Check that there are validation cells."""
        _require(len(self.datamodule.splits.val_rows), "validation", "val")

    def before_test(self) -> None:
        """Check that there are test cells."""
        _require(len(self.datamodule.splits.test_rows), "test", "test")

    def after_fit(self) -> None:
        """Print the paths of the run and of its best checkpoint."""
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        folder = self.trainer.log_dir  # a collective operation: every rank must read it
        if self.trainer.is_global_zero:
            _print(f"written: {folder}", *([f"checkpoint: {best}"] if best else []))

    def before_predict(self) -> None:
        """Write the predictions to one file; see `PredictionWriter`."""
        options = self.config[self.subcommand]
        if options.get("ckpt_path") is None:
            logger.warning("no --ckpt_path: the model predicts with its initial weights")
        self._predictions = PredictionWriter(None if options.out is None else Path(options.out))
        self.trainer.callbacks.append(self._predictions)  # type: ignore[attr-defined]

    def after_predict(self) -> None:
        """Print the path of the predictions."""
        if self.trainer.is_global_zero:
            _print(f"written: {self._predictions.path}")


def _place(group: Any) -> int:
    """Place of a group of options in the help."""
    prefixes = {str(action.dest).partition(".")[0] for action in group._group_actions}  # noqa: SLF001 (as above)
    return next((place for place, prefix in enumerate(_ORDER) if prefix in prefixes), _ORDER.index(""))


def _usage(command: str) -> str:
    return f"scdataloader {command} --config FILE [OPTIONS]"


def fit(args: Sequence[str]) -> None:
    """Train a model."""
    _run("fit", args)


def validate(args: Sequence[str]) -> None:
    """Evaluate a model on the validation cells."""
    _run("validate", args)


def test(args: Sequence[str]) -> None:
    """Evaluate a model on the test cells."""
    _run("test", args)


def predict(args: Sequence[str]) -> None:
    """Apply a model to every cell."""
    _run("predict", args)


def _run(command: str, args: Sequence[str]) -> None:
    TrainingCLI([command, *args])
    # Lightning leaves the group open; if the interpreter ends first, the group's threads may abort the process
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Suppress Lightning's tips for other products, and warnings that users cannot act on."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(_is_not_tip)
    try:
        with warnings.catch_warnings():
            for message in CHATTER:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.removeFilter(_is_not_tip)


def _is_not_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


def _require(n_cells: int, kind: str, option: str) -> None:
    if not n_cells:
        raise ValueError(
            f"the split has no {kind} cells; set data.split.{option} to their share, the same as in training"
        )


def _print(*lines: str) -> None:
    Console(stderr=True, highlight=False).print(*lines, sep="\n", soft_wrap=True, markup=False)
