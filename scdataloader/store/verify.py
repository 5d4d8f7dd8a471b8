"""Whether every byte of a store is what was written: all files, all records, all tables."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.filesize import decimal

from scdataloader.errors import StoreFormatError
from scdataloader.runtime.progress import Advance, progress_bar
from scdataloader.store.gene_spaces import GenePlaces, GeneSpace, refuse_unsorted
from scdataloader.store.manifest import MANIFEST, Manifest
from scdataloader.store.shard_check import KnownGenes, check_shard
from scdataloader.store.tables import POSITION, ROW, Table, order_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What was read of a store that is whole."""

    n_files: int
    """Files, the manifest included."""
    n_bytes: int
    """Their bytes."""
    n_cells: int
    """Cells."""
    n_values: int
    """Values of all cells."""
    unnamed: tuple[str, ...]
    """Files in the folder that are not the store's, such as the rest of an interrupted conversion; sorted."""


def verify(path: str | os.PathLike[str], *, progress: bool | None = None) -> Verified:
    """Read a store whole and check every checksum and every rule of the format, shards in threads.

    Args:
        path: The store.
        progress: Whether to show a bar on standard error; None to show it on a terminal.

    Raises:
        FileNotFoundError: there is no such folder.
        StoreFormatError: the store is damaged; tells all that is wrong, by file and cell.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"{path} is no folder, as a store is")
    manifest = Manifest.read(folder)
    problems = list(manifest.contradictions(folder))
    if not problems:
        n_bytes = sum(file.n_bytes for file in manifest.files)
        shown = sys.stderr.isatty() if progress is None else progress
        with progress_bar("verifying", n_bytes, shown=shown) as advance:
            problems += _Check(folder, manifest, advance).problems()
    if problems:
        many = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise StoreFormatError("\n  ".join([f"{folder} is damaged, {many}:", *problems]))
    return Verified(
        n_files=len(manifest.files) + 1,
        n_bytes=n_bytes + (folder / MANIFEST).stat().st_size,
        n_cells=manifest.n_cells,
        n_values=sum(shard.n_values for shard in manifest.shards),
        unnamed=tuple(_unnamed(folder, manifest)),
    )


def _unnamed(folder: Path, manifest: Manifest) -> Iterator[str]:
    named = {MANIFEST, *(file.path for file in manifest.files)}
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder).as_posix()
        if not file.is_dir() and relative not in named:
            yield relative


class _Check:
    """The files of a store whose manifest does not contradict itself."""

    def __init__(self, folder: Path, manifest: Manifest, advance: Advance) -> None:
        self._folder, self._manifest, self._advance = folder, manifest, advance
        self._spaces: dict[int, GeneSpace] = {}
        self._places: dict[tuple[str, int], GenePlaces] = {}

    def problems(self) -> Iterator[str]:
        """All that is wrong."""
        wrong_files = {file.path: why for file, why in self._manifest.wrong_files(self._folder)}
        yield from wrong_files.values()
        yield from self._gene_spaces(wrong_files)
        yield from self._gene_tables(wrong_files)
        yield from self._cell_tables(wrong_files)
        yield from self._shards(wrong_files)

    def _gene_spaces(self, left_out: dict[str, str]) -> Iterator[str]:
        for number, record in enumerate(self._manifest.spaces):
            if record.file.path not in left_out:
                space = GeneSpace(self._folder, record)
                try:
                    space.read()
                    self._spaces[number] = space
                except StoreFormatError as error:
                    yield str(error)
                self._advance(record.file.n_bytes)

    def _gene_tables(self, left_out: dict[str, str]) -> Iterator[str]:
        used = sorted({(source.genes, source.space) for source in self._manifest.sources})
        for digest, record in self._manifest.genes.items():
            if record.path not in left_out:
                table = Table(self._folder, record)
                try:
                    frame = table.read()
                    order_of(table, frame, POSITION)
                    refuse_unsorted(table, frame.index)
                    for space in [number for name, number in used if name == digest and number in self._spaces]:
                        self._places[digest, space] = self._spaces[space].places(table, digest, frame.index)
                except StoreFormatError as error:
                    yield str(error)
                self._advance(record.n_bytes)

    def _cell_tables(self, left_out: dict[str, str]) -> Iterator[str]:
        for source in self._manifest.sources:
            if source.obs.path not in left_out:
                table = Table(self._folder, source.obs)
                try:
                    frame = table.read(n_rows=source.n_cells)
                    if ROW in frame or self._manifest.layout != "source":
                        order_of(table, frame, ROW)
                except StoreFormatError as error:
                    yield str(error)
                self._advance(source.obs.n_bytes)

    def _shards(self, left_out: dict[str, str]) -> Iterator[str]:
        sources, genes = self._manifest.sources, KnownGenes.of(self._manifest, self._places)
        cells_of, is_whole = np.zeros(len(sources), np.int64), not left_out
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            shards = [shard for shard in self._manifest.shards if shard.file.path not in left_out]
            checked = threads.map(
                lambda shard: check_shard(self._folder, self._manifest, shard, genes, self._advance), shards
            )
            for problems, cells in checked:
                yield from problems
                cells_of += cells
                is_whole &= not problems
        for source, n in zip(sources, cells_of, strict=True):
            if is_whole and n != source.n_cells:
                yield f"the shards have {n:,} cells of {source.name}, the manifest says {source.n_cells:,}"


def main(args: Sequence[str]) -> None:
    """Verify the store that ``args`` name, and say in one line how large it is.

    Raises:
        FileNotFoundError: there is no such folder.
        StoreFormatError: the store is damaged.
    """
    parser = argparse.ArgumentParser(
        prog="scdataloader verify", description="Read a store whole and check every checksum in it."
    )
    parser.add_argument("store", metavar="STORE", help="a folder that `scdataloader convert` made")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, help="default: on a terminal")
    options = parser.parse_args(args)
    start = time.perf_counter()
    found = verify(options.store, progress=options.progress)
    seconds = time.perf_counter() - start
    sys.stdout.write(
        f"{options.store} is whole: {found.n_cells:,} cells, {found.n_values:,} values, {found.n_files:,} files, "
        f"{decimal(found.n_bytes)} in {seconds:.1f} s ({found.n_bytes / 1e9 / seconds:.2f} GB/s)\n"
    )
    for name in found.unnamed:
        sys.stdout.write(f"not of the store: {name}\n")
