"""Verification of a store: every file, table and record is read and checked against the manifest and the format."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError
from scdataloader.kernels.records.decode import MOST_PER_BYTE, OK
from scdataloader.kernels.records.format import HEADER, Records
from scdataloader.kernels.records.unpack import check_records
from scdataloader.protocols import OpenOptions
from scdataloader.runtime.buckets import Bucket, RemotePath, checked_url, is_remote
from scdataloader.runtime.files import local_path
from scdataloader.runtime.messages import counted
from scdataloader.runtime.options import RemoteOptions
from scdataloader.runtime.progress import Advance, progress_bar
from scdataloader.sources.locate import open_sources
from scdataloader.store.gene_spaces import GeneIndex, GeneSpace, GeneTable, are_names, refuse_unsorted
from scdataloader.store.manifest import (
    LAYERS,
    MANIFEST,
    FileRecord,
    Kind,
    Manifest,
    MatrixRecord,
    ShardRecord,
    SourceRecord,
)
from scdataloader.store.mapped_shards import WHY, MappedShards
from scdataloader.store.shard import FIRST_RECORD, KINDS
from scdataloader.store.tables import POSITION, ROW, Table, labels_of_columns, order_of
from scdataloader.store.writing.present import compare
from scdataloader.types import GenePlaces

__all__ = ["Verification", "verify"]

_PIECE = 16 << 20
"""Bytes of a shard that are hashed and then, while they are in the cache, checked record by record."""
_CELLS_NAMED = 10
"""Damaged cells of a shard that are reported one by one; the others are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Size of an undamaged store."""

    n_files: int
    """Files, including the manifest."""
    n_bytes: int
    n_cells: int
    n_values: int
    unnamed: tuple[str, ...]
    """Files in the folder that do not belong to the store, such as those of an interrupted conversion; sorted."""


def verify(
    path: str | os.PathLike[str], *, sources: Any = None, counts: str = "auto", progress: bool | None = None
) -> Verification:
    """Read a whole store and check every checksum and every rule of the format; shards in threads.

    Args:
        path: The store, or its URL; files of a bucket are downloaded one by one.
        sources: What it was converted from, as for `convert`: each is compared with the store, by its fingerprint and
            the time of change of its files, or else cell by cell.
        counts: Which matrix of the sources was converted, as for `convert`.
        progress: Whether to show a bar on standard error; None for only on a terminal.

    Raises:
        FileNotFoundError: the folder does not exist.
        StoreFormatError: the store is damaged, or a source is not as it was converted; the message lists all problems
            by file and cell.
    """
    shown = sys.stderr.isatty() if progress is None else progress
    if is_remote(path):
        cache = RemoteOptions.of_environment().cache
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="verify-", dir=cache) as copies:
            remote = _RemoteFiles(Bucket.open(checked_url(path)), Path(copies))
            return _verified(remote, sources, counts, shown=shown)
    folder = local_path(path).absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"{path} is not a store: there is no such folder")
    return _verified(_LocalFiles(folder), sources, counts, shown=shown)


def _verified(files: _LocalFiles, sources: Any, counts: str, *, shown: bool) -> Verification:
    manifest = files.manifest()
    problems = list(manifest.contradictions(files.folder))
    n_bytes = sum(file.n_bytes for file in manifest.files)
    if not problems:
        with progress_bar("verifying", n_bytes, shown=shown) as advance:
            problems += _Check(files, manifest, advance).problems()
    files.refuse("is damaged", problems)
    if sources is not None:
        is_counts = all(source.kind == "counts" for source in manifest.sources)
        found = open_sources(sources, OpenOptions(counts=counts, values="counts" if is_counts else "any"))
        opened = [selection.source for selection in found]
        problems = compare(files.folder, manifest, opened, shown=shown, url=files.url)
        files.refuse("is not as its sources", problems)
    named = {MANIFEST, *(file.path for file in manifest.files)}
    return Verification(
        n_files=len(named),
        n_bytes=n_bytes + (files.folder / MANIFEST).stat().st_size,
        n_cells=manifest.n_cells,
        n_values=sum(shard.n_values for shard in manifest.all_shards),
        unnamed=tuple(file for file in files.present() if file not in named),
    )


class _LocalFiles:
    """The files of a store on this machine."""

    url: str | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def manifest(self) -> Manifest:
        """The manifest, which may contradict itself or the files."""
        return Manifest.read(self.folder)

    def present(self) -> list[str]:
        """Paths of all files in the folder, sorted."""
        found = (file for file in self.folder.rglob("*") if not file.is_dir())
        return sorted(file.relative_to(self.folder).as_posix() for file in found)

    def sizes(self, manifest: Manifest) -> dict[str, int] | None:  # noqa: ARG002 (those of a bucket are requested)
        """Bytes of the files that exist; None if they are in the folder."""
        return None

    @contextmanager
    def have(self, file: FileRecord) -> Iterator[None]:  # noqa: ARG002 (that of a bucket is downloaded)
        """Have a file in the folder for the duration of a with statement."""
        yield

    def refuse(self, what: str, problems: Sequence[str]) -> None:
        """Raise the problems, if there are any."""
        if problems:
            lines = [f"{self.folder} {what}, {counted(len(problems), 'problem')}:", *problems]
            text = "\n  ".join(lines)
            raise StoreFormatError(text if self.url is None else text.replace(str(self.folder), self.url))


class _RemoteFiles(_LocalFiles):
    """The files of a store in a bucket, each downloaded while it is checked."""

    def __init__(self, bucket: Bucket, folder: Path) -> None:
        super().__init__(folder)
        self._bucket, self.url = bucket, bucket.url

    def manifest(self) -> Manifest:
        """As `_LocalFiles.manifest`."""
        self._bucket.download(MANIFEST, self.folder / MANIFEST)
        return Manifest.parsed((self.folder / MANIFEST).read_bytes(), RemotePath(self._bucket.url_of(MANIFEST)))

    def present(self) -> list[str]:
        """All objects in the folder, sorted; a web server lists none."""
        return [] if self._bucket.url.startswith("http") else [state.path for state in self._bucket.listed()]

    def sizes(self, manifest: Manifest) -> dict[str, int] | None:
        """Bytes of the objects that exist."""
        found = self._bucket.states([file.path for file in manifest.files])
        return {path: state.n_bytes for path, state in found.items()}

    @contextmanager
    def have(self, file: FileRecord) -> Iterator[None]:
        """As `_LocalFiles.have`."""
        path = self.folder / file.path
        path.parent.mkdir(exist_ok=True)
        self._bucket.download(file.path, path)
        try:
            yield
        finally:
            path.unlink()


class _Check:
    """Check of the files of a store whose manifest does not contradict itself."""

    def __init__(self, files: _LocalFiles, manifest: Manifest, advance: Advance) -> None:
        self._files, self._folder, self._manifest, self._advance = files, files.folder, manifest, advance
        self._spaces: dict[int, GeneSpace] = {}
        self._places: dict[tuple[str, int], GenePlaces] = {}
        self._are_names: dict[str, bool] = {}

    def problems(self) -> Iterator[str]:
        """All problems: of file sizes, of tables, of shards."""
        wrong_sizes = {file.path: why for file, why in self._wrong_files()}
        yield from wrong_sizes.values()
        for file, check in self._tables():
            if file.path not in wrong_sizes:
                try:
                    with self._files.have(file):
                        check()
                except StoreFormatError as error:
                    yield str(error)
                self._advance(file.n_bytes)
        manifest = self._manifest
        kinds: list[Kind] = [source.kind for source in manifest.sources]
        yield from self._shards(manifest.shards, wrong_sizes, _KnownGenes.of(manifest, self._places, kinds))
        for matrix in manifest.matrices:
            genes = _KnownGenes.of_matrix(manifest, self._places, matrix)
            yield from self._shards(matrix.shards, wrong_sizes, genes)

    def _wrong_files(self) -> Iterator[tuple[FileRecord, str]]:
        return self._manifest.wrong_files(self._folder, self._files.sizes(self._manifest))

    def _tables(self) -> Iterator[tuple[FileRecord, Callable[[], None]]]:
        """Each table with its check, which raises StoreFormatError."""
        for number, space in enumerate(self._manifest.spaces):
            yield space.file, partial(self._gene_space, number)
        for digest, genes in self._manifest.genes.items():
            yield genes, partial(self._gene_table, digest)
        for number, index in enumerate(self._manifest.gene_index):
            yield index, partial(self._gene_index, number)
        for source in self._manifest.sources:
            yield source.obs, partial(self._cell_table, source)

    def _gene_space(self, number: int) -> None:
        space = GeneSpace(self._folder, self._manifest.spaces[number])
        space.read()
        self._spaces[number] = space

    def _gene_table(self, digest: str) -> None:
        table = GeneTable(self._folder, self._manifest.genes[digest])
        frame = table.frame
        order_of(table, frame, POSITION)
        refuse_unsorted(table, frame.index)
        self._are_names[digest] = are_names(frame, digest)
        for number in sorted({source.space for source in self._manifest.sources if source.genes == digest}):
            if number in self._spaces:
                self._places[digest, number] = self._spaces[number].places(table)

    def _gene_index(self, number: int) -> None:
        record = self._manifest.gene_index[number]
        index = GeneIndex(self._folder, replace(self._manifest, gene_index=(record,)))
        for key, stated in index.read().items():
            places = self._places.get(key)
            is_same = places is not None and np.array_equal(stated.places.packed, places.packed)
            if places is not None and not (is_same and stated.are_names == self._are_names[key[0]]):
                raise StoreFormatError(f"{self._folder / record.path} states other genes than gene table {key[0]} has")

    def _cell_table(self, source: SourceRecord) -> None:
        table = Table(self._folder, source.obs)
        frame = table.read(n_rows=source.n_cells)
        if ROW in frame or self._manifest.layout != "source":
            order_of(table, frame, ROW)
        if source.columns not in (None, labels_of_columns(table.path)):
            raise StoreFormatError(f"{table.path} has other columns or labels than the manifest states")

    def _shards(
        self, shards: Sequence[ShardRecord], wrong_sizes: Mapping[str, str], genes: _KnownGenes
    ) -> Iterator[str]:
        """The problems of the shards of a matrix, but those of a wrong size."""
        sources = self._manifest.sources
        cells_of, is_whole = np.zeros(len(sources), np.int64), True
        numbers = [at for at, shard in enumerate(shards) if shard.file.path not in wrong_sizes]
        is_whole = len(numbers) == len(shards)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for problems, cells in threads.map(lambda at: self._shard(shards[at], at, genes), numbers):
                yield from problems
                cells_of += cells
                is_whole &= not problems
        for source, n in zip(sources, cells_of, strict=True):
            if is_whole and n != source.n_cells:
                yield f"the shards have {n:,} cells of {source.name}, the manifest states {source.n_cells:,}"

    def _shard(self, shard: ShardRecord, at: int, genes: _KnownGenes) -> tuple[list[str], NDArray[np.int64]]:
        """The problems of a shard, and ``(S,)`` its cells of each source, which are valid without problems only."""
        with self._files.have(shard.file):
            return self._shard_problems(shard, at, genes)

    def _shard_problems(self, shard: ShardRecord, at: int, genes: _KnownGenes) -> tuple[list[str], NDArray[np.int64]]:
        try:
            mapped = MappedShards(self._folder, [shard], genes.n_genes.tolist(), further=genes.is_further)
            mapped.check_index(0)
        except StoreFormatError as error:
            self._advance(shard.file.n_bytes)
            return [str(error)], np.zeros(len(self._manifest.sources), np.int64)
        check = _ShardCheck(mapped, self._manifest.sources, shard, genes)
        problems = [*check.wrong_in_index(), *check.wrong_in_records(self._advance)]
        if genes.is_further and shard.source is None and not problems:
            problems += self._wrong_cells(mapped, at)
        return [f"{self._folder / shard.file.path}: {problem}" for problem in problems], check.cells_of

    def _wrong_cells(self, mapped: MappedShards, at: int) -> Iterator[str]:
        """Whether the cells of a shard of a further matrix are of other sources than those of the counts."""
        manifest = self._manifest
        n_genes = [manifest.spaces[source.space].n_genes for source in manifest.sources]
        try:
            with self._files.have(manifest.shards[at].file):
                counts = MappedShards(self._folder, [manifest.shards[at]], n_genes)
                same = np.array_equal(counts.sources(0), mapped.sources(0))
        except StoreFormatError:
            return  # reported as a problem of the counts
        if not same:
            yield f"its cells are of other sources than those of {manifest.shards[at].file.path}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _KnownGenes:
    """Which genes of its gene space each source of a store has."""

    n_genes: NDArray[np.int64]
    """``(S,)`` genes of the space of each source."""
    table: NDArray[np.int64]
    """``(S,)`` table of each source."""
    has: NDArray[np.bool_]
    """The T tables, concatenated: True for genes that the source has. Table 0 is empty, for sources without one."""
    start: NDArray[np.int64]
    """``(T + 1,)`` offsets of the tables in ``has``."""
    kinds: list[Kind]
    """``(S,)`` kind of the values of each source."""

    @property
    def is_further(self) -> bool:
        """Whether these are the columns of a further matrix."""
        return "either" in self.kinds

    @classmethod
    def of_matrix(cls, manifest: Manifest, places: Mapping[tuple[str, int], GenePlaces], matrix: MatrixRecord) -> Self:
        """Columns of a further matrix; all of them, but of layers those of genes of the source."""
        kinds: list[Kind] = ["either"] * len(manifest.sources)
        known = cls.of(manifest, places if matrix.key.startswith(LAYERS) else {}, kinds)
        return replace(known, n_genes=np.array([part.n_columns for part in matrix.parts], np.int64))

    @classmethod
    def of(cls, manifest: Manifest, places: Mapping[tuple[str, int], GenePlaces], kinds: list[Kind]) -> Self:
        """Build the tables from {(gene table, gene space): places}."""
        tables = [np.empty(0, np.bool_)]
        tables += [own.spread(np.ones(len(own.place), np.bool_), foreign=False) for own in places.values()]
        number = {name: at for at, name in enumerate(places, 1)}
        return cls(
            n_genes=np.array([manifest.spaces[source.space].n_genes for source in manifest.sources], np.int64),
            table=np.array([number.get((source.genes, source.space), 0) for source in manifest.sources], np.int64),
            has=np.concatenate(tables),
            start=np.cumsum([0, *map(len, tables)]),
            kinds=kinds,
        )


class _ShardCheck:
    """Check of a shard whose index has the right checksum but may hold anything."""

    def __init__(
        self, mapped: MappedShards, sources: tuple[SourceRecord, ...], shard: ShardRecord, genes: _KnownGenes
    ) -> None:
        self._mapped, self._sources, self._shard, self._genes = mapped, sources, shard, genes
        self._kind, self._digest_of_records = mapped.stated(0)
        self._end = int(mapped.index[0])
        offsets = mapped.offsets(0)
        self._begin, self._length = offsets[:-1], np.diff(offsets)
        self._size = mapped.sizes(0).astype(np.int64)
        if shard.source is None:
            self._source = mapped.sources(0).astype(np.int64)
        else:
            self._source = np.full(len(self._size), shard.source, np.int64)
        self._is_of_source = self._source < len(sources)
        self.cells_of = np.bincount(self._source[self._is_of_source], minlength=len(sources))
        in_file = (offsets >= FIRST_RECORD) & (offsets <= self._end) & (offsets % 8 == 0)
        self._is_in_file = (
            in_file[:-1] & in_file[1:] & (self._length >= HEADER) & (self._size <= MOST_PER_BYTE * self._length)
        )

    def wrong_in_index(self) -> Iterator[str]:
        """Contradictions within the index, and between the index and the manifest."""
        yield from _cells(~self._is_in_file, "the index gives an impossible position or size of its record")
        if (self._mapped.offsets(0)[0], self._mapped.offsets(0)[-1]) != (FIRST_RECORD, self._end):
            yield "the records do not fill the bytes between header and index"
        yield from _cells(~self._is_of_source, "the index names a source that the store does not have")
        for number in np.flatnonzero(self.cells_of):
            source, kind = self._sources[int(number)], self._genes.kinds[int(number)]
            if kind != self._kind:
                yield f"the values are {self._kind}, the manifest states that {source.name} has {kind}"

    def wrong_in_records(self, advance: Advance) -> Iterator[str]:
        """Damaged records, and wrong checksums of the file, both from one pass over its bytes."""
        status = np.full(len(self._size), OK, np.uint8)
        sound = np.flatnonzero(self._is_in_file & self._is_of_source)
        in_order = sound[np.argsort(self._begin[sound], kind="stable")]
        edges = [0, *range(_PIECE, self._end, _PIECE), self._end]
        cuts = np.searchsorted(self._begin[in_order], edges)
        digest = blake2b(digest_size=len(self._digest_of_records))
        for start, stop, first, last in zip(edges[:-1], edges[1:], cuts[:-1], cuts[1:], strict=True):
            digest.update(self._mapped.bytes.part(0, start, stop - start).data)
            status[in_order[first:last]] = self._status(in_order[first:last])
            advance(stop - start)
        of_records = digest.digest()
        rest = self._shard.file.n_bytes - self._end
        digest.update(self._mapped.bytes.part(0, self._end, rest).data)
        advance(rest)
        for code, why in WHY.items():
            yield from _cells(status == code, why)
        if digest.hexdigest() != self._shard.file.checksum:
            yield f"the checksum is {digest.hexdigest()}, the manifest states {self._shard.file.checksum}"
        elif of_records != self._digest_of_records:
            yield "the checksum at the end of the file does not match the bytes before the index"

    def _status(self, cells: NDArray[np.int64]) -> NDArray[np.uint8]:
        """``(m,)`` the first broken rule of each record, or `OK`."""
        status, genes, source = np.empty(len(cells), np.uint8), self._genes, self._source[cells]
        check_records(
            Records(cells, self._mapped.base[0] + self._begin[cells], self._length[cells], self._size[cells]),
            genes.n_genes[source],
            genes.table[source],
            genes.has,
            genes.start,
            KINDS[self._kind] | self._mapped.forms(0),
            status,
        )
        return status


def _cells(is_wrong: NDArray[np.bool_], why: str) -> Iterator[str]:
    """The first of the cells with a problem, and the number of the others."""
    wrong = np.flatnonzero(is_wrong)
    yield from (f"cell {cell}: {why}" for cell in wrong[:_CELLS_NAMED])
    if len(wrong) > _CELLS_NAMED:
        yield f"{len(wrong) - _CELLS_NAMED:,} more cells: {why}"
