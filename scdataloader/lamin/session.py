"""Sessions with the connected lamindb instance: quiet, without the network, with translated errors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

if TYPE_CHECKING:
    from types import ModuleType

ANONYMOUS = "anonymous"
"""Owner of the instances of users who have not logged in to lamindb's hub."""
TRASH, MAIN = -1, 1
"""lamindb's branches of records in the trash and of all others."""


@contextmanager
def session() -> Iterator[ModuleType]:
    """Yield the module ``lamindb``, set to report errors only and to leave its hub alone.

    Raises:
        RuntimeError: no instance is connected, none has the name in LAMIN_CURRENT_INSTANCE, or the database does not
            answer or is locked.
        PermissionError: a bucket refuses the credentials.
        ConnectionError: a bucket, a download or lamindb's hub cannot be reached.
    """
    check_connected()
    with quiet(), translate_errors():
        import lamindb

        off_the_hub()
        before = lamindb.settings.verbosity
        lamindb.settings.verbosity = "error"
        try:
            yield lamindb
        finally:
            lamindb.settings.verbosity = before


def check_connected() -> None:
    """Check that an instance is connected.

    Raises:
        RuntimeError: no instance is connected.
    """
    import lamindb_setup

    if not lamindb_setup.settings.is_configured:
        raise RuntimeError(
            "no lamindb instance is connected here; make one with `scdataloader instance init --storage <folder>`, "
            "or connect to one with `scdataloader instance connect <name>`"
        )


def check_bionty() -> None:
    """Check that the connected instance has registries of ontologies and genes.

    Raises:
        RuntimeError: the instance was made without bionty.
    """
    import lamindb_setup

    if "bionty" not in lamindb_setup.settings.instance.modules:
        raise RuntimeError(
            "the connected lamindb instance was made without bionty, which holds ontologies and genes; make another "
            "with `scdataloader instance init`"
        )


def local_roots() -> list[Path]:
    """Local storages of the connected instance, whose files are registered in place."""
    import lamindb

    roots = lamindb.Storage.filter(type="local").order_by("id").values_list("root", flat=True)
    return [Path(root).resolve() for root in roots]


def local_storage() -> Path:
    """The default storage of the connected instance.

    Raises:
        RuntimeError: no instance is connected, or its storage is not on this machine.
    """
    with session() as lamindb:
        storage = lamindb.settings.storage
        if storage.type != "local":
            raise RuntimeError(
                f"the storage of the instance is {storage.root_as_str}, not a local folder; give an output folder"
            )
        return Path(storage.root_as_str)


def off_the_hub() -> None:
    """Keep lamindb from querying its hub, which needs the network, about an instance of an anonymous owner."""
    import lamindb_setup

    instance = lamindb_setup.settings.instance
    if instance.owner == ANONYMOUS:
        instance._is_on_hub = False  # noqa: SLF001 (no public equivalent)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lamindb's log, except errors."""
    import lamindb_setup

    logger: Any = lamindb_setup.logger
    with logger.mute():
        yield


@contextmanager
def translate_errors() -> Iterator[None]:
    """Translate errors of databases, buckets and the network into one line with a remedy; see `session`."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from django.db.utils import OperationalError
    from lamindb_setup.errors import InstanceNotFoundError

    try:
        yield
    except InstanceNotFoundError as error:
        named = os.environ.get("LAMIN_CURRENT_INSTANCE")
        which = f"instance {named!r}, which LAMIN_CURRENT_INSTANCE names" if named else "instance of this name"
        raise RuntimeError(
            f"lamindb finds no {which} ({_first_line(error)}); correct the name, or create the instance with "
            "`scdataloader instance init`"
        ) from error
    except URLError as error:
        raise ConnectionError(
            f"the hub of lamindb cannot be reached ({error.reason}); check the network, and the name in "
            "LAMIN_CURRENT_INSTANCE: those of this machine are found without the network"
        ) from error
    except OperationalError as error:
        raise RuntimeError(_database_message(str(error))) from error
    except (NoCredentialsError, PermissionError, ClientError) as error:
        if not _is_of_a_bucket(error):
            raise
        raise PermissionError(
            f"the bucket refuses these credentials ({_first_line(error)}); check AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and their permissions to list, read and write"
        ) from error
    except BotoCoreError as error:
        raise ConnectionError(
            f"the bucket cannot be reached ({_first_line(error)}); check the network and the endpoint_url of the "
            "storage"
        ) from error


def _database_message(reason: str) -> str:
    if "locked" in reason:
        return (
            "the SQLite database of the lamindb instance is locked by another process that writes to it; wait and run "
            "the same command again, or use Postgres, which has concurrent writers"
        )
    if "no such table" in reason:
        return (
            f"the SQLite database of the lamindb instance is missing or damaged ({reason}); restore it, or make the "
            "instance again with `scdataloader instance init`"
        )
    return (
        f"the database of the lamindb instance does not answer ({reason.splitlines()[0]}); check the server, and the "
        "--db that the instance was made with"
    )


def _is_of_a_bucket(error: Exception) -> bool:
    # the PermissionError that s3fs raises has no file name
    return not isinstance(error, PermissionError) or error.filename is None


def _first_line(error: Exception) -> str:
    return re.split(r"[\r\n]", str(error).strip() or type(error).__name__)[0]
