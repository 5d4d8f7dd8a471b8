"""What to say where a file of a store cannot be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scdataloader.errors import StoreWriteError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes to a file or folder, and to nothing else.

    Raises:
        StoreWriteError: it cannot be written; names it, and says why.
    """
    try:
        yield
    except StoreWriteError:
        raise
    except OSError as error:
        raise StoreWriteError(error.errno, f"cannot write {path}: {error.strerror or error}") from error
