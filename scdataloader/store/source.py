"""One source of a store, which reads like any other source of a collection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError
from scdataloader.kernels.records.decode import OK
from scdataloader.kernels.records.unpack import BAD_GENE, unpack_records
from scdataloader.runtime.memory import row_buffers
from scdataloader.store.gene_spaces import GenePlaces
from scdataloader.store.gene_tables import GeneTables
from scdataloader.store.manifest import MANIFEST
from scdataloader.store.shard import WHY
from scdataloader.store.tables import ROW, Table
from scdataloader.types import CSRMatrix, CSRRows

if TYPE_CHECKING:
    from scdataloader.store.reader import Located, Store


class StoreSource:
    """The cells of one of the sources that a store was made of, in the order in which the store has them."""

    def __init__(self, store: Store, number: int) -> None:
        self.store = store
        self.number = number
        record = store.manifest.sources[number]
        self.name = record.name
        self.n_obs = record.n_cells
        self.uns_organism = record.uns_organism
        self.counts = record.kind
        self.fingerprint = record.fingerprint
        self.obs_table = Table(store.path, record.obs)
        self.var_table = Table(store.path, store.manifest.genes[record.genes])
        self.space = store.spaces[record.space]
        self._columns: list[str] | None = None
        self._var: pd.DataFrame | None = None
        self._rows: NDArray[np.int64] | None = None

    @property
    def obs_columns(self) -> list[str]:
        """Columns of the cell table."""
        if self._columns is None:
            self._columns = self.obs_table.columns
        return self._columns

    @property
    def var(self) -> pd.DataFrame:
        """Genes, sorted by their ids as written; with their place in the source as a column more."""
        if self._var is None:
            self._var = self.var_table.read()
        return self._var

    @property
    def places(self) -> GenePlaces:
        """The numbers of its genes in records.

        Raises:
            StoreFormatError: it has genes that are not in its gene space, or a table is damaged.
        """
        name = self.store.manifest.sources[self.number].genes
        return self.space.places(self.var_table, name, self.var.index)

    @property
    def rows(self) -> NDArray[np.int64]:
        """``(n_obs,)`` numbers of its cells in the store."""
        if self._rows is None:
            rows = np.flatnonzero(self.store.source_of_cell == self.number)
            if len(rows) != self.n_obs:
                where = f"{self.store.path / MANIFEST} says that {self.name} has {self.n_obs:,} cells"
                raise StoreFormatError(f"{where}, the shards have {len(rows):,}; copy or convert the store again")
            self._rows = rows
        return self._rows

    @property
    def nnz(self) -> NDArray[np.int64]:
        """``(n_obs,)`` number of values of each cell."""
        return self.store.sizes()[self.rows].astype(np.int64)

    @property
    def stored_offsets(self) -> NDArray[np.int64]:
        """``(n_obs + 1,)`` offsets of the values of its cells, laid end to end."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.nnz)])

    def whole_obs(self) -> pd.DataFrame:
        """The whole cell table, with its index.

        Raises:
            StoreFormatError: the table is damaged.
        """
        return self.obs_table.read(n_rows=self.n_obs).drop(columns=ROW, errors="ignore")

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """Columns of the cell table.

        Raises:
            KeyError: a column is missing; names the source.
            StoreFormatError: the table is damaged.
        """
        missing = [column for column in columns if column not in self.obs_columns]
        if missing:
            raise KeyError(f"{self.name} in {self.store.path} has no obs column {missing[0]!r}")
        return self.obs_table.read(columns, n_rows=self.n_obs)

    def read(self, rows: NDArray[np.int64]) -> CSRRows:
        """Cells ``rows`` in that order, repeats allowed, in the numbering of ``var``.

        Raises:
            IndexError: a row is outside [0, n_obs).
            StoreFormatError: the store is damaged.
        """
        n_genes, found = len(self.var), self._located(rows)
        slots = row_buffers(found.size)
        # To this table the genes that the source has not are of the source, but not of the vocabulary: left out.
        genes = GeneTables([self._numbers()], [GenePlaces.all_of(self.space.n_genes)], n_genes)
        self.store.decode(found, np.zeros(len(rows), np.int64), genes, np.arange(len(rows)), slots)
        if (slots.sizes < found.size).any():
            self.store.refuse(int(found.rows[np.argmax(slots.sizes < found.size)]), WHY[BAD_GENE])
        return CSRRows(data=slots.data, indices=slots.indices, indptr=slots.starts, n_genes=n_genes)

    def read_stored(self, rows: NDArray[np.int64]) -> CSRMatrix:
        """As `read`, with counts in whole numbers of 32 bits: exact, where float32 may have to round."""
        found = self._located(rows)
        starts = np.zeros(len(found.size) + 1, np.int64)
        np.cumsum(found.size, out=starts[1:])
        indices, bits = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.uint32)
        status, at = unpack_records(
            found.address,
            found.length,
            found.size,
            found.cell,
            self._numbers(),
            starts,
            indices,
            bits,
        )
        if status != OK:
            self.store.refuse(int(found.rows[at]), WHY[status])
        return CSRMatrix(
            indptr=starts, indices=indices, data=bits if self.counts == "counts" else bits.view(np.float32)
        )

    def _numbers(self) -> NDArray[np.int32]:
        """``(n_space,)`` its number of each gene of its gene space; -1 for those it has not."""
        return self.places.spread(np.arange(len(self.var), dtype=np.int32), -1)

    def _located(self, rows: NDArray[np.int64]) -> Located:
        rows = np.ascontiguousarray(rows, np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.n_obs):
            raise IndexError(f"{self.name} has cells 0 to {self.n_obs - 1}; got {rows.min()} to {rows.max()}")
        return self.store.locate(self.rows[rows])

    def release(self) -> None:
        """Give the system back the memory that the store's maps take; what is read again is mapped again."""
        self.store.shards.release()

    def close(self) -> None:
        """Let go of the store's memory maps."""
        self.store.close()

    def forget(self) -> None:
        """As `close`, and let go of all else that can be read again."""
        self.close()
        self._columns = self._var = self._rows = None

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreSource, (self.store, self.number)
