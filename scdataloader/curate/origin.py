"""Which file an artifact is of: its description says so.

A file is known again by its content, wherever it lies now, and else by its path, where its content is new.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Self

from scdataloader.curate.outcome import Outcome

if TYPE_CHECKING:
    from lamindb import Artifact

_DESCRIPTION = re.compile(
    r"(?P<path>.*?)(, (?P<organism>NCBITaxon:[0-9]+))? \(content (?P<content>\w+), recipe (?P<recipe>\w+)\)", re.DOTALL
)
_PART = re.compile(r"\.NCBITaxon_[0-9]+(?=\.h5ad$)")

Identity = tuple[str, str, str]
"""What an artifact is known again by: content and recipe of its file, and the organism."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What an artifact was made of; as a string, its description."""

    path: str
    """The file when it was registered last: below the working directory relative to that, elsewhere absolute."""
    identity: Identity
    """Hash of its content; hash of the recipe; NCBITaxon id, or empty."""

    @classmethod
    def of(cls, outcome: Outcome) -> Self:
        """That of the artifact of an outcome."""
        return cls(path=_path(outcome.source), identity=(outcome.content, outcome.recipe, outcome.organism))

    @classmethod
    def read(cls, artifact: Artifact) -> Self | None:
        """That of an artifact; None where somebody else has described it."""
        found = _DESCRIPTION.fullmatch(artifact.description or "")
        return found and cls(path=found["path"], identity=(found["content"], found["recipe"], found["organism"] or ""))

    def __str__(self) -> str:
        content, recipe, organism = self.identity
        return f"{self.path}{organism and f', {organism}'} (content {content}, recipe {recipe})"

    def file(self, key: str) -> str:
        """Key of the file in a collection, by its path."""
        names = [part for part in PurePath(self.path).with_suffix("").parts if part not in ("/", ".", "..")]
        return f"{'/'.join([key, *names])}.h5ad"


def _path(source: str) -> str:
    """What stands for a file however it was named: ``a.h5ad``, ``./raw/../a.h5ad`` and ``/home/me/a.h5ad`` are one."""
    here, path = Path.cwd(), Path(os.path.abspath(source))  # noqa: PTH100 (resolve() would follow a link to the file)
    # a folder may have several names, and the working directory goes by the real one
    for known in (path, path.parent.resolve() / path.name):
        if known.is_relative_to(here):
            return str(known.relative_to(here))
    return str(path)


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


class Files:
    """The files of a call, and which of a collection's artifacts are theirs.

    Args:
        outcomes: What became of the files; those that failed stay as they were.
        key: Of the collection.
        members: Its artifacts.
        earlier: Artifacts that may have been members once.
    """

    def __init__(
        self, outcomes: Iterable[Outcome], key: str, members: Sequence[Artifact], earlier: Iterable[Artifact]
    ) -> None:
        outcomes = list(outcomes)
        self._key, self._members = key, members
        self._n_parts = Counter(outcome.source for outcome in outcomes)
        self._origins = [(outcome, Origin.of(outcome)) for outcome in outcomes if outcome.status != "failed"]
        self._file_of_content: dict[str, str] = {}
        for outcome, origin in self._origins:
            # a file with the content of another was dropped for that
            if outcome.output or outcome.content not in self._file_of_content:
                self._file_of_content[outcome.content] = origin.file(key)
        self._key_of_content: dict[str, str] = {}
        for artifact in (*members, *earlier):
            known = Origin.read(artifact)
            if known is not None:
                self._key_of_content.setdefault(known.identity[0], _whole(artifact))
        self._key_of_file = {self._file(member): _whole(member) for member in members}
        self._taken = {_whole(member) for member in members}

    def kept(self) -> list[Kept]:
        """Each outcome with an output; its key is that of the file's artifacts of before, where there are any."""
        kept = []
        for outcome, origin in self._origins:
            file = origin.file(self._key)
            key = self._key_of_content.get(outcome.content) or self._key_of_file.get(file) or self._free(file)
            if self._n_parts[outcome.source] > 1:
                key = f"{key.removesuffix('.h5ad')}.{outcome.organism.replace(':', '_')}.h5ad"
            if outcome.output:
                kept.append(Kept(key=key, origin=origin, outcome=outcome, output=outcome.output))
        return kept

    def merged(self, known: Mapping[Identity, Artifact]) -> list[Artifact]:
        """The members, with those of the files replaced, or gone, and new ones at the end."""
        now: dict[str, list[Artifact]] = {}
        for outcome, origin in self._origins:
            of_file = now.setdefault(origin.file(self._key), [])
            if outcome.output:
                of_file.append(known[origin.identity])
        before = [now.get(self._file(member), [member]) for member in self._members]
        return list({artifact.pk: artifact for artifact in chain(*before, *now.values())}.values())

    def _file(self, artifact: Artifact) -> str:
        """Key of an artifact's file, by the path where it lies now."""
        origin = Origin.read(artifact)
        if origin is None:
            return _whole(artifact)
        return self._file_of_content.get(origin.identity[0]) or origin.file(self._key)

    def _free(self, file: str) -> str:
        """The key of a new file: with a number where the artifacts of a file that has moved away have it."""
        key, number = file, 1
        while key in self._taken:
            number += 1
            key = f"{file.removesuffix('.h5ad')}-{number}.h5ad"
        return key


def _whole(artifact: Artifact) -> str:
    """Key of the file that an artifact is of, or of whose parts it is one."""
    return _PART.sub("", str(artifact.key))
