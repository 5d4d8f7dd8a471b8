"""Where numba's cache keeps a compiled kernel: at the same place for every clone of the repository."""

import fcntl
from pathlib import Path

from numba.core.caching import IndexDataCacheFile, UserProvidedCacheLocator


class Locator(UserProvidedCacheLocator):
    """numba's own locator names a folder by its absolute path; this one, a folder of the package by its name."""

    @classmethod
    def get_suitable_cache_subpath(cls, py_file):
        folders = Path(py_file).parts[:-1]
        if "scdataloader" not in folders:
            return super().get_suitable_cache_subpath(py_file)
        package = len(folders) - 1 - folders[::-1].index("scdataloader")
        return "-".join(folders[package:])


def save_alone(self, key, data, save=IndexDataCacheFile.save):
    """Save under a lock: two processes that save two signatures of one kernel would choose the same file for both."""
    with (Path(self._cache_path) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        save(self, key, data)


IndexDataCacheFile.save = save_alone
