"""Serve a folder over HTTP on loopback, with delays and faults: a process of its own that answers ranges of files.

    python benchmarks/range_server.py DIR --delay 0.02

Prints its port. Connections stay open, files are mapped, and one event loop answers all requests. ``GET /-/counts``
returns the numbers of requests and bytes, ``/-/zero`` sets them to zero, and ``/-/set?delay=0.02&seed=1&reset=0.05``
changes the settings, too. `RangeServer` starts one, for tests and `remote.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import random
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from dataclasses import dataclass, field, fields
from email.utils import formatdate
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

_RANGE = re.compile(rb"\r\nrange: *bytes=(\d*)-(\d*)", re.IGNORECASE)
_IF_MATCH = re.compile(rb"\r\nif-match: *([^\r]*)", re.IGNORECASE)
_BODY = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_REASONS = {
    200: "OK", 206: "Partial Content", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    412: "Precondition Failed", 416: "Range Not Satisfiable", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip
_JOINED = 1 << 16
"""Bodies up to this size are sent in one call with their headers."""


@dataclass(kw_only=True)
class Settings:
    """Delay of all answers, and shares of the requests of files that fail, each between 0 and 1."""

    delay: float = 0.0
    """Seconds before every answer."""
    seed: int = 0
    """Of the choice of the requests that fail."""
    code_500: float = 0.0
    code_503: float = 0.0
    code_404: float = 0.0
    code_403: float = 0.0
    reset: float = 0.0
    """The connection is closed without an answer."""
    cut: float = 0.0
    """The connection is closed in the middle of the content."""
    short: float = 0.0
    """Only half of a range is sent, as a complete answer."""
    wrong: float = 0.0
    """One byte is another one."""
    slow: float = 0.0
    """The answer takes ``slow_s`` seconds more."""
    silent: float = 0.0
    """No answer; the connection stays open."""
    slow_s: float = 1.0
    only: str = ""
    """Faults are for paths that contain this."""


FAULTS = ("code_500", "code_503", "code_404", "code_403", "reset", "cut", "short", "wrong", "slow", "silent")


@dataclass(kw_only=True)
class State:
    """Settings, counts and mapped files of a server."""

    folder: Path
    settings: Settings = field(default_factory=Settings)
    counts: Counter[str] = field(default_factory=Counter)
    files: dict[str, tuple[memoryview, str, str]] = field(default_factory=dict)
    """{path: (content, ETag, time of change)}, mapped at the first request."""
    random: random.Random = field(default_factory=random.Random)

    def set(self, values: dict[str, str]) -> None:
        kinds = {one.name: type(one.default) for one in fields(Settings)}
        self.settings = Settings(**{name: kinds[name](value) for name, value in values.items()})
        self.random, self.counts, self.files = random.Random(self.settings.seed), Counter(), {}

    def fault(self, path: str) -> str:
        """The fault of a request, or ""."""
        if self.settings.only not in path:
            return ""
        draw = self.random.random()
        for name in FAULTS:
            draw -= getattr(self.settings, name)
            if draw < 0:
                self.counts[name] += 1
                return name
        return ""

    def file(self, path: str) -> tuple[memoryview, str, str] | None:
        if path not in self.files:
            found = (self.folder / unquote(path).lstrip("/")).resolve()
            if not found.is_file() or not found.is_relative_to(self.folder):
                return None
            info = found.stat()
            with found.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if info.st_size else b""
            etag, changed = f'"{info.st_size:x}-{info.st_mtime_ns:x}"', formatdate(info.st_mtime, usegmt=True)
            self.files[path] = memoryview(content), etag, changed
        return self.files[path]


class Connection(asyncio.Protocol):
    """One connection: requests are answered in order."""

    def __init__(self, state: State) -> None:
        self.state, self.received = state, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        transport.set_write_buffer_limits(1 << 30)  # type: ignore[attr-defined]
        self.state.counts["connections"] += 1

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end]
            body = _BODY.search(head)
            self.received = self.received[end + 4 + (int(body[1]) if body else 0) :]
            self.answer(head)

    def answer(self, head: bytes) -> None:
        state = self.state
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        address = urlsplit(target)
        if address.path.startswith("/-/"):
            if address.path == "/-/set":
                state.set(dict(parse_qsl(address.query)))
            elif address.path == "/-/zero":
                state.counts.clear()
            content = json.dumps(state.counts).encode()
            self.send(200, [], memoryview(content), has_body=True, delay=0)
            return
        state.counts["requests"] += 1
        state.counts[method] += 1
        fault = state.fault(address.path)
        if fault in ("reset", "silent"):
            if fault == "reset":
                self.transport.abort()
            return
        delay = state.settings.delay + (state.settings.slow_s if fault == "slow" else 0)
        code, headers, content = self.content(method, address.path, head, fault)
        self.send(code, headers, content, has_body=method != "HEAD", delay=delay, cut=fault == "cut")

    def content(self, method: str, path: str, head: bytes, fault: str) -> tuple[int, list[str], memoryview]:
        if fault.startswith("code_"):
            return int(fault[5:]), [], memoryview(b"")
        if method not in ("GET", "HEAD"):
            return 405, [], memoryview(b"")
        found = self.state.file(path)
        if found is None:
            return 404, [], memoryview(b"")
        content, etag, changed = found
        headers = [f"ETag: {etag}", f"Last-Modified: {changed}", "Accept-Ranges: bytes"]
        wanted, match = _RANGE.search(head), _IF_MATCH.search(head)
        if match is not None and match[1].decode() not in ("*", etag):
            return 412, [], memoryview(b"")
        code = 200
        if wanted is not None and method == "GET":
            first, last = (int(text) if text else None for text in wanted.groups())
            size = len(content)
            begin = max(0, size - (last or 0)) if first is None else first
            end = size if first is None or last is None else min(last + 1, size)
            if begin >= size:
                return 416, [f"Content-Range: bytes */{size}"], memoryview(b"")
            code = 206
            if fault == "short":
                end = begin + (end - begin) // 2
            headers.append(f"Content-Range: bytes {begin}-{end - 1}/{size}")
            content = content[begin:end]
        if fault == "wrong" and len(content):
            changed_content = bytearray(content)
            changed_content[self.state.random.randrange(len(content))] ^= 1 << self.state.random.randrange(8)
            content = memoryview(changed_content)
        return code, headers, content

    def send(
        self, code: int, headers: list[str], content: memoryview, *, has_body: bool, delay: float, cut: bool = False
    ) -> None:
        lines = [f"HTTP/1.1 {code} {_REASONS[code]}", f"Content-Length: {len(content)}", *headers, "", ""]
        head = "\r\n".join(lines).encode()
        body = content[: len(content) // 2 if cut else None] if has_body else memoryview(b"")
        if delay:
            asyncio.get_running_loop().call_later(delay, self.write, head, body, cut)
        else:
            self.write(head, body, cut)

    def write(self, head: bytes, body: memoryview, cut: bool) -> None:  # noqa: FBT001
        if self.transport.is_closing():
            return
        self.state.counts["bytes"] += len(body)
        if len(body) <= _JOINED:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)
        if cut:
            self.transport.close()


async def serve(folder: Path, delay: float) -> None:
    state = State(folder=folder)
    state.settings.delay = delay
    server = await asyncio.get_running_loop().create_server(lambda: Connection(state), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class RangeServer:
    """A server in a process of its own, for the duration of a with statement."""

    def __init__(self, folder: Path, delay: float = 0.0) -> None:
        self.folder, self._delay = folder, delay

    def __enter__(self) -> Self:
        command = [sys.executable, __file__, str(self.folder), "--delay", str(self._delay)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def set(self, **settings: float | str) -> None:
        """Replace all settings; see `Settings`. Counts begin at zero, and changed files are read anew."""
        self._call("set?" + "&".join(f"{name}={value}" for name, value in settings.items()))

    def counts(self) -> Counter[str]:
        """Numbers of requests, bytes and faults since the settings were last replaced."""
        return Counter(self._call("counts"))

    def cpu_s(self) -> float:
        """CPU seconds of the server until now (Linux)."""
        ticks = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / 100

    def stop(self) -> None:
        """End the process; connections break."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _call(self, what: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/-/{what}", timeout=10) as answer:
            return json.load(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before every answer")
    options = parser.parse_args()
    asyncio.run(serve(options.folder.resolve(), options.delay))


if __name__ == "__main__":
    main()
