"""Which sources a store has already, and which of them have changed since they were converted."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scdataloader.genes.numbers import GeneNumbers
from scdataloader.protocols import Closes, Source
from scdataloader.runtime.progress import cells_bar
from scdataloader.sources.fingerprint import difference, is_of_first_rule, parts_of
from scdataloader.store.export import OriginalSource
from scdataloader.store.manifest import LAYERS, Manifest, SourceRecord, X
from scdataloader.store.reader import Store
from scdataloader.store.tables import GeneList, to_arrow, whole_obs, with_categories
from scdataloader.store.writing.matrices import matrix_blocks
from scdataloader.store.writing.scan import CELLS_PER_SHARD, SHUFFLED, Options, ScannedSource, scan
from scdataloader.store.writing.tasks import blocks, stored_offsets, stored_rows
from scdataloader.types import CSRMatrix

logger = logging.getLogger(__name__)

_RECOGNISABLE = {"obs", "var", "X", "obs and var", "var and X"}
"""Changes after which a source still is the one that was converted, since its cells or their values are the same."""


@dataclass(frozen=True, kw_only=True)
class StoreContent:
    """The sources of a store, to compare others with."""

    folder: Path
    manifest: Manifest
    shown: bool
    """Whether to show the progress of long comparisons."""
    url: str | None = None
    """Where the store is, if not in the folder."""
    _by_fingerprint: dict[str, int] = field(default_factory=dict)
    _by_name: dict[tuple[str, int], int] = field(default_factory=dict)
    _of_first_rule: dict[tuple[str, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, record in enumerate(self.manifest.sources):
            self._by_fingerprint[record.fingerprint] = number
            self._by_name[record.name, record.n_cells] = number
            if is_of_first_rule(record.fingerprint):
                self._of_first_rule[record.genes, record.n_cells] = number

    def missing(self, scanned: Sequence[ScannedSource]) -> list[ScannedSource]:
        """The sources that the store does not have yet.

        Raises:
            ValueError: the store has another content of a source.
        """
        return [one for one in scanned if not self._has(one)]

    def problems(self, scanned: Sequence[ScannedSource]) -> Iterator[str]:
        """For each source that the store does not have, or whose content has changed, a line that states this."""
        for one in scanned:
            number, name = self._number(one), one.planned.name
            changed = None if number is None else self.change(number, one)
            if number is None:
                yield f"{name} is not in the store"
            elif changed is not None:
                yield f"{changed} of {name} changed since it was converted"

    def changed(self, scanned: Sequence[ScannedSource], options: Options) -> dict[int, str]:
        """{number: what has changed} of the sources of the store, if a conversion of ``scanned`` would make this store.

        Raises:
            FileExistsError: it would make another one: of other sources or options.
        """
        manifest, changed = self.manifest, dict[int, str]()
        for name, there, given in (
            ("layout", manifest.layout, options.layout or "source"),
            ("values", {source.kind for source in manifest.sources}, {options.kind}),
            ("number of sources", len(manifest.sources), len(scanned)),
            ("further matrices", set(manifest.matrix_keys) or "none", set(options.matrices or ()) or "none"),
        ):
            if there != given:
                self._refuse(f"its {name} is {_text(there)}, not {_text(given)}")
        for number, one in enumerate(scanned):
            what, there = self.change(number, one), manifest.sources[number].name
            if what is not None:
                changed[number] = what
            known = _RECOGNISABLE | set(manifest.matrix_keys)
            if what is not None and (there != one.planned.name or what not in known):
                self._refuse(f"it has other data: {what} of {one.planned.name} differ from its source {there}")
        if not changed:
            self._check_numbers(scanned, options)
        return changed

    def _refuse(self, why: str) -> NoReturn:
        raise FileExistsError(
            f"{self.folder} is a store already, and {why}; add to it with append (--append), name another folder, or "
            "delete it"
        )

    def _check_numbers(self, scanned: Sequence[ScannedSource], options: Options) -> None:
        """Refuse another seed, or other sizes of shards, as far as both are given."""
        manifest, most = self.manifest, options.cells_per_shard
        seeds = {source.seed for source in manifest.sources} - {None}
        if manifest.layout == SHUFFLED and options.seed is not None and seeds not in (set(), {options.seed}):
            self._refuse(f"its seed is {_text(seeds)}, not {options.seed}")
        if most is not None:
            n_shards = sum(len(one.ranges) for one in scanned)
            if manifest.layout != "source":
                n_shards = -(-manifest.n_cells // most)
            if n_shards != len(manifest.shards):
                self._refuse(f"it has {len(manifest.shards)} shards, not the {n_shards} of cells_per_shard={most}")

    def _number(self, one: ScannedSource) -> int | None:
        """Number of the source of the store that is, or may have been, this one; None if there is none."""
        planned = one.planned
        number = self._by_fingerprint.get(planned.fingerprint)
        if number is None:
            number = self._by_name.get((planned.name, planned.n_cells))
        if number is None and parts_of(planned.fingerprint):
            number = self._of_first_rule.get((planned.genes, planned.n_cells))
        return number

    def _has(self, one: ScannedSource) -> bool:
        planned, number = one.planned, self._number(one)
        if number is None:
            return False
        changed = self.change(number, one)
        record = self.manifest.sources[number]
        if changed is None or (record.name != planned.name and is_of_first_rule(record.fingerprint)):
            return changed is None
        raise ValueError(
            f"{self.folder} has {planned.name} already, and {changed} of it changed since; convert all its sources "
            "again without append"
        )

    def change(self, number: int, one: ScannedSource) -> str | None:
        """What has changed of a source since it was converted as source ``number``; None if nothing.

        Where fingerprints and times of change cannot decide, the source is compared with the store cell by cell.
        """
        record, planned = self.manifest.sources[number], one.planned
        changed = difference(record.fingerprint, planned.fingerprint)
        if changed is None:
            pairs = zip(self.manifest.matrices, planned.matrices, strict=True)
            changed = next((of.key for of, now in pairs if of.parts[number].digest != now.digest), None)
        if changed is None and record.file_state in (None, planned.file_state):
            return None
        if changed is not None and not (is_of_first_rule(record.fingerprint) and parts_of(planned.fingerprint)):
            return changed
        why = "was written to after it was converted" if changed is None else "was converted by an earlier release"
        logger.info("%s %s: comparing it with %s", planned.name, why, self.folder)
        return self._compared(number, record, one.source)

    def _compared(self, number: int, record: SourceRecord, source: Source) -> str | None:
        if source.n_obs != record.n_cells:
            return "obs and X"
        genes = GeneList.of(source)
        if genes.digest != record.genes:
            return "var"
        original = OriginalSource.of(Store.open(self.url or self.folder).sources[number])
        if not _roundtrip(whole_obs(source), source.name).equals(original.obs):
            return "obs"
        n, keys = source.n_obs, self.manifest.matrix_keys
        with cells_bar(f"comparing {source.name}", n * (1 + len(keys)), 0, shown=self.shown) as on_progress:
            for n_before, key in enumerate((X, *keys)):
                for stop, same in _same_cells(source, original, key, genes.place):
                    if not same:
                        return key
                    on_progress(n * n_before + stop)
        return None


def _text(value: object) -> str:
    return " and ".join(sorted(map(str, value))) if isinstance(value, set) else str(value)


def _roundtrip(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """A cell table as it is read from a store."""
    file = io.BytesIO()
    pq.write_table(to_arrow(frame, "obs", name), file)
    return with_categories(pq.read_table(file))


def _same_cells(
    source: Source, original: OriginalSource, key: str, place: NDArray[np.int64]
) -> Iterator[tuple[int, bool]]:
    """For consecutive blocks of cells of a matrix: where each ends, and whether it is the same in the store.

    ``place`` ``(n_genes,)`` is the position of each of the source's genes in the original.
    """
    is_float, by_gene = key != X or original.is_float, key == X or key.startswith(LAYERS)
    n_columns = len(original.var) if by_gene else original.source.part(key).n_columns
    for start, stop, rows in _cells(source, key):
        indices = place[rows.indices] if by_gene else rows.indices
        ours = _canonical(replace(rows, indices=indices), n_columns, is_float)
        theirs = _canonical(original.cells(start, stop, key), n_columns, is_float)
        arrays = ((ours.indptr, theirs.indptr), (ours.indices, theirs.indices), (ours.data, theirs.data))
        yield stop, all(one.tobytes() == other.tobytes() for one, other in arrays)  # the bits, also of NaN
        if isinstance(source, Closes):
            source.release()


def _cells(source: Source, key: str) -> Iterator[tuple[int, int, CSRMatrix]]:
    """All cells of a matrix of a source, in blocks: the first and the end of each, and its cells."""
    if key != X:
        yield from matrix_blocks(source, key, 0, source.n_obs)
        return
    for start, stop in blocks(source.n_obs, stored_offsets(source), len(source.var)):
        yield start, stop, stored_rows(source, start, stop)


def _canonical(rows: CSRMatrix, n_genes: int, is_float: bool) -> csr_matrix:  # noqa: FBT001 (a property of the store)
    dtype = np.float32 if is_float else np.float64
    matrix = csr_matrix((rows.data.astype(dtype), rows.indices, rows.indptr), (len(rows.indptr) - 1, n_genes))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def compare(
    folder: Path, manifest: Manifest, sources: Sequence[Source], *, shown: bool, url: str | None = None
) -> list[str]:
    """What of the sources is not, or not any more, as in a store; empty if it has them all.

    Of a store at a URL, the folder need not have the files.
    """
    content = StoreContent(folder=folder, manifest=manifest, shown=shown, url=url)
    scanned = scan(sources, "source", CELLS_PER_SHARD, GeneNumbers(), manifest.matrix_keys)
    return list(content.problems(scanned))
