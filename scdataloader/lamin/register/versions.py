"""Put curated files in place: one file per version of an artifact, where it is registered.

Curation writes to the same paths repeatedly, so each version gets a separate path, named by a digest. The next call
reuses the files of an interrupted one.
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
"""Folder beside curated files in a storage, or at the root of a storage; each version has a folder in it."""
N_AT_ONCE = 4
"""Files that are read, copied or uploaded concurrently."""
_BYTES_PER_PIECE = 1 << 23

Given = TypeVar("Given")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A curated file, and the file that is registered for it."""

    output: Path
    """The curated file."""
    stamp: list[int]
    """`stamp_of` the curated file."""
    stats: dict[str, Any]
    """Size and hash of its content, as lamindb computes them."""
    path: Any
    """The file to register: a local path, or a remote path of lamindb."""
    uploaded: float | None = None
    """Modification time in the bucket, in seconds since the epoch; None for a local file."""


def put_in_place(files: Sequence[tuple[str, Identity, Path]], storage: Storage | None) -> dict[Identity, Version]:
    """Link, copy or upload curated files to the paths that are registered; existing ones of the same content are kept.

    A file in a local storage of the instance gets a hard link there, or a copy where hard links are not supported.
    Other files are copied or uploaded.

    Args:
        files: (key of the artifact, identity, curated file).
        storage: Storage for files outside all local storages of the instance; None for the instance's own.

    Raises:
        FileNotFoundError: a file does not exist; none is put in place.
        WriteError: a copy cannot be written.
        RuntimeError: a file was changed during the call.
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
    # one client for all threads: fsspec would make one per thread
    bucket = None if isinstance(root, Path) else root.fs
    done = _each(partial(_put, bucket=bucket), versions, n_bytes, "putting files in place")
    return {identity: version for (_, identity, _), version in zip(files, done, strict=True)}


def keep_in_cache(registered: Iterable[tuple[Artifact, Version]]) -> None:
    """Copy uploaded files to lamindb's cache, so that this machine need not download them."""
    uploaded = [(artifact, version) for artifact, version in registered if version.uploaded is not None]
    with _bar("caching uploaded files", sum(version.stamp[0] for _, version in uploaded)) as advance:
        for artifact, version in uploaded:
            assert version.uploaded is not None
            cached = Path(str(artifact._cache_path))  # noqa: SLF001 (no public equivalent)
            try:
                _copy(version.output, cached, advance)
                # lamindb downloads a file that is newer than its copy
                os.utime(cached, (version.uploaded, version.uploaded))
            except OSError as error:
                logger.warning("an uploaded file is not in lamindb's cache: %s", error)


def put_back(artifact: Artifact, output: Path) -> None:
    """Restore the missing file of a local artifact from a curated file of the same content."""
    if artifact.storage.type == "local" and not artifact.path.exists():
        logger.warning("%s was missing and is restored", artifact.path)
        _copy(output, Path(str(artifact.path)), lambda _: None)


def _root(storage: Storage | None) -> Any:
    import lamindb

    record: Any = storage or lamindb.settings.storage.record
    return Path(record.root) if record.type == "local" else record.path


def _name(key: str, identity: Identity, version: Version) -> str:
    """Name of the folder of a version: a digest of its content and identity, and of the version before it.

    Thus two artifacts never share a file, and an object in a bucket is newer than all earlier versions, as lamindb's
    cache requires.
    """
    import lamindb

    last = lamindb.Artifact.objects.filter(key=key).order_by("-id").values_list("id", flat=True).first()
    text = json.dumps([key, identity, last, version.stamp, version.stats["hash"]])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _read(output: Path, advance: Advance) -> Version:
    from lamindb_setup.core.hashing import hash_file

    stamp = stamp_of(output)
    size, digest, kind = hash_file(output)
    advance(size)
    stats = {"size": size, "hash": digest, "hash_type": kind, "n_files": None}
    return Version(output=output, stamp=stamp, path=output, stats=stats)


def _put(version: Version, advance: Advance, bucket: Any) -> Version:
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
            f"{version.path}); nothing was registered; run the same command again"
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
            logger.debug("hard links are not supported in %s; copying", version.output.parent)
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
    """Upload a file unless an object of its size is there; returns the size of the object."""
    from fsspec.callbacks import Callback  # type: ignore[import-untyped]

    class OnProgress(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            advance(inc)

    size, _ = version.stamp
    place = str(version.path)
    if bucket.exists(place) and bucket.info(place)["size"] == size:
        advance(size)
    else:
        bucket.put_file(str(version.output), place, callback=OnProgress())
    return int(bucket.info(place)["size"])


def _bar(what: str, n_bytes: int) -> AbstractContextManager[Advance]:
    return progress_bar(what, n_bytes, shown=sys.stderr.isatty())


def _each(work: Callable[[Given, Advance], Version], given: Sequence[Given], n_bytes: int, what: str) -> list[Version]:
    """Do work on several files at a time; an error or interrupt cancels those that have not begun."""
    with _bar(what, n_bytes) as advance, ThreadPoolExecutor(N_AT_ONCE) as executor:
        futures = [executor.submit(work, one, advance) for one in given]
        try:
            return [future.result() for future in futures]
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
