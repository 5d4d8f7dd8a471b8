"""Reading of a store: as sources of a collection, and cells of all its sources in one pass."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.errors import NotCountsError, SourceChangedError, StoreFormatError
from scdataloader.kernels.records.decode import OK, decode_records
from scdataloader.kernels.records.format import Records
from scdataloader.kernels.records.unpack import BAD_GENE, unpack_records
from scdataloader.kernels.rows.align import is_sequence, row_starts
from scdataloader.kernels.rows.densify import densify
from scdataloader.kernels.rows.nearest import nearest
from scdataloader.protocols import OpenOptions, ReadCost, SourceSelection
from scdataloader.runtime import bus_errors
from scdataloader.runtime.buckets import Bucket, RemotePath, checked_url, is_remote
from scdataloader.runtime.facts import as_html, as_text
from scdataloader.runtime.files import local_path
from scdataloader.runtime.memory import BufferPool, row_buffers, without_gaps
from scdataloader.runtime.messages import shown, suggestion
from scdataloader.runtime.mirror import Mirror
from scdataloader.store.gene_spaces import GeneIndex, GeneSpace, GeneTable, GeneTables, IndexedGenes
from scdataloader.store.manifest import LAYERS, MANIFEST, OBSP, Manifest, MatrixPart, MatrixRecord
from scdataloader.store.shard import WHY, Kernel, MappedShards, edges_of
from scdataloader.store.tables import POSITION, ROW, Table, order_of, start_tables
from scdataloader.types import CSRMatrix, CSRRows, GenePlaces, RowBuffers, SharedGenes

__all__ = ["Store"]

X = "X"
"""Key of the counts, besides the keys of further matrices."""


_MAPPED, _REMOTE = ReadCost(cell=1.0, neighbour=1.0), ReadCost(cell=200.0, neighbour=5.0, is_ahead=True)
"""Of a bucket: 128 requests in flight of 20 ms each, for one cell or a block."""


def open_stores(paths: Sequence[Path], options: OpenOptions) -> Iterator[StoreSource]:
    """The sources of stores; registered for folders whose name ends in ``.cells``, and those with a manifest.

    Raises:
        NotCountsError: values must be counts, and a source of a store has others.
    """
    for path in paths:
        sources = Store.open(path).sources
        other = [source.name for source in sources if source.counts != "counts"]
        if options.values == "counts" and other:  # noqa: PD011 (an option)
            raise NotCountsError(
                f"{path} holds values that need not be counts ({other[0]}); pass values='any' to read them as they "
                "are, or convert the sources again"
            )
        yield from sources


@lru_cache(maxsize=16)
def _columns(n: int) -> GeneTables:
    """Columns 0 to n - 1 as they are."""
    return GeneTables([np.arange(n, dtype=np.int32)], [GenePlaces.all_of(n)], n)


def _version(manifest: bytes) -> str:
    return blake2b(manifest, digest_size=16).hexdigest()


class Store:
    """Cells of several sources in one numbering, in the order of the store.

    Reading is thread-safe. The object can be pickled and forked: another process maps the files itself.
    """

    def __init__(self, path: Path, manifest: Manifest, mirror: Mirror | None = None) -> None:
        """``path`` is a folder, or a URL with the ``mirror`` of its files."""
        self.path, self.mirror = path, mirror
        self.manifest = manifest
        self.n_obs = manifest.n_cells
        self._shard_start = np.cumsum([0, *(shard.n_cells for shard in manifest.shards)], dtype=np.int64)
        self._process, self._lock = os.getpid(), threading.Lock()
        self._mapped: dict[str, MappedShards] = {}
        self._matrices = {matrix.key: matrix for matrix in manifest.matrices}
        of_shard = [-1 if shard.source is None else shard.source for shard in manifest.shards]
        self._source_of_shard = np.array(of_shard, np.int64)
        self._source_of_cell: NDArray[np.integer] | None = None
        self.spaces = [GeneSpace(path, record, mirror) for record in manifest.spaces]
        self._gene_index = GeneIndex(path, manifest, mirror)
        self.gene_tables = {digest: GeneTable(path, record, mirror) for digest, record in manifest.genes.items()}
        self.sources = [StoreSource(self, number) for number in range(len(manifest.sources))]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a store, by its path or URL: read its manifest. Its shards are mapped when the first cell is read.

        Raises:
            FileNotFoundError: the folder does not exist.
            StoreFormatError: it is not a store, unfinished, or damaged.
            ConnectionError: a server does not answer; and other errors of `buckets.explained`.
        """
        if is_remote(path):
            return cls._open_remote(checked_url(path))
        folder = local_path(path).absolute()
        if not folder.is_dir():
            raise FileNotFoundError(f"{path} is not a store: there is no such folder")
        return cls(folder, Manifest.load(folder))

    @classmethod
    def _open_remote(cls, url: str) -> Self:
        bucket, path = Bucket.open(url), RemotePath(url)
        content = bucket.read(MANIFEST)
        manifest = Manifest.parsed(content, path / MANIFEST)
        for problem in manifest.contradictions(path):
            raise StoreFormatError(problem)
        files = {file.path: file.n_bytes for file in manifest.files}
        mirror = Mirror(bucket, _version(content), files)
        start_tables(mirror, manifest)
        return cls(path, manifest, mirror)

    def __repr__(self) -> str:
        return as_text(f"Store {self.path}", self._facts())

    def _repr_html_(self) -> str:
        return as_html(f"Store {self.path}", self._facts())

    def _facts(self) -> dict[str, object]:
        names = [source.name for source in self.sources]
        return {
            "cells": self.n_obs,
            "sources": f"{len(names):,}: {shown(names)}",
            "obs columns": shown(dict.fromkeys(column for source in self.sources for column in source.obs_columns)),
            "matrices": shown(self.manifest.matrix_keys) or "counts only",
            "layout": self.manifest.layout,
            "size": f"{sum(file.n_bytes for file in self.manifest.files) / 1e6:,.1f} MB",
        }

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the content."""
        digest = blake2b(self.manifest.layout.encode(), digest_size=16)
        for file in self.manifest.files:
            digest.update(file.checksum.encode())
        return digest.hexdigest()

    def indexed_genes(self, table: str, space: int) -> IndexedGenes | None:
        """What the gene index states of a gene table; None if nothing.

        Raises:
            StoreFormatError: the gene index is damaged.
        """
        return self._gene_index.read().get((table, space))

    @property
    def shards(self) -> MappedShards:
        """The mapped shards of the counts."""
        return self.mapped(X)

    def mapped(self, key: str) -> MappedShards:
        """The mapped shards of a matrix."""
        if self._process != os.getpid():
            # When this process was forked, another thread may have held the lock; it may handle signals in another way.
            self._process, self._lock = os.getpid(), threading.Lock()
            bus_errors.after_fork()
        with self._lock:
            if key not in self._mapped:
                self._mapped[key] = self._map(key)
            return self._mapped[key]

    def _map(self, key: str) -> MappedShards:
        if key == X:
            n_genes = [source.space.n_genes for source in self.sources]
            return MappedShards(self.path, self.manifest.shards, n_genes, mirror=self.mirror)
        matrix = self._matrices[key]
        n_columns = [part.n_columns for part in matrix.parts]
        return MappedShards(self.path, matrix.shards, n_columns, further=True, mirror=self.mirror)

    def matrix(self, key: str) -> MatrixRecord:
        """A further matrix.

        Raises:
            KeyError: there is none of this key.
        """
        if key not in self._matrices:
            raise KeyError(f"{self.path} has no matrix {key!r}; {suggestion(key, list(self._matrices))}")
        return self._matrices[key]

    @property
    def is_mixed(self) -> bool:
        """Whether cells of different sources are interleaved."""
        return bool((self._source_of_shard < 0).any())

    @property
    def source_of_cell(self) -> NDArray[np.integer]:
        """``(n_obs,)`` number of the source of each cell.

        Raises:
            StoreFormatError: a shard states a source that does not exist.
        """
        if self._source_of_cell is None:
            self.shards.check_indexes(np.flatnonzero(self._source_of_shard < 0))
            n, tables = len(self.sources), []
            for number, shard in enumerate(self.manifest.shards):
                tables.append(
                    self.shards.sources(number) if shard.source is None else np.full(shard.n_cells, shard.source)
                )
                if len(tables[-1]) and tables[-1].max() >= n:
                    cell = int(np.argmax(tables[-1] >= n))
                    why = f"its source is {tables[-1][cell]}, but there are {n}"
                    self.refuse(int(self._shard_start[number]) + cell, why)
            smallest = np.min_scalar_type(n)
            found = np.concatenate([np.empty(0, smallest), *(t.astype(smallest) for t in tables)])
            self.shards.check_unchanged(np.arange(len(tables)))
            self._source_of_cell = found
        return self._source_of_cell

    def sizes(self, key: str = X) -> NDArray[np.uint32]:
        """``(n_obs,)`` number of values of each cell."""
        n_shards, shards = len(self.manifest.shards), self.mapped(key)
        shards.check_indexes(np.arange(n_shards))
        sizes = np.concatenate([*map(shards.sizes, range(n_shards)), np.empty(0, np.uint32)])
        shards.check_unchanged(np.arange(n_shards))
        return sizes

    def locate(self, rows: NDArray[np.int64], key: str = X) -> RecordLocations:
        """Find the records of cells ``rows`` (int64, each in [0, n_obs)) of a matrix.

        Raises:
            StoreFormatError: the index of a shard is damaged.
        """
        shards = self.mapped(key)
        shard = self._shard_of(rows)
        try:
            records, at = shards.locate(shard, rows - self._shard_start[shard])
        except StoreFormatError:
            self._check_current()
            raise
        if at >= 0:
            why = "the index of its shard gives an impossible position or size of its record"
            self.refuse(int(rows[at]), why, shards)
        return RecordLocations(store=self, shards=shards, rows=rows, shard=shard, records=records)

    def sources_of(self, located: RecordLocations) -> NDArray[np.int64]:
        """``(m,)`` number of the source of each located cell."""
        if self.is_mixed:
            return self.source_of_cell[located.rows].astype(np.int64)
        return self._source_of_shard[located.shard]

    def decode(
        self,
        located: RecordLocations,
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

        located.run(decode)

    def dense(self, located: RecordLocations, n_columns: int, buffers: BufferPool | None = None) -> NDArray[np.float32]:
        """``(m, n_columns)`` values of located cells of "obsm/…".

        Raises:
            SourceChangedError: a shard has changed since it was mapped.
            StoreFormatError: a record is damaged.
        """
        n, rows = len(located.rows), row_buffers(located.records.size, buffers)
        self.decode(located, np.zeros(n, np.int64), _columns(n_columns), np.arange(n), rows)
        if (located.records.size == n_columns).all():  # without zeros, the values are the rows
            return rows.data.reshape(n, n_columns)
        out = np.empty((n, n_columns), np.float32)
        densify(rows.starts, rows.indices, rows.data, out)
        return out

    def close(self) -> None:
        """Close the memory maps; a later read maps the files again, and checks them against the manifest."""
        self._mapped = {}

    def refuse(self, row: int, why: str, shards: MappedShards | None = None) -> NoReturn:
        """Report a damaged cell, by its row in the store; without ``shards``, in those of the counts.

        Raises:
            SourceChangedError: its shard has changed since it was mapped.
            StoreFormatError: otherwise.
        """
        shard, shards = int(self._shard_of(np.array([row]))[0]), shards or self.shards
        shards.check_unchanged(np.array([shard]))
        self._check_current()
        raise StoreFormatError(
            f"{shards.path(shard)} is damaged at cell {row - self._shard_start[shard]} "
            f"(cell {row} of the store): {why}; copy or convert the store again"
        )

    def _check_current(self) -> None:
        """Check that a remote store is as it was when it was opened.

        Raises:
            SourceChangedError: it has another manifest.
        """
        if self.mirror is not None and _version(self.mirror.bucket.read(MANIFEST)) != self.mirror.version:
            raise SourceChangedError(f"{self.path} was written after it was opened; open it again in a new run")

    def _shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._shard_start, rows, side="right") - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path, self.manifest, self.mirror)


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
        self.store.decode(located, np.zeros(len(rows), np.int64), genes, np.arange(len(rows)), buffers)
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
            return self.store.dense(self._locate(rows, key), part.n_columns)
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
        return StoreGroup(self.store, members, luts, n_genes)

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


class StoreGroup:
    """Cells of several sources of a store, decoded in one pass: all cells of the store, or a selection.

    Rows are in the store's order wherever that mixes its sources, so that neighbouring rows are neighbours on disk.
    """

    def __init__(
        self, store: Store, members: Sequence[SourceSelection], luts: Sequence[NDArray[np.int32]], n_genes: int
    ) -> None:
        sources = [member.source for member in members if isinstance(member.source, StoreSource)]
        self._store, self._members, self._sources = store, members, sources
        self._genes = GeneTables(luts, [source.places for source in sources], n_genes)
        self._is_whole = sources == store.sources and all(member.rows is None for member in members)
        self._buffers = BufferPool()
        self.is_interleaved = store.is_mixed
        self.fingerprint = store.fingerprint
        self.read_cost = _MAPPED if store.mirror is None else _REMOTE

    @property
    def cache_folder(self) -> Path | None:
        """As `NeverChanges.cache_folder`: a hidden folder beside that of the store."""
        path = self._store.path
        return None if self._store.mirror is not None else path.with_name(f".{path.name}.cache")

    def locate(self, rows: NDArray[np.int64]) -> StoreRead:
        """Where in the mapped files the records of ``rows`` are."""
        return StoreRead(*self._locate(rows, X), self._genes)

    def _locate(self, rows: NDArray[np.int64], key: str) -> tuple[RecordLocations, NDArray[np.int64]]:
        """Where the records of ``rows`` are in a matrix, and ``(m,)`` the member of each."""
        if self._is_whole:
            located = self._store.locate(rows, key)
            return located, self._store.sources_of(located)
        cells, member, _ = self._selected
        return self._store.locate(cells[rows], key), member[rows].astype(np.int64)

    def locate_matrix(self, key: str, rows: NDArray[np.int64]) -> LayerRead | ArrayRead:
        """As `ReadsMatrices.locate_matrix`.

        Raises:
            KeyError: the store has no such matrix.
            StoreFormatError: the store is damaged.
            ValueError: the sources have different numbers of columns.
        """
        parts = self._store.matrix(key).parts
        located, member = self._locate(rows, key)
        if key.startswith(LAYERS):
            return LayerRead(located, member, self._genes, self._buffers)
        return ArrayRead(located, self._width(key, parts), self._buffers)

    def _width(self, key: str, parts: Sequence[MatrixPart]) -> int:
        widths = {source.name: parts[source.number].n_columns for source in self._sources}
        if len(set(widths.values())) > 1:
            listed = ", ".join(f"{name} {width}" for name, width in widths.items())
            raise ValueError(f"{key} has different numbers of columns: {listed}")
        return next(iter(widths.values()), 0)

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

    def __init__(self, located: RecordLocations, member: NDArray[np.int64], genes: GeneTables) -> None:
        """``member`` (m,) is the source of each record among those in ``genes``."""
        self._located, self.member, self._genes = located, member, genes
        self.sizes = located.records.size

    def slice(self, start: int, stop: int) -> StoreRead:
        """Cells ``[start, stop)`` of these, as views."""
        return StoreRead(self._located.slice(start, stop), self.member[start:stop], self._genes)

    def read_ahead(self) -> None:
        """Start loading the records."""
        self._located.start()

    def write(self, place: NDArray[np.int64], rows: RowBuffers) -> None:
        """Decode, look up genes and write, in one pass."""
        self._located.store.decode(self._located, self.member, self._genes, place, rows)


@dataclass(frozen=True, slots=True)
class LayerRead:
    """Records of a layer that are located and not decoded yet."""

    located: RecordLocations
    member: NDArray[np.int64]
    """``(m,)`` source of each record among those in ``genes``."""
    genes: GeneTables
    buffers: BufferPool

    def slice(self, start: int, stop: int) -> LayerRead:
        """Cells ``[start, stop)`` of these, as views."""
        return replace(self, located=self.located.slice(start, stop), member=self.member[start:stop])

    def read_ahead(self) -> None:
        """Start loading the records."""
        self.located.start()

    def read(self) -> CSRRows:
        """The rows, in vocabulary genes."""
        sizes = self.located.records.size
        rows = row_buffers(sizes, self.buffers)
        self.located.store.decode(self.located, self.member, self.genes, np.arange(len(sizes)), rows)
        return without_gaps(rows, sizes, self.genes.look_up.n_genes)


@dataclass(frozen=True, slots=True)
class ArrayRead:
    """Records of a matrix of obsm that are located and not decoded yet."""

    located: RecordLocations
    n_columns: int
    buffers: BufferPool

    def slice(self, start: int, stop: int) -> ArrayRead:
        """Cells ``[start, stop)`` of these, as views."""
        return replace(self, located=self.located.slice(start, stop))

    def read_ahead(self) -> None:
        """Start loading the records."""
        self.located.start()

    def read(self) -> NDArray[np.float32]:
        """``(m, n_columns)`` values."""
        return self.located.store.dense(self.located, self.n_columns, self.buffers)
