"""Which file an artifact was made of: its ``extra_data`` says so.

A file is known again by its content, wherever it lies now, and else by its path, where its content is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from scdataloader.curation.ledger import content_of, real_path
from scdataloader.curation.report import Outcome

if TYPE_CHECKING:
    from lamindb import Artifact

CURATION = "curation"
"""Where in an artifact's ``extra_data`` it is noted."""

Identity = tuple[str, str, str]
"""What an artifact is known again by: hashes of content and recipe, and the organism, an NCBITaxon id or empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What an artifact was made of."""

    path: str
    """The file, absolute, where it was when it was registered last."""
    key: str
    """Of the artifact, or of the file whose parts, one for each organism, are artifacts."""
    identity: Identity
    """Content, recipe and organism."""

    @classmethod
    def read(cls, artifact: Artifact) -> Self | None:
        """That of an artifact; None where it was not curated here."""
        noted = (artifact.extra_data or {}).get(CURATION)
        if noted is None:
            return None
        return cls(
            path=noted["path"], key=noted["key"], identity=(noted["content"], noted["recipe"], noted["organism"])
        )

    @property
    def noted(self) -> dict[str, Any]:
        """What ``extra_data`` is to be."""
        content, recipe, organism = self.identity
        noted = {"path": self.path, "key": self.key, "content": content, "recipe": recipe, "organism": organism}
        return {CURATION: noted}

    def __str__(self) -> str:
        """The artifact's description."""
        content, recipe, organism = self.identity
        return f"{self.path}{organism and f', {organism}'} (content {content}, recipe {recipe})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A curated file that is to be an artifact of the collection."""

    key: str
    """Of the artifact."""
    origin: Origin
    """What the artifact is made of."""
    outcome: Outcome
    """What became of the file."""
    output: Path
    """The curated file."""


@dataclass(kw_only=True, slots=True)
class _File:
    """A file of a call that did not fail as a whole."""

    path: str
    """Absolute."""
    content: str
    """Hash."""
    parts: list[Outcome] = field(default_factory=list)
    """What became of it, or of its parts."""

    @property
    def failed(self) -> set[str]:
        """Organisms whose part failed."""
        return {part.organism for part in self.parts if part.status == "failed"}

    @property
    def is_kept(self) -> bool:
        """Whether anything of it was."""
        return any(part.output for part in self.parts)


class Files:
    """The files of a call, and which of a collection's artifacts are theirs."""

    def __init__(
        self, outcomes: Iterable[Outcome], key: str, members: Sequence[Artifact], earlier: Iterable[Artifact]
    ) -> None:
        """Find whose artifacts are whose.

        Args:
            outcomes: What became of the files; those that failed stay as they were.
            key: Of the collection.
            members: Its artifacts.
            earlier: All whose keys begin with the collection's.
        """
        self._members = members
        self._files = _files(outcomes)
        self._by_path = {file.path: file for file in self._files}
        # a file with the content of another was dropped for that
        self._by_content = {file.content: file for file in sorted(self._files, key=lambda file: file.is_kept)}
        self._owners = {origin.key: origin.path for member in members if (origin := Origin.read(member)) is not None}
        self._member_ids = {member.pk for member in members}
        self._keys = self._find_keys(key, [*earlier, *members])

    def kept(self) -> list[Kept]:
        """Each outcome with an output; its key is that of the file's artifacts of before, where there are any."""
        return [
            Kept(
                key=_part_key(self._keys[file.path], part, file),
                origin=Origin(path=file.path, key=self._keys[file.path], identity=identity(part)),
                outcome=part,
                output=part.output,
            )
            for file in self._files
            for part in file.parts
            if part.output
        ]

    def known(self, candidates: Iterable[Artifact]) -> dict[Identity, Artifact]:
        """Those of some artifacts that the files are already; of several the last one counts."""
        known = {}
        for artifact in candidates:
            origin = Origin.read(artifact)
            if origin is not None and self._is_of(artifact, origin, self._by_content.get(origin.identity[0])):
                known[origin.identity] = artifact
        return known

    def moved(self, known: Mapping[Identity, Artifact]) -> list[tuple[Artifact, Origin]]:
        """Artifacts whose files lie elsewhere now, and what is to be noted of them."""
        found = []
        for kept in self.kept():
            artifact = known[kept.origin.identity]
            origin = Origin.read(artifact)
            if origin is not None and origin.path != kept.origin.path and self._has_left(origin):
                found.append((artifact, replace(origin, path=kept.origin.path)))
        return found

    def merged(self, known: Mapping[Identity, Artifact]) -> list[Artifact]:
        """The members, with those of the files replaced, or gone, and new ones at the end."""
        now = {file.path: [known[identity(part)] for part in file.parts if part.output] for file in self._files}
        before = []
        for member in self._members:
            file, origin = self._file_of(member), Origin.read(member)
            stays = file is None or (origin is not None and origin.identity[2] in file.failed)
            before.append([member] if stays or file is None else now[file.path])
        return list({artifact.pk: artifact for artifact in chain(*before, *now.values())}.values())

    def _file_of(self, artifact: Artifact) -> _File | None:
        """The file that an artifact is of: by its content, and else by its path."""
        origin = Origin.read(artifact)
        if origin is None:
            return None
        return self._by_content.get(origin.identity[0]) or self._by_path.get(origin.path)

    def _is_of(self, artifact: Artifact, origin: Origin, file: _File | None) -> bool:
        """Whether an artifact is of a file with its content: of that itself, not of one that it is a copy of.

        A member is in any case, or cells would be in the collection twice.
        """
        if file is None or artifact.pk in self._member_ids:
            return file is not None
        if origin.key in self._owners:
            return self._owners[origin.key] == file.path
        return origin.path == file.path or self._has_left(origin)

    def _has_left(self, origin: Origin) -> bool:
        """Whether the content is no longer where it was."""
        named = self._by_path.get(origin.path)
        if named is not None:
            return named.content != origin.identity[0]
        path = Path(origin.path)
        return not path.exists() or content_of(path) != origin.identity[0]

    def _find_keys(self, key: str, artifacts: Sequence[Artifact]) -> dict[str, str]:
        """{path: key} of the files; a new one's ends in a number where others have the key."""
        of_content: dict[str, str] = {}
        taken = {str(artifact.key) for artifact in artifacts}
        for artifact in artifacts:
            origin = Origin.read(artifact)
            if origin is None:
                continue
            taken.add(origin.key)
            if self._is_of(artifact, origin, self._by_content.get(origin.identity[0])):
                of_content.setdefault(origin.identity[0], origin.key)
        of_path = {}
        for member in self._members:
            origin = Origin.read(member)
            if origin is not None and origin.identity[0] not in self._by_content:
                of_path[origin.path] = origin.key
        keys: dict[str, str] = {}
        for file in self._files:
            keys[file.path] = of_content.get(file.content) or of_path.get(file.path) or _free(file, key, taken)
            taken |= {keys[file.path], *(_part_key(keys[file.path], part, file) for part in file.parts)}
        return keys


def identity(outcome: Outcome) -> Identity:
    """What the artifact of an outcome is known again by."""
    return outcome.content, outcome.recipe, outcome.organism


def _files(outcomes: Iterable[Outcome]) -> list[_File]:
    """The files of outcomes, in order, without those that failed as a whole."""
    files: dict[str, _File] = {}
    for outcome in outcomes:
        path = str(real_path(outcome.source))
        file = files.setdefault(path, _File(path=path, content=outcome.content))
        file.parts.append(outcome)
    return [file for file in files.values() if any(part.status != "failed" for part in file.parts)]


def _free(file: _File, key: str, taken: set[str]) -> str:
    """A key that no artifact has: the file's path below the working directory, or all of it where it lies elsewhere."""
    path, here = Path(file.path), Path.cwd().resolve()
    names = path.relative_to(here if path.is_relative_to(here) else path.anchor).with_suffix("")
    stem = f"{key}/{names.as_posix()}"
    found, number = f"{stem}.h5ad", 1
    while {found, *(_part_key(found, part, file) for part in file.parts)} & taken:
        number += 1
        found = f"{stem}-{number}.h5ad"
    return found


def _part_key(key: str, part: Outcome, file: _File) -> str:
    """Key of a file's artifact, which of a file of several organisms names its own."""
    if len(file.parts) == 1:
        return key
    return f"{key.removesuffix('.h5ad')}.{part.organism.replace(':', '_')}.h5ad"
