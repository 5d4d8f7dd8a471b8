"""Bus errors: those of our maps are survived and noticed, all others end the process as if there were no handler."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scdataloader.runtime.bus_errors import IS_HANDLED

pytestmark = pytest.mark.skipif(not IS_HANDLED, reason="the handler knows Linux on x86-64 and ARM64")


def test_own_maps_survive_and_other_faults_end_the_process(tmp_path):
    command = [sys.executable, Path(__file__).with_name("bus_errors_child.py"), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    killed = -signal.SIGBUS
    assert json.loads(done.stdout) == {
        "own": 0,
        "inherited": 0,
        "reused": 0,
        "other_map": killed,
        "another_after_own": killed,
        "with_faulthandler": killed,
        "with_later_faulthandler": killed,
        "sent": killed,
        "sent_to_a_handler": 0,
    }, done.stderr
    assert "Bus error" in (tmp_path / "trace").read_text()
