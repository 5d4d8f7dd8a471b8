"""From what a user writes as ``data`` to sources: by the names that are registered for strings, paths and objects."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from inspect import getattr_static
from itertools import groupby
from operator import itemgetter
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from scdataloader.protocols import OpenOptions, SelectsCells, Source, SourceSelection, Where
from scdataloader.registry import load, names
from scdataloader.sources.contract import check_source
from scdataloader.sources.where import select_cells

_GLOB_CHARACTERS = "*?["
_MEMBERS = ("name", "n_obs", "fingerprint", "var", "obs_columns", "obs", "read")
_SOURCE = "a Source"
"""Stands for the registered name of what is a source already."""


def open_sources(data: Any, options: OpenOptions | None = None, where: Where | None = None) -> list[SourceSelection]:
    """Open all that ``data`` names, in order; the matches of a glob sorted.

    Args:
        data: A path, a glob, a string with a registered prefix ("lamindb:<key>"), an object of a registered type, a
            `Source`; or an iterable of these. A store, by its path, stands for all of its sources.
        options: Requirements on the values.
        where: Values that the cells must have: {registry: labels} for lamindb, {column of obs: values} for all else.

    Raises:
        FileNotFoundError: a path does not exist, or a glob matches nothing.
        LookupError: no cell has the values of ``where``, or there is no such registry or column.
        NotCountsError: a source has no counts.
        TypeError: something is none of these, or a plug-in returns what is not a source.
        ValueError: nothing is named, no source is registered for a prefix, or ``where`` has two meanings.
    """
    options = options or OpenOptions()
    runs = [
        (name, [address for _, address in run])
        for name, run in groupby(_named(data, names("source")), key=itemgetter(0))
    ]
    if not runs:
        raise ValueError("no data: give at least one path, glob, lamindb key or source")
    openers: dict[str, Any] = {name: None if name is _SOURCE else load("source", name) for name, _ in runs}
    by_registry = where is not None and _selects(openers, where)
    found: list[SourceSelection] = []
    for name, addresses in runs:
        opener = openers[name]
        if by_registry:
            opened = opener.select(addresses, options, where)
        else:
            opened = addresses if opener is None else opener(addresses, options)
        found += (_selection(one, name) for one in _iterable(opened, name))
    return found if where is None or by_registry else select_cells(found, where)


def _selects(openers: Mapping[str, Any], where: Where) -> bool:
    """Whether ``where`` is for the openers, which know registries, instead of for columns of obs."""
    selecting = [name for name, opener in openers.items() if isinstance(opener, SelectsCells)]
    if selecting and len(selecting) < len(openers):
        raise ValueError(
            f"where={dict(where)} names registries for data of lamindb, but columns of obs for other data, and data "
            "names both; open them by where one after the other, or remove where"
        )
    return bool(selecting)


def _iterable(opened: Any, name: str) -> Iterable[Source | SourceSelection]:
    if not isinstance(opened, Iterable):
        raise TypeError(f"the plug-in registered for {name!r} must return sources; got {_described(opened)}")
    return opened


def _named(data: Any, known: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Each thing that ``data`` names, after the one of the ``known`` registered names that stands for it."""
    if isinstance(data, SourceSelection) or not _missing(data):
        yield _SOURCE, data
    elif isinstance(data, str) and (name := _longest(name for name in _prefixes(known) if data.startswith(name))):
        yield name, data
    elif isinstance(data, str | PathLike):
        for path in expand(fspath(data)):
            yield str(_longest(name for name in known if _names_path(name, path))), path
    elif name := _longest(name for name in known if _names_type(name, type(data))):
        yield name, data
    elif isinstance(data, Iterable) and not isinstance(data, Mapping):
        for item in data:
            yield from _named(item, known)
    else:
        raise TypeError(
            "data must be paths, globs, 'lamindb:<key>', a lamindb collection or artifact, or sources; "
            f"got {_described(data)}"
        )


def _longest(found: Iterable[str]) -> str | None:
    return max(found, key=len, default=None)


def _prefixes(known: Sequence[str]) -> list[str]:
    """The registered names that are prefixes of strings, such as "lamindb:"."""
    return [name for name in known if name.endswith((":", "/"))]


def _names_path(name: str, path: Path) -> bool:
    """Whether a registered name is a pattern of a path's name ("*.cells") or of a file in it ("*/manifest.json")."""
    if name.startswith("*/"):
        return (path / name[2:]).is_file()
    return not name.startswith("type:") and "/" not in name and fnmatchcase(path.name, name)


def _names_type(name: str, kind: type) -> bool:
    """Whether a registered name is "type:" and a pattern of the full name of a class or of a class that it extends."""
    bases = (f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)
    return name.startswith("type:") and any(fnmatchcase(base, name.removeprefix("type:")) for base in bases)


def _selection(opened: object, name: str) -> SourceSelection:
    selection = opened if isinstance(opened, SourceSelection) else SourceSelection(source=opened)  # type: ignore[arg-type]
    if _missing(selection.source):
        raise TypeError(f"the plug-in registered for {name!r} must return sources; got {_described(selection.source)}")
    check_source(selection.source)
    return selection


def _missing(thing: object) -> list[str]:
    """The members of `Source` that a thing lacks.

    ``isinstance`` would evaluate them: gene tables and mapped files of thousands of sources do not fit into memory.
    """
    members = (member for member in _MEMBERS if getattr_static(thing, member, None) is None)
    return [member for member in members if not hasattr(thing, member)]


def _described(thing: object) -> str:
    """A type's name, and what it lacks if it looks like a source."""
    missing = _missing(thing)
    lacks = f", which lacks {', '.join(missing)} of a Source" if len(missing) < len(_MEMBERS) - 1 else ""
    return f"{type(thing).__name__}{lacks}"


def expand(path: str) -> list[Path]:
    """The path, or the sorted paths that a glob matches; absolute only if ``path`` is.

    Raises:
        FileNotFoundError: nothing matches the glob.
        ValueError: it is a URL that no source is registered for.
    """
    if "://" in path:
        raise ValueError(
            f"{path} is not a path on this machine, and no source is registered for its prefix (registered: "
            f"{', '.join(_prefixes(names('source')))}); download or mount it, and give the path of the copy"
        )
    path = str(Path(path).expanduser())
    if Path(path).exists() or not any(character in path for character in _GLOB_CHARACTERS):
        return [Path(path)]
    matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (of absolute paths too, which Path.glob refuses)
    if not matches:
        raise FileNotFoundError(f"no file matches {path!r} (working directory {Path.cwd()})")
    return [Path(match) for match in matches]
