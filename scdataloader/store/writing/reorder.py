"""Reordering of converted cells: records are copied, not decoded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError
from scdataloader.kernels.draws.random import derive_key, permute_range
from scdataloader.kernels.records.decode import locate_records
from scdataloader.kernels.records.format import Records, restamp_records
from scdataloader.kernels.rows.align import row_starts
from scdataloader.runtime.files import opened_atomically, writing
from scdataloader.store.manifest import Kind, ShardRecord
from scdataloader.store.mapped_shards import MappedShards
from scdataloader.store.tables import ROW, write_arrow
from scdataloader.store.writing.plan import GROUPED, ORDER, PLACES, Plan, save_record, split_cells
from scdataloader.store.writing.tasks import Place, Task, blocks, noting, shard_writer

_ORDER_STREAM = 0x0C0D
"""Separates the random order from other streams of the same seed."""


def reorder_tasks(
    place: Place,
    unordered: Path,
    plan: Plan,
    records: Sequence[Sequence[ShardRecord]],
    n_genes: Sequence[Sequence[int]],
) -> list[Task]:
    """The tasks that move all cells from ``unordered`` into the order of the plan.

    Args:
        place: Where they write.
        unordered: Folder of the cells in the order of their sources.
        plan: The plan.
        records: The shards in ``unordered`` of the counts, and of each further matrix.
        n_genes: For each of these, the number of genes of the gene space of each of the plan's sources, or of its
            columns.
    """
    order = _ordered(unordered, plan)
    starts = np.cumsum([0, *(source.n_cells for source in plan.sources)])
    tasks: list[Task] = [
        SortObs(place=place, path=plan.obs_path(i), unordered=unordered, first=int(starts[i]), last=int(starts[i + 1]))
        for i in range(len(plan.sources))
    ]
    of_sources = [(0,) * plan.numbers[0] + tuple(of_matrix) for of_matrix in n_genes]
    mapped = MappedShards(unordered, records[0], of_sources[0])
    sizes = np.concatenate([mapped.sizes(i) for i in range(len(records[0]))])
    offsets = np.zeros(len(order) + 1, np.int64)
    np.cumsum(sizes[order], dtype=np.int64, out=offsets[1:])
    ranges = split_cells(plan.n_cells, plan.cells_per_shard, offsets, 0)
    for number, (shards, of_source) in enumerate(zip(records, of_sources, strict=True), -1):
        tasks += [
            CopyCells(
                place=place,
                path=plan.shard_path(i) if number < 0 else plan.matrix_path(i, number),
                unordered=unordered,
                records=tuple(shards),
                n_genes=of_source,
                first=first,
                last=last,
                kind=plan.kind if number < 0 else "either",
                compact=plan.compact,
            )
            for i, (first, last) in enumerate(ranges)
        ]
    return tasks


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyCells:
    """Writes the cells at places [first, last) of the new order to a shard."""

    place: Place
    path: str
    unordered: Path
    """Folder of the cells in the order of their sources."""
    records: tuple[ShardRecord, ...]
    """Shards in ``unordered``, in the order of their cells."""
    n_genes: tuple[int, ...]
    """Number of genes of the gene space of each source in the store."""
    first: int
    last: int
    kind: Kind
    compact: bool
    """Whether records may be packed."""

    @property
    def n_cells(self) -> int:
        """Cells of the shard."""
        return self.last - self.first

    def run(self) -> None:
        """Write the shard, then its record.

        Raises:
            StoreFormatError: a record is damaged.
            WriteError: the shard cannot be written.
        """
        order = np.load(self.unordered / ORDER, mmap_mode="r")[self.first : self.last]
        shards = _Records(self.unordered, self.records, self.n_genes, further=self.kind == "either")
        folder, path = self.place.folder, self.path
        shard = shard_writer(folder, path, self.kind, 0, mixed=True, compact=self.compact)
        with noting(self.place, path) as note, shard as writer:
            for start, stop in blocks(len(order), shards.offsets(order), 0):
                words, offsets, sizes, sources = shards.copied(order[start:stop], writer.n_cells)
                with writing(folder / path):
                    writer.append_records(words, offsets, sizes, sources)
                note(stop)
            with writing(folder / path):
                record = writer.finish()
        save_record(folder, record, self.place.key)


class _Records:
    """Records of the cells of some shards, in one numbering.

    They are read, not mapped: random accesses to a map would load the pages around each record as well.
    """

    def __init__(self, folder: Path, records: Sequence[ShardRecord], n_genes: Sequence[int], *, further: bool) -> None:
        self._paths = [folder / record.file.path for record in records]
        self._mapped = MappedShards(folder, records, n_genes, further=further)
        self._starts = np.cumsum([0, *(record.n_cells for record in records)])
        self._sources = np.array([record.source for record in records], np.uint32)

    def offsets(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """``(n + 1,)`` offsets of the values of cells."""
        *_, size = self._located(cells)
        return row_starts(size)

    def copied(
        self, cells: NDArray[np.int64], first_cell: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint32]]:
        """Records, with checksums of cells ``first_cell`` and on of another shard; their offsets, sizes and sources.

        Raises:
            StoreFormatError: a record is damaged.
        """
        shard, cell, begin, length, size = self._located(cells)
        offsets = row_starts(length)
        words = np.empty(int(offsets[-1]) // 8, np.uint64)
        self._read(words.view(np.uint8).data, shard, begin, offsets)
        at = restamp_records(words, offsets[:-1], length, cell, first_cell)
        if at >= 0:
            self._refuse(shard[at], cell[at])
        return words, offsets[:-1], size.astype(np.uint32), self._sources[shard]

    def _located(self, cells: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Shard, number in the shard, first byte in its file, length in bytes and number of values of each cell."""
        shard = np.searchsorted(self._starts, cells, side="right") - 1
        cell = cells - self._starts[shard]
        records = Records(cell, *(np.empty(len(cells), np.int64) for _ in range(3)))
        mapped = self._mapped
        at = locate_records(mapped.base, mapped.index, mapped.n_cells, shard, records)
        mapped.release()
        if at >= 0:
            self._refuse(shard[at], cell[at])
        return shard, cell, records.address - mapped.base[shard], records.length, records.size

    def _read(
        self, out: memoryview, shard: NDArray[np.int64], begin: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> None:
        """Fill ``out``, at ``offsets``, with the bytes of the shards from ``begin`` on.

        All reads are announced to the system before the first one, which makes disks many times faster.
        """
        order = np.lexsort((begin, shard))
        numbers, first = np.unique(shard[order], return_index=True)
        wanted = list(zip(begin.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
        groups = [[wanted[i] for i in group.tolist()] for group in np.split(order, first[1:])]
        for act in (_announce, _fill):
            for number, group in zip(numbers.tolist(), groups, strict=True):
                with self._paths[number].open("rb", buffering=0) as file:
                    act(file.fileno(), out, group)

    def _refuse(self, shard: int, cell: int) -> None:
        raise StoreFormatError(
            f"{self._paths[shard]} is damaged at cell {cell}; delete it, and rerun the same command to write it again"
        )


def _announce(descriptor: int, _: memoryview, wanted: list[tuple[int, int, int]]) -> None:
    if hasattr(os, "posix_fadvise"):
        for begin, to, end in wanted:
            os.posix_fadvise(descriptor, begin, end - to, os.POSIX_FADV_WILLNEED)


def _fill(descriptor: int, out: memoryview, wanted: list[tuple[int, int, int]]) -> None:
    for begin, to, end in wanted:
        os.preadv(descriptor, [out[to:end]], begin)  # if the file is truncated, checksums do not match


@dataclass(frozen=True, kw_only=True, slots=True)
class SortObs:
    """Writes the cell table of a source in the order of the store."""

    place: Place
    path: str
    """Path of the table, in ``unordered`` and in the store."""
    unordered: Path
    """Folder of the table in the order of the source."""
    first: int
    """First cell of the source; cells are numbered source after source."""
    last: int
    n_cells: int = 0

    def run(self) -> None:
        """Write the file.

        Raises:
            WriteError: the file cannot be written.
        """
        places = np.load(self.unordered / PLACES, mmap_mode="r")[self.first : self.last]
        rows = np.argsort(places)
        table = pq.read_table(self.unordered / self.path)
        write_arrow(self.place.folder, self.path, table.take(rows).append_column(ROW, pa.array(rows, pa.int64())))


def _ordered(unordered: Path, plan: Plan) -> NDArray[np.int64]:
    """``(n_cells,)`` cell at each place; computed once and saved beside the cells."""
    path = unordered / ORDER
    if not path.exists():
        if plan.layout.startswith(GROUPED):
            order = np.argsort(_labels(unordered, plan, plan.layout.removeprefix(GROUPED)), kind="stable")
        else:
            order = np.empty(plan.n_cells, np.int64)
            permute_range(derive_key(plan.seed, _ORDER_STREAM), plan.n_cells, 0, order)
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        _save(unordered / PLACES, places)
        _save(path, order)
    mapped: NDArray[np.int64] = np.load(path, mmap_mode="r")
    return mapped


def _save(path: Path, values: NDArray[Any]) -> None:
    with writing(path), opened_atomically(path) as file:
        np.save(file, values)


def _labels(unordered: Path, plan: Plan, column: str) -> NDArray[np.int32]:
    """``(n_cells,)`` rank of each cell's label among the sorted labels of all sources; missing labels are last."""
    codes, names = [], []
    for i in range(len(plan.sources)):
        values = pq.read_table(unordered / plan.obs_path(i), columns=[column]).column(column).to_pandas()
        code, name = pd.factorize(values)
        codes.append(code)
        names.append(name.tolist())
    known = {label for part in names for label in part}
    numeric = all(isinstance(label, int | float) for label in known)
    ordered = sorted(known) if numeric else sorted(known, key=lambda label: (str(label), type(label).__name__))
    rank = {label: i for i, label in enumerate(ordered)}
    tables = [np.array([*(rank[label] for label in part), len(rank)], np.int32) for part in names]
    return np.concatenate([table[code] for table, code in zip(tables, codes, strict=True)])
