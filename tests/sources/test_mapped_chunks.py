"""Files as AnnData writes them by default: chunked, not compressed, and read without decoding."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import resource
import struct
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from scdataloader.errors import NotCountsError, SourceFormatError
from scdataloader.sources import open_source
from scdataloader.sources.arrays.mapped import MappedChunks
from scdataloader.sources.arrays.matrices import ChunkedCSR, MappedCSR
from tests.sources.source_files import H5_COMPRESSIONS, N_OBS, SMALL_CHUNK, coordinates, make, rewrite, write_h5ad

CHUNKED = H5_COMPRESSIONS["chunked"]


def large(dtype="float32", index_dtype="int32"):
    """A matrix that takes AnnData several chunks; its values name their place, as far as the dtype goes."""
    matrix = sp.random(700, 400, density=0.3, format="csr", random_state=0)
    matrix.data = (1 + np.arange(matrix.nnz) % 127).astype(dtype)
    matrix.indices, matrix.indptr = matrix.indices.astype(index_dtype), matrix.indptr.astype(index_dtype)
    return matrix


def check(source, matrix, rows) -> None:
    read, expected = source.read(np.asarray(rows)), matrix[rows]
    np.testing.assert_array_equal(read.indptr, expected.indptr)
    np.testing.assert_array_equal(read.indices, expected.indices)
    np.testing.assert_array_equal(read.data, expected.data.astype(np.float32))


def write_default(path: Path, matrix) -> Path:
    """As AnnData does it; chunks that it would not make are made here."""
    make(matrix).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for name in ("data", "indices"):
            array = file["X"][name]
            if not array.chunks:
                values = array[()]
                del file["X"][name]
                file["X"].create_dataset(name, data=values, chunks=(17579,))
    return path


@pytest.mark.parametrize("index_dtype", ["int32", "int64"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "int64"])
def test_default_file(tmp_path: Path, dtype: str, index_dtype: str) -> None:
    matrix = large(dtype, index_dtype)
    with open_source(write_default(tmp_path / "a.h5ad", matrix)) as source:
        assert isinstance(source._matrix().reader, MappedCSR)
        assert source.matrix is None
        assert source.read_cost.is_flat
        for rows in ([], [0], [699, 0, 699], np.arange(700), np.random.default_rng(0).integers(0, 700, 999)):
            check(source, matrix, rows)


@pytest.mark.parametrize("length", [1, 2, 7, 10**4])
def test_chunks_of_any_length(tmp_path: Path, length: int) -> None:
    x = coordinates()
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(x)), {})
    with h5py.File(path, "r+") as file:
        for name, n in (("data", length), ("indices", 3)):
            values = file["X"][name][()]
            del file["X"][name]
            file["X"].create_dataset(name, data=values, chunks=(n,), maxshape=(None,))
    with open_source(path) as source:
        assert isinstance(source._matrix().reader, MappedCSR)
        check(source, sp.csr_matrix(x), np.random.default_rng(0).integers(0, N_OBS, 200))


@pytest.mark.parametrize(
    ("data", "indices", "cheap"),
    [
        ("contiguous", "chunked", True),
        ("chunked", "contiguous", True),
        ("chunked", "gzip", False),
        ("gzip", "chunked", False),
        ("gzip", "contiguous", False),
    ],
)
def test_views_are_not_kept(tmp_path: Path, data: str, indices: str, cheap: bool) -> None:
    """An array that is not encoded takes no memory, however the other one is stored."""
    x = coordinates()
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(x)), {})
    with h5py.File(path, "r+") as file:
        rewrite(file["X/data"], H5_COMPRESSIONS[data])
        rewrite(file["X/indices"], H5_COMPRESSIONS[indices])
    with open_source(path) as source:
        check(source, sp.csr_matrix(x), np.arange(N_OBS))
        assert source.read_cost.is_flat == cheap
        if not cheap:
            reader = source._matrix().reader
            assert isinstance(reader, ChunkedCSR)
            assert {key for key, _ in reader._cache._chunks} == {1 if data == "gzip" else 0}  # genes, then values


def test_chunks_at_distances_that_are_not_whole_numbers_of_values(tmp_path: Path) -> None:
    x = coordinates("float64")
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(x)), CHUNKED)
    with h5py.File(path, "r+") as file:
        array = file["X/data"]
        offset = array.id.get_chunk_info(2).byte_offset
        values = array[2 * SMALL_CHUNK : 3 * SMALL_CHUNK].tobytes()
    content = path.read_bytes()
    assert content.count(struct.pack("<Q", offset)) == 1
    # the third chunk three bytes earlier, over the end of its neighbour
    moved = bytearray(content.replace(struct.pack("<Q", offset), struct.pack("<Q", offset - 3)))
    moved[offset - 3 : offset - 3 + len(values)] = values
    path.write_bytes(moved)
    with open_source(path, values="any") as source:
        reader = source._matrix().reader
        assert isinstance(reader, ChunkedCSR)
        assert isinstance(reader._data.chunks, MappedChunks)
        indptr = np.concatenate([[0], np.cumsum(source.nnz())])
        inside = (indptr[:-1] >= 2 * SMALL_CHUNK) & (indptr[1:] <= 3 * SMALL_CHUNK)
        check(source, sp.csr_matrix(x), np.flatnonzero(inside))
        source.read(np.arange(N_OBS))


def test_chunks_that_were_never_written(tmp_path: Path) -> None:
    x = coordinates()
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(x)), {})
    with h5py.File(path, "r+") as file:
        values = file["X/data"][()]
        del file["X/data"]
        file["X"].create_dataset("data", values.shape, values.dtype, chunks=(SMALL_CHUNK,), fillvalue=3)
        file["X/data"][:SMALL_CHUNK] = values[:SMALL_CHUNK]
        values[SMALL_CHUNK:] = 3
    with open_source(path) as source:
        assert not source.read_cost.is_flat
        read = source.read(np.arange(N_OBS))
        np.testing.assert_array_equal(read.data, values)


@contextmanager
def unnoticed(path: Path) -> Iterator[None]:
    """Damage of a file that changes neither its size nor its time, as by a disk."""
    before = path.stat()
    yield
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name", ["data", "indices"])
@pytest.mark.parametrize("beyond", [-8, 0, 1, 2**40, 2**62])
def test_chunk_table_that_points_beyond_the_file(tmp_path: Path, name: str, beyond: int) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(coordinates())), CHUNKED)
    source = open_source(path)
    with h5py.File(path) as file:
        offset = file["X"][name].id.get_chunk_info(3).byte_offset
    content = path.read_bytes()
    wild = struct.pack("<Q", len(content) + beyond)
    with unnoticed(path):
        path.write_bytes(content.replace(struct.pack("<Q", offset), wild))
    with pytest.raises(SourceFormatError, match=f"a.h5ad is truncated: chunk 3 of a.h5ad: X/{name} ends at byte"):
        source.read(np.array([0]))


@pytest.mark.parametrize("wild", [-1, 10**6])
def test_wild_genes_and_values(tmp_path: Path, wild: int) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(coordinates())), CHUNKED)
    source = open_source(path)
    with unnoticed(path), h5py.File(path, "r+") as file:
        before, file["X/indices"][50] = file["X/indices"][50], wild
    with pytest.raises(SourceFormatError, match="gene number outside 0 to 42"):
        source.read(np.arange(N_OBS))
    source.close()
    with unnoticed(path), h5py.File(path, "r+") as file:
        file["X/indices"][50], file["X/data"][50] = before, 0.5
    with pytest.raises(NotCountsError, match=r"0\.5"):
        source.read(np.arange(N_OBS))


def right(source) -> bool:
    x, rows = coordinates(), np.random.default_rng(0).integers(0, N_OBS, 99)
    return bool((source.read(rows).to_scipy().toarray() == x[rows]).all())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes(tmp_path: Path) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(coordinates())), CHUNKED)
    with open_source(path) as source:
        assert right(source)
        saved = pickle.dumps(source)
        assert len(saved) < 2000
        assert right(pickle.loads(saved))
        for method in ("fork", "spawn"):
            with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
                assert pool.submit(right, source).result(timeout=120)
        source.close()
        assert right(source)


def descriptors() -> dict[int, str]:
    found = {}
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found[int(fd.name)] = str(fd.readlink())
    return found


def n_open(path: Path) -> int:
    return list(descriptors().values()).count(str(path))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not list a process's files")
@pytest.mark.parametrize("compression", ["contiguous", "chunked"])
def test_one_descriptor_and_one_map_for_a_file(tmp_path: Path, compression: str) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(coordinates())), H5_COMPRESSIONS[compression])
    source = open_source(path)
    assert n_open(path) == 0
    assert right(source)
    assert n_open(path) <= 1
    assert Path("/proc/self/maps").read_text().count(str(path)) == 1
    source.close()
    assert n_open(path) == 0
    assert str(path) not in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not list a process's files")
@pytest.mark.parametrize("free", [0, 1])
def test_too_many_open_files(tmp_path: Path, free: int) -> None:
    """Whether the library's own opening fails or the map: the limit is named, and the file is not called damaged."""
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(coordinates())), CHUNKED)
    source = open_source(path)
    assert right(source)
    source.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(descriptors()) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    held = []
    try:
        while True:
            try:
                held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        for _ in range(free):
            os.close(held.pop())
        with pytest.raises(OSError, match=rf"limit of {limit} open files.*`ulimit -n`") as caught:
            source.read(np.array([0]))
        assert (caught.value.errno, caught.value.filename) == (errno.EMFILE, str(path))
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert right(source)
