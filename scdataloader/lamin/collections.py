"""Files behind a lamindb collection: keys, records and query sets to local paths."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scdataloader.errors import SourceFormatError
from scdataloader.lamin.lineage import Labelled, Member, is_store, labelled, origin
from scdataloader.lamin.session import quiet, told
from scdataloader.lamin.where import Having, chosen
from scdataloader.protocols import OpenOptions, Source, SourceSelection, Where
from scdataloader.sources.locate import open_sources

if TYPE_CHECKING:
    from lamindb import Artifact, Collection

logger = logging.getLogger(__name__)

PREFIX = "lamindb:"
SUFFIXES = (".h5ad", ".zarr", ".cells")
N_KEYS_SEARCHED = 100_000
"""Keys that an error message looks through for near ones: instances with millions of artifacts exist."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LaminPath:
    """One AnnData of a lamindb instance, on this machine's disk."""

    path: Path
    """The file or folder: the artifact's own where it is local, lamindb's cached copy elsewhere."""
    name: str
    """The artifact's key, or its uid where it has none."""
    having: tuple[Having, ...] = ()
    """What all of its cells are asked to have that are meant; empty for all cells."""
    member: Member | None = None
    """Where cells of a store are chosen, the source that is meant, which is what the name is of; None elsewhere."""


class LaminOpener:
    """Opens collections and artifacts of lamindb; registered for "lamindb:…" and for lamindb's own objects."""

    def __call__(self, addresses: Sequence[Any], options: OpenOptions) -> Iterator[SourceSelection]:
        """All cells of the artifacts.

        Raises:
            Exception: all that `resolve_lamin` and `open_sources` raise.
        """
        for found in resolve_lamin(addresses[0] if len(addresses) == 1 else addresses):
            yield from open_sources(found.path, options)

    def select(self, addresses: Sequence[Any], options: OpenOptions, where: Where) -> Iterator[SourceSelection]:
        """Those cells of the artifacts that have the labels of ``where``.

        Raises:
            LookupError: no cell has them, or lamindb does not know what a store was made of.
            ValueError: a store is not what lamindb says.
        """
        picked = resolve_lamin(addresses[0] if len(addresses) == 1 else addresses, where)
        opened = {path: open_sources(path, options) for path in dict.fromkeys(item.path for item in picked)}
        n_found = 0
        for item in picked:
            sources = [selection.source for selection in opened[item.path]]
            source = sources[0] if item.member is None else item.member.of(sources, item.path)
            selection = _select(item, source)
            if selection is not None:
                n_found += 1
                yield selection
        if not n_found:
            raise LookupError(
                f"{len(picked):,} artifacts are registered as having {dict(where)}, and none of their cells has it"
            )


open_lamindb = LaminOpener()


def _select(found: LaminPath, source: Source) -> SourceSelection | None:
    if not found.having:
        return SourceSelection(source=source)
    rows = np.flatnonzero(np.logical_and.reduce([having.of(source) for having in found.having]))
    if not len(rows):
        logger.warning("no cell of %s has all requested labels, though they are registered", found.name)
        return None
    return SourceSelection(source=source, rows=None if len(rows) == source.n_obs else rows)


def is_lamin(data: object) -> bool:
    """Whether `resolve_lamin` can open it: a ``lamindb:`` string, a lamindb record or query set; a list of these.

    Imports nothing: a lamindb object can only exist where lamindb is imported already.
    """
    if isinstance(data, str):
        return data.startswith(PREFIX)
    if isinstance(data, list | tuple):
        return len(data) > 0 and all(is_lamin(item) for item in data)
    return any(base.__module__.partition(".")[0] == "lamindb" for base in type(data).__mro__)


def resolve_lamin(data: str | Artifact | Collection | Iterable[Any], where: Where | None = None) -> list[LaminPath]:
    """Turn what names lamindb data into local paths, in order; remote artifacts are downloaded into lamindb's cache.

    Neither a local instance nor its local artifacts need a network. Where ``ln.track()`` is on, the artifacts are
    recorded as inputs of the run.

    Args:
        data: ``"lamindb:<key>"`` (the newest version of the collection with this key, or else of the artifact),
            ``"lamindb:<key>@<version>"``, an ``ln.Collection``, an ``ln.Artifact``, or a list or query set of these.
        where: Which of the artifacts, and which of their cells: {registry: labels}; see `chosen`. A store stands for
            the artifacts that it was made of, by the lineage that it was registered with.

    Raises:
        RuntimeError: no lamindb instance is connected, or its database does not answer.
        LookupError: no collection or artifact has this key and version, or there is none in ``data``; lamindb does not
            say what a store was made of; or what `chosen` raises.
        SourceFormatError: an artifact is neither an AnnData stored as .h5ad or .zarr nor a store.
        FileNotFoundError: the file of an artifact is gone.
        ConnectionError: a remote artifact cannot be reached.
        TypeError: ``data`` is something else.
    """
    with quiet(), told():
        listed = _listed(data)
        if not listed:
            raise LookupError(f"{_describe(data)} holds no artifact, expected at least one AnnData (.h5ad or .zarr)")
        if where is None:
            files = [Labelled(artifact=artifact, place=artifact) for artifact in listed]
        else:
            files = [file for artifact in listed for file in labelled(artifact)]
        having = {artifact.pk: of_it for artifact, of_it in chosen([file.artifact for file in files], where or {})}
        picked = [(file, having[file.artifact.pk]) for file in files if file.artifact.pk in having]
        for place in {file.place.pk: file.place for file, _ in picked}.values():
            _check_readable(place)
        return _fetch(picked)


def find(key: str) -> Artifact | Collection:
    """The newest collection, or else artifact, of a key, or the version that ``@version`` after it names.

    Raises:
        LookupError: there is none; names the nearest keys, or the versions that there are.
    """
    import lamindb as ln

    stem, _, version = key.rpartition("@")
    for registry in (ln.Collection, ln.Artifact):
        # the whole text first: a key may hold an "@" itself
        newest = registry.filter(key=key, is_latest=True).order_by("-created_at")[:1]
        versions = registry.filter(key=stem).order_by("-created_at") if stem else ()
        record: Artifact | Collection
        for record in (*newest, *(record for record in versions if record.version == version)):
            return record
    raise LookupError(_unknown_key_message(key))


def origins(data: str | Iterable[Any]) -> list[str]:
    """Of each registered store among the data, in words, which version of which collection it holds."""
    import lamindb as ln

    said = []
    with quiet(), told():
        for artifact in filter(is_store, _listed(data)):
            if (held := origin(artifact)) is not None:
                newest = ln.Collection.filter(key=held.key, is_latest=True).order_by("-created_at").first()
                is_newest = newest is None or newest.pk == held.pk
                age = "the newest version" if is_newest else f"the newest version is {newest.version}"
                held_name = f"{PREFIX}{held.key}@{held.version}"
                said.append(f"{PREFIX}{artifact.key}@{artifact.version} holds {held_name}; {age}")
    return said


def _listed(data: Any) -> list[Artifact]:
    from lamindb_setup.errors import CurrentInstanceNotConfigured

    try:
        return list(_artifacts(data))
    except CurrentInstanceNotConfigured as error:
        raise RuntimeError(
            f"{_describe(data)} lies in a lamindb instance, and none is connected: run `scdataloader instance connect "
            "<name>`, or `lamin connect <owner>/<name>` (or `scdataloader instance init` for a new one), "
            "or pass the paths of the files, which need no instance"
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
            f"expected 'lamindb:<key>', an ln.Collection, an ln.Artifact, or a list or query set of these, "
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
                f"only {', '.join(map(repr, versions))}; leave '@{version}' out for the newest"
            )
    keys = [
        other
        for registry in (ln.Collection, ln.Artifact)
        for other in registry.filter(key__isnull=False).values_list("key", flat=True).distinct()[:N_KEYS_SEARCHED]
    ]
    nearest = difflib.get_close_matches(key, keys, n=3, cutoff=0.3)
    hint = f"the nearest keys are {', '.join(map(repr, nearest))}" if nearest else f"none of its {len(keys)} is like it"
    return f"the lamindb instance {instance} has no collection or artifact with the key {key!r}; {hint}"


def _name(artifact: Artifact) -> str:
    return str(artifact.key or artifact.uid)


def _check_readable(artifact: Artifact) -> None:
    # a remote folder has no otype, and a store neither that nor a suffix that lamindb knows
    ending = str(artifact.suffix or artifact.key)
    if artifact.otype not in ("AnnData", None) or not ending.endswith(SUFFIXES):
        raise SourceFormatError(
            f"lamindb artifact {_name(artifact)!r} is {artifact.otype or 'of no known type'} with suffix "
            f"{artifact.suffix!r}; expected an AnnData stored as .h5ad or .zarr, or a store: leave it out of the "
            "collection, or pass a list of the artifacts to use"
        )


def _is_remote(artifact: Artifact) -> bool:
    # not from artifact.path: to make the path of a remote one already takes the network
    return str(artifact.storage.type) != "local"


def _fetch(picked: list[tuple[Labelled, tuple[Having, ...]]]) -> list[LaminPath]:
    from rich.console import Console
    from rich.progress import Progress

    places = {file.place.pk: file.place for file, _ in picked}
    n_remote = sum(_is_remote(place) for place in places.values())
    paths = {}
    # stderr: a command's own output may be piped on
    with Progress(console=Console(stderr=True), transient=True, disable=n_remote == 0) as progress:
        task = progress.add_task("fetching from lamindb", total=n_remote)
        for key, place in places.items():
            progress.update(task, description=f"fetching {_name(place)}")
            paths[key] = _local_path(place)
            progress.advance(task, _is_remote(place))
    return [
        LaminPath(path=paths[file.place.pk], name=_name(file.artifact), having=having, member=file.member)
        for file, having in picked
    ]


def _local_path(artifact: Artifact) -> Path:
    import lamindb as ln
    from botocore.exceptions import BotoCoreError

    # without a run lamindb would warn, for each artifact, that nothing is tracked
    is_run_input = None if ln.context.run is not None else False
    try:
        path = Path(str(artifact.cache(is_run_input=is_run_input, mute=True)))
        if path.exists():
            return path
    except FileNotFoundError:
        pass
    except (BotoCoreError, OSError) as error:
        raise ConnectionError(
            f"cannot download lamindb artifact {_name(artifact)!r} from {artifact.storage.root} ({error}): check the "
            "network and the credentials; offline, copy the file here by other means and pass its path"
        ) from error
    what_to_do = "restore the file, or delete the artifact and register it again"
    if is_store(artifact) and (held := origin(artifact)) is not None:
        what_to_do = (
            "move it back, or register it where it is now: "
            f"`scdataloader convert {PREFIX}{held.key}@{held.version} --out <where it is> --register`"
        )
    raise FileNotFoundError(
        f"lamindb artifact {_name(artifact)!r} should lie at {artifact.path}, and nothing is there: {what_to_do}"
    )
