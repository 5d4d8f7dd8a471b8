"""Width of token sequences."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

PadTo: TypeAlias = Literal["max_len", "longest"]
"""Width of batches: the maximum, which suits ``torch.compile``, since that compiles anew for each width; or the length
of the longest cell of each batch, as in most original code."""


def check_width(max_len: int, pad_to: PadTo, *, least: int = 1) -> None:
    """Refuse a maximum length below ``least``, and an unknown ``pad_to``.

    Raises:
        ValueError: one of them is such.
    """
    if max_len < least:
        raise ValueError(f"max_len must be {least} or more, not {max_len}")
    if pad_to not in get_args(PadTo):
        raise ValueError(f'pad_to must be "max_len" or "longest", not {pad_to!r}')
