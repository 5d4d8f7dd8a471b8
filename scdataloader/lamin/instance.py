"""Create lamindb instances and connect to them, offline."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scdataloader.lamin.session import ANONYMOUS, off_the_hub, quiet, translate_errors
from scdataloader.runtime.progress import spinner

LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 (nothing is bound)
"""Hosts of Postgres for which lamindb needs no account."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def init(storage: str | Path, *, name: str | None = None, db: str | None = None) -> str:
    """Create a lamindb instance with bionty and connect the working directory to it, offline.

    A repeated call connects to the existing instance.

    Args:
        storage: Local folder for artifacts, and for the database if that is SQLite; created if it does not exist.
        name: Name of the instance, unique for this user; None for the folder's name and a digest of storage and
            database.
        db: ``postgresql://user:password@host:port/database`` of an existing database; None for SQLite.

    Returns:
        The name of the instance, as ``<owner>/<name>``.

    Raises:
        ValueError: the storage is not a local folder, the name or the address of the database is not valid, an
            instance of this name has another storage or database, the storage belongs to another instance, or the host
            of the database is not local.
        RuntimeError: the database does not answer.
    """
    import lamindb_setup

    if "://" in str(storage):
        raise ValueError(
            f"{storage} is not a local folder, and lamindb can create an instance in a bucket only for hub users; give "
            "a local folder, and the bucket as --storage when registering"
        )
    folder = Path(storage).expanduser().absolute()
    if db is not None:
        _check_address(db)
    name = name or _own_name(folder, db)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a valid name of an instance; expected letters, digits, '-', '_' and '.'")
    with quiet(), translate_errors():
        owner = str(lamindb_setup.settings.user.handle)
        _check_host(db, owner)
        _check_unused(owner, name, folder, db)
        _check_answers(db)
        _make(folder, name, db)
        off_the_hub()
        _mark_here()
    return f"{owner}/{name}"


def _make(folder: Path, name: str, db: str | None) -> None:
    import lamindb_setup
    from lamindb_setup.errors import StorageAlreadyManaged

    tables = "; lamindb needs about a minute to create its tables in Postgres" if db else ""
    try:
        with spinner(f"creating the instance {name}{tables}", is_long=db is not None):
            lamindb_setup.init(storage=str(folder), name=name, db=db, modules="bionty")
    except StorageAlreadyManaged as error:
        raise ValueError(
            f"{folder} is the storage of another instance, perhaps of another user; give another folder, or to join "
            "that instance, copy its file instance--<owner>--<name>.env from that user's ~/.lamin to your own, and "
            "connect with `scdataloader instance connect <name>`"
        ) from error


def connect(name: str) -> str:
    """Connect the working directory, and all below it, to an instance that this user has created or joined.

    Args:
        name: ``<name>``, or ``<owner>/<name>``.

    Returns:
        The name of the instance, as ``<owner>/<name>``.

    Raises:
        LookupError: no instance has this name; lists the known ones.
        RuntimeError: its database is missing or does not answer.
    """
    import lamindb_setup

    with spinner(f"connecting to {name}"), quiet(), translate_errors():
        owner, _, short = name.rpartition("/")
        owner = owner or str(lamindb_setup.settings.user.handle)
        slug = f"{owner}/{short}"
        known = _known()
        if slug not in known and owner == ANONYMOUS:
            raise LookupError(
                f"no lamindb instance {slug} is known here (known: {', '.join(known) or 'none'}); create it, or join "
                "it on this machine, with `scdataloader instance init --name … --storage … [--db …]`"
            )
        try:
            lamindb_setup.connect(slug)
        except SystemExit as error:  # raised by lamindb
            raise RuntimeError(f"cannot connect to {slug}: {error}; restore it, or create another instance") from error
        off_the_hub()
        _mark_here()
    return slug


def _check_address(db: str) -> None:
    parts = urlsplit(db)
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or len(parts.path) <= 1:
        raise ValueError(
            f"{_without_password(db)} is not the address of a Postgres database; expected "
            "postgresql://user:password@host:port/database"
        )


def _check_host(db: str | None, owner: str) -> None:
    if db is None or owner != ANONYMOUS or urlsplit(db).hostname in LOCAL_HOSTS:
        return
    raise ValueError(
        f"the database is on {urlsplit(db).hostname}, and lamindb accepts databases on other machines only from users "
        "who are logged in to its hub (`lamin login`); without an account, forward a local port, as in "
        f"`ssh -N -L 5432:127.0.0.1:{urlsplit(db).port or 5432} {urlsplit(db).hostname}`, and give 127.0.0.1 as host"
    )


def _check_answers(db: str | None) -> None:
    """Check the database before lamindb writes files that it would leave behind."""
    if db is None:
        return
    import psycopg2

    try:
        psycopg2.connect(db, connect_timeout=10).close()
    except psycopg2.OperationalError as error:
        raise RuntimeError(
            f"the database {_without_password(db)} does not answer ({str(error).splitlines()[0]}); check the "
            "server, that the database exists (createdb), user and password"
        ) from error


def _check_unused(owner: str, name: str, folder: Path, db: str | None) -> None:
    """Refuse the name of another instance, to which lamindb would connect silently."""
    from lamindb_setup.core._settings_load import load_instance_settings
    from lamindb_setup.core._settings_store import instance_settings_file

    file = instance_settings_file(name, owner)
    if not file.exists():
        return
    there = load_instance_settings(file)
    its_storage, its_db = Path(there.storage.root_as_str), there._db  # noqa: SLF001 (the property db opens the database)
    if its_storage.resolve() != folder.resolve() or _place(its_db) != _place(db):
        raise ValueError(
            f"the instance {owner}/{name} exists, with its storage in {its_storage}"
            f"{f' and its database at {_without_password(its_db)}' if its_db else ''}; choose another --name, or "
            f"connect to it with `scdataloader instance connect {name}`"
        )


def _known() -> list[str]:
    """Names of the instances that this user has created or joined, sorted."""
    from lamindb_setup.core._settings_store import instance_settings_file

    pattern = instance_settings_file("*", "*")
    stems = (file.stem.split("--", 2) for file in pattern.parent.glob(pattern.name))
    return sorted(f"{owner}/{name}" for _, owner, name in stems)


def _mark_here() -> None:
    """Connect the working directory, as `lamin connect --here` does, unless it is the home directory."""
    import lamindb_setup

    if Path.cwd().resolve() != Path.home().resolve():
        lamindb_setup.settings.dev_dir = Path.cwd()


def _own_name(folder: Path, db: str | None) -> str:
    digest = hashlib.blake2b(f"{folder.resolve()} {_place(db)}".encode(), digest_size=4).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.name).strip("-._") or "instance"
    return f"{stem}-{digest}"


def _place(db: str | None) -> tuple[Any, ...] | None:
    """Host, port and name of a database; the user and password may change."""
    if db is None:
        return None
    parts = urlsplit(db)
    return parts.hostname, parts.port or 5432, parts.path


def _without_password(db: str) -> str:
    return re.sub(r"(://[^:@/]*):.*@", r"\1:…@", db)
