"""Records of cells of a store that are located and not decoded yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.records.decode import OK
from scdataloader.kernels.records.format import Records
from scdataloader.kernels.records.unpack import unpack_records
from scdataloader.kernels.rows.align import row_starts
from scdataloader.store.mapped_shards import WHY, Kernel, MappedShards

if TYPE_CHECKING:
    from scdataloader.store.reader import Store
from scdataloader.types import CSRMatrix


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordLocations:
    """Records of some cells, located but not decoded."""

    store: Store
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
            store=self.store,
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
            self.store.refuse(int(self.rows[at]), WHY[status], self.shards)

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
