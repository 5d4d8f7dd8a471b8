"""Options of memory and of reading remote data, which the environment sets."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_SIZE = re.compile(r"([0-9.]+)\s*([KMGT]?)I?B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_LEAST = 64 << 20
_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteOptions:
    """How remote data are read."""

    cache: Path
    """``SCDATALOADER_CACHE``: folder of the caches; by default "scdataloader" in the user's folder of caches."""
    cache_size: int | None
    """``SCDATALOADER_CACHE_SIZE``: most bytes on disk of all caches in that folder, such as "200GB"; None for half of
    what is free and used by them."""
    requests: int
    """``SCDATALOADER_REQUESTS``: requests in flight of one process."""

    @classmethod
    def of_environment(cls) -> Self:
        """Read the environment.

        Raises:
            ValueError: a variable has an impossible value.
        """
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "scdataloader"
        return cls(
            cache=Path(os.environ.get("SCDATALOADER_CACHE") or usual).expanduser().absolute(),
            cache_size=stated_bytes("SCDATALOADER_CACHE_SIZE", _LEAST),
            requests=_whole("SCDATALOADER_REQUESTS", 128),
        )

    def limit(self, folder: Path, used: int) -> int:
        """Most bytes of all caches in ``folder``, which have ``used`` bytes now."""
        if self.cache_size is not None:
            return self.cache_size
        return int(_SHARE * (shutil.disk_usage(folder).free + used))


def _whole(name: str, usual: int) -> int:
    text = os.environ.get(name, str(usual))
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{name} is {text!r}; set it to a whole number of 1 or more, or remove it")
    return int(text)


def stated_bytes(name: str, least: int) -> int | None:
    """Bytes that a variable of the environment states, such as "200GB"; None if it is not set.

    Raises:
        ValueError: it states no size, or one below ``least``.
    """
    text = os.environ.get(name)
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    try:
        n_bytes = int(float(found[1]) * _UNITS[found[2].upper()]) if found else -1
    except ValueError:
        n_bytes = -1
    if n_bytes < least:
        raise ValueError(
            f"{name} is {text!r}; set it to {least >> 20} MB or more, with a unit, such as '200GB', or remove it"
        )
    return n_bytes
