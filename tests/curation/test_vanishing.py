"""Files that are cut, removed or replaced under the hands of the process that curates them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scdataloader.curation import Curator, Recipe
from scdataloader.curation.ledger import LEDGER
from tests.curation.helpers import IDS, cells, raw, written

pytestmark = pytest.mark.filterwarnings("default")  # of libraries in processes of their own

N_CELLS = 2_500  # two blocks

# The first block of a file waits until something has been done to the file.
HOOK = """
import time
from pathlib import Path

def wait(block):
    name = block.obs["file"].iloc[0]
    if name != "sound" and block.n_obs > 1000:
        Path(f"{name}.reached").touch()
        start = time.monotonic()
        while not Path(f"{name}.done").exists():
            assert time.monotonic() - start < 120, "nothing has been done to the file"
            time.sleep(0.01)
    return block
"""


def cut(path: Path) -> None:
    os.truncate(path, 4096)


def replace(path: Path) -> None:
    other = written(path.with_name("other"), cells(IDS, N_CELLS, seed=99, file="sound"))
    other.replace(path)


DISTURBED = {
    "cut": (cut, None),
    "cut_gzip": (cut, "gzip"),
    "removed": (Path.unlink, None),
    "removed_gzip": (Path.unlink, "gzip"),
    "replaced": (replace, None),
    "replaced_gzip": (replace, "gzip"),
}


def disturb(folder: Path, stop: threading.Event) -> None:
    """Wait for the processes to reach each file, and do to it what its name says."""
    waiting = set(DISTURBED)
    while waiting and not stop.is_set():
        for name in [name for name in waiting if (folder / f"{name}.reached").exists()]:
            DISTURBED[name][0](folder / "raw" / f"{name}.h5ad")
            (folder / f"{name}.done").touch()
            waiting.remove(name)
        time.sleep(0.01)


@pytest.fixture
def working(tmp_path, monkeypatch):
    """A working directory with the hook."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "curate_hook_that_waits.py").write_text(HOOK)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("curate_hook_that_waits", None)


def test_a_file_that_is_cut_or_goes_meanwhile_fails_in_one_line_and_leaves_nothing(working, caplog):
    (working / "raw").mkdir()
    for number, (name, (_, compression)) in enumerate(DISTURBED.items()):
        raw = cells(IDS, N_CELLS, seed=number, file=name)
        raw.write_h5ad(working / "raw" / f"{name}.h5ad", compression=compression)
    for name in ("a", "z"):
        written(working / "raw" / f"{name}.h5ad", cells(IDS, N_CELLS, seed=ord(name), file="sound"))
    stop = threading.Event()
    other = threading.Thread(target=disturb, args=(working, stop))
    other.start()
    curator = Curator(out="out", recipe=Recipe(before=["curate_hook_that_waits:wait"]), processes=1)
    try:
        outcomes = curator.run("raw/*.h5ad")
    finally:
        stop.set()
        other.join()
    status = {Path(outcome.source).stem: outcome.status for outcome in outcomes}
    assert status == {"a": "kept", **dict.fromkeys(DISTURBED, "failed"), "z": "kept"}
    why = "the file was changed or removed while it was curated; run the same command again"
    assert {outcome.reason for outcome in outcomes if outcome.status == "failed"} == {why}
    said = [record.getMessage() for record in caplog.records if record.name.startswith("scdataloader.curation")]
    assert sorted(said) == sorted(f"raw/{name}.h5ad failed: {why}" for name in DISTURBED)
    assert sorted(path.name for path in (working / "out").iterdir()) == ["a.h5ad", LEDGER, "report.csv", "z.h5ad"]

    again = {Path(outcome.source).stem: outcome for outcome in curator.run("raw/*.h5ad")}
    assert set(again) == {"a", "z", "cut", "cut_gzip", "replaced", "replaced_gzip"}
    for name in ("cut", "cut_gzip"):
        assert f"{name}.h5ad is truncated (4096 bytes" in again[name].reason
    assert again["replaced"].status == "kept"


@pytest.mark.slow
def test_a_disk_that_is_nearly_full(tmp_path):
    """A small file system in memory, where the system lets a user mount one."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this system lets no user mount a file system of its own")
    files, disk = raw(tmp_path / "raw", 2), tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=12m none "$0" && "$@"; code=$?; ls "$0/out"; exit $code'
    command = [sys.executable, "-m", "scdataloader", "curate", *files, "--out", disk / "out", "--processes", "1"]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, disk, *command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    told = re.findall(r"warning: .*\.h5ad failed: (.*)", done.stderr)
    assert len(told) == 2
    assert all(re.search(r"cannot write \d\.h5ad into \S+: 16\.8 MB .* 1\d\.\d MB are free", line) for line in told)
    assert done.stdout.split()[-2:] == ["curated.jsonl", "report.csv"]
