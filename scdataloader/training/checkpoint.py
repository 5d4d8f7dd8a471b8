"""State of the data in checkpoints: label codes, genes, and which cells trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from scdataloader.errors import StateMismatchError

STATE_KEY = "scdataloader"
"""Key of the state in a checkpoint, whatever the class of the data is called."""
STATE_VERSION = 1


def read_state(checkpoint: str | PathLike[str]) -> dict[str, Any]:
    """The state of the data of the run that wrote a checkpoint.

    Raises:
        StateMismatchError: it has none.
    """
    path = Path(checkpoint)
    # A sharded checkpoint is a folder, with all but tensors in one file.
    path = path / "meta.pt" if path.is_dir() else path
    return find_state(torch.load(path, map_location="cpu", mmap=True, weights_only=False), str(checkpoint))


def find_state(checkpoint: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The state of the data in a loaded checkpoint, called ``name`` in messages.

    A checkpoint of weights alone has it only under the name of the class of its data, as Lightning writes it.

    Raises:
        StateMismatchError: it has none.
    """
    entries = [checkpoint.get(STATE_KEY), *checkpoint.values()]
    for entry in entries:
        if isinstance(entry, Mapping) and STATE_KEY in entry:
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
