"""Curated files into lamindb: the one place that writes to its database, all of a call in one transaction."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from scdataloader.curate.annotate import Annotator
from scdataloader.curate.origin import Files, Identity, Kept, Origin
from scdataloader.curate.outcome import Outcome
from scdataloader.curate.recipe import Recipe
from scdataloader.curate.versions import Version, keep_in_cache, put_in_place
from scdataloader.lamin_session import session

if TYPE_CHECKING:
    from lamindb import Artifact, Collection, Run, Storage

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
        LookupError: a label is no term that can be saved.
        FileNotFoundError: a curated file is gone.
        StoreWriteError: a file cannot be copied into the storage.
        RuntimeError: no instance is connected, its database is locked or does not answer, or a curated file was changed
            meanwhile.
        PermissionError: the bucket refuses the credentials.
        ConnectionError: the bucket cannot be reached.
    """
    from django.db import connection, transaction

    start = time.perf_counter()
    with session():
        before = _State.read(key, outcomes)
        home = _storage(storage) if before.new else None
        with transaction.atomic():
            annotator = Annotator([kept.outcome for kept in before.new])
        versions = put_in_place([(kept.key, kept.origin.identity, kept.output) for kept in before.new], home)
        if not connection.in_atomic_block:
            connection.close()  # it was idle, perhaps for hours: whoever is in between may have given it up
        with transaction.atomic():
            now = _State.read(key, outcomes)  # others may have registered meanwhile
            known = before.known | now.known
            new = [kept for kept in now.new if kept.origin.identity not in known]
            run = _run(key, recipe) if new else None
            made = [] if run is None else _registered(new, run, home, versions, annotator)
            known |= {kept.origin.identity: artifact for kept, artifact in zip(new, made, strict=True)}
            _note_moves(now.files, known, key)
            wanted = now.files.merged(known)
            if now.members and not wanted:
                logger.warning("no file of %s is left; a collection cannot be empty, and this one stays as it was", key)
                wanted = now.members
            is_new = [artifact.pk for artifact in wanted] != [artifact.pk for artifact in now.members]
            newest = _new_version(key, wanted, run or _run(key, recipe), now.newest) if is_new else now.newest
            n_new = len({artifact.pk for artifact in made if run is not None and artifact.run_id == run.pk})
        keep_in_cache([(artifact, versions[kept.origin.identity]) for kept, artifact in zip(new, made, strict=True)])
    return Registered(
        key=key,
        version="" if newest is None else str(newest.version),
        n_members=len(wanted),
        n_new=n_new,
        is_new=is_new,
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """What the instance knows of a collection and of files that are to be in it."""

    newest: Collection | None
    """Its newest version."""
    members: list[Artifact]
    """The artifacts of that, in order."""
    files: Files
    """The files."""
    known: dict[Identity, Artifact]
    """Artifacts that are, or may have been, in the collection."""

    @classmethod
    def read(cls, key: str, outcomes: Sequence[Outcome]) -> Self:
        """As it is now."""
        import lamindb

        newest = lamindb.Collection.filter(key=key, is_latest=True).order_by("-created_at").first()
        members = [] if newest is None else list(newest.ordered_artifacts.all())
        artifacts = [*lamindb.Artifact.filter(key__startswith=f"{key}/").order_by("id"), *members]
        origins = [(Origin.read(artifact), artifact) for artifact in artifacts]
        return cls(
            newest=newest,
            members=members,
            files=Files(outcomes, key, members, artifacts),
            known={origin.identity: artifact for origin, artifact in origins if origin is not None},
        )

    @property
    def new(self) -> list[Kept]:
        """Those of the files that are not registered."""
        return [kept for kept in self.files.kept() if kept.origin.identity not in self.known]


def _registered(
    files: Sequence[Kept],
    run: Run,
    storage: Storage | None,
    versions: Mapping[Identity, Version],
    annotator: Annotator,
) -> list[Artifact]:
    """Artifacts of ``files``. A file whose content is registered already, under whatever name, is that artifact."""
    import lamindb

    record: Any = lamindb.Artifact
    saved = []
    for kept in _progress(files):
        version = versions[kept.origin.identity]
        artifact = record(
            version.path,
            key=kept.key,
            description=str(kept.origin),
            run=run,
            storage=storage,
            otype="AnnData",
            skip_hash_lookup=False,  # or a file that lies in the storage would not be looked up by its content
            # what it would ask a bucket for, or read all over again; a bucket has other hashes for large files, too
            skip_check_exists=True,
            _stats=version.stats,
        )
        is_new = artifact._state.adding  # noqa: SLF001 (Django's own way to ask)
        if is_new:
            annotator.prepare(artifact, kept.outcome)
        artifact.save(print_progress=False)
        if is_new:
            annotator.link(artifact, kept.outcome)
        saved.append(artifact)
    annotator.save()
    return saved


def _note_moves(files: Files, known: Mapping[Identity, Artifact], key: str) -> None:
    """Have the descriptions say where files lie now."""
    for kept in files.kept():
        artifact = known[kept.origin.identity]
        origin = Origin.read(artifact)
        if origin is not None and origin.file(key) != kept.origin.file(key):
            type(artifact).objects.filter(pk=artifact.pk).update(description=str(kept.origin))


def _run(key: str, recipe: Recipe) -> Run:
    """A run of the transform whose source code is the recipe."""
    import lamindb
    from django.utils import timezone

    source = json.dumps({"recipe": asdict(recipe), "hash": recipe.hash}, indent=2, sort_keys=True)
    name = f"curate/{key}"
    # lamindb itself would only look at the newest version, and not be able to save an earlier one again
    transform = lamindb.Transform.filter(key=name, source_code=source).first()
    if transform is None:
        transform = lamindb.Transform(key=name, kind="pipeline", source_code=source, skip_hash_lookup=True).save()
    run: Any = lamindb.Run(transform=transform)
    run.started_at = timezone.now()
    return run.save()  # type: ignore[no-any-return]


def _new_version(key: str, artifacts: list[Artifact], run: Run, newest: Collection | None) -> Collection:
    import lamindb
    from django.utils import timezone

    # with the look-up lamindb would rename another collection of the same artifacts
    collection: Any = lamindb.Collection(artifacts, key=key, run=run, revises=newest, skip_hash_lookup=True)
    if lamindb.Collection.filter(key=key, hash=collection.hash).exists():
        collection.hash = None  # the same artifacts as in an earlier version, which lamindb allows only without
    collection.save()
    run.finished_at = timezone.now()
    run.save()
    return collection  # type: ignore[no-any-return]


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


def _progress(files: Sequence[Kept]) -> Iterator[Kept]:
    from rich.console import Console
    from rich.progress import track

    yield from track(
        files, "registering artifacts", console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    )
