"""Stores in buckets: converted into, appended to and continued; never seen unfinished."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_array_equal

from scdataloader.collection.collection import Collection
from scdataloader.errors import SourceChangedError, StoreFormatError
from scdataloader.runtime.buckets import Bucket, ObjectState
from scdataloader.store.convert import convert
from scdataloader.store.export import export
from scdataloader.store.reader import Store
from scdataloader.store.verify import verify
from tests.s3 import s3_server

pytestmark = pytest.mark.s3
OUT = "s3://atlas/a.cells"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SCDATALOADER_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    bucket = Bucket.open("s3://atlas")
    bucket.remove([state.path for state in bucket.listed()])


def write(path: Path, first: int, n_obs: int = 30) -> Path:
    """A file whose values name their row and gene."""
    values = first + np.arange(n_obs)[:, None] * 10.0 + np.arange(7)
    values[:, ::2] = 0
    obs = pd.DataFrame({"kind": ["a", "b"] * (n_obs // 2)}, index=[f"c{i}" for i in range(n_obs)])
    var = pd.DataFrame(index=[f"ENSG{i:011}" for i in range(7)])
    ad.AnnData(sp.csr_matrix(values.astype(np.float32)), obs=obs, var=var).write_h5ad(path)
    return path


def objects() -> set[str]:
    return {state.path for state in Bucket.open(OUT).listed()}


def is_whole(files: list[Path]) -> bool:
    """Whether the store has the cells of the files, and the bucket nothing else."""
    store, local = Collection.open(OUT), Collection.open(files)
    rows = np.arange(len(local))
    for part in ("indptr", "indices", "data"):
        assert_array_equal(getattr(store.read(rows), part), getattr(local.read(rows), part))
    return objects() == {"manifest.json", *(file.path for file in Store.open(OUT).manifest.files)}


def test_convert_append_and_convert_again(tmp_path: Path, cache: Path) -> None:
    a, b = write(tmp_path / "a.h5ad", 1), write(tmp_path / "b.h5ad", 1000)
    convert(a, OUT, n_processes=1, cells_per_shard=16)
    assert is_whole([a])
    assert not list((cache / "uploads").iterdir())
    before = Bucket.open(OUT).listed()
    convert(a, OUT, n_processes=1, cells_per_shard=16)  # nothing to do
    assert Bucket.open(OUT).listed() == before
    convert([a, b], OUT, append=True, n_processes=1, cells_per_shard=16)
    assert is_whole([a, b])
    with pytest.raises(FileExistsError, match=r"s3://atlas/a.cells is a store already.*layout"):
        convert([a, b], OUT, layout="shuffled", n_processes=1)
    write(b, 2000)  # its cells are replaced, and the objects of the earlier ones removed
    convert([a, b], OUT, n_processes=1, cells_per_shard=16)
    assert is_whole([a, b])


def test_an_upload_that_ends_is_continued(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, done, upload = write(tmp_path / "a.h5ad", 1), list[str](), Bucket.upload

    def failing(bucket: Bucket, file: Path, path: str) -> ObjectState:
        if len(done) == 2:
            raise ConnectionError("no network")
        done.append(path)
        return upload(bucket, file, path)

    monkeypatch.setattr("scdataloader.store.writing.bucket._THREADS", 1)
    monkeypatch.setattr(Bucket, "upload", failing)
    with pytest.raises(ConnectionError, match=r"no network.*kept in .*uploads.*rerun"):
        convert(a, OUT, n_processes=1, cells_per_shard=16)
    assert objects() == set(done)
    with pytest.raises(FileNotFoundError, match=r"a.cells/manifest.json"):
        Store.open(OUT)
    first, done[:] = set(done), []
    monkeypatch.setattr(Bucket, "upload", lambda *args: done.append(args[2]) or upload(*args))
    convert(a, OUT, n_processes=1, cells_per_shard=16)
    assert not first & set(done)
    assert is_whole([a])
    assert not list((cache / "uploads").iterdir())


def test_another_conversion_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, replace = write(tmp_path / "a.h5ad", 1), write(tmp_path / "b.h5ad", 1000), Bucket.replace
    convert(a, OUT, n_processes=1)
    manifest = Bucket.open(OUT).read("manifest.json")

    def late(bucket: Bucket, path: str, content: bytes, etag: str | None) -> None:
        replace(bucket, path, manifest + b" ", etag)  # as another machine does
        replace(bucket, path, content, etag)

    monkeypatch.setattr(Bucket, "replace", late)
    with pytest.raises(SourceChangedError, match=r"a.cells/manifest.json"):
        convert(b, OUT, append=True, n_processes=1)


def test_what_is_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a.h5ad", 1)
    Bucket.open("s3://atlas").upload(a, "a.cells/other.h5ad")
    with pytest.raises(FileExistsError, match=r"s3://atlas/a.cells .*other.h5ad"):
        convert(a, OUT, n_processes=1)
    with pytest.raises(ValueError, match=r"web server"):
        convert(a, "https://127.0.0.1/a.cells", n_processes=1)
    with pytest.raises(FileNotFoundError, match=r"s3://none/a.cells .*bucket"):
        convert(a, "s3://none/a.cells", n_processes=1)
    with pytest.raises(FileNotFoundError, match=r"append"):
        convert(a, "s3://atlas/new.cells", append=True, n_processes=1)


def test_verify_and_export_by_url(tmp_path: Path, cache: Path) -> None:
    a = write(tmp_path / "a.h5ad", 1)
    convert(a, OUT, n_processes=1, cells_per_shard=16)
    found = verify(OUT, sources=a)
    assert (found.n_cells, found.n_files, found.unnamed) == (30, len(objects()), ())
    assert not list(cache.glob("verify-*"))
    (copy,) = export(OUT, tmp_path / "copy.h5ad")
    assert_array_equal(ad.read_h5ad(copy).X.toarray(), ad.read_h5ad(a).X.toarray())
    bucket = Bucket.open(OUT)
    shard = bytearray(bucket.read("shards/00001.cells"))
    shard[40] ^= 1
    (tmp_path / "wrong").write_bytes(shard)
    bucket.upload(tmp_path / "wrong", "shards/00001.cells")
    bucket.remove(["obs/00000.parquet"])
    bucket.upload(a, "shards/more.h5ad")
    with pytest.raises(StoreFormatError, match=r"s3://atlas/a.cells is damaged, [2-9] problems") as caught:
        verify(OUT)
    assert "s3://atlas/a.cells/shards/00001.cells: cell" in str(caught.value)
    assert "s3://atlas/a.cells/obs/00000.parquet is missing" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
