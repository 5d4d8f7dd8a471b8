"""Where numba's cache keeps a compiled kernel: at the same place for every clone of the repository."""

from pathlib import Path

from numba.core.caching import UserProvidedCacheLocator


class Locator(UserProvidedCacheLocator):
    """numba's own locator names a folder by its absolute path; this one, a folder of the package by its name."""

    @classmethod
    def get_suitable_cache_subpath(cls, py_file):
        folders = Path(py_file).parts[:-1]
        if "scdataloader" not in folders:
            return super().get_suitable_cache_subpath(py_file)
        package = len(folders) - 1 - folders[::-1].index("scdataloader")
        return "-".join(folders[package:])
