"""Reading of a store: cells of all its sources in one numbering, and the sources for a collection."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import NotCountsError, SourceChangedError, StoreFormatError
from scdataloader.protocols import OpenOptions
from scdataloader.runtime import bus_errors
from scdataloader.runtime.buckets import Bucket, RemotePath, checked_url, is_remote
from scdataloader.runtime.facts import as_html, as_text
from scdataloader.runtime.files import local_path
from scdataloader.runtime.messages import shown, suggestion
from scdataloader.runtime.mirror import Mirror
from scdataloader.store.gene_spaces import GeneIndex, GeneSpace, GeneTable, IndexedGenes
from scdataloader.store.manifest import MANIFEST, Manifest, MatrixRecord, X
from scdataloader.store.mapped_shards import MappedShards
from scdataloader.store.records import RecordLocations
from scdataloader.store.source import StoreSource
from scdataloader.store.tables import start_tables

__all__ = ["Store"]


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


def _version(manifest: bytes) -> str:
    return blake2b(manifest, digest_size=16).hexdigest()


class Store:
    """Cells of several sources in one numbering, in the order of the store.

    Reading is thread-safe. The object can be pickled and forked: another process maps the files itself.
    """

    def __init__(self, path: Path, manifest: Manifest, mirror: Mirror | None = None) -> None:
        """``path`` is a folder, or a URL with the ``mirror`` of its files."""
        self.path, self.mirror = path, mirror
        self.manifest = manifest
        self.n_obs = manifest.n_cells
        self._shard_start = np.cumsum([0, *(shard.n_cells for shard in manifest.shards)], dtype=np.int64)
        self._process, self._lock = os.getpid(), threading.Lock()
        self._mapped: dict[str, MappedShards] = {}
        self._matrices = {matrix.key: matrix for matrix in manifest.matrices}
        of_shard = [-1 if shard.source is None else shard.source for shard in manifest.shards]
        self._source_of_shard = np.array(of_shard, np.int64)
        self._source_of_cell: NDArray[np.integer] | None = None
        self.spaces = [GeneSpace(path, record, mirror) for record in manifest.spaces]
        self._gene_index = GeneIndex(path, manifest, mirror)
        self.gene_tables = {digest: GeneTable(path, record, mirror) for digest, record in manifest.genes.items()}
        self.sources = [StoreSource(self, number) for number in range(len(manifest.sources))]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a store, by its path or URL: read its manifest. Its shards are mapped when the first cell is read.

        Raises:
            FileNotFoundError: the folder does not exist.
            StoreFormatError: it is not a store, unfinished, or damaged.
            ConnectionError: a server does not answer; and other errors of `buckets.explained`.
        """
        if is_remote(path):
            return cls._open_remote(checked_url(path))
        folder = local_path(path).absolute()
        if not folder.is_dir():
            raise FileNotFoundError(f"{path} is not a store: there is no such folder")
        return cls(folder, Manifest.load(folder))

    @classmethod
    def _open_remote(cls, url: str) -> Self:
        bucket, path = Bucket.open(url), RemotePath(url)
        content = bucket.read(MANIFEST)
        manifest = Manifest.parsed(content, path / MANIFEST)
        for problem in manifest.contradictions(path):
            raise StoreFormatError(problem)
        files = {file.path: file.n_bytes for file in manifest.files}
        mirror = Mirror(bucket, _version(content), files)
        start_tables(mirror, manifest)
        return cls(path, manifest, mirror)

    def __repr__(self) -> str:
        return as_text(f"Store {self.path}", self._facts())

    def _repr_html_(self) -> str:
        return as_html(f"Store {self.path}", self._facts())

    def _facts(self) -> dict[str, object]:
        names = [source.name for source in self.sources]
        return {
            "cells": self.n_obs,
            "sources": f"{len(names):,}: {shown(names)}",
            "obs columns": shown(dict.fromkeys(column for source in self.sources for column in source.obs_columns)),
            "matrices": shown(self.manifest.matrix_keys) or "counts only",
            "layout": self.manifest.layout,
            "size": f"{sum(file.n_bytes for file in self.manifest.files) / 1e6:,.1f} MB",
        }

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the content."""
        digest = blake2b(self.manifest.layout.encode(), digest_size=16)
        for file in self.manifest.files:
            digest.update(file.checksum.encode())
        return digest.hexdigest()

    def indexed_genes(self, table: str, space: int) -> IndexedGenes | None:
        """What the gene index states of a gene table; None if nothing.

        Raises:
            StoreFormatError: the gene index is damaged.
        """
        return self._gene_index.read().get((table, space))

    @property
    def shards(self) -> MappedShards:
        """The mapped shards of the counts."""
        return self.mapped(X)

    def mapped(self, key: str) -> MappedShards:
        """The mapped shards of a matrix."""
        if self._process != os.getpid():
            # When this process was forked, another thread may have held the lock; it may handle signals in another way.
            self._process, self._lock = os.getpid(), threading.Lock()
            bus_errors.after_fork()
        with self._lock:
            if key not in self._mapped:
                self._mapped[key] = self._map(key)
            return self._mapped[key]

    def _map(self, key: str) -> MappedShards:
        if key == X:
            n_genes = [source.space.n_genes for source in self.sources]
            return MappedShards(self.path, self.manifest.shards, n_genes, mirror=self.mirror)
        matrix = self._matrices[key]
        n_columns = [part.n_columns for part in matrix.parts]
        return MappedShards(self.path, matrix.shards, n_columns, further=True, mirror=self.mirror)

    def matrix(self, key: str) -> MatrixRecord:
        """A further matrix.

        Raises:
            KeyError: there is none of this key.
        """
        if key not in self._matrices:
            raise KeyError(f"{self.path} has no matrix {key!r}; {suggestion(key, list(self._matrices))}")
        return self._matrices[key]

    @property
    def is_mixed(self) -> bool:
        """Whether cells of different sources are interleaved."""
        return bool((self._source_of_shard < 0).any())

    @property
    def source_of_cell(self) -> NDArray[np.integer]:
        """``(n_obs,)`` number of the source of each cell.

        Raises:
            StoreFormatError: a shard states a source that does not exist.
        """
        if self._source_of_cell is None:
            self.shards.check_indexes(np.flatnonzero(self._source_of_shard < 0))
            n, tables = len(self.sources), []
            for number, shard in enumerate(self.manifest.shards):
                tables.append(
                    self.shards.sources(number) if shard.source is None else np.full(shard.n_cells, shard.source)
                )
                if len(tables[-1]) and tables[-1].max() >= n:
                    cell = int(np.argmax(tables[-1] >= n))
                    why = f"its source is {tables[-1][cell]}, but there are {n}"
                    self.refuse(int(self._shard_start[number]) + cell, why)
            smallest = np.min_scalar_type(n)
            found = np.concatenate([np.empty(0, smallest), *(t.astype(smallest) for t in tables)])
            self.shards.check_unchanged(np.arange(len(tables)))
            self._source_of_cell = found
        return self._source_of_cell

    def sizes(self, key: str = X) -> NDArray[np.uint32]:
        """``(n_obs,)`` number of values of each cell."""
        n_shards, shards = len(self.manifest.shards), self.mapped(key)
        shards.check_indexes(np.arange(n_shards))
        sizes = np.concatenate([*map(shards.sizes, range(n_shards)), np.empty(0, np.uint32)])
        shards.check_unchanged(np.arange(n_shards))
        return sizes

    def locate(self, rows: NDArray[np.int64], key: str = X) -> RecordLocations:
        """Find the records of cells ``rows`` (int64, each in [0, n_obs)) of a matrix.

        Raises:
            StoreFormatError: the index of a shard is damaged.
        """
        shards = self.mapped(key)
        shard = self._shard_of(rows)
        try:
            records, at = shards.locate(shard, rows - self._shard_start[shard])
        except StoreFormatError:
            self._check_current()
            raise
        if at >= 0:
            why = "the index of its shard gives an impossible position or size of its record"
            self.refuse(int(rows[at]), why, shards)
        return RecordLocations(refuse=self.refuse, shards=shards, rows=rows, shard=shard, records=records)

    def sources_of(self, located: RecordLocations) -> NDArray[np.int64]:
        """``(m,)`` number of the source of each located cell."""
        if self.is_mixed:
            return self.source_of_cell[located.rows].astype(np.int64)
        return self._source_of_shard[located.shard]

    def close(self) -> None:
        """Close the memory maps; a later read maps the files again, and checks them against the manifest."""
        self._mapped = {}

    def refuse(self, row: int, why: str, shards: MappedShards | None = None) -> NoReturn:
        """Report a damaged cell, by its row in the store; without ``shards``, in those of the counts.

        Raises:
            SourceChangedError: its shard has changed since it was mapped.
            StoreFormatError: otherwise.
        """
        shard, shards = int(self._shard_of(np.array([row]))[0]), shards or self.shards
        shards.check_unchanged(np.array([shard]))
        self._check_current()
        raise StoreFormatError(
            f"{shards.path(shard)} is damaged at cell {row - self._shard_start[shard]} "
            f"(cell {row} of the store): {why}; copy or convert the store again"
        )

    def _check_current(self) -> None:
        """Check that a remote store is as it was when it was opened.

        Raises:
            SourceChangedError: it has another manifest.
        """
        if self.mirror is not None and _version(self.mirror.bucket.read(MANIFEST)) != self.mirror.version:
            raise SourceChangedError(f"{self.path} was written after it was opened; open it again in a new run")

    def _shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._shard_start, rows, side="right") - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path, self.manifest, self.mirror)
