"""The connected lamindb instance: quiet, off the network, and with errors that say what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

ANONYMOUS = "anonymous"
"""Owner of the instances of users who have not logged in to lamindb's hub."""
TRASH, MAIN = -1, 1
"""lamindb's branches of records that were deleted, but not for good, and of the others."""


@contextmanager
def session() -> Iterator[ModuleType]:
    """To write to an instance: the module ``lamindb``, which reports errors only and asks its hub nothing in vain.

    Raises:
        RuntimeError: no instance is connected, or its database does not answer or is locked.
        PermissionError: a bucket refuses the credentials.
        ConnectionError: a bucket or a download cannot be reached.
    """
    check_connected()
    with quiet(), told():
        import lamindb

        off_the_hub()
        before = lamindb.settings.verbosity
        lamindb.settings.verbosity = "error"
        try:
            yield lamindb
        finally:
            lamindb.settings.verbosity = before


def check_connected() -> None:
    """Before long work whose results are to be written to an instance.

    Raises:
        RuntimeError: none is connected.
    """
    import lamindb_setup

    if not lamindb_setup.settings.is_configured:
        raise RuntimeError(
            "no lamindb instance is connected here: make one with `scdataloader instance init --storage <folder>`, "
            "or choose one with `scdataloader instance connect <name>`"
        )


def check_bionty() -> None:
    """Before registries of the connected instance are filled or read.

    Raises:
        RuntimeError: the instance was made without bionty.
    """
    import lamindb_setup

    if "bionty" not in lamindb_setup.settings.instance.modules:
        raise RuntimeError(
            "the connected lamindb instance was made without bionty, which holds ontologies and genes: make another "
            "one with `scdataloader instance init`"
        )


def local_roots() -> list[Path]:
    """Folders whose files the connected instance registers where they lie."""
    import lamindb

    roots = lamindb.Storage.filter(type="local").order_by("id").values_list("root", flat=True)
    return [Path(root).resolve() for root in roots]


def local_storage() -> Path:
    """The folder that the connected instance has its files in.

    Raises:
        RuntimeError: no instance is connected, or its files are not on this machine.
    """
    with session() as lamindb:
        storage = lamindb.settings.storage
        if storage.type != "local":
            raise RuntimeError(
                f"the instance keeps its files in {storage.root_as_str}, which is no folder here: give out"
            )
        return Path(storage.root_as_str)


def off_the_hub() -> None:
    """Spare lamindb a question to its hub that needs a network: the hub knows no instance of an anonymous owner."""
    import lamindb_setup

    instance = lamindb_setup.settings.instance
    if instance.owner == ANONYMOUS:
        instance._is_on_hub = False  # noqa: SLF001 (there is no public way to say so)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lamindb's notes off the terminal, but for errors."""
    import lamindb_setup

    logger: Any = lamindb_setup.logger
    with logger.mute():
        yield


@contextmanager
def told() -> Iterator[None]:
    """Turn what databases, buckets and the network raise into one line that says what to do; see `session`."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from django.db.utils import OperationalError

    try:
        yield
    except OperationalError as error:
        raise RuntimeError(_database_message(str(error))) from error
    except (NoCredentialsError, PermissionError, ClientError) as error:
        if not _is_of_a_bucket(error):
            raise
        raise PermissionError(
            f"the bucket refuses these credentials ({_first_line(error)}): check AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and that they may list, read and write there"
        ) from error
    except BotoCoreError as error:
        raise ConnectionError(
            f"the bucket cannot be reached ({_first_line(error)}): check the network and the endpoint_url of the "
            "storage"
        ) from error


def _database_message(reason: str) -> str:
    if "locked" in reason:
        return (
            "the SQLite database of the lamindb instance is locked: another process is writing to it; wait for it and "
            "do the same again, or keep the instance on Postgres, where several may write"
        )
    if "no such table" in reason:
        return (
            f"the SQLite database of the lamindb instance is gone, or is none of lamindb's ({reason}): restore it, or "
            "make the instance again with `scdataloader instance init`"
        )
    return (
        f"the database of the lamindb instance does not answer ({reason.splitlines()[0]}): check that the server runs, "
        "and the --db that the instance was made with"
    )


def _is_of_a_bucket(error: Exception) -> bool:
    # s3fs turns a bucket's refusal into a PermissionError, which a folder's has an errno of
    return not isinstance(error, PermissionError) or error.filename is None


def _first_line(error: Exception) -> str:
    return re.split(r"[\r\n]", str(error).strip() or type(error).__name__)[0]
