"""One source of a store, which reads like any other source of a collection."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError
from scdataloader.kernels.records.decode import OK
from scdataloader.kernels.records.unpack import BAD_GENE, unpack_records
from scdataloader.protocols import ReadCost, SourceSelection
from scdataloader.runtime.memory import row_buffers
from scdataloader.runtime.read_ahead import read_ahead
from scdataloader.store.gene_spaces import GenePlaces
from scdataloader.store.gene_tables import GeneTables
from scdataloader.store.manifest import MANIFEST
from scdataloader.store.shard import WHY
from scdataloader.store.tables import ROW, Table
from scdataloader.types import CSRMatrix, CSRRows, RowBuffers

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
        self.organism = record.uns_organism
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

    def nnz(self) -> NDArray[np.int64]:
        """``(n_obs,)`` number of values of each cell."""
        return self.store.sizes()[self.rows].astype(np.int64)

    @property
    def read_group(self) -> Store:
        """The store: its sources are read together."""
        return self.store

    def open_group(
        self, members: Sequence[SourceSelection], luts: Sequence[NDArray[np.int32]], n_genes: int
    ) -> StoreGroup:
        """A reader of several sources of the store."""
        return StoreGroup(self.store, members, luts, n_genes)

    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        return self.whole_obs().index

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
        """Close the store's memory maps, and drop the tables that were read."""
        self.store.close()
        self._columns = self._var = self._rows = None

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreSource, (self.store, self.number)


class StoreGroup:
    """Cells of several sources of a store, decoded in one pass: all cells of the store, or a selection.

    Rows are in the store's order wherever that mixes its sources, so that neighbouring rows are neighbours on disk.
    """

    read_cost = ReadCost(cell=1.0, neighbour=1.0)

    def __init__(
        self, store: Store, members: Sequence[SourceSelection], luts: Sequence[NDArray[np.int32]], n_genes: int
    ) -> None:
        sources = [member.source for member in members if isinstance(member.source, StoreSource)]
        self._store, self._members, self._sources = store, members, sources
        self._genes = GeneTables(luts, [source.places for source in sources], n_genes)
        self._is_whole = sources == store.sources and all(member.rows is None for member in members)
        self.is_interleaved = store.is_mixed
        self.fingerprint = store.fingerprint

    def locate(self, rows: NDArray[np.int64]) -> StoreRead:
        """Where in the mapped files the records of ``rows`` are."""
        if self._is_whole:
            found = self._store.locate(rows)
            return StoreRead(found, self._store.sources_of(found), self._genes)
        cells, member, _ = self._selected
        return StoreRead(self._store.locate(cells[rows]), member[rows].astype(np.int64), self._genes)

    def arrange(self, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Values of each member's cells, one member after the other or, where the store mixes its sources, mixed."""
        if not self.is_interleaved:
            return values[0] if len(values) == 1 else np.concatenate(values)
        if not self._is_whole:
            return np.concatenate(values)[self._selected[2]]
        out = np.empty(self._store.n_obs, np.result_type(*values))
        for source, piece in zip(self._sources, values, strict=True):
            out[source.rows] = piece
        return out

    @cached_property
    def _selected(self) -> tuple[NDArray[np.int64], NDArray[np.integer], NDArray[np.int64] | slice]:
        """Of a selection: the cell of the store in each row, its member, and the order of the rows among the members.

        Each is ``(n,)``; the order counts the cells member after member.
        """
        of_members = [
            source.rows if member.rows is None else source.rows[member.rows]
            for member, source in zip(self._members, self._sources, strict=True)
        ]
        cells = np.concatenate(of_members)
        numbers = np.arange(len(of_members), dtype=np.min_scalar_type(len(of_members)))
        member = np.repeat(numbers, [len(own) for own in of_members])
        order = np.argsort(cells) if self.is_interleaved else slice(None)
        return cells[order], member[order], order


class StoreRead:
    """Records of a store that are located and not decoded yet."""

    def __init__(self, found: Located, member: NDArray[np.int64], genes: GeneTables) -> None:
        """``member`` (m,) is the look-up table of ``genes`` for each record."""
        self._found, self.member, self._genes = found, member, genes
        self.sizes = found.size

    def slice(self, start: int, stop: int) -> StoreRead:
        """Some of the cells, as views."""
        return StoreRead(self._found.slice(start, stop), self.member[start:stop], self._genes)

    def read_ahead(self) -> None:
        """Ask the system to load the records."""
        read_ahead(self._found.address, self._found.length)

    def write(self, place: NDArray[np.int64], rows: RowBuffers) -> None:
        """Decode, look up genes and write, in one pass."""
        self._found.store.decode(self._found, self.member, self._genes, place, rows)
