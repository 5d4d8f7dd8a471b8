"""What the stores that lamindb knows were made of: their cells have the labels of these artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from scdataloader.protocols import Source
from scdataloader.store.manifest import SUFFIX

if TYPE_CHECKING:
    from lamindb import Artifact, Collection


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """The source of a store that one artifact, of the collection that the store was made of, has become."""

    number: int
    """Which of the sources."""
    n_sources: int
    """How many there are, if the store is of this collection."""
    names: tuple[str, ...]
    """What the source may be called: as the artifact's file is, wherever it lay when it was converted."""
    n_obs: int | None
    """Its cells; None if lamindb does not know."""
    collection: str
    """The collection, as ``lamindb:<key>@<version>``."""

    def of(self, sources: Sequence[Source], store: Path) -> Source:
        """The source, of those of the store.

        Raises:
            ValueError: these are not what the collection has become.
        """
        what_to_do = f"convert {self.collection} with --register into a new folder, or name it as data itself"
        if len(sources) != self.n_sources:
            raise ValueError(
                f"{store} has {len(sources):,} sources, and {self.collection}, which it was made of, "
                f"{self.n_sources:,} artifacts: so labels cannot be told; {what_to_do}"
            )
        source = sources[self.number]
        if source.name not in self.names or self.n_obs not in (None, source.n_obs):
            cells = "" if self.n_obs is None else f" with {self.n_obs:,} cells"
            raise ValueError(
                f"source {self.number} of {store} is {source.name} with {source.n_obs:,} cells, and in "
                f"{self.collection}, which it was made of, it is {self.names[0]}{cells}: so labels cannot be told; "
                f"{what_to_do}"
            )
        return source


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """An AnnData that the instance has labels of, and where its cells are to be read."""

    artifact: Artifact
    """It."""
    place: Artifact
    """The artifact whose file is read: itself, or a store."""
    member: Member | None = None
    """Which source of the store it is."""


def labelled(artifact: Artifact) -> Iterable[Labelled]:
    """The artifact itself, or, of a store, all that it was made of, in the order of its sources.

    Raises:
        LookupError: lamindb does not say what a store was made of.
    """
    if not is_store(artifact):
        yield Labelled(artifact=artifact, place=artifact)
        return
    collection = origin(artifact)
    if collection is None:
        raise LookupError(
            f"lamindb does not say which collection the store {artifact.key!r} was made of, so that its cells have no "
            "labels in the registries: register it with `scdataloader convert lamindb:<collection> --out <the store> "
            "--register`, or name the collection as data"
        )
    inputs = collection.ordered_artifacts.select_related("storage")
    members = [file.artifact for given in inputs for file in labelled(given)]
    for number, member in enumerate(members):
        yield Labelled(
            artifact=member,
            place=artifact,
            member=Member(
                number=number,
                n_sources=len(members),
                names=_names(member),
                n_obs=member.n_observations,
                collection=f"lamindb:{collection.key}@{collection.version}",
            ),
        )


def is_store(artifact: Artifact) -> bool:
    """Whether it is a store, which has no suffix that lamindb knows."""
    return str(artifact.suffix or artifact.key).endswith(SUFFIX)


def origin(artifact: Artifact) -> Collection | None:
    """The version of a collection that a store holds: the one input of the run that made it; None if there is none."""
    found: list[Collection] = [] if artifact.run is None else list(artifact.run.input_collections.all())
    return found[0] if len(found) == 1 else None


def _names(artifact: Artifact) -> tuple[str, ...]:
    """What its file is called: as it lies in a local storage, or by its key or uid in lamindb's cache."""
    names = [PurePosixPath(artifact.key).name] if artifact.key else []
    if artifact.storage.type == "local":  # the path of others takes the network
        names.insert(0, artifact.path.name)
    return (*names, f"{artifact.uid}{artifact.suffix}", f"{artifact.uid[:16]}{artifact.suffix}")
