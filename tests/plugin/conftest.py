"""The package of a third party, installed next to scdataloader for the tests of this folder."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scdataloader import registry

PACKAGE = Path(__file__).parent / "package"


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The folder into which pip has installed the package."""
    source, target = tmp_path_factory.mktemp("build") / "toyplugin", tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE, source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(autouse=True, scope="module")
def toyplugin(installed):
    """The package is on the path of this process and of those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(installed))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")])))
        registry._entry_points.cache_clear()
        yield
    registry._entry_points.cache_clear()
    importlib.invalidate_caches()
    # Its modules stay: jsonargparse imports all subclasses of LightningModule again to find one by its short name.


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Runs write into a folder of their own."""
    monkeypatch.chdir(tmp_path)
