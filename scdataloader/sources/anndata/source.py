"""A stored AnnData as a source of cells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.errors import NotCountsError, SourceFormatError
from scdataloader.kernels.rows import gather
from scdataloader.kernels.rows.nearest import nearest
from scdataloader.protocols import ReadCost, TakePart
from scdataloader.runtime.mapping import FileWatch
from scdataloader.runtime.names import name_of
from scdataloader.schema import ORGANISM_KEYS
from scdataloader.sources.anndata import h5ad, layout, tables
from scdataloader.sources.anndata.content import table_content
from scdataloader.sources.anndata.counts import (
    InvalidValue,
    Values,
    choose_matrix,
    first_not_count,
    has_counts,
    not_counts_message,
)
from scdataloader.sources.anndata.file import AnnDataFile, Format, format_of
from scdataloader.sources.anndata.layout import MatrixLayout
from scdataloader.sources.anndata.matrix import StoredMatrix
from scdataloader.sources.anndata.nodes import UNREADABLE, Node
from scdataloader.sources.anndata.opened import FileFacts, OpenedFiles, State, gene_list, state_of
from scdataloader.sources.anndata.remote import RemoteFormat
from scdataloader.sources.arrays.matrices import ChunkedCSR, StoredRows
from scdataloader.sources.arrays.transpose import transpose_in_memory
from scdataloader.sources.fingerprint import digest_of, joined
from scdataloader.types import CSRMatrix, CSRRows, SharedGenes

_SAMPLES, _SAMPLE_BYTES = 256, 2048
"""The part of each array that a fingerprint covers."""


class AnnDataSource(AnnDataFile):
    """An AnnData on disk, read in the genes and with the values of its matrix of counts."""

    def __init__(
        self,
        path: Path,
        root: Node,
        form: Format | None = None,
        *,
        counts: str = "auto",
        values: Values = "counts",
        state: State | None = None,
    ) -> None:
        """Read the metadata. With its ``state``, what is known of the file is kept once its fingerprint is found."""
        super().__init__(path, root, form)
        self._options, self._state = (counts, values), state
        self._chosen: MatrixLayout
        self._values: Values
        self._n_genes: int
        self._var: pd.DataFrame | None
        self._keys: list[str] | None
        self._columns: dict[str, list[str]]
        self._tables: dict[str, NDArray[np.float32]]
        self.__dict__.update(_unread(values, choose_matrix(root, counts, values, str(path))))
        self._digest: str | None = None
        self._labels: dict[str, str] = {}
        self._shared: SharedGenes | None = None

    @classmethod
    def open(cls, path: Path, form: Format | None = None, *, counts: str = "auto", values: Values = "counts") -> Self:
        """Read names, sizes and a sample of the values.

        Raises:
            KeyError: the matrix does not exist.
            NotCountsError: the matrix, or every candidate, holds values that are not counts.
            SourceFormatError: not an AnnData, or damaged.
        """
        own = form or format_of(path)
        cache = OpenedFiles.of_environment() if own is h5ad else None
        if cache is None:
            with own.opened(path) as root:
                return cls(path, root, form, counts=counts, values=values)
        watch, state = FileWatch(*h5ad.watched(path)), state_of(path)
        if (known := cache.find(path, (counts, values))) is not None:
            return cls._known(path, watch, values, *known)
        with own.opened(path) as root:
            return cls(path, root, form, counts=counts, values=values, state=state)

    @classmethod
    def _known(cls, path: Path, watch: FileWatch, values: Values, facts: FileFacts, genes: SharedGenes) -> Self:
        """A source that was opened before; ``watch`` is older than the check that its file has not changed."""
        source = cls.__new__(cls)
        source.__setstate__(
            {
                "_watches": {path.absolute(): watch},
                "path": path,
                "_own_form": None,
                "name": name_of(path),
                "obs_columns": facts.obs_columns,
                "n_obs": facts.n_obs,
                "_layouts": {},
                "transpose": transpose_in_memory,
                "organism": facts.organism,
                "_state": None,
                "_digest": facts.fingerprint,
                "_labels": facts.labels,
                "_shared": genes,
                **_unread(values, facts.chosen),
            }
        )
        return source

    def _remember(self, root: Node, state: State) -> str | None:
        """Keep what is known of the file, which is open, in the cache; returns its fingerprint.

        None for other formats, and values in other files. A table that cannot be read is not kept either, so that
        whoever needs it gets the error.
        """
        cache = OpenedFiles.of_environment()
        is_plain = isinstance(root, h5py.Group) and len(self._watches) == 1
        if cache is None or not is_plain:
            return None
        try:
            index = tables.text_index(root, self._chosen.var)
            if index is None or not has_counts(root, self._chosen):  # each opening warns of a matrix of zeros
                return None
            names = b"\0".join(index)
            digest, genes = gene_list(names, len(index))
            facts = FileFacts(
                n_obs=self.n_obs,
                obs_columns=self.obs_columns,
                var_columns=tables.frame_columns(root, self._chosen.var),
                chosen=self._chosen,
                fingerprint=self._fingerprint(root, names),
                organism=tables.uns_organism(root),
                labels=tables.labels(root, [key for key in ORGANISM_KEYS if key in self.obs_columns][:1]),
                genes=digest,
            )
        except UNREADABLE:
            return None
        self._labels, self._shared = facts.labels, replace(genes, var_columns=facts.var_columns)
        cache.keep(self.path, self._options, state, facts, genes)
        return facts.fingerprint

    @property
    def counts(self) -> str:
        """Key of the matrix that is read: "X", "layers/<name>" or "raw"."""
        return self._chosen.key

    @property
    def is_csc(self) -> bool:
        """Whether the matrix of counts is stored as CSC; it is transposed before the first cell is read."""
        return self._chosen.kind == "csc"

    @property
    def var(self) -> pd.DataFrame:
        """Genes in the order of their numbers: those of ``raw`` if the counts are there."""
        if self._var is None:
            with self.opened() as root:
                self._var = tables.read_frame(root, self._chosen.var)
        return self._var

    @property
    def labels(self) -> dict[str, str]:
        """As `HasLabels.labels`: the organism, of files in the cache of opened files."""
        return self._labels

    @property
    def shared_genes(self) -> SharedGenes | None:
        """As `SharesGenes.shared_genes`, of files in the cache of opened files."""
        return self._shared

    @property
    def fingerprint(self) -> str:
        """Digests of obs, var and X, wherever the file is and whenever it was written.

        They cover the columns of obs and var whole, and samples of the cells' names. Of X, they cover the shape, the
        offsets in full, and evenly spaced samples of the stored values and gene numbers: another compression of the
        same values gives another fingerprint.
        """
        if self._digest is None:
            with self.opened() as root:
                digest = None if self._state is None else self._remember(root, self._state)
                digest = digest or self._fingerprint(root)
            self.check_unchanged()
            self._digest = digest
        return self._digest

    def _fingerprint(self, root: Node, index: bytes | None = None) -> str:
        """The fingerprint; ``index`` has the texts of var's index, joined by zero bytes, if they have been read."""
        chosen, stored = self._chosen, self._matrix()
        obs = digest_of(table_content(root, "obs", names=False))
        var = digest_of(table_content(root, chosen.var, index=index))
        shapes = [array.shape for array in stored.arrays]
        head = json.dumps([chosen.key, chosen.kind, chosen.shape, shapes]).encode()
        offsets = b"" if stored.offsets is None else stored.offsets.tobytes()
        samples = [piece for array in stored.arrays for piece in array.sample(_SAMPLES, _SAMPLE_BYTES)]
        return joined(obs, var, digest_of([head, offsets, *samples]))

    @property
    def matrix(self) -> CSRMatrix | None:
        """The whole matrix, if its arrays are contiguous in the file, or had to be loaded anyway."""
        matrix = self._matrix().reader.matrix
        return None if matrix is None else replace(matrix, counts_only=self._values == "counts")

    @property
    def read_cost(self) -> ReadCost:
        """Decoding a chunk for one cell takes as long as for all cells in it; so does waiting for a server."""
        is_mapped = self._matrix().reader.is_mapped
        if isinstance(self.form, RemoteFormat):
            return ReadCost(cell=200.0 if is_mapped else 1000.0, neighbour=10.0)
        return ReadCost(cell=2.0 if is_mapped else 500.0, neighbour=2.0)

    def nnz(self) -> NDArray[np.int64] | None:
        """``(n_obs,)`` number of stored values of each cell; None for a dense matrix."""
        offsets = self._matrix().reader.indptr
        return None if offsets is None else np.diff(offsets)

    def read(self, rows: NDArray[np.int64]) -> CSRRows:
        """Cells ``rows`` in that order, repeats allowed, in the source's own gene numbering. Thread-safe.

        Raises:
            IndexError: a row is outside [0, n_obs).
            NotCountsError: a value is not a count, unless the source was opened with ``values="any"``.
            SourceFormatError: the file is damaged.
        """
        return _csr_rows(self._read_counts(rows, np.dtype(np.float32)).in_order(), self._n_genes)

    def read_stored(self, rows: NDArray[np.int64]) -> CSRMatrix:
        """As `read`, with values in their dtype, where float32 may have to round, and in stored order."""
        read = self._read_counts(rows, self._matrix().arrays[0].dtype)
        return CSRMatrix(data=read.data, indices=read.indices, indptr=read.indptr)

    def stored_sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """As `ReadsParts.stored_sizes`: of a compressed CSR matrix whose two arrays have the same chunks."""
        reader, rows = self._matrix().reader, self._valid(rows)
        if not isinstance(reader, ChunkedCSR) or not reader.has_parts:
            return None
        return reader.indptr[rows + 1] - reader.indptr[rows]

    def read_parts(self, rows: NDArray[np.int64], take: TakePart) -> None:
        """As `ReadsParts.read_parts`.

        Raises:
            IndexError: a row is outside [0, n_obs).
            SourceFormatError: the file is damaged.
        """
        reader, rows = self._matrix().reader, self._valid(rows)
        assert isinstance(reader, ChunkedCSR)
        counts_only = self._values == "counts"
        flags = reader.read_parts(rows, lambda matrix, *cells: take(replace(matrix, counts_only=counts_only), *cells))
        self.check_unchanged()
        if flags & gather.OUT_OF_RANGE:
            self.read(rows)  # raises an error with more details

    def _read_counts(self, rows: NDArray[np.int64], dtype: np.dtype[Any]) -> StoredRows:
        read = self._read(self._chosen, rows, dtype)
        if read.flags & gather.NOT_COUNTS and self._values == "counts":
            self._refuse_values(rows, read)
        return read

    def _refuse_values(self, rows: NDArray[np.int64], read: StoredRows) -> None:
        at = first_not_count(read.data)
        if at is None:  # the kernel found one
            raise AssertionError(gather.FLAGS[gather.NOT_COUNTS])
        invalid = InvalidValue(value=read.data[at], row=int(rows[read.row_of(at)]), gene=int(read.indices[at]))
        with self.opened() as root:
            raise NotCountsError(not_counts_message(root, self.name, self._chosen, invalid))

    @property
    def matrix_keys(self) -> list[str]:
        """Keys of layers in the genes of ``var``, and of arrays, sparse matrices and tables of obsm and obsp."""
        if self._keys is None:
            layers = [] if self.counts == "raw" else ["layers"]
            with self.opened() as root:
                self._columns = tables.numeric_tables(root)
                keys = {group: layout.matrix_keys(root, group) for group in (*layers, "obsm", "obsp")}
            keys["obsm"] = sorted([*keys["obsm"], *self._columns])
            self._keys = [key for of_group in keys.values() for key in of_group]
        return self._keys

    def matrix_columns(self, key: str) -> list[str] | None:
        """Names of the columns of a table in obsm; None for other matrices."""
        return self._columns.get(key) if key in self.matrix_keys else None

    def read_matrix(self, key: str, rows: NDArray[np.int64]) -> CSRRows | NDArray[np.float32]:
        """Cells ``rows`` of another matrix: ``(len(rows), D)`` values of "obsm/…", sparse rows of others.

        A table of obsm is read whole when it is first used, and kept in memory until `close`.

        Raises:
            KeyError: the matrix does not exist.
            IndexError: a row is outside [0, n_obs).
            SourceFormatError: the file is damaged.
        """
        if key in self.matrix_keys and key in self._columns:
            return self._table(key)[self._valid(rows)]
        other = self.find_matrix(key) if key in self.matrix_keys else None
        if other is None:
            raise KeyError(f"{self.name} has no matrix {key!r}; there are {', '.join(self.matrix_keys) or 'none'}")
        is_obsm = key.startswith("obsm/")
        if other.kind == "dense" and is_obsm:
            return self.read_dense(other, rows).astype(np.float32)
        if key.startswith("obsp/") and other.shape[1] != self.n_obs:
            raise SourceFormatError(
                f"{self.path}: {key} has {other.shape[1]} columns, expected {self.n_obs}, its cells"
            )
        read = _csr_rows(self._read(other, rows, np.dtype(np.float32)).in_order(), other.shape[1])
        return read.to_scipy().toarray() if is_obsm else read

    def _table(self, key: str) -> NDArray[np.float32]:
        if key not in self._tables:
            with self.opened() as root:
                values = tables.read_frame(root, key).to_numpy(np.float32)
            if len(values) != self.n_obs:
                raise SourceFormatError(f"{self.path}: {key} has {len(values)} rows, expected {self.n_obs}, its cells")
            self._tables[key] = values
        return self._tables[key]

    def neighbours(
        self, rows: NDArray[np.int64], k: int, key: str = "distances"
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As `HasNeighbours.neighbours`; of a graph that is stored as a dense array, zeros are not edges."""
        graph = self.read_matrix(f"obsp/{key}", rows)
        assert isinstance(graph, CSRRows)
        return nearest(graph.indptr, graph.indices, graph.data, np.asarray(rows, np.int64), k)

    def close(self) -> None:
        """Close memory maps, and drop decoded chunks and the gene table; a later read opens them again."""
        super().close()
        self._var, self._tables = None, {}

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_var": None, "_tables": {}, "_shared": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}: {self.n_obs} cells, {self._n_genes} genes, {self.counts})"

    def _matrix(self) -> StoredMatrix:
        return self._stored(self._chosen)


def _unread(values: Values, chosen: MatrixLayout) -> dict[str, Any]:
    """Attributes of a source of which only the matrix has been chosen."""
    nothing: dict[str, Any] = {"_var": None, "_keys": None, "_columns": {}, "_tables": {}}
    return {"_values": values, "_chosen": chosen, "_n_genes": chosen.shape[1], **nothing}


def _csr_rows(rows: CSRMatrix, n_genes: int) -> CSRRows:
    return CSRRows(data=rows.data, indices=rows.indices, indptr=rows.indptr, n_genes=n_genes)
