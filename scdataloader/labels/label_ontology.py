"""The ontology of a label column: as it is named, or as the ids in the column say; several side by side."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scdataloader.ontology.names import prefix_of
from scdataloader.ontology.ontology import Ontology
from scdataloader.ontology.readers import guide_name

N_SHOWN = 5
"""Labels that a message names at most."""


def opened(column: str, labels: Iterable[str], asked: Any) -> Ontology:
    """The ontology of a column.

    Args:
        column: its name, for messages.
        labels: what occurs in it.
        asked: an `Ontology`, the name or file of one, or a list of these; None for those that the labels are ids of.

    Raises:
        TypeError: what is asked for is nothing of the kind.
        ValueError: the list is empty, or what `of_ids`, `Ontology.from_guide`, `Ontology.from_obo` or `Ontology.union`
            refuse.
    """
    if asked is None:
        return of_ids(column, labels)
    several = asked if isinstance(asked, list | tuple) else [asked]
    if not several:
        raise ValueError(f"the hierarchy of {column!r} names no ontology: give at least one, or None to go by the ids")
    return Ontology.union([_opened(column, one) for one in several])


def of_ids(column: str, labels: Iterable[str]) -> Ontology:
    """The ontologies of the guide that labels are ids of, side by side.

    Args:
        column: its name, for messages.
        labels: all are ids, or all are names.

    Raises:
        ValueError: the labels are names, or ids of what the guide does not have.
    """
    by_prefix: dict[str, list[str]] = {}
    for label in labels:
        by_prefix.setdefault(prefix_of(label).lower(), []).append(label)
    if names := by_prefix.get(""):
        raise ValueError(
            f"the labels of {column!r} are names ({shown(names)}), which do not say of which ontology: name it, as in "
            f"hierarchies={{{column!r}: 'CL'}}, or --hierarchies {column}=CL of inspect"
        )
    # two prefixes may be of one ontology
    guides = {_guide(column, ids) for ids in by_prefix.values()}
    return Ontology.union([Ontology.from_guide(name) for name in sorted(guides)])


def shown(labels: Iterable[str]) -> str:
    """The first of some labels, for a message."""
    labels = list(labels)
    more = f" and {len(labels) - N_SHOWN:,} more" if len(labels) > N_SHOWN else ""
    return ", ".join(map(repr, labels[:N_SHOWN])) + more


def _opened(column: str, asked: Any) -> Ontology:
    if isinstance(asked, Ontology):
        return asked
    if isinstance(asked, str | Path):
        text = str(asked)
        is_file = "://" in text or Path(text).suffix != "" or Path(text).is_file()
        return Ontology.from_obo(asked) if is_file else Ontology.from_guide(text)
    raise TypeError(f"the hierarchy of {column!r} must be an Ontology, the name of one, or a file, not {asked!r}")


def _guide(column: str, ids: list[str]) -> str:
    """What the guide calls the ontology of some ids of one prefix."""
    prefix = prefix_of(ids[0])
    try:
        return guide_name(prefix)
    except ValueError as error:
        raise ValueError(
            f"labels of {column!r} are ids of {prefix} ({shown(ids)}): {error.args[0]}, and name it as "
            f"hierarchies={{{column!r}: ...}}"
        ) from error
