"""Tables of a store in parquet files: of cells, of genes, and of gene spaces."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError, UnsupportedDataError
from scdataloader.genes.names import gene_names
from scdataloader.protocols import HasGenePositions, HasNames, Source
from scdataloader.runtime.bytes import MirroredFile
from scdataloader.runtime.files import opened_atomically, writing
from scdataloader.runtime.mapping import FileWatch
from scdataloader.runtime.mirror import Mirror
from scdataloader.sources.contract import obs_of
from scdataloader.sources.fingerprint import column_content
from scdataloader.store.manifest import FileRecord, Manifest, file_record

T = TypeVar("T")

POSITION = "__position__"
"""Column of a gene table: position of the gene in its source."""
ROW = "__row__"
"""Column of a cell table in a store with another order of cells: row of the cell in its source."""
CATEGORIES = b"scdataloader.categories"
"""Metadata key of a file: categories of columns that are not text, which parquet does not keep."""

_DAMAGED = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""Errors of parquet and pandas for bytes that are not a table."""
_ROWS_PER_GROUP = 1 << 17
_GROUPS_PER_PIECE = 8
_ROWS_PER_PIECE = _GROUPS_PER_PIECE * _ROWS_PER_GROUP
_FOOT_BYTES = 1 << 16
"""Bytes at the end of a parquet file that pyarrow reads first."""
TRIES = 5
"""Times that a table with wrong bytes is fetched."""
_KINDS_OF_CATEGORIES = "biuf"
"""NumPy kinds of categories that can be kept, beside text."""


class Table:
    """A parquet file of a store. Its checksum is checked before it is first used; it must not change after that.

    Of a cell table in a mirror, the columns that are read are fetched, and the checksums of their pages are checked.
    """

    def __init__(self, folder: Path, record: FileRecord, mirror: Mirror | None = None) -> None:
        self.path = folder / record.path
        self._folder, self._record, self._mirror = folder, record, mirror
        self._watch: FileWatch | None = None

    def labels(self) -> dict[str, str | None]:
        """As `labels_of_columns`, of a cell table.

        Raises:
            StoreFormatError: the table is damaged.
        """
        return self._tried(lambda: labels_of_columns(self._file([])))

    def read(self, columns: Sequence[str] | None = None, *, n_rows: int | None = None) -> pd.DataFrame:
        """Columns with a numbered index; or, with None, all columns, including the store's own, with their index.

        Raises:
            StoreFormatError: the table is damaged, or does not have ``n_rows``.
        """
        wanted = None if columns is None else list(columns)

        def read() -> pd.DataFrame:
            table = pq.read_table(self._file(wanted), columns=wanted, page_checksum_verification=self._is_partial)
            frame = with_categories(table)
            if wanted is not None and list(frame.columns) != wanted:
                raise ValueError(f"it has the columns {table.column_names}")
            return frame

        frame = self._tried(read)
        if n_rows is not None and len(frame) != n_rows:
            raise StoreFormatError(f"{self.path} has {len(frame):,} rows, the manifest states {n_rows:,}")
        return frame

    def pieces(self, column: str, n_rows: int) -> Iterator[pd.Series[Any]]:
        """A column in pieces of about a million rows, while the checksum of a local table is computed beside it.

        Raises:
            StoreFormatError: the table is damaged, or does not have ``n_rows``.
        """
        if self._mirror is not None or n_rows <= _ROWS_PER_PIECE:
            yield self.read([column], n_rows=n_rows)[column]
            return
        n_read = 0
        with ThreadPoolExecutor(1) as beside:
            check = beside.submit(self._check)
            try:
                file = pq.ParquetFile(self.path)
                n_groups = file.metadata.num_row_groups
                for first in range(0, n_groups, _GROUPS_PER_PIECE):
                    groups = list(range(first, min(first + _GROUPS_PER_PIECE, n_groups)))
                    piece = with_categories(file.read_row_groups(groups, [column]))[column]
                    n_read += len(piece)
                    yield piece
            except _DAMAGED as error:
                check.result()
                raise self._refusal(error) from error
            check.result()
        if n_read != n_rows:
            raise StoreFormatError(f"{self.path} has {n_read:,} rows, the manifest states {n_rows:,}")

    def index(self) -> pd.Index:
        """The index alone.

        Raises:
            StoreFormatError: the table is damaged.
        """

        def read() -> pd.Index:
            index = [name for name in self._schema().pandas_metadata["index_columns"] if isinstance(name, str)]
            file, checked = self._file(index), self._is_partial
            table = pq.read_table(file, columns=[], use_pandas_metadata=True, page_checksum_verification=checked)
            found: pd.Index = table.to_pandas().index
            return found

        return self._tried(read)

    def _schema(self) -> pa.Schema:
        """The schema, in which pandas describes columns and index."""
        return pq.read_schema(self._file([]))

    @property
    def _is_partial(self) -> bool:
        """Whether parts of the file are fetched."""
        return self._mirror is not None and self._record.path.startswith("obs/")

    def _file(self, columns: Sequence[str] | None) -> Any:
        """The file as pyarrow takes it; of a mirror, the parts with these columns, None for all, are fetched."""
        if self._mirror is None:
            return self.path
        if not self._is_partial:
            return pa.BufferReader(self._mirror.read(self._record.path))
        start_columns(self._mirror, self._record.path, columns)
        return pa.PythonFile(MirroredFile(self._mirror, self._record.path), "r")

    def _tried(self, read: Callable[[], T]) -> T:
        """The result of reading; bytes of a mirror that are wrong are fetched again.

        Raises:
            StoreFormatError: the table is damaged.
        """
        for _ in range(TRIES):
            self._check()
            try:
                return read()
            except _DAMAGED as error:
                wrong = self._refusal(error)
                if wrong is error or self._mirror is None or not self._is_partial:
                    raise wrong from error
                self._mirror.forget_file(self._record.path)
        raise wrong

    def _check(self) -> None:
        if self._mirror is not None:
            self._check_whole(self._mirror)
            return
        if self._watch is not None:
            self._watch.check()
            return
        watch = FileWatch(self.path)
        try:
            found = file_record(self._folder, self._record.path)
        except FileNotFoundError as error:
            raise StoreFormatError(f"{self.path} is missing; copy or convert the store again") from error
        if found != self._record:
            raise StoreFormatError(f"{self.path} is damaged: its checksum does not match; copy or convert it again")
        self._watch = watch

    def _check_whole(self, mirror: Mirror) -> None:
        """Check a table that is fetched as a whole, which is fetched again if it is wrong."""
        for _ in range(1 if self._is_partial else TRIES):
            content = b"" if self._is_partial else mirror.read(self._record.path).data
            if self._is_partial or blake2b(content, digest_size=16).hexdigest() == self._record.checksum:
                return
            mirror.forget_file(self._record.path)
        raise StoreFormatError(f"{self.path} is damaged: its checksum does not match; copy or convert it again")

    def _refusal(self, error: BaseException) -> BaseException:
        if isinstance(error, OSError) and error.errno is not None:
            return error  # of the disk, not of its content
        return StoreFormatError(f"{self.path} is not a table of a store: {error}")


def start_tables(mirror: Mirror, manifest: Manifest) -> None:
    """Start fetching what opening a store reads; returns at once.

    These are its gene index, or else its gene tables, and the ends of cell tables whose columns the manifest does not
    state.
    """
    whole = [*(manifest.gene_index or manifest.genes.values()), *(space.file for space in manifest.spaces)]
    ends = [source.obs for source in manifest.sources if source.columns is None]
    files = [(file, 0) for file in whole] + [(file, max(0, file.n_bytes - _FOOT_BYTES)) for file in ends]
    number = np.array([mirror.number(file.path) for file, _ in files], np.int64)
    begin = np.array([at for _, at in files], np.int64)
    mirror.start(number, begin, np.array([file.n_bytes for file, _ in files], np.int64) - begin)


def start_columns(mirror: Mirror, path: str, columns: Sequence[str] | None) -> None:
    """Start fetching columns of a parquet file, all for None; returns at once."""
    if columns is not None and not len(columns):
        return
    metadata = pq.read_metadata(pa.PythonFile(MirroredFile(mirror, path), "r"))
    parts = [metadata.row_group(group).column(at) for group in range(metadata.num_row_groups)
             for at in range(metadata.num_columns)]  # fmt: skip
    ranges = [
        (part.dictionary_page_offset or part.data_page_offset, part.total_compressed_size)
        for part in parts
        if columns is None or part.path_in_schema.partition(".")[0] in columns
    ]
    if ranges:
        begin, length = np.array(ranges, np.int64).T
        mirror.start(np.full(len(ranges), mirror.number(path)), begin, length)


def with_categories(table: pa.Table) -> pd.DataFrame:
    """A table that `to_arrow` made, in pandas, with the categories that parquet does not keep."""
    frame: pd.DataFrame = table.to_pandas()
    for column, kept in json.loads(table.schema.metadata.get(CATEGORIES, b"{}")).items():
        if column in frame:
            categories = pd.Index(kept["categories"], dtype=kept["dtype"])
            frame[column] = pd.Categorical(frame[column], categories=categories, ordered=kept["ordered"])
    return frame


def labels_of_columns(table: Any) -> dict[str, str | None]:
    """{column of a cell table: its label, if all cells have the same text}, by the statistics in its file.

    ``table`` is a path, or a file as pyarrow takes it.
    """
    file = pq.ParquetFile(table)
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    place = {file.metadata.schema.column(i).path: i for i in range(file.metadata.num_columns)}
    found = {}
    for field, name in described_columns(file.schema_arrow):
        of_groups = [_label(group.column(place[field])) if field in place else None for group in groups]
        found[name] = of_groups[0] if len(set(of_groups)) == 1 else None
    found.pop(ROW, None)
    return found


def _label(column: pq.ColumnChunkMetaData) -> str | None:
    """The text of all cells of a row group; None if they differ, are missing, or are not text."""
    stated = column.statistics
    is_text = stated is not None and stated.logical_type.type == "STRING" and stated.has_min_max
    if not is_text or stated.null_count or stated.min != stated.max:
        return None
    return str(stated.min)


def described_columns(schema: pa.Schema) -> list[tuple[str, str]]:
    """Column in the file, and name, of each column of a table but the index.

    Raises:
        TypeError: a column has no name.
    """
    described: Any = schema.pandas_metadata
    index = [name for name in described["index_columns"] if isinstance(name, str)]
    names = [(str(column["field_name"]), column["name"]) for column in described["columns"]]
    if not all(isinstance(name, str) for field, name in names if field not in index):
        raise TypeError("a column has no name")
    return [(field, name) for field, name in names if field not in index]


def order_of(table: Table, frame: pd.DataFrame, column: str) -> NDArray[np.int64]:
    """``(n,)`` the rows of a table in the order of the source, by the store's ``column``.

    Raises:
        StoreFormatError: the column is missing, or does not number the rows.
    """
    place = frame[column].to_numpy() if column in frame else np.empty(0, np.int64)
    if place.dtype.kind not in "iu" or not np.array_equal(np.sort(place), np.arange(len(frame))):
        raise StoreFormatError(f"{table.path} has no column {column} that numbers its {len(frame):,} rows")
    return np.argsort(place)


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneList:
    """The genes of a source in the form of a store."""

    digest: str
    """Digest of ids and columns in the source's order, each id once."""
    ids: list[str]
    """``(n_genes,)`` ids in the source's order."""
    repeated: list[str]
    """The ids that occur more than once, sorted; a store keeps the sum of their values."""
    place: NDArray[np.int64]
    """``(n_genes,)`` position of each gene among the different ids, in the order of the original source."""
    table: pd.DataFrame
    """All columns, one row for each id, sorted by id, with the column `POSITION`."""

    @staticmethod
    def key_of(source: Source) -> str:
        """Equal for sources with the same list; sorting it takes several times as long."""
        positions = source.gene_positions().tobytes() if isinstance(source, HasGenePositions) else b""
        return _digest(_var(source)) + blake2b(positions, digest_size=16).hexdigest()

    @classmethod
    def of(cls, source: Source) -> Self:
        """Sort the genes of a source by their ids, as Python sorts text.

        Of an index with repeats, ids are those that `gene_names` finds, if they are unique. The row of a repeated id is
        its first.

        Raises:
            UnsupportedDataError: ``var`` has the column `POSITION`.
        """
        table = _var(source)
        position = _position(source, table)
        table = _by_unique_ids(table, source.name).drop(columns=POSITION, errors="ignore")
        is_first = ~table.index.duplicated()
        ids, table = table.index, table[is_first]
        position = np.argsort(np.argsort(position[is_first]))
        order = np.argsort(table.index.to_numpy(object), kind="stable")
        return cls(
            digest=_digest(table.iloc[np.argsort(position)]),
            ids=ids.tolist(),
            repeated=sorted(set(ids[~is_first])),
            place=position[pd.factorize(ids)[0]],
            table=table.iloc[order].assign(**{POSITION: position[order]}),
        )


def _var(source: Source) -> pd.DataFrame:
    table: Any = source.var
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"{source.name}: var must be a DataFrame indexed by gene id; got {type(table).__name__}")
    return table


def _by_unique_ids(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The genes of a source by the text of their ids; those in a column if the index has repeats and it has none."""
    index = pd.Index([str(gene) for gene in table.index], name=table.index.name, dtype=object)
    if not index.is_unique:
        ids = pd.Index(gene_names(table, source=name), dtype=object)
        if ids.is_unique:
            kept = index.name if index.name is not None else "symbol" if "symbol" not in table else "var_names"
            return table.assign(**{str(kept): index.to_numpy()}).set_axis(ids, axis=0)
    return table.set_axis(index, axis=0)


def _position(source: Source, table: pd.DataFrame) -> NDArray[np.int64]:
    """``(n_genes,)`` position of each gene in the source, or in the one that it was converted from."""
    if isinstance(source, HasGenePositions):
        return source.gene_positions()
    if POSITION in table:
        raise UnsupportedDataError(
            f"{source.name} has the var column {POSITION!r}, a name that stores reserve; rename it"
        )
    return np.arange(len(table))


def whole_obs(source: Source) -> pd.DataFrame:
    """The cell table of a source, indexed by the names of its cells if it has names."""
    frame = obs_of(source, list(source.obs_columns))
    return frame.set_axis(source.obs_names()) if isinstance(source, HasNames) else frame


def write_table(folder: Path, path: str, frame: pd.DataFrame, name: str) -> None:
    """Write a table to ``path`` (``obs/…``, ``var/…`` or ``genes/…``) of a store.

    Raises:
        UnsupportedDataError: see `to_arrow`.
        WriteError: the file cannot be written.
    """
    write_arrow(folder, path, to_arrow(frame, path.partition("/")[0], name))


def write_arrow(folder: Path, path: str, table: pa.Table) -> None:
    """Write a table to ``path`` of a store, atomically.

    Raises:
        WriteError: the file cannot be written.
    """
    with writing(folder / path), opened_atomically(folder / path) as file:
        pq.write_table(table, file, row_group_size=_ROWS_PER_GROUP, compression="zstd", write_page_checksum=True)


def to_arrow(frame: pd.DataFrame, kind: str, name: str) -> pa.Table:
    """A table with its index and dtypes, as a store keeps it.

    Args:
        frame: The table.
        kind: "obs", "var" or "genes", for the message.
        name: The source, for the message.

    Raises:
        UnsupportedDataError: a column has a type that parquet lacks, or a name that the store uses; names both.
    """
    if ROW in frame:
        raise UnsupportedDataError(f"{name} has the {kind} column {ROW!r}, a name that stores reserve; rename it")
    # without columns, pandas would take their names for numbers and reject one that is added later
    frame = frame.set_axis(pd.Index([str(column) for column in frame.columns], dtype=object), axis=1)
    kept: dict[str, Any] = {}
    for column, values in frame.items():
        dtype = values.dtype
        # parquet keeps categories only if they are text and there is at least one row
        if isinstance(dtype, pd.CategoricalDtype) and not (len(frame) and _are_text(dtype.categories)):
            kept[str(column)] = _described(str(column), dtype, kind, name)
            frame = frame.assign(**{str(column): _without_categories(values)})
    try:
        table = pa.Table.from_pandas(frame, preserve_index=True)
        pq.write_table(table.slice(0, 0), io.BytesIO())
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UnsupportedDataError(_unfit_column(frame, kind, name)) from error
    if kept:
        table = table.replace_schema_metadata({**table.schema.metadata, CATEGORIES: json.dumps(kept).encode()})
    return table


def _are_text(categories: pd.Index) -> bool:
    return len(categories) > 0 and pd.api.types.infer_dtype(categories, skipna=False) == "string"


def _described(column: str, dtype: pd.CategoricalDtype, kind: str, name: str) -> dict[str, Any]:
    """Categories that parquet does not keep."""
    categories = dtype.categories
    if len(categories) and categories.dtype.kind not in _KINDS_OF_CATEGORIES and not _are_text(categories):
        raise UnsupportedDataError(
            f"{name}: the categories of {kind} column {column!r} are {categories.dtype}; a store keeps text, numbers "
            f"and booleans: {_as_text(kind, column)}"
        )
    return {"dtype": str(categories.dtype), "categories": categories.tolist(), "ordered": bool(dtype.ordered)}


def _as_text(kind: str, column: object) -> str:
    of = f"adata.{kind}[{column!r}]"
    return f"convert it to text (`{of} = {of}.astype(str)`) or drop it, and write the file again"


def _without_categories(values: pd.Series[Any]) -> pd.Series[Any]:
    if not len(values.cat.categories):
        return pd.Series(np.full(len(values), np.nan), values.index)
    kind: Any = values.cat.categories.dtype
    # unlike NumPy's, pandas' integers and booleans can be missing
    missing = {"i": kind.name.capitalize(), "u": "UInt" + kind.name[4:], "b": "boolean"}.get(kind.kind, kind)
    return values.astype(missing)


def _unfit_column(frame: pd.DataFrame, kind: str, name: str) -> str:
    for column, values in frame.items():
        try:
            pq.write_table(pa.table({"column": pa.Array.from_pandas(values)}), io.BytesIO())
        except (pa.ArrowException, TypeError, ValueError) as error:
            return (
                f"{name}: {kind} column {column!r} ({values.dtype}) cannot be stored in parquet ({error}); "
                f"{_as_text(kind, column)}"
            )
    return f"{name}: its {kind} table, with the index {frame.index.name!r}, cannot be stored in parquet"


def _digest(table: pd.DataFrame) -> str:
    """Digest of ids and columns with their dtypes, independent of library versions."""
    digest = blake2b(digest_size=16)
    for name, values in [("", table.index.to_series()), *table.items()]:
        digest.update(json.dumps(str(name)).encode())
        for part in column_content(values):
            digest.update(part)
    return digest.hexdigest()
