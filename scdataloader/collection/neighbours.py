"""Neighbours of cells by the graphs of their sources, and metacells, which are cells with their neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.kernels.rows.combine import toss
from scdataloader.protocols import HasMatrices, HasNeighbours
from scdataloader.runtime.rows import with_neighbours
from scdataloader.types import CellBatch, CSRRows, Neighbours

if TYPE_CHECKING:
    from scdataloader.collection.collection import CellLocations, Collection

GRAPH = "distances"
"""The graph that is read, as scanpy names it in ``obsp``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourLocations:
    """The neighbours of cells, found and located but not read."""

    rows: NDArray[np.int64]
    """``(B, k)`` rows in the collection; -1 after the last."""
    distances: NDArray[np.float32]
    """``(B, k)``; -1 after the last."""
    located: CellLocations
    """Those that there are, cell after cell."""
    edges: NDArray[np.int64]
    """``(B + 1,)`` offsets of the neighbours of each cell in ``located``."""

    def slice(self, start: int, stop: int) -> NeighbourLocations:
        """Those of cells ``[start, stop)``, as views."""
        first, last = int(self.edges[start]), int(self.edges[stop])
        return NeighbourLocations(
            rows=self.rows[start:stop],
            distances=self.distances[start:stop],
            located=self.located.slice(first, last),
            edges=self.edges[start : stop + 1] - first,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourReader:
    """Reads the nearest neighbours of cells, each among the cells of its own source.

    A neighbour that is not in the collection, such as one that ``where`` leaves out, or not ``among`` the cells that a
    run may read, is left out, and no other cell takes its place.
    """

    collection: Collection
    k: int
    """Number of neighbours of each cell."""
    among: NDArray[np.bool_] | None = None
    """``(n,)`` which cells of the collection may be neighbours; None for all."""

    def check(self) -> None:
        """See that every source has a graph.

        Raises:
            KeyError: a source has none; names it.
        """
        for part in self.collection.parts:
            source, why = part.source, ""
            if not isinstance(source, HasNeighbours):
                why = "its kind of source has no graphs"
            else:
                try:
                    source.neighbours(np.empty(0, np.int64), self.k, GRAPH)
                except KeyError:
                    has = source.matrix_keys if isinstance(source, HasMatrices) else ()
                    why = f"its matrices are {', '.join(has) or 'none'}"
            if why:
                raise KeyError(
                    f"{source.name} has no graph obsp[{GRAPH!r}], which neighbours={self.k} needs; {why}; compute it "
                    "with scanpy.pp.neighbors (a store keeps it by --obsp), or leave the source out"
                )

    def locate(self, rows: NDArray[np.int64]) -> NeighbourLocations:
        """Find the neighbours of cells ``rows``.

        Raises:
            IndexError: a row is outside [0, n).
        """
        found, distances = self._find(rows)
        is_there = found >= 0
        edges = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(is_there.sum(axis=1), out=edges[1:])
        located = self.collection.locate(found[is_there])
        return NeighbourLocations(rows=found, distances=distances, located=located, edges=edges)

    def read(self, near: NeighbourLocations) -> Neighbours:
        """Neighbours, in vocabulary genes."""
        found = near.rows
        is_there = (found >= 0).ravel()
        cells, depths = self.collection.read_located(near.located)
        indptr, depth = np.zeros(found.size + 1, np.int64), np.zeros(found.size, np.float32)
        indptr[1:][is_there] = np.diff(cells.indptr)
        depth[is_there] = depths
        return Neighbours(
            x=CSRRows(data=cells.data, indices=cells.indices, indptr=np.cumsum(indptr), n_genes=cells.n_genes),
            depth=depth.reshape(found.shape),
            row=found,
            distance=near.distances,
        )

    def _find(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """``(B, k)`` rows in the collection of the neighbours, and their distances; -1 after the last."""
        found = np.full((len(rows), self.k), -1, np.int64)
        distances = np.full(found.shape, -1, np.float32)
        for number, place, own in self.collection.numbers_in_parts(rows):
            source: Any = self.collection.parts[number].source
            near, far = source.neighbours(own, self.k, GRAPH)
            if near.shape != (len(own), self.k) or far.shape != near.shape or near.max(initial=-1) >= source.n_obs:
                raise SourceFormatError(
                    f"{source.name} returned neighbours of shape {near.shape}, up to row {near.max(initial=-1)}; "
                    f"expected {(len(own), self.k)} rows below {source.n_obs}"
                )
            rows_there = self.collection.rows_of(number, near.ravel()).reshape(near.shape)
            found[place], distances[place] = rows_there, np.where(rows_there >= 0, far, -1)
        if self.among is not None:
            is_there = (found >= 0) & self.among[found]
            found, distances = np.where(is_there, found, -1), np.where(is_there, distances, np.float32(-1))
        elif all(part.rows is None for part in self.collection.parts):
            return found, distances
        order = np.argsort(found < 0, axis=1, kind="stable")  # those that are left out leave no gaps
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(distances, order, axis=1)


def with_metacells(batch: CellBatch, reader: NeighbourReader, probability: float) -> CellBatch:
    """Cells of which some, each with ``probability``, are replaced by the sum of the cell and its neighbours.

    The choice depends on the key of the batch and the position of each cell alone. A cell without neighbours stays.
    """
    chosen = np.flatnonzero(toss(np.uint64(batch.key), batch.position, probability))
    found = reader.locate(batch.row[chosen])
    found.located.read_ahead()
    near = reader.read(found)
    is_meta = np.zeros(len(batch), np.bool_)
    is_meta[chosen] = (near.row >= 0).any(axis=1)
    depth = batch.depth.copy()
    depth[chosen] += near.depth.sum(axis=1)
    indptr = np.zeros(len(batch) * reader.k + 1, np.int64)
    sizes = indptr[1:].reshape(len(batch), reader.k)
    sizes[chosen] = np.diff(near.x.indptr).reshape(len(chosen), reader.k)
    spread = CSRRows(data=near.x.data, indices=near.x.indices, indptr=np.cumsum(indptr), n_genes=near.x.n_genes)
    x = with_neighbours(batch.x, spread)
    return replace(batch, x=x, depth=depth, is_meta=is_meta)
