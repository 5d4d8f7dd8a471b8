"""An AnnData on disk as a source: what HDF5 and zarr have in common."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.errors import NotCountsError, SourceFormatError
from scdataloader.kernels.rows import gather
from scdataloader.protocols import ReadCost
from scdataloader.runtime.memory import BufferPool
from scdataloader.sources.anndata import layout
from scdataloader.sources.anndata.counts import (
    Offence,
    Values,
    choose_matrix,
    find_offence,
    first_not_count,
    has_counts,
    in_words,
    not_counts_message,
)
from scdataloader.sources.anndata.fingerprint import content_digest
from scdataloader.sources.anndata.matrix import StoredMatrix, open_matrix
from scdataloader.sources.arrays.arrays import StoredArray
from scdataloader.sources.arrays.mapped import FileMap
from scdataloader.sources.arrays.matrices import StoredRows
from scdataloader.sources.arrays.transpose import Transpose, transpose_in_memory
from scdataloader.types import CSRMatrix, CSRRows

_MEMORY = BufferPool()
"""What sources read into: one for all, since there may be thousands."""


class AnnDataSource(ABC):
    """One AnnData on disk, read in the genes and with the values that its matrix of counts has.

    The object holds a path and what is worth knowing of the file, so it may be pickled, forked and shared by threads.
    Library handles are open within a call only; memory maps and decoded chunks are kept until `close`.
    """

    def __init__(self, path: Path, root: layout.Node, counts: str, values: Values) -> None:
        self.path = path
        self.name = path.name
        layout.check_is_anndata(root, path)
        self.obs_columns: list[str] = layout.frame_columns(root["obs"])
        self._values = values
        self._chosen = choose_matrix(
            layout.find_matrices(root),
            counts,
            values,
            lambda found: find_offence(self._sampled(root, found), found),
            lambda found: has_counts(self._sampled(root, found), found),
            lambda found, wrong: in_words(root, found, wrong),
            self.name,
        )
        self.n_obs, self._n_genes = self._chosen.shape
        self._check_lengths(root)
        self.transpose: Transpose = transpose_in_memory
        """Transposes a CSC matrix, when the first of its cells is read."""
        self._var: pd.DataFrame | None = None
        self._digest: str | None = None
        self._drop()

    def _drop(self) -> None:
        self._renew()
        self._stored: StoredMatrix | None = None

    def _renew(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()

    @classmethod
    def open(cls, path: Path, *, counts: str = "auto", values: Values = "counts") -> Self:
        """Read what is to be known before any cell is read: no more than names, sizes and a sample of the values.

        Raises:
            KeyError: there is no such matrix.
            NotCountsError: the matrix, or every candidate, holds values that are no counts.
            SourceFormatError: not an AnnData, or damaged.
        """
        with cls._opened(path) as root:
            return cls(path, root, counts, values)

    def opened(self) -> AbstractContextManager[layout.Node]:
        """The root group of the file, for the duration of a with statement."""
        return self._opened(self.path)

    @classmethod
    @abstractmethod
    def _opened(cls, path: Path) -> AbstractContextManager[layout.Node]:
        """The root group, for the duration of a with statement."""

    @classmethod
    @abstractmethod
    def _describe(cls, file: FileMap, node: layout.Node, dtype: np.dtype[Any] | None = None) -> StoredArray:
        """How to read an array without the open root; ``dtype`` asks for another one than its own."""

    @classmethod
    def _sampled(cls, root: layout.Node, found: layout.MatrixLayout) -> layout.Node:
        """A matrix whose values are about to be looked at."""
        return layout.lookup(root, found.location)

    def _check_lengths(self, root: layout.Node) -> None:
        chosen = self._chosen
        for table, expected in (("obs", self.n_obs), (chosen.var, self._n_genes)):
            rows = layout.frame_length(layout.lookup(root, table))
            if rows != expected:
                raise SourceFormatError(
                    f"{self.path} contradicts itself: {table} has {rows} rows, {chosen.key} is {self.n_obs} cells by "
                    f"{self._n_genes} genes; write the file again"
                )

    @property
    def counts(self) -> str:
        """Which matrix is read: ``X``, ``layers/<name>`` or ``raw``."""
        return self._chosen.key

    @property
    def is_csc(self) -> bool:
        """Whether the matrix of counts is stored as CSC; it is transposed before the first cell is read."""
        return self._chosen.kind == "csc"

    @property
    def var(self) -> pd.DataFrame:
        """Genes in the order of their numbers: of ``raw`` where that is what is read."""
        if self._var is None:
            with self._opened(self.path) as root:
                self._var = layout.read_frame(root, self._chosen.var)
        return self._var

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """Columns of the cell table, ``n_obs`` rows; categoricals stay categorical. Read anew on each call.

        Raises:
            KeyError: a column is missing; names the source and the nearest names.
        """
        with self._opened(self.path) as root:
            return layout.read_columns(root, columns, self.name)

    def whole_obs(self) -> pd.DataFrame:
        """The whole cell table, with its index. Read anew on each call."""
        with self._opened(self.path) as root:
            return layout.read_frame(root, "obs")

    def obs_names(self) -> pd.Index:
        """Names of the cells: the index of the cell table. Read anew on each call."""
        with self._opened(self.path) as root:
            return layout.read_index(root, "obs")

    @property
    def organism(self) -> str | None:
        """The organism that ``uns`` states, as ontology term or else name; None where it states none, or several."""
        with self._opened(self.path) as root:
            return layout.uns_organism(root)

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of shape, genes, column names, offsets and a strided sample of the stored values."""
        if self._digest is None:
            self._digest = content_digest(self._chosen, list(self.var.index), self.obs_columns, self._matrix())
        return self._digest

    @property
    def matrix(self) -> CSRMatrix | None:
        """The whole matrix, where its arrays lie in the file in one piece, or had to be loaded anyway."""
        return self._matrix().reader.matrix

    @property
    def read_cost(self) -> ReadCost:
        """Chunks that have to be decoded make a cell dear whose neighbours are not read with it."""
        return ReadCost(cell=2.0 if self._matrix().reader.is_mapped else 500.0, neighbour=2.0)

    def nnz(self) -> NDArray[np.int64] | None:
        """``(n_obs,)`` number of stored values of each cell; None for a dense matrix."""
        offsets = self._matrix().reader.indptr
        return None if offsets is None else np.diff(offsets)

    def read(self, rows: NDArray[np.int64]) -> CSRRows:
        """Cells ``rows`` in that order, repeats allowed, in the source's own gene numbering. Thread-safe.

        Raises:
            IndexError: a row is outside [0, n_obs).
            NotCountsError: a value is no count, unless the source was opened with ``values="any"``.
            SourceFormatError: the file is damaged.
        """
        read = self._read(rows, np.dtype(np.float32))
        return CSRRows(data=read.data, indices=read.indices, indptr=read.indptr, n_genes=self._n_genes)

    def read_stored(self, rows: NDArray[np.int64]) -> CSRMatrix:
        """As `read`, with values as exact as they are stored: integers in 64 bits, where float32 may have to round."""
        dtype = self._matrix().arrays[0].dtype
        return self._read(rows, np.dtype(f"{dtype.kind}8") if dtype.kind in "iu" else dtype)

    def _read(self, rows: NDArray[np.int64], dtype: np.dtype[Any]) -> CSRMatrix:
        rows = self._valid(rows)
        gathered = self._matrix().reader.read(rows, _MEMORY, dtype)
        if gathered.flags & gather.OUT_OF_RANGE:
            self._refuse_genes(rows, gathered)
        if gathered.flags & gather.NOT_COUNTS and self._values == "counts":
            self._refuse_values(rows, gathered)
        return gathered.in_order()

    def release(self) -> None:
        """Give the system back the memory that a mapped file takes; what is read again is mapped again."""
        if self._stored is not None:
            self._stored.file.release()

    def close(self) -> None:
        """Close memory maps, and drop decoded chunks and the gene table; a later read opens them again."""
        self._drop()
        self._var = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        kept = dict(self.__dict__)
        for key in ("_stored", "_lock", "_process", "_var"):
            del kept[key]
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}: {self.n_obs} cells, {self._n_genes} genes, {self.counts})"

    def _matrix(self) -> StoredMatrix:
        if self._process != os.getpid():
            # A thread of the parent process may have held a lock when this one was forked.
            self._renew()
        if (stored := self._stored) is not None:
            return stored
        with self._lock:
            if self._stored is None:
                self._stored = self._open_matrix()
            return self._stored

    def _open_matrix(self) -> StoredMatrix:
        file = FileMap(self.path)
        with self._opened(self.path) as root:
            return open_matrix(
                lambda array, dtype: self._describe(file, array, dtype),
                layout.lookup(root, self._chosen.location),
                self._chosen,
                file=file,
                counts_only=self._values == "counts",
                transpose=self.transpose,
            )

    def _valid(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise TypeError(f"rows must be a list of integers; got shape {rows.shape}, dtype {rows.dtype}")
        rows = np.ascontiguousarray(rows, np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < self.n_obs):
            raise IndexError(
                f"{self.name} has cells 0 to {self.n_obs - 1}; rows from {rows.min()} to {rows.max()} were asked for"
            )
        return rows

    def _refuse_genes(self, rows: NDArray[np.int64], gathered: StoredRows) -> None:
        bad = (gathered.indices < 0) | (gathered.indices >= self._n_genes)
        # A wild 64-bit number may look tame in 32 bits: then all that can be said is that it is among these cells.
        cell = f"cell {rows[gathered.row_of(int(bad.argmax()))]}" if bad.any() else f"a cell among {rows[:3]}..."
        raise SourceFormatError(
            f"{self.path} is damaged: {self.counts} has a gene number outside 0 to {self._n_genes - 1} in {cell}; "
            "fetch or write the file again"
        )

    def _refuse_values(self, rows: NDArray[np.int64], gathered: StoredRows) -> None:
        at = first_not_count(gathered.data)
        if at is None:  # the kernel said so
            raise AssertionError(gather.FLAGS[gather.NOT_COUNTS])
        wrong = Offence(value=gathered.data[at], row=int(rows[gathered.row_of(at)]), gene=int(gathered.indices[at]))
        raise NotCountsError(
            not_counts_message(self.name, self.counts, wrong.in_words(str(self.var.index[wrong.gene])))
        )
