"""Whether every byte of a shard is what was written, and follows every rule of the format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError
from scdataloader.kernels.records.decode import OK
from scdataloader.kernels.records.records import HEADER
from scdataloader.kernels.records.unpack import check_records
from scdataloader.runtime.progress import Advance
from scdataloader.store.gene_spaces import GenePlaces
from scdataloader.store.manifest import Manifest, ShardRecord
from scdataloader.store.shard import FIRST_RECORD, WHY, MappedShards

_PIECE = 16 << 20
"""Bytes that are read at once, first to sum them up, then, while they are in the cache, to check their records."""
_CELLS_NAMED = 10
"""Damaged cells of a shard that are named; of the others, how many there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownGenes:
    """Which genes of its gene space each source of a store has."""

    n_genes: NDArray[np.int64]
    """``(S,)`` genes of the space."""
    table: NDArray[np.int64]
    """``(S,)`` which table is of the source."""
    has: NDArray[np.bool_]
    """Tables end to end: whether it has the gene. One is empty, for sources whose genes are not known."""
    start: NDArray[np.int64]
    """``(T + 1,)`` where each begins."""

    @classmethod
    def of(cls, manifest: Manifest, places: Mapping[tuple[str, int], GenePlaces]) -> Self:
        """Of what is known: {(gene table, gene space): places}."""
        tables = [
            np.empty(0, np.bool_),
            *(own.spread(np.ones(len(own.place), np.bool_), foreign=False) for own in places.values()),
        ]
        number = {name: at for at, name in enumerate(places, 1)}
        return cls(
            n_genes=np.array([manifest.spaces[source.space].n_genes for source in manifest.sources], np.int64),
            table=np.array([number.get((source.genes, source.space), 0) for source in manifest.sources], np.int64),
            has=np.concatenate(tables),
            start=np.cumsum([0, *map(len, tables)]),
        )


def check_shard(
    folder: Path,
    manifest: Manifest,
    shard: ShardRecord,
    genes: KnownGenes,
    advance: Advance,
) -> tuple[list[str], NDArray[np.int64]]:
    """Read a shard of the store in ``folder`` from front to end.

    Returns what is wrong with it, and its cells of each source ``(S,)``, which are no good where anything is wrong.
    """
    try:
        mapped = MappedShards(folder, [shard], genes.n_genes.tolist())
        mapped.check_index(0)
    except StoreFormatError as error:
        advance(shard.file.n_bytes)
        return [str(error)], np.zeros(len(manifest.sources), np.int64)
    check = _ShardCheck(mapped, manifest, shard, genes)
    problems = [*check.wrong_in_index(), *check.wrong_records(advance), *check.wrong_checksums()]
    return [f"{folder / shard.file.path}: {problem}" for problem in problems], check.cells_of


class _ShardCheck:
    """A shard whose index has the right checksum, which says nothing yet of what is in it."""

    def __init__(self, mapped: MappedShards, manifest: Manifest, shard: ShardRecord, genes: KnownGenes) -> None:
        self._mapped, self._sources, self._shard, self._genes = mapped, manifest.sources, shard, genes
        self._floats, self._stated = mapped.stated(0)
        self._digest = blake2b(digest_size=len(self._stated))
        self._end = int(mapped.index[0])
        offsets = mapped.offsets(0)
        self._begin, self._length = offsets[:-1], offsets[1:] - offsets[:-1]
        self._size = mapped.sizes(0).astype(np.int64)
        if shard.source is None:
            self._source = mapped.sources(0).astype(np.int64)
        else:
            self._source = np.full(len(self._size), shard.source, np.int64)
        known = self._source < len(self._sources)
        self.cells_of = np.bincount(self._source[known], minlength=len(self._sources))
        in_file = (offsets >= FIRST_RECORD) & (offsets <= self._end) & (offsets % 8 == 0)
        self._is_found = in_file[:-1] & in_file[1:] & (self._length >= HEADER) & (2 * self._size <= self._length)
        self._is_sound = self._is_found & known

    def wrong_in_index(self) -> Iterator[str]:
        """What does not fit together in the shard's index, or with the manifest."""
        yield from _cells(~self._is_found, "the index names no place in the file for it")
        offsets = self._mapped.offsets(0)
        if (offsets[0], offsets[-1]) != (FIRST_RECORD, self._end):
            yield "its records do not fill the bytes between its head and its index"
        if self._shard.source is None:
            yield from _cells(self._source >= len(self._sources), "the index names no source of the store for it")
        for number in np.flatnonzero(self.cells_of):
            source = self._sources[int(number)]
            if (source.kind == "float32") != self._floats:
                own = "float32" if self._floats else "counts"
                yield f"it has {own}, but the manifest says that {source.name} has {source.kind}"

    def wrong_records(self, advance: Advance) -> Iterator[str]:
        """The cells whose records are damaged. Sums up the file on the way."""
        status = np.full(len(self._size), OK, np.uint8)
        sound = np.flatnonzero(self._is_sound)
        in_order = sound[np.argsort(self._begin[sound], kind="stable")]
        edges = [0, *range(_PIECE, self._end, _PIECE), self._end]
        cuts = np.searchsorted(self._begin[in_order], edges)
        with memoryview(self._mapped.content(0)) as content:
            for start, stop, first, last in zip(edges[:-1], edges[1:], cuts[:-1], cuts[1:], strict=True):
                self._digest.update(content[start:stop])
                status[in_order[first:last]] = self._checked(in_order[first:last])
                advance(stop - start)
            self._of_records = self._digest.digest()
            self._digest.update(content[self._end :])
            advance(len(content) - self._end)
        for what, why in WHY.items():
            yield from _cells(status == what, why)

    def _checked(self, cells: NDArray[np.int64]) -> NDArray[np.uint8]:
        """``(m,)`` what is wrong with the records of cells whose places are sound."""
        status, genes, source = np.empty(len(cells), np.uint8), self._genes, self._source[cells]
        check_records(
            self._mapped.base[0] + self._begin[cells],
            self._length[cells],
            self._size[cells],
            cells,
            genes.n_genes[source],
            genes.table[source],
            genes.has,
            genes.start,
            self._floats,
            status,
        )
        return status

    def wrong_checksums(self) -> Iterator[str]:
        """Whether the file is the one that was written, whatever is in it; after `wrong_records`."""
        if self._digest.hexdigest() != self._shard.file.checksum:
            yield f"its checksum is {self._digest.hexdigest()}, the manifest says {self._shard.file.checksum}"
        elif self._of_records != self._stated:
            yield "the checksum that it has of all bytes before its index does not match"


def _cells(is_wrong: NDArray[np.bool_], why: str) -> Iterator[str]:
    """Some of the cells that something is wrong with, by name."""
    wrong = np.flatnonzero(is_wrong)
    yield from (f"cell {cell}: {why}" for cell in wrong[:_CELLS_NAMED])
    if len(wrong) > _CELLS_NAMED:
        yield f"{len(wrong) - _CELLS_NAMED:,} more cells of which the same is true"
