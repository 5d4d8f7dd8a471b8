"""Parquet tables with a cell per row, whose genes and values are lists, such as those of Tahoe-100M, read in place.

A row group is decoded for all requested cells in it; of a URL, two columns of it are fetched. The opening reads the
footer, a sample of the cells, and the gene table; genes that are numbered need one (see `open_parquet`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.protocols import OpenOptions
from scdataloader.runtime.buckets import RemotePath, checked_url, is_remote
from scdataloader.runtime.bytes import MirroredFile
from scdataloader.runtime.files import local_path, opening
from scdataloader.runtime.memory import BufferPool
from scdataloader.runtime.messages import message_of, shown
from scdataloader.sources.anndata.counts import Values
from scdataloader.sources.anndata.layout import MatrixLayout
from scdataloader.sources.anndata.matrix import StoredMatrix
from scdataloader.sources.anndata.nodes import Node
from scdataloader.sources.anndata.source import AnnDataSource
from scdataloader.sources.anndata.tree import Group, Table
from scdataloader.sources.arrays.arrays import StoredArray, ends_of, strided
from scdataloader.sources.arrays.fetch import ChunkCache, in_threads
from scdataloader.sources.arrays.mapped import FileMaps, Pieces
from scdataloader.sources.arrays.matrices import MappedCSR, Reader, StoredRows, joined
from scdataloader.sources.locate import expand
from scdataloader.types import CSRMatrix

PARQUET = (".parquet", ".pq")
"""Suffixes of the files."""
_PREFIX, _OPTION = "parquet:", "?genes="
_GENES = ("genes", "gene_ids", "gene_tokens", "tokens", "gene", "indices")
_VALUES = ("expressions", "counts", "values", "expression", "data")
_CELL_NAMES = ("BARCODE_SUB_LIB_ID", "barcode", "cell_id", "obs_name")
_TABLE = "gene_metadata.parquet"
_TOKENS = ("token_id", "token", "gene_token", "index")
_IDS = ("ensembl_id", "feature_id", "gene_id", "gene_ids", "feature_name", "gene_symbol", "gene_name")
_MOST_TOKENS = 1 << 24


def open_parquet(
    path: str | PathLike[str],
    *,
    genes: str | PathLike[str] | None = None,
    counts: str = "auto",
    values: Values = "counts",
) -> list[AnnDataSource]:
    """Open Parquet tables with a cell per row; each file is a source.

    A table has a column of lists of genes ("genes"), and one of their values ("expressions", "counts" or "values");
    all others are columns of obs. The first entry of a list may be a marker: its gene is in no table, its value
    negative. Cells are named by an index of pandas, or by "BARCODE_SUB_LIB_ID", "barcode" or "cell_id".

    Args:
        path: A file, a glob, or their URL.
        genes: The gene table, where the genes are numbers: Parquet or CSV with a column of numbers ("token_id", or else
            the row) and one of ids ("ensembl_id", "gene_id", "gene_symbol"), or JSON {id: number}. None looks for
            "gene_metadata.parquet" beside the table, in "metadata" there, and in "metadata" one folder up.
        counts: As in `open_source`; a table has only "X".
        values: As in `open_source`.

    Raises:
        FileNotFoundError: a file does not exist.
        NotCountsError: the values are not counts.
        SourceFormatError: not such a table, or damaged; genes are numbers, and a gene table is missing.
    """
    tables: dict[Path, _GeneTable] = {}
    sources: list[AnnDataSource] = []
    for file in expand(fspath(path)):
        form = _CellTable.open(_located(file), None if genes is None else _located(genes), tables)
        sources.append(ParquetSource.open(form.path, form, counts=counts, values=values))
    return sources


def open_tables(data: Sequence[Path | str], options: OpenOptions) -> Iterator[AnnDataSource]:
    """Open tables; registered for files of Parquet, and for "parquet:<path or glob>?genes=<file>"."""
    for one in data:
        address, _, genes = fspath(one).removeprefix(_PREFIX).partition(_OPTION)
        yield from open_parquet(address, genes=genes or None, counts=options.counts, values=options.values)


class ParquetSource(AnnDataSource):
    """The cells of a table."""

    def file_state(self) -> str | None:
        """As `AnnDataFile.file_state`."""
        assert isinstance(self.form, _CellTable)
        return self.form.file.version if isinstance(self.form.file, MirroredFile) else super().file_state()

    def _open_matrix(self, matrix: MatrixLayout) -> StoredMatrix:  # noqa: ARG002 (there is one)
        assert isinstance(self.form, _CellTable)
        return StoredMatrix(reader=_TableReader(self.form), offsets=None, arrays=(self.form,), maps=self._files)


@dataclass(frozen=True, kw_only=True, slots=True)
class _GeneTable:
    """The genes of one or more tables of cells."""

    frame: pd.DataFrame
    """The `var` of the sources."""
    numbers: NDArray[np.int32]
    """Gene number of each number in the lists; -1 for those of no gene. Empty if the lists have ids."""

    @classmethod
    def read(cls, path: Path) -> _GeneTable:
        """Read Parquet, CSV or JSON.

        Raises:
            SourceFormatError: it names no genes, or a number twice.
        """
        if path.suffix == ".json":
            found = json.loads(path.read_text())
            frame = pd.DataFrame({"token": list(found.values())}, index=pd.Index(list(found), dtype=object))
        else:
            file = _file(path)
            frame = pd.read_csv(file) if path.suffix == ".csv" else _read(file).to_pandas()
        column = next((name for name in _IDS if name in frame), None)
        if column is not None:
            frame = frame.set_axis(pd.Index(frame[column].astype(str).to_numpy(object)), axis=0)
        elif path.suffix != ".json":
            raise SourceFormatError(f"{path} has no column of gene ids ({', '.join(_IDS)}): {shown(frame.columns)}")
        tokens = next((frame[name].to_numpy() for name in _TOKENS if name in frame), np.arange(len(frame)))
        if tokens.dtype.kind not in "iu" or (len(tokens) and not 0 <= tokens.min() <= tokens.max() < _MOST_TOKENS):
            raise SourceFormatError(f"{path}: the numbers of genes must be integers from 0 to {_MOST_TOKENS - 1}")
        numbers = np.full(int(tokens.max(initial=-1)) + 1, -1, np.int32)
        numbers[tokens] = np.arange(len(frame), dtype=np.int32)
        if np.count_nonzero(numbers >= 0) < len(frame):
            raise SourceFormatError(f"{path} gives several genes the same number; write it again")
        return cls(frame=frame, numbers=numbers)

    def look_up(self, genes: pa.Array) -> NDArray[np.int32]:
        """Gene numbers of the entries of lists; -1 for those of no gene."""
        if not len(self.numbers):
            ids = pa.array(self.frame.index, genes.type)
            return np.asarray(pc.fill_null(pc.index_in(genes, value_set=ids), -1).to_numpy(zero_copy_only=False))
        tokens = genes.to_numpy(zero_copy_only=False)
        known = (tokens >= 0) & (tokens < len(self.numbers))
        return np.where(known, self.numbers[np.where(known, tokens, 0)], np.int32(-1))


@dataclass(frozen=True, kw_only=True, slots=True)
class _CellTable:
    """The `Format` of a table, as an AnnData with the matrix X."""

    path: Path
    file: Path | MirroredFile
    """The same, as it is read."""
    gene_column: str
    value_column: str
    name_column: str | None
    columns: tuple[str, ...]
    """Columns of obs."""
    genes: _GeneTable
    edges: NDArray[np.int64]
    """First row of each row group, and the number of rows."""
    places: tuple[tuple[int, int], ...]
    """First byte and size of the values of each row group."""

    @classmethod
    def open(cls, path: Path, genes: Path | None, tables: dict[Path, _GeneTable]) -> _CellTable:
        """Read the footer and the gene table; ``tables`` has those that have been read.

        Raises:
            SourceFormatError: not a table of cells, or a gene table is missing.
        """
        content = _file(path)
        with _opened(content) as file:
            schema, metadata = file.schema_arrow, file.metadata
            names = _index_column(schema)
            of_genes, of_values = _list_columns(path, schema)
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            at = next(i for i in range(metadata.num_columns) if _leaf(metadata, i) == of_values)
        if not pa.types.is_integer(schema.field(of_genes).type.value_type):
            table = _GeneTable(frame=_distinct(content, of_genes), numbers=np.empty(0, np.int32))
        else:
            place = _beside(path) if genes is None else genes
            if place is None:
                raise SourceFormatError(
                    f"{path} numbers its genes, and has no gene table beside it ({_TABLE}); give one, as "
                    f"'{_PREFIX}{path}{_OPTION}<file>'"
                )
            table = tables[place] = tables.get(place) or _GeneTable.read(place)
        return cls(
            path=path,
            file=content,
            gene_column=of_genes,
            value_column=of_values,
            name_column=names,
            columns=tuple(name for name in schema.names if name not in (of_genes, of_values) and not _is_index(name)),
            genes=table,
            edges=np.cumsum([0, *(group.num_rows for group in groups)]),
            places=tuple((_start(group.column(at)), group.column(at).total_compressed_size) for group in groups),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(cells, genes)."""
        return int(self.edges[-1]), len(self.genes.frame)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(np.float32)

    def sample(self, n_places: int, n_bytes: int) -> Iterator[bytes]:
        """Bytes of the values of evenly strided row groups, as stored."""
        with copy(self.file) if isinstance(self.file, MirroredFile) else self.file.open("rb") as file:
            for number in strided(len(self.places), n_places):
                for begin, end in ends_of(*self.places[number], n_bytes):
                    file.seek(begin)
                    yield file.read(end - begin)

    @contextmanager
    def opened(self, path: Path) -> Iterator[Node]:  # noqa: ARG002 (as of the other formats)
        """The tables, and X as an array of rows."""
        yield Group(
            nodes={
                "obs": Table(columns=self.columns, n_rows=self.shape[0], read=self._obs),
                "var": Table.of_frame(self.genes.frame),
                "X": _Rows(self),
            },
            path=str(self.path),
        )

    def watched(self, path: Path) -> Sequence[Path]:  # noqa: ARG002 (as of the other formats)
        """The file, if it is on this machine."""
        return (self.file,) if isinstance(self.file, Path) else ()

    def linked(self, root: Node) -> Sequence[Path]:  # noqa: ARG002 (as of the other formats)
        """Nothing."""
        return ()

    def describe(self, files: FileMaps, root: Node, location: str, dtype: np.dtype[Any] | None = None) -> StoredArray:
        """Not used: a table has only rows."""
        raise NotImplementedError

    def group(self, number: int) -> CSRMatrix:
        """The cells of a row group.

        Raises:
            SourceFormatError: it cannot be read, or has lists of different lengths, or a gene of no table.
        """
        lists = _read(self.file, number, [self.gene_column, self.value_column])
        genes, values = (lists.column(name).combine_chunks() for name in (self.gene_column, self.value_column))
        offsets, entries, numbers = np.asarray(genes.offsets).astype(np.int64), genes.flatten(), values.flatten()
        if entries.null_count or numbers.null_count or not np.array_equal(offsets, np.asarray(values.offsets)):
            raise self._damaged(number, f"{self.gene_column} and {self.value_column} differ in length, or lack entries")
        data = numbers.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        indices = self.genes.look_up(entries)
        starts = offsets[:-1][np.diff(offsets) > 0]
        markers = starts[(indices[starts] < 0) & (data[starts] < 0)]
        if np.count_nonzero(indices < 0) > len(markers):
            unknown = np.setdiff1d(np.flatnonzero(indices < 0), markers)[0]
            raise self._damaged(number, f"the gene {entries[int(unknown)]} is not in the gene table")
        kept = np.ones(len(data), np.bool_)
        kept[markers] = False
        return CSRMatrix(indptr=np.append(0, np.cumsum(kept))[offsets], indices=indices[kept], data=data[kept])

    def _damaged(self, number: int, found: str) -> SourceFormatError:
        return SourceFormatError(f"{self.path}, row group {number}: {found}; download or write the file again")

    def _obs(self) -> pd.DataFrame:
        names = () if self.name_column is None else (self.name_column,)
        frame = _read(self.file, None, list(dict.fromkeys([*self.columns, *names]))).to_pandas(ignore_metadata=True)
        n = self.shape[0]
        index = frame[self.name_column] if self.name_column is not None else pd.Series(range(n))
        is_text = [column for column in self.columns if frame[column].dtype.kind == "O"]
        table: pd.DataFrame = frame[list(self.columns)].astype(dict.fromkeys(is_text, "category"))
        return table.set_axis(pd.Index(index.astype(str).to_numpy(object)), axis=0)


class _Rows:
    """X of a table, sliced by rows, for the check of a sample."""

    def __init__(self, table: _CellTable) -> None:
        self._table, self.shape, self.dtype = table, table.shape, table.dtype

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(self.shape[0])
        read = _TableReader(self._table).read(np.arange(start, stop), BufferPool())
        out = np.zeros((stop - start, self.shape[1]), np.float32)
        np.add.at(out, (np.repeat(np.arange(stop - start), np.diff(read.indptr)), read.indices), read.data)
        return out


@dataclass(frozen=True, kw_only=True, slots=True)
class _KeptGroup:
    """A decoded row group in a cache."""

    rows: CSRMatrix

    @property
    def size(self) -> int:
        """Number of values."""
        return len(self.rows.data)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.rows.indptr.nbytes + self.rows.indices.nbytes + self.rows.data.nbytes


class _TableReader(Reader):
    """Reads rows of a table; each row group is decoded once for all of its rows."""

    is_mapped = False

    def __init__(self, table: _CellTable) -> None:
        self._table, self._cache = table, ChunkCache[_KeptGroup]()

    def read(self, rows: NDArray[np.int64], buffers: BufferPool, dtype: DTypeLike = np.float32) -> StoredRows:
        """As `Reader.read`."""
        of_row = np.searchsorted(self._table.edges, rows, side="right") - 1
        order = np.argsort(of_row, kind="stable")
        numbers, first = np.unique(of_row[order], return_index=True)
        places = np.split(order, first[1:])

        def take(at: int) -> StoredRows:
            group = self._group(int(numbers[at]))
            reader = MappedCSR(group.indptr, Pieces.one(group.indices), Pieces.one(group.data), self._table.shape[1])
            return reader.read(rows[places[at]] - self._table.edges[numbers[at]], buffers, dtype)

        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return joined(in_threads(take, range(len(numbers))), back, buffers, dtype)

    def _group(self, number: int) -> CSRMatrix:
        kept = self._cache.get((0, number), 0)
        if kept is None:
            kept = _KeptGroup(rows=self._table.group(number))
            self._cache.put((0, number), kept, evict=True)
        return kept.rows


def _list_columns(path: Path, schema: pa.Schema) -> tuple[str, str]:
    """The columns of genes and of values.

    Raises:
        SourceFormatError: there are none.
    """
    lists = [field.name for field in schema if pa.types.is_list(field.type) or pa.types.is_large_list(field.type)]
    found = [next((name for name in names if name in lists), None) for names in (_GENES, _VALUES)]
    if None in found:
        raise SourceFormatError(
            f"{path} is a Parquet table: write it as .h5ad with anndata.AnnData(pandas.read_parquet('{path}'))"
            f".write_h5ad('{path.stem}.h5ad'), cells as rows; or, if genes and values are lists, name these columns "
            f"{_GENES[0]} and {_VALUES[0]} (found {shown(schema.names)})"
        )
    genes, values = map(str, found)
    if not (pa.types.is_integer(kind := schema.field(genes).type.value_type) or _is_text(kind)):
        raise SourceFormatError(f"{path}: {genes} holds {kind}, expected numbers or ids of genes; write it again")
    return genes, values


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_index(name: str) -> bool:
    return name.startswith("__index_level_")


def _index_column(schema: pa.Schema) -> str | None:
    """The column with the names of the cells."""
    stored = [name for name in (schema.pandas_metadata or {}).get("index_columns", ()) if isinstance(name, str)]
    return next((name for name in (*stored, *_CELL_NAMES) if name in schema.names), None)


def _distinct(path: Path | MirroredFile, column: str) -> pd.DataFrame:
    """A gene table of the ids in the lists of a column, sorted; all of them are read."""
    ids: set[str] = set()
    with _opened(path) as file:
        for batch in file.iter_batches(columns=[column]):
            ids.update(pc.unique(batch.column(0).flatten()).to_pylist())
    return pd.DataFrame(index=pd.Index(sorted(filter(None, ids)), dtype=object))


def _beside(path: Path) -> Path | None:
    """The gene table that belongs to a file."""
    folder = path.parent
    places = (folder / _TABLE, folder / "metadata" / _TABLE, folder.parent / "metadata" / _TABLE)
    return next((place for place in places if place.is_file()), None)


def _leaf(metadata: pq.FileMetaData, at: int) -> str:
    return str(metadata.row_group(0).column(at).path_in_schema).partition(".")[0] if metadata.num_row_groups else ""


def _start(column: Any) -> int:
    """First byte of a column of a row group."""
    return int(column.dictionary_page_offset or column.data_page_offset)


def _located(path: str | PathLike[str]) -> Path:
    return RemotePath(checked_url(path)) if is_remote(path) else local_path(path).absolute()


def _file(path: Path) -> Path | MirroredFile:
    return MirroredFile.open(str(path)) if isinstance(path, RemotePath) else path


@contextmanager
def _opened(path: Path | MirroredFile) -> Iterator[pq.ParquetFile]:
    content = pa.PythonFile(copy(path), "r") if isinstance(path, MirroredFile) else path  # a position for each thread
    try:
        with opening(str(path)), pq.ParquetFile(content) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, ConnectionError | FileNotFoundError | PermissionError):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise SourceFormatError(
            f"{path} cannot be read as Parquet ({message_of(error)}); download or write the file again"
        ) from error


def _read(path: Path | MirroredFile, group: int | None = None, columns: list[str] | None = None) -> pa.Table:
    """Columns of a row group, or of the whole file."""
    with _opened(path) as file:
        if group is None:
            return file.read(columns, use_threads=False)
        return file.read_row_group(group, columns, use_threads=False)
