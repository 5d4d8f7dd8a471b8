"""Conversions and appends that are killed: what is there is the old store or none, and the same command finishes it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conversions import tree, write_files

from scdataloader.errors import StoreFormatError
from scdataloader.store.reader import Store
from scdataloader.store.verify import verify

pytestmark = pytest.mark.slow

N_RANDOM = 20
"""Kills at random moments, for each of the cases below; those before each event come on top."""
EVERY = 3
"""Of the events, so many apart, each case starting at another one."""
CASES = {
    "convert": ({}, None),
    "append": ({"append": True}, {}),
    "shuffle": ({"layout": "shuffled"}, None),
    "append shuffled": ({"append": True}, {"layout": "shuffled"}),
}


class Forks:
    """The process of `crash_child`."""

    def __init__(self):
        child = Path(__file__).with_name("crash_child.py")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(child)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, sources, out, **more):
        options = {"cells_per_shard": 6} | more.pop("options")
        command = {"sources": sources, "out": str(out), "options": options, **more}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def forks():
    started = Forks()
    yield started
    started.close()


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory, forks):
    """Its name, sources, options, the folder to begin with if any, what it becomes, the events and time that takes."""
    folder = tmp_path_factory.mktemp("crash")
    first, *added = write_files(folder, (7, 13, 8))
    options, before = CASES[request.param]
    old = None
    if before is not None:
        old = folder / "old.cells"
        assert not forks([first], old, options=before)["failed"]
    whole = folder / "whole.cells"
    for _ in range(2):  # the second time is the one that counts: all is compiled
        shutil.rmtree(whole, ignore_errors=True)
        if old is not None:
            shutil.copytree(old, whole)
        done = forks(added, whole, options=options)
        assert not done["failed"]
    assert not verify(whole).unnamed
    yield request.param, added, options, old, tree(whole), done
    shutil.rmtree(folder)


def check(forks, case, tmp_path, **when):
    """Kill a conversion, see what there is, finish it, and see that it is the same; whether it was killed at all."""
    _, sources, options, old, whole, _ = case
    out = tmp_path / "out.cells"
    if old is not None:
        shutil.copytree(old, out)
    ended = forks(sources, out, options=options, **when)
    assert not ended["failed"]
    check_unfinished(out, old, whole)
    again = forks(sources, out, options=options)
    assert not again["failed"]
    assert tree(out) == whole
    shutil.rmtree(out)
    return ended["killed"]


def check_unfinished(out, old, whole):
    """That there is no store, the old one or the new one, whatever else lies there."""
    try:
        verify(out)
    except (StoreFormatError, FileNotFoundError) as error:
        assert old is None
        assert "is no store: it has no manifest.json" in str(error) or "is no folder" in str(error)
        return
    found = tree(out)
    assert found["manifest.json"] in ({whole["manifest.json"]} if old is None else both(old, whole))
    store = Store.open(out)
    for number in range(len(store.sources)):
        store.to_anndata(number)


def both(old, whole):
    return {(old / "manifest.json").read_bytes(), whole["manifest.json"]}


def test_killed_before_each_change_of_the_disk(forks, case, tmp_path):
    name, *_, done = case
    first = list(CASES).index(name) % EVERY
    n_killed = sum(check(forks, case, tmp_path, stop_before=event) for event in range(first, done["events"], EVERY))
    assert n_killed == len(range(first, done["events"], EVERY)) >= 10


def test_killed_at_random_moments(forks, case, tmp_path):
    name, *_, done = case
    rng = random.Random(name)
    n_killed = sum(check(forks, case, tmp_path, after=rng.uniform(0, done["seconds"])) for _ in range(N_RANDOM))
    assert n_killed >= N_RANDOM // 2


def test_killed_again_and_again(forks, case, tmp_path):
    """Each try gets a little further than the one before."""
    _, sources, options, old, whole, done = case
    out = tmp_path / "out.cells"
    if old is not None:
        shutil.copytree(old, out)
    n_killed, event = 0, 5
    while forks(sources, out, options=options, stop_before=event)["killed"]:
        check_unfinished(out, old, whole)
        n_killed += 1
        event += 1 if n_killed % 2 else 5
        assert event < 2 * done["events"]
    assert n_killed >= 3
    assert tree(out) == whole


MANY = """
import sys
from scdataloader.conversion import convert
from scdataloader.store import tasks
if __name__ == "__main__":
    tasks._CELLS_PER_BLOCK = 3
    print("begins", flush=True)
    convert(sys.argv[2:], sys.argv[1], n_processes=2, cells_per_shard=3, progress=False)
"""


@pytest.mark.parametrize("seconds", [None, 1.5])
def test_processes_end_with_the_one_that_started_them(tmp_path, seconds):
    """kill -9 of that one alone; another try begins at once. Without a time, the kill comes with the first shard."""
    paths, out = write_files(tmp_path, (300, 200)), tmp_path / "out.cells"
    script = tmp_path / "many.py"
    script.write_text(MANY)
    command = [sys.executable, "-W", "ignore", str(script), str(out), *paths]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    started.stdout.readline()
    deadline = time.monotonic() + (60 if seconds is None else seconds)
    while time.monotonic() < deadline and not (seconds is None and list(out.glob("shards/*.cells"))):
        time.sleep(0.01)
    children = multiprocessing_children(started.pid)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    started.stdout.close()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert not [pid for pid in children if is_alive(pid)]
    script.write_text(MANY.replace("n_processes=2", "n_processes=1"))
    whole = tmp_path / "whole.cells"
    subprocess.run([*command[:4], str(whole), *paths], check=True, stdout=subprocess.DEVNULL)
    assert tree(out) == tree(whole)


def multiprocessing_children(pid):
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        pytest.skip("no /proc to find processes in")
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
