"""The cache of compiled kernels is shared by clones, and by nothing that compiles other code."""

import os
import subprocess
import sys

import pytest

from tests import kernel_cache

KERNEL = """
import numba
import numpy

@numba.njit(cache=True)
def double(x):
    return 2 * x

assert double(21) == 42
print(sum(double.stats.cache_hits.values()))
"""


@pytest.fixture
def kernels(tmp_path):
    folder = tmp_path / "kernels"
    (folder / "rows").mkdir(parents=True)
    (folder / "rows" / "a.py").write_text("a = 1")
    (folder / "b.py").write_text("b = 1")
    return folder


def test_the_key_names_sources_versions_and_options(kernels, monkeypatch):
    before = kernel_cache.key(kernels)
    (kernels / "b.py").touch()
    (kernels / "rows" / "notes.txt").write_text("no kernel")
    assert kernel_cache.key(kernels) == before
    keys = [before]
    (kernels / "b.py").write_text("b = 2")
    keys.append(kernel_cache.key(kernels))
    (kernels / "rows" / "a.py").rename(kernels / "rows" / "c.py")
    keys.append(kernel_cache.key(kernels))
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    keys.append(kernel_cache.key(kernels))
    monkeypatch.setattr(kernel_cache, "version", lambda name: "0")
    keys.append(kernel_cache.key(kernels))
    assert len(set(keys)) == 5


def test_old_caches_are_removed_and_a_cache_that_is_chosen_is_kept(tmp_path, monkeypatch):
    base = tmp_path / "scdataloader"
    for name, days in [("numba-old", 15), ("numba-new", 13), ("notes", 15)]:
        (base / name).mkdir(parents=True)
        then = (base / name).stat().st_mtime - days * 24 * 3600
        os.utime(base / name, (then, then))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "chosen")
    kernel_cache.keep_between_runs()
    assert os.environ["NUMBA_CACHE_DIR"] == "chosen"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    kernel_cache.keep_between_runs()
    used = f"numba-{kernel_cache.key(kernel_cache.KERNELS)}"
    assert sorted(path.name for path in base.iterdir()) == sorted(["notes", "numba-new", used])
    assert os.environ["NUMBA_CACHE_DIR"] == str(base / used)


def test_a_kernel_is_compiled_once_for_all_clones(tmp_path):
    hits = []
    for clone in ("one", "two"):
        script = tmp_path / clone / "scdataloader" / "kernels" / "double.py"
        script.parent.mkdir(parents=True)
        script.write_text(KERNEL)
        options = {
            "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
            "NUMBA_CACHE_LOCATOR_CLASSES": "tests.kernel_cache_locator.Locator",
        }
        hits.append(int(subprocess.check_output([sys.executable, script], env=os.environ | options)))
    assert hits == [0, 1]
