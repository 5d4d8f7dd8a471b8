"""Lineage of registered stores: which artifact each source of a store was converted from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from scdataloader.protocols import Source
from scdataloader.store.manifest import SUFFIX

if TYPE_CHECKING:
    from lamindb import Artifact, Collection


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreMember:
    """The source of a store that holds the cells of one artifact."""

    store: Artifact
    number: int
    """Number of the source."""
    n_sources: int
    """Expected number of sources in the store."""
    names: tuple[str, ...]
    """Possible names of the source: those of the artifact's file, wherever it was when it was converted."""
    n_obs: int | None
    """Expected number of cells; None if lamindb does not know."""
    collection: str
    """The collection that the store was converted from, as ``lamindb:<key>@<version>``."""

    def find(self, sources: Sequence[Source], path: Path) -> Source:
        """The source, among all of the store.

        Raises:
            ValueError: the sources are not those of the collection.
        """
        remedy = f"convert {self.collection} with --register into a new folder, or name it as data itself"
        if len(sources) != self.n_sources:
            raise ValueError(
                f"{path} has {len(sources):,} sources, but {self.collection}, which it was converted from, has "
                f"{self.n_sources:,} artifacts; {remedy}"
            )
        source = sources[self.number]
        file = PurePosixPath(source.name).name  # with a number, if it has the name of another source of the store
        if not {file, re.sub(r" \d+$", "", file)} & set(self.names) or self.n_obs not in (None, source.n_obs):
            cells = "" if self.n_obs is None else f" with {self.n_obs:,} cells"
            raise ValueError(
                f"source {self.number} of {path} is {source.name} with {source.n_obs:,} cells, but in "
                f"{self.collection}, which it was converted from, it is {self.names[0]}{cells}; {remedy}"
            )
        return source


def converted_from(artifact: Artifact) -> Iterable[tuple[Artifact, StoreMember | None]]:
    """The artifacts that the sources of a store were converted from, in order; any other artifact itself, and None.

    Raises:
        LookupError: lamindb does not know which collection a store was converted from.
    """
    if not is_store(artifact):
        yield artifact, None
        return
    collection = origin(artifact)
    if collection is None:
        raise LookupError(
            f"lamindb does not know which collection the store {artifact.key!r} was converted from, and so not the "
            "labels of its cells; register it with `scdataloader convert lamindb:<collection> --out <the store> "
            "--register`, or name the collection as data"
        )
    inputs = collection.ordered_artifacts.select_related("storage")
    members = [member for given in inputs for member, _ in converted_from(given)]
    for number, member in enumerate(members):
        yield (
            member,
            StoreMember(
                store=artifact,
                number=number,
                n_sources=len(members),
                names=_names(member),
                n_obs=member.n_observations,
                collection=f"lamindb:{collection.key}@{collection.version}",
            ),
        )


def is_store(artifact: Artifact) -> bool:
    """Whether an artifact is a store; lamindb does not know its suffix."""
    return str(artifact.suffix or artifact.key).endswith(SUFFIX)


def origin(artifact: Artifact) -> Collection | None:
    """The version of a collection that a store holds: the only input of the run that made it; None if there is none."""
    found: list[Collection] = [] if artifact.run is None else list(artifact.run.input_collections.all())
    return found[0] if len(found) == 1 else None


def _names(artifact: Artifact) -> tuple[str, ...]:
    """Names of the file of an artifact: in a local storage, and by key or uid in lamindb's cache."""
    names = [PurePosixPath(artifact.key).name] if artifact.key else []
    if artifact.storage.type == "local":  # the path of a remote artifact needs the network
        names.insert(0, artifact.path.name)
    return (*names, f"{artifact.uid}{artifact.suffix}", f"{artifact.uid[:16]}{artifact.suffix}")
