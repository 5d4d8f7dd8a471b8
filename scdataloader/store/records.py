"""Records of cells of a store that are located and not decoded yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.records.decode import OK, decode_records
from scdataloader.kernels.records.format import Records
from scdataloader.kernels.records.unpack import unpack_records
from scdataloader.kernels.rows.align import is_sequence, row_starts
from scdataloader.kernels.rows.densify import densify
from scdataloader.runtime.memory import BufferPool, row_buffers
from scdataloader.store.gene_spaces import GeneTables
from scdataloader.store.mapped_shards import WHY, Kernel, MappedShards
from scdataloader.types import CSRMatrix, GenePlaces, RowBuffers


@lru_cache(maxsize=16)
def _columns(n: int) -> GeneTables:
    """Columns 0 to n - 1 as they are."""
    return GeneTables([np.arange(n, dtype=np.int32)], [GenePlaces.all_of(n)], n)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordLocations:
    """Records of some cells, located but not decoded."""

    refuse: Callable[[int, str, MappedShards], NoReturn]
    """Reports a damaged cell, by its row in the store."""
    shards: MappedShards
    """The maps that hold the records; they stay open as long as this object exists."""
    rows: NDArray[np.int64]
    """``(m,)`` rows of the cells in the store."""
    shard: NDArray[np.int64]
    """``(m,)`` number of each cell's shard."""
    records: Records

    def slice(self, start: int, stop: int) -> RecordLocations:
        """Cells ``[start, stop)`` of these, as views."""
        return RecordLocations(
            refuse=self.refuse,
            shards=self.shards,
            rows=self.rows[start:stop],
            shard=self.shard[start:stop],
            records=Records(*(array[start:stop] for array in self.records)),
        )

    def start(self) -> None:
        """Start loading the records; returns at once."""
        self.shards.start(self.shard, self.records)

    def run(self, kernel: Kernel) -> None:
        """Run a kernel on the records, which are loaded.

        Raises:
            SourceChangedError: a shard has changed since it was mapped.
            StoreFormatError: a record is damaged.
        """
        status, at = self.shards.run(self.shard, self.records, self.rows, kernel)
        if status != OK:
            self.refuse(int(self.rows[at]), WHY[status], self.shards)

    def decode(
        self,
        source: NDArray[np.integer],
        genes: GeneTables,
        place: NDArray[np.int64],
        out: RowBuffers,
    ) -> None:
        """Write cells in vocabulary genes to the rows ``place`` of ``out``, as `align_rows` does for a matrix.

        Cell i belongs to source ``source[i]`` of those in ``genes``.

        Raises:
            SourceChangedError: a shard has changed since it was mapped.
            StoreFormatError: a record is damaged.
        """
        table, closed = genes.of_source[source], is_sequence(place, len(out.sizes))

        def decode(records: Records, rows: NDArray[np.int64], checked: NDArray[np.uint8], at: slice) -> tuple[int, int]:
            result: tuple[int, int] = decode_records(
                records, rows, checked, genes.look_up, table[at], place[at], closed, out
            )
            return result

        self.run(decode)

    def dense(self, n_columns: int, buffers: BufferPool | None = None) -> NDArray[np.float32]:
        """``(m, n_columns)`` values of cells of "obsm/…".

        Raises:
            SourceChangedError: a shard has changed since it was mapped.
            StoreFormatError: a record is damaged.
        """
        n, rows = len(self.rows), row_buffers(self.records.size, buffers)
        self.decode(np.zeros(n, np.int64), _columns(n_columns), np.arange(n), rows)
        if (self.records.size == n_columns).all():  # without zeros, the values are the rows
            return rows.data.reshape(n, n_columns)
        out = np.empty((n, n_columns), np.float32)
        densify(rows.starts, rows.indices, rows.data, out)
        return out

    def unpack(self, order: NDArray[np.int32], *, floats: bool) -> CSRMatrix:
        """Exact values of the cells, uint32 or float32 (``floats``), sorted by gene within a cell.

        Args:
            order: ``(n_space,)`` number of each gene of the gene space in the result; -1 for genes of other sources.
            floats: Kind of the values.

        Raises:
            SourceChangedError: a shard has changed since it was mapped.
            StoreFormatError: a record is damaged, or has a gene of another source.
        """
        starts = row_starts(self.records.size)
        indices, bits = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.uint32)

        def unpack(records: Records, _rows: object, _checked: object, at: slice) -> tuple[int, int]:
            result: tuple[int, int] = unpack_records(records, order, floats, starts[at], indices, bits)
            return result

        self.run(unpack)
        return CSRMatrix(indptr=starts, indices=indices, data=bits.view(np.float32) if floats else bits)
