"""The folder that a store is written into: what an earlier conversion has left there, and what is to go."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Self

from scdataloader.runtime.files import PARTIAL
from scdataloader.store.manifest import MANIFEST, Manifest
from scdataloader.store.writing.lock import LOCK
from scdataloader.store.writing.plan import PLAN, UNORDERED, Plan

FOLDERS = ("obs", "var", "genes", "shards")
_OWN_FILE = re.compile(r"[0-9a-f]{5,32}\.(parquet|cells|json)(\.partial|\.progress)?")
"""All that a conversion writes into those."""
_BEFORE_A_PLAN = {LOCK, PLAN + PARTIAL}
"""All that a conversion that was killed at its very beginning leaves behind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderState:
    """What there is in a folder."""

    folder: Path
    """It."""
    manifest: Manifest | None
    """Of the store that it holds."""
    digest: str | None
    """Of the manifest's bytes."""
    plan: Plan | None
    """Of a conversion into it that has not ended."""
    is_cleared: bool
    """Whether nothing is left of a conversion that has ended, nor is one under way."""

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Look at a folder, which need not exist.

        Raises:
            FileExistsError: it is a file, or has something else in it.
            StoreFormatError: the store in it is damaged.
        """
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} is a file; a store is a folder: name another one")
        plan, path = Plan.load(folder), folder / MANIFEST
        manifest = Manifest.load(folder) if path.is_file() else None
        digest = blake2b(path.read_bytes(), digest_size=16).hexdigest() if manifest is not None else None
        if manifest is None and plan is None:
            _refuse_foreign(folder)
        # The manifest is written when all else is: a plan that was made for another one has been fulfilled.
        ended = plan is not None and manifest is not None and plan.appended_to != digest
        is_cleared = not ended and not (folder / LOCK).exists()
        return cls(folder=folder, manifest=manifest, digest=digest, plan=None if ended else plan, is_cleared=is_cleared)


def _refuse_foreign(folder: Path) -> None:
    there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in there if name not in _BEFORE_A_PLAN]
    if foreign:
        raise FileExistsError(
            f"{folder} has {len(foreign)} files or folders in it, {foreign[0]} among them, and is neither a store nor "
            "an unfinished one; name a new folder, or empty this one"
        )


def clear(folder: Path, manifest: Manifest | None) -> None:
    """Remove all that conversions have written into a folder but a store with this manifest; the plan last."""
    kept = set() if manifest is None else {file.path for file in manifest.files}
    shutil.rmtree(folder / UNORDERED, ignore_errors=True)
    for name in FOLDERS:
        inside = sorted((folder / name).iterdir()) if (folder / name).is_dir() else []
        for file in inside:
            if _OWN_FILE.fullmatch(file.name) and f"{name}/{file.name}" not in kept:
                file.unlink(missing_ok=True)
        with suppress(OSError):  # of a store, they are not empty
            (folder / name).rmdir()
    for name in (MANIFEST + PARTIAL, PLAN + PARTIAL, PLAN):
        (folder / name).unlink(missing_ok=True)
