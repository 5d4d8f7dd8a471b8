"""Export: sources of a store back to AnnData, with the order of cells and genes that they had before conversion."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scdataloader.kernels.records.encode import COMPACT, COUNTS, SHORT
from scdataloader.kernels.records.format import Records
from scdataloader.kernels.records.unpack import check_records
from scdataloader.kernels.rows.align import row_starts
from scdataloader.runtime.files import local_path, write_atomically, writing
from scdataloader.runtime.progress import Advance, progress_bar
from scdataloader.schema import ORGANISM
from scdataloader.sources.anndata.nodes import Node
from scdataloader.sources.anndata.writer import Values, new_anndata, write_anndata, write_csr
from scdataloader.store.manifest import LAYERS, OBSM, OBSP, X
from scdataloader.store.reader import Store
from scdataloader.store.shard import edges_of
from scdataloader.store.source import StoreSource
from scdataloader.store.tables import POSITION, ROW, order_of
from scdataloader.store.writing.lock import claimed
from scdataloader.types import CSRMatrix

__all__ = ["export", "to_anndata"]

Form = Literal["h5ad", "zarr"]
_SUFFIXES = (".h5ad", ".zarr")
_FORBIDDEN = re.compile(r"[^\w.+-]|^\.")
"""Characters of a source's name that file names do not get, so that none leads to another folder."""
_BLOCK = 1 << 22
"""Values that are unpacked at once, unless a single cell has more."""
_EXACT_IN_FLOAT32 = 1 << 24
"""Up to here float32 represents every whole number."""
_FLOAT32 = np.dtype(np.float32)
_NAMED = 20
"""Sources that an error lists."""


def export(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    source: int | str | None = None,
    form: Form | None = None,
    progress: bool | None = None,
) -> list[Path]:
    """Write sources of a store as AnnData files that equal the converted ones; returns their paths.

    Every file appears under its name when it is complete. After an interruption, the same call continues.
    Of a source, the store keeps its counts (now ``X``), ``obs``, ``var`` and its further matrices. Values are
    uncompressed float32; those of ``X`` are uint32 if there are counts beyond 2^24.

    Args:
        store: The store.
        out: A file ending in ``.h5ad`` or ``.zarr``, for one source; otherwise a folder, for files named like the
            sources.
        source: Name or number of one source; None for all.
        form: "h5ad" or "zarr"; None for the suffix of ``out``, else "h5ad".
        progress: Whether to show a bar on standard error; None for only on a terminal.

    Raises:
        FileExistsError: a file exists already, not made by an interrupted call; nothing has been written.
        LookupError: there is no such source.
        StoreFormatError: the store is damaged.
        RuntimeError: another export is writing there.
        WriteError: a file cannot be written; no part of it is left.
        ValueError: ``out`` is one file but there are several sources, or its suffix does not match ``form``.
    """
    opened = Store.open(store)
    sources = opened.sources if source is None else [_find_source(opened, source)]
    target = local_path(out).absolute()
    paths = _paths(target, sources, form)
    is_one_file = paths == [target]
    folder, stem = (target.parent, f".{target.name}") if is_one_file else (target, "export")
    n_bytes = 8 * sum(shard.n_values for shard in opened.manifest.all_shards)
    shown = sys.stderr.isatty() if progress is None else progress
    with (
        claimed(folder, f"{stem}.lock", "export"),
        _plan(folder / f"{stem}.json", opened, paths) as is_done,
        progress_bar("exporting", n_bytes, shown=shown) as advance,
    ):
        for path, one in zip(paths, sources, strict=True):
            if is_done(path):
                advance(_n_bytes(one))
                continue
            with new_anndata(path, n_bytes=_n_bytes(one)) as root:
                _write_into(root, OriginalSource.of(one), advance)
    return paths


@contextmanager
def _plan(note: Path, store: Store, paths: Sequence[Path]) -> Iterator[Callable[[Path], bool]]:
    """Write which files an export makes to ``note``, until all are finished; yields whether an earlier try made one.

    Raises:
        FileExistsError: a file exists that no earlier try of this export has made.
    """
    plan = json.dumps({"store": store.fingerprint, "files": [path.name for path in paths]}).encode()
    earlier = note.read_bytes() if note.is_file() else None
    there = [path for path in paths if path.exists()]
    if there and earlier != plan:
        raise FileExistsError(f"{there[0]} exists already; remove it, or choose another name")
    if earlier not in (None, plan):
        raise FileExistsError(f"{note} is of an unfinished export of other data; finish that one, or delete it")
    with writing(note):
        write_atomically(note, plan)
    try:
        yield there.__contains__
    except BaseException as error:
        n_done = sum(path.exists() for path in paths)
        if n_done:
            error.add_note(f"{n_done} of {len(paths)} files are finished: rerun the same command to continue")
        else:
            note.unlink()
        raise
    note.unlink()


def _write_into(root: Node, original: OriginalSource, advance: Advance) -> None:
    """Write a source into an empty group; ``advance`` receives the bytes of its values."""
    dtype, indptr = original.dtype(), original.indptr(X)
    write_anndata(root, original.tables(), indptr, original.blocks(dtype, advance), dtype=dtype)
    n_obs, n_vars = len(original.rows), len(original.var)
    for key in original.sparse_keys:
        shape = (n_obs, n_vars if key.startswith(LAYERS) else n_obs)
        blocks = original.blocks(_FLOAT32, advance, key)
        write_csr(root, key, shape, original.indptr(key), blocks, dtype=_FLOAT32)


def _n_bytes(source: StoreSource) -> int:
    """Size of the values of a source, of all its matrices."""
    keys = (X, *source.matrix_keys)
    return 8 * sum(int(source.store.sizes(key)[source.rows].sum(dtype=np.int64)) for key in keys)


def to_anndata(store: Store | str | os.PathLike[str], source: int | str | None = None) -> AnnData:
    """A source of a store, by number or name, in memory and in its original order; None for the only one.

    ``X`` is float32, or uint32 if there are counts beyond 2^24, which float32 cannot represent.

    Raises:
        LookupError: there is no such source; names those there are.
        StoreFormatError: the store is damaged.
    """
    opened = store if isinstance(store, Store) else Store.open(store)
    original = OriginalSource.of(_find_source(opened, source))
    adata = original.tables()
    adata.X = _whole(original, X, original.dtype(), adata.n_vars)
    for key in original.sparse_keys:
        by_gene, name = key.startswith(LAYERS), key.partition("/")[2]
        matrix = _whole(original, key, _FLOAT32, adata.n_vars if by_gene else adata.n_obs)
        (adata.layers if by_gene else adata.obsp)[name] = matrix
    return adata


def _whole(original: OriginalSource, key: str, dtype: np.dtype[Any], n_columns: int) -> csr_matrix:
    indptr, at = original.indptr(key), 0
    data, indices = np.empty(int(indptr[-1]), dtype), np.empty(int(indptr[-1]), np.int32)
    for values, genes in original.blocks(dtype, key=key):
        data[at : at + len(values)], indices[at : at + len(values)] = values, genes
        at += len(values)
    return csr_matrix((data, indices, indptr), (len(indptr) - 1, n_columns))


def _find_source(store: Store, source: int | str | None) -> StoreSource:
    """A source of a store, by number or name; None for the only one."""
    names = [own.name for own in store.sources]
    if source is None and len(names) == 1:
        return store.sources[0]
    if isinstance(source, str) and names.count(source) == 1:
        return store.sources[names.index(source)]
    if isinstance(source, int) and 0 <= source < len(names):
        return store.sources[source]
    wrong = f"{store.path} has no source {source!r}" if source is not None else f"{store.path} has {len(names)} sources"
    listed = ", ".join(f"{number} {name!r}" for number, name in enumerate(names[:_NAMED]))
    raise LookupError(f"{wrong}; name one of {listed}{' …' if len(names) > _NAMED else ''}, by name or number")


def _paths(out: Path, sources: Sequence[StoreSource], form: Form | None) -> list[Path]:
    """The file of each source."""
    if out.suffix in _SUFFIXES and not out.is_dir():
        if form is not None and out.suffix != f".{form}":
            raise ValueError(f"{out} does not end in .{form}, as form={form!r} requires")
        if len(sources) != 1:
            raise ValueError(f"{out} is one file, but there are {len(sources)} sources; name a folder, or one source")
        return [out]
    suffix, taken = f".{form or 'h5ad'}", set[str]()
    paths = []
    for source in sources:
        stem = _FORBIDDEN.sub("_", source.name)
        for known in _SUFFIXES:
            stem = stem.removesuffix(known)
        name, number = stem, 1
        while name.lower() in taken:  # some file systems ignore case
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.lower())
        paths.append(out / f"{name}{suffix}")
    return paths


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginalSource:
    """A source as it was before conversion."""

    source: StoreSource
    obs: pd.DataFrame
    var: pd.DataFrame
    rows: NDArray[np.int64]
    """``(n_obs,)`` rows of its cells in the store, in the original order."""
    genes: NDArray[np.int32]
    """``(n_space,)`` original position of each gene of its gene space; -1 for genes of other sources."""

    @classmethod
    def of(cls, source: StoreSource) -> Self:
        """Read the tables of a source."""
        obs, rows = source.obs_table.read(n_rows=source.n_obs), source.rows
        if ROW in obs:
            order = order_of(source.obs_table, obs, ROW)
            obs, rows = obs.drop(columns=ROW).iloc[order], rows[order]
        positions = source.gene_positions()
        return cls(
            source=source,
            obs=obs,
            var=source.var.drop(columns=POSITION).iloc[np.argsort(positions)],
            rows=rows,
            genes=source.places.spread(positions.astype(np.int32), -1),
        )

    @property
    def sparse_keys(self) -> list[str]:
        """Keys of the further matrices but those of obsm."""
        return [key for key in self.source.matrix_keys if not key.startswith(OBSM)]

    def indptr(self, key: str) -> NDArray[np.int64]:
        """``(n_obs + 1,)`` offsets of the values of each cell of a matrix."""
        return row_starts(self.source.store.sizes(key)[self.rows].astype(np.int64))

    @property
    def is_float(self) -> bool:
        """Whether values are float32, not counts."""
        return self.source.counts == "float32"

    def dtype(self) -> np.dtype[Any]:
        """float32, or uint32 if there are counts beyond 2^24; reads all cells of counts."""
        exact = self.is_float or _largest(self.source.store, self.rows, self.indptr(X)) <= _EXACT_IN_FLOAT32
        return np.dtype(np.float32 if exact else np.uint32)

    def cells(self, first: int, last: int, key: str = X) -> CSRMatrix:
        """Cells ``[first, last)`` of a matrix of the original source, with values as they are in records."""
        order = self.genes
        if key != X and not key.startswith(LAYERS):
            order = np.arange(self.source.part(key).n_columns, dtype=np.int32)
        located = self.source.store.locate(self.rows[first:last], key)
        return located.unpack(order, floats=key != X or self.is_float)

    def blocks(self, dtype: np.dtype[Any], advance: Advance | None = None, key: str = X) -> Iterator[Values]:
        """Values and columns of all cells of a matrix in order, in blocks; ``advance`` receives their bytes."""
        for first, last in _blocks(self.indptr(key)):
            block = self.cells(first, last, key)
            data = edges_of(block.data) if key.startswith(OBSP) else block.data.astype(dtype, copy=False)
            yield data, block.indices
            if advance is not None:
                advance(8 * len(data))

    def _obsm(self, key: str) -> pd.DataFrame | NDArray[np.float32]:
        """A whole matrix of obsm, as a table if its columns have names."""
        part = self.source.part(key)
        values = self.source.store.locate(self.rows, key).dense(part.n_columns)
        return values if part.names is None else pd.DataFrame(values, columns=list(part.names))

    def tables(self) -> AnnData:
        """All but sparse matrices, with names as text; ``uns`` has the organism if the source had it there."""
        stated = self.source.organism
        key = ORGANISM if stated and stated.startswith("NCBITaxon:") else "organism"
        obs, var = (table.set_axis(table.index.astype(str), axis=0) for table in (self.obs, self.var))
        adata = AnnData(obs=obs, var=var, uns={key: stated} if stated else {})
        for matrix in self.source.matrix_keys:
            if matrix.startswith(OBSM):
                values = self._obsm(matrix)
                named = values.set_axis(obs.index) if isinstance(values, pd.DataFrame) else values
                adata.obsm[matrix.removeprefix(OBSM)] = named
        return adata


def _blocks(indptr: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of cells with about `_BLOCK` values each."""
    first, n = 0, len(indptr) - 1
    while first < n:
        last = max(first + 1, int(np.searchsorted(indptr, indptr[first] + _BLOCK, side="right")) - 1)
        yield first, last
        first = last


def _largest(store: Store, rows: NDArray[np.int64], indptr: NDArray[np.int64]) -> int:
    """The largest count of cells ``rows``."""
    largest = 0
    no_table = np.empty(0, np.bool_), np.zeros(2, np.int64)  # genes are checked when values are unpacked
    for first, last in _blocks(indptr):
        located, n = store.locate(rows[first:last]), last - first
        n_genes, table, status = np.full(n, (1 << 31) - 1, np.int64), np.zeros(n, np.int64), np.empty(n, np.uint8)
        of_block, kind = [0], COUNTS | COMPACT | SHORT

        def check(records: Records, *_: object) -> tuple[int, int]:
            of_block[0] = check_records(records, n_genes, table, *no_table, kind, status)  # noqa: B023 (run at once)
            at = int(np.argmax(status))  # noqa: B023
            return int(status[at]), at  # noqa: B023

        located.run(check)
        largest = max(largest, *of_block)
    return largest
