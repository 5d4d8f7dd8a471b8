"""What batches hold: cells with all that a run and its collate function want of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from scdataloader.batches.full import csr_tensors
from scdataloader.batches.neighbours import neighbour_tensors
from scdataloader.collection.extras import ObsColumn, check_columns, check_matrices, load_column, read_matrix
from scdataloader.collection.neighbours import NeighbourLocations, NeighbourReader, with_metacells
from scdataloader.protocols import Collate, WantsMatrices, WantsObs
from scdataloader.types import CellBatch, CSRRows

if TYPE_CHECKING:
    from scdataloader.collection.collection import CellLocations, Collection


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """What every batch of a `Loader` carries besides what its collate function makes.

    Args:
        targets: (n, T) float32 values of all cells of the collection; batches have theirs under "targets".
        matrices: Keys of further matrices, such as "layers/spliced" and "obsm/protein", which batches have under the
            same keys: CSR tensors (B, G) float32 in vocabulary genes, and (B, D) float32.
        neighbours: Number k of neighbours of each cell, by the graph ``obsp["distances"]`` of its source, under
            "knn_cells" and "knn_cells_info"; see `neighbour_tensors`.
        metacell: Probability with which a cell is replaced by the sum of it and its ``neighbours``, in place of
            delivering these; batches have "is_meta" (B,) int64, 1 for such cells.
        neighbours_among: (n,) which cells may be neighbours; None for all.
        obs_names: Whether batches have the names of their cells, as a list of strings under "obs_names".

    Raises:
        TypeError: ``neighbours`` is not an integer.
        ValueError: an option is out of range.
    """

    targets: NDArray[np.float32] | None = None
    matrices: Sequence[str] = ()
    neighbours: int | None = None
    metacell: float | None = None
    neighbours_among: NDArray[np.bool_] | None = None
    obs_names: bool = False

    def __post_init__(self) -> None:
        check_neighbours(self.neighbours, self.metacell)


def check_neighbours(neighbours: int | None, metacell: float | None) -> None:
    """See that options of neighbours are in range.

    Raises:
        TypeError, ValueError: one is not; names it.
    """
    check_sizes(neighbours=neighbours)
    if metacell is not None and neighbours is None:
        raise ValueError(f"metacell={metacell} needs the number of neighbours to sum; set neighbours too, such as 6")
    if metacell is not None and not 0 <= metacell <= 1:
        raise ValueError(f"metacell is a probability, from 0 to 1, not {metacell}")


def check_sizes(**sizes: int | None) -> None:
    """See that options that are numbers of something are positive.

    Raises:
        TypeError: one is not an integer; names it.
        ValueError: one is 0 or negative; names it.
    """
    for name, value in sizes.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name} must be an integer, not {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, not {value}")


class ContentsReader:
    """Reads cells with their contents, and makes tensors of what the collate function does not collate.

    Raises:
        KeyError: a source lacks a matrix, a graph or a column of obs.
        TypeError: ``obs`` or ``matrices`` of the collate function is one string.
        ValueError: values are given for another number of cells than the collection has.
    """

    def __init__(self, collection: Collection, contents: Contents, collate: Collate) -> None:
        self._collection, self._contents = collection, contents
        for name in ("targets", "neighbours_among"):
            of_cells = getattr(contents, name)
            if of_cells is not None and len(of_cells) != len(collection):
                raise ValueError(f"{name} are for {len(of_cells):,} cells, but the collection has {len(collection):,}")
        self._columns = _names("obs", collate.obs) if isinstance(collate, WantsObs) else ()
        wanted = _names("matrices", collate.matrices) if isinstance(collate, WantsMatrices) else ()
        self._matrices = tuple(dict.fromkeys([*wanted, *contents.matrices]))
        check_columns(collection, self._columns)
        check_matrices(collection, self._matrices)
        self._neighbours: NeighbourReader | None = None
        if contents.neighbours is not None:
            self._neighbours = NeighbourReader(
                collection=collection, k=contents.neighbours, among=contents.neighbours_among
            )
            self._neighbours.check()

    @property
    def cells_per_draw(self) -> int:
        """Maximum of cells that are read for each cell that is drawn."""
        return 1 + (self._contents.neighbours or 0)

    def locate(self, rows: NDArray[np.int64]) -> CellLocations:
        """Where cells ``rows`` and their further matrices are."""
        return self._collection.locate(rows, self._matrices)

    def locate_neighbours(self, rows: NDArray[np.int64]) -> NeighbourLocations | None:
        """Where the neighbours of cells ``rows`` are, if all batches carry them."""
        if self._neighbours is None or self._contents.metacell is not None:
            return None
        return self._neighbours.locate(rows)

    def read(
        self,
        located: CellLocations,
        neighbours: NeighbourLocations | None,
        *,
        labels: NDArray[np.int64],
        position: NDArray[np.int64],
        key: int,
        pad: NDArray[np.bool_] | None,
    ) -> CellBatch:
        """Located cells and ``neighbours`` with their contents; the other arguments are fields of `CellBatch`."""
        collection, rows, targets = self._collection, located.rows, self._contents.targets
        x, depth = collection.read_located(located)
        cells = CellBatch(
            x=x,
            depth=depth,
            row=rows,
            source=located.source,
            labels=labels,
            measured=collection.measured,
            position=position,
            key=key,
            targets=None if targets is None else targets[rows],
            pad=pad,
            obs={column: values.take(rows) for column, values in self._obs.items()},
            matrices={name: read_matrix(collection, name, located) for name in self._matrices},
        )
        if self._neighbours is None:
            return cells
        if self._contents.metacell is not None:
            return with_metacells(cells, self._neighbours, self._contents.metacell)
        return cells if neighbours is None else replace(cells, neighbours=self._neighbours.read(neighbours))

    @cached_property
    def _obs(self) -> dict[str, ObsColumn]:
        return {column: load_column(self._collection, column) for column in self._columns}

    def tensors(self, cells: CellBatch, start: int, stop: int, made: Mapping[str, Any]) -> dict[str, Any]:
        """What the batch of the cells [start, stop) has besides what the collate function has ``made`` of them."""
        tensors: dict[str, Any] = {}
        if cells.targets is not None:
            tensors["targets"] = torch.from_numpy(cells.targets[start:stop])
        for key in self._contents.matrices:
            matrix = cells.matrices[key]
            if isinstance(matrix, CSRRows):
                (tensors[key],) = csr_tensors(matrix.slice(start, stop), max(1, stop - start))
            else:
                tensors[key] = torch.from_numpy(matrix[start:stop])
        if cells.neighbours is not None:
            tensors |= neighbour_tensors(cells.neighbours.slice(start, stop), made)
        if cells.is_meta is not None:
            tensors["is_meta"] = torch.from_numpy(cells.is_meta[start:stop].astype(np.int64))
        if self._contents.obs_names:
            tensors["obs_names"] = self._collection.obs_names(cells.row[start:stop]).tolist()
        return tensors


def _names(member: str, names: Any) -> tuple[str, ...]:
    """Names that a collate function lists."""
    if isinstance(names, str):
        raise TypeError(f"{member} of a collate function must be a sequence of names; got {names!r}, use [{names!r}]")
    return tuple(names)
