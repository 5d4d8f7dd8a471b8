"""A file for each version of an artifact, put where it is to be registered before the database knows of it.

Curation writes a file's cells to the same place again and again. What an interrupted call has put in place, the next
finds there, under a name that says what it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from scdataloader.curation.ledger import stamp_of
from scdataloader.lamin.register.origin import Identity
from scdataloader.lamin.session import local_roots
from scdataloader.runtime.files import opened_atomically, writing
from scdataloader.runtime.progress import Advance, progress_bar

if TYPE_CHECKING:
    from lamindb import Artifact, Storage

FOLDER = "versions"
"""Next to curated files in a storage, or at the root of one; each version of each has a folder of its own there."""
N_AT_ONCE = 4
"""Files that are read, copied or uploaded at a time."""
_BYTES_PER_PIECE = 1 << 23

Given = TypeVar("Given")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A curated file, and what is registered for it."""

    output: Path
    """The curated file."""
    stamp: list[int]
    """Its size in bytes, and the time of its last change in nanoseconds."""
    stats: dict[str, Any]
    """Size and hash of its content, as lamindb has them of a local file."""
    path: Any
    """What is registered: a local path, or a remote one of lamindb."""
    uploaded: float | None = None
    """Seconds since the epoch when it got into a bucket, by the clock of that; None where it is in none."""


def put_in_place(files: Sequence[tuple[str, Identity, Path]], storage: Storage | None) -> dict[Identity, Version]:
    """Have curated files where they are to be registered; those that are there already, of the same content, stay.

    A file in a local storage of the instance gets a second name there, which what is written to its place later does
    not touch; it takes no room on disk, but where the file system has no hard links. Others are copied or uploaded.

    Args:
        files: (key of the artifact, what it is known again by, curated file).
        storage: Where files go that lie in no storage of the instance; None for its own.

    Raises:
        FileNotFoundError: a file is gone; none was put in place.
        WriteError: a copy cannot be written.
        RuntimeError: a file was changed meanwhile.
    """
    stamps = [stamp_of(output) for _, _, output in files]
    n_bytes = sum(size for size, _ in stamps)
    outputs = [output for _, _, output in files]
    read = _each(_read, outputs, n_bytes, "reading curated files")
    root, roots = _root(storage), local_roots()
    versions = []
    for (key, identity, output), version in zip(files, read, strict=True):
        is_inside = any(output.resolve().is_relative_to(known) for known in roots)
        folder = (output.parent if is_inside else root) / FOLDER / _name(key, identity, version)
        versions.append(replace(version, path=folder / output.name))
    # one for all threads: fsspec would make one, with connections of its own, in each
    bucket = None if isinstance(root, Path) else root.fs
    done = _each(partial(_put, bucket=bucket), versions, n_bytes, "putting files in place")
    return {identity: version for (_, identity, _), version in zip(files, done, strict=True)}


def keep_in_cache(registered: Iterable[tuple[Artifact, Version]]) -> None:
    """Spare this machine the download of what it has uploaded, once it is registered."""
    uploaded = [(artifact, version) for artifact, version in registered if version.uploaded is not None]
    with _bar("keeping copies of what was uploaded", sum(version.stamp[0] for _, version in uploaded)) as advance:
        for artifact, version in uploaded:
            assert version.uploaded is not None  # as was just asked
            cached = Path(str(artifact._cache_path))  # noqa: SLF001 (there is no public way to ask)
            try:
                _copy(version.output, cached, advance)
                # lamindb downloads what is newer than this
                os.utime(cached, (version.uploaded, version.uploaded))
            except OSError as error:
                logger.warning("what was uploaded is not kept in lamindb's cache, too: %s", error)


def put_back(artifact: Artifact, output: Path) -> None:
    """Have the file of a local artifact where it was, if it is gone; ``output`` has the same content."""
    if artifact.storage.type == "local" and not artifact.path.exists():
        logger.warning("%s was gone, and is put back", artifact.path)
        _copy(output, Path(str(artifact.path)), lambda _: None)


def _root(storage: Storage | None) -> Any:
    import lamindb

    record: Any = storage or lamindb.settings.storage.record
    return Path(record.root) if record.type == "local" else record.path


def _name(key: str, identity: Identity, version: Version) -> str:
    """What a version's folder is called: something else where anything about it is.

    The newest version before it, in the trash or not, is something about it. So no two artifacts share a file, and an
    object in a bucket is younger than all versions before it, which lamindb's cache goes by.
    """
    import lamindb

    last = lamindb.Artifact.objects.filter(key=key).order_by("-id").values_list("id", flat=True).first()
    said = json.dumps([key, identity, last, version.stamp, version.stats["hash"]])
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def _read(output: Path, advance: Advance) -> Version:
    from lamindb_setup.core.hashing import hash_file

    stamp = stamp_of(output)
    size, digest, kind = hash_file(output)
    advance(size)
    return Version(
        output=output,
        stamp=stamp,
        path=output,
        stats={"size": size, "hash": digest, "hash_type": kind, "n_files": None},
    )


def _put(version: Version, advance: Advance, bucket: Any) -> Version:
    """Do what `put_in_place` does with one file."""
    size, _ = version.stamp
    if isinstance(version.path, Path):
        _put_here(version, advance)
        found = version.path.stat().st_size
    else:
        found = _upload(version, advance, bucket)
        version = replace(version, uploaded=bucket.modified(str(version.path)).timestamp())
    if found != size or stamp_of(version.output) != version.stamp:
        raise RuntimeError(
            f"{version.output} was changed while it was registered ({size:,} bytes before, {found:,} bytes at "
            f"{version.path}): nothing was registered, do the same again"
        )
    return version


def _put_here(version: Version, advance: Advance) -> None:
    size, _ = version.stamp
    if version.path.exists() and version.path.stat().st_size == size:
        advance(size)
        return
    with writing(version.path):
        version.path.parent.mkdir(parents=True, exist_ok=True)
    if version.path.parent.parent.parent == version.output.parent:
        try:
            version.path.hardlink_to(version.output)
        except FileNotFoundError:
            raise
        except OSError:
            logger.debug("no hard links where %s lies, which is copied", version.output)
        else:
            advance(size)
            return
    _copy(version.output, version.path, advance)


def _copy(source: Path, path: Path, advance: Advance) -> None:
    with source.open("rb") as file, writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with opened_atomically(path) as copy:
            while piece := file.read(_BYTES_PER_PIECE):
                copy.write(piece)
                advance(len(piece))


def _upload(version: Version, advance: Advance, bucket: Any) -> int:
    """Size in bytes of what is in the bucket then."""
    from fsspec.callbacks import Callback  # type: ignore[import-untyped]

    class Told(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            advance(inc)

    size, _ = version.stamp
    place = str(version.path)
    if bucket.exists(place) and bucket.info(place)["size"] == size:
        advance(size)
    else:
        bucket.put_file(str(version.output), place, callback=Told())
    return int(bucket.info(place)["size"])


def _bar(what: str, n_bytes: int) -> AbstractContextManager[Advance]:
    return progress_bar(what, n_bytes, shown=sys.stderr.isatty())


def _each(work: Callable[[Given, Advance], Version], given: Sequence[Given], n_bytes: int, what: str) -> list[Version]:
    """Some at a time; after an error or an interrupt those that were not begun are left."""
    with _bar(what, n_bytes) as advance, ThreadPoolExecutor(N_AT_ONCE) as executor:
        futures = [executor.submit(work, one, advance) for one in given]
        try:
            return [future.result() for future in futures]
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
