"""The values that pass between stages, and the protocols at the seams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from scipy.sparse import csr_matrix
    from torch import Tensor


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
    """Whether a value that is no count is to be refused; whoever reads the arrays has to look."""


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
    """``(B,)`` which source of the collection each cell lies in."""
    labels: NDArray[np.int64]
    """``(B, C)`` label codes, one column per label; -1 is unknown."""
    measured: NDArray[np.bool_]
    """``(n_sources, G)`` which vocabulary genes each source measured: elsewhere a zero means "absent", not "none"."""
    position: NDArray[np.int64]
    """``(B,)`` position of each draw in the epoch, over all ranks."""
    key: int
    """64 random bits of (seed, epoch): with ``position``, what every random choice made row by row depends on."""
    pad: NDArray[np.bool_] | None = None
    """``(B,)`` True where a row is repeated only to keep ranks even; None where no row ever is."""

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
            pad=None if self.pad is None else self.pad[start:stop],
        )


@runtime_checkable
class Source(Protocol):
    """One place that holds cells. Anything with these members can join a collection.

    A source that can offer its whole matrix in memory (see `CSRMatrix`) has it as ``matrix``, which the collection
    then reads without a call of ``read``; the attribute is None, or missing, elsewhere.
    """

    @property
    def name(self) -> str:
        """What messages call this source."""

    @property
    def n_obs(self) -> int:
        """Number of cells."""

    @property
    def var(self) -> pd.DataFrame:
        """Genes in the order of their numbers; the index holds the ids as written."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest that changes when the content changes."""

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """Columns of the cell table, ``n_obs`` rows; categoricals stay categorical.

        Raises:
            KeyError: a column is missing; names the source.
        """

    def read(self, rows: NDArray[np.int64]) -> CSRRows:
        """Cells ``rows`` in that order, repeats allowed, in the source's own gene numbering. Thread-safe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSelection:
    """A source, and the rows of it that are read."""

    source: Source
    rows: NDArray[np.int64] | None = None
    """``(m,)`` row numbers in the source, ascending, at least one; None for all rows."""


@runtime_checkable
class Sampler(Protocol):
    """The order in which cells are drawn, as a pure function of (epoch, position)."""

    @property
    def num_samples(self) -> int:
        """Draws in one epoch, over all ranks."""

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Row numbers of the draws at positions ``[start, stop)`` of ``epoch``."""


@runtime_checkable
class Transform(Protocol):
    """A change of a batch's values or genes, before it is collated."""

    def __call__(self, batch: CellBatch, rng: np.random.Generator) -> CellBatch:
        """A new batch; ``rng`` depends on (seed, epoch, position of the batch) alone."""


@runtime_checkable
class Collate(Protocol):
    """The last step before the model: sparse rows to tensors.

    One that treats each cell by itself, and takes less time for many at once, may have ``split(cells, batch_size)``:
    the list of what calls would give for one batch after another. It is then asked for the batches of all cells that
    were read together, unless there are transforms.
    """

    def __call__(self, batch: CellBatch, rng: np.random.Generator) -> dict[str, Tensor]:
        """A dictionary of tensors; ``rng`` depends on (seed, epoch, position of the batch) alone."""
