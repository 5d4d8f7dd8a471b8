"""What a file has besides its counts and tables: plain facts of ``uns`` go along, the rest is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scdataloader.curation.cells import FileSource
from scdataloader.schema import ORGANISM_KEYS
from scdataloader.sources.anndata.file import AnnDataFile
from scdataloader.sources.anndata.layout import Node, find_matrices, is_array, lookup

N_CHARACTERS = 10_000
"""Longer texts of ``uns`` are left out."""
_N_NAMED = 8

Fact = str | int | float | bool
"""What goes along."""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a file has besides its counts and tables."""

    uns: dict[str, Fact]
    """Its plain facts, for the output."""
    notes: tuple[str, ...]
    """What is left out, if anything is, in one line."""


def read_extras(source: FileSource) -> Extras:
    """Look through a file for what `Part` knows nothing of."""
    file = AnnDataFile(source.path)
    try:
        facts = _facts(lookup(file.root, "uns"))
        left_out = [_named(group, names) for group, names in _left_out(file.root, source.counts, facts)]
    finally:
        file.close()
    # the output's obs has the organism, which a rule may have put right
    uns = {key: fact for key, fact in facts.items() if key not in ORGANISM_KEYS}
    return Extras(uns=uns, notes=(f"left out: {', '.join(left_out)}",) if left_out else ())


def _facts(uns: Node | None) -> dict[str, Fact]:
    if uns is None or is_array(uns):
        return {}
    found = {key: _fact(uns[key]) for key in uns}
    return {key: fact for key, fact in found.items() if fact is not None}


def _fact(node: Node) -> Fact | None:
    """A text that is not too long, a number or a boolean; None for all else."""
    if not is_array(node) or node.shape != ():
        return None
    value = np.asarray(node[()]).item()
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:  # of an encoding that nobody knows
            return None
    if isinstance(value, str):
        return value if len(value) <= N_CHARACTERS else None
    return value if isinstance(value, bool | int | float) else None


def _left_out(root: Node, counts: str, facts: dict[str, Fact]) -> Iterator[tuple[str, Sequence[str]]]:
    """What the output will not have: parts of the file, each with the names of what is in it."""
    matrices = find_matrices(root)
    yield from ((key, ()) for key in ("X", "raw") if key in matrices and key != counts)
    taken = {"uns": {*facts, "curation"}, "layers": {counts.removeprefix("layers/")}}
    for group in ("layers", "obsp", "varm", "varp", "uns"):
        node = lookup(root, group)
        if node is not None:
            names = [] if is_array(node) else sorted(set(node) - taken.get(group, set()))
            if names or is_array(node):
                yield group, names


def _named(group: str, names: Sequence[str]) -> str:
    """A part of a file with some of the names in it."""
    more = [f"and {len(names) - _N_NAMED:,} more"] if len(names) > _N_NAMED else []
    return f"{group} ({', '.join([*names[:_N_NAMED], *more])})" if names else group
