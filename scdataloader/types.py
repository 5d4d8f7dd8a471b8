"""Values that pass between stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True, kw_only=True, slots=True)
class CSRRows:
    """Cells as sparse rows, in one gene numbering."""

    data: NDArray[np.float32]
    """``(nnz,)`` counts."""
    indices: NDArray[np.int32]
    """``(nnz,)`` gene numbers, strictly ascending within a row."""
    indptr: NDArray[np.int64]
    """``(n_rows + 1,)`` offsets into ``data`` and ``indices``, from 0."""
    n_genes: int
    """Width of the gene numbering."""

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def slice(self, start: int, stop: int) -> CSRRows:
        """Rows ``[start, stop)``; ``data`` and ``indices`` are views of these."""
        first, last = self.indptr[start], self.indptr[stop]
        return CSRRows(
            data=self.data[first:last],
            indices=self.indices[first:last],
            indptr=self.indptr[start : stop + 1] - first,
            n_genes=self.n_genes,
        )

    def to_scipy(self) -> csr_matrix:
        """The same rows as a SciPy matrix that shares this memory."""
        from scipy.sparse import csr_matrix

        return csr_matrix((self.data, self.indices, self.indptr), shape=(len(self), self.n_genes))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GenePlaces:
    """Positions of the genes of a source in a longer list of genes, as a bit set."""

    packed: NDArray[np.uint8]
    """``(ceil(n_space / 8),)`` bit g % 8 of byte g // 8 is 1 if the source has gene g of the list."""
    n_space: int
    """Length of the list."""

    @classmethod
    def of(cls, place: NDArray[np.integer], n_space: int) -> Self:
        """The genes at ``place`` of a list of ``n_space``."""
        has = np.zeros(n_space, np.bool_)
        has[place] = True
        return cls(packed=np.packbits(has, bitorder="little"), n_space=n_space)

    @classmethod
    def all_of(cls, n_space: int) -> Self:
        """All genes of the list."""
        return cls.of(np.arange(n_space), n_space)

    @property
    def place(self) -> NDArray[np.int64]:
        """``(n_genes,)`` positions, ascending; computed anew, since those of thousands of sources take gigabytes."""
        return np.flatnonzero(np.unpackbits(self.packed, count=self.n_space, bitorder="little").view(np.bool_))

    def spread(self, values: NDArray[Any], foreign: object) -> NDArray[Any]:
        """``(n_space,)`` the ``values`` ``(n_genes,)`` by gene of the list; ``foreign`` for genes the source lacks."""
        table = np.full(self.n_space, foreign, values.dtype)
        table[self.place] = values
        return table


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SharedGenes:
    """Genes of a source that are some of a list, which several sources share as one object."""

    names: Sequence[str]
    """Ids of all genes of the list."""
    places: GenePlaces | None = None
    """Which of them the source has, in the order of its ``var``; None for all."""
    var_columns: Sequence[str] | None = None
    """Columns of ``var``, which are read if these may state names or types of its features; None if they do not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CSRMatrix:
    """A whole matrix as it is stored, addressable in memory: loaded, or memory-mapped from its file."""

    indptr: NDArray[np.int64]
    """``(n_obs + 1,)`` offsets into ``data`` and ``indices``."""
    indices: NDArray[Any]
    """``(nnz,)`` int32 or int64 gene numbers, in stored order."""
    data: NDArray[Any]
    """``(nnz,)`` values, of any real dtype."""
    counts_only: bool = False
    """Whether values that are not counts are refused; the reader of the arrays has to check them."""


class RowBuffers(NamedTuple):
    """Buffers for sparse rows written in any order: row i uses up to all entries ``[starts[i], starts[i + 1])``."""

    starts: NDArray[np.int64]
    """``(B + 1,)`` first entry of each row."""
    indices: NDArray[np.int32]
    """``(nnz,)`` gene numbers."""
    data: NDArray[np.float32]
    """``(nnz,)`` values."""
    sizes: NDArray[np.int64]
    """``(B,)`` entries that each row uses."""
    depth: NDArray[np.float32]
    """``(B,)`` sum of each row over all genes of its source, including those outside the vocabulary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The k nearest neighbours of each of B cells, nearest first; -1 in place of those that a cell does not have."""

    x: CSRRows
    """``B * k`` rows in vocabulary genes: the neighbours of the first cell, then of the second; empty where there is
    none."""
    depth: NDArray[np.float32]
    """``(B, k)`` total count of each neighbour over all genes of its source; 0 where there is none."""
    row: NDArray[np.int64]
    """``(B, k)`` row number in the collection; -1 where there is none."""
    distance: NDArray[np.float32]
    """``(B, k)`` distance from the cell; -1 where there is no neighbour."""

    def slice(self, start: int, stop: int) -> Neighbours:
        """Those of cells ``[start, stop)``, as views."""
        k = self.row.shape[1]
        return Neighbours(
            x=self.x.slice(start * k, stop * k),
            depth=self.depth[start:stop],
            row=self.row[start:stop],
            distance=self.distance[start:stop],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CellBatch:
    """Cells on their way from the collection to the model."""

    x: CSRRows
    """Values in vocabulary genes."""
    depth: NDArray[np.float32]
    """``(B,)`` total count of each cell over all genes of its source."""
    row: NDArray[np.int64]
    """``(B,)`` row number in the collection."""
    source: NDArray[np.int32]
    """``(B,)`` number of each cell's source in the collection."""
    labels: NDArray[np.int64]
    """``(B, C)`` label codes, one column per label; -1 is unknown."""
    measured: NDArray[np.bool_]
    """``(n_sources, G)`` True for the vocabulary genes that a source measured; other genes are absent, not zero."""
    position: NDArray[np.int64]
    """``(B,)`` position of each draw in the epoch, over all ranks."""
    key: int
    """64 random bits of (seed, epoch). Random choices per cell depend on this and ``position`` only."""
    targets: NDArray[np.float32] | None = None
    """``(B, T)`` values of the columns of numbers that the run names as targets; None if it names none."""
    pad: NDArray[np.bool_] | None = None
    """``(B,)`` True where a row is repeated to keep ranks even; None if no row can be."""
    obs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """{column: ``(B,)`` values} of the columns of obs that the collate function wants. Numbers keep their dtype; labels
    are strings, and None where they are missing."""
    matrices: Mapping[str, CSRRows | NDArray[np.float32]] = field(default_factory=dict)
    """{key: cells} of the further matrices that the collate function wants: "layers/…" as rows in vocabulary genes,
    "obsm/…" ``(B, D)`` float32."""
    neighbours: Neighbours | None = None
    """The neighbours of the cells; transforms change their values as those of ``x``. None if the run asks for none."""
    is_meta: NDArray[np.bool_] | None = None
    """``(B,)`` True for cells that are the sum of a cell and its neighbours; None if no cell can be."""

    def __len__(self) -> int:
        return len(self.row)

    def slice(self, start: int, stop: int) -> CellBatch:
        """Cells ``[start, stop)``, as views."""
        return CellBatch(
            x=self.x.slice(start, stop),
            depth=self.depth[start:stop],
            row=self.row[start:stop],
            source=self.source[start:stop],
            labels=self.labels[start:stop],
            measured=self.measured,
            position=self.position[start:stop],
            key=self.key,
            targets=None if self.targets is None else self.targets[start:stop],
            pad=None if self.pad is None else self.pad[start:stop],
            obs={column: values[start:stop] for column, values in self.obs.items()},
            matrices={
                key: cells.slice(start, stop) if isinstance(cells, CSRRows) else cells[start:stop]
                for key, cells in self.matrices.items()
            },
            neighbours=None if self.neighbours is None else self.neighbours.slice(start, stop),
            is_meta=None if self.is_meta is None else self.is_meta[start:stop],
        )
