"""Names of sources that are stored at a path: as much of it as tells them apart; and patterns of such names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePath

CONTAINERS = (".h5mu", ".h5ad", ".h5", ".zarr", ".zip")
"""Suffixes of files and folders that can hold several sources."""


def name_of(path: PurePath) -> str:
    """The name of a file or folder; of a group in one, the path from there on: "a.h5mu/mod/rna"."""
    parts = path.parts
    start = next((i for i, part in enumerate(parts) if part.endswith(CONTAINERS)), len(parts) - 1)
    return "/".join(parts[start:])


def distinct_names(names: Sequence[str], paths: Sequence[PurePath]) -> list[str]:
    """Names of sources; equal ones are replaced by as much of the end of each path as no other has.

    Sources of equal names and paths are numbered from 1.
    """
    counts = Counter(names)
    tails = [_tails(path) if counts[name] > 1 else [] for name, path in zip(names, paths, strict=True)]
    shared = Counter(tail for own in tails for tail in own)
    found = []
    for name, own in zip(names, tails, strict=True):
        found.append(next((tail for tail in own if len(tail) > len(name) and shared[tail] == 1), name))
    counts, seen = Counter(found), Counter[str]()
    for i, name in enumerate(found):
        if counts[name] > 1:
            seen[name] += 1
            found[i] = f"{name} {seen[name]}"
    return found


def matches(pattern: str, name: str, path: PurePath | None = None) -> bool:
    """Whether a pattern is that of a source's name, of its file's name, or, if it has a "/", of the end of its path."""
    tails = [] if path is None else _tails(path)
    return any(fnmatchcase(text, pattern) for text in (name, *(tails if "/" in pattern else tails[:1])))


def _tails(path: PurePath) -> list[str]:
    """The ends of a path, from its last part to all of it."""
    return [PurePath(*path.parts[-n:]).as_posix() for n in range(1, len(path.parts) + 1)]
