"""Curated files into lamindb: the one place that writes to its database, all of a call in one transaction.

An artifact is known again by its description, which names the file, the hash of its content and that of the recipe.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from scdataloader.curate.annotate import Annotator
from scdataloader.curate.outcome import Outcome
from scdataloader.curate.recipe import Recipe
from scdataloader.curate.versions import Versions
from scdataloader.lamin_session import session

if TYPE_CHECKING:
    from lamindb import Artifact, Collection, Run, Storage

logger = logging.getLogger(__name__)

_PART = re.compile(r"\.NCBITaxon_[0-9]+(?=\.h5ad$)")


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

    Artifacts, their labels and the collection's new version are written in one transaction: they appear together, or
    not at all. What was registered before, by content and recipe, is left as it is; a file whose content or recipe has
    changed gets a new version of its artifact. In the collection a file's artifacts take the place of its earlier ones;
    a file that is dropped now leaves it, one that failed stays as it was, and files that are not named stay too.

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
        RuntimeError: no instance is connected, or its database is locked or does not answer.
        PermissionError: the bucket refuses the credentials.
        ConnectionError: the bucket cannot be reached.
    """
    from django.db import transaction

    start = time.perf_counter()
    with session() as lamindb, Versions() as versions, transaction.atomic():
        newest = lamindb.Collection.filter(key=key, is_latest=True).order_by("-created_at").first()
        members = [] if newest is None else list(newest.ordered_artifacts.all())
        files = _keyed(outcomes, key)
        earlier = lamindb.Artifact.filter(key__startswith=f"{key}/").order_by("id")
        known = {artifact.description: artifact for artifact in (*earlier, *members)}
        new = [(name, outcome) for name, outcome in files if outcome.output and _identity(outcome) not in known]
        run = _run(key, recipe) if new else None
        if run is not None:
            known |= _registered(new, run, _storage(storage), versions)
        n_new = 0 if run is None else lamindb.Artifact.filter(run=run).count()
        wanted = _merged(members, files, known)
        if members and not wanted:
            logger.warning("no file of %s is left; a collection cannot be empty, and this one stays as it was", key)
            wanted = members
        is_new = [artifact.pk for artifact in wanted] != [artifact.pk for artifact in members]
        if is_new:
            newest = _new_version(key, wanted, run or _run(key, recipe), newest)
    return Registered(
        key=key,
        version="" if newest is None else str(newest.version),
        n_members=len(wanted),
        n_new=n_new,
        is_new=is_new,
        seconds=time.perf_counter() - start,
    )


def _identity(outcome: Outcome) -> str:
    """What an artifact is known again by: its description."""
    part = f", {outcome.organism}" if outcome.organism else ""
    return f"{outcome.source}{part} (content {outcome.content}, recipe {outcome.recipe})"


def _keyed(outcomes: Sequence[Outcome], key: str) -> list[tuple[str, Outcome]]:
    """Each outcome that was not a failure, and the key of its artifact; parts of a file are told apart by organism."""
    parts: dict[str, int] = {}
    for outcome in outcomes:
        parts[outcome.source] = parts.get(outcome.source, 0) + 1
    keyed = []
    for outcome in outcomes:
        if outcome.status == "failed":
            continue
        path = PurePosixPath(outcome.source.partition("://")[2] or outcome.source)
        names = [part for part in path.with_suffix("").parts if part not in ("/", ".", "..")]
        part = f".{outcome.organism.replace(':', '_')}" if parts[outcome.source] > 1 else ""
        keyed.append((f"{'/'.join([key, *names])}{part}.h5ad", outcome))
    return keyed


def _registered(
    files: Sequence[tuple[str, Outcome]], run: Run, storage: Storage | None, versions: Versions
) -> dict[str | None, Artifact]:
    """Artifacts of ``files``, by their description.

    A file whose content is registered already, under whatever name, is that artifact.
    """
    import lamindb

    record: Any = lamindb.Artifact
    annotator = Annotator([outcome for _, outcome in files])
    saved: dict[str | None, Artifact] = {}
    for name, outcome in _progress(files):
        text = _identity(outcome)
        assert outcome.output is not None  # these are the ones that were kept
        file = versions.file(outcome.output)
        # False: a file that lies in the storage already is also looked up by its content
        artifact = record(file, key=name, description=text, run=run, storage=storage, skip_hash_lookup=False)
        is_new = artifact._state.adding  # noqa: SLF001 (Django's own way to ask)
        if is_new:
            annotator.prepare(artifact, outcome)
        artifact.save(print_progress=False)
        if is_new:
            versions.note(artifact)
            annotator.link(artifact, outcome)
        else:
            versions.drop(file)
        saved[text] = artifact
    annotator.save()
    return saved


def _merged(
    members: Sequence[Artifact], files: Sequence[tuple[str, Outcome]], known: Mapping[str | None, Artifact]
) -> list[Artifact]:
    """The members, with those of the files' earlier artifacts replaced, or gone, and new ones at the end."""
    now: dict[str, list[Artifact]] = {}
    for name, outcome in files:
        of_file = now.setdefault(_PART.sub("", name), [])
        if outcome.output:
            of_file.append(known[_identity(outcome)])
    before = [now.get(_PART.sub("", str(member.key)), [member]) for member in members]
    return list({artifact.pk: artifact for artifact in chain(*before, *now.values())}.values())


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

    if root is None:
        return None
    made: Any = lamindb.Storage(root=root)
    record = made.save()
    if record.instance_uid != lamindb.setup.settings.instance.uid:
        raise PermissionError(
            f"the bucket refuses these credentials, or {root} is the storage of another instance: lamindb could not "
            "leave its mark there; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name another folder"
        )
    return record  # type: ignore[no-any-return]


def _progress(files: Sequence[tuple[str, Outcome]]) -> Iterator[tuple[str, Outcome]]:
    from rich.console import Console
    from rich.progress import track

    yield from track(
        files, "registering artifacts", console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    )
