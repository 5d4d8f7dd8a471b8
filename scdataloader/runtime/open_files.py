"""What to say where the process may open no more files."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def opening(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around the opening of a file, or its mapping.

    Raises:
        OSError: with ``errno`` EMFILE, where the process has too many files open; names the limit.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise OSError(
            errno.EMFILE,
            f"this process may have {limit} files open at once, and has (a mapped source keeps one, and so does each "
            f"shard of a store); raise the limit with `ulimit -n` before Python starts (here up to {most}), or close() "
            "sources that are not being read",
            os.fspath(path),
        ) from error
