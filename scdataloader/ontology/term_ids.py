"""Ids of terms as text, and joint labels, which name several terms at once.

The CELLxGENE schema writes a joint label in order and without repetition, as ``MONDO:0004604 || MONDO:0043004``; before
its version 6.0 it had commas between the ids, as ``HANCESTRO:0005,HANCESTRO:0014``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_ID = re.compile(r"(?P<prefix>[A-Za-z]\w*?)(?::\w+|_\d{4,})")
_BETWEEN = "||"


def prefix_of(text: str) -> str:
    """The prefix of a text that has the form of an id, as it is written; empty for names."""
    match = _ID.fullmatch(text.strip())
    return match["prefix"] if match else ""


def terms_in(label: str) -> list[str]:
    """What a label names, as it is written there: the ids or names in a joint label, and the one of any other.

    Commas stand between terms only where all of these are ids, for names have commas themselves.
    """
    found: list[str] = []
    for part in label.split(_BETWEEN):
        ids = part.split(",")
        found += ids if all(map(prefix_of, ids)) else [part]
    return [term.strip() for term in found]


def is_joint(label: str) -> bool:
    """Whether a label names several terms."""
    return len(terms_in(label)) > 1


def joint_label(terms: Iterable[str]) -> str:
    """The label that names all of ``terms``, in the schema's form; of one term, that term."""
    return f" {_BETWEEN} ".join(sorted(set(terms)))
