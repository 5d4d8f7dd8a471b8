"""AnnData in object storage: HDF5 files and zarr folders, read through a mirror."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.errors import GroupNotFoundError, NodeNotFoundError
from zarr.storage import MemoryStore

from scdataloader.errors import SourceFormatError
from scdataloader.runtime.buckets import Bucket, ObjectState, RemotePath
from scdataloader.runtime.bytes import MirroredFile
from scdataloader.runtime.files import split_path
from scdataloader.runtime.messages import did_you_mean
from scdataloader.runtime.mirror import Mirror
from scdataloader.sources.anndata.containers import find_anndata
from scdataloader.sources.anndata.h5ad import chunk_table, locate_chunk
from scdataloader.sources.anndata.hdf5 import filters, is_plain
from scdataloader.sources.anndata.nodes import Node, check_array, required
from scdataloader.sources.anndata.zarr import chunked_array
from scdataloader.sources.arrays.arrays import (
    ArrayForm,
    ChunkedArray,
    EncodedChunks,
    MappedArray,
    StoredArray,
    library_array,
)
from scdataloader.sources.arrays.codecs import Codecs, hdf5_codecs
from scdataloader.sources.arrays.mapped import FileMaps
from scdataloader.sources.arrays.remote import ContiguousArray, PlainChunks, RemoteFiles

_HDF5_SUFFIXES = (".h5ad", ".h5", ".h5mu")
_AHEAD = 1 << 16
"""Bytes in whose multiples the metadata of HDF5 files are fetched."""
_HEAD, _TAIL = 1 << 18, 1 << 20
"""Bytes at both ends of an HDF5 file that are fetched when it is opened: most of its metadata."""
_SMALL_BYTES = 16 << 20
"""Bytes of small files of a zarr folder that are fetched together when it is opened."""
_MOST_FILES = 100_000
"""Files whose sizes are requested one by one from a web server."""


class RemoteFormat:
    """A `Format` of AnnData in object storage; reads through a mirror of the version that was opened."""

    def __init__(self, mirror: Mirror, version: str) -> None:
        self._mirror = mirror
        self.version = version
        """A digest of the versions of all objects."""

    def watched(self, path: Path) -> Sequence[Path]:  # noqa: ARG002 (as of the other formats)
        """Nothing on this machine."""
        return ()

    def linked(self, root: Node) -> Iterable[Path]:  # noqa: ARG002 (as of the other formats)
        """Nothing: what is in other files is not followed."""
        return ()


def format_of_url(path: RemotePath) -> RemoteH5ad | RemoteZarr:
    """The format of a file or folder, or of a group in one, with the versions of its objects.

    Raises:
        FileNotFoundError: it does not exist.
        SourceFormatError: it is neither an HDF5 file nor a zarr folder.
        ValueError: it is a zarr folder of a web server without consolidated metadata.
    """
    outer, _ = split_path(path)
    assert isinstance(outer, RemotePath)
    return RemoteH5ad.open(outer) if outer.suffix in _HDF5_SUFFIXES else RemoteZarr.open(outer)


def states_of(path: RemotePath) -> list[ObjectState]:
    """The objects of a file or folder that `format_of_url` opens; empty if there are none.

    Raises:
        ValueError: it is a zarr folder of a web server without consolidated metadata.
    """
    outer, _ = split_path(path)
    if outer.suffix in _HDF5_SUFFIXES:
        return [*Bucket.open(str(outer.parent)).states([outer.name]).values()]
    bucket = Bucket.open(str(outer))
    return _looked_up(bucket) if bucket.url.startswith("http") else bucket.listed()


def _nearest(path: RemotePath) -> str:
    """The names in the folder of a bucket that are spelt like that of a path, for a message."""
    if str(path).startswith("http"):
        return ""
    return did_you_mean(path.name, Bucket.open(str(path.parent)).names())


class RemoteH5ad(RemoteFormat):
    """An HDF5 file; see `h5ad` for its parts. Values that are not compressed are fetched row by row."""

    def __init__(self, mirror: Mirror, version: str, name: str) -> None:
        super().__init__(mirror, version)
        self._name = name

    @classmethod
    def open(cls, path: RemotePath) -> Self:
        """Look up the file."""
        bucket = Bucket.open(str(path.parent))
        try:
            state = bucket.state(path.name)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}{_nearest(path)}") from None
        mirror = _mirror(bucket, {path.name: state})
        end = max(0, state.n_bytes - _TAIL)
        ends = np.array([[0, min(_HEAD, state.n_bytes)], [end, state.n_bytes - end]])
        mirror.start(np.zeros(2, np.int64), ends[:, 0], ends[:, 1])
        return cls(mirror, version_of([state]), path.name)

    @contextmanager
    def opened(self, path: Path) -> Iterator[Node]:
        """As `Format.opened`.

        Raises:
            SourceFormatError: it is not HDF5, or not an AnnData.
        """
        outer, inner = split_path(path)
        content = _AlignedFile(self._mirror, self._name)
        try:
            file = h5py.File(content, "r")
        except OSError as error:
            if isinstance(error, ConnectionError | FileNotFoundError | PermissionError):
                raise
            start = bytes(self._mirror.read(self._name, 0, 8))
            raise SourceFormatError(
                f"{outer} is not an HDF5 file, or truncated (it begins with {start!r}; {error}); expected an .h5ad "
                "file; upload it again"
            ) from error
        with file:
            yield find_anndata(file, inner, path)

    def describe(self, files: FileMaps, root: Node, location: str, dtype: np.dtype[Any] | None = None) -> StoredArray:
        """As `Format.describe`."""
        node = root[location]
        name, working, shape = ArrayForm.of(node, files.path, location, dtype)
        if not node.size:
            return MappedArray(values=np.empty(shape, working))
        if node.is_virtual or node.external:
            raise SourceFormatError(f"{files.path}: {location} is in other files; write the data into one file")
        if is_plain(node):
            remote, offset = RemoteFiles(self._mirror), node.id.get_offset()
            if offset is not None and working == node.dtype:
                return ContiguousArray.at(remote, self._name, offset, shape, working)
            chunked = self._chunked(remote, node, working, name) if node.chunks and shape == node.shape else None
            if chunked is not None:
                return chunked
        rows = node.chunks[0] if node.chunks else None
        opened = partial(self._open_array, files.path, location)
        return library_array(shape, node.dtype, rows, opened, name, working)

    def _chunked(self, remote: RemoteFiles, node: h5py.Dataset, dtype: np.dtype[Any], name: str) -> ChunkedArray | None:
        """The chunks of a dataset by their offsets; None if HDF5 has to decode them."""
        item, n_values = node.dtype.itemsize, math.prod(node.chunks)
        codecs = hdf5_codecs([(number, item) for number, _ in filters(node)])
        table = None if codecs is None else chunk_table(node)
        if codecs is None or table is None:
            return None
        offsets, sizes = table
        is_whole = bool((sizes == n_values * item).all())
        chunks: EncodedChunks | PlainChunks
        if codecs == Codecs() and dtype == node.dtype and is_whole:
            remote.check_length(self._name, int(offsets.max()) + n_values * item)
            chunks = PlainChunks(files=remote, path=self._name, offsets=offsets, n_values=n_values, dtype=dtype)
        else:
            chunks = EncodedChunks(
                name=name,
                n_values=n_values,
                stored=node.dtype,
                codecs=codecs,
                fill=node.fillvalue,
                locate=partial(locate_chunk, self._name, offsets, sizes),
                files=remote,
            )
        return ChunkedArray(shape=node.shape, chunk_shape=node.chunks, dtype=dtype, chunks=chunks)

    @contextmanager
    def _open_array(self, path: Path, location: str) -> Iterator[h5py.Dataset]:
        with self.opened(path) as file:
            array = required(file, location)
            check_array(array)
            yield array


class _AlignedFile(MirroredFile):
    """Fetches whole blocks around what HDF5 reads, which are often a few bytes of neighbouring metadata."""

    def readinto(self, out: Any) -> int:
        begin, n_bytes = self.tell() // _AHEAD * _AHEAD, self._mirror.n_bytes(self._path)
        end = min(-(-(self.tell() + len(out)) // _AHEAD) * _AHEAD, n_bytes)
        if begin < end:
            self._mirror.start(np.zeros(1, np.int64), np.array([begin]), np.array([end - begin]))
        return super().readinto(out)


class RemoteZarr(RemoteFormat):
    """A zarr folder; see `zarr` for its parts."""

    @classmethod
    def open(cls, path: RemotePath) -> Self:
        """List the files of the folder; on a web server, look up those that its consolidated metadata state.

        Raises:
            FileNotFoundError: there are none.
            ValueError: a web server has no consolidated metadata.
        """
        bucket = Bucket.open(str(path))
        states = states_of(path)
        if not any(state.path in (".zgroup", "zarr.json") for state in states):
            what = f"found {states[0].path}" if states else f"there is no such object{_nearest(path)}"
            kind = SourceFormatError if states else FileNotFoundError
            raise kind(
                f"{path} is not a zarr group (expected .zgroup or zarr.json in it; {what}); give the URL of a store, "
                "of a .zarr folder, or of an .h5ad file"
            )
        mirror = _mirror(bucket, {state.path: state for state in states})
        small = sorted(states, key=lambda state: (not state.path.endswith(("zarr.json", ".zmetadata")), state.n_bytes))
        small = [
            state
            for state, total in zip(small, np.cumsum([s.n_bytes for s in small]), strict=True)
            if total <= _SMALL_BYTES
        ]
        numbers = np.array([mirror.number(state.path) for state in small], np.int64)
        mirror.start(numbers, np.zeros(len(small), np.int64), np.array([s.n_bytes for s in small], np.int64))
        return cls(mirror, version_of(states))

    @contextmanager
    def opened(self, path: Path) -> Iterator[Node]:
        """As `Format.opened`.

        Raises:
            SourceFormatError: it is not an AnnData.
        """
        outer, inner = split_path(path)
        try:
            root = zarr.open_group(MirroredStore(self._mirror), path=inner, mode="r")
        except (GroupNotFoundError, NodeNotFoundError) as error:
            raise SourceFormatError(f"{path} is not a zarr group of {outer}; check its name") from error
        yield find_anndata(root, "", path)

    def describe(self, files: FileMaps, root: Node, location: str, dtype: np.dtype[Any] | None = None) -> StoredArray:
        """As `Format.describe`."""
        node = root[location]
        name, working, shape = ArrayForm.of(node, files.path, location, dtype)
        if not node.size:
            return MappedArray(values=np.empty(shape, working))
        remote = RemoteFiles(self._mirror)
        chunked = chunked_array(remote, "", node, working, name) if shape == node.shape else None
        opened = partial(self._open_array, node.path)
        return chunked or library_array(shape, node.dtype, node.chunks[0], opened, name, working)

    @contextmanager
    def _open_array(self, name: str) -> Iterator[Any]:
        yield zarr.open_array(MirroredStore(self._mirror), path=name, mode="r")


class MirroredStore(Store):
    """A zarr store over a mirror. Only what did not exist when the folder was opened is missing."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(read_only=True)
        self._mirror = mirror
        self.root = mirror.bucket.url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MirroredStore) and other.root == self.root

    __hash__ = None  # type: ignore[assignment]

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The bytes of a file, or a range of them; None if there was no such file."""
        if key not in self._mirror:
            return None
        n_bytes = self._mirror.n_bytes(key)
        begin, end = _range(byte_range, n_bytes)
        content = await asyncio.to_thread(self._mirror.read, key, begin, end)
        return (prototype or default_buffer_prototype()).buffer.from_bytes(content.tobytes())

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """As `get`, of several."""
        return list(await asyncio.gather(*(self.get(key, prototype, one) for key, one in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there was such a file."""
        return key in self._mirror

    async def set(self, key: str, value: Buffer) -> None:
        """Refused."""
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        """Refused."""
        raise NotImplementedError

    async def list(self) -> AsyncIterator[str]:
        """All files."""
        for path in self._mirror.paths:
            yield path

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """The files whose path begins with a prefix."""
        for path in self._mirror.paths:
            if path.startswith(prefix):
                yield path

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names of the files and folders in a folder."""
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        inside = (path[len(folder) :] for path in self._mirror.paths if path.startswith(folder))
        for name in dict.fromkeys(path.partition("/")[0] for path in inside):
            yield name


def _range(wanted: ByteRequest | None, n_bytes: int) -> tuple[int, int]:
    if isinstance(wanted, RangeByteRequest):
        return wanted.start, wanted.end
    if isinstance(wanted, OffsetByteRequest):
        return wanted.offset, n_bytes
    if isinstance(wanted, SuffixByteRequest):
        return max(0, n_bytes - wanted.suffix), n_bytes
    return 0, n_bytes


def _mirror(bucket: Bucket, states: Mapping[str, ObjectState]) -> Mirror:
    etags = {path: etag for path, state in states.items() if (etag := state.etag) and not etag.startswith("W/")}
    return Mirror(bucket, version_of(states.values()), {path: one.n_bytes for path, one in states.items()}, etags)


def version_of(states: Iterable[ObjectState]) -> str:
    """A digest that changes whenever one of some objects is written."""
    content = json.dumps(sorted((state.path, state.n_bytes, state.etag) for state in states))
    return blake2b(content.encode(), digest_size=16).hexdigest()


def _looked_up(bucket: Bucket) -> list[ObjectState]:
    """The files of a zarr folder of a web server, which has no listing: all that its consolidated metadata state."""
    metadata = {}
    for name in ("zarr.json", ".zgroup", ".zattrs", ".zmetadata"):
        try:
            metadata[name] = bucket.read(name)
        except FileNotFoundError:
            continue
    if not metadata:
        return []
    buffers = {name: default_buffer_prototype().buffer.from_bytes(content) for name, content in metadata.items()}
    group = zarr.open_group(MemoryStore(buffers), mode="r")
    if group.metadata.consolidated_metadata is None:
        raise ValueError(
            f"{bucket.url} has no consolidated metadata, which a zarr folder of a web server needs, since it cannot be "
            "listed; run zarr.consolidate_metadata on it, or read it from a bucket"
        )
    paths = [*metadata]
    for name, node in group.members(max_depth=None):
        if isinstance(node, zarr.Array):
            grid = [range(-(-n // step)) for n, step in zip(node.shape, node.shards or node.chunks, strict=True)]
            paths += [f"{name}/{node.metadata.encode_chunk_key(place)}" for place in product(*grid)]
    if len(paths) > _MOST_FILES:
        raise ValueError(
            f"{bucket.url} has {len(paths):,} files, too many to look up on a web server; read it from a bucket, or "
            "convert it to a store"
        )
    return [*bucket.states(paths).values()]
