"""Ledger of a folder of curated files, and the plan of what is left to do: a JSON line per event."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from scdataloader.curation.file import Job, in_one_line
from scdataloader.curation.recipe import Recipe
from scdataloader.curation.report import Outcome
from scdataloader.runtime.buckets import ObjectState, RemotePath, is_remote
from scdataloader.runtime.files import split_path, try_lock
from scdataloader.runtime.names import distinct_names, name_of
from scdataloader.runtime.processes import n_cores
from scdataloader.runtime.progress import progress_bar
from scdataloader.sources.anndata.remote import states_of, version_of

LEDGER = "curated.jsonl"
FORMAT = 1
"""Version of the lines, in the first line."""

_SUFFIXES = (".h5ad", ".zarr")
_PART = re.compile(r"\.NCBITaxon_[0-9]+$")


class Ledger:
    """Contents, outcomes and output names of the files curated into a folder; made by `open_ledger`.

    Files are identified by their absolute path. Lines are only appended; the last line on a file counts, and an
    incomplete line at the end is removed.
    """

    def __init__(self, folder: Path, file: BinaryIO) -> None:
        self._folder, self._file = folder, file
        self._contents: dict[str, tuple[list[int], str]] = {}
        self._outcomes: dict[str, list[Outcome]] = {}
        self._names: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._existing = {_PART.sub("", path.stem).lower() for path in folder.glob("*.h5ad")}
        lines = _whole_lines(file)
        if not lines:
            self._write({"format": FORMAT})
        elif lines[0] != {"format": FORMAT}:
            raise RuntimeError(
                f"{folder / LEDGER} was written by another release of this package; choose another folder, or empty it"
            )
        for line in lines[1:]:
            self._take(line)

    def content(self, path: Path) -> str | None:
        """The noted hash of a file's content; None if its size or modification time has changed since."""
        stamp, content = self._contents.get(str(path), ([], ""))
        return content if stamp == stamp_of(path) else None

    def known(self, path: Path) -> tuple[int, str]:
        """Size in bytes and hash of a file whose content was noted."""
        stamp, content = self._contents[str(path)]
        return stamp[0], content

    def note_content(self, path: Path, stamp: list[int], content: str) -> None:
        """Note the hash of a file's content; ``stamp`` was taken before it was read."""
        self._add({"path": str(path), "stamp": stamp, "content": content})

    def outcomes(self, path: Path) -> list[Outcome]:
        """The outcomes of a file; empty if it was not curated."""
        return self._outcomes.get(str(path), [])

    def note_outcomes(self, path: Path, outcomes: Sequence[Outcome]) -> None:
        """Note the outcomes of a file, or with none that they are unknown; removes all other outputs of the file."""
        name = self._names.get(str(path))
        if name is not None:
            for output in self._folder.glob(f"{glob.escape(name)}.*h5ad"):
                if _PART.sub("", output.stem) == name and output not in {outcome.output for outcome in outcomes}:
                    output.unlink()
        sizes = {one.output.name: one.output.stat().st_size for one in outcomes if one.output is not None}
        self._add({"path": str(path), "outcomes": [_plain(outcome) for outcome in outcomes], "sizes": sizes})
        if outcomes:
            self.sync()

    def is_intact(self, outcome: Outcome) -> bool:
        """Whether the output of an outcome, if any, has the size that was noted."""
        path = outcome.output
        return path is None or (path.is_file() and path.stat().st_size == self._sizes.get(path.name))

    def sync(self) -> None:
        """Flush all notes to disk."""
        os.fsync(self._file.fileno())

    def adopt_moved(self, paths: Iterable[Path]) -> None:
        """Give new files, whose content was noted, the notes of files of the same content that no longer exist."""
        new = [str(path) for path in paths if not self.outcomes(path)]
        gone = {
            content: path
            for path, (_, content) in (self._contents.items() if new else ())
            if path in self._names and not is_remote(path) and not split_path(Path(path))[0].exists()
        }
        for path in new:
            before = gone.pop(self._contents[path][1], None)
            if before is not None:
                self._add({"path": path, "before": before})

    def output(self, path: Path) -> Path:
        """The output of a file: its name, with a number if another file has that name already.

        Raises:
            FileExistsError: a file of this name exists that was not curated here.
        """
        key = str(path)
        if key not in self._names:
            stem = name_of(path).replace("/", "_")
            for suffix in _SUFFIXES:
                stem = stem.removesuffix(suffix)
            # a name that looks like that of a part
            stem = _PART.sub(lambda part: f"-{part[0][1:]}", stem)
            taken = {name.lower() for name in self._names.values()}  # some disks ignore case
            name, number = stem, 1
            while name.lower() in taken:
                number += 1
                name = f"{stem}-{number}"
            if name.lower() in self._existing:
                raise FileExistsError(
                    f"{self._folder} contains {name}.h5ad or parts of it, which are not in its {LEDGER}; move them "
                    "away, or choose another folder"
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
    """Open, and lock, the ledger of a folder, which is made if it does not exist.

    Raises:
        RuntimeError: another run has it open, or it was written by another release.
        OSError: the folder is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LEDGER).open("a+b") as file:
        if not try_lock(file.fileno()):
            raise RuntimeError(
                f"another run is curating into {folder}; wait until it has ended, or choose another folder"
            )
        yield Ledger(folder, file)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The files to curate, and the outcomes of the others."""

    jobs: list[Job]
    """Files to curate, in order."""
    done: dict[Path, list[Outcome]]
    """Outcomes of the other files, by absolute path."""
    n_before: int
    """Number of files that were curated by an earlier run."""


def make_plan(named: Mapping[Path, str], recipe: Recipe, ledger: Ledger, *, shown: bool) -> Plan:
    """Leave out files that are finished, unreadable, or copies of others; the ledger takes notes.

    Args:
        named: {absolute path: file as named by the user}, in order.
        recipe: Recipe of all files.
        ledger: Ledger of the output folder.
        shown: Whether to show a progress bar while files are hashed.
    """
    done = _note_contents(named, ledger, shown=shown)
    ledger.adopt_moved(path for path in named if path not in done)
    jobs = list(_jobs({path: named[path] for path in named if path not in done}, recipe, ledger, done))
    # of files with the same content a finished one goes first, or it would be curated again
    jobs.sort(key=lambda job: not _is_done(job, ledger))
    left: list[Job] = []
    first: dict[str, Job] = {}
    n_before = 0
    for job in jobs:
        if first.setdefault(job.content, job) is not job:
            done[job.path] = [_copy(job, first[job.content])]
            ledger.note_outcomes(job.path, [])
        elif _is_done(job, ledger):
            done[job.path] = [replace(outcome, source=job.source) for outcome in ledger.outcomes(job.path)]
            n_before += 1
        else:
            left.append(job)
    ledger.sync()
    return Plan(jobs=left, done=done, n_before=n_before)


def _copy(job: Job, other: Job) -> Outcome:
    """The outcome of a file with the content of another."""
    reason = f"its content is that of {other.source}"
    outcome = job.failed(reason)
    if job.recipe_hash == other.recipe_hash:
        return replace(outcome, status="dropped")
    return replace(outcome, reason=f"{reason}, to which another rule applies; name one of the two")


def _note_contents(named: Mapping[Path, str], ledger: Ledger, *, shown: bool) -> dict[Path, list[Outcome]]:
    """Note the content of all files; returns the outcomes of those that cannot be read."""
    stamps: dict[Path, list[int]] = {}
    unreadable: dict[Path, list[Outcome]] = {}
    for path, source in named.items():
        try:
            if ledger.content(path) is None:
                stamps[path] = stamp_of(path)
        except OSError as error:
            unreadable[path] = [Outcome.failed(source, in_one_line(error))]
    n_bytes = sum(size for size, _ in stamps.values())
    with progress_bar("reading", n_bytes, shown=shown) as advance, ThreadPoolExecutor(n_cores()) as executor:
        found = {path: executor.submit(content_of, path) for path in stamps}
        for path, content in found.items():
            try:
                ledger.note_content(path, stamps[path], content.result())
            except OSError as error:
                unreadable[path] = [Outcome.failed(named[path], in_one_line(error))]
            advance(stamps[path][0])
    return unreadable


def _jobs(
    named: Mapping[Path, str], recipe: Recipe, ledger: Ledger, failed: dict[Path, list[Outcome]]
) -> Iterator[Job]:
    """A job for each file; ``failed`` takes the outcomes of files whose output exists."""
    names = distinct_names([name_of(path) for path in named], list(named))
    for name, (path, source) in zip(names, named.items(), strict=True):
        n_bytes, content = ledger.known(path)
        own = recipe.for_file(path)
        try:
            output = ledger.output(path)
        except FileExistsError as error:
            failed[path] = [Outcome.failed(source, in_one_line(error), content=content)]
            continue
        yield Job(
            path=path,
            name=name,
            source=source,
            n_bytes=n_bytes,
            content=content,
            recipe=own,
            recipe_hash=own.hash,
            output=output,
        )


def _is_done(job: Job, ledger: Ledger) -> bool:
    """Whether the noted outcomes are those of this content and recipe, without failures, and the outputs intact."""
    outcomes = ledger.outcomes(job.path)
    same = all((outcome.content, outcome.recipe) == (job.content, job.recipe_hash) for outcome in outcomes)
    is_whole = all(outcome.status != "failed" for outcome in outcomes)
    return bool(outcomes) and same and is_whole and all(map(ledger.is_intact, outcomes))


def real_path(path: str | os.PathLike[str]) -> Path:
    """One path for a file however it is named: ``a.h5ad``, ``./raw/../a.h5ad`` and ``/home/me/a.h5ad`` are the same."""
    if isinstance(path, RemotePath):
        return path
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow a link to the file)
    return absolute.parent.resolve() / absolute.name


def stamp_of(path: Path) -> list[int]:
    """Size of a file or folder in bytes, and a digest of the names, sizes and modification times in it.

    Raises:
        FileNotFoundError: the path does not exist.
    """
    if isinstance(path, RemotePath):
        states = _states(path)
        return [sum(state.n_bytes for state in states), int(version_of(states)[:12], 16)]
    path, _ = split_path(path)
    found = [(str(part.relative_to(path)), part.stat()) for part in _files(path)]
    times = repr([(name, status.st_size, status.st_mtime_ns) for name, status in found]).encode()
    digest = hashlib.blake2b(times, digest_size=6).digest()
    return [sum(status.st_size for _, status in found), int.from_bytes(digest)]


def content_of(path: Path) -> str:
    """Hash of all bytes of a file, or of all files in a folder, and of the path in it: 32 hexadecimal digits.

    Of a URL, the ETags stand for the bytes.

    Raises:
        FileNotFoundError: the path does not exist.
    """
    if isinstance(path, RemotePath):
        return _remote_content(path)
    path, inner = split_path(path)
    digest = hashlib.blake2b(inner.encode(), digest_size=16)
    for part in _files(path):
        with part.open("rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        digest.update(f"{part.relative_to(path)}\n{content.hexdigest()}\n".encode())
    return digest.hexdigest()


def _states(path: RemotePath) -> list[ObjectState]:
    states = states_of(path)
    if not states:
        raise FileNotFoundError(f"{path} does not exist")
    return states


def _remote_content(path: RemotePath) -> str:
    """Hash of the sizes and ETags of the objects, the same for copies of a file under another name."""
    outer, inner = split_path(path)
    states = _states(path)
    digest = hashlib.blake2b(inner.encode(), digest_size=16)
    for state in states:
        name = "" if len(states) == 1 and state.path == outer.name else state.path
        digest.update(f"{name}\n{state.n_bytes} {state.etag or path}\n".encode())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]


def _whole_lines(file: BinaryIO) -> list[dict[str, Any]]:
    """Parse a ledger; the file is truncated at the first line that is incomplete or damaged."""
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


def _plain(outcome: Outcome) -> dict[str, Any]:
    return asdict(outcome) | {"output": None if outcome.output is None else outcome.output.name}


def _outcome(plain: dict[str, Any], folder: Path) -> Outcome:
    made = Outcome(**plain | {"notes": tuple(plain["notes"])})
    return replace(made, output=None if made.output is None else folder / made.output)
