"""Fixtures shared by several test files: the real data folder, and a lamindb instance on demand."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import anndata as ad
import pytest
from hypothesis import settings

from tests import kernel_cache

kernel_cache.keep_between_runs()

# No deadlines: the first call of a kernel compiles it.
# A hundred times as many examples, random ones, for tests/store/test_fuzz.py. Registered before the profile "default",
# from which it would inherit.
settings.register_profile("nightly", deadline=None, max_examples=10_000)
# The same examples in every run.
settings.register_profile("default", deadline=None, derandomize=True)

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"

# Processes that tests start import the package and the helpers of the tests from this folder.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

# lamindb reads these when a test module imports it, which is before any fixture.
# The closed port on loopback makes a stray network call fail at once.
_LAMIN_ROOT = Path(tempfile.mkdtemp(prefix="scdataloader-lamin-"))
atexit.register(shutil.rmtree, _LAMIN_ROOT, ignore_errors=True)
os.environ["LAMIN_SETTINGS_DIR"] = str(_LAMIN_ROOT)
os.environ["LAMIN_CACHE_DIR"] = str(_LAMIN_ROOT / "cache")
os.environ["AWS_MAX_ATTEMPTS"] = "1"
os.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"
os.environ.pop("LAMIN_CURRENT_INSTANCE", None)

# The processes of pytest-xdist share the cores. Threads of torch are waited for actively, and would delay each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests of files do not depend on what other runs have opened.
os.environ.setdefault("SCDATALOADER_OPENED_SIZE", "0")

# anndata warns about its own defaults for zarr.
ad.settings.zarr_write_format = 3
ad.settings.auto_shard_zarr_v3 = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run first the files that need a lamindb instance that no other test has filled, then those with slow tests.

    Files are shared out to the processes of pytest-xdist in this order, so that no process ends long after the others.
    """
    fresh, slow = (
        {item.path for item in items if item.get_closest_marker(marker)} for marker in ("fresh_instance", "slow")
    )
    items.sort(key=lambda item: (item.path not in fresh, item.path not in slow))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real files; tests that use it are skipped where it is missing."""
    if not DATA.is_dir():
        pytest.skip(f"no real data: {DATA} does not exist")
    return DATA


@pytest.fixture(scope="session")
def lamin() -> Iterator[ModuleType]:
    """The module `lamindb`, connected to a fresh SQLite instance with bionty, without network."""
    import lamindb_setup

    root = _LAMIN_ROOT / "instance"
    root.mkdir()
    before = Path.cwd()
    os.chdir(root)  # lamindb marks the working directory as a project of the instance
    try:
        # the name is unique: an equal one would silently connect to the other instance
        lamindb_setup.init(storage=str(root / "db"), name=f"scdataloader-test-{uuid.uuid4().hex[:8]}", modules="bionty")
    finally:
        os.chdir(before)
    # without this, registering a file that lies outside the storage asks hub.lamin.ai
    lamindb_setup.settings.instance._is_on_hub = False
    import lamindb

    lamindb.settings.verbosity = "error"
    yield lamindb
    from django.db import connections

    connections.close_all()
    shutil.rmtree(root, ignore_errors=True)
