"""What has been done in a folder, so that it is not done again: a line of JSON for whatever was finished."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

from scdataloader.curation.outcome import Outcome
from scdataloader.runtime.files import try_lock

LEDGER = "curated.jsonl"
FORMAT = 1
"""Counts up whenever its lines become others; the first line says it."""

_SUFFIXES = (".h5ad", ".zarr")
_PART = re.compile(r"\.NCBITaxon_[0-9]+$")


class Ledger:
    """The contents, outcomes and names of outputs of the files that were curated into a folder; made by `open_ledger`.

    A file is known by its absolute path. Lines are only ever added, and of several on the same file the last one
    counts; one that was cut short is removed.
    """

    def __init__(self, folder: Path, file: BinaryIO) -> None:
        self._folder, self._file = folder, file
        self._contents: dict[str, tuple[list[int], str]] = {}
        self._outcomes: dict[str, list[Outcome]] = {}
        self._names: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._there = {_PART.sub("", there.stem).lower() for there in folder.glob("*.h5ad")}
        lines = _whole_lines(file)
        if not lines:
            self._write({"format": FORMAT})
        elif lines[0] != {"format": FORMAT}:
            raise RuntimeError(
                f"{folder / LEDGER} is of another release of this package; name another folder, or empty this one"
            )
        for line in lines[1:]:
            self._take(line)

    def content(self, path: Path) -> str | None:
        """The hash of a file's content, if size and time of the last change are those of when it was noted."""
        stamp, content = self._contents.get(str(path), ([], ""))
        return content if stamp == stamp_of(path) else None

    def known(self, path: Path) -> tuple[int, str]:
        """Size in bytes of a file whose content was noted, and the hash."""
        stamp, content = self._contents[str(path)]
        return stamp[0], content

    def note_content(self, path: Path, stamp: list[int], content: str) -> None:
        """Keep the hash of a file's content; ``stamp`` is from before it was read."""
        self._add({"path": str(path), "stamp": stamp, "content": content})

    def outcomes(self, path: Path) -> list[Outcome]:
        """What has become of a file; empty where it was not curated."""
        return self._outcomes.get(str(path), [])

    def note_outcomes(self, path: Path, outcomes: Sequence[Outcome]) -> None:
        """Keep what has become of a file, or that it is not known, without any; other outputs of it are removed."""
        name = self._names.get(str(path))
        if name is not None:
            for there in self._folder.glob(f"{glob.escape(name)}.*h5ad"):
                if _PART.sub("", there.stem) == name and there not in {outcome.output for outcome in outcomes}:
                    there.unlink()
        sizes = {one.output.name: one.output.stat().st_size for one in outcomes if one.output is not None}
        self._add({"path": str(path), "outcomes": [_plain(outcome) for outcome in outcomes], "sizes": sizes})
        if outcomes:
            self.sync()

    def is_there(self, outcome: Outcome) -> bool:
        """Whether the output of an outcome, if any, is as large as it was when it was noted."""
        path = outcome.output
        return path is None or (path.is_file() and path.stat().st_size == self._sizes.get(path.name))

    def sync(self) -> None:
        """Have all notes on the disk."""
        os.fsync(self._file.fileno())

    def take_over(self, paths: Iterable[Path]) -> None:
        """Know files, whose content was noted, by what is known of others with this content that are there no more."""
        new = [str(path) for path in paths if not self.outcomes(path)]
        gone = {
            content: path
            for path, (_, content) in (self._contents.items() if new else ())
            if path in self._names and not Path(path).exists()
        }
        for path in new:
            before = gone.pop(self._contents[path][1], None)
            if before is not None:
                self._add({"path": path, "before": before})

    def output(self, path: Path) -> Path:
        """The file that a file's cells go to: named like it, with a number where another has that name already.

        Raises:
            FileExistsError: there is a file of this name, which is none that was curated here.
        """
        key = str(path)
        if key not in self._names:
            stem = path.name
            for suffix in _SUFFIXES:
                stem = stem.removesuffix(suffix)
            # such names are those of parts
            stem = _PART.sub(lambda part: f"-{part[0][1:]}", stem)
            taken = {name.lower() for name in self._names.values()}  # some disks do not tell upper from lower case
            name, number = stem, 1
            while name.lower() in taken:
                number += 1
                name = f"{stem}-{number}"
            if name.lower() in self._there:
                raise FileExistsError(
                    f"{self._folder} has {name}.h5ad or parts of it already, which its {LEDGER} does not know: move "
                    "them away, or name another folder"
                )
            self._add({"path": key, "name": name})
        return self._folder / f"{self._names[key]}.h5ad"

    def _add(self, line: dict[str, Any]) -> None:
        self._write(line)
        self._take(line)

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def _take(self, line: dict[str, Any]) -> None:
        path = line["path"]
        if "content" in line:
            self._contents[path] = line["stamp"], line["content"]
        if "name" in line:
            self._names[path] = line["name"]
        if "before" in line:
            self._names[path] = self._names.pop(line["before"])
            self._outcomes[path] = self._outcomes.pop(line["before"], [])
        if "outcomes" in line:
            self._outcomes[path] = [_outcome(plain, self._folder) for plain in line["outcomes"]]
            self._sizes |= line["sizes"]


@contextmanager
def open_ledger(folder: Path) -> Iterator[Ledger]:
    """The ledger of a folder, which is made if need be; nobody else can open it meanwhile.

    Raises:
        RuntimeError: another run has it open, or it is of another release.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LEDGER).open("a+b") as file:
        if not try_lock(file.fileno()):
            raise RuntimeError(
                f"another run is curating into {folder}; wait until it has ended, or name another folder"
            )
        yield Ledger(folder, file)


def _whole_lines(file: BinaryIO) -> list[dict[str, Any]]:
    """What the lines of a ledger say; from one on that was cut short, or never got to the disk, they are removed."""
    file.seek(0)
    lines, end = [], 0
    for line in file:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
        if not line.endswith(b"\n"):
            lines.pop()
            break
        end += len(line)
    file.truncate(end)
    return lines


def real_path(path: str | os.PathLike[str]) -> Path:
    """What stands for a file however it was named: ``a.h5ad``, ``./raw/../a.h5ad`` and ``/home/me/a.h5ad`` are one."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow a link to the file)
    return absolute.parent.resolve() / absolute.name


def stamp_of(path: Path) -> list[int]:
    """Size of a file or folder in bytes, and a number that changes with the times at which what it holds was changed.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [(str(part.relative_to(path)), part.stat()) for part in _files(path)]
    times = repr([(name, status.st_size, status.st_mtime_ns) for name, status in found]).encode()
    digest = hashlib.blake2b(times, digest_size=6).digest()
    return [sum(status.st_size for _, status in found), int.from_bytes(digest)]


def content_of(path: Path) -> str:
    """32 hexadecimal digits that tell the content of a file, or of all files in a folder, from any other.

    Raises:
        FileNotFoundError: there is none.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in _files(path):
        with part.open("rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        digest.update(f"{part.relative_to(path)}\n{content.hexdigest()}\n".encode())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]


def _plain(outcome: Outcome) -> dict[str, Any]:
    return asdict(outcome) | {"output": None if outcome.output is None else outcome.output.name}


def _outcome(plain: dict[str, Any], folder: Path) -> Outcome:
    made = Outcome(**plain | {"notes": tuple(plain["notes"])})
    return replace(made, output=None if made.output is None else folder / made.output)
