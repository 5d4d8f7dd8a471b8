"""``scdataloader instance``: lamindb instances that need no network, made, connected to, and filled with terms."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scdataloader.lamin.session import ANONYMOUS, off_the_hub, quiet, told

LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 (what lamindb takes for local, nothing is bound)
"""Hosts of Postgres that lamindb asks no account for."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def init(storage: str | Path, *, name: str | None = None, db: str | None = None) -> str:
    """Make a lamindb instance with bionty and mark the working directory as one of its places; asks no network.

    The same call again connects to it.

    Args:
        storage: Local folder of its artifacts, and of its database if that is SQLite. Made if it does not exist.
        name: What it is called, among all instances of this user. None makes a name of the folder's and a digest of
            storage and database, which no other instance has.
        db: ``postgresql://user:password@host:port/database``, of a database that exists. None for SQLite.

    Returns:
        its name, as ``<owner>/<name>``.

    Raises:
        ValueError: the storage is no local folder, the name or the address of the database is none, there is an
            instance of this name with another storage or database, the storage is another instance's, or the host of
            the database is not local.
        RuntimeError: the database does not answer.
    """
    import lamindb_setup

    if "://" in str(storage):
        raise ValueError(
            f"{storage} cannot be the storage that an instance begins with, which lamindb makes in a bucket only for "
            "users of its hub: give a local folder here, and the bucket where artifacts are registered"
        )
    folder = Path(storage).expanduser().absolute()
    if db is not None:
        _check_address(db)
    name = name or _own_name(folder, db)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for an instance: give letters, digits, '-', '_' and '.'")
    with quiet(), told():
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
    from rich.console import Console

    what = "making the tables, for which lamindb takes about a minute on Postgres"
    try:
        with Console(stderr=True).status(what):
            lamindb_setup.init(storage=str(folder), name=name, db=db, modules="bionty")
    except StorageAlreadyManaged as error:
        raise ValueError(
            f"{folder} is the storage of another instance, or of one that another user has made: give another "
            "folder; to join that instance, copy its file instance--<owner>--<name>.env from that user's ~/.lamin "
            "to your own, and connect to it with `scdataloader instance connect <name>`"
        ) from error


def connect(name: str) -> str:
    """Connect to an instance that this user has made or joined: what runs in the working directory, and below, uses it.

    Args:
        name: ``<name>``, or ``<owner>/<name>``.

    Returns:
        its name, as ``<owner>/<name>``.

    Raises:
        LookupError: there is no instance of this name; shows those that there are.
        RuntimeError: its database is gone or does not answer.
    """
    import lamindb_setup

    with quiet(), told():
        owner, _, short = name.rpartition("/")
        owner = owner or str(lamindb_setup.settings.user.handle)
        slug = f"{owner}/{short}"
        known = _known()
        if slug not in known and owner == ANONYMOUS:
            raise LookupError(
                f"there is no lamindb instance {slug}; {', '.join(known) or 'none'} are known here; make it, or join "
                "it on this machine, with `scdataloader instance init --name … --storage … [--db …]`"
            )
        try:
            lamindb_setup.connect(slug)
        except SystemExit as error:  # lamindb's way to say it
            raise RuntimeError(f"cannot connect to {slug}: {error}; restore it, or make another instance") from error
        off_the_hub()
        _mark_here()
    return slug


def _check_address(db: str) -> None:
    parts = urlsplit(db)
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or len(parts.path) <= 1:
        raise ValueError(
            f"{_without_password(db)} is no address of a Postgres database; expected "
            "postgresql://user:password@host:port/database"
        )


def _check_host(db: str | None, owner: str) -> None:
    if db is None or owner != ANONYMOUS or urlsplit(db).hostname in LOCAL_HOSTS:
        return
    raise ValueError(
        f"the database is on {urlsplit(db).hostname}, and lamindb takes databases on other machines only from users "
        "who are logged in to its hub (`lamin login`). Without an account, lead a local port there, as in "
        f"`ssh -N -L 5432:127.0.0.1:{urlsplit(db).port or 5432} {urlsplit(db).hostname}`, and give 127.0.0.1 as host"
    )


def _check_answers(db: str | None) -> None:
    """Before lamindb begins to write: of an instance whose database does not answer it would leave some files."""
    if db is None:
        return
    import psycopg2

    try:
        psycopg2.connect(db, connect_timeout=10).close()
    except psycopg2.OperationalError as error:
        raise RuntimeError(
            f"the database {_without_password(db)} does not answer ({str(error).splitlines()[0]}): check that the "
            "server runs and that the database exists (createdb), and user and password"
        ) from error


def _check_unused(owner: str, name: str, folder: Path, db: str | None) -> None:
    """Refuse a name that is another instance's, to which lamindb would connect without a word."""
    from lamindb_setup.core._settings_load import load_instance_settings
    from lamindb_setup.core._settings_store import instance_settings_file

    file = instance_settings_file(name, owner)
    if not file.exists():
        return
    there = load_instance_settings(file)
    its_storage, its_db = Path(there.storage.root_as_str), there._db  # noqa: SLF001 (db would open the database)
    if its_storage.resolve() != folder.resolve() or _place(its_db) != _place(db):
        raise ValueError(
            f"there is an instance {owner}/{name} already, with its storage in {its_storage}"
            f"{f' and its database at {_without_password(its_db)}' if its_db else ''}: give this one another --name, "
            f"or connect to that one with `scdataloader instance connect {name}`"
        )


def _known() -> list[str]:
    """Names of the instances that this user has made or joined, sorted."""
    from lamindb_setup.core._settings_store import instance_settings_file

    pattern = instance_settings_file("*", "*")
    stems = (file.stem.split("--", 2) for file in pattern.parent.glob(pattern.name))
    return sorted(f"{owner}/{name}" for _, owner, name in stems)


def _mark_here() -> None:
    """Make this directory one of the instance's, as `lamin connect --here` does; home is everyone's and is left."""
    import lamindb_setup

    if Path.cwd().resolve() != Path.home().resolve():
        lamindb_setup.settings.dev_dir = Path.cwd()


def _own_name(folder: Path, db: str | None) -> str:
    digest = hashlib.blake2b(f"{folder.resolve()} {_place(db)}".encode(), digest_size=4).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.name).strip("-._") or "instance"
    return f"{stem}-{digest}"


def _place(db: str | None) -> tuple[Any, ...] | None:
    """Host, port and name of a database, without the user, who may have another password tomorrow."""
    if db is None:
        return None
    parts = urlsplit(db)
    return parts.hostname, parts.port or 5432, parts.path


def _without_password(db: str) -> str:
    return re.sub(r"(://[^:@/]*):.*@", r"\1:…@", db)
