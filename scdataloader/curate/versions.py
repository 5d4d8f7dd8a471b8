"""A file for each version of an artifact: curation writes a file's cells to the same place again and again."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from scdataloader.lamin_session import local_roots

if TYPE_CHECKING:
    from lamindb import Artifact

FOLDER = "versions"
"""Next to curated files in a storage of the instance; each version of each has a folder of its own there."""


class Versions:
    """Within, files for artifacts are made, which are taken away again after an error. The files given stay."""

    def __init__(self) -> None:
        self._made: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            for path in self._made:
                _remove(path)

    def file(self, output: Path) -> Path:
        """What to register for a curated file: in a storage of the instance a hard link to it; elsewhere itself.

        What is written to the place of the curated file later does not touch what is linked. It takes no room on disk,
        but where the file system has no hard links, and the file is copied.

        Raises:
            FileNotFoundError: the file is gone.
        """
        if not any(output.resolve().is_relative_to(root) for root in local_roots()):
            return output
        version = output.parent / FOLDER / secrets.token_hex(6) / output.name
        version.parent.mkdir(parents=True)
        self._made.append(version)
        try:
            version.hardlink_to(output)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copy2(output, version)
        return version

    def note(self, artifact: Artifact) -> None:
        """Note where the file of a new artifact, which was saved, is now: lamindb may have copied it."""
        if artifact.path not in self._made:
            self._made.append(artifact.path)

    def drop(self, file: Path) -> None:
        """Take back what `file` has made: there is an artifact with the same content already."""
        if file in self._made:
            self._made.remove(file)
            _remove(file)


def _remove(path: Any) -> None:
    path.unlink(missing_ok=True)
    if path.parent.parent.name == FOLDER:
        path.parent.rmdir()
