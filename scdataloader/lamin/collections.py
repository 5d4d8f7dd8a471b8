"""Open collections and artifacts of lamindb: keys, records and query sets to local paths, and to sources."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scdataloader.errors import SourceFormatError
from scdataloader.lamin.lineage import StoreMember, converted_from, is_store, origin
from scdataloader.lamin.session import quiet, translate_errors
from scdataloader.lamin.where import CellFilter, filter_artifacts, no_registry, split_where
from scdataloader.protocols import OpenOptions, Source, SourceSelection, Where
from scdataloader.runtime.messages import suggestion
from scdataloader.runtime.progress import spinner
from scdataloader.sources.locate import open_sources
from scdataloader.sources.where import select_cells

if TYPE_CHECKING:
    from lamindb import Artifact, Collection

PREFIX = "lamindb:"
SUFFIXES = (".h5ad", ".zarr", ".cells")
N_KEYS_SEARCHED = 100_000
"""Maximum number of keys that are searched for suggestions: some instances have millions of artifacts."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LaminFile:
    """The file of an artifact, on local disk."""

    path: Path
    """The artifact's own file or folder if it is local, otherwise lamindb's cached copy."""
    name: str
    """Key of the artifact, or its uid if it has none."""
    filters: tuple[CellFilter, ...] = ()
    """Filters that a selected cell passes all of; empty for all cells."""
    member: StoreMember | None = None
    """The selected source of a store; None for all other files."""


class LaminOpener:
    """Opens collections and artifacts of lamindb; registered for "lamindb:…" and for lamindb's own objects."""

    def __call__(self, addresses: Sequence[Any], options: OpenOptions) -> Iterator[SourceSelection]:
        """All cells of the artifacts.

        Raises:
            Exception: anything that `resolve_lamin` and `open_sources` raise.
        """
        for file in resolve_lamin(addresses[0] if len(addresses) == 1 else addresses):
            yield from open_sources(file.path, options)

    def select(self, addresses: Sequence[Any], options: OpenOptions, where: Where) -> Iterator[SourceSelection]:
        """The cells of the artifacts that have the labels of ``where``: of registries, or else of columns of obs.

        Raises:
            LookupError: no cell has them, or lamindb does not know which collection a store was converted from.
            ValueError: a store does not match its lineage in lamindb.
        """
        with quiet(), translate_errors():
            listed = _listed(addresses)
            labels, columns = split_where(where)
        found = list(self._with_labels(listed, options, labels) if labels else self([listed], options))
        for key in columns:
            if not any(key in selection.source.obs_columns for selection in found):
                raise LookupError(no_registry(key, {name for one in found for name in one.source.obs_columns}))
        yield from select_cells(found, columns) if columns else found

    def _with_labels(self, listed: list[Artifact], options: OpenOptions, where: Where) -> Iterator[SourceSelection]:
        files = resolve_lamin(listed, where)
        opened = {path: open_sources(path, options) for path in dict.fromkeys(file.path for file in files)}
        n_found = 0
        for file in files:
            sources = [selection.source for selection in opened[file.path]]
            selection = _select(file, sources[0] if file.member is None else file.member.find(sources, file.path))
            if selection is not None:
                n_found += 1
                yield selection
        if not n_found:
            raise LookupError(
                f"{len(files):,} artifacts are registered with {dict(where)}, but none of their cells has these labels"
            )


open_lamindb = LaminOpener()


def is_lamin(data: object) -> bool:
    """Whether `resolve_lamin` can open it: a ``lamindb:`` string, a lamindb record or query set; a list of these.

    Imports nothing: a lamindb object can only exist where lamindb is imported already.
    """
    if isinstance(data, str):
        return data.startswith(PREFIX)
    if isinstance(data, list | tuple):
        return len(data) > 0 and all(is_lamin(item) for item in data)
    return any(base.__module__.partition(".")[0] == "lamindb" for base in type(data).__mro__)


def resolve_lamin(data: str | Artifact | Collection | Iterable[Any], where: Where | None = None) -> list[LaminFile]:
    """Resolve lamindb data to local files, in order; remote artifacts are downloaded into lamindb's cache.

    A local instance with local artifacts needs no network. If ``ln.track()`` is on, the artifacts become inputs of the
    run.

    Args:
        data: ``"lamindb:<key>"`` (the newest version of the collection, or else of the artifact, with this key),
            ``"lamindb:<key>@<version>"``, an ``ln.Collection``, an ``ln.Artifact``, or a list or query set of these.
        where: {registry: labels} that cells must have; see `filter_artifacts`. A store stands for the artifacts that
            it was converted from.

    Raises:
        RuntimeError: no lamindb instance is connected, or its database does not answer.
        LookupError: no collection or artifact has this key and version, or ``data`` is empty; lamindb does not know
            which collection a store was converted from; or anything that `filter_artifacts` raises.
        SourceFormatError: an artifact is neither an AnnData stored as .h5ad or .zarr nor a store.
        FileNotFoundError: the file of an artifact does not exist.
        ConnectionError: a remote artifact cannot be downloaded.
        TypeError: ``data`` is of another type.
    """
    with quiet(), translate_errors():
        listed = _listed(data)
        if not listed:
            raise LookupError(f"{_describe(data)} contains no artifact; expected at least one AnnData (.h5ad or .zarr)")
        if where is None:
            pairs: list[tuple[Artifact, StoreMember | None]] = [(artifact, None) for artifact in listed]
        else:
            pairs = [pair for artifact in listed for pair in converted_from(artifact)]
        filters = filter_artifacts([artifact for artifact, _ in pairs], where or {})
        pairs = [(artifact, member) for artifact, member in pairs if artifact.pk in filters]
        places = [artifact if member is None else member.store for artifact, member in pairs]
        paths = _fetch({place.pk: place for place in places})
        return [
            LaminFile(path=paths[place.pk], name=_name(artifact), filters=filters[artifact.pk], member=member)
            for (artifact, member), place in zip(pairs, places, strict=True)
        ]


def find(key: str) -> Artifact | Collection:
    """The newest collection, or else artifact, of a key, or the version that ``@version`` after it names.

    Raises:
        LookupError: there is none; suggests the nearest keys, or lists the versions.
    """
    import lamindb as ln

    stem, _, version = key.rpartition("@")
    for registry in (ln.Collection, ln.Artifact):
        # the whole text first, because a key may contain an "@"
        newest = registry.filter(key=key, is_latest=True).order_by("-created_at")[:1]
        versions = registry.filter(key=stem).order_by("-created_at") if stem else ()
        record: Artifact | Collection
        for record in (*newest, *(record for record in versions if record.version == version)):
            return record
    raise LookupError(_unknown_key_message(key))


def origins(data: str | Iterable[Any]) -> list[str]:
    """For each registered store in the data, a line that states which version of which collection it holds."""
    import lamindb as ln

    lines = []
    with quiet(), translate_errors():
        for artifact in filter(is_store, _listed(data)):
            if (held := origin(artifact)) is not None:
                newest = ln.Collection.filter(key=held.key, is_latest=True).order_by("-created_at").first()
                is_newest = newest is None or newest.pk == held.pk
                age = "the newest version" if is_newest else f"the newest version is {newest.version}"
                held_name = f"{PREFIX}{held.key}@{held.version}"
                lines.append(f"{PREFIX}{artifact.key}@{artifact.version} holds {held_name}; {age}")
    return lines


def _select(file: LaminFile, source: Source) -> SourceSelection | None:
    if not file.filters:
        return SourceSelection(source=source)
    rows = np.flatnonzero(np.logical_and.reduce([cells.mask(source) for cells in file.filters]))
    if not len(rows):
        logger.warning("no cell of %s has all requested labels, though they are registered", file.name)
        return None
    return SourceSelection(source=source, rows=None if len(rows) == source.n_obs else rows)


def _listed(data: Any) -> list[Artifact]:
    from lamindb_setup.errors import CurrentInstanceNotConfigured

    try:
        return list(_artifacts(data))
    except CurrentInstanceNotConfigured as error:
        raise RuntimeError(
            f"{_describe(data)} needs a lamindb instance, and none is connected: run `scdataloader instance connect "
            "<name>`, or `lamin connect <owner>/<name>` (or `scdataloader instance init` for a new one), "
            "or give the paths of the files, which need no instance"
        ) from error


def _describe(data: object) -> str:
    return repr(data) if isinstance(data, str) else f"this {type(data).__name__}"


def _artifacts(data: Any) -> Iterable[Artifact]:
    import lamindb as ln

    if isinstance(data, str):
        yield from _artifacts(find(data.removeprefix(PREFIX)))
    elif isinstance(data, ln.Artifact):
        yield data
    elif isinstance(data, ln.Collection):
        if data.pk is None:
            raise LookupError(f"the lamindb collection {data.key!r} is not saved yet; call its save() first")
        yield from data.ordered_artifacts.all()
    elif isinstance(data, Iterable):
        for item in data:
            yield from _artifacts(item)
    else:
        raise TypeError(
            f"expected 'lamindb:<key>', an ln.Collection, an ln.Artifact, or a list or query set of these; "
            f"got {type(data).__name__}"
        )


def _unknown_key_message(key: str) -> str:
    import lamindb as ln

    instance = ln.setup.settings.instance.slug
    stem, _, version = key.rpartition("@")
    for registry in (ln.Collection, ln.Artifact):
        versions = [record.version for record in registry.filter(key=stem).order_by("created_at")] if stem else []
        if versions:
            return (
                f"{registry.__name__.lower()} {stem!r} of the lamindb instance {instance} has no version {version!r}, "
                f"only {', '.join(map(repr, versions))}; omit '@{version}' for the newest"
            )
    keys = [
        other
        for registry in (ln.Collection, ln.Artifact)
        for other in registry.filter(key__isnull=False).values_list("key", flat=True).distinct()[:N_KEYS_SEARCHED]
    ]
    return f"no collection or artifact of the lamindb instance {instance} has the key {key!r}; {suggestion(key, keys)}"


def _name(artifact: Artifact) -> str:
    return str(artifact.key or artifact.uid)


def _check_readable(artifact: Artifact) -> None:
    # a remote folder has no otype, and a store has neither that nor a suffix that lamindb knows
    ending = str(artifact.suffix or artifact.key)
    if artifact.otype not in ("AnnData", None) or not ending.endswith(SUFFIXES):
        raise SourceFormatError(
            f"lamindb artifact {_name(artifact)!r} is {artifact.otype or 'of unknown type'} with suffix "
            f"{artifact.suffix!r}; expected an AnnData stored as .h5ad or .zarr, or a store; remove it from the "
            "collection, or give a list of the artifacts to use"
        )


def _fetch(artifacts: dict[int, Artifact]) -> dict[int, Path]:
    """Local paths of artifacts, by primary key."""
    for artifact in artifacts.values():
        _check_readable(artifact)
    paths = {}
    for number, (key, artifact) in enumerate(artifacts.items(), 1):
        # not by artifact.path, because the path of a remote artifact needs the network
        is_remote = artifact.storage.type != "local"
        with spinner(f"fetching {_name(artifact)} ({number} of {len(artifacts)})") if is_remote else nullcontext():
            paths[key] = _local_path(artifact)
    return paths


def _local_path(artifact: Artifact) -> Path:
    import lamindb as ln
    from botocore.exceptions import BotoCoreError

    # without a run, lamindb would warn for each artifact that nothing is tracked
    is_run_input = None if ln.context.run is not None else False
    try:
        path = Path(str(artifact.cache(is_run_input=is_run_input, mute=True)))
        if path.exists():
            return path
    except FileNotFoundError:
        pass
    except (BotoCoreError, OSError) as error:
        raise ConnectionError(
            f"cannot download lamindb artifact {_name(artifact)!r} from {artifact.storage.root} ({error}); check the "
            "network and the credentials, or offline, copy the file here by other means and give its path"
        ) from error
    remedy = "restore the file, or delete the artifact and register it again"
    if is_store(artifact) and (held := origin(artifact)) is not None:
        remedy = (
            "move it back, or register it where it is now: "
            f"`scdataloader convert {PREFIX}{held.key}@{held.version} --out <where it is> --register`"
        )
    raise FileNotFoundError(f"the file of lamindb artifact {_name(artifact)!r} is not at {artifact.path}; {remedy}")
