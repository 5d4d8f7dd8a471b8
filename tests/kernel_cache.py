"""numba's cache of the compiled kernels, kept between runs of the tests and shared by clones of the repository.

numba notices a change of the file of a kernel, but not of a kernel that it calls in another file. Therefore the folder
of the cache is named by a hash of all kernels, and of what else changes the compiled code.
"""

import hashlib
import os
import re
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "scdataloader" / "kernels"
DAYS_KEPT = 14


def keep_between_runs():
    """Set the options of numba for this process and its children; call it before numba is imported."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return  # chosen by the user, or by the process that started this one
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scdataloader"
    folder = base / f"numba-{key(KERNELS)}"
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()
    for other in base.glob("numba-*"):
        if time.time() - other.stat().st_mtime > DAYS_KEPT * 24 * 3600:
            shutil.rmtree(other, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    os.environ["NUMBA_CACHE_LOCATOR_CLASSES"] = "tests.kernel_cache_locator.Locator"


def key(kernels):
    """Hash of the sources of all kernels, the versions of numba and Python, and numba's options."""
    options = {name: value for name, value in os.environ.items() if re.match("NUMBA_(?!CACHE_)", name)}
    found = hashlib.sha256(repr((version("numba"), version("llvmlite"), sys.version, sorted(options.items()))).encode())
    for path in sorted(kernels.rglob("*.py")):
        found.update(repr((str(path.relative_to(kernels)), path.read_bytes())).encode())
    return found.hexdigest()[:16]
