"""From what a user writes as ``data`` to sources: by the names that are registered for strings, paths and objects."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from inspect import getattr_static
from itertools import groupby
from operator import itemgetter
from os import PathLike
from pathlib import Path
from typing import Any

from scdataloader.protocols import HasPath, OpenOptions, SelectsCells, Source, SourceSelection, Where
from scdataloader.registry import load, names
from scdataloader.runtime.buckets import RemotePath, expand_url, is_remote, public_url
from scdataloader.runtime.faults import FAULTS, Faults
from scdataloader.runtime.files import is_url, local_path
from scdataloader.runtime.messages import message_of
from scdataloader.runtime.names import distinct_names
from scdataloader.sources.contract import check_source
from scdataloader.sources.where import select_cells

_GLOB_CHARACTERS = "*?["
_GROUP_IN_FILE = re.compile(r"(?<=\.h5mu)/|(?<=\.h5ad)/|(?<=\.h5)/|(?<=\.zip)/|$")
"""Separates the path of a file from the path of a group in it."""
_FILES = (".cells", ".h5ad", ".h5", ".h5mu")
"""Suffixes of URLs that are nothing else."""
_MEMBERS = ("name", "n_obs", "fingerprint", "var", "obs_columns", "obs", "read")
_SOURCE = "a Source"
"""Stands for the registered name of what is a source already."""


def open_sources(
    data: Any,
    options: OpenOptions | None = None,
    where: Where | None = None,
    faults: Faults | None = None,
) -> list[SourceSelection]:
    """Open all that ``data`` names, in order; the matches of a glob sorted.

    Args:
        data: A path, a glob, a string with a registered prefix ("lamindb:<key>"), an object of a registered type, a
            `Source`; or an iterable of these. A store, by its path, stands for all of its sources. Or {corpus: any of
            these}.
        options: Requirements on the values.
        where: Values that the cells must have: {column of obs: values}, for lamindb also {registry: labels}.
        faults: Takes the errors of single sources, in place of raising them.

    Raises:
        SourcesError: several sources have errors.
        FileNotFoundError: a path does not exist, or a glob matches nothing.
        LookupError: no cell has the values of ``where``, or there is no such registry or column.
        NotCountsError: a source has no counts.
        TypeError: something is none of these, or a plug-in returns what is not a source.
        ValueError: nothing is named, also for one corpus alone, no source is registered for a prefix, or ``where`` has
            two meanings.
    """
    gathered = Faults() if faults is None else faults
    if isinstance(data, Mapping) and not takes_type(type(data)):
        found = _open_corpora(data, options, where, gathered)
        if faults is None:
            gathered.check()
        tell_apart([selection.source for selection in found])
        return found
    runs = [
        (name, [address for _, address in run])
        for name, run in groupby(_named(data, names("source"), gathered), key=itemgetter(0))
    ]
    if not runs and not gathered.found:
        raise ValueError("no data: give at least one path, glob, lamindb key or source")
    openers: dict[str, Any] = {name: None if name is _SOURCE else load("source", name) for name, _ in runs}
    by_registry = where is not None and _selects(openers, where)
    found = []
    for name, addresses in runs:
        opener = _Opener(name, openers[name], options or OpenOptions(), where if by_registry else None)
        found += opener.open(addresses, gathered)
    if faults is None:
        gathered.check()
    tell_apart([selection.source for selection in found])
    return found if where is None or by_registry or not found else select_cells(found, where)


def _open_corpora(
    data: Mapping[Any, Any], options: OpenOptions | None, where: Where | None, faults: Faults
) -> list[SourceSelection]:
    """The sources of each corpus; corpora are not divided further."""
    found = []
    for corpus, named in data.items():
        if not isinstance(corpus, str) or not corpus or isinstance(named, Mapping):
            raise TypeError(
                f"data must map names of corpora to their data; got {corpus!r}: {type(named).__name__}; use, for "
                "example, {'census': 'census/*.h5ad', 'tahoe': ['plate1.h5ad', 'plate2.h5ad']}"
            )
        try:
            opened = open_sources(named, options, where, faults)
        except (LookupError, ValueError) as error:
            kind = LookupError if isinstance(error, LookupError) else ValueError
            raise kind(f"corpus {corpus!r}: {message_of(error)}") from error
        found += [replace(selection, corpus=corpus) for selection in opened]
    if not data:
        raise ValueError("no data: name at least one corpus")
    return found


def tell_apart(sources: Iterable[Source]) -> None:
    """Give each source that has a path a name that no other has, by as much of the path as needed."""
    stored = [source for source in {id(source): source for source in sources}.values() if isinstance(source, HasPath)]
    names = distinct_names([source.name for source in stored], [source.path for source in stored])
    for source, name in zip(stored, names, strict=True):
        if source.name != name:
            source.name = name


@dataclass(frozen=True, slots=True)
class _Opener:
    """Opens what is registered under a name."""

    name: str
    opener: Any
    """A `SourceOpener`; None if the addresses are sources."""
    options: OpenOptions
    where: Where | None
    """Labels to select cells by, if the opener is one that `SelectsCells`."""

    def open(self, addresses: Sequence[Any], faults: Faults) -> list[SourceSelection]:
        """What is at consecutive addresses; after an error each is opened separately, to find all errors."""
        try:
            return [_selection(opened, self.name) for opened in _iterable(self._opened(addresses), self.name)]
        except FAULTS as error:
            if len(addresses) == 1 or self.where is not None:
                faults.add(addresses[0], error)
                return []
        return [found for address in addresses for found in self.open([address], faults)]

    def _opened(self, addresses: Sequence[Any]) -> Any:
        if self.where is not None:
            return self.opener.select(addresses, self.options, self.where)
        return addresses if self.opener is None else self.opener(addresses, self.options)


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


def _named(data: Any, known: Sequence[str], faults: Faults) -> Iterator[tuple[str, Any]]:
    """Each thing that ``data`` names, after the one of the ``known`` registered names that stands for it."""
    if isinstance(data, SourceSelection) or not _missing(data):
        yield _SOURCE, data
    elif isinstance(data, str) and (name := _longest(name for name in _prefixes(known) if data.startswith(name))):
        yield name, data
    elif isinstance(data, str | PathLike):
        paths: list[Path] = []
        with faults.of(data):
            paths = expand(str(data))
        for path in paths:
            yield str(_longest(name for name in known if _names_path(name, path))), path
    elif name := _longest(name for name in known if _names_type(name, type(data))):
        yield name, data
    elif isinstance(data, Iterable) and not isinstance(data, Mapping) and not _is_table(data):
        for item in data:
            yield from _named(item, known, faults)
    else:
        raise TypeError(
            "data must be paths, globs, AnnData objects, 'lamindb:<key>', lamindb collections or artifacts, sources; "
            f"got {_described(data)}{_advice(data)}"
        )


def _is_table(data: object) -> bool:
    """Whether something is a table or a matrix, whose rows or columns are not data."""
    return len(getattr(data, "shape", ())) > 1


def _advice(data: Any) -> str:
    kind = type(data).__name__
    if kind == "MuData":  # it has a shape, as tables have
        return f"; use one of its modalities, such as [{next(iter(data.mod), 'rna')!r}]"
    if kind == "SpatialData":
        return "; give a table, as sdata['table']"
    return "; make an AnnData of it: anndata.AnnData(X, obs, var)" if _is_table(data) else ""


def _longest(found: Iterable[str]) -> str | None:
    return max(found, key=len, default=None)


def _prefixes(known: Sequence[str]) -> list[str]:
    """The registered names that are prefixes of strings, such as "lamindb:"."""
    return [name for name in known if name.endswith((":", "/"))]


def _names_path(name: str, path: Path) -> bool:
    """Whether a registered name is a pattern of a path's name ("*.cells") or of a file in it ("*/manifest.json").

    A URL with the suffix of a file or of a store is not searched for files.
    """
    if name.startswith("*/"):
        if isinstance(path, RemotePath) and path.suffix in _FILES:
            return False
        if not any(character in name[2:] for character in _GLOB_CHARACTERS):
            return (path / name[2:]).is_file()
        return path.is_dir() and next(path.glob(name[2:]), None) is not None
    return not name.startswith("type:") and "/" not in name and fnmatchcase(path.name, name)


def takes_type(kind: type) -> bool:
    """Whether a source is registered for objects of a class."""
    return any(_names_type(name, kind) for name in names("source"))


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
    """The path or URL, or the sorted ones that a glob matches; absolute only if ``path`` is.

    The path of a group in a file may follow: "*.h5mu/mod/rna".

    Raises:
        FileNotFoundError: nothing matches the glob.
        ValueError: it is a URL that no source is registered for.
    """
    if is_remote(path):
        return [*expand_url(path)]
    if is_url(path):
        raise ValueError(
            f"{public_url(path)} is not a path on this machine, and no source is registered for its prefix "
            f"(registered: {', '.join(_prefixes(names('source')))}); download or mount it and give the path of the "
            "copy, or register it in lamindb and give 'lamindb:<key>'"
        )
    found = local_path(path)
    if found.exists() or not any(character in str(found) for character in _GLOB_CHARACTERS):
        return [found]
    for pattern, inner in ((str(found), ""), _GROUP_IN_FILE.split(str(found), maxsplit=1)):
        matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (absolute ones too, refused by Path.glob)
        if matches:
            return [Path(match) / inner for match in matches]
    raise FileNotFoundError(f"no file matches {path!r} (working directory {Path.cwd()})")
