"""A store, opened for reading: as sources for a collection, and cells of all its sources in one pass."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import NotCountsError, StoreFormatError
from scdataloader.kernels.records.decode import OK, decode_records, locate_records
from scdataloader.protocols import OpenOptions
from scdataloader.runtime.read_ahead import read_ahead
from scdataloader.store.gene_spaces import GeneSpace
from scdataloader.store.gene_tables import GeneTables
from scdataloader.store.manifest import Manifest
from scdataloader.store.shard import WHY, MappedShards
from scdataloader.store.source import StoreSource
from scdataloader.types import RowBuffers

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Located", "Store", "StoreSource"]

_OFFSETS = 16
"""Bytes of the index that say where a record begins and ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Located:
    """Records of some cells, found but not decoded."""

    rows: NDArray[np.int64]
    """``(m,)`` the cells, by their number in the store."""
    cell: NDArray[np.int64]
    """``(m,)`` the same within their shards."""
    address: NDArray[np.int64]
    """``(m,)`` where in memory each record lies."""
    length: NDArray[np.int64]
    """``(m,)`` its bytes."""
    size: NDArray[np.int64]
    """``(m,)`` its values."""
    shard: NDArray[np.int64]
    """``(m,)`` the shards, by number."""
    shards: MappedShards
    """What keeps them there."""
    store: Store
    """Whose cells they are."""

    def slice(self, start: int, stop: int) -> Located:
        """Those from ``start`` to ``stop``, as views."""
        arrays = ("rows", "cell", "address", "length", "size", "shard")
        return replace(self, **{name: getattr(self, name)[start:stop] for name in arrays})


def open_stores(paths: Sequence[Path], options: OpenOptions) -> Iterator[StoreSource]:
    """The sources of stores; registered for folders whose name ends in ``.cells``, and those with a manifest.

    Raises:
        NotCountsError: values must be counts, and a source of a store has others.
    """
    for path in paths:
        sources = Store.open(path).sources
        other = [source.name for source in sources if source.counts != "counts"]
        if options.values == "counts" and other:
            raise NotCountsError(
                f"{path} holds values that need not be counts ({other[0]}); pass values='any' to read them as they "
                "are, or convert the sources again"
            )
        yield from sources


class Store:
    """Cells of several sources in one numbering, in the order in which the store has them.

    Reading is thread-safe. The object may be pickled and forked: another process maps the files anew.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.n_obs = manifest.n_cells
        self._shard_start = np.zeros(len(manifest.shards) + 1, np.int64)
        np.cumsum([shard.n_cells for shard in manifest.shards], out=self._shard_start[1:])
        self._lock = threading.Lock()
        self._shards: MappedShards | None = None
        self._checked = np.zeros(self.n_obs // 8 + 1, np.uint8)
        of_shard = [-1 if shard.source is None else shard.source for shard in manifest.shards]
        self._source_of_shard = np.array(of_shard, np.int64)
        self._source_of_cell: NDArray[np.integer] | None = None
        self.spaces = [GeneSpace(path, record) for record in manifest.spaces]
        self.sources = [StoreSource(self, number) for number in range(len(manifest.sources))]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a store; reads its manifest, and maps its shards when the first cell is read.

        Raises:
            FileNotFoundError: there is no such folder.
            StoreFormatError: it is no store, or unfinished, or damaged.
        """
        folder = Path(path).expanduser().absolute()
        if not folder.is_dir():
            raise FileNotFoundError(f"{path} is not a store: there is no such folder")
        return cls(folder, Manifest.load(folder))

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all that the store holds."""
        digest = blake2b(self.manifest.layout.encode(), digest_size=16)
        for file in self.manifest.files:
            digest.update(file.checksum.encode())
        return digest.hexdigest()

    @property
    def shards(self) -> MappedShards:
        """Its shards, mapped."""
        with self._lock:
            if self._shards is None:
                n_genes = [source.space.n_genes for source in self.sources]
                self._shards = MappedShards(self.path, self.manifest.shards, n_genes)
            return self._shards

    @property
    def is_mixed(self) -> bool:
        """Whether cells of several sources lie between each other."""
        return bool((self._source_of_shard < 0).any())

    def sources_of(self, found: Located) -> NDArray[np.int64]:
        """``(m,)`` the sources, by number, of cells that were located."""
        if self.is_mixed:
            return self.source_of_cell[found.rows].astype(np.int64)
        return self._source_of_shard[found.shard]

    @property
    def source_of_cell(self) -> NDArray[np.integer]:
        """``(n_obs,)`` the source of each cell, by number.

        Raises:
            StoreFormatError: a shard says that a cell is of a source that is not there.
        """
        if self._source_of_cell is None:
            n, tables = len(self.sources), []
            for number, shard in enumerate(self.manifest.shards):
                tables.append(
                    self.shards.sources(number) if shard.source is None else np.full(shard.n_cells, shard.source)
                )
                if len(tables[-1]) and tables[-1].max() >= n:
                    cell = int(np.argmax(tables[-1] >= n))
                    why = f"it is said to be of source {tables[-1][cell]}, but there are {n}"
                    self.refuse(int(self._shard_start[number]) + cell, why)
            smallest = np.min_scalar_type(n)
            self._source_of_cell = np.concatenate([np.empty(0, smallest), *(t.astype(smallest) for t in tables)])
        return self._source_of_cell

    def sizes(self) -> NDArray[np.uint32]:
        """``(n_obs,)`` number of values of each cell."""
        tables = [self.shards.sizes(number) for number in range(len(self.manifest.shards))]
        return np.concatenate([*tables, np.empty(0, np.uint32)])

    def locate(self, rows: NDArray[np.int64]) -> Located:
        """Find the records of cells ``rows`` (int64, each in [0, n_obs)).

        Raises:
            StoreFormatError: the index of a shard is damaged.
        """
        shards = self.shards
        shard = self._shard_of(rows)
        cell = rows - self._shard_start[shard]
        read_ahead(shards.base[shard] + shards.index[shard] + 8 * cell, np.full(len(rows), _OFFSETS))
        address, length, size = (np.empty(len(rows), np.int64) for _ in range(3))
        at = locate_records(shards.base, shards.index, shards.n_cells, shard, cell, address, length, size)
        if at >= 0:
            self.refuse(int(rows[at]), "the index of its shard names no place in the file for it")
        return Located(
            rows=rows,
            cell=cell,
            address=address,
            length=length,
            size=size,
            shard=shard,
            shards=shards,
            store=self,
        )

    def decode(
        self,
        found: Located,
        source: NDArray[np.integer],
        genes: GeneTables,
        place: NDArray[np.int64],
        slots: RowBuffers,
    ) -> None:
        """Write cells, in the genes of a vocabulary, into slots of the output, as `align_rows` does for a matrix.

        Cell i is of source ``source[i]`` of those in ``genes``, and goes to slot ``place[i]``.

        Raises:
            StoreFormatError: a record is damaged.
        """
        status, at = decode_records(
            found.address,
            found.length,
            found.size,
            found.cell,
            found.rows,
            self._checked,
            genes.of_part[source],
            genes.luts,
            genes.start,
            genes.how,
            genes.n_genes,
            place,
            slots.starts,
            slots.indices,
            slots.data,
            slots.sizes,
            slots.depth,
        )
        if status != OK:
            self.refuse(int(found.rows[at]), WHY[status])

    def to_anndata(self, source: int | str | None = None) -> AnnData:
        """A source, by number or name, as it was before: its own order of cells and genes; None takes the only one.

        ``X`` is float32, or uint32 where there are counts beyond 2^24, which float32 has not.

        Raises:
            LookupError: there is no such source; names those there are.
            StoreFormatError: the store is damaged.
        """
        from scdataloader.store.original import Original, find_source

        return Original.of(find_source(self, source)).anndata()

    def close(self) -> None:
        """Let go of the memory maps; a later read maps the files again."""
        self._shards = None

    def _shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._shard_start, rows, side="right") - 1

    def refuse(self, row: int, why: str) -> NoReturn:
        """Say what is wrong with the cell ``row`` of the store.

        Raises:
            StoreFormatError: always.
        """
        shard = int(self._shard_of(np.array([row]))[0])
        raise StoreFormatError(
            f"{self.path / self.manifest.shards[shard].file.path} is damaged at cell {row - self._shard_start[shard]} "
            f"(cell {row} of the store): {why}; copy or convert the store again"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path, self.manifest)
