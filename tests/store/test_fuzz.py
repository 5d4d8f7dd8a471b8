"""Whatever the bytes of a store are: reading it gives what was written, or our error; never a signal, never nonsense.

``pytest tests/store/test_fuzz.py --hypothesis-profile=nightly -o faulthandler_timeout=0`` tries a hundred times as many
cases, which takes half an hour. With ``NUMBA_BOUNDSCHECK=1`` in the environment, numba checks every index as
well.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.fuzz_files import EXTREMES, HOW, sealed
from tests.store.stores import given_counts, given_floats, make_store, twins

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TIMES = settings().max_examples / 100
"""1, or 100 in the nightly profile."""
LONGEST = 30
"""Seconds after which a case counts as hanging."""


class Child:
    """The process in which cases run; started anew after one that ended it."""

    def __init__(self, store, folder, **environment):
        self.store, self._folder, self._environment = store, folder, environment
        self._n_started = 0
        self._process = None
        self.said = Counter()

    def _start(self):
        self._n_started += 1
        self._process = subprocess.Popen(
            [sys.executable, HERE / "fuzz_child.py", self.store, self._folder / str(self._n_started)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self._environment},
        )
        assert self._answer(600) == {"said": "ready"}

    def _answer(self, seconds):
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self.stop()
            return {"failed": f"it hangs: no answer for {seconds} s"}
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self.stop()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"failed": f"it ended the process: {name}"}

    def run(self, case):
        if self._process is None:
            self._start()
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        answer = self._answer(LONGEST)
        if "failed" in answer:
            pytest.fail(answer["failed"])
        self.said[answer["said"].split(":")[0]] += 1
        return answer["said"]

    def stop(self):
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _stores(folder):
    yield make_store(folder / "by source", [*twins("a", 6, 400, 0), given_counts("b", 5, 700, 1)])
    yield make_store(folder / "mixed", [given_counts("c", 7, 500, 2), given_counts("d", 5, 700, 3)], mixed=True)
    yield make_store(folder / "floats", [given_floats("e", 8, 300, 4)])


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    made = [Child(store, folder / f"work {number}") for number, store in enumerate(_stores(folder))]
    yield made
    for child in made:
        child.stop()
    said = sum((child.said for child in made), Counter())
    # of the few that come out unharmed, some hit nothing that is read, and in some two changes cancel out
    assert said["refused"] > said["equal"]


def cases(n):
    return settings(
        max_examples=round(n * TIMES),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


numbers = st.sampled_from(EXTREMES) | st.integers(-16, 16).map(lambda n: n % (1 << 64)) | st.integers(0, (1 << 64) - 1)
somewhere = st.integers(0, 1 << 20)


changes = {
    "how": st.sampled_from(["to", "by", "like"]),
    "at": somewhere,
    "value": numbers,
    "from": somewhere,
}


def steps(operations, among=""):
    return st.fixed_dictionaries(
        {"op": st.sampled_from(operations), "file": st.integers(0, 20), "among": st.just(among), **changes}
    )


ANY = ["flip", "byte", "place", "cut", "extend", "splice", "swap", "delete"]
damages = st.lists(
    steps(ANY) | steps([*ANY[:2], *["place"] * 3], "shards/") | steps(["splice", "swap"], "shards/"),
    min_size=1,
    max_size=3,
)


@cases(350)
@given(which=st.integers(0, 2), damage=damages, how=st.sampled_from(HOW))
def test_damage_of_any_file_is_refused_or_changes_nothing(children, which, damage, how):
    children[which].run({"steps": damage, "seal": None, "how": how})


@cases(200)
@given(which=st.integers(0, 2), damage=damages, how=st.sampled_from(HOW), seal=st.sampled_from(["files", "records"]))
def test_damage_that_no_checksum_shows_ends_in_an_error_or_in_other_values(children, which, damage, how, seal):
    children[which].run({"steps": damage, "seal": seal, "how": how})


@pytest.mark.slow
@cases(1500)
@given(
    which=st.integers(0, 2),
    sample=st.integers(-6, 19),
    damage=st.lists(st.fixed_dictionaries(changes), min_size=1, max_size=3),
    longer=st.integers(-3, 3) | st.just(0),
    size=st.integers(-1, 1) | st.integers(-1 << 20, 1 << 20),
)
def test_decoders_stay_within_their_memory(children, which, sample, damage, longer, size):
    children[which].run({"sample": sample, "steps": damage, "longer": longer, "size": size})


scalars = (
    st.none()
    | st.booleans()
    | numbers
    | st.sampled_from([-1, -(1 << 63), 10**30, 1.5, -0.0, float("nan"), float("inf"), 1e300])
    | st.sampled_from(["", ".", "..", "/etc/passwd", "../../etc/passwd", "shards/../../x", "shards/00000.cells\n"])
    | st.sampled_from(
        ["obs/00000.parquet", "shards/00000.cells", "shards/00001.cells", "manifest.json", "\ud800", "0" * 32]
    )
    | st.text(max_size=8)
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@st.composite
def manifests(draw, store):
    """The manifest of a store with one or two of its parts replaced, removed, added or repeated."""
    found = json.loads((store / "manifest.json").read_bytes())
    seal = draw(st.booleans())
    for _ in range(draw(st.integers(1, 2))):
        node = found
        while True:
            keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and draw(st.integers(0, 4)):
                node = node[key]
                continue
            how = draw(st.sampled_from(["replace"] * 4 + ["remove", "add", "repeat"]))
            if how == "remove":
                del node[key]
            elif how == "add" and isinstance(node, dict):
                node[draw(st.text(max_size=5))] = draw(anything)
            elif how == "repeat" and isinstance(node, list):
                node.append(node[key])
            else:
                node[key] = draw(anything)
            break
    return (sealed(found).decode(), "by itself") if seal else (json.dumps(found, indent=1), None)


@cases(250)
@given(data=st.data(), which=st.integers(0, 2), how=st.sampled_from(HOW))
def test_whatever_a_manifest_says_it_is_refused_or_read(children, data, which, how):
    manifest, seal = data.draw(manifests(children[which].store))
    children[which].run({"steps": [], "seal": seal, "how": how, "manifest": manifest})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "null",
        "[]",
        '"x"',
        "1",
        '{"version": 1}',
        '{"version": 2}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 10_000,
    ],
)
def test_what_is_no_manifest_is_refused(children, content):
    said = children[0].run({"steps": [], "seal": None, "how": "sources", "manifest": content})
    assert said.startswith("refused:")
    assert "manifest.json" in said
