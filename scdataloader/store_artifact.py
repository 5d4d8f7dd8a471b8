"""The store of a lamindb collection, registered as an artifact next to it: ``my/atlas`` has ``my/atlas.cells``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scdataloader.lamin_session import local_roots, session
from scdataloader.sources.lamin import PREFIX, find
from scdataloader.store.layout import SUFFIX

if TYPE_CHECKING:
    from lamindb import Collection


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreArtifact:
    """What a store is to be registered as; made before the store, so that nothing is converted in vain."""

    collection: str
    """Uid of the collection whose cells it holds."""
    key: str
    """Of the artifact: that of the collection, with ``.cells``."""
    folder: Path
    """The store."""

    @classmethod
    def plan(cls, data: Sequence[str], folder: Path) -> StoreArtifact:
        """Look up what is converted, and whether the store can be registered where it is to lie.

        Args:
            data: ``["lamindb:<key of a collection>"]``, or with ``@version``.
            folder: The store, in a local storage of the instance.

        Raises:
            ValueError: ``data`` is something else, or the folder is outside: lamindb would copy the store.
            LookupError: there is no such collection.
            RuntimeError: no instance is connected.
        """
        if len(data) != 1 or not data[0].startswith(PREFIX):
            raise ValueError(f"--register wants one lamindb:<key of a collection> to convert, not {', '.join(data)}")
        with session() as lamindb:
            record = find(data[0].removeprefix(PREFIX))
            if not isinstance(record, lamindb.Collection):
                raise ValueError(f"--register wants a collection, and {data[0]} is an artifact")  # noqa: TRY004 (a key, not a call)
            roots = local_roots()
            if not any(folder.resolve().is_relative_to(root) for root in roots):
                raise ValueError(
                    f"{folder} lies in no storage of the lamindb instance, which would copy the store: give --out in "
                    f"{' or '.join(map(str, roots))}"
                )
            return cls(collection=record.uid, key=f"{record.key}{SUFFIX}", folder=folder)

    def save(self) -> str:
        """Register the store, with its lineage from the collection; a store that is registered already is left.

        Returns:
            how to name it as data: ``lamindb:<key>@<version>``.

        Raises:
            RuntimeError: the database is locked or does not answer.
        """
        from django.db import transaction
        from django.utils import timezone

        with session() as lamindb, transaction.atomic():
            collection = lamindb.Collection.get(self.collection)
            text = f"store of {collection.key}@{collection.version}"
            artifact: Any = lamindb.Artifact(self.folder, key=self.key, description=text, skip_hash_lookup=False)
            if artifact._state.adding:  # noqa: SLF001 (Django's own way to ask)
                artifact.run = _run(collection)
                artifact.save()
                artifact.run.finished_at = timezone.now()
                artifact.run.save()
            return f"{PREFIX}{artifact.key}@{artifact.version}"


def _run(collection: Collection) -> Any:
    """A run of the conversion, with the collection as its input."""
    import lamindb

    transform = lamindb.Transform(key=f"convert/{collection.key}", kind="pipeline").save()
    run: Any = lamindb.Run(transform=transform).save()
    run.input_collections.add(collection)
    return run
