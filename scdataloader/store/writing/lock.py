"""Lock of a folder for one conversion or export at a time; it ends with the processes that hold it."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

from scdataloader.runtime.files import try_lock, writing

LOCK = "conversion.lock"
_PATIENCE = 5.0
"""Seconds that the processes of a killed conversion have to end."""


class ConversionStoppedError(RuntimeError):
    """A task is running although its conversion has ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Right of a conversion to write into a folder, which its tasks share on all machines."""

    path: Path
    """The lock file. All tasks lock it, and it contains the token as long as the conversion runs."""
    token: str
    """Random text that identifies the conversion."""

    def check(self) -> None:
        """Raise unless the conversion is still running.

        Raises:
            ConversionStoppedError: it has failed, was interrupted, or was replaced by another one.
        """
        try:
            found = self.path.read_text(encoding="ascii")
        except FileNotFoundError:
            found = ""
        if found != self.token:
            raise ConversionStoppedError(f"the conversion into {self.path.parent} has been stopped")

    def stop(self) -> None:
        """Make all tasks end at their next `check`."""
        with suppress(FileNotFoundError):
            os.truncate(self.path, 0)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock for a task, so that no other conversion begins while its process lives.

        Raises:
            ConversionStoppedError: the conversion has ended, or this machine does not have its folder.
        """
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ConversionStoppedError(
                f"the conversion into {self.path.parent} has been stopped, or {gethostname()} does not have this folder"
            ) from error
        try:
            if not try_lock(descriptor, shared=True):
                raise ConversionStoppedError(f"another conversion into {self.path.parent} has begun")
            self.check()
            yield
        finally:
            os.close(descriptor)


@contextmanager
def claimed(folder: Path, lock: str = LOCK, what: str = "conversion") -> Iterator[Claim]:
    """Lock a folder for one process. It is created if missing, and then removed if it is empty at the end.

    Args:
        folder: The folder.
        lock: Name of the lock file in it.
        what: What the process does, for messages.

    Raises:
        RuntimeError: another process has locked it.
        WriteError: the folder cannot be created or written to.
    """
    path, is_new = folder / lock, not folder.exists()
    refusal = (
        f"another {what}, or a task of an interrupted one, is writing into {folder}; wait until it has ended, or name "
        "another folder"
    )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _exclusive(path, refusal)
    claim, is_ours = Claim(path=path, token=secrets.token_hex(16)), True
    try:
        with writing(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, claim.token.encode("ascii"), 0)
        is_ours = try_lock(descriptor, shared=True)  # from here on, tasks can share it
        if not is_ours:
            raise RuntimeError(refusal)
        yield claim
    finally:
        if is_ours:
            os.ftruncate(descriptor, 0)
            if try_lock(descriptor):  # no task is left
                path.unlink(missing_ok=True)
                if is_new:
                    with suppress(OSError):  # not empty
                        folder.rmdir()
        os.close(descriptor)


def _exclusive(path: Path, refusal: str) -> int:
    deadline = time.monotonic() + _PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if try_lock(descriptor):
            if _is_at(descriptor, path):
                return descriptor
            os.close(descriptor)  # another conversion has just ended and removed it
            continue
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise RuntimeError(refusal)
        time.sleep(0.05)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
