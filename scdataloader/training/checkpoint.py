"""What a checkpoint keeps of the data of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from scdataloader.errors import StateMismatchError


def kept_of_data(checkpoint: str, name: str) -> dict[str, Any]:
    """What the checkpoint of an earlier run keeps under ``name``, the class of its data.

    Raises:
        ValueError: it keeps nothing there.
    """
    # As Lightning reads it; tensors stay on disk.
    kept = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=False)
    if name not in kept:
        raise ValueError(
            f"{checkpoint} keeps nothing of its data, expected an entry {name!r}: it is not from a run with a "
            "DataModule; give the vocabulary and the labels by themselves"
        )
    state: dict[str, Any] = kept[name]
    return state


def check_genes(kept: Mapping[str, Sequence[str]], genes: Mapping[str, Sequence[str]], name: str) -> None:
    """Refuse other genes than those of the checkpoint, both as {organism: gene ids}.

    Raises:
        StateMismatchError: they differ.
    """
    if kept != genes:
        raise StateMismatchError(
            f"the checkpoint was trained on {sum(map(len, kept.values())):,} genes, and this data "
            f"has {sum(map(len, genes.values())):,} others; give those as alignment.vocabulary (the checkpoint has "
            f'them under "{name}", "genes")'
        )
