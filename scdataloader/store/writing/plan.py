"""What a conversion will write, fixed before its first cell is read: so that another try goes on where one stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError
from scdataloader.runtime.files import write_atomically, writing
from scdataloader.store.manifest import Kind, ShardRecord, shard_record

PLAN = "conversion.json"
UNORDERED = "unordered"
"""Folder of the cells in the order of their sources, where they are to be put into another one."""
GROUPED = "grouped:"
"""Begins the layout by an obs column."""
_VERSION = 1
_MOST_VALUES = 1 << 32
"""That a shard can hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedSource:
    """A source that is to be converted."""

    name: str
    """What it is called."""
    fingerprint: str
    """Of its content."""
    n_cells: int
    """How many cells it has."""
    genes: str
    """Digest of its gene table."""
    uns_organism: str | None
    """The organism that it states for all its cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedShard:
    """A shard of cells of one source."""

    source: int
    """Which of the plan's sources."""
    first: int
    """Its first row there."""
    last: int
    """One more than its last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All that decides what a conversion writes."""

    version: int = _VERSION
    """Of this file."""
    layout: str
    """How cells will be ordered."""
    seed: int
    """Of the order, if it is a random one."""
    kind: Kind
    """What values will be kept as."""
    cells_per_shard: int
    """At most."""
    appended_to: str | None
    """Digest of the manifest that these sources are added to; None for a new store."""
    first_source: int
    """Number of the first of the sources in the store."""
    first_shard: int
    """Number of the first new shard."""
    sources: tuple[PlannedSource, ...]
    """In the order in which they were named."""
    spaces: tuple[str, ...]
    """Digests of the new gene spaces."""
    space_of: tuple[int, ...]
    """(sources) the gene space of each, by its number in the store."""
    shards: tuple[PlannedShard, ...]
    """In the order of their cells; before these are put into another one."""

    @property
    def digest(self) -> str:
        """Names the plan."""
        return blake2b(self._json(), digest_size=16).hexdigest()

    @property
    def n_cells(self) -> int:
        """Cells that it is for."""
        return sum(source.n_cells for source in self.sources)

    def save(self, folder: Path) -> None:
        """Write it into the folder of the store."""
        with writing(folder / PLAN):
            write_atomically(folder / PLAN, self._json())

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The plan of the unfinished conversion in a folder; None where there is none.

        Raises:
            StoreFormatError: what lies there is no plan.
        """
        path = folder / PLAN
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_bytes())
            sources = tuple(PlannedSource(**item) for item in found.pop("sources"))
            shards = tuple(PlannedShard(**item) for item in found.pop("shards"))
            found |= {name: tuple(found[name]) for name in ("spaces", "space_of")}
            return cls(**found, sources=sources, shards=shards)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreFormatError(
                f"{path} is no plan of a conversion of this release ({error}); delete it to start over"
            ) from error

    def difference(self, other: Self) -> str | None:
        """What another plan has otherwise, in words; None where they are the same."""
        if self == other:
            return None
        ours, theirs = ([(s.name, s.fingerprint) for s in plan.sources] for plan in (self, other))
        for (name, digest), (other_name, other_digest) in zip(ours, theirs, strict=False):
            if digest != other_digest:
                changed = f"{name} has changed since" if name == other_name else f"{name} was {other_name} there"
                return f"{changed} (fingerprint {digest}, there {other_digest})"
        if len(ours) != len(theirs):
            return f"{len(ours)} sources were named, there it is {len(theirs)}"
        if self.appended_to != other.appended_to:
            return "one is to make a new store, or the store has changed since"
        for field in fields(self):
            if field.name not in {"sources", "spaces", "space_of", "shards"}:
                asked, there = getattr(self, field.name), getattr(other, field.name)
                if asked != there:
                    return f"{field.name} is {asked!r}, there it is {there!r}"
        return "sources have other names, or genes"

    def shard_path(self, index: int) -> str:
        """Path of a new shard, relative to the folder that it lies in."""
        return f"shards/{self.first_shard + index:05}.cells"

    def obs_path(self, index: int) -> str:
        """Path of the cell table of one of its sources, relative to the folder that it lies in."""
        return f"obs/{self.first_source + index:05}.parquet"

    def space_path(self, index: int) -> str:
        """Path of a new gene space, relative to the store."""
        return f"genes/{self.spaces[index]}.parquet"

    def _json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def split_cells(
    n_cells: int, cells_per_shard: int, offsets: NDArray[np.int64] | None, n_genes: int
) -> list[tuple[int, int]]:
    """Ranges of cells for shards of about the same size, none with more cells or values than a shard can hold.

    ``offsets`` ``(n_cells + 1,)`` number the cells' values; None where they are not known, and genes bound them.
    """
    if offsets is None:
        cells_per_shard = max(1, min(cells_per_shard, _MOST_VALUES // max(1, n_genes)))
    n = -(-n_cells // cells_per_shard)
    while True:
        edges = np.arange(n + 1) * n_cells // max(1, n)
        if offsets is None or not (np.diff(offsets[edges]) > _MOST_VALUES).any():
            return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        n += 1


def save_record(folder: Path, record: ShardRecord, plan: str) -> None:
    """Note beside a finished shard what it holds, and by which plan: from then on it is done."""
    path = _beside(folder, record.file.path)
    with writing(path):
        write_atomically(path, json.dumps({"plan": plan, "record": asdict(record)}).encode())


def load_record(folder: Path, shard: str, plan: str) -> ShardRecord | None:
    """The record of the shard at path ``shard`` of a folder, if it was finished by this very plan; else None."""
    try:
        found = json.loads(_beside(folder, shard).read_bytes())
        record = shard_record(found["record"])
        is_whole = found["plan"] == plan and (folder / shard).stat().st_size == record.file.n_bytes
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if is_whole and record.file.path == shard else None


def _beside(folder: Path, shard: str) -> Path:
    return (folder / shard).with_suffix(".json")
