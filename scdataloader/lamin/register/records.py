"""The records of lamindb that registering makes: artifacts, the run that made them, the collection's new version."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from scdataloader.curation.recipe import Recipe
from scdataloader.lamin.register.annotate import Annotator, save_links
from scdataloader.lamin.register.origin import Identity, Kept
from scdataloader.lamin.register.versions import Version

if TYPE_CHECKING:
    from lamindb import Artifact, Collection, Run, Storage


def make_artifacts(
    files: Sequence[Kept],
    run: Run,
    storage: Storage | None,
    versions: Mapping[Identity, Version],
    annotator: Annotator,
) -> list[Artifact]:
    """Artifacts of ``files``."""
    import lamindb

    record: Any = lamindb.Artifact
    saved: list[Artifact] = []
    links: list[Any] = []
    for kept in _progress(files):
        version = versions[kept.origin.identity]
        artifact = record(
            version.path,
            key=kept.key,
            description=str(kept.origin),
            run=run,
            storage=storage,
            otype="AnnData",
            skip_hash_lookup=True,  # of large files the hash does not tell contents apart
            # what it would ask a bucket for, or read all over again
            skip_check_exists=True,
            _stats=version.stats,
        )
        artifact.extra_data = kept.origin.noted
        annotator.prepare(artifact, kept.outcome)
        artifact.save(print_progress=False)
        links += annotator.links(artifact, kept.outcome)
        saved.append(artifact)
    save_links(links)
    return saved


def make_run(key: str, recipe: Recipe) -> Run:
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


def make_version(key: str, artifacts: list[Artifact], run: Run, newest: Collection | None) -> Collection:
    """The collection's new version, with these artifacts in order; the run is finished by it."""
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


def _progress(files: Sequence[Kept]) -> Iterator[Kept]:
    from rich.console import Console
    from rich.progress import track

    yield from track(
        files, "registering artifacts", console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    )
