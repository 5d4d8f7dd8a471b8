"""Folders of curated files in buckets: written in a folder of this machine, then uploaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from scdataloader.curation.ledger import LEDGER
from scdataloader.curation.report import REPORT, Outcome
from scdataloader.runtime.buckets import Bucket, RemotePath, staging_folder
from scdataloader.runtime.files import write_atomically
from scdataloader.runtime.progress import progress_bar

_NOTE = "bucket.json"
"""File beside the folder: {name: [ETag, time of change of the file in the folder]} of what the bucket has."""


class StagedFolder:
    """A folder into which files are curated before they are uploaded.

    Curated files that the bucket has already are empty here, but of the right size.
    """

    def __init__(self, bucket: Bucket, base: Path) -> None:
        self._bucket, self._note, self.folder = bucket, base / _NOTE, base / "curated"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._there: dict[str, list[object]] = json.loads(self._note.read_bytes()) if self._note.exists() else {}
        states = {state.path: state for state in bucket.listed()}
        for name in [name for name in self._there if name not in states]:
            del self._there[name]
        for name, state in states.items():
            path = self.folder / name
            if "/" in name or path.exists():
                continue
            if name == LEDGER:
                bucket.download(name, path)
            elif name.endswith(".h5ad"):
                with path.open("wb") as file:
                    file.truncate(state.n_bytes)
            else:
                continue
            self._there[name] = [state.etag, path.stat().st_mtime_ns]
        self._save()

    def upload(self, outcomes: Sequence[Outcome], *, shown: bool) -> list[Outcome]:
        """Upload what is new, the ledger last, and remove outputs that are gone; the outcomes with URLs of outputs."""
        files = {path.name: path for path in self.folder.glob("*.h5ad")}
        new = [name for name, path in files.items() if self._there.get(name, [0, 0])[1] != path.stat().st_mtime_ns]
        with progress_bar("uploading", sum(files[name].stat().st_size for name in new), shown=shown) as advance:
            for name in [*sorted(new), REPORT, LEDGER]:
                path = self.folder / name
                if not path.exists():
                    continue
                state = self._bucket.upload(path, name)
                self._there[name] = [state.etag, path.stat().st_mtime_ns]
                self._save()
                advance(state.n_bytes if name in files else 0)
        gone = [name for name in self._there if name.endswith(".h5ad") and name not in files]
        self._bucket.remove(gone)
        return [
            outcome
            if outcome.output is None
            else replace(outcome, output=RemotePath(self._bucket.url_of(outcome.output.name)))
            for outcome in outcomes
        ]

    def _save(self) -> None:
        write_atomically(self._note, json.dumps(self._there).encode())


@contextmanager
def staged(url: str) -> Iterator[StagedFolder]:
    """Yield a folder for the curated files of a bucket; it is removed at the end, unless there is an error.

    Raises:
        ValueError: it is a web server.
        ConnectionError: the bucket does not answer; the same command continues.
    """
    base = staging_folder(url, "curated-")
    try:
        yield StagedFolder(Bucket.open(url), base)
    except ConnectionError as error:
        raise ConnectionError(
            f"{error}; curated files are kept in {base}: rerun the same command to continue"
        ) from None
    shutil.rmtree(base)
