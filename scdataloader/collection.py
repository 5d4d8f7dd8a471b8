"""Many sources as one table of cells, with one row numbering and one list of genes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.alignment import GeneAlignment, Part, align
from scdataloader.buffers import BufferPool
from scdataloader.errors import NotCountsError, SourceFormatError
from scdataloader.kernels.align import BAD_INDEX, OK, align_rows, close_gaps
from scdataloader.sources.counts import Values
from scdataloader.sources.locate import open_sources
from scdataloader.types import CellBatch, CSRMatrix, CSRRows

if TYPE_CHECKING:
    from scdataloader.genes import GeneVocabulary

_WINDOW = 4096
"""Cells read at once where a source has to be read to count its values."""


class Collection:
    """Many sources seen as one table of cells: rows 0 … n - 1, source after source, in the vocabulary's genes.

    Make it with `open`. Reading is thread-safe. A file that mixes organisms counts as one source for each.
    """

    def __init__(self, vocabulary: GeneVocabulary, parts: Sequence[Part]) -> None:
        """Number the cells of ``parts`` one after the other."""
        self.vocabulary = vocabulary
        self.parts = tuple(parts)
        self._starts = np.zeros(len(self.parts) + 1, np.int64)
        np.cumsum([part.n_obs for part in self.parts], out=self._starts[1:])
        self._buffers = BufferPool()
        self.measured = np.stack([part.genes.measured for part in self.parts])

    @classmethod
    def open(
        cls, data: Any, *, genes: GeneAlignment | None = None, counts: str = "auto", values: Values = "counts"
    ) -> Collection:
        """Open files, stores or a lamindb collection; reads their metadata, not their matrices.

        Args:
            data: Paths or globs of .h5ad files and AnnData .zarr folders, "lamindb:<key>", a lamindb collection or
                artifacts, `Source` objects; one or a list.
            genes: How genes are found and aligned.
            counts: Which matrix holds the counts: "X", "layers/<key>", "raw", or "auto" for the first of these that
                holds integers.
            values: "counts" refuses values that are negative or fractions; "any" takes them.

        Raises:
            FileNotFoundError: a path does not exist, or a glob matches nothing.
            SourceFormatError: a file is not what its name says.
            NotCountsError: a file has no counts.
            GeneOverlapError: a source shares too few genes with the vocabulary.
            ValueError: the same data is named twice, or organisms are unclear.
        """
        sources = open_sources(data, counts=counts, values=values)
        seen: dict[str, str] = {}
        for source in sources:
            if source.fingerprint in seen:
                raise ValueError(
                    f"{seen[source.fingerprint]} and {source.name} hold the same cells "
                    f"(fingerprint {source.fingerprint}); name the data once"
                )
            seen[source.fingerprint] = source.name
        return cls(*align(sources, genes or GeneAlignment()))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def n_genes(self) -> int:
        """Number of genes of the vocabulary."""
        return len(self.vocabulary)

    @property
    def reads_cheaply(self) -> bool:
        """Whether small reads cost no more per cell than large ones: nothing has to be decoded for neighbours."""
        return all(
            getattr(part.source, "reads_cheaply", getattr(part.source, "matrix", None) is not None)
            for part in self.parts
        )

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the sources' content, their order and the vocabulary."""
        digest = hashlib.blake2b(self.vocabulary.digest.encode(), digest_size=16)
        for part in self.parts:
            digest.update(f"{part.source.fingerprint}:{part.organism}:{part.n_obs};".encode())
            digest.update(part.genes.lut.data)
        return digest.hexdigest()

    def read(self, rows: NDArray[np.int64]) -> CSRRows:
        """Cells ``rows``, in that order, repeats allowed, in vocabulary genes.

        Raises:
            IndexError: a row is outside [0, n).
        """
        return self.cells(rows).x

    def column(self, name: str) -> list[pd.Series[Any]]:
        """A column of the cell table, source by source; missing values where a source does not have it.

        Raises:
            KeyError: no source has the column; names the columns that there are.
        """
        series: list[pd.Series[Any]] = []
        found = False
        errors: list[KeyError] = []
        for part in self.parts:
            try:
                values = part.source.obs([name])[name]
                found = True
            except KeyError as error:
                if name in getattr(part.source, "obs_columns", ()):
                    raise  # it is there and cannot be read
                errors.append(error)
                values = pd.Series(pd.Categorical([None] * part.source.n_obs, categories=pd.Index([], dtype=object)))
            series.append(values if part.rows is None else values.iloc[part.rows])
        if not found:
            raise KeyError(f"no source has the obs column {name!r}: {errors[0].args[0]}")
        return series

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """Columns of the cell table, one row per cell; missing values where a source lacks a column.

        Raises:
            KeyError: a column is in no source.
        """
        table = {}
        for name in columns:
            series = self.column(name)
            joined = pd.concat([values.astype(object) for values in series], ignore_index=True)
            categorical = all(isinstance(values.dtype, pd.CategoricalDtype) for values in series)
            table[name] = joined.astype("category") if categorical else joined.infer_objects()
        return pd.DataFrame(table, index=pd.RangeIndex(len(self)))

    def nnz(self) -> NDArray[np.int64]:
        """``(n,)`` number of stored values of each cell, over all genes of its source."""
        sizes = []
        for part in self.parts:
            indptr = getattr(part.source, "indptr", None)
            rows = np.arange(part.source.n_obs) if part.rows is None else part.rows
            if indptr is not None:
                sizes.append(np.diff(indptr)[rows])
            else:
                read = (part.source.read(rows[at : at + _WINDOW]) for at in range(0, len(rows), _WINDOW))
                sizes += [np.diff(cells.indptr) for cells in read]
        return np.concatenate(sizes)

    def close(self) -> None:
        """Let go of what the sources hold: memory maps and decoded chunks. A later read opens them again."""
        for part in self.parts:
            close = getattr(part.source, "close", None)
            if close is not None:
                close()

    def cells(self, rows: NDArray[np.int64]) -> CellBatch:
        """Cells ``rows`` with all that is known about them but labels, which are not the collection's business.

        Raises:
            IndexError: a row is outside [0, n).
        """
        rows = np.ascontiguousarray(rows, np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows must be in [0, {len(self)}); got {rows.min()} to {rows.max()}")
        source = (np.searchsorted(self._starts, rows, side="right") - 1).astype(np.int32)
        x, depth = self._aligned(rows, source)
        return CellBatch(
            x=x,
            depth=depth,
            row=rows,
            source=source,
            labels=np.empty((len(rows), 0), np.int64),
            measured=self.measured,
            position=np.arange(len(rows)),
            key=0,
        )

    def _aligned(self, rows: NDArray[np.int64], source: NDArray[np.int32]) -> tuple[CSRRows, NDArray[np.float32]]:
        sizes = np.empty(len(rows), np.int64)
        pieces = []
        for number in np.unique(source):
            part = self.parts[number]
            place = np.flatnonzero(source == number)
            local = rows[place] - self._starts[number]
            local = local if part.rows is None else part.rows[local]
            matrix, take = _addressable(part, local)
            sizes[place] = matrix.indptr[take + 1] - matrix.indptr[take]
            pieces.append((part, local, matrix, take, place))
        starts = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(sizes, out=starts[1:])
        indices, data = self._buffers.take(starts[-1], np.int32), self._buffers.take(starts[-1], np.float32)
        kept, depth = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
        for part, local, matrix, take, place in pieces:
            status, at = align_rows(
                matrix.indptr,
                matrix.indices,
                matrix.data,
                take,
                part.genes.lut,
                self.n_genes,
                part.genes.monotone,
                matrix.counts_only,
                place,
                starts,
                indices,
                data,
                kept,
                depth,
            )
            if status != OK:
                _refuse(part, int(local[at]), status)
        if (kept != sizes).any():
            starts = close_gaps(starts, kept, indices, data)
            indices, data = indices[: starts[-1]], data[: starts[-1]]
        return CSRRows(data=data, indices=indices, indptr=starts, n_genes=self.n_genes), depth


def _addressable(part: Part, local: NDArray[np.int64]) -> tuple[CSRMatrix, NDArray[np.int64]]:
    """A matrix in memory that has the rows ``local`` of a source, and where: the whole one, or just what is read."""
    matrix: CSRMatrix | None = getattr(part.source, "matrix", None)
    if matrix is not None:
        return matrix, local
    rows = part.source.read(local)
    return CSRMatrix(indptr=rows.indptr, indices=rows.indices, data=rows.data), np.arange(len(local))


def _refuse(part: Part, row: int, status: int) -> None:
    # The source's own reader finds the value and can say more about it.
    part.source.read(np.array([row]))
    if status == BAD_INDEX:
        raise SourceFormatError(
            f"cell {row} of {part.source.name} has a gene number outside 0 … {len(part.genes.lut) - 1}"
        )
    raise NotCountsError(f"cell {row} of {part.source.name} has a value that is no count")
