"""Plan of a conversion, fixed before the first cell is read, and the state of the folder that it writes into."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError
from scdataloader.runtime.files import PARTIAL, write_atomically, writing
from scdataloader.sources.fingerprint import difference
from scdataloader.store.manifest import MANIFEST, Kind, Manifest, MatrixPart, ShardRecord, matrix_part, shard_record
from scdataloader.store.writing.lock import LOCK

PLAN = "conversion.json"
UNORDERED = "unordered"
"""Folder of the cells in the order of their sources, before they are reordered."""
ORDER, PLACES = "order.npy", "places.npy"
"""Cell at each place of the new order, and place of each cell; cells are numbered source after source."""
GROUPED = "grouped:"
"""Prefix of the layout by an obs column."""
FOLDERS = ("obs", "var", "genes", "shards", "matrices")
_VERSION = 4
_MOST_VALUES = 1 << 32
"""Largest number of values of a shard."""
_OWN_FILE = re.compile(r"[0-9a-f]{5,32}(-[0-9a-f]{5,32})?\.(parquet|cells|json)(\.partial|\.progress)?")
"""Names of all files that a conversion writes into `FOLDERS`."""
_BEFORE_A_PLAN = {LOCK, PLAN + PARTIAL}
"""All files that a conversion killed at its very beginning leaves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedSource:
    """A source to convert."""

    name: str
    fingerprint: str
    file_state: str | None
    """Size and time of change of its files, or a digest of them; None for a source without files."""
    n_cells: int
    genes: str
    """Digest of its gene table."""
    uns_organism: str | None
    """The organism that it states for all its cells."""
    matrices: tuple[MatrixPart, ...]
    """What it has of each further matrix; the columns of layers are its own genes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedShard:
    """A shard of cells of one source."""

    source: int
    """Number of the source in the plan."""
    first: int
    """First row in the source."""
    last: int
    """One more than the last row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that decides what a conversion writes, so that another try can continue it."""

    version: int = _VERSION
    """Version of the plan's file."""
    layout: str
    """Order of the cells."""
    seed: int
    """Seed of a random order; 0 for others."""
    kind: Kind
    """Kind of the values."""
    cells_per_shard: int
    """At most."""
    matrices: tuple[str, ...]
    """Keys of the further matrices, sorted."""
    compact: bool
    """Whether records take as few bytes as they can."""
    appended_to: str | None
    """Digest of the manifest of the store that the sources are written to; None for a new store."""
    numbers: tuple[int, ...]
    """Number in the store of each source."""
    first_table: int
    """Number of the file of the first new cell table."""
    first_shard: int
    """Number of the file of the first new shard."""
    sources: tuple[PlannedSource, ...]
    """In the order of the command."""
    spaces: tuple[str, ...]
    """Digests of the new gene spaces."""
    space_of: tuple[int, ...]
    """Number in the store of the gene space of each source."""
    shards: tuple[PlannedShard, ...]
    """In the order of their cells, before these are reordered."""

    @property
    def digest(self) -> str:
        """Identifies the plan."""
        return blake2b(self._json(), digest_size=16).hexdigest()

    @property
    def n_cells(self) -> int:
        """Cells of all sources."""
        return sum(source.n_cells for source in self.sources)

    def save(self, folder: Path) -> None:
        """Write the plan into the folder of the store."""
        with writing(folder / PLAN):
            write_atomically(folder / PLAN, self._json())

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The plan of the unfinished conversion in a folder; None if there is none.

        Raises:
            StoreFormatError: the file is not a plan of this release.
        """
        path = folder / PLAN
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_bytes())
            sources = tuple(
                PlannedSource(**{**item, "matrices": tuple(map(matrix_part, item["matrices"]))})
                for item in found.pop("sources")
            )
            shards = tuple(PlannedShard(**item) for item in found.pop("shards"))
            found |= {name: tuple(found[name]) for name in ("numbers", "matrices", "spaces", "space_of")}
            return cls(**found, sources=sources, shards=shards)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreFormatError(
                f"{path} is not a plan of a conversion of this release ({error}); delete it to start over"
            ) from error

    def difference(self, other: Self) -> str | None:
        """Why the unfinished conversion ``other`` cannot be continued by this one, for a message; None if it can."""
        ours, theirs = ([source.name for source in plan.sources] for plan in (self, other))
        for name, other_name in zip(ours, theirs, strict=False):
            if name != other_name:
                return f"{name} was {other_name} then"
        if len(ours) != len(theirs):
            return f"there are {len(ours)} sources, then {len(theirs)}"
        if self.appended_to != other.appended_to:
            return "only one of them makes a new store, or the store has changed since"
        for name in ("version", "layout", "seed", "kind", "cells_per_shard", "matrices"):
            mine, theirs_ = getattr(self, name), getattr(other, name)
            if mine != theirs_:
                return f"{name} is {mine!r}, then {theirs_!r}"
        return None

    def changed(self, other: Self) -> dict[str, str]:
        """{source: what has changed} since the unfinished conversion ``other`` of the same sources."""
        pairs = zip(self.sources, other.sources, strict=True)
        return {
            now.name: difference(then.fingerprint, now.fingerprint) or "the files" for now, then in pairs if now != then
        }

    def shard_key(self, index: int, matrix: int | None = None) -> str:
        """Identifies all that a new shard, of the counts or a matrix, depends on, before cells are reordered."""
        shard = self.shards[index]
        source = asdict(self.sources[shard.source])
        parts = source.pop("matrices")
        of_matrix = None if matrix is None else [self.matrices[matrix], parts[matrix]]
        content = [source, of_matrix, asdict(shard), self.kind, self.numbers[shard.source]]
        spaces = [self.appended_to, list(self.spaces), self.space_of[shard.source]]
        return blake2b(json.dumps([self.version, content, spaces]).encode(), digest_size=16).hexdigest()

    def shard_path(self, index: int) -> str:
        """Path of a new shard, relative to its base folder."""
        return f"shards/{self.first_shard + index:05}.cells"

    def matrix_path(self, index: int, matrix: int) -> str:
        """Path of a new shard of a further matrix, relative to its base folder."""
        return f"matrices/{matrix:05}-{self.first_shard + index:05}.cells"

    def obs_path(self, index: int) -> str:
        """Path of the cell table of a source, relative to its base folder."""
        return f"obs/{self.first_table + index:05}.parquet"

    def space_path(self, index: int) -> str:
        """Path of a new gene space, relative to the store."""
        return f"genes/{self.spaces[index]}.parquet"

    def _json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def split_cells(
    n_cells: int, cells_per_shard: int, offsets: NDArray[np.int64] | None, n_genes: int
) -> list[tuple[int, int]]:
    """Ranges of cells for shards of similar size, within the limits of cells and values per shard.

    ``offsets`` ``(n_cells + 1,)`` are those of the cells' values; without them, a cell has at most ``n_genes``.
    """
    if offsets is None:
        cells_per_shard = max(1, min(cells_per_shard, _MOST_VALUES // max(1, n_genes)))
    n = -(-n_cells // cells_per_shard)
    while True:
        edges = np.arange(n + 1) * n_cells // max(1, n)
        if offsets is None or not (np.diff(offsets[edges]) > _MOST_VALUES).any():
            return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        n += 1


def save_record(folder: Path, record: ShardRecord, key: str) -> None:
    """Write the record of a finished shard beside it, with its key; the shard counts as done then."""
    path = _record_path(folder, record.file.path)
    with writing(path):
        write_atomically(path, json.dumps({"key": key, "record": asdict(record)}).encode())


def load_record(folder: Path, shard: str, key: str) -> ShardRecord | None:
    """The record of the shard at path ``shard`` of a folder; None unless it was finished with this key."""
    try:
        found = json.loads(_record_path(folder, shard).read_bytes())
        record = shard_record(found["record"])
        is_whole = found["key"] == key and (folder / shard).stat().st_size == record.file.n_bytes
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if is_whole and record.file.path == shard else None


def _record_path(folder: Path, shard: str) -> Path:
    return (folder / shard).with_suffix(".json")


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderState:
    """Content of a folder: a store (``manifest``), an unfinished conversion (``plan``), both (an append), or none."""

    folder: Path
    manifest: Manifest | None
    digest: str | None
    """Digest of the manifest's bytes."""
    plan: Plan | None
    is_clear: bool
    """Whether no file of a finished or running conversion is left."""

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Look at a folder, which need not exist.

        Raises:
            FileExistsError: it is a file, or holds something else.
            StoreFormatError: the store in it is damaged.
        """
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} is a file, but a store is a folder; choose another name")
        plan, path = Plan.load(folder), folder / MANIFEST
        manifest = Manifest.load(folder) if path.is_file() else None
        digest = blake2b(path.read_bytes(), digest_size=16).hexdigest() if manifest is not None else None
        if manifest is None and plan is None:
            _refuse_foreign(folder)
        # the manifest is written last: a plan for an earlier manifest has been completed
        ended = plan is not None and manifest is not None and plan.appended_to != digest
        is_clear = not ended and not (folder / LOCK).exists()
        return cls(folder=folder, manifest=manifest, digest=digest, plan=None if ended else plan, is_clear=is_clear)


def _refuse_foreign(folder: Path) -> None:
    there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in there if name not in _BEFORE_A_PLAN]
    if foreign:
        raise FileExistsError(
            f"{folder} holds {len(foreign)} other files or folders ({foreign[0]}), and neither a store nor an "
            "unfinished conversion; name a new folder, or empty this one"
        )


def clear(folder: Path, manifest: Manifest | None) -> None:
    """Remove everything that conversions have written into a folder but the store of this manifest; the plan last."""
    kept = set() if manifest is None else {file.path for file in manifest.files}
    shutil.rmtree(folder / UNORDERED, ignore_errors=True)
    for name in FOLDERS:
        inside = sorted((folder / name).iterdir()) if (folder / name).is_dir() else []
        for file in inside:
            if _OWN_FILE.fullmatch(file.name) and f"{name}/{file.name}" not in kept:
                file.unlink(missing_ok=True)
        with suppress(OSError):  # those of a store are not empty
            (folder / name).rmdir()
    for name in (MANIFEST + PARTIAL, PLAN + PARTIAL, PLAN):
        (folder / name).unlink(missing_ok=True)


def is_own_file(path: str) -> bool:
    """Whether a path in the folder of a store is one that a conversion writes."""
    folder, _, name = path.rpartition("/")
    return path == MANIFEST or (folder in FOLDERS and _OWN_FILE.fullmatch(name) is not None)


def forget_tables(folder: Path, plan: Plan) -> None:
    """Remove what an unfinished conversion has written of obs, and the order of the cells, which may depend on it."""
    for base in (folder, folder / UNORDERED):
        for i in range(len(plan.sources)):
            (base / plan.obs_path(i)).unlink(missing_ok=True)
    for name in (ORDER, PLACES):
        (folder / UNORDERED / name).unlink(missing_ok=True)
