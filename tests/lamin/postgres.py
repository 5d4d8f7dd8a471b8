"""A Postgres server of the tests' own: on a free port of loopback, in a folder of its own, gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SECONDS_TO_START = 60


@contextmanager
def postgres_server(database: str) -> Iterator[str]:
    """Address of an empty database; the test is skipped where Postgres is not installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")) or [shutil.which("postgres")]
    if programs[-1] is None:
        pytest.skip("Postgres is not installed")
    folder = Path(programs[-1]).parent
    # the server refuses to run as root
    as_whom = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    data = Path(tempfile.mkdtemp(prefix="scdataloader-postgres-"))
    server = None
    try:
        if as_whom:
            shutil.chown(data, "postgres", "postgres")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": data, **as_whom}
        initdb = [folder / "initdb", "-D", data / "db", "-U", "lamin", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(initdb, check=True, **quiet)
        port = free_port()
        # -F: no fsync, for data that nobody keeps
        server = subprocess.Popen(
            [folder / "postgres", "-F", "-D", data / "db", "-h", "127.0.0.1", "-p", str(port), "-k", data],
            **quiet | {"stderr": subprocess.DEVNULL},
        )
        address = ["-h", "127.0.0.1", "-p", str(port), "-U", "lamin"]
        deadline = time.monotonic() + SECONDS_TO_START
        while subprocess.run([folder / "pg_isready", *address], stdout=subprocess.DEVNULL, check=False).returncode:
            assert server.poll() is None, "the Postgres server has ended"
            assert time.monotonic() < deadline, "the Postgres server does not start"
            time.sleep(0.1)
        subprocess.run([folder / "createdb", *address, database], check=True)
        yield f"postgresql://lamin:secret@127.0.0.1:{port}/{database}"
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # ends it without waiting for clients
            server.wait()
        shutil.rmtree(data, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
