"""The ontology of a label column: as it is named, or as the ids in the column say; several side by side."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scdataloader.ontology import Ontology
from scdataloader.ontology_backends import guide_name
from scdataloader.term_ids import prefix_of

logger = logging.getLogger(__name__)

N_SHOWN = 5
"""Labels that a message names at most."""


def opened(column: str, counts: Mapping[str, int], asked: Any) -> Ontology:
    """The ontology of a column.

    Args:
        column: its name, for messages.
        counts: {label: cells}.
        asked: an `Ontology`, the name or file of one, or a list of these; None for those that the labels are ids of.

    Raises:
        TypeError: what is asked for is nothing of the kind.
        ValueError: the list is empty, or what `of_ids`, `Ontology.from_guide`, `Ontology.from_obo` or `Ontology.union`
            refuse.
    """
    if asked is None:
        return of_ids(column, counts)
    several = asked if isinstance(asked, list | tuple) else [asked]
    if not several:
        raise ValueError(f"the hierarchy of {column!r} names no ontology: give at least one, or None to go by the ids")
    return Ontology.union([_named(column, one) for one in several])


def of_ids(column: str, counts: Mapping[str, int]) -> Ontology:
    """The ontologies of the guide that labels are ids of, side by side.

    Args:
        column: its name, for messages.
        counts: {label: cells}; all are ids, or all are names.

    Raises:
        ValueError: the labels are names, or ids of what the guide does not have.
    """
    labels: dict[str, list[str]] = {}
    for label in counts:
        labels.setdefault(prefix_of(label).lower(), []).append(label)
    if "" in labels:
        raise ValueError(
            f"the labels of {column!r} are names ({shown(counts)}), which do not say of which ontology: name it, as in "
            f"hierarchies={{{column!r}: 'CL'}}, or --hierarchies {column}=CL of inspect"
        )
    cells: Counter[str] = Counter()
    for some in labels.values():
        prefix = prefix_of(some[0])
        try:
            # two prefixes may be of one ontology
            cells[guide_name(prefix)] += sum(counts[label] for label in some)
        except ValueError as error:
            raise ValueError(
                f"labels of {column!r} are ids of {prefix} ({shown(some)}): {error.args[0]}, and name it as "
                f"hierarchies={{{column!r}: ...}}"
            ) from error
    if len(cells) > 1:
        each = ", ".join(f"{name} in {n:,} cell{'s' if n > 1 else ''}" for name, n in cells.most_common())
        logger.info("%s: terms of several ontologies, side by side: %s", column, each)
    return Ontology.union([Ontology.from_guide(name) for name in cells])


def shown(labels: Iterable[str]) -> str:
    """The first of some labels, for a message."""
    labels = list(labels)
    more = f" and {len(labels) - N_SHOWN:,} more" if len(labels) > N_SHOWN else ""
    return ", ".join(map(repr, labels[:N_SHOWN])) + more


def _named(column: str, asked: Any) -> Ontology:
    if isinstance(asked, Ontology):
        return asked
    if isinstance(asked, str | Path):
        text = str(asked)
        is_file = "://" in text or Path(text).suffix != "" or Path(text).is_file()
        return Ontology.from_obo(asked) if is_file else Ontology.from_guide(text)
    raise TypeError(f"the hierarchy of {column!r} must be an Ontology, the name of one, or a file, not {asked!r}")
