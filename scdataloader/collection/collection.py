"""Many sources as one table of cells, with one row numbering and one list of genes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from scdataloader.collection.gather import open_groups
from scdataloader.genes.alignment import AlignedSource, GeneAlignment, align
from scdataloader.kernels.rows.align import NOT_A_GENE
from scdataloader.protocols import (
    Closes,
    HasFileState,
    HasNames,
    HasSizes,
    NeverChanges,
    OpenOptions,
    PendingMatrix,
    PendingRead,
    ReadCost,
    ReadsMatrices,
    ReadsObsInPieces,
    SourceSelection,
    Where,
)
from scdataloader.runtime import arrays
from scdataloader.runtime.arrays import ArrayCache
from scdataloader.runtime.facts import as_html, as_text
from scdataloader.runtime.faults import Faults
from scdataloader.runtime.memory import BufferPool, row_buffers, without_gaps
from scdataloader.runtime.messages import shown
from scdataloader.runtime.options import RemoteOptions
from scdataloader.sources.contract import fingerprint_of, obs_of, rows_of
from scdataloader.sources.fingerprint import digest_of, joined, parts_of
from scdataloader.sources.locate import open_sources
from scdataloader.types import CellBatch, CSRRows

if TYPE_CHECKING:
    from scdataloader.genes.vocabulary import GeneVocabulary
    from scdataloader.sources.anndata.counts import Values

__all__ = ["CellLocations", "Collection"]

SOURCE = "source"
"""The column that holds the name of the source of each cell, unless obs has a column of that name."""

CORPUS = "corpus"
"""The same for the corpus of each cell, if the data are divided into corpora."""

_WINDOW = 4096
"""Cells read at once where a source has to be read to count its values."""


class Collection:
    """Many sources seen as one table of cells: rows 0 … n - 1, source after source, in the vocabulary's genes.

    Create it with `open`. Reading is thread-safe. A file that mixes organisms counts as one source for each.
    """

    def __init__(
        self,
        vocabulary: GeneVocabulary,
        parts: Sequence[AlignedSource],
        corpora: Sequence[str] | None = None,
        gene_tables: Mapping[str, str] | None = None,
    ) -> None:
        """Number the cells of ``parts`` one after the other.

        Args:
            vocabulary: The genes.
            parts: The sources.
            corpora: The corpus of each part.
            gene_tables: {organism: path} of the user's gene tables, see `GeneAlignment`.
        """
        self.vocabulary = vocabulary
        self.gene_tables = gene_tables or {}
        self.parts = tuple(parts)
        self.corpora = None if corpora is None else tuple(corpora)
        groups = open_groups(self.parts, self.n_genes)
        self._groups = [group for group, _ in groups]
        self._first_part = np.cumsum([0, *(n_parts for _, n_parts in groups)])
        self._part_starts = np.cumsum([0, *(part.n_obs for part in self.parts)])
        self._starts = self._part_starts[self._first_part]
        self._buffers = BufferPool()
        self._names: dict[int, pa.Array] = {}

    @classmethod
    def open(
        cls,
        data: Any,
        *,
        where: Where | None = None,
        genes: GeneAlignment | None = None,
        counts: str = "auto",
        values: Values = "counts",
        faults: Faults | None = None,
    ) -> Collection:
        """Open files, stores or a lamindb collection; reads their metadata, not their matrices.

        Args:
            data: Paths or globs of .h5ad files, AnnData .zarr folders and stores, "lamindb:<key>", a lamindb collection
                or artifacts, whatever a plug-in has registered, `Source` objects; one or a list. Or {corpus: one or a
                list of these}, for data that are mixed; see `Mixture`.
            where: Values that cells must have, one or a list by name; a cell needs one of them for each name. For
                files, stores and sources the names are columns of obs: ``{"is_primary_data": True, "assay": ["10x 3'
                v2", "10x 3' v3"]}``. Sources without such a cell are left out. For data of lamindb they are also
                registries: ``{"cell_types": "CL:0000084 and below", "organisms": ["human", "mouse"]}``. Labels are
                ids or names; those that the instance links to a column of obs select cells, and those that it links
                to whole artifacts select artifacts. The cells of a registered store have the labels of the artifacts
                that it was converted from.
            genes: How genes are found and aligned.
            counts: Which matrix holds the counts: "X", "layers/<key>", "raw", or "auto" for the first of these that
                holds integers.
            values: "counts" refuses values that are negative or fractions; "any" takes them.
            faults: Takes the errors of single sources, in place of raising them; the collection has the others.

        Raises:
            SourcesError: several sources have errors.
            FileNotFoundError: a path does not exist, or a glob matches nothing.
            SourceFormatError: a file does not have the format of its suffix, or is damaged.
            NotCountsError: a file has no counts.
            GeneOverlapError: a source shares too few genes with the vocabulary.
            LookupError: no cell has the values of ``where``, or there is no such label, registry or column.
            ValueError: the same data is named twice, or organisms are unclear.
        """
        gathered = Faults() if faults is None else faults
        found = open_sources(data, OpenOptions(counts=counts, values=values), where, gathered)
        found = _without_repeats(found, gathered)
        if not found:
            gathered.check()
        genes = genes or GeneAlignment()
        vocabulary, parts = align(found, genes, gathered)
        corpus_of = {id(selection.source): selection.corpus for selection in found}
        corpora = [corpus for part in parts if (corpus := corpus_of[id(part.source)]) is not None]
        return cls(vocabulary, parts, corpora or None, genes.tables)

    def with_genes(self, genes: GeneAlignment) -> Collection:
        """The same cells in the same order, aligned to another vocabulary; no source is opened again.

        Raises:
            GeneOverlapError: a source shares too few genes with the vocabulary.
            ValueError: the vocabulary has no genes of an organism of the cells.
        """
        selections = [SourceSelection(source=part.source, rows=part.rows) for part in self.parts]
        vocabulary, parts = align(selections, genes)
        return type(self)(vocabulary, parts, self.corpora, genes.tables)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return as_text("Collection", self._facts())

    def _repr_html_(self) -> str:
        return as_html("Collection", self._facts())

    def _facts(self) -> dict[str, object]:
        names = {part.source.name: None for part in self.parts}
        columns = dict.fromkeys(column for part in self.parts for column in part.source.obs_columns)
        corpora = {} if self.corpora is None else {"corpora": shown(dict.fromkeys(self.corpora))}
        return {
            "cells": len(self),
            "sources": f"{len(names):,}: {shown(names)}",
            **corpora,
            "genes": self.n_genes,
            "organisms": shown(self.vocabulary.organisms),
            "obs columns": f"{len(columns):,}: {shown(columns)}",
        }

    @property
    def n_genes(self) -> int:
        """Number of genes of the vocabulary."""
        return len(self.vocabulary)

    @cached_property
    def measured(self) -> NDArray[np.bool_]:
        """``(n_parts, n_genes)`` True for the vocabulary genes that each part has."""
        return np.stack([part.genes.measured for part in self.parts])

    @property
    def read_cost(self) -> ReadCost:
        """The highest estimate among the sources."""
        costs = [group.read_cost for group in self._groups]
        return max(costs, key=lambda cost: cost.cell, default=ReadCost(cell=1.0, neighbour=1.0))

    @property
    def is_interleaved(self) -> bool:
        """Whether cells of different parts alternate."""
        return any(group.is_interleaved for group in self._groups)

    @cached_property
    def fingerprint(self) -> str:
        """Digests of obs, of genes and vocabulary, of X, and of the selected cells and their order."""
        prints = [parts_of(part.source.fingerprint) or (part.source.fingerprint,) * 3 for part in self.parts]
        obs, var, x = ([of_part[i].encode() for of_part in prints] for i in range(3))
        genes = (part.organism.encode() + part.genes.lut.tobytes() for part in self.parts)
        cells = (f"{part.n_obs};".encode() + (b"" if part.rows is None else part.rows.tobytes()) for part in self.parts)
        order = (group.fingerprint.encode() for group in self._groups if group.is_interleaved)
        pieces = (obs, chain([self.vocabulary.digest.encode()], var, genes), x, chain(cells, order))
        return joined(*map(digest_of, pieces))

    @cached_property
    def file_state(self) -> str:
        """Digest of the sizes and times of change of all files; another one once a file has been written to."""
        sources = (part.source for part in self.parts)
        states = [source.file_state() for source in sources if isinstance(source, HasFileState)]
        return digest_of((state or "").encode() for state in states)

    def read(self, rows: NDArray[np.int64]) -> CSRRows:
        """Cells ``rows``, in that order, repeats allowed, in vocabulary genes.

        Raises:
            IndexError: a row is outside [0, n).
        """
        return self.cells(rows).x

    @property
    def own_columns(self) -> tuple[str, ...]:
        """Columns that cells have wherever they come from."""
        return (SOURCE,) if self.corpora is None else (SOURCE, CORPUS)

    def column(self, name: str) -> list[pd.Series[Any]]:
        """A column of the cell table, part by part (see `arrange`); missing values where a source does not have it.

        "source" is the name of the source of each cell, and "corpus" that of its corpus, if the data are divided into
        corpora, unless obs has a column of that name.

        Raises:
            KeyError: no source has the column; names the columns that there are.
        """
        if name in self.own_columns and not any(name in part.source.obs_columns for part in self.parts):
            labels = self.corpora if name == CORPUS else [part.source.name for part in self.parts]
            return [
                pd.Series(pd.Categorical.from_codes(np.zeros(part.n_obs, np.int8), pd.Index([label])))
                for part, label in zip(self.parts, labels or (), strict=True)
            ]
        series: list[pd.Series[Any]] = []
        found = False
        errors: list[KeyError] = []
        for part in self.parts:
            try:
                values = obs_of(part.source, [name])[name]
                found = True
            except KeyError as error:
                if name in part.source.obs_columns:
                    raise  # it exists and cannot be read
                errors.append(error)
                values = pd.Series(pd.Categorical([None] * part.source.n_obs, categories=pd.Index([], dtype=object)))
            series.append(values if part.rows is None else values.iloc[part.rows])
        if not found:
            raise KeyError(f"no source has the obs column {name!r}: {errors[0].args[0]}")
        return series

    def pieces(self, name: str) -> Iterator[tuple[int, pd.Series[Any]]]:
        """As `column`, in pieces that need not be in memory at once: the number of the part, and its next cells.

        Raises:
            KeyError: no source has the column.
        """
        if not all(_is_in_pieces(part, name) for part in self.parts):
            yield from enumerate(self.column(name))
            return
        for number, part in enumerate(self.parts):
            for piece in part.source.obs_pieces(name):  # type: ignore[attr-defined]
                yield number, piece

    @cached_property
    def kept(self) -> ArrayCache:
        """Arrays that are computed from obs: in files if the data are large and never change, see `NeverChanges`."""
        groups = [group for group in self._groups if isinstance(group, NeverChanges)]
        if len(self) < arrays.LEAST_CELLS or len(groups) < len(self._groups):
            return ArrayCache()
        version = digest_of(group.fingerprint.encode() for group in groups)
        cells = (
            f"{part.source.name};{part.n_obs};".encode() + (b"" if part.rows is None else part.rows.tobytes())
            for part in self.parts
        )
        beside = groups[0].cache_folder if len(groups) == 1 else None
        return ArrayCache(
            content=version + digest_of(cells),
            beside=None if beside is None else beside / version,
            shared=RemoteOptions.of_environment().cache / "arrays" / version,
        )

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """Columns of the cell table, one row per cell; missing values where a source lacks a column.

        Raises:
            KeyError: a column is in no source.
        """
        table = {}
        for name in columns:
            series = self.column(name)
            joined = pd.concat([values.astype(object) for values in series], ignore_index=True)
            if self.is_interleaved:
                joined = joined.iloc[self._by_part].reset_index(drop=True)
            categorical = all(isinstance(values.dtype, pd.CategoricalDtype) for values in series)
            table[name] = joined.astype("category") if categorical else joined.infer_objects()
        return pd.DataFrame(table, index=pd.RangeIndex(len(self)))

    def obs_names(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        """``(len(rows),)`` name of each cell, the index of its source's obs; its row number there if it has no names.

        The names of a source are read once, and kept until `close`.

        Raises:
            IndexError: a row is outside [0, n).
        """
        rows = np.ascontiguousarray(rows, np.int64)
        self.check_rows(rows)
        names = np.empty(len(rows), object)
        for part, place, own in self.rows_in_parts(rows):
            if not isinstance(part.source, HasNames):
                names[place] = own.astype(str)
                continue
            known = self._names.get(id(part.source))
            if known is None:  # as compact as in the file, unlike strings of Python
                known = self._names[id(part.source)] = pa.array(part.source.obs_names().astype(str), pa.large_string())
            names[place] = known.take(own).to_numpy(zero_copy_only=False)
        return names

    def nnz(self) -> NDArray[np.int64]:
        """``(n,)`` number of stored values of each cell, over the features of its source that count as genes.

        These are the values that are summed to the depth of the cell: also those of genes outside the vocabulary, but
        not those of antibodies; see ``feature_types`` of `GeneAlignment`. A source with features of both kinds, or of
        unknown sizes, is read for them.
        """
        return self.arrange([_sizes_of(part) for part in self.parts])

    def arrange(self, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Values of the cells of each of ``parts``, in the order of the rows."""
        edges = pairwise(self._first_part.tolist())
        arranged = [group.arrange(values[first:last]) for group, (first, last) in zip(self._groups, edges, strict=True)]
        return arranged[0] if len(arranged) == 1 else np.concatenate(arranged)

    def rows_in_parts(self, rows: NDArray[np.int64]) -> Iterator[tuple[AlignedSource, NDArray[np.int64], Any]]:
        """For each part with some of ``rows``: the part, which of the rows, and their numbers in the part's source."""
        for number, place, own in self.numbers_in_parts(rows):
            yield self.parts[number], place, own

    def numbers_in_parts(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """As `rows_in_parts`, with the number of each part."""
        among = self._by_part[rows] if self.is_interleaved else rows
        of_row = np.searchsorted(self._part_starts, among, side="right") - 1
        for number in np.unique(of_row):
            part, place = self.parts[number], np.flatnonzero(of_row == number)
            own = among[place] - self._part_starts[number]
            yield int(number), place, own if part.rows is None else part.rows[own]

    def rows_of(self, number: int, own: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of cells ``own`` of the source of part ``number``; -1 for -1, and for cells that the part lacks."""
        part, among = self.parts[number], own + self._part_starts[number]
        is_there = own >= 0
        if part.rows is not None:
            at = np.minimum(np.searchsorted(part.rows, own), len(part.rows) - 1)
            among, is_there = at + self._part_starts[number], part.rows[at] == own
        rows = np.where(is_there, among, 0)
        return np.where(is_there, self._row_by_part[rows] if self.is_interleaved else rows, -1)

    def check_rows(self, rows: NDArray[np.integer[Any]]) -> None:
        """See that row numbers are those of cells.

        Raises:
            IndexError: a row is outside [0, n).
        """
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows must be in [0, {len(self)}); got {rows.min()} to {rows.max()}")

    def close(self) -> None:
        """Close what the sources hold: memory maps and decoded chunks. A later read opens them again."""
        self._names.clear()
        for part in self.parts:
            if isinstance(part.source, Closes):
                part.source.close()

    def cells(self, rows: NDArray[np.int64]) -> CellBatch:
        """Cells ``rows`` with everything known about them but label codes.

        Raises:
            IndexError: a row is outside [0, n).
        """
        located = self.locate(rows)
        x, depth = self.read_located(located)
        return CellBatch(
            x=x,
            depth=depth,
            row=located.rows,
            source=located.source,
            labels=np.empty((len(located), 0), np.int64),
            measured=self.measured,
            position=np.arange(len(located)),
            key=0,
        )

    def locate(self, rows: NDArray[np.int64], matrices: Sequence[str] = ()) -> CellLocations:
        """Where cells ``rows`` and those of further ``matrices`` are, as far as it is known without reading them.

        Raises:
            IndexError: a row is outside [0, n).
        """
        rows = np.ascontiguousarray(rows, np.int64)
        self.check_rows(rows)
        reads, sources = [], []
        for number, place, read in self._reads(rows):
            reads.append((place, read))
            sources.append(read.member.astype(np.int32) + np.int32(self._first_part[number]))
        group, pending = self._groups[0], {}
        if len(self._groups) == 1 and isinstance(group, ReadsMatrices):
            pending = {key: group.locate_matrix(key, rows) for key in matrices}
        return CellLocations(rows=rows, reads=tuple(reads), source=_scattered(sources, reads), matrices=pending)

    def read_located(self, located: CellLocations) -> tuple[CSRRows, NDArray[np.float32]]:
        """The cells, and the total count of each over all genes of its source."""
        sizes = _scattered([read.sizes for _, read in located.reads], located.reads)
        buffers = row_buffers(sizes, self._buffers)
        for place, read in located.reads:
            read.write(place, buffers)
        return without_gaps(buffers, sizes, self.n_genes), buffers.depth

    @cached_property
    def _by_part(self) -> NDArray[np.int64]:
        """``(n,)`` number of each row when cells are counted part after part."""
        return self.arrange([np.arange(first, last) for first, last in pairwise(self._part_starts.tolist())])

    @cached_property
    def _row_by_part(self) -> NDArray[np.int64]:
        """``(n,)`` row of each cell when cells are counted part after part."""
        return np.argsort(self._by_part)

    def _reads(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64], PendingRead]]:
        """For each group with some of ``rows``: its number, which of the rows, and how to read them."""
        if len(self._groups) == 1:
            yield 0, np.arange(len(rows)), self._groups[0].locate(rows)
            return
        of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(of_row):
            place = np.flatnonzero(of_row == number)
            yield number, place, self._groups[number].locate(rows[place] - self._starts[number])


def _is_in_pieces(part: AlignedSource, column: str) -> bool:
    """Whether a column of a part can be read in pieces."""
    return part.rows is None and isinstance(part.source, ReadsObsInPieces) and column in part.source.obs_columns


def _sizes_of(part: AlignedSource) -> NDArray[np.int64]:
    """``(n_obs,)`` number of stored values of each cell of a part, without those of features that are not genes."""
    known = part.source.nnz() if isinstance(part.source, HasSizes) and not part.genes.genes_only else None
    rows = np.arange(part.source.n_obs) if part.rows is None else part.rows
    if known is not None:
        return known[rows]
    is_gene = part.genes.lut != NOT_A_GENE
    sizes = [np.empty(0, np.int64)]
    for at in range(0, len(rows), _WINDOW):
        read = rows_of(part.source, rows[at : at + _WINDOW])
        sizes.append(np.diff(np.concatenate([[0], np.cumsum(is_gene[read.indices])])[read.indptr]))
    return np.concatenate(sizes)


def _without_repeats(found: Sequence[SourceSelection], faults: Faults) -> list[SourceSelection]:
    """The selections of sources that are not damaged and have cells that no other has."""
    seen: dict[str, str] = {}
    kept = []
    for selection in found:
        name = selection.source.name
        with faults.of(name):
            fingerprint = fingerprint_of(selection.source)
            if fingerprint in seen:
                raise ValueError(
                    f"{seen[fingerprint]} and {name} hold the same cells (fingerprint {fingerprint}); "
                    "name the data once"
                )
            seen[fingerprint] = name
            kept.append(selection)
    return kept


@dataclass(frozen=True, kw_only=True, slots=True)
class CellLocations:
    """Cells of a collection, located but not read."""

    rows: NDArray[np.int64]
    """``(m,)`` row numbers in the collection."""
    reads: tuple[tuple[NDArray[np.int64], PendingRead], ...]
    """By group: which of the m cells, in ascending order, and how to read them."""
    source: NDArray[np.int32]
    """``(m,)`` number of the source of each cell."""
    matrices: Mapping[str, PendingMatrix] = field(default_factory=dict)
    """Those further matrices whose cells were located too, as all cells are of one group that reads them itself."""

    def __len__(self) -> int:
        return len(self.rows)

    def slice(self, start: int, stop: int) -> CellLocations:
        """Cells ``[start, stop)`` of these."""
        reads = []
        for place, read in self.reads:
            first, last = np.searchsorted(place, [start, stop])
            if first < last:
                reads.append((place[first:last] - start, read.slice(first, last)))
        matrices = {key: pending.slice(start, stop) for key, pending in self.matrices.items()}
        part = slice(start, stop)
        return CellLocations(rows=self.rows[part], reads=tuple(reads), source=self.source[part], matrices=matrices)

    def read_ahead(self) -> None:
        """Ask the system to load the cells, where they are in mapped files and not in memory yet."""
        for _, read in self.reads:
            read.read_ahead()
        for pending in self.matrices.values():
            pending.read_ahead()


def _scattered(pieces: Sequence[NDArray[Any]], reads: Sequence[tuple[NDArray[np.int64], PendingRead]]) -> NDArray[Any]:
    """Values of the cells of each of ``reads``, in the order of all cells."""
    if len(pieces) == 1:
        return pieces[0]
    out = np.empty(sum(map(len, pieces)), pieces[0].dtype if pieces else np.int64)
    for piece, (place, _) in zip(pieces, reads, strict=True):
        out[place] = piece
    return out
