"""Files: written completely or not at all, locked against other processes, and opened within the process's limit."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from scdataloader.errors import WriteError
from scdataloader.runtime.buckets import RemotePath
from scdataloader.runtime.names import CONTAINERS

PARTIAL = ".partial"
"""Suffix of a file that is being written."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF, errno.EINVAL)
"""Errors of file systems without locks."""


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
"""Start of a URL, or of one that was made a path and lost a slash."""


def is_url(path: object) -> bool:
    """Whether a path is a URL of another place than this machine's files."""
    text = str(path)
    found = _URL.match(text)
    return found is not None and found[1] != "file" and ("://" in text or not Path(f"{found[1]}:").exists())


def local_path(path: str | os.PathLike[str]) -> Path:
    """A path on this machine, "~" and "file://" resolved.

    Raises:
        ValueError: it is a URL.
    """
    if is_url(path):
        raise ValueError(
            f"{path} is not a path on this machine; download or mount it and give the path of the copy, or register "
            "it in lamindb and give 'lamindb:<key>'"
        )
    text = os.fspath(path)
    return Path(unquote(urlsplit(text).path) if text.startswith("file://") else text).expanduser()


def split_path(path: Path) -> tuple[Path, str]:
    """A file, and the path of a group in it: "a.h5mu/mod/rna" is "a.h5mu" and "mod/rna"; of other paths, "" is.

    In a URL, the file is the first part with the suffix of one.
    """
    if isinstance(path, RemotePath):
        outer: Path = next((one for one in reversed((path, *path.parents)) if one.suffix in CONTAINERS), path)
        return outer, "/".join(path.parts[len(outer.parts) :])
    for outer in (path, *path.parents):
        if outer.is_file():
            return outer, path.relative_to(outer).as_posix() if outer != path else ""
        if outer.exists():
            break
    return path, ""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate errors of a block that writes to ``path``, and to nothing else.

    Raises:
        WriteError: ``path`` cannot be written; names it and the cause.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(error.errno, f"cannot write {path}: {error.strerror or error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is never seen incomplete, and is on disk when this returns."""
    with opened_atomically(path) as file:
        file.write(content)


@contextmanager
def opened_atomically(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write, renamed to ``path`` when it is complete and on disk; an exception removes it."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush the content of a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(descriptor: int, n_bytes: int) -> None:
    """Set the size of a new file, with room on the disk, which a page of its map must never lack.

    Where the system has no such call, as on macOS, only the size is set.
    """
    if sys.platform == "linux":
        os.posix_fallocate(descriptor, 0, n_bytes)
    else:
        os.ftruncate(descriptor, n_bytes)


def file_state(path: Path) -> str:
    """Size and time of change of a file, or a digest of those of all files in a folder: another text after a write."""
    if not path.is_dir():
        found = path.stat()
        return f"{found.st_size} bytes, {found.st_mtime_ns}"
    digest = blake2b(digest_size=16)
    followed = {path.resolve()}
    for folder, folders, names in os.walk(path, followlinks=True):
        folders.sort()
        for link in filter(Path.is_symlink, (Path(folder, name) for name in tuple(folders))):
            if link.resolve() in followed:  # once; a second time may be a circle
                folders.remove(link.name)
            followed.add(link.resolve())
        for name in sorted(names):
            found = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118 (a folder may have 100,000 files)
            digest.update(f"{name}\0{found.st_size} {found.st_mtime_ns}\0".encode())
        digest.update(f"{folders}".encode())
    return digest.hexdigest()


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file against other processes; replaces the lock that this descriptor holds.

    The lock ends when all copies of the descriptor are closed, however their processes end. On a file system
    without locks, nothing is locked.

    Returns:
        Whether it is locked; False if another process holds a conflicting lock.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


@contextmanager
def opening(path: str | os.PathLike[str]) -> Iterator[None]:
    """Explain "too many open files" of a block that opens or maps ``path``.

    Raises:
        OSError: with ``errno`` EMFILE; states the limit and how to raise it.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise OSError(
            errno.EMFILE,
            f"this process has reached its limit of {limit} open files (a mapped source has one, and each shard of a "
            f"store); raise the limit with `ulimit -n` before Python starts (up to {most} on this machine), or close() "
            "sources that are not in use",
            os.fspath(path),
        ) from error
