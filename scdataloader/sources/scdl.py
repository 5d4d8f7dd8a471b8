"""SCDL archives of NVIDIA BioNeMo, read in place by their own header.

An archive is a folder: ``header.sch`` states the dtypes of ``data.npy``, ``col_ptr.npy`` and ``row_ptr.npy``, which are
the arrays of a CSR matrix without an npy header; ``var_features`` and ``obs_features`` hold tables in Parquet. Cells of
files with different gene tables number their genes differently: each run of cells with one gene table is a block, and a
source. Files are opened for reading only, and pickles in an archive are never loaded.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scdataloader.errors import SourceFormatError
from scdataloader.protocols import OpenOptions
from scdataloader.runtime.buckets import checked_url, is_remote, not_by_url
from scdataloader.runtime.files import file_state, local_path
from scdataloader.runtime.messages import counted, shown
from scdataloader.sources.anndata.counts import Values
from scdataloader.sources.anndata.file import AnnDataFile
from scdataloader.sources.anndata.nodes import Node
from scdataloader.sources.anndata.source import AnnDataSource
from scdataloader.sources.anndata.tree import Group, Table
from scdataloader.sources.arrays.arrays import MappedArray, StoredArray, library_array, working_dtype
from scdataloader.sources.arrays.mapped import FileMaps
from scdataloader.sources.gene_columns import gene_id_column
from scdataloader.sources.locate import expand

logger = logging.getLogger(__name__)

Genes = str | PathLike[str] | Sequence[str | PathLike[str]]

_HEADER, _EDGES = "header.sch", "cumulative_sum_index.npy"
_FILES = {"DATA": "data.npy", "COLPTR": "col_ptr.npy", "ROWPTR": "row_ptr.npy"}
_DTYPES = {1: "<u1", 2: "<u2", 3: "<u4", 4: "<u8", 5: "<f2", 6: "<f4", 7: "<f8"}
_MAGIC, _MAJOR, _MEMORY_MAP = b"SCDL", 0, 1
_CELL_NAMES = "obs_feature_id"
_SAMPLE = 1 << 22
"""Values, and gene numbers of each block, that are looked at when an archive is opened."""
_PREFIX, _OPTION = "scdl:", "?genes="


def open_scdl(
    path: str | PathLike[str], *, genes: Genes | None = None, counts: str = "auto", values: Values = "counts"
) -> list[AnnDataSource]:
    """Open an SCDL archive: a source for each block of cells with one gene table.

    The writer of an archive drops the names of genes and cells of files whose tables have columns. Cells without names
    are named by their row in the archive.

    Args:
        path: The folder.
        genes: Ids of the genes, where the archive has none: a column of its gene tables, a list of ids, or files with
            the genes of each block in order (AnnData, or text with an id per line), such as the files that the archive
            was made from. None takes the column "var_feature_id", else a column of ids, else one of symbols.
        counts: As in `open_source`; an archive has only "X".
        values: As in `open_source`.

    Raises:
        FileNotFoundError: a file does not exist.
        NotCountsError: the values are not counts.
        SourceFormatError: the archive is unfinished or damaged, has no gene ids, or ``genes`` does not fit it.
    """
    if is_remote(path):
        raise not_by_url(checked_url(path), "an SCDL archive")
    archive = _Archive.open(local_path(path).absolute())
    archive.warn_of_lost_counts()
    return [ScdlSource.of(block, counts=counts, values=values) for block in archive.blocks(genes)]


def open_archives(data: Sequence[Path | str], options: OpenOptions) -> Iterator[AnnDataSource]:
    """Open archives; registered for their folders, and for "scdl:<path or glob>?genes=<column or files>"."""
    for one in data:
        address, _, genes = fspath(one).removeprefix(_PREFIX).partition(_OPTION)
        for path in expand(address):
            yield from open_scdl(
                path, genes=genes.split(",") if genes else None, counts=options.counts, values=options.values
            )


class ScdlSource(AnnDataSource):
    """The cells of a block of an archive."""

    @classmethod
    def of(cls, block: _Block, *, counts: str, values: Values) -> ScdlSource:
        """Open a block."""
        source = cls.open(block.path, block, counts=counts, values=values)
        source.name = block.name
        return source

    def file_state(self) -> str | None:
        """As `AnnDataFile.file_state`, of the archive."""
        assert isinstance(self.form, _Block)
        folder = self.form.archive.folder
        return file_state(folder) if folder.exists() else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _StoredVector:
    """A vector in a file without a header of its own."""

    path: Path
    length: int
    dtype: np.dtype[Any]

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """A map of some of the values."""
        if stop <= start:
            return np.empty(0, self.dtype)
        return np.memmap(self.path, self.dtype, "r", start * self.dtype.itemsize, (stop - start,))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Archive:
    folder: Path
    data: _StoredVector
    """Values of all cells."""
    indices: _StoredVector
    """Gene number of each value, in the numbering of the cell's block."""
    indptr: _StoredVector
    """Where the values of each cell begin, and the end of the last."""

    @classmethod
    def open(cls, folder: Path) -> _Archive:
        """Read the header, and compare it with the sizes of the files.

        Raises:
            SourceFormatError: a file is missing or too short, or the header is damaged or of another version.
        """
        if not (folder / _HEADER).is_file():
            raise SourceFormatError(
                f"{folder} is not a complete SCDL archive: {_HEADER} is missing (its writer was interrupted, failed on "
                "a dense matrix, or is older than 0.1); write it again, or read the original .h5ad files"
            )
        vectors = {}
        for name, (length, code) in _header(folder / _HEADER).items():
            if name in _FILES:
                if code not in _DTYPES:
                    raise _damaged(folder, f"{_HEADER} states the unknown dtype {code} for {name}")
                path, dtype = folder / _FILES[name], np.dtype(_DTYPES[code])
                if not path.is_file():
                    raise _damaged(folder, f"{path.name} is missing")
                if (n_bytes := path.stat().st_size) < length * dtype.itemsize:
                    raise _damaged(
                        folder,
                        f"{path.name} has {n_bytes} bytes, expected {length * dtype.itemsize} ({length} {dtype})",
                    )
                vectors[name] = _StoredVector(path=path, length=length, dtype=dtype)
        if lacking := [name for name in _FILES if name not in vectors]:
            raise _damaged(folder, f"{_HEADER} does not describe {', '.join(lacking)}")
        archive = cls(folder=folder, data=vectors["DATA"], indices=vectors["COLPTR"], indptr=vectors["ROWPTR"])
        if archive.indptr.dtype.kind != "u" or archive.indices.dtype.kind != "u" or not archive.indptr.length:
            raise _damaged(folder, f"{_HEADER} states offsets or gene numbers that are not unsigned integers")
        return archive

    @property
    def n_obs(self) -> int:
        """Number of cells; ``metadata.json`` states that of the first file only."""
        return self.indptr.length - 1

    def offsets_at(self, rows: Sequence[int]) -> list[int]:
        """Where the values of cells begin.

        Raises:
            SourceFormatError: they do not ascend within the values.
        """
        vector = self.indptr.slice(0, self.indptr.length)
        found = [int(vector[row]) for row in rows]
        most = min(self.data.length, self.indices.length)
        if found[0] != 0 or found[-1] > most or found != sorted(found):
            raise _damaged(
                self.folder, f"{self.indptr.path.name} runs from {found[0]} to {found[-1]}, expected 0 to {most}"
            )
        return found

    def tables(self, kind: str) -> list[tuple[int, int, Path]]:
        """First and last row, the latter exclusive, and file of each table of "var_features" or "obs_features".

        Raises:
            SourceFormatError: they do not cover the cells.
        """
        folder = self.folder / kind
        files = sorted(folder.glob("dataframe_*.parquet"))
        if not files and kind == "obs_features":
            return []
        edges = np.maximum(np.load(folder / _EDGES), 0).tolist() if (folder / _EDGES).is_file() else []
        if len(edges) != len(files) + 1 or edges[0] != 0 or edges[-1] != self.n_obs or edges != sorted(edges):
            raise _damaged(
                self.folder,
                f"{kind} has {counted(len(files), 'table')} for rows up to {edges}, expected {self.n_obs} cells",
            )
        return [(first, last, file) for (first, last), file in zip(pairwise(edges), files, strict=True)]

    def blocks(self, genes: Genes | None) -> list[_Block]:
        """The blocks that have cells; ``genes`` as in `open_scdl`."""
        tables = self.tables("var_features")
        frames = [_read_table(file) for *_, file in tables]
        ids = _gene_ids(self.folder, frames, genes)
        places = self.offsets_at([0, *(last for _, last, _ in tables)])
        cells = self.tables("obs_features")
        blocks = []
        for i, (first, last, file) in enumerate(tables):
            block = _Block(
                archive=self,
                name=self.folder.name if len(tables) == 1 else f"{self.folder.name}/block_{i}",
                path=self.folder if len(tables) == 1 else self.folder / f"block_{i}",
                rows=(first, last),
                places=(places[i], places[i + 1]),
                var_file=file,
                gene_ids=ids[i],
                obs_files=tuple(table for table in cells if table[0] < last and table[1] > first),
            )
            if last > first:
                block.check_genes()
                blocks.append(block)
        return blocks

    def warn_of_lost_counts(self) -> None:
        """Warn of values in 8 bits: the writer of archives casts counts without checking them."""
        if self.data.dtype.itemsize > 1:
            return
        sample = self.data.slice(0, min(_SAMPLE, self.data.length))
        n_zero = int(np.count_nonzero(sample == 0))
        found = f"were lost ({n_zero} stored values are 0)" if n_zero else "were lost if there were any"
        logger.warning(
            "%s stores counts in 8 bits, modulo 256: counts over 255 %s; write it again with data_dtype='uint16' or "
            "convert the original files",
            self.folder,
            found,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """The `Format` of a block of an archive, as an AnnData with the matrix X."""

    archive: _Archive
    name: str
    path: Path
    rows: tuple[int, int]
    """First cell in the archive, and the end of the last."""
    places: tuple[int, int]
    """First value in the archive, and the end of the last."""
    var_file: Path
    gene_ids: pd.Index
    obs_files: tuple[tuple[int, int, Path], ...]
    """Tables of cells that reach into the block, each with its rows in the archive."""

    @contextmanager
    def opened(self, path: Path) -> Iterator[Node]:  # noqa: ARG002 (as of the other formats)
        """The tables, and the arrays of X as maps."""
        first, last = self.rows
        columns = [name for file in self.obs_files for name in _columns(file[2]) if name != _CELL_NAMES]
        yield Group(
            nodes={
                "obs": Table(columns=list(dict.fromkeys(columns)), n_rows=last - first, read=self._obs),
                "var": Table(columns=_columns(self.var_file), n_rows=len(self.gene_ids), read=self._var),
                "X": Group.of_sparse(
                    "csr",
                    (last - first, len(self.gene_ids)),
                    data=self.archive.data.slice(*self.places),
                    indices=self.archive.indices.slice(*self.places),
                    indptr=self._offsets(),
                ),
            },
            path=str(self.path),
        )

    def watched(self, path: Path) -> Sequence[Path]:  # noqa: ARG002 (as of the other formats)
        """All files that are read."""
        folder = self.archive.folder
        tables = [self.var_file, *(file for *_, file in self.obs_files)]
        return [folder / _HEADER, *(folder / name for name in _FILES.values()), *tables]

    def linked(self, root: Node) -> Sequence[Path]:  # noqa: ARG002 (as of the other formats)
        """Nothing."""
        return ()

    def describe(
        self,
        files: FileMaps,
        root: Node,  # noqa: ARG002 (as of the other formats)
        location: str,
        dtype: np.dtype[Any] | None = None,
    ) -> StoredArray:
        """As `Format.describe`: values and gene numbers are mapped, half floats are converted piece by piece."""
        part = location.rpartition("/")[2]
        if part == "indptr":
            return MappedArray(values=self._offsets())
        vector = self.archive.data if part == "data" else self.archive.indices
        stored, (begin, end) = vector.dtype, self.places
        working = dtype or working_dtype(stored, f"{self.name}: {location}")
        if end == begin:
            return MappedArray(values=np.empty(0, working))
        # A gene number that only 32 unsigned bits can hold is negative in signed ones, and refused as such.
        kept = working if working.kind in "iu" and working.itemsize == stored.itemsize else stored
        mapped = files.of(vector.path).array(begin * stored.itemsize, (end - begin,), kept, location)
        if kept == working:
            return mapped
        return library_array(mapped.shape, stored, None, partial(nullcontext, mapped.values), location, working)

    def check_genes(self) -> None:
        """Check a sample of the gene numbers.

        Raises:
            SourceFormatError: one is outside the gene table.
        """
        begin, end = self.places
        sample = self.archive.indices.slice(begin, min(end, begin + _SAMPLE))
        if sample.size and (largest := int(sample.max())) >= len(self.gene_ids):
            raise SourceFormatError(
                f"{self.archive.folder} contradicts itself: its cells from {self.rows[0]} have gene numbers up to "
                f"{largest}, its table {self.var_file.name} has {len(self.gene_ids)} genes, as when raw.X has more "
                "genes than var; write it again with use_X_not_raw, or convert the original files"
            )

    def _offsets(self) -> NDArray[np.int64]:
        first, last = self.rows
        return self.archive.indptr.slice(first, last + 1).astype(np.int64) - self.places[0]

    def _var(self) -> pd.DataFrame:
        return _read_table(self.var_file).set_axis(self.gene_ids, axis=0)

    def _obs(self) -> pd.DataFrame:
        first, last = self.rows
        parts = []
        for begin, end, file in self.obs_files:
            start, stop = max(first, begin), min(last, end)
            parts.append(_read_table(file).iloc[start - begin : stop - begin])
        frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(index=pd.RangeIndex(last - first))
        names = frame.pop(_CELL_NAMES) if _CELL_NAMES in frame else pd.Series(range(first, last))
        # The writer of archives makes texts of categoricals; AnnData has no other column of texts with missing ones.
        is_text = [column for column in frame if frame[column].dtype.kind == "O"]
        return frame.astype(dict.fromkeys(is_text, "category")).set_axis(pd.Index(names.astype(str).to_numpy(object)))


def _header(path: Path) -> dict[str, tuple[int, int]]:
    """{name: (length, code of the dtype)} of the arrays that a header describes, all numbers in it big-endian.

    Raises:
        SourceFormatError: it is damaged, or of another version.
    """
    raw = path.read_bytes()
    try:
        magic, major, _, _, _, backend, n_arrays = struct.unpack_from(">4s4BII", raw)
        if magic != _MAGIC:
            raise _damaged(path.parent, f"{path.name} begins with {magic!r}, expected {_MAGIC!r}")
        if major != _MAJOR or backend != _MEMORY_MAP:
            raise SourceFormatError(
                f"{path.parent} is an SCDL archive of schema {major} and storage {backend}, expected schema {_MAJOR} "
                f"and storage {_MEMORY_MAP}; convert the original files"
            )
        at, arrays = struct.calcsize(">4s4BII"), {}
        for _ in range(n_arrays):
            (size,) = struct.unpack_from(">I", raw, at)
            name = raw[at + 4 : at + 4 + size].decode(errors="replace")
            length, code, has_shape = struct.unpack_from(">QIB", raw, at + 4 + size)
            at += 4 + size + struct.calcsize(">QIB")
            if has_shape:
                at += 4 + 4 * int(struct.unpack_from(">I", raw, at)[0])
            arrays[name] = length, code
    except struct.error as error:
        raise _damaged(path.parent, f"{path.name} ends within the description of its arrays") from error
    return arrays


def _gene_ids(folder: Path, frames: Sequence[pd.DataFrame], genes: Genes | None) -> list[pd.Index]:
    """Ids of the genes of each block.

    Raises:
        SourceFormatError: there are none, or the given ones do not fit.
    """
    given = [genes] if isinstance(genes, str | PathLike) else genes
    if given is None or (len(given) == 1 and all(str(given[0]) in frame for frame in frames)):
        columns = [gene_id_column(frame) if given is None else str(given[0]) for frame in frames]
        for frame, column in zip(frames, columns, strict=True):
            if column is None:
                raise SourceFormatError(
                    f"{folder} has no gene ids (columns: {shown(frame.columns)}); give those of the original files, as "
                    f"'{_PREFIX}{folder.name}{_OPTION}h5ad/*.h5ad' or open_scdl(..., genes=[...])"
                )
        return [
            pd.Index(frame[column].astype(str).to_numpy(object)) for frame, column in zip(frames, columns, strict=True)
        ]
    lists = _gene_lists(given)
    if len(lists) != len(frames):  # the writer merges equal gene tables of consecutive files
        lists = [list(one) for one, _ in groupby(lists)]
    sizes, found = [len(frame) for frame in frames], [len(one) for one in lists]
    if sizes != found:
        raise SourceFormatError(
            f"genes of {folder} do not fit: {shown(given)} gives lists of {shown(found)} genes, expected lists of "
            f"{shown(sizes)}, one for each of its {counted(len(sizes), 'block')} in order, or one of the columns "
            f"{shown(frames[0].columns)}"
        )
    return [pd.Index(one, dtype=object) for one in lists]


def _gene_lists(given: Sequence[str | PathLike[str]]) -> list[list[str]]:
    """The lists of genes in files, or the given ids as one list."""
    texts = [str(one) for one in given]
    if not all(Path(one).suffix in (".h5ad", ".zarr", ".txt", ".csv", ".tsv") for one in texts):
        return [texts]
    return [_genes_of(path) for one in texts for path in expand(one)]


def _genes_of(path: Path) -> list[str]:
    if path.suffix in (".h5ad", ".zarr"):
        return list(map(str, AnnDataFile.open(path).var_names()))
    return [line.split(",")[0].split("\t")[0] for line in path.read_text().splitlines() if line.strip()]


def _columns(file: Path) -> list[str]:
    return list(map(str, pq.read_schema(file).names))


def _read_table(file: Path) -> pd.DataFrame:
    try:
        frame: pd.DataFrame = pq.read_table(file).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise SourceFormatError(f"{file} cannot be read as Parquet ({error}); write the archive again") from error
    return frame


def _damaged(folder: Path, found: str) -> SourceFormatError:
    return SourceFormatError(f"{folder} is damaged, or was not completed: {found}; write or download it again")
