"""Cells of several sources of a store, read in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.protocols import ReadCost
from scdataloader.runtime.memory import BufferPool, row_buffers, without_gaps
from scdataloader.store.gene_spaces import GeneTables
from scdataloader.store.manifest import LAYERS, MatrixPart, X
from scdataloader.store.records import RecordLocations

if TYPE_CHECKING:
    from scdataloader.store.reader import Store
    from scdataloader.store.source import StoreSource
from scdataloader.types import CSRRows, RowBuffers

_MAPPED, _REMOTE = ReadCost(cell=1.0, neighbour=1.0), ReadCost(cell=200.0, neighbour=5.0, is_ahead=True)
"""Of a bucket: 128 requests in flight of 20 ms each, for one cell or a block."""


class StoreGroup:
    """Cells of several sources of a store, decoded in one pass: all cells of the store, or a selection.

    Rows are in the store's order wherever that mixes its sources, so that neighbouring rows are neighbours on disk.
    """

    def __init__(
        self,
        store: Store,
        sources: Sequence[StoreSource],
        rows: Sequence[NDArray[np.int64] | None],
        luts: Sequence[NDArray[np.int32]],
        n_genes: int,
    ) -> None:
        """Gather cells of several sources.

        Args:
            store: The store.
            sources: Sources of the store.
            rows: For each source, rows of its cells; None for all.
            luts: For each source, the number in the vocabulary of each of its genes; -1 for none.
            n_genes: Number of genes of the vocabulary.
        """
        self._store, self._sources, self._rows = store, sources, rows
        self._genes = GeneTables(luts, [source.places for source in sources], n_genes)
        self._is_whole = sources == store.sources and all(own is None for own in rows)
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
            source.rows if own is None else source.rows[own]
            for source, own in zip(self._sources, self._rows, strict=True)
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
        self._located.decode(self.member, self._genes, place, rows)


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
        self.located.decode(self.member, self.genes, np.arange(len(sizes)), rows)
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
        return self.located.dense(self.n_columns, self.buffers)
