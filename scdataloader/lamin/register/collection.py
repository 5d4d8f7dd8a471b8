"""Register curated files in a collection: artifacts, labels, lineage and the new version in one transaction."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from scdataloader.curation.recipe import Recipe
from scdataloader.curation.report import Outcome
from scdataloader.lamin.register.annotate import Annotator, save_links, unlinkable
from scdataloader.lamin.register.origin import Identity, Member, State
from scdataloader.lamin.register.versions import Version, keep_in_cache, put_back, put_in_place
from scdataloader.lamin.session import TRASH, check_bionty, check_connected, session
from scdataloader.runtime.messages import counted
from scdataloader.runtime.progress import spinner

if TYPE_CHECKING:
    from lamindb import Artifact, Collection, Run, Storage

SECONDS_TO_WAIT = 600
"""Time to wait for a database that another process has locked."""
SECONDS_BETWEEN = 2

Made = TypeVar("Made")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """The result of registering files in a collection."""

    key: str
    """Key of the collection."""
    version: str
    """Its newest version; empty if there is no collection, because nothing was kept."""
    n_members: int
    """Artifacts in the collection."""
    n_new: int
    """Artifacts that were registered."""
    is_new: bool
    """Whether a new version was made."""
    seconds: float
    """Time spent."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """{file: reason} of files with labels that are not terms; their artifacts, if any, are unchanged."""

    def __str__(self) -> str:
        if not self.version:
            return f"{self.key}: nothing to register"
        state = "new" if self.is_new else "unchanged"
        return (
            f"lamindb:{self.key}@{self.version} ({state}): {self.n_members:,} artifacts, {self.n_new:,} new, "
            f"in {self.seconds:.1f} s"
        )


def register(outcomes: Sequence[Outcome], *, key: str, recipe: Recipe, storage: str | None = None) -> Registration:
    """Register curated files in the connected lamindb instance, and make a new version of a collection.

    First, terms that the instance lacks are saved; then all files are put in place; then artifacts, links to their
    labels and the new version of the collection are written in one transaction, completely or not at all. After a
    failure, the same call reuses the files that are in place.

    A file that is registered with the same content and recipe is left unchanged. A file whose content or recipe has
    changed gets a new version of its artifact, also if it was moved or renamed. In the collection, the artifacts of a
    file replace its earlier ones. A file that is now dropped is removed from the collection; one that failed, or is not
    among the outcomes, is left unchanged.

    Args:
        outcomes: Outcomes of the files; only those that were kept are registered.
        key: Key of the collection; the keys of artifacts begin with it.
        recipe: Recipe of all the files, for the lineage.
        storage: Storage for files outside the storages of the instance, such as
            ``s3://bucket/folder?endpoint_url=https://…``; None for the instance's own. Files inside a storage stay
            there, and get a hard link per version, which later curation into the same place does not change.

    Raises:
        FileNotFoundError: a curated file does not exist.
        WriteError: a file cannot be copied into the storage.
        RuntimeError: no instance is connected, it has no bionty, its database was locked for `SECONDS_TO_WAIT` or does
            not answer, or a curated file was changed during the call.
        PermissionError: the bucket refuses the credentials.
        ConnectionError: the bucket cannot be reached.
    """
    from django.db import connection

    start = time.perf_counter()
    with session():
        check_bionty()
        refused = unlinkable([outcome for outcome in outcomes if outcome.output])
        outcomes = [
            replace(outcome, status="failed", output=None) if outcome.source in refused else outcome
            for outcome in outcomes
        ]
        before = State(key, outcomes)
        home = _storage(storage) if before.new else None
        annotator = _in_transaction(lambda: Annotator([member.outcome for member in before.new]))
        versions = put_in_place([(one.key, one.origin.identity, one.output) for one in before.new], home)
        for member in before.kept:
            if member.origin.identity in before.known:
                put_back(before.known[member.origin.identity], member.output)
        if not connection.in_atomic_block:
            connection.close()  # a proxy may have dropped it after hours without a query
        made, done = _in_transaction(lambda: _write(key, outcomes, before, recipe, home, versions, annotator))
        keep_in_cache([(artifact, versions[member.origin.identity]) for member, artifact in made])
    return replace(done, refused=refused, seconds=time.perf_counter() - start)


def check_registrable(storage: str | None) -> None:
    """Check all requirements of `register` except the files, before long work.

    Raises:
        RuntimeError, PermissionError, ConnectionError: as in `register`.
    """
    check_connected()
    with session() as lamindb:
        check_bionty()
        lamindb.Collection.filter().exists()  # queries the database
        _storage(storage)


def _in_transaction(work: Callable[[], Made]) -> Made:
    """Run ``work`` in one transaction; repeat it while another process locks the SQLite database."""
    from django.db import transaction
    from django.db.utils import OperationalError

    deadline = time.monotonic() + SECONDS_TO_WAIT
    while True:
        try:
            with transaction.atomic():
                return work()
        except OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        logger.info("the database is locked by another process; trying again")
        time.sleep(SECONDS_BETWEEN)


def _write(
    key: str,
    outcomes: Sequence[Outcome],
    before: State,
    recipe: Recipe,
    home: Storage | None,
    versions: Mapping[Identity, Version],
    annotator: Annotator,
) -> tuple[list[tuple[Member, Artifact]], Registration]:
    """Write artifacts of the files that are in place, and a version of the collection."""
    _lock_collection(key)
    now = State(key, outcomes)  # others may have registered since
    known = before.known | now.known
    new = [member for member in now.new if member.origin.identity not in known]
    run = _make_run(key, recipe) if new else None
    with spinner(f"registering {counted(len(new), 'artifact')}"):
        made = [] if run is None else _make_artifacts(new, run, home, versions, annotator)
    known |= {member.origin.identity: artifact for member, artifact in zip(new, made, strict=True)}
    for artifact, origin in now.moved(known):
        type(artifact).objects.filter(pk=artifact.pk).update(description=str(origin), extra_data=origin.extra_data)
    members = now.merged(known)
    for artifact in members:
        if artifact.branch_id == TRASH:
            artifact.restore()
    if now.members and not members:
        logger.warning("all files of %s are dropped; a collection cannot be empty, and stays unchanged", key)
        members = now.members
    is_new = bool(members) and [artifact.pk for artifact in members] != now.listed
    newest = _make_version(key, members, run or _make_run(key, recipe), now.newest) if is_new else now.newest
    version = "" if newest is None else str(newest.version)
    done = Registration(key=key, version=version, n_members=len(members), n_new=len(made), is_new=is_new, seconds=0.0)
    return list(zip(new, made, strict=True)), done


def _lock_collection(key: str) -> None:
    """Serialise registration per collection (advisory lock); SQLite has one writer anyway."""
    from django.db import connection

    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [key])


def _make_artifacts(
    members: Sequence[Member],
    run: Run,
    storage: Storage | None,
    versions: Mapping[Identity, Version],
    annotator: Annotator,
) -> list[Artifact]:
    import lamindb

    record: Any = lamindb.Artifact
    saved: list[Artifact] = []
    links: list[Any] = []
    for member in members:
        version = versions[member.origin.identity]
        artifact = record(
            version.path,
            key=member.key,
            description=str(member.origin),
            run=run,
            storage=storage,
            otype="AnnData",
            skip_hash_lookup=True,  # the hash of a large file does not cover all of it
            # lamindb would query the bucket, or read the file again
            skip_check_exists=True,
            _stats=version.stats,
        )
        artifact.extra_data = member.origin.extra_data
        annotator.prepare(artifact, member.outcome)
        artifact.save(print_progress=False)
        links += annotator.links(artifact, member.outcome)
        saved.append(artifact)
    save_links(links)
    return saved


def _make_run(key: str, recipe: Recipe) -> Run:
    """A run of the transform whose source code is the recipe."""
    import lamindb
    from django.utils import timezone

    source = json.dumps(
        {"recipe": asdict(recipe), "hash": recipe.hash}, indent=2
    )  # the first rule that matches applies
    name = f"curate/{key}"
    # lamindb itself compares with the newest version only, and cannot save an earlier one again
    transform = lamindb.Transform.filter(key=name, source_code=source).first()
    if transform is None:
        transform = lamindb.Transform(key=name, kind="pipeline", source_code=source, skip_hash_lookup=True).save()
    run: Any = lamindb.Run(transform=transform)
    run.started_at = timezone.now()
    return run.save()  # type: ignore[no-any-return]


def _make_version(key: str, artifacts: list[Artifact], run: Run, newest: Collection | None) -> Collection:
    """A new version of the collection, with these artifacts in order; finishes the run."""
    import lamindb
    from django.utils import timezone

    # the look-up would rename another collection of the same artifacts
    collection: Any = lamindb.Collection(artifacts, key=key, run=run, revises=newest, skip_hash_lookup=True)
    if lamindb.Collection.filter(key=key, hash=collection.hash).exists():
        collection.hash = None  # lamindb allows the artifacts of an earlier version only without a hash
    collection.save()
    run.finished_at = timezone.now()
    run.save()
    return collection  # type: ignore[no-any-return]


def _storage(root: str | None) -> Storage | None:
    """The record of a storage; created if it does not exist."""
    import lamindb
    from django.db import transaction

    if root is None:
        return None
    with transaction.atomic():  # after an error, the record must not stay
        made: Any = lamindb.Storage(root=root)
        record = made.save()
        if record.instance_uid != lamindb.setup.settings.instance.uid:
            raise PermissionError(
                f"the bucket refuses these credentials, or {root} is the storage of another instance: lamindb could "
                "not mark it as its own; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or choose another folder"
            )
    return record  # type: ignore[no-any-return]
