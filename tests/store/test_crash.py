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

from scdataloader.errors import StoreFormatError
from scdataloader.store.convert import convert
from scdataloader.store.export import to_anndata
from scdataloader.store.reader import Store
from scdataloader.store.verify import verify
from tests.store.conversions import tree, write_files

pytestmark = pytest.mark.slow

N_RANDOM = 8
"""Kills at random moments, for each of the cases below; those before each event come on top."""
EVERY = 8
"""Of the events, so many apart, each case starting at another one."""
CASES = {
    "convert": ({}, None),
    "append": ({"append": True}, {}),
    "shuffle": ({"layout": "shuffled"}, None),
    "append shuffled": ({"append": True}, {"layout": "shuffled"}),
    "matrices": ({"layers": ["parts"], "obsp": ["distances"]}, None),
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
def forks(tmp_path_factory):
    started = Forks()
    folder = tmp_path_factory.mktemp("warm")
    options = {"layout": "shuffled", **CASES["matrices"][0]}
    started(write_files(folder, (7, 9)), folder / "warm.cells", options=options, here=True)
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
    manifests = [whole["manifest.json"]]
    if old is not None:
        manifests.append((old / "manifest.json").read_bytes())
    elif not (out / "manifest.json").exists():
        with pytest.raises((StoreFormatError, FileNotFoundError), match=r"is not a store"):
            Store.open(out)
        return
    verify(out)
    assert (out / "manifest.json").read_bytes() in manifests
    store = Store.open(out)
    for number in range(len(store.sources)):
        to_anndata(store, number)


def test_killed_before_each_change_of_the_disk(forks, case, tmp_path):
    name, *_, done = case
    first = list(CASES).index(name) % EVERY
    n_killed = sum(check(forks, case, tmp_path, stop_before=event) for event in range(first, done["events"], EVERY))
    assert n_killed == len(range(first, done["events"], EVERY)) >= 10


def test_killed_at_random_moments(forks, case, tmp_path):
    name, *_, done = case
    rng = random.Random(name)
    n_killed, longest = 0, done["seconds"]
    for _ in range(4 * N_RANDOM):
        killed = check(forks, case, tmp_path, after=rng.uniform(0, longest))
        n_killed += killed
        longest *= 1 if killed else 0.9  # it took less time than before
        if n_killed == N_RANDOM:
            return
    pytest.fail(f"only {n_killed} were killed before they were done")


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
from scdataloader.store.convert import convert
from scdataloader.store.writing import tasks
if __name__ == "__main__":
    tasks._CELLS_PER_BLOCK = 3
    convert(sys.argv[2:], sys.argv[1], n_processes=2, cells_per_shard=3, progress=False)
"""


def test_processes_end_with_the_one_that_started_them(tmp_path):
    """That one alone is killed, in the midst of it; another try begins at once."""
    paths, out = write_files(tmp_path, (300, 200)), tmp_path / "out.cells"
    script = tmp_path / "many.py"
    script.write_text(MANY)
    command = [sys.executable, "-W", "ignore", str(script), str(out), *paths]
    started = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not list(out.glob("shards/*.cells")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = children_of(started.pid)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    with pytest.raises(StoreFormatError, match="is not a store"):
        Store.open(out)
    subprocess.run(command, check=True)
    assert not [pid for pid in children if is_alive(pid)]
    convert(paths, tmp_path / "whole.cells", n_processes=1, cells_per_shard=3, progress=False)
    assert tree(out) == tree(tmp_path / "whole.cells")


def children_of(pid):
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
