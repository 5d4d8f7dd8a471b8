"""Files that are there whole or not at all, and what to say where one cannot be written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from scdataloader.errors import StoreWriteError

PARTIAL = ".partial"
"""Ends the name of a file that is being written."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes to a file or folder, and to nothing else.

    Raises:
        StoreWriteError: it cannot be written; names it, and says why.
    """
    try:
        yield
    except StoreWriteError:
        raise
    except OSError as error:
        raise StoreWriteError(error.errno, f"cannot write {path}: {error.strerror or error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file of which nobody ever sees a part, and that is on the disk when this returns."""
    with opened_atomically(path) as file:
        file.write(content)


@contextmanager
def opened_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to be written under another name, which takes its own once it is complete; an exception removes it."""
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
    """Have the content of a file, or the names of a folder's files, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
