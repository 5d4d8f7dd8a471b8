"""A store's sources, each with the cells that were converted from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError
from scdataloader.kernels.records.unpack import BAD_GENE
from scdataloader.kernels.rows.nearest import nearest
from scdataloader.protocols import SourceSelection
from scdataloader.runtime.memory import row_buffers
from scdataloader.runtime.messages import suggestion
from scdataloader.store.gather import StoreGroup
from scdataloader.store.gene_spaces import GeneTables, IndexedGenes
from scdataloader.store.manifest import LAYERS, MANIFEST, OBSP, MatrixPart, X
from scdataloader.store.mapped_shards import WHY
from scdataloader.store.records import RecordLocations
from scdataloader.store.shard import edges_of

if TYPE_CHECKING:
    from scdataloader.store.reader import Store
from scdataloader.store.tables import POSITION, ROW, Table, order_of
from scdataloader.types import CSRMatrix, CSRRows, GenePlaces, SharedGenes


class StoreSource:
    """One of the sources that a store was converted from, with its cells in the order of the store."""

    def __init__(self, store: Store, number: int) -> None:
        self.store = store
        self.number = number
        record = store.manifest.sources[number]
        self.name = record.name
        self.path = store.path / record.name
        self.n_obs = record.n_cells
        self.organism = record.uns_organism
        self.counts = record.kind
        self.fingerprint = record.fingerprint
        self.obs_table = Table(store.path, record.obs, store.mirror)
        self.var_table = store.gene_tables[record.genes]
        self.space = store.spaces[record.space]
        self._columns = record.columns
        self._rows: NDArray[np.int64] | None = None
        self._original: NDArray[np.int32] | None = None

    @property
    def obs_columns(self) -> list[str]:
        """Names of the columns of the cell table."""
        return list(self._label_of_column)

    @property
    def _label_of_column(self) -> dict[str, str | None]:
        """As `SourceRecord.columns`, from the cell table if the manifest does not have them."""
        if self._columns is None:
            self._columns = self.obs_table.labels()
        return self._columns

    @property
    def var(self) -> pd.DataFrame:
        """Genes sorted by id, with an additional column of their positions in the original source.

        Sources with the same genes share one table.

        Raises:
            StoreFormatError: the table is damaged, or the gene index states other genes.
        """
        frame = self.var_table.frame
        places = self.space.places(self.var_table)  # while the table is in memory
        if self._indexed is not None and not np.array_equal(self._indexed.places.packed, places.packed):
            raise StoreFormatError(
                f"{self.var_table.path} has other genes than the store's gene index states; copy or convert the store "
                "again"
            )
        return frame

    @property
    def _indexed(self) -> IndexedGenes | None:
        record = self.store.manifest.sources[self.number]
        return self.store.indexed_genes(record.genes, record.space)

    @property
    def shared_genes(self) -> SharedGenes | None:
        """As `SharesGenes.shared_genes`, of gene tables that the gene index has.

        Raises:
            StoreFormatError: the gene index or the gene space is damaged.
        """
        found = self._indexed
        if found is None or not found.are_names:
            return None
        return SharedGenes(names=self.space.names, places=found.places)

    def gene_positions(self) -> NDArray[np.int64]:
        """``(n_genes,)`` position of each gene of ``var`` in the original source.

        Raises:
            StoreFormatError: the gene table is damaged.
        """
        return np.argsort(order_of(self.var_table, self.var, POSITION))

    @property
    def labels(self) -> dict[str, str]:
        """As `HasLabels.labels`."""
        return {name: label for name, label in self._label_of_column.items() if label is not None}

    @property
    def places(self) -> GenePlaces:
        """Numbers of its genes in records.

        Raises:
            StoreFormatError: a gene is not in the gene space, or a table is damaged.
        """
        return self.space.places(self.var_table) if self._indexed is None else self._indexed.places

    @property
    def rows(self) -> NDArray[np.int64]:
        """``(n_obs,)`` rows of its cells in the store, ascending."""
        if self._rows is None:
            rows = np.flatnonzero(self.store.source_of_cell == self.number)
            if len(rows) != self.n_obs:
                raise StoreFormatError(
                    f"{self.store.path / MANIFEST} states that {self.name} has {self.n_obs:,} cells, the shards have "
                    f"{len(rows):,}; copy or convert the store again"
                )
            self._rows = rows
        return self._rows

    def nnz(self) -> NDArray[np.int64]:
        """``(n_obs,)`` number of values of each cell."""
        return self.store.sizes()[self.rows].astype(np.int64)

    def obs_names(self) -> pd.Index:
        """``(n_obs,)`` names of the cells."""
        return self.obs_table.index()

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """Columns of the cell table.

        Raises:
            KeyError: a column is missing; names the source.
            StoreFormatError: the table is damaged.
        """
        self._check_columns(columns)
        return self.obs_table.read(columns, n_rows=self.n_obs)

    def obs_pieces(self, column: str) -> Iterator[pd.Series[Any]]:
        """As `ReadsObsInPieces.obs_pieces`.

        Raises:
            KeyError: the column is missing; names the source.
            StoreFormatError: the table is damaged.
        """
        self._check_columns([column])
        return self.obs_table.pieces(column, self.n_obs)

    def _check_columns(self, columns: Sequence[str]) -> None:
        missing = [column for column in columns if column not in self.obs_columns]
        if missing:
            hint = suggestion(missing[0], self.obs_columns)
            raise KeyError(f"{self.name} in {self.store.path} has no obs column {missing[0]!r}; {hint}")

    def read(self, rows: NDArray[np.int64]) -> CSRRows:
        """Cells ``rows`` in that order, repeats allowed, in the genes of ``var``.

        Raises:
            IndexError: a row is outside [0, n_obs).
            StoreFormatError: the store is damaged.
        """
        return self._read(X, rows)

    def _read(self, key: str, rows: NDArray[np.int64]) -> CSRRows:
        n_genes, located = len(self.places.place), self._locate(rows, key)
        sizes, buffers = located.records.size, row_buffers(located.records.size)
        # genes of other sources are marked -1 in this table, and left out by the decoder
        genes = GeneTables([self._numbers()], [GenePlaces.all_of(self.space.n_genes)], n_genes)
        located.decode(np.zeros(len(rows), np.int64), genes, np.arange(len(rows)), buffers)
        if (buffers.sizes < sizes).any():
            self.store.refuse(int(located.rows[np.argmax(buffers.sizes < sizes)]), WHY[BAD_GENE], located.shards)
        return CSRRows(data=buffers.data, indices=buffers.indices, indptr=buffers.starts, n_genes=n_genes)

    @property
    def matrix_keys(self) -> list[str]:
        """Keys of the further matrices."""
        return list(self.store.manifest.matrix_keys)

    def matrix_columns(self, key: str) -> tuple[str, ...] | None:
        """Names of the columns of "obsm/…", if the original source stated them."""
        return self.part(key).names

    def part(self, key: str) -> MatrixPart:
        """What a further matrix is of this source."""
        return self.store.matrix(key).parts[self.number]

    def read_matrix(self, key: str, rows: NDArray[np.int64]) -> CSRRows | NDArray[np.float32]:
        """Cells ``rows`` of a further matrix; cells of "obsp/…" are numbered as those of this source.

        Raises:
            KeyError: the matrix does not exist.
            IndexError: a row is outside [0, n_obs).
            StoreFormatError: the store is damaged.
        """
        part = self.part(key)
        if key.startswith(LAYERS):
            return self._read(key, rows)
        if not key.startswith(OBSP):
            return self._locate(rows, key).dense(part.n_columns)
        stored = self._locate(rows, key).unpack(self._places_of_cells, floats=True)
        data = edges_of(stored.data)
        return CSRRows(data=data, indices=stored.indices, indptr=stored.indptr, n_genes=self.n_obs)

    def neighbours(
        self, rows: NDArray[np.int64], k: int, key: str = "distances"
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As `HasNeighbours.neighbours`."""
        graph = self.read_matrix(f"{OBSP}{key}", rows)
        assert isinstance(graph, CSRRows)
        return nearest(graph.indptr, graph.indices, graph.data, np.asarray(rows, np.int64), k)

    @property
    def _places_of_cells(self) -> NDArray[np.int32]:
        """``(n_obs,)`` row in this source of each cell of the original source."""
        if self._original is None:
            rows = np.arange(self.n_obs)
            if self.store.manifest.layout != "source":
                frame = self.obs_table.read([ROW], n_rows=self.n_obs)
                rows = order_of(self.obs_table, frame, ROW)
            self._original = rows.astype(np.int32)
        return self._original

    def read_stored(self, rows: NDArray[np.int64]) -> CSRMatrix:
        """As `read`, but counts are exact in uint32 instead of rounded to float32."""
        return self._locate(rows, X).unpack(self._numbers(), floats=self.counts == "float32")

    def _numbers(self) -> NDArray[np.int32]:
        """``(n_space,)`` row in ``var`` of each gene of the gene space; -1 for genes of other sources."""
        return self.places.spread(np.arange(len(self.places.place), dtype=np.int32), -1)

    def _locate(self, rows: NDArray[np.int64], key: str) -> RecordLocations:
        rows = np.ascontiguousarray(rows, np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.n_obs):
            raise IndexError(f"{self.name} has cells 0 to {self.n_obs - 1}; got {rows.min()} to {rows.max()}")
        return self.store.locate(self.rows[rows], key)

    @property
    def read_group(self) -> Store:
        """The store: its sources are read together."""
        return self.store

    def open_group(
        self, members: Sequence[SourceSelection], luts: Sequence[NDArray[np.int32]], n_genes: int
    ) -> StoreGroup:
        """A reader of several sources of the store."""
        sources = [member.source for member in members if isinstance(member.source, StoreSource)]
        return StoreGroup(self.store, sources, [member.rows for member in members], luts, n_genes)

    def release(self) -> None:
        """Release the memory of the store's maps to the system; a later read loads it again."""
        for key in (X, *self.store.manifest.matrix_keys):
            self.store.mapped(key).release()

    def close(self) -> None:
        """Close the store's memory maps, and drop the tables that were read."""
        self.store.close()
        self._rows = self._original = None

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreSource, (self.store, self.number)
