"""Curated files into lamindb: the one place that writes to its database, all of a call in one transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from scdataloader.curation.recipe import Recipe
from scdataloader.curation.report import Outcome
from scdataloader.lamin.register.annotate import Annotator, unlinkable
from scdataloader.lamin.register.origin import CURATION, Files, Identity, Kept
from scdataloader.lamin.register.records import make_artifacts, make_run, make_version
from scdataloader.lamin.register.versions import Version, keep_in_cache, put_back, put_in_place
from scdataloader.lamin.session import TRASH, check_bionty, check_connected, session

if TYPE_CHECKING:
    from lamindb import Artifact, Collection, Storage

SECONDS_TO_WAIT = 600
"""For a database that another process has locked."""
SECONDS_BETWEEN = 2

Made = TypeVar("Made")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered:
    """A collection after files were registered."""

    key: str
    """Its key."""
    version: str
    """Its newest version; empty where there is no collection, as nothing was kept."""
    n_members: int
    """Artifacts in it."""
    n_new: int
    """Artifacts that this call registered."""
    is_new: bool
    """Whether this call made the version."""
    seconds: float
    """Time that it took."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """{file: why} of files that were kept and have labels that there are no terms for; nothing has changed for them."""

    def __str__(self) -> str:
        if not self.version:
            return f"{self.key}: nothing to register"
        state = "new" if self.is_new else "as it was"
        return (
            f"lamindb:{self.key}@{self.version} ({state}): {self.n_members:,} artifacts, {self.n_new:,} new, "
            f"in {self.seconds:.1f} s"
        )


def register(outcomes: Sequence[Outcome], *, key: str, recipe: Recipe, storage: str | None = None) -> Registered:
    """Register what was curated in the connected lamindb instance, and bring a collection up to it.

    First terms that the instance lacks are saved; then all files are put where they are to be registered; then
    artifacts, links to their labels and the collection's new version are written in one transaction: they appear
    together, or not at all. After a failure the same call finds the files that are in place already.

    What was registered before, by content and recipe, is left as it is; a file whose content or recipe has changed gets
    a new version of its artifact, also where it was moved or is named in another way. In the collection a file's
    artifacts take the place of its earlier ones; a file that is dropped now leaves it, one that failed stays as it was,
    and files that are not named stay too.

    Args:
        outcomes: What became of the files; those that were not kept have nothing to register.
        key: Of the collection; the artifacts' keys begin with it.
        recipe: That of all the files, for the lineage.
        storage: Where files go that do not lie in a storage of the instance, such as
            ``s3://bucket/folder?endpoint_url=https://…``; None for the instance's own. Others stay there, and get a
            second name (a hard link) for each version, which a later curation into the same place does not touch.

    Returns:
        The state of the collection.

    Raises:
        FileNotFoundError: a curated file is gone.
        WriteError: a file cannot be copied into the storage.
        RuntimeError: no instance is connected, it has no bionty, its database was locked for `SECONDS_TO_WAIT` or does
            not answer, or a curated file was changed meanwhile.
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
        before = _State.read(key, outcomes)
        home = _storage(storage) if before.new else None
        annotator = _in_transaction(lambda: Annotator([kept.outcome for kept in before.new]))
        versions = put_in_place([(kept.key, kept.origin.identity, kept.output) for kept in before.new], home)
        for artifact, output in before.outputs():
            put_back(artifact, output)
        if not connection.in_atomic_block:
            connection.close()  # it was idle, perhaps for hours: whoever is in between may have given it up
        made, done = _in_transaction(lambda: _write(key, outcomes, before, recipe, home, versions, annotator))
        keep_in_cache([(artifact, versions[kept.origin.identity]) for kept, artifact in made])
    return replace(done, refused=refused, seconds=time.perf_counter() - start)


def check_registrable(storage: str | None) -> None:
    """Before long work that is to be registered: everything that `register` needs but the files.

    Raises:
        RuntimeError, PermissionError, ConnectionError: as `register`.
    """
    check_connected()
    with session() as lamindb:
        check_bionty()
        lamindb.Collection.filter().exists()  # asks the database
        _storage(storage)


def _in_transaction(work: Callable[[], Made]) -> Made:
    """What ``work`` makes in one transaction, which is tried again while another process writes to SQLite."""
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
    before: _State,
    recipe: Recipe,
    home: Storage | None,
    versions: Mapping[Identity, Version],
    annotator: Annotator,
) -> tuple[list[tuple[Kept, Artifact]], Registered]:
    """What is written in the end: artifacts of the files that are in place, and a version of the collection."""
    _one_at_a_time(key)
    now = _State.read(key, outcomes)  # others may have registered meanwhile
    known = before.known | now.known
    new = [kept for kept in now.new if kept.origin.identity not in known]
    run = make_run(key, recipe) if new else None
    made = [] if run is None else make_artifacts(new, run, home, versions, annotator)
    known |= {kept.origin.identity: artifact for kept, artifact in zip(new, made, strict=True)}
    for artifact, moved in now.files.moved(known):
        type(artifact).objects.filter(pk=artifact.pk).update(description=str(moved), extra_data=moved.noted)
    wanted = now.files.merged(known)
    for artifact in wanted:
        if artifact.branch_id == TRASH:
            artifact.restore()
    if now.members and not wanted:
        logger.warning("no file of %s is left; a collection cannot be empty, and this one stays as it was", key)
        wanted = now.members
    is_new = bool(wanted) and [artifact.pk for artifact in wanted] != now.listed
    newest = make_version(key, wanted, run or make_run(key, recipe), now.newest) if is_new else now.newest
    version = "" if newest is None else str(newest.version)
    done = Registered(key=key, version=version, n_members=len(wanted), n_new=len(made), is_new=is_new, seconds=0.0)
    return list(zip(new, made, strict=True)), done


def _one_at_a_time(key: str) -> None:
    """Have who else registers in this collection wait for the end of the transaction; SQLite has one writer anyway."""
    from django.db import connection

    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [key])


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """What the instance knows of a collection and of files that are to be in it."""

    newest: Collection | None
    """Its newest version."""
    members: list[Artifact]
    """The artifacts of that, in order, without those in the trash."""
    listed: list[int]
    """Primary keys of all of that."""
    files: Files
    """The files."""
    known: dict[Identity, Artifact]
    """Artifacts of what is to be registered, of this collection or another, perhaps in the trash."""

    @classmethod
    def read(cls, key: str, outcomes: Sequence[Outcome]) -> Self:
        """As it is now."""
        import lamindb

        newest = lamindb.Collection.filter(key=key, is_latest=True).order_by("-created_at").first()
        listed = [] if newest is None else list(newest.ordered_artifacts.all())
        members = [artifact for artifact in listed if artifact.branch_id != TRASH]
        earlier = lamindb.Artifact.filter(key__startswith=f"{key}/").order_by("id")
        contents = {outcome.content for outcome in outcomes}
        # the manager has those in the trash, too, which come first here: of several the last one counts
        made = lamindb.Artifact.objects.filter(**{f"extra_data__{CURATION}__content__in": contents})
        made = made.select_related("storage")
        files = Files(outcomes, key, members, list(earlier))
        return cls(
            newest=newest,
            members=members,
            listed=[artifact.pk for artifact in listed],
            files=files,
            known=files.known([*made.order_by("branch_id", "id"), *members]),
        )

    @property
    def new(self) -> list[Kept]:
        """Those of the files that are not registered."""
        return [kept for kept in self.files.kept() if kept.origin.identity not in self.known]

    def outputs(self) -> list[tuple[Artifact, Path]]:
        """Those that are, and their curated files."""
        kept = [kept for kept in self.files.kept() if kept.origin.identity in self.known]
        return [(self.known[one.origin.identity], one.output) for one in kept]


def _storage(root: str | None) -> Storage | None:
    """The record of a storage, made where it is new."""
    import lamindb
    from django.db import transaction

    if root is None:
        return None
    with transaction.atomic():  # the record of one that is refused would be taken for its own, later
        made: Any = lamindb.Storage(root=root)
        record = made.save()
        if record.instance_uid != lamindb.setup.settings.instance.uid:
            raise PermissionError(
                f"the bucket refuses these credentials, or {root} is the storage of another instance: lamindb could "
                "not leave its mark there; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name another folder"
            )
    return record  # type: ignore[no-any-return]
