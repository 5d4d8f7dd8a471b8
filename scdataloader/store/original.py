"""A source of a store as it was before: its own order of cells and genes, and its values to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scdataloader.kernels.records.decode import OK
from scdataloader.kernels.records.unpack import check_records, unpack_records
from scdataloader.schema import ORGANISM
from scdataloader.store.reader import Store, StoreSource
from scdataloader.store.shard import WHY
from scdataloader.store.tables import POSITION, ROW, order_of

_BLOCK = 1 << 22
"""Values that are unpacked at once, unless a single cell has more."""
_EXACT_IN_FLOAT32 = 1 << 24
"""Up to here float32 has every whole number."""
_NAMED = 20
"""Sources that an error lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Some of the cells, one after the other."""

    start: int
    """Where in the matrix their values begin."""
    indices: NDArray[np.int32]
    """``(nnz,)`` gene numbers, ascending within a cell."""
    data: NDArray[Any]
    """``(nnz,)`` values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Original:
    """What a source consisted of."""

    source: StoreSource
    """Where it is now."""
    obs: pd.DataFrame
    """Its cell table."""
    var: pd.DataFrame
    """Its gene table."""
    rows: NDArray[np.int64]
    """``(n_obs,)`` its cells, by their number in the store."""
    genes: NDArray[np.int32]
    """``(n_space,)`` its number of each gene of its gene space; -1 for those it has not."""
    indptr: NDArray[np.int64]
    """``(n_obs + 1,)`` where the values of each cell begin."""
    dtype: np.dtype[Any]
    """Of its values: float32, or uint32 where there are counts beyond 2^24, which float32 has not."""

    @classmethod
    def of(cls, source: StoreSource) -> Self:
        """Read the tables of a source of a store, and, of counts, which is the largest.

        Raises:
            StoreFormatError: the store is damaged.
        """
        obs, rows = source.obs_table.read(n_rows=source.n_obs), source.rows
        if ROW in obs:
            order = order_of(source.obs_table, obs, ROW)
            obs, rows = obs.drop(columns=ROW).iloc[order], rows[order]
        order = order_of(source.var_table, source.var, POSITION)
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(source.store.sizes()[rows], out=indptr[1:])
        exact = source.counts == "float32" or _largest(source.store, rows, indptr) <= _EXACT_IN_FLOAT32
        return cls(
            source=source,
            obs=obs,
            var=source.var.drop(columns=POSITION).iloc[order],
            rows=rows,
            genes=source.places.spread(source.var[POSITION].to_numpy(np.int32), -1),
            indptr=indptr,
            dtype=np.dtype(np.float32 if exact else np.uint32),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and genes."""
        return len(self.rows), len(self.var)

    def blocks(self) -> Iterator[Block]:
        """The matrix from its first cell to its last, some at a time.

        Raises:
            StoreFormatError: a record is damaged.
        """
        store = self.source.store
        for first, last in _blocks(self.indptr):
            found = store.locate(self.rows[first:last])
            starts = self.indptr[first:last] - self.indptr[first]
            n = int(found.size.sum())
            indices, bits = np.empty(n, np.int32), np.empty(n, np.uint32)
            status, at = unpack_records(
                found.address, found.length, found.size, found.cell, self.genes, starts, indices, bits
            )
            if status != OK:
                store.refuse(int(found.rows[at]), WHY[status])
            is_float = self.source.counts == "float32"
            data = bits.view(np.float32) if is_float else bits.astype(self.dtype, copy=False)
            yield Block(start=int(self.indptr[first]), indices=indices, data=data)

    def without_x(self) -> AnnData:
        """All of it but the matrix, with names as text; the organism is in ``uns`` where the source had it there."""
        stated = self.source.organism
        key = ORGANISM if stated and stated.startswith("NCBITaxon:") else "organism"
        obs, var = (table.set_axis(table.index.astype(str), axis=0) for table in (self.obs, self.var))
        return AnnData(obs=obs, var=var, uns={key: stated} if stated else {})

    def anndata(self) -> AnnData:
        """All of it, in memory."""
        n = int(self.indptr[-1])
        indices, data = np.empty(n, np.int32), np.empty(n, self.dtype)
        for block in self.blocks():
            room = slice(block.start, block.start + len(block.data))
            indices[room], data[room] = block.indices, block.data
        adata = self.without_x()
        adata.X = csr_matrix((data, indices, self.indptr), self.shape)
        return adata


def find_source(store: Store, source: int | str | None) -> StoreSource:
    """A source of a store, by number or name; None for the only one.

    Raises:
        LookupError: there is no such source, or there are several; names them.
    """
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


def _blocks(indptr: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Stretches [first, last) of cells that together have about as many values as are unpacked at once."""
    first, n = 0, len(indptr) - 1
    while first < n:
        last = max(first + 1, int(np.searchsorted(indptr, indptr[first] + _BLOCK, side="right")) - 1)
        yield first, last
        first = last


def _largest(store: Store, rows: NDArray[np.int64], indptr: NDArray[np.int64]) -> int:
    """The largest count of cells ``rows``."""
    largest = 0
    for first, last in _blocks(indptr):
        found = store.locate(rows[first:last])
        n = last - first
        n_genes, part, status = np.full(n, (1 << 31) - 1, np.int64), np.zeros(n, np.int64), np.empty(n, np.uint8)
        known = np.empty(0, np.bool_), np.zeros(2, np.int64)  # nothing: genes are seen to when all is unpacked
        where = found.address, found.length, found.size, found.cell
        of_block = check_records(*where, n_genes, part, *known, False, status)  # noqa: FBT003
        if status.any():
            at = int(np.argmax(status))
            store.refuse(int(found.rows[at]), WHY[int(status[at])])
        largest = max(largest, of_block)
    return largest
