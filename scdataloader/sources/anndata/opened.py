"""Cache of what is read to open files: a file for each, in the folder of caches, so that a second opening is fast."""

from __future__ import annotations

import json
import logging
import os
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np

from scdataloader.runtime.files import split_path
from scdataloader.runtime.options import RemoteOptions, stated_bytes
from scdataloader.sources.anndata.layout import MatrixLayout
from scdataloader.sources.fingerprint import RULE
from scdataloader.types import SharedGenes

logger = logging.getLogger(__name__)

FOLDER = "opened"
"""Name of the folder in that of the caches."""
_VERSION = 1
_USUAL_BYTES = 256 << 20
_YOUNG_NS = 2_000_000_000
"""A file that was written so shortly before may be written again without another time of change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """What is known of a file once it has been opened."""

    n_obs: int
    obs_columns: list[str]
    var_columns: list[str]
    chosen: MatrixLayout
    """The matrix of counts."""
    fingerprint: str
    organism: str | None
    """As stated in uns."""
    labels: dict[str, str]
    """As `HasLabels.labels`."""
    genes: str
    """Digest of the index of var; see `gene_list`."""


State = tuple[int, ...]


def state_of(path: Path) -> State:
    """Size, times of change and identity of the file that an AnnData is in."""
    found = split_path(path)[0].stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


class OpenedFiles:
    """The cache. Several processes may use it; damaged entries are ignored, and written again."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most = folder, most_bytes

    @classmethod
    def of_environment(cls) -> Self | None:
        """The cache in the folder that the environment sets; None if its size is set to 0.

        Raises:
            ValueError: a variable has an impossible value.
        """
        if os.environ.get("SCDATALOADER_OPENED_SIZE", "").strip() == "0":
            return None
        most = stated_bytes("SCDATALOADER_OPENED_SIZE", 1 << 20)
        folder = RemoteOptions.of_environment().cache / FOLDER
        return None if str(folder) in _unusable() else cls(folder, _USUAL_BYTES if most is None else most)

    def find(self, path: Path, options: Sequence[str]) -> tuple[FileFacts, SharedGenes] | None:
        """What is known of a file that was opened with these options; None if nothing is, or the file has changed."""
        try:
            found = json.loads(zlib.decompress(self._entry(path, options).read_bytes()))
            if tuple(found["state"]) != state_of(path):
                return None
            chosen = found["facts"]["chosen"]
            for name in ("dtype", "index_dtype"):
                chosen[name] = None if chosen[name] is None else np.dtype(chosen[name])
            for name in ("shape", "row_shape"):
                chosen[name] = tuple(chosen[name])
            facts = FileFacts(**{**found["facts"], "chosen": MatrixLayout(**chosen)})
            genes = _kept_list(self._folder, facts.genes)
        except (OSError, ValueError, KeyError, TypeError, zlib.error):
            return None
        return facts, replace(genes, var_columns=facts.var_columns)

    def keep(self, path: Path, options: Sequence[str], state: State, facts: FileFacts, genes: SharedGenes) -> None:
        """Note what is known of a file, which had this state before it was opened.

        Where the folder cannot be written, this is logged once, and nothing is kept.
        """
        if state != state_of(path) or time.time_ns() - max(state[1:3]) < _YOUNG_NS:
            return
        stated: dict[str, Any] = asdict(facts)
        for name in ("dtype", "index_dtype"):
            kind = stated["chosen"][name]
            stated["chosen"][name] = None if kind is None else kind.str
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_oldest()
            names = self._folder / f"{facts.genes}.genes"
            if names not in _lists_written():  # one that is there may be damaged
                _write(names, json.dumps(genes.names).encode())
                _lists_written().add(names)
            _write(self._entry(path, options), json.dumps({"state": state, "facts": stated}).encode())
        except OSError as error:
            _unusable().add(str(self._folder))
            logger.warning(
                "what is known of opened files is not kept: %s cannot be written (%s); set SCDATALOADER_CACHE to "
                "another folder, or SCDATALOADER_OPENED_SIZE=0",
                self._folder,
                error.strerror or error,
            )

    def _entry(self, path: Path, options: Sequence[str]) -> Path:
        key = json.dumps([_VERSION, _release(), RULE, str(path.absolute()), *options])
        return self._folder / f"{blake2b(key.encode(), digest_size=16).hexdigest()}.facts"

    def _remove_oldest(self) -> None:
        """Remove the oldest files if all are too large together; once in a process, for each folder."""
        if self._folder in _bounded():
            return
        _bounded().add(self._folder)
        files = []
        for file in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another process removes files as well
                info = file.stat()
                files.append((info.st_mtime_ns, info.st_size, file))
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total <= self._most:
                break
            file.unlink(missing_ok=True)
            total -= size


def gene_list(names: bytes, n_names: int) -> tuple[str, SharedGenes]:
    """The digest of a list of gene ids, and the genes of a source that has all of them; equal lists give one object.

    ``names`` are the ids, joined by zero bytes.

    Raises:
        UnicodeDecodeError: the ids are not text.
    """
    digest = blake2b(names, digest_size=16).hexdigest()
    known = _lists()
    if digest not in known:
        if len(known) >= _N_LISTS:
            known.pop(next(iter(known)))
        known[digest] = SharedGenes(names=tuple(names.decode().split("\0")) if n_names else ())
    return digest, known[digest]


_N_LISTS = 64


@cache
def _release() -> str:
    return version("scdataloader")


@cache
def _lists() -> dict[str, SharedGenes]:
    return {}


@cache
def _bounded() -> set[Path]:
    return set()


@cache
def _lists_written() -> set[Path]:
    return set()


@cache
def _unusable() -> set[str]:
    return set()


def _kept_list(folder: Path, digest: str) -> SharedGenes:
    """The genes of a list in the cache.

    Raises:
        OSError, ValueError, TypeError, zlib.error: it is missing or damaged.
    """
    if (known := _lists().get(digest)) is not None:
        return known
    names = json.loads(zlib.decompress((folder / f"{digest}.genes").read_bytes()))
    found, genes = gene_list("\0".join(names).encode(), len(names))
    if found != digest:
        raise ValueError(f"{digest}.genes has other genes")
    return genes


def _write(path: Path, content: bytes) -> None:
    """Write a file under another name, and rename it. Not synced: a file that a crash damages is ignored."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.partial")
    try:
        partial.write_bytes(zlib.compress(content, 1))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
