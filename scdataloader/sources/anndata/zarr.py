"""AnnData in zarr folders of format 2 and 3, sharded or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import GroupNotFoundError, NodeNotFoundError
from zarr.storage import StoreLike, ZipStore

from scdataloader.errors import SourceFormatError
from scdataloader.runtime.files import opening, split_path
from scdataloader.runtime.messages import shown
from scdataloader.sources.anndata.containers import find_anndata
from scdataloader.sources.anndata.nodes import Node
from scdataloader.sources.arrays.arrays import (
    ArrayForm,
    ChunkedArray,
    ChunkFiles,
    EncodedChunks,
    Extent,
    LocalFiles,
    MappedArray,
    StoredArray,
    library_array,
)
from scdataloader.sources.arrays.codecs import Codecs, zarr_v2_codecs, zarr_v3_codecs
from scdataloader.sources.arrays.mapped import FileMaps

_METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")
"""Files of a group, of either format."""
_MISSING = np.uint64(2**64 - 1)
_CHECKSUM_BYTES = 4
_OLD_FORMAT = 2


@contextmanager
def opened(path: Path) -> Iterator[Node]:
    """Open a folder, or a zip of one, for reading.

    Raises:
        SourceFormatError: it is not a zarr group, or not an AnnData.
    """
    outer, inner = split_path(path)
    with _store(outer) as store:
        try:
            with opening(outer):
                root = zarr.open_group(store, path=inner, mode="r")
        except (GroupNotFoundError, NodeNotFoundError, FileNotFoundError) as error:
            raise SourceFormatError(_why_not_zarr(path)) from error
        yield find_anndata(root, "", path)


@contextmanager
def _store(path: Path) -> Iterator[StoreLike]:
    if path.is_dir():
        yield path
    elif not is_zipfile(path):
        raise SourceFormatError(f"{path} is not a zip file, or damaged; download it again")
    else:
        with ZipStore(path, mode="r") as store:
            yield store


def _why_not_zarr(path: Path) -> str:
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        what, advice = "folder", "give the folder that AnnData.write_zarr made, or the .h5ad files"
    else:
        with ZipFile(split_path(path)[0]) as file:
            names = sorted({name.partition("/")[0] for name in file.namelist()})
        what, advice = "zip", f"name a zarr folder in it, as '{path / names[0]}', or unzip it"
    return (
        f"{path} is a {what} but not a zarr group (expected .zgroup or zarr.json in it, found "
        f"{shown(names) or 'nothing'}); {advice}"
    )


def watched(path: Path) -> Sequence[Path]:
    """The folder, whose time changes when a group in it is replaced, and its metadata; or the zip."""
    outer, _ = split_path(path)
    if outer.is_file():
        return (outer,)
    return (path, *(path / name for name in _METADATA if (path / name).exists()))


def linked(root: Node) -> Iterable[Path]:  # noqa: ARG001 (as of the other formats)
    """Nothing: a folder links to others by the file system."""
    return ()


def describe(files: FileMaps, root: Node, location: str, dtype: np.dtype[Any] | None = None) -> StoredArray:
    """How an array can be read: decoded chunk by chunk, or sliced by zarr; ``dtype`` replaces its own."""
    node, path = root[location], files.path
    name, working, shape = ArrayForm.of(node, path, location, dtype)
    if not node.size:
        return MappedArray(values=np.empty(shape, working))
    chunked = None
    if shape == node.shape and path.is_dir():
        chunked = chunked_array(LocalFiles(files.watch), str(path), node, working, name)
    return chunked or library_array(
        shape, node.dtype, node.chunks[0], partial(_open_array, path, node.path), name, working
    )


@contextmanager
def _open_array(path: Path, name: str) -> Iterator[Any]:
    with _store(split_path(path)[0]) as store:
        yield zarr.open_array(store, path=name, mode="r")


def chunked_array(files: ChunkFiles, folder: str, node: Node, dtype: np.dtype[Any], name: str) -> ChunkedArray | None:
    """The chunks of an array as files, or parts of files, of a folder; None if zarr has to decode them."""
    metadata = node.metadata.to_dict()
    located = _Files(files, folder, node)
    is_old = metadata["zarr_format"] == _OLD_FORMAT
    found = _version_2(node, located) if is_old else _version_3(node, located, metadata["codecs"])
    if found is None:
        return None
    codecs, stored, locate = found
    chunks = EncodedChunks(
        name=name,
        n_values=math.prod(node.chunks),
        stored=stored,
        codecs=codecs,
        fill=node.fill_value,
        locate=locate,
        files=files,
    )
    return ChunkedArray(shape=node.shape, chunk_shape=node.chunks, dtype=dtype, chunks=chunks)


_Chunking = tuple[Codecs, np.dtype[Any], Callable[[int], Extent | None]]


class _Files:
    """Locates the files of an array, each of which is a chunk or a shard."""

    def __init__(self, files: ChunkFiles, folder: str, node: Node) -> None:
        self.files, self._node = files, node
        self._folder = "/".join(filter(None, [folder, node.path]))
        self.shape = tuple(-(-n // step) for n, step in zip(node.shape, node.shards or node.chunks, strict=True))
        """Number of files along each axis."""

    def __call__(self, number: int) -> Extent | None:
        """The file with a number; None if it was never written.

        Raises:
            SourceChangedError: it was written or removed after the folder was opened.
        """
        place = tuple(int(i) for i in np.unravel_index(number, self.shape))
        path = f"{self._folder}/{self._node.metadata.encode_chunk_key(place)}"
        size = self.files.size(path)
        return None if size is None else Extent(path=path, offset=0, size=size)


def _version_2(node: Node, files: _Files) -> _Chunking | None:
    if node.order != "C" and node.ndim > 1:
        return None
    codecs = zarr_v2_codecs(node.metadata.compressor, node.metadata.filters)
    return None if codecs is None else (codecs, node.dtype, files)


def _version_3(node: Node, files: _Files, codecs: list[dict[str, Any]]) -> _Chunking | None:
    inner, sharding = codecs, None
    if codecs and codecs[0]["name"] == "sharding_indexed" and len(codecs) == 1:
        sharding = codecs[0]["configuration"]
        inner = sharding["codecs"]
        if [codec["name"] for codec in sharding["index_codecs"]] != ["bytes", "crc32c"]:
            return None
    steps = zarr_v3_codecs(inner)
    if steps is None:
        return None
    big = inner[0].get("configuration", {}).get("endian") == "big"
    stored = node.dtype.newbyteorder(">" if big else "<")
    if sharding is None:
        return steps, stored, files
    return steps, stored, _Shards(node, files, at_end=sharding.get("index_location", "end") == "end")


class _Shards:
    """Locates chunks in shards by the index at either end of each; indexes are read once and kept."""

    def __init__(self, node: Node, shards: _Files, *, at_end: bool) -> None:
        self._shards, self._at_end = shards, at_end
        self._grid = tuple(-(-n // step) for n, step in zip(node.shape, node.chunks, strict=True))
        self._inner = tuple(shard // chunk for shard, chunk in zip(node.shards, node.chunks, strict=True))
        self._indexes: dict[int, tuple[str, NDArray[np.uint64]] | None] = {}
        if not shards.files.is_local:
            shards.files.start([self._index_extent(shards(number)) for number in range(math.prod(shards.shape))])

    def __call__(self, number: int) -> Extent | None:
        shard, inside = self._divided(number)
        if shard not in self._indexes:
            self._indexes[shard] = self._index(shard)
        found = self._indexes[shard]
        if found is None:
            return None
        path, index = found
        offset, size = index[inside]
        return (
            None if offset == _MISSING and size == _MISSING else Extent(path=path, offset=int(offset), size=int(size))
        )

    def _index_extent(self, shard: Extent | None) -> Extent | None:
        """Where the index of a shard is; a damaged one may be shorter."""
        if shard is None:
            return None
        n_bytes = math.prod(self._inner) * 16 + _CHECKSUM_BYTES
        begin = max(0, shard.size - n_bytes) if self._at_end else 0
        return Extent(path=shard.path, offset=begin, size=min(n_bytes, shard.size - begin))

    def _divided(self, number: int) -> tuple[int, int]:
        """The shard of a chunk, and the number of the chunk in it."""
        if len(self._inner) == 1:
            return number // self._inner[0], number % self._inner[0]
        chunk = [int(i) for i in np.unravel_index(number, self._grid)]
        shard = [i // n for i, n in zip(chunk, self._inner, strict=True)]
        inside = [i % n for i, n in zip(chunk, self._inner, strict=True)]
        return int(np.ravel_multi_index(shard, self._shards.shape)), int(np.ravel_multi_index(inside, self._inner))

    def _index(self, shard: int) -> tuple[str, NDArray[np.uint64]] | None:
        """(path, ``(n, 2)`` offset and size of each chunk in the shard); None for a shard that was never written."""
        extent = self._index_extent(self._shards(shard))
        if extent is None:
            return None
        (raw,) = self._shards.files.read([extent])
        content, n_bytes = bytes(raw if raw is not None else b""), math.prod(self._inner) * 16
        _check_index(content[:n_bytes], content[n_bytes:], n_bytes, extent.path)
        return extent.path, np.frombuffer(content, "<u8", math.prod(self._inner) * 2).astype(np.uint64).reshape(-1, 2)


def _check_index(raw: bytes, checksum: bytes, n_bytes: int, path: str) -> None:
    from google_crc32c import value

    if len(raw) < n_bytes or value(raw).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise SourceFormatError(
            f"{path} is damaged: the index of its chunks does not match its checksum; download it again"
        )
