"""Which artifacts belong to which files, and the keys of new artifacts.

The ``extra_data`` of an artifact notes which file it was curated from. A file is identified by its content, wherever it
is now, and a file of new content by its path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Self

from scdataloader.curation.ledger import content_of, real_path
from scdataloader.curation.report import Outcome
from scdataloader.lamin.session import TRASH

if TYPE_CHECKING:
    from lamindb import Artifact

CURATION = "curation"
"""Key of the origin in the ``extra_data`` of an artifact."""

Identity = tuple[str, str, str]
"""Identifies a curated file: hashes of content and recipe, and the organism, an NCBITaxon id or empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The file that an artifact was curated from."""

    path: str
    """Absolute path when it was last registered."""
    key: str
    """Key of the artifact; of a split file, the key that the keys of its parts are made from."""
    content: str
    recipe: str
    organism: str

    @classmethod
    def read(cls, artifact: Artifact) -> Self | None:
        """The origin of an artifact; None if it was not curated by this package."""
        noted = (artifact.extra_data or {}).get(CURATION)
        return None if noted is None else cls(**{name: noted[name] for name in cls.__slots__})

    @property
    def identity(self) -> Identity:
        """Content, recipe and organism."""
        return self.content, self.recipe, self.organism

    @property
    def extra_data(self) -> dict[str, dict[str, str]]:
        """The ``extra_data`` of the artifact."""
        return {CURATION: asdict(self)}

    def __str__(self) -> str:
        """The description of the artifact."""
        organism = self.organism and f", {self.organism}"
        return f"{self.path}{organism} (content {self.content}, recipe {self.recipe})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A curated file for the collection."""

    key: str
    """Key of its artifact."""
    origin: Origin
    outcome: Outcome
    output: Path


@dataclass(kw_only=True, slots=True)
class _File:
    """A file with at least one part that did not fail."""

    path: str
    content: str
    parts: list[Outcome] = field(default_factory=list)
    """One outcome, or one for each organism of the file."""

    def part_key(self, key: str, part: Outcome) -> str:
        """Key of the artifact of a part; a file of several organisms adds the organism."""
        return key if len(self.parts) == 1 else f"{key.removesuffix('.h5ad')}.{part.organism.replace(':', '_')}.h5ad"


class State:
    """A collection in the instance, and how the files of a call relate to it."""

    def __init__(self, key: str, outcomes: Sequence[Outcome]) -> None:
        """Read the collection and the artifacts of the files from the database.

        Args:
            key: Key of the collection.
            outcomes: Outcomes of the files. Files that failed keep their artifacts.
        """
        import lamindb

        self.newest = lamindb.Collection.filter(key=key, is_latest=True).order_by("-created_at").first()
        listed = [] if self.newest is None else list(self.newest.ordered_artifacts.all())
        self.listed = [artifact.pk for artifact in listed]
        """Primary keys of the artifacts in the newest version, in order."""
        self.members = [artifact for artifact in listed if artifact.branch_id != TRASH]
        self._files = _files(outcomes)
        self._by_path = {file.path: file for file in self._files}
        # of two files with the same content one was dropped as a copy
        kept_last = sorted(self._files, key=lambda file: any(part.output for part in file.parts))
        self._by_content = {file.content: file for file in kept_last}
        self._member_ids = {member.pk for member in self.members}
        self._path_of = {origin.key: origin.path for _, origin in _origins(self.members)}
        earlier = lamindb.Artifact.filter(key__startswith=f"{key}/").order_by("id")
        self.kept = self._kept(self._find_keys(key, [*earlier, *self.members]))
        # the manager includes the trash, which comes first here: of several artifacts the last one counts
        made = lamindb.Artifact.objects.filter(**{f"extra_data__{CURATION}__content__in": list(self._by_content)})
        made = made.select_related("storage").order_by("branch_id", "id")
        self.known: dict[Identity, Artifact] = {
            origin.identity: artifact
            for artifact, origin in _origins([*made, *self.members])
            if self._has_content_of(artifact, origin)
        }
        """Existing artifacts of the files, in this collection or another, perhaps in the trash."""

    @property
    def new(self) -> list[Member]:
        """The kept files that are not registered."""
        return [member for member in self.kept if member.origin.identity not in self.known]

    def moved(self, known: Mapping[Identity, Artifact]) -> list[tuple[Artifact, Origin]]:
        """Artifacts whose files have moved, and their new origins."""
        found = []
        for member in self.kept:
            artifact = known[member.origin.identity]
            origin = Origin.read(artifact)
            if origin is not None and origin.path != member.origin.path and self._has_left(origin):
                found.append((artifact, replace(origin, path=member.origin.path)))
        return found

    def merged(self, known: Mapping[Identity, Artifact]) -> list[Artifact]:
        """The new members: artifacts of the files take the place of their earlier ones, or are added at the end."""
        now = {file.path: [known[_identity(part)] for part in file.parts if part.output] for file in self._files}
        before = []
        for member in self.members:
            origin = Origin.read(member)
            file = origin and (self._by_content.get(origin.content) or self._by_path.get(origin.path))
            failed = {part.organism for part in file.parts if part.status == "failed"} if file else set()
            before.append(now[file.path] if file and origin and origin.organism not in failed else [member])
        return list({artifact.pk: artifact for artifact in chain(*before, *now.values())}.values())

    def _kept(self, keys: Mapping[str, str]) -> list[Member]:
        return [
            Member(
                key=file.part_key(keys[file.path], part),
                origin=Origin(
                    path=file.path,
                    key=keys[file.path],
                    content=part.content,
                    recipe=part.recipe,
                    organism=part.organism,
                ),
                outcome=part,
                output=part.output,
            )
            for file in self._files
            for part in file.parts
            if part.output
        ]

    def _find_keys(self, key: str, artifacts: Sequence[Artifact]) -> dict[str, str]:
        """{path: key} of the files; the key of a new file ends in a number if another file has it."""
        of_content: dict[str, str] = {}
        taken = {str(artifact.key) for artifact in artifacts}
        for artifact, origin in _origins(artifacts):
            taken.add(origin.key)
            if self._has_content_of(artifact, origin):
                of_content.setdefault(origin.content, origin.key)
        of_path = {
            origin.path: origin.key for _, origin in _origins(self.members) if origin.content not in self._by_content
        }
        keys: dict[str, str] = {}
        for file in self._files:
            keys[file.path] = of_content.get(file.content) or of_path.get(file.path) or _free(file, key, taken)
            taken |= {keys[file.path], *(file.part_key(keys[file.path], part) for part in file.parts)}
        return keys

    def _has_content_of(self, artifact: Artifact, origin: Origin) -> bool:
        """Whether an artifact belongs to a file with its content, rather than to another copy of that file.

        An artifact in the collection always does: otherwise, its cells would be in the collection twice.
        """
        file = self._by_content.get(origin.content)
        if file is None or artifact.pk in self._member_ids:
            return file is not None
        if origin.key in self._path_of:
            return self._path_of[origin.key] == file.path
        return origin.path == file.path or self._has_left(origin)

    def _has_left(self, origin: Origin) -> bool:
        """Whether the content is no longer at its path."""
        named = self._by_path.get(origin.path)
        if named is not None:
            return named.content != origin.content
        path = Path(origin.path)
        return not path.exists() or content_of(path) != origin.content


def _origins(artifacts: Iterable[Artifact]) -> list[tuple[Artifact, Origin]]:
    """Artifacts that were curated by this package, and their origins."""
    pairs = ((artifact, Origin.read(artifact)) for artifact in artifacts)
    return [(artifact, origin) for artifact, origin in pairs if origin is not None]


def _identity(outcome: Outcome) -> Identity:
    return outcome.content, outcome.recipe, outcome.organism


def _files(outcomes: Iterable[Outcome]) -> list[_File]:
    """The files of outcomes, in order, without those that failed as a whole."""
    files: dict[str, _File] = {}
    for outcome in outcomes:
        path = str(real_path(outcome.source))
        files.setdefault(path, _File(path=path, content=outcome.content)).parts.append(outcome)
    return [file for file in files.values() if any(part.status != "failed" for part in file.parts)]


def _free(file: _File, key: str, taken: set[str]) -> str:
    """A key that no artifact has: the path of the file below the working directory, or its absolute path."""
    path, here = Path(file.path), Path.cwd().resolve()
    names = path.relative_to(here if path.is_relative_to(here) else path.anchor).with_suffix("")
    stem = f"{key}/{names.as_posix()}"
    found, number = f"{stem}.h5ad", 1
    while {found, *(file.part_key(found, part) for part in file.parts)} & taken:
        number += 1
        found = f"{stem}-{number}.h5ad"
    return found
