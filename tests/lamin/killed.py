"""Processes that are killed while they register files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def kill_at_each_step(folder: Path, key: str, **environment: str) -> None:
    """Register files into an instance, killed at each step: all of a call is there then, or nothing."""
    path = str(Path(__file__).parents[2])
    command = [sys.executable, str(Path(__file__).with_name("register_child.py")), str(folder), key]
    environment = {**os.environ, **environment, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
