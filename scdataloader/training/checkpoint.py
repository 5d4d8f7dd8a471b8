"""State of the data in checkpoints: label codes, genes, and which cells trained."""

from __future__ import annotations

import pathlib
import pickle
from argparse import Namespace
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scdataloader.errors import StateMismatchError
from scdataloader.runtime.messages import shown

STATE_KEY = "scdataloader"
"""Key of the state in a checkpoint, whatever the class of the data is called."""
STATE_VERSION = 1

_NUMPY: dict[str, Any] = {"scalar": np.float64().__reduce__()[0], "_reconstruct": np.empty(0).__reduce__()[0]}
_HARMLESS: list[Any] = [
    *(pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath, Namespace),
    *(np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdSU"}),
    *((make, f"numpy.{core}.multiarray.{name}") for name, make in _NUMPY.items() for core in ("core", "_core")),
]
"""Types that hyperparameters often have and that PyTorch does not allow in a checkpoint; making one runs no code."""


def read_state(checkpoint: str | PathLike[str]) -> dict[str, Any]:
    """The state of the data of the run that wrote a checkpoint. No code in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        StateMismatchError: the file has no state of the data; or see `load_checkpoint`.
    """
    return find_state(load_checkpoint(checkpoint), str(checkpoint))


def load_checkpoint(checkpoint: str | PathLike[str]) -> Any:
    """The content of a checkpoint, with tensors mapped from the file. No code in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        StateMismatchError: the file is not a checkpoint, or holds objects whose creation would run code.
    """
    path = Path(checkpoint)
    # A sharded checkpoint is a folder, with all but tensors in one file.
    path = path / "meta.pt" if path.is_dir() else path
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, LookupError, TypeError) as error:
        raise StateMismatchError(_why_not_loaded(path, error)) from error


def allow_harmless_types() -> None:
    """Let PyTorch, and so Lightning, load the types of hyperparameters that `load_checkpoint` accepts."""
    torch.serialization.add_safe_globals(_HARMLESS)


def _why_not_loaded(path: Path, error: Exception) -> str:
    unknown: list[str] = []
    if isinstance(error, pickle.UnpicklingError):
        with torch.serialization.safe_globals(_HARMLESS):
            unknown = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    if not unknown:
        why, *_ = str(error).splitlines()[0].split(". ")
        return f"{path} is not a checkpoint that PyTorch can read, or damaged: {why}"
    return (
        f"{path} holds objects that only code in the file can make ({shown(unknown)}), which is not run; if you trust "
        "the file, allow their classes with torch.serialization.add_safe_globals([...]), or save the run with plain "
        "hyperparameters"
    )


def find_state(checkpoint: Any, name: str) -> dict[str, Any]:
    """The state of the data in a loaded checkpoint, called ``name`` in messages.

    A checkpoint of weights alone has it only under the name of the class of its data, as Lightning writes it.

    Raises:
        StateMismatchError: it has none, or one of another release.
    """
    entries = [checkpoint.get(STATE_KEY), *checkpoint.values()] if isinstance(checkpoint, Mapping) else []
    for entry in entries:
        if isinstance(entry, Mapping) and STATE_KEY in entry:
            if entry[STATE_KEY] != STATE_VERSION:
                raise StateMismatchError(
                    f"{name} has a state of the data of version {entry[STATE_KEY]!r}, this release reads version "
                    f"{STATE_VERSION}; use the release that saved it"
                )
            return dict(entry)
    raise StateMismatchError(
        f"{name} has no entry {STATE_KEY!r}, expected the label codes and genes of a run with a DataModule; "
        "give the vocabulary and the encoders of the model to a DataModule without a checkpoint"
    )


def check_genes(saved: Mapping[str, Sequence[str]], genes: Mapping[str, Sequence[str]]) -> None:
    """See that the genes, as {organism: gene ids}, are those of the checkpoint.

    Raises:
        StateMismatchError: they differ.
    """
    if saved != genes:
        raise StateMismatchError(
            f"the checkpoint was trained on {sum(map(len, saved.values())):,} genes, this data has "
            f"{sum(map(len, genes.values())):,} others; give checkpoint= to the DataModule to align the data to them, "
            f'or give them as alignment.vocabulary (in the checkpoint under "{STATE_KEY}", "genes")'
        )


def saved_medians(state: Mapping[str, Any]) -> dict[str, float]:
    """The medians of genes over the training cells of a run.

    Raises:
        StateMismatchError: the run did not compute them.
    """
    if "medians" not in state:
        raise StateMismatchError(
            "the checkpoint has no medians of genes, since its run was given them; give the same ones to the collate "
            "function"
        )
    return dict(state["medians"])
