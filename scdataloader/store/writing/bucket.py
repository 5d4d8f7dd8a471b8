"""Stores in buckets: written in a folder of this machine, then uploaded, the manifest last."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from scdataloader.errors import StoreFormatError
from scdataloader.runtime.buckets import Bucket, ObjectState, RemotePath, staging_folder
from scdataloader.runtime.files import write_atomically, writing
from scdataloader.runtime.progress import progress_bar
from scdataloader.store.manifest import MANIFEST, FileRecord, Manifest
from scdataloader.store.writing.lock import claimed
from scdataloader.store.writing.plan import is_own_file

_THREADS = 4
"""Files that are uploaded at once, each in several parts."""
_NOTHING = "nothing"

logger = logging.getLogger(__name__)


class StagedStore:
    """A folder in which a store of a bucket is converted, or appended to, before it is uploaded.

    Of a store that is in the bucket, the folder has the manifest, the gene spaces and the gene index; its other files
    are empty, of the right size. Beside the folder, ``before.txt`` has the digest of the manifest in the bucket when
    the conversion began, and ``uploaded.json`` what was uploaded, so that another try can continue.
    """

    def __init__(self, bucket: Bucket, base: Path) -> None:
        """Compare the folder with the bucket.

        Raises:
            FileExistsError: there are other objects than those of a store.
        """
        self._bucket, self._base = bucket, base
        self.folder = base / bucket.url.rpartition("/")[2]
        self._objects = {state.path: state for state in bucket.listed()}
        self._there: Manifest | None = None
        before = _NOTHING
        if MANIFEST in self._objects:
            content = bucket.read(MANIFEST)
            before = _digest(content)
            self._there = Manifest.parsed(content, RemotePath(bucket.url_of(MANIFEST)))
            self._begin(before)
            if not (self.folder / MANIFEST).exists():
                self._fetch(content, self._there)
        else:
            foreign = [path for path in self._objects if not is_own_file(path)]
            if foreign:
                raise FileExistsError(
                    f"{bucket.url} holds {len(foreign)} other objects ({foreign[0]}), and no store; choose another URL"
                )
            self._begin(before)

    @property
    def url(self) -> str | None:
        """URL of the store, if the folder has the same manifest; None if it has another, or the bucket none."""
        manifest = self.folder / MANIFEST
        is_same = manifest.exists() and (self._base / "before.txt").read_text() == _digest(manifest.read_bytes())
        return self._bucket.url if is_same else None

    def _begin(self, before: str) -> None:
        """Discard what was converted when the bucket had another content."""
        note = self._base / "before.txt"
        if note.exists() and note.read_text() != before:
            if self.folder.exists():
                logger.warning("%s was written since its conversion was interrupted: starting over", self._bucket.url)
            shutil.rmtree(self.folder, ignore_errors=True)
        with writing(note):
            write_atomically(note, before.encode())

    def _fetch(self, content: bytes, manifest: Manifest) -> None:
        read = {space.file.path for space in manifest.spaces}
        read |= {file.path for file in manifest.gene_index}
        for file in manifest.files:
            path = self.folder / file.path
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as empty:
                    empty.truncate(file.n_bytes)
            if file.path in read:
                self._bucket.download(file.path, path)
        with writing(self.folder):
            write_atomically(self.folder / MANIFEST, content)

    def upload(self, manifest: Manifest, *, shown: bool) -> None:
        """Upload the store in the folder, unless the bucket has it already; then remove what is not part of it.

        Raises:
            ConnectionError: the server does not answer; what was uploaded is not uploaded again.
            FileExistsError, SourceChangedError: another conversion has written to the bucket.
        """
        content = (self.folder / MANIFEST).read_bytes()
        if (self._base / "before.txt").read_text() == _digest(content):
            return
        kept = set() if self._there is None else {file.path for file in self._there.files}
        new = [file for file in manifest.files if file.path not in kept]
        done = self._noted()
        missing = [
            file for file in new if file.path not in done or done[file.path] != _state(self._objects.get(file.path))
        ]
        n_bytes = sum(file.n_bytes for file in missing)
        lock = threading.Lock()
        with progress_bar("uploading", n_bytes, shown=shown) as advance, ThreadPoolExecutor(_THREADS) as threads:

            def upload(file: FileRecord) -> None:
                state = self._bucket.upload(self.folder / file.path, file.path)
                with lock:
                    done[file.path] = [state.n_bytes, state.etag]
                    write_atomically(self._base / "uploaded.json", json.dumps(done).encode())
                    advance(file.n_bytes)

            for future in [threads.submit(upload, file) for file in missing]:
                future.result()
        self._check(manifest)
        there = self._objects.get(MANIFEST)
        self._bucket.replace(MANIFEST, content, None if there is None else there.etag)
        named = {MANIFEST, *(file.path for file in manifest.files)}
        self._bucket.remove([path for path in self._objects if is_own_file(path) and path not in named])

    def _noted(self) -> dict[str, list[int | str | None]]:
        note = self._base / "uploaded.json"
        found: dict[str, list[int | str | None]] = json.loads(note.read_bytes()) if note.exists() else {}
        return found

    def _check(self, manifest: Manifest) -> None:
        """Check that the bucket has all files."""
        sizes = {state.path: state.n_bytes for state in self._bucket.listed()}
        for file in manifest.files:
            if sizes.get(file.path) != file.n_bytes:
                raise StoreFormatError(
                    f"{self._bucket.url_of(file.path)} has {sizes.get(file.path, 0):,} bytes after the upload, "
                    f"expected {file.n_bytes:,}; run the same command again"
                )


@contextmanager
def staged(url: str) -> Iterator[StagedStore]:
    """Yield the folder of a store of a bucket; it is removed at the end, unless an error leaves what can be continued.

    Raises:
        RuntimeError: another conversion on this machine writes to the same URL.
        ValueError: it is a web server.
    """
    base = staging_folder(url)
    with claimed(base, "lock"):
        stage = StagedStore(Bucket.open(url), base)
        try:
            yield stage
        except BaseException as error:
            if not stage.folder.exists():
                shutil.rmtree(base, ignore_errors=True)
            elif isinstance(error, FileExistsError):
                raise FileExistsError(str(error).replace(str(stage.folder), url)) from None
            elif isinstance(error, ConnectionError):
                raise ConnectionError(
                    f"{error}; what was converted is kept in {stage.folder}: rerun the same command to continue"
                ) from None
            raise
        shutil.rmtree(base, ignore_errors=True)


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _state(state: ObjectState | None) -> list[int | str | None] | None:
    return None if state is None else [state.n_bytes, state.etag]
