"""Register the store of a collection as an artifact beside it: ``my/atlas`` has ``my/atlas.cells``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scdataloader.lamin.collections import PREFIX, find
from scdataloader.lamin.lineage import converted_from, origin
from scdataloader.lamin.session import local_roots, session
from scdataloader.store.manifest import SUFFIX
from scdataloader.store.reader import Store

if TYPE_CHECKING:
    from lamindb import Artifact, Collection


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreArtifact:
    """The artifact of a store. It is planned before the conversion, to detect early that it cannot be registered."""

    collection: str
    """Uid of the collection that is converted."""
    key: str
    """Key of the artifact: that of the collection with ``.cells``."""
    folder: Path

    @classmethod
    def plan(cls, data: Sequence[str], folder: Path, *, append: bool = False) -> StoreArtifact:
        """Look up the collection, and check that the store can be registered in its folder.

        Args:
            data: ``["lamindb:<key of a collection>"]``, or with ``@version``.
            folder: Path of the store, in a local storage of the instance.
            append: Whether the store of an earlier version of the collection may be in the folder.

        Raises:
            ValueError: ``data`` is not one collection, the folder is outside all storages of the instance, or it is
                registered as the store of other artifacts.
            LookupError: the collection does not exist.
            RuntimeError: no instance is connected.
        """
        if len(data) != 1 or not data[0].startswith(PREFIX):
            raise ValueError(f"--register expects one lamindb:<key of a collection> to convert, got {', '.join(data)}")
        with session() as lamindb:
            record = find(data[0].removeprefix(PREFIX))
            if not isinstance(record, lamindb.Collection):
                raise ValueError(f"--register expects a collection, but {data[0]} is an artifact")  # noqa: TRY004 (a key, not a call)
            roots = local_roots()
            if not any(folder.resolve().is_relative_to(root) for root in roots):
                raise ValueError(
                    f"{folder} is outside all storages of the lamindb instance, which would copy the store; give --out "
                    f"in {' or '.join(map(str, roots))}"
                )
            key = f"{record.key}{SUFFIX}"
            for known in () if append else lamindb.Artifact.filter(key=key):
                held = origin(known) if known.path == folder else None
                if held is not None:
                    _check_same(held, record, folder)
            return cls(collection=record.uid, key=key, folder=folder)

    def save(self) -> str:
        """Register the store, with its lineage from the collection.

        A store that is registered already keeps its version; if its folder was moved, its path is updated.

        Returns:
            The name of the store as data: ``lamindb:<key>@<version>``.

        Raises:
            ValueError: it is registered as the store of other artifacts with the same counts, or its sources are not
                the artifacts of the collection in order, as after an append to the store of another collection.
            RuntimeError: the database is locked or does not answer.
        """
        from django.db import transaction
        from django.utils import timezone

        with session() as lamindb, transaction.atomic():
            collection = lamindb.Collection.get(self.collection)
            made: Any = lamindb.Artifact(
                self.folder,
                key=self.key,
                description=f"store of {collection.key}@{collection.version}",
                overwrite_versions=False,  # lamindb would open only the newest version of a folder
                skip_hash_lookup=True,
            )
            known = lamindb.Artifact.filter(key=self.key, hash=made.hash).order_by("-id").first()
            if known is not None and not known.path.exists():
                _move(known, made)
            artifact = known or made
            held = None if known is None else origin(known)
            if held is None:
                artifact.run = _run(collection)
                artifact.save()
                artifact.run.finished_at = timezone.now()
                artifact.run.save()
            else:
                _check_same(held, collection, self.folder)
            sources = Store.open(self.folder).sources
            for _, member in converted_from(artifact):
                if member is not None:
                    member.find(sources, self.folder)
            return f"{PREFIX}{artifact.key}@{artifact.version}"


def _move(artifact: Artifact, to: Artifact) -> None:
    """Update the path of an artifact: lamindb has only one of the same key, content and storage."""
    import lamindb

    names = ("storage_id", "_real_key", "_key_is_virtual")
    lamindb.Artifact.objects.filter(pk=artifact.pk).update(**{name: getattr(to, name) for name in names})
    artifact.refresh_from_db()


def _check_same(held: Collection, wanted: Collection, folder: Path) -> None:
    """Check that two versions have the same artifacts: a store keeps the labels of its conversion."""
    of_held, of_wanted = (list(one.ordered_artifacts.values_list("id", flat=True)) for one in (held, wanted))
    if of_held != of_wanted:
        raise ValueError(
            f"{folder} is registered as the store of {held.key}@{held.version}, which has not the artifacts or labels "
            f"of {wanted.key}@{wanted.version}; give --out a new folder, or --append new artifacts"
        )


def _run(collection: Collection) -> Any:
    """A run of the conversion, with the collection as its input."""
    import lamindb

    transform = lamindb.Transform(key=f"convert/{collection.key}", kind="pipeline").save()
    run: Any = lamindb.Run(transform=transform).save()
    run.input_collections.add(collection)
    return run
