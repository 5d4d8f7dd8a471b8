"""Arrays that are computed from data which never change, kept in files and mapped by later runs.

A file has a magic number, a checksum of all bytes that follow it, and the size of the header (8 bytes each), the header
(JSON: key, description, and name, type, length and offset of each array), and the arrays. It is written under a
temporary name and renamed. Another key, a wrong checksum or a wrong size makes it count as missing.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.machine.digest import digest_words
from scdataloader.runtime.files import PARTIAL, reserve, try_lock

logger = logging.getLogger(__name__)

LEAST_CELLS = 1 << 22
"""Cells from which arrays are kept in files; those of fewer are computed in less than a second."""

_SUFFIX = ".arrays"
_MAGIC = b"SCDARR01"
_START = 24
"""Bytes before the header."""
_PAGE = 4096
_PAUSE = 0.05
"""Seconds between two attempts to lock a folder."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How arrays are computed."""

    shapes: Mapping[str, tuple[np.dtype[Any], int]]
    """{name: dtype and length}"""
    fill: Callable[[Arrays], None]
    """Writes all values."""
    about: Any = None
    """What else is known of them, as JSON has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """Arrays, in memory or mapped. Mapped ones are copied page by page where they are written to."""

    arrays: Arrays
    about: Any
    """As in `Recipe`."""


@dataclass(eq=False, kw_only=True)
class ArrayCache:
    """Files of arrays, in the first of some folders that can be written to; without any, arrays stay in memory."""

    content: str = ""
    """Digest of the data that the arrays are computed from; empty if they may change, and nothing is kept."""
    beside: Path | None = None
    """Folder of one version of the data, in a folder of all their versions, of which the others are removed."""
    shared: Path | None = None
    """Folder that takes what cannot be written there."""
    _failed: bool = field(default=False, init=False)

    def get(self, name: str, key: Sequence[Any], make: Callable[[], Recipe]) -> Kept:
        """Arrays by their key: those in a file, or else new ones, which are written to a file.

        Args:
            name: Start of the name of the file, for its reader.
            key: What the arrays depend on, beside the content, as JSON has it.
            make: Recipe of the arrays, if they have to be computed.
        """
        folders = [folder for folder in (self.beside, self.shared) if folder is not None]
        if not folders:
            return _in_memory(make())
        digest = blake2b(json.dumps([self.content, name, key]).encode(), digest_size=16).hexdigest()
        plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)[:60]
        file = f"{plain}-{digest}{_SUFFIX}"
        for folder in folders:
            if (kept := _load(folder / file, digest)) is not None:
                return kept
        recipe: Recipe | None = None
        for folder in folders:
            try:
                with _locked(folder):
                    if folder == self.beside:
                        _remove_other_versions(folder)
                    kept = _load(folder / file, digest)  # another process may have written it
                    if kept is None:
                        recipe = recipe or make()
                        kept = _write(folder / file, digest, recipe)
                    return kept
            except OSError as error:
                failed = error
        if not self._failed:
            self._failed = True
            where = " and ".join(map(str, folders))
            logger.warning(
                "label codes and class indexes are not kept in %s (%s): each run computes them anew, in memory; make "
                "one of them writable, or set SCDATALOADER_CACHE to a folder that is",
                where,
                failed.strerror or failed,
            )
        return _in_memory(recipe or make())


def _in_memory(recipe: Recipe) -> Kept:
    arrays = {name: np.empty(n, dtype) for name, (dtype, n) in recipe.shapes.items()}
    recipe.fill(arrays)
    return Kept(arrays=arrays, about=recipe.about)


def _remove_other_versions(folder: Path) -> None:
    """Remove the folders of other versions; a process that has mapped their files keeps these."""
    for other in folder.parent.iterdir():
        if other != folder and other.is_dir():
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock out other processes that write to a folder, and remove what such processes left unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while not try_lock(descriptor):
            time.sleep(_PAUSE)
        for left in folder.glob(f"*{PARTIAL}"):
            with suppress(FileNotFoundError):
                left.unlink()
        yield
    finally:
        os.close(descriptor)


def _header(digest: str, recipe: Recipe) -> tuple[bytes, int]:
    """The header, padded so that arrays begin at a page, and the size of the file."""
    listed: list[tuple[str, str, int, int]] = []
    head = {"key": digest, "about": recipe.about, "arrays": listed}
    sizes = [n * dtype.itemsize for dtype, n in recipe.shapes.values()]
    room = len(json.dumps(head)) + sum(len(name) + 80 for name in recipe.shapes)
    at = -(-(_START + room) // _PAGE) * _PAGE
    n_header = at - _START
    for (name, (dtype, n)), n_bytes in zip(recipe.shapes.items(), sizes, strict=True):
        listed.append((name, dtype.str, n, at))
        at += -(-n_bytes // 64) * 64
    return json.dumps(head).encode().ljust(n_header), at


def _write(path: Path, digest: str, recipe: Recipe) -> Kept:
    """Compute arrays in a file.

    Raises:
        OSError: it cannot be written.
    """
    header, size = _header(digest, recipe)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            reserve(file.fileno(), size)
        content = np.memmap(partial, np.uint8, "r+")
        content[:8] = np.frombuffer(_MAGIC, np.uint8)
        content[16:_START].view("<u8")[0] = len(header)
        content[_START : _START + len(header)] = np.frombuffer(header, np.uint8)
        recipe.fill(_views(content, json.loads(header)["arrays"]))
        content[8:16].view("<u8")[0] = digest_words(content[16:].view(np.uint64))
        del content
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    logger.info("wrote %s (%s MB), which later runs map", path, f"{size / 1e6:,.0f}")
    return Kept(arrays=_views(_map(path), json.loads(header)["arrays"]), about=recipe.about)


def _map(path: Path) -> NDArray[np.uint8]:
    # copied on writing, because compiled functions take arrays that cannot be written to for another type
    return np.asarray(np.memmap(path, np.uint8, "c"))


def _views(content: NDArray[np.uint8], listed: Sequence[Any]) -> Arrays:
    content = np.asarray(content)
    return {name: content[at : at + n * np.dtype(dtype).itemsize].view(dtype) for name, dtype, n, at in listed}


def _load(path: Path, digest: str) -> Kept | None:
    """The arrays of a file; None if there is none, or it is damaged."""
    try:
        content = _map(path)
    except (OSError, ValueError):  # missing, not readable or empty
        return None
    n = int(content[16:_START].view("<u8")[0]) if len(content) > _START else len(content)
    if len(content) % 8 or _START + n > len(content) or content[:8].tobytes() != _MAGIC:
        return None
    if int(content[8:16].view("<u8")[0]) != digest_words(content[16:].view(np.uint64)):
        logger.warning("%s is damaged and is computed anew", path)
        return None
    head = json.loads(content[_START : _START + n].tobytes())
    return Kept(arrays=_views(content, head["arrays"]), about=head["about"]) if head["key"] == digest else None
