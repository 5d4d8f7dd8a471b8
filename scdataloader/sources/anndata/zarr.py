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
from scdataloader.runtime.mapping import FileWatch
from scdataloader.runtime.messages import shown
from scdataloader.sources.anndata.containers import find_anndata
from scdataloader.sources.anndata.nodes import Node
from scdataloader.sources.arrays.arrays import (
    ChunkedArray,
    EncodedChunks,
    Extent,
    MappedArray,
    StoredArray,
    library_array,
    working_dtype,
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
    name = f"{path.name}: {location}"
    working = dtype or working_dtype(node.dtype, name)
    shape = (node.shape[0], math.prod(node.shape[1:])) if node.ndim > 1 else node.shape
    if not node.size:
        return MappedArray(values=np.empty(shape, working))
    chunked = _chunked(files, node, working, name) if shape == node.shape and path.is_dir() else None
    return chunked or library_array(
        shape, node.dtype, node.chunks[0], partial(_open_array, path, node.path), name, working
    )


@contextmanager
def _open_array(path: Path, name: str) -> Iterator[Any]:
    with _store(split_path(path)[0]) as store:
        yield zarr.open_array(store, path=name, mode="r")


def _chunked(maps: FileMaps, node: Node, dtype: np.dtype[Any], name: str) -> ChunkedArray | None:
    """The chunks of an array as files, or parts of files; None if zarr has to decode them."""
    metadata = node.metadata.to_dict()
    files = _Files(maps.path / node.path, node, maps.watch)
    is_old = metadata["zarr_format"] == _OLD_FORMAT
    found = _version_2(node, files) if is_old else _version_3(node, files, metadata["codecs"])
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
        watch=maps.watch,
    )
    return ChunkedArray(shape=node.shape, chunk_shape=node.chunks, dtype=dtype, chunks=chunks)


_Chunking = tuple[Codecs, np.dtype[Any], Callable[[int], Extent | None]]


class _Files:
    """Locates the files of an array, each of which is a chunk or a shard."""

    def __init__(self, folder: Path, node: Node, watch: FileWatch) -> None:
        self._folder, self._node, self._watch = folder, node, watch

    def __call__(self, number: int) -> Extent | None:
        """The file with a number; None if it was never written.

        Raises:
            SourceChangedError: it was written or removed after the folder was opened.
        """
        shape, step = self._node.shape, self._node.shards or self._node.chunks
        path = self._folder / self._node.metadata.encode_chunk_key(_place(number, shape, step))
        try:
            info = path.stat()
        except FileNotFoundError:
            there = next(parent for parent in path.parents if parent.exists())
            self._watch.check_part(str(path), there.stat())
            return None
        self._watch.check_part(str(path), info)
        return Extent(path=str(path), offset=0, size=info.st_size)


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


def _place(number: int, shape: tuple[int, ...], step: tuple[int, ...]) -> tuple[int, ...]:
    grid = [-(-n // k) for n, k in zip(shape, step, strict=True)]
    return tuple(int(i) for i in np.unravel_index(number, grid))


class _Shards:
    """Locates chunks in shards by the index at either end of each; indexes are read once and kept."""

    def __init__(self, node: Node, files: _Files, *, at_end: bool) -> None:
        self._node, self._files, self._at_end = node, files, at_end
        self._inner = tuple(shard // chunk for shard, chunk in zip(node.shards, node.chunks, strict=True))
        self._indexes: dict[int, tuple[str, NDArray[np.uint64]] | None] = {}

    def __call__(self, number: int) -> Extent | None:
        chunk = _place(number, self._node.shape, self._node.chunks)
        place = [i // n for i, n in zip(chunk, self._inner, strict=True)]
        grid = [-(-n // k) for n, k in zip(self._node.shape, self._node.shards, strict=True)]
        shard = int(np.ravel_multi_index(place, grid))
        if shard not in self._indexes:
            self._indexes[shard] = self._index(shard)
        found = self._indexes[shard]
        if found is None:
            return None
        path, index = found
        offset, size = index[
            np.ravel_multi_index([i % n for i, n in zip(chunk, self._inner, strict=True)], self._inner)
        ]
        return (
            None if offset == _MISSING and size == _MISSING else Extent(path=path, offset=int(offset), size=int(size))
        )

    def _index(self, shard: int) -> tuple[str, NDArray[np.uint64]] | None:
        """(path, ``(n, 2)`` offset and size of each chunk in the shard); None for a shard that was never written."""
        file = self._files(shard)
        if file is None:
            return None
        n_bytes = math.prod(self._inner) * 16
        with Path(file.path).open("rb") as opened:
            opened.seek(max(0, file.size - n_bytes - _CHECKSUM_BYTES) if self._at_end else 0)
            raw = opened.read(n_bytes)
            checksum = opened.read(_CHECKSUM_BYTES)
        _check_index(raw, checksum, n_bytes, file.path)
        return file.path, np.frombuffer(raw, "<u8").astype(np.uint64).reshape(-1, 2)


def _check_index(raw: bytes, checksum: bytes, n_bytes: int, path: str) -> None:
    from google_crc32c import value

    if len(raw) < n_bytes or value(raw).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise SourceFormatError(
            f"{path} is damaged: the index of its chunks does not match its checksum; download it again"
        )
