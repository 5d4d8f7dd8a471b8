"""Stores and files in buckets of Google and of Azure: listed, written, and read by ranges; errors say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

pytest.importorskip("obstore")

from scdataloader.collection.collection import Collection
from scdataloader.runtime import buckets
from scdataloader.runtime.buckets import Bucket, checked_url, expand_url
from scdataloader.store.reader import Store
from tests.cloud import cloud_server
from tests.sources.source_files import make, stored_as
from tests.store.conversions import here


@pytest.fixture(params=["gs", "az"])
def scheme(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SCDATALOADER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(buckets, "RETRY_S", 0.2)
    return str(request.param)


@pytest.fixture
def server(scheme: str) -> Iterator[Any]:
    with cloud_server(scheme) as handler:
        yield handler


def test_a_store_and_a_file_are_the_same_as_here(scheme: str, server: Any, tmp_path: Path) -> None:
    x = 1 + np.arange(60.0 * 200).reshape(60, 200)  # a value names its row and column
    x[np.random.default_rng(0).random(x.shape) < 0.5] = 0
    adata = make(stored_as(x.astype(np.float32), "csr"))
    adata.write_h5ad(tmp_path / "a.h5ad")
    here(adata, tmp_path / "a.cells", cells_per_shard=25)
    bucket = Bucket.open(f"{scheme}://atlas/data")
    for file in (one for one in tmp_path.rglob("*") if one.is_file()):
        bucket.upload(file, file.relative_to(tmp_path).as_posix())
    server.requests.clear()
    rows = np.array([59, 3, 3, 30])
    for name in ("a.cells", "a.h5ad"):
        read, expected = (Collection.open(place).read(rows) for place in (bucket.url_of(name), str(tmp_path / name)))
        assert_array_equal(read.data, expected.data)
        assert_array_equal(read.indices, expected.indices)
    assert any(wanted for _, wanted in server.requests)
    assert [*map(str, expand_url(f"{scheme}://atlas/data/*.h5ad"))] == [f"{scheme}://atlas/data/a.h5ad"]
    assert Store.open(f"{scheme}://atlas/data/a.cells").n_obs == 60
    assert bucket.names() == ["a.cells", "a.h5ad"]


def test_errors_name_the_object_and_the_way_out(scheme: str, server: Any) -> None:
    bucket = Bucket.open(f"{scheme}://atlas/data")
    bucket.replace("a", b"0123456789", None)
    assert bucket.state("a").n_bytes == 10
    with pytest.raises(FileExistsError, match=f"{scheme}://atlas/data/a"):
        bucket.replace("a", b"", None)
    with pytest.raises(FileNotFoundError, match=f"{scheme}://atlas/data/b .*object"):
        bucket.read("b")
    with pytest.raises(FileNotFoundError, match=f"{scheme}://none/data .*bucket"):
        Bucket.open(f"{scheme}://none/data").listed()
    server.status = 403
    variable = {"gs": "GOOGLE_SERVICE_ACCOUNT", "az": "AZURE_STORAGE_ACCOUNT_KEY"}[scheme]
    with pytest.raises(PermissionError, match=f"{scheme}://atlas/data/a .*403.*{variable}"):
        bucket.read("a")


def test_an_endpoint_without_tls_has_to_be_allowed(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = {"gs": "GOOGLE_BASE_URL", "az": "AZURE_STORAGE_ENDPOINT"}[scheme]
    monkeypatch.setenv(variable, "http://example.org")
    with pytest.raises(ValueError, match="TLS"):
        checked_url(f"{scheme}://atlas/x")
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert checked_url(f"{scheme}://atlas/x") == f"{scheme}://atlas/x"


def test_azure_without_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PermissionError, match=r"az://atlas/x .*AZURE_STORAGE_ACCOUNT_NAME"):
        Bucket.open("az://atlas/x")
