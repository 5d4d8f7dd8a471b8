"""Manifest of a store: the file that lists all others, with their checksums.

```
atlas.cells/
  manifest.json            written last: a folder without it is not a store
  obs/00000.parquet        the cell table of each source, in the order in which the store has its cells
  var/<digest>.parquet     each distinct gene table once, sorted by gene id
  genes/<digest>.parquet   gene spaces: shared lists of gene ids that number the genes of sources; and the gene index
  shards/00000.cells       records of cells; see `shard`
  matrices/00000-00000.cells   the same cells of further matrices, in a store of version 2
```
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

from scdataloader.errors import StoreFormatError
from scdataloader.runtime.files import write_atomically

VERSION, MATRICES_VERSION, PACKED_VERSION, SHORT_VERSION = 1, 2, 3, 4
"""Versions of the format: of stores without and with further matrices; that may have packed, and short, records."""
MANIFEST = "manifest.json"
SUFFIX = ".cells"
_TABLE_NAME = re.compile(r"(obs|var|genes)/[0-9a-f]{5,32}\.parquet")
_SHARD_NAME = re.compile(r"shards/[0-9a-f]{5,32}\.cells")
_MATRIX_NAME = re.compile(r"matrices/[0-9a-f]{5,32}-[0-9a-f]{5,32}\.cells")
X = "X"
"""Key of the counts."""
LAYERS, OBSM, OBSP = "layers/", "obsm/", "obsp/"
"""Beginnings of the keys of further matrices: by gene, by any columns, and by cell of the same source."""
_KEY = re.compile(f"({LAYERS}|{OBSM}|{OBSP}).+", re.DOTALL)
_END = b'"\n}'
"""Bytes after the manifest's checksum, which covers all bytes before it."""
_READ_AT_ONCE = 1 << 20
_CELL_BYTES, _VALUES_PER_BYTE = 16 + 8 + 4, 3
"""Least bytes of a cell, and more values than a byte holds: they bound the memory that a wrong number can ask for."""
_MOST_GENES = (1 << 31) - 1

Kind = Literal["counts", "float32", "either"]
"""Values are counts up to 2^32 - 1; any float32; or any float32 where a cell of counts is stored as such."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """A file of a store."""

    path: str
    """Path relative to the store, with slashes: ``obs/…``, ``var/…``, ``genes/…`` or ``shards/…``."""
    n_bytes: int
    checksum: str
    """BLAKE2b of all its bytes, 128 bits in hexadecimal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceRecord:
    """A gene space: a list of gene ids, whose positions number the genes of the sources that share it."""

    file: FileRecord
    n_genes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRecord:
    """A converted source."""

    name: str
    fingerprint: str
    """Fingerprint of the source when it was converted."""
    n_cells: int
    kind: Kind
    """Values are counts up to 2^32 - 1, or any float32."""
    genes: str
    """Digest that names its gene table."""
    space: int
    """Number of its gene space."""
    obs: FileRecord
    """Its cell table."""
    uns_organism: str | None
    """The organism that it states for all its cells, as written."""
    file_state: str | None = None
    """Size and time of change of its file, or a digest of those in its folder; None for others, and in stores of
    earlier releases."""
    seed: int | None = None
    """Seed of its shuffled cells; None for other layouts, and in stores of earlier releases."""
    columns: dict[str, str | None] | None = None
    """{column of obs: its label, if all cells have the same text}; None in stores of earlier releases."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """A shard: a file of records."""

    file: FileRecord
    foot: str
    """BLAKE2b of its last 48 bytes, which identify it; checked when the shard is opened."""
    index: str
    """BLAKE2b of its index and all bytes after it; checked when the whole index is read."""
    n_cells: int
    n_values: int
    source: int | None
    """Number of the source of all its cells; None if the shard states the source of each cell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixPart:
    """What a further matrix is of one source."""

    n_columns: int
    """Its columns have the numbers below this one in records: genes of the gene space, columns, or cells."""
    names: tuple[str, ...] | None
    """Names of the columns of "obsm/…", as far as the source states them."""
    digest: str
    """Digest of samples of its values when it was converted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixRecord:
    """A further matrix of all sources."""

    key: str
    """Such as "layers/spliced", "obsm/X_pca" or "obsp/distances"."""
    parts: tuple[MatrixPart, ...]
    """In the order of the sources."""
    shards: tuple[ShardRecord, ...]
    """With the same cells as the shards of the store, in this order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The content of a store."""

    version: int
    """Version of the format."""
    layout: str
    """Order of the cells: ``source``, ``shuffled`` or ``grouped:<obs column>``."""
    sources: tuple[SourceRecord, ...]
    """In the order of conversion."""
    genes: dict[str, FileRecord]
    """{digest: gene table}."""
    spaces: tuple[SpaceRecord, ...]
    shards: tuple[ShardRecord, ...]
    """In the order of the cells."""
    matrices: tuple[MatrixRecord, ...] = ()
    """Further matrices; at least one in version 2, and none in version 1."""
    gene_index: tuple[FileRecord, ...] = ()
    """Which genes of their spaces the gene tables have, a file for each conversion; none in earlier releases."""
    release: str | None = None
    """The release of this package that wrote it, from version 3 on."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return sum(shard.n_cells for shard in self.shards)

    @property
    def files(self) -> list[FileRecord]:
        """All files but the manifest."""
        obs = [source.obs for source in self.sources]
        spaces = [space.file for space in self.spaces]
        return [*obs, *self.genes.values(), *spaces, *self.gene_index, *(shard.file for shard in self.all_shards)]

    @property
    def all_shards(self) -> list[ShardRecord]:
        """The shards, and those of further matrices."""
        return [*self.shards, *(shard for matrix in self.matrices for shard in matrix.shards)]

    @property
    def matrix_keys(self) -> tuple[str, ...]:
        """Keys of the further matrices."""
        return tuple(matrix.key for matrix in self.matrices)

    def save(self, folder: Path) -> None:
        """Write the manifest atomically: a reader finds the old one or this one."""
        found = asdict(self)
        if self.version == VERSION:
            del found["matrices"]
        if self.version < PACKED_VERSION:
            del found["release"]
        content = json.dumps({**found, "manifest": ""}, indent=1).encode().removesuffix(_END)
        write_atomically(folder / MANIFEST, content + _checksum(content) + _END)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the manifest of a store, and check it against itself and the sizes of the files.

        Raises:
            StoreFormatError: the manifest is missing, damaged or of another version, or does not match the files.
        """
        manifest = cls.read(folder)
        wrong_files = (why for _, why in manifest.wrong_files(folder))
        for problem in chain(manifest.contradictions(folder), wrong_files):
            raise StoreFormatError(problem)
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of a store without looking at the other files.

        Raises:
            StoreFormatError: the manifest is missing, damaged or of another version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise StoreFormatError(
                f"{folder} is not a store ({MANIFEST} is missing); if its conversion was interrupted, rerun the same "
                "command to finish it"
            )
        return cls.parsed(path.read_bytes(), path)

    @classmethod
    def parsed(cls, content: bytes, path: Path) -> Self:
        """A manifest from the bytes of its file, which is at ``path``.

        Raises:
            StoreFormatError: it is damaged or of another version.
        """
        try:
            found = json.loads(content)
            json.dumps(found, ensure_ascii=False).encode()  # escapes may be no text
            return cls._parsed(found, content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreFormatError(f"{path} is not the manifest of a store, or damaged: {error}") from error

    @classmethod
    def _parsed(cls, found: Any, content: bytes) -> Self:
        version = found["version"]
        if type(version) is not int or not VERSION <= version <= SHORT_VERSION:
            by = f", and release {found['release']} wrote it" if isinstance(found.get("release"), str) else ""
            raise ValueError(
                f"its version is {version!r}{by}; this release reads versions {VERSION} to {SHORT_VERSION}; install a "
                "newer one"
            )
        if ("matrices" in found) != (version >= MATRICES_VERSION) or ("release" in found) != (
            version >= PACKED_VERSION
        ):
            raise ValueError(f"its keys are not those of version {version}")
        stated = found.pop("manifest").encode() + _END
        if not content.endswith(stated) or stated != _checksum(content.removesuffix(stated)) + _END:
            raise ValueError("its checksum does not match; copy or convert the store again")
        sources = tuple(
            _made(SourceRecord, {**item, "obs": _made(FileRecord, item["obs"])}) for item in found["sources"]
        )
        shards = tuple(shard_record(item) for item in found["shards"])
        genes = {str(digest): _made(FileRecord, item) for digest, item in found["genes"].items()}
        spaces = tuple(_made(SpaceRecord, _with_file(item)) for item in found["spaces"])
        matrices = tuple(map(_matrix_record, found.get("matrices", ())))
        found["gene_index"] = tuple(_made(FileRecord, item) for item in found.get("gene_index", ()))
        made = {"sources": sources, "shards": shards, "genes": genes, "spaces": spaces, "matrices": matrices}
        manifest: Self = _made(cls, {**found, **made})
        return manifest

    def contradictions(self, folder: Path) -> Iterator[str]:
        """Contradictions within the manifest of the store in ``folder``; without any, all its files are in there."""
        for wrong in chain(self._wrong_paths(), self._wrong_numbers()):
            yield f"{folder / MANIFEST} contradicts itself: {wrong}"

    def wrong_files(self, folder: Path, sizes: Mapping[str, int] | None = None) -> Iterator[tuple[FileRecord, str]]:
        """Files that are missing or have another size, each with its problem; ``sizes`` are those of a remote store."""
        for file in self.files:
            there = folder / file.path
            of_local = there.stat().st_size if sizes is None and there.is_file() else None
            n_bytes = of_local if sizes is None else sizes.get(file.path)
            if n_bytes != file.n_bytes:
                found = "is missing" if n_bytes is None else f"has {n_bytes:,} bytes"
                stated = f"the manifest states {file.n_bytes:,} bytes"
                yield file, f"{there} {found}; {stated}: the store is incomplete or damaged; copy or convert it again"

    def _wrong_paths(self) -> Iterator[str]:
        paths = [file.path for file in self.files]
        patterns = [_TABLE_NAME] * (len(paths) - len(self.all_shards)) + [_SHARD_NAME] * len(self.shards)
        patterns += [_MATRIX_NAME] * (len(paths) - len(patterns))
        for pattern, path in zip(patterns, paths, strict=True):
            if not pattern.fullmatch(path):  # a path that matches stays inside the store's folder
                yield f"{path!r} cannot be a file of a store"
        if len(set(paths)) < len(paths):
            yield "it lists a file twice"
        for source in self.sources:
            if source.genes not in self.genes:
                yield f"{source.name!r} has the gene table {source.genes!r}, which is not listed"
            if source.space >= len(self.spaces):
                yield f"{source.name!r} has gene space {source.space}, but there are {len(self.spaces)}"

    def _wrong_numbers(self) -> Iterator[str]:
        for space in self.spaces:
            if space.n_genes > _MOST_GENES:
                yield f"{space.file.path} cannot have {space.n_genes:,} genes"
        for shard in self.all_shards:
            if shard.n_cells * _CELL_BYTES + shard.n_values // _VALUES_PER_BYTE > shard.file.n_bytes:
                held = f"{shard.n_cells:,} cells and {shard.n_values:,} values"
                yield f"{held} do not fit into the {shard.file.n_bytes:,} bytes of {shard.file.path}"
            if shard.source is not None and shard.source >= len(self.sources):
                yield f"{shard.file.path} has source {shard.source}, but there are {len(self.sources)}"
        of_source = Counter[int | None]()
        for shard in self.shards:
            of_source[shard.source] += shard.n_cells
        of_sources = sum(source.n_cells for source in self.sources)
        if of_sources != self.n_cells:
            yield f"{of_sources:,} cells in sources, {self.n_cells:,} in shards"
        for number, source in enumerate(self.sources):
            own = of_source[number]
            if own > source.n_cells or (own < source.n_cells and None not in of_source):
                yield f"source {source.name!r} has {source.n_cells:,} cells, but {own:,} in its shards"
        yield from self._wrong_matrices()

    def _wrong_matrices(self) -> Iterator[str]:
        wrong = {VERSION: bool(self.matrices), MATRICES_VERSION: not self.matrices}
        if wrong.get(self.version, False) or len(set(self.matrix_keys)) < len(self.matrices):
            yield f"it has the further matrices {list(self.matrix_keys)}"
        cells = [(shard.n_cells, shard.source) for shard in self.shards]
        for matrix in self.matrices:
            if not _KEY.fullmatch(matrix.key):
                yield f"{matrix.key!r} cannot be the key of a matrix"
            if len(matrix.parts) != len(self.sources):
                yield f"{matrix.key} is of {len(matrix.parts)} sources, but there are {len(self.sources)}"
            elif [(shard.n_cells, shard.source) for shard in matrix.shards] != cells:
                yield f"the shards of {matrix.key} have other cells than those of the counts"
            else:
                yield from self._wrong_columns(matrix)

    def _wrong_columns(self, matrix: MatrixRecord) -> Iterator[str]:
        for source, part in zip(self.sources, matrix.parts, strict=True):
            n, names = part.n_columns, part.names
            due = n
            if matrix.key.startswith(LAYERS) and source.space < len(self.spaces):
                due = self.spaces[source.space].n_genes
            elif matrix.key.startswith(OBSP):
                due = source.n_cells
            if n != due or n > _MOST_GENES or (names is not None and len(names) != n):
                yield f"{matrix.key} of {source.name!r} cannot have {n:,} columns"


def shard_record(found: Mapping[str, Any]) -> ShardRecord:
    """A shard's record from parsed JSON.

    Raises:
        ValueError, TypeError, KeyError: it is not one.
    """
    record: ShardRecord = _made(ShardRecord, _with_file(found))
    return record


def _matrix_record(found: Mapping[str, Any]) -> MatrixRecord:
    parts, shards = tuple(map(matrix_part, found["parts"])), tuple(map(shard_record, found["shards"]))
    record: MatrixRecord = _made(MatrixRecord, {**found, "parts": parts, "shards": shards})
    return record


def matrix_part(found: Mapping[str, Any]) -> MatrixPart:
    """What a matrix is of a source, from parsed JSON.

    Raises:
        ValueError, TypeError, KeyError: it is not that.
    """
    names = found["names"]
    if names is not None and not (isinstance(names, list) and all(type(name) is str for name in names)):
        raise ValueError(f"names of columns are {names!r}, not text")
    part: MatrixPart = _made(MatrixPart, {**found, "names": None if names is None else tuple(names)})
    return part


def _with_file(found: Mapping[str, Any]) -> dict[str, Any]:
    return {**found, "file": _made(FileRecord, found["file"])}


def _checksum(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).hexdigest().encode()


def _made(cls: type[Any], found: Mapping[str, Any]) -> Any:
    """The dataclass ``cls`` from parsed JSON; without unknown fields, and missing ones only if they have a default."""
    expected: dict[str, Any] = {field.name: field.type for field in fields(cls)}
    required = {field.name for field in fields(cls) if field.default is MISSING}
    if not required <= set(found) <= set(expected):
        raise ValueError(f"{cls.__name__} has {sorted(found)}, not {sorted(expected)}")
    for name, value in found.items():
        kind, _, optional = expected[name].partition(" | ")
        if value is None and optional:
            continue
        if kind == "int" and (type(value) is not int or value < 0):
            raise ValueError(f"{name} is {value!r}, not a number")
        if kind == "str" and type(value) is not str:
            raise ValueError(f"{name} is {value!r}, not text")
        if kind.startswith("dict[str, str") and not _are_labels(value):
            raise ValueError(f"{name} is {value!r}, not names of columns with labels")
        if kind == "Kind" and value not in {"counts", "float32"}:
            raise ValueError(f"{name} is {value!r}, not 'counts' or 'float32'")
    return cls(**found)


def _are_labels(found: Any) -> bool:
    return isinstance(found, dict) and all(value is None or type(value) is str for value in found.values())


def file_record(folder: Path, path: str) -> FileRecord:
    """Read a file of a store and make its record."""
    digest = blake2b(digest_size=16)
    with (folder / path).open("rb") as file:
        while content := file.read(_READ_AT_ONCE):
            digest.update(content)
        return FileRecord(path=path, n_bytes=file.tell(), checksum=digest.hexdigest())
