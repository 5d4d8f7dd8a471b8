"""A server on loopback that answers as Google's and Azure's object storage do."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

_DATE = "Mon, 01 Jan 2024 00:00:00 GMT"
_LISTS = {
    "gs": "<ListBucketResult>{objects}{folders}</ListBucketResult>",
    "az": "<EnumerationResults><Blobs>{objects}{folders}</Blobs></EnumerationResults>",
}
_OBJECTS = {
    "gs": "<Contents><Key>{name}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><Size>{size}</Size>"
    "<ETag>{tag}</ETag></Contents>",
    "az": "<Blob><Name>{name}</Name><Properties><Last-Modified>" + _DATE + "</Last-Modified><Content-Length>{size}"
    "</Content-Length><Content-Type>x</Content-Type><Etag>{tag}</Etag></Properties></Blob>",
}
_FOLDERS = {
    "gs": "<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>",
    "az": "<BlobPrefix><Name>{name}</Name></BlobPrefix>",
}
_MISSING = {"gs": "NoSuchBucket", "az": "ContainerNotFound"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scheme = "gs"
    buckets: dict[str, dict[str, bytes]]
    status = 0
    """The status of all answers, unless 0."""
    requests: list[tuple[str, str]]
    """Method and ``Range`` of each request."""

    def log_message(self, *_: object) -> None:
        pass

    def handle_all(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        bucket, _, name = unquote(parts.path).lstrip("/").partition("/")
        given = self.headers.get("Range") or self.headers.get("x-ms-range") or ""
        self.requests.append((self.command, given))
        objects = self.buckets.get(bucket)
        if self.status:
            self.answer(self.status, b"<Error><Code>Refused</Code></Error>")
        elif objects is None:
            self.answer(404, f"<Error><Code>{_MISSING[self.scheme]}</Code></Error>".encode())
        elif not name:
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            self.answer(200, self.listing(objects, query).encode())
        elif self.command == "PUT":
            self.put(objects, name, content)
        elif name not in objects:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self.send_object(objects[name], given)

    do_GET = do_HEAD = do_PUT = handle_all  # noqa: N815 (names of the base class)

    def put(self, objects: dict[str, bytes], name: str, content: bytes) -> None:
        if name in objects and self.headers.get("If-None-Match") == "*":
            self.answer(409, b"")
        elif name in objects and self.headers.get("x-goog-if-generation-match") == "0":
            self.answer(412, b"")
        else:
            objects[name] = content
            self.answer(201 if self.scheme == "az" else 200, b"", content)

    def send_object(self, content: bytes, given: str) -> None:
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", given):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
            part = content[first : last + 1]
            self.answer(206, part, content, {"Content-Range": f"bytes {first}-{last}/{len(content)}"})
        else:
            self.answer(200, content, content)

    def listing(self, objects: dict[str, bytes], query: dict[str, str]) -> str:
        prefix, folders, found = query.get("prefix", ""), set(), []
        for name in sorted(objects):
            if not name.startswith(prefix):
                continue
            head, slash, _ = name[len(prefix) :].partition("/")
            if slash and "delimiter" in query:
                folders.add(f"{prefix}{head}/")
            else:
                found.append(
                    _OBJECTS[self.scheme].format(name=escape(name), size=len(objects[name]), tag=_tag(objects[name]))
                )
        listed = "".join(_FOLDERS[self.scheme].format(name=escape(name)) for name in sorted(folders))
        return _LISTS[self.scheme].format(objects="".join(found), folders=listed)

    def answer(
        self, status: int, body: bytes, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        stated = {"Content-Length": str(len(body)), "Last-Modified": _DATE, "x-goog-generation": "1", **(headers or {})}
        if content is not None:
            stated["ETag"] = _tag(content)
        for key, value in stated.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tag(content: bytes) -> str:
    return f'"{blake2b(content, digest_size=8).hexdigest()}"'


@contextmanager
def cloud_server(scheme: str, bucket: str = "atlas") -> Iterator[type[_Handler]]:
    """A server of "gs" or "az" with an empty bucket, and an environment in which it is used."""
    handler = type("Handler", (_Handler,), {"scheme": scheme, "buckets": {bucket: {}}, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        if scheme == "gs":
            account = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": ""}
            patch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account | {"private_key_id": ""}))
            patch.setenv("GOOGLE_BASE_URL", address)
        else:
            patch.setenv("AZURE_STORAGE_ENDPOINT", address)
            patch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
            patch.setenv("AZURE_SKIP_SIGNATURE", "true")
        try:
            yield handler
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
