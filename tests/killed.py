"""A process that is killed while it registers files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CHILD = """
import os
import sys
from pathlib import Path
from curated import B, T, curated
from scdataloader.curate import Recipe
from scdataloader.curate.register import register

folder, pipe, key = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
outcomes = [curated(folder / f"{number}.h5ad", [T, B]) for number in range(3)]
pipe.unlink()
os.mkfifo(pipe)
register(outcomes, key=key, recipe=Recipe())
"""


def kill_in_the_middle(folder: Path, key: str, **environment: str) -> None:
    """Register three files in a process, and kill that once two are saved: the last is a pipe, which it waits for."""
    pipe = folder / "2.h5ad"
    folder.mkdir(parents=True)
    pipe.touch()
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", CHILD, str(folder), str(pipe), key]
    child = subprocess.Popen(command, env={**os.environ, **environment, "PYTHONPATH": path}, stderr=subprocess.PIPE)
    try:
        while not is_read(pipe):
            assert child.poll() is None, child.stderr.read().decode()
        child.send_signal(signal.SIGKILL)
        child.wait()
    finally:
        child.kill()
        child.stderr.close()
    pipe.unlink()


def is_read(pipe: Path) -> bool:
    """Whether there is a pipe, and somebody waits at its other end."""
    time.sleep(0.02)
    if not pipe.is_fifo():
        return False
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
