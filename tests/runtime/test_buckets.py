"""Object storage: globs, listing, and errors that say what to do and hold no credentials."""

from __future__ import annotations

import pickle
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scdataloader.runtime import buckets
from scdataloader.runtime.buckets import Bucket, RemotePath, as_url, checked_url, expand_url, is_remote
from scdataloader.runtime.files import split_path
from tests.s3 import s3_server

pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    file = tmp_path_factory.mktemp("bucket") / "content"
    file.write_bytes(b"0123456789")
    with s3_server():
        made = Bucket.open("s3://atlas/x/")
        for path in ("a/1.h5ad", "a/2.h5ad", "a/b/3.h5ad", "c.zarr/zarr.json", "c.zarr/X/0", "d.zarr/zarr.json"):
            made.upload(file, path)
        yield made


@pytest.mark.s3
@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("a/*.h5ad", ["a/1.h5ad", "a/2.h5ad"]),
        ("**/*.h5ad", ["a/1.h5ad", "a/2.h5ad", "a/b/3.h5ad"]),
        ("*.zarr", ["c.zarr", "d.zarr"]),
        ("a/[2-9]*", ["a/2.h5ad"]),
        ("nothing.h5ad", ["nothing.h5ad"]),
    ],
)
def test_globs(bucket: Bucket, glob: str, found: list[str]) -> None:
    assert [*map(str, expand_url(f"s3://atlas/x/{glob}"))] == [f"s3://atlas/x/{path}" for path in found]
    assert [*map(str, expand_url(Path(f"s3://atlas/x/{glob}")))] == [f"s3://atlas/x/{path}" for path in found]


@pytest.mark.s3
def test_what_does_not_exist_is_named(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"s3://atlas/x/q\*"):
        expand_url("s3://atlas/x/q*")
    with pytest.raises(FileNotFoundError, match=r"s3://atlas/x/a/9.h5ad .*object"):
        bucket.download("a/9.h5ad", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(FileNotFoundError, match=r"s3://other/x .*bucket"):
        Bucket.open("s3://other/x").listed()


@pytest.mark.s3
def test_without_credentials(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(buckets, "RETRY_S", 0.2)
    with pytest.raises(PermissionError, match=r"s3://atlas/x .*AWS_ACCESS_KEY_ID"):
        Bucket.open("s3://atlas/x").listed()
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert len(Bucket.open("s3://atlas/x").listed()) == 6


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that gives one answer to every request, and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        threading.Thread(target=run, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("status", "code", "kind", "said"),
    [
        ("301 Moved", "PermanentRedirect", ValueError, "region eu-west-3.*AWS_REGION"),
        ("400 Bad", "AuthorizationHeaderMalformed", ValueError, "region eu-west-3.*AWS_REGION"),
        ("403 Forbidden", "AccessDenied", PermissionError, "403 AccessDenied"),
        ("403 Forbidden", "InvalidAccessKeyId", PermissionError, "credentials"),
        ("404 Not Found", "NoSuchBucket", FileNotFoundError, "bucket"),
        ("500 Broken", "InternalError", ConnectionError, "500"),
    ],
)
def test_answers_are_explained(
    monkeypatch: pytest.MonkeyPatch, status: str, code: str, kind: type[Exception], said: str
) -> None:
    body = f"<Error><Code>{code}</Code></Error>"
    answer = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    monkeypatch.setattr(buckets, "RETRY_S", 0.2)
    with answering(answer.encode()) as address:
        for name, value in {
            "ENDPOINT_URL": address,
            "ACCESS_KEY_ID": "AKIAIDENTITY",
            "SECRET_ACCESS_KEY": "secret",
            "REGION": "eu-west-3",
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        with pytest.raises(kind, match=said) as caught:
            Bucket.open("s3://atlas/x").read("a.h5ad")
    assert "s3://atlas/x/a.h5ad" in str(caught.value)
    assert not re.search("AKIA|secret|Signature", f"{caught.value}{caught.value.__cause__}")


def test_a_server_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "RETRY_S", 0.2)
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9/x/a"):
        Bucket.open("http://127.0.0.1:9/x").read("a")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/x", "ftp.*s3"),
        ("s3:///x", "bucket"),
        ("http://example.org/x", "TLS.*SCDATALOADER_ALLOW_HTTP"),
        ("https://me:word@example.org/x", "https://example.org/x .*credentials"),
        ("https://example.org/x?X-Amz-Signature=0badcafe", "https://example.org/x .*query"),
    ],
)
def test_urls_that_are_refused(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        checked_url(url)
    assert not re.search("word|0badcafe", str(caught.value))


def test_plain_http_has_to_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://example.org")
    with pytest.raises(ValueError, match="TLS"):
        checked_url("s3://atlas/x")
    monkeypatch.setenv("SCDATALOADER_ALLOW_HTTP", "1")
    assert checked_url("s3://atlas/x/") == "s3://atlas/x"


def test_urls_that_were_made_paths() -> None:
    assert as_url(Path("s3://atlas/x.h5ad")) == "s3://atlas/x.h5ad"
    assert is_remote(Path("s3://atlas/x.h5ad"))
    assert not is_remote("soma://atlas/x")
    assert not is_remote("/data/x.h5ad")


def test_a_url_as_a_path() -> None:
    path = RemotePath("s3://atlas/x/b.h5mu/mod/rna")
    assert str(path) == f"{pickle.loads(pickle.dumps(path))}" == "s3://atlas/x/b.h5mu/mod/rna"
    assert (path.absolute(), str(path.parent), path.name) == (path, "s3://atlas/x/b.h5mu/mod", "rna")
    assert split_path(path) == (RemotePath("s3://atlas/x/b.h5mu"), "mod/rna")
    assert split_path(RemotePath("s3://atlas/x")) == (RemotePath("s3://atlas/x"), "")
