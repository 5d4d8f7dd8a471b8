"""The server that tests and benchmarks of remote data use: its answers, and its faults."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from benchmarks.range_server import RangeServer

CONTENT = bytes(range(256)) * 64


def read(url: str, begin: int, end: int) -> bytes:
    request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-{end - 1}"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read()


def test_ranges_and_faults(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    with RangeServer(tmp_path, delay=0.001) as server:
        url = f"{server.url}/a.bin"
        assert read(url, 5, 300) == CONTENT[5:300]
        assert server.counts() | {"connections": 0} == {"requests": 1, "GET": 1, "bytes": 295, "connections": 0}
        server.set(wrong=1)
        assert sum(a != b for a, b in zip(read(url, 5, 300), CONTENT[5:300], strict=True)) == 1
        server.set(short=1)
        assert read(url, 5, 301) == CONTENT[5:153]
        server.set(cut=1)
        with pytest.raises(http.client.IncompleteRead):
            read(url, 0, 100)
        server.set(reset=1)
        with pytest.raises((urllib.error.URLError, http.client.RemoteDisconnected, ConnectionResetError)):
            read(url, 0, 100)
        server.set(code_503=0.25, seed=3)
        codes = []
        for _ in range(40):
            try:
                read(url, 0, 1)
            except urllib.error.HTTPError as error:
                codes.append(error.code)
                error.close()
        assert codes == [503] * server.counts()["code_503"]
        assert 3 <= len(codes) <= 20
