"""From what a user writes to the sources it names: paths, globs, lamindb keys, sources."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from scdataloader.errors import NotCountsError
from scdataloader.lamin.collections import LaminPath, is_lamin, key_of, resolve_lamin
from scdataloader.lamin.where import Where
from scdataloader.protocols import Source, SourceSelection
from scdataloader.sources import open_source
from scdataloader.sources.anndata.counts import Values
from scdataloader.store.manifest import MANIFEST, SUFFIX
from scdataloader.store.reader import Store, StoreSource

_GLOB_CHARACTERS = "*?["

logger = logging.getLogger(__name__)


def choose_cells(
    data: Any, where: Where | None, *, counts: str = "auto", values: Values = "counts"
) -> list[SourceSelection]:
    """The sources that ``data`` names (see `open_sources`), with those of their cells that have what is asked for.

    Args:
        data: As in `open_sources`; with ``where``, of lamindb only.
        where: {registry: labels}, as in `Collection.open`; None for all cells.
        counts: See `open_source`.
        values: See `open_source`.

    Raises:
        LookupError: no cell has what is asked for, or lamindb does not say what a store was made of.
        ValueError: labels are asked for of data that do not lie in lamindb, or a store is not what lamindb says.
        Exception: all that `open_sources` raises.
    """
    if where is None:
        return [SourceSelection(source=source) for source in open_sources(data, counts=counts, values=values)]
    picked = list(_pick(data, where))
    paths = dict.fromkeys(item.path for item in picked if item.member is not None)
    stores = {path: _of_store(path, values) for path in paths}
    found = []
    for item in picked:
        if item.member is None:
            source: Source = open_source(item.path, counts=counts, values=values)
        else:
            source = item.member.of(stores[item.path], item.path)
        found.append(_with_rows(item, source))
    with_cells = [chosen for chosen in found if chosen is not None]
    if not with_cells:
        raise LookupError(
            f"{len(picked):,} artifacts are registered as having {dict(where)}, and none of their cells has it"
        )
    return with_cells


def _pick(data: Any, where: Where) -> Iterable[LaminPath]:
    if is_lamin(data):
        yield from resolve_lamin(data, where)
    elif isinstance(data, Iterable) and not isinstance(data, str | PathLike | Source | Mapping):
        for item in data:
            yield from _pick(item, where)
    else:
        key = key_of(fspath(data)) if isinstance(data, str | PathLike) else None
        raise ValueError(
            f"where={dict(where)} chooses by registries of lamindb, in which {data!r} is not looked up: name data as "
            f"{key or 'lamindb:<key>'!r}, or leave where out"
        )


def _with_rows(found: LaminPath, source: Source) -> SourceSelection | None:
    if not found.having:
        return SourceSelection(source=source)
    rows = np.flatnonzero(np.logical_and.reduce([having.of(source) for having in found.having]))
    if not len(rows):
        logger.warning("no cell of %s has all that is asked for, though its labels are registered", found.name)
        return None
    return SourceSelection(source=source, rows=None if len(rows) == source.n_obs else rows)


def open_sources(data: Any, *, counts: str = "auto", values: Values = "counts") -> list[Source]:
    """Open all that ``data`` names, in order; a glob's matches sorted.

    Args:
        data: A path, a glob, "lamindb:<key>", a lamindb collection or artifact, a `Source`; or an iterable of these. A
            store, by its path, stands for all of its sources.
        counts: Which matrix holds the counts; see `open_source`. A store has only one.
        values: Whether values must be counts; see `open_source`.

    Raises:
        FileNotFoundError: a path does not exist, or a glob matches nothing.
        NotCountsError: values must be counts, and a store has others.
        TypeError: something that is none of these.
        ValueError: nothing is named.
    """
    sources: list[Source] = []
    for item in _locate(data):
        if isinstance(item, Source):
            sources.append(item)
        elif item.suffix == SUFFIX or (item / MANIFEST).is_file():
            sources += _of_store(item, values)
        else:
            sources.append(open_source(item, counts=counts, values=values))
    if not sources:
        raise ValueError("no data: give at least one path, glob, lamindb key or source")
    return sources


def _of_store(path: Path, values: Values) -> list[StoreSource]:
    sources = Store.open(path).sources
    other = [source.name for source in sources if source.counts != "counts"]
    if values == "counts" and other:
        raise NotCountsError(
            f"{path} was made of values that need not be counts ({other[0]}): pass values='any' to read them as they "
            "are, or convert the sources again"
        )
    return sources


def _locate(data: Any) -> Iterable[Path | Source]:
    if is_lamin(data):
        yield from (found.path for found in resolve_lamin(data))
    elif isinstance(data, Source):
        yield data
    elif isinstance(data, str | PathLike):
        yield from expand(fspath(data))
    elif isinstance(data, Iterable):
        for item in data:
            yield from _locate(item)
    else:
        raise TypeError(
            "data must be paths, globs, 'lamindb:<key>', a lamindb collection or artifact, or sources; "
            f"not {type(data).__name__}"
        )


def expand(path: str) -> list[Path]:
    """The path, or the sorted paths that a glob matches, absolute only if it is.

    Raises:
        FileNotFoundError: nothing matches the glob.
    """
    path = str(Path(path).expanduser())
    if Path(path).exists() or not any(character in path for character in _GLOB_CHARACTERS):
        return [Path(path)]
    matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (of absolute paths too, which Path.glob refuses)
    if not matches:
        raise FileNotFoundError(f"no file matches {path!r} (working directory {Path.cwd()})")
    return [Path(match) for match in matches]
