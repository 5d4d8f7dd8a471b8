"""Many sources as one table of cells, with one row numbering and one list of genes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.collection.gather import Reading, segments
from scdataloader.genes.alignment import AlignedSource, GeneAlignment, align
from scdataloader.kernels.rows.align import all_equal, close_gaps
from scdataloader.lamin.where import Where
from scdataloader.runtime.memory import BufferPool, row_buffers
from scdataloader.sources.anndata.counts import Values
from scdataloader.sources.locate import choose_cells
from scdataloader.types import CellBatch, CSRRows, RowBuffers

if TYPE_CHECKING:
    from scdataloader.genes.vocabulary import GeneVocabulary

_WINDOW = 4096
"""Cells read at once where a source has to be read to count its values."""


class Collection:
    """Many sources seen as one table of cells: rows 0 … n - 1, source after source, in the vocabulary's genes.

    Make it with `open`. Reading is thread-safe. A file that mixes organisms counts as one source for each.
    """

    def __init__(self, vocabulary: GeneVocabulary, parts: Sequence[AlignedSource]) -> None:
        """Number the cells of ``parts`` one after the other."""
        self.vocabulary = vocabulary
        self.parts = tuple(parts)
        self._segments = segments(self.parts, self.n_genes)
        self._starts = np.zeros(len(self._segments) + 1, np.int64)
        np.cumsum([segment.n_obs for segment in self._segments], out=self._starts[1:])
        self._buffers = BufferPool()
        self.measured = np.stack([part.genes.measured for part in self.parts])

    @classmethod
    def open(
        cls,
        data: Any,
        *,
        where: Where | None = None,
        genes: GeneAlignment | None = None,
        counts: str = "auto",
        values: Values = "counts",
    ) -> Collection:
        """Open files, stores or a lamindb collection; reads their metadata, not their matrices.

        Args:
            data: Paths or globs of .h5ad files and AnnData .zarr folders, "lamindb:<key>", a lamindb collection or
                artifacts, `Source` objects; one or a list.
            where: Which artifacts of lamindb, and which of their cells: {registry: labels}, such as
                ``{"cell_types": "CL:0000084 and below", "organisms": ["human", "mouse"]}``. Labels are ids or names;
                a cell has to have one of them for each registry. Labels that the instance links to a column of obs
                choose cells, those that it links to whole artifacts choose artifacts. The cells of a registered store
                have the labels of what it was made of.
            genes: How genes are found and aligned.
            counts: Which matrix holds the counts: "X", "layers/<key>", "raw", or "auto" for the first of these that
                holds integers.
            values: "counts" refuses values that are negative or fractions; "any" takes them.

        Raises:
            FileNotFoundError: a path does not exist, or a glob matches nothing.
            SourceFormatError: a file is not what its name says.
            NotCountsError: a file has no counts.
            GeneOverlapError: a source shares too few genes with the vocabulary.
            LookupError: no cell has what ``where`` asks for, or there is no such label or registry.
            ValueError: the same data is named twice, or organisms are unclear.
        """
        found = choose_cells(data, where, counts=counts, values=values)
        seen: dict[str, str] = {}
        for source in (chosen.source for chosen in found):
            if source.fingerprint in seen:
                raise ValueError(
                    f"{seen[source.fingerprint]} and {source.name} hold the same cells "
                    f"(fingerprint {source.fingerprint}); name the data once"
                )
            seen[source.fingerprint] = source.name
        return cls(*align(found, genes or GeneAlignment()))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def n_genes(self) -> int:
        """Number of genes of the vocabulary."""
        return len(self.vocabulary)

    @property
    def reads_cheaply(self) -> bool:
        """Whether small reads cost no more per cell than large ones: nothing has to be decoded for neighbours."""
        return all(segment.reads_cheaply for segment in self._segments)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the sources' content, the cells that are meant, their order and the vocabulary."""
        digest = hashlib.blake2b(self.vocabulary.digest.encode(), digest_size=16)
        for part in self.parts:
            digest.update(f"{part.source.fingerprint}:{part.organism}:{part.n_obs};".encode())
            digest.update(part.genes.lut.data)
            if part.rows is not None:
                digest.update(part.rows.data)
        for segment in self._segments:
            if segment.is_mixed:
                digest.update(segment.fingerprint.encode())
        return digest.hexdigest()

    def read(self, rows: NDArray[np.int64]) -> CSRRows:
        """Cells ``rows``, in that order, repeats allowed, in vocabulary genes.

        Raises:
            IndexError: a row is outside [0, n).
        """
        return self.cells(rows).x

    def column(self, name: str) -> list[pd.Series[Any]]:
        """A column of the cell table, part by part (see `joined`); missing values where a source does not have it.

        Raises:
            KeyError: no source has the column; names the columns that there are.
        """
        series: list[pd.Series[Any]] = []
        found = False
        errors: list[KeyError] = []
        for part in self.parts:
            try:
                values = part.source.obs([name])[name]
                found = True
            except KeyError as error:
                if name in getattr(part.source, "obs_columns", ()):
                    raise  # it is there and cannot be read
                errors.append(error)
                values = pd.Series(pd.Categorical([None] * part.source.n_obs, categories=pd.Index([], dtype=object)))
            series.append(values if part.rows is None else values.iloc[part.rows])
        if not found:
            raise KeyError(f"no source has the obs column {name!r}: {errors[0].args[0]}")
        return series

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """Columns of the cell table, one row per cell; missing values where a source lacks a column.

        Raises:
            KeyError: a column is in no source.
        """
        table = {}
        for name in columns:
            series = self.column(name)
            joined = pd.concat([values.astype(object) for values in series], ignore_index=True)
            if any(segment.is_mixed for segment in self._segments):
                joined = joined.iloc[self._by_part].reset_index(drop=True)
            categorical = all(isinstance(values.dtype, pd.CategoricalDtype) for values in series)
            table[name] = joined.astype("category") if categorical else joined.infer_objects()
        return pd.DataFrame(table, index=pd.RangeIndex(len(self)))

    def nnz(self) -> NDArray[np.int64]:
        """``(n,)`` number of stored values of each cell, over all genes of its source."""
        sizes = []
        for part in self.parts:
            indptr, nnz = getattr(part.source, "indptr", None), getattr(part.source, "nnz", None)
            rows = np.arange(part.source.n_obs) if part.rows is None else part.rows
            if indptr is not None:
                sizes.append(np.diff(indptr)[rows])
            elif nnz is not None:
                sizes.append(nnz[rows])
            else:
                read = (part.source.read(rows[at : at + _WINDOW]) for at in range(0, len(rows), _WINDOW))
                sizes.append(np.concatenate([np.diff(cells.indptr) for cells in read]))
        return self.joined(sizes)

    def joined(self, pieces: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """What each of ``parts`` has of its cells, ``pieces``, in the order of the rows."""
        parted, first = [], 0
        for segment in self._segments:
            parted.append(segment.joined(pieces[first : first + segment.n_parts]))
            first += segment.n_parts
        return parted[0] if len(parted) == 1 else np.concatenate(parted)

    def close(self) -> None:
        """Let go of what the sources hold: memory maps and decoded chunks. A later read opens them again."""
        for part in self.parts:
            close = getattr(part.source, "close", None)
            if close is not None:
                close()

    def cells(self, rows: NDArray[np.int64]) -> CellBatch:
        """Cells ``rows`` with all that is known about them but labels, which are not the collection's business.

        Raises:
            IndexError: a row is outside [0, n).
        """
        found = self.find(rows)
        x, depth = self.read_found(found)
        return CellBatch(
            x=x,
            depth=depth,
            row=found.rows,
            source=found.part,
            labels=np.empty((len(found), 0), np.int64),
            measured=self.measured,
            position=np.arange(len(found)),
            key=0,
        )

    def find(self, rows: NDArray[np.int64]) -> Found:
        """Where cells ``rows`` lie; all that can be known of them without reading them.

        Raises:
            IndexError: a row is outside [0, n).
        """
        rows = np.ascontiguousarray(rows, np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows must be in [0, {len(self)}); got {rows.min()} to {rows.max()}")
        readings = tuple(self._readings(rows))
        return Found(rows=rows, readings=readings, part=_spread([reading.part for _, reading in readings], readings))

    def read_found(self, found: Found) -> tuple[CSRRows, NDArray[np.float32]]:
        """The cells that were found, and the total count of each over all genes of its source."""
        sizes = _spread([reading.sizes for _, reading in found.readings], found.readings)
        slots = row_buffers(sizes, self._buffers)
        for place, reading in found.readings:
            reading.write(place, slots)
        return _closed_up(slots, sizes, self.n_genes), slots.depth

    @property
    def _by_part(self) -> NDArray[np.int64]:
        """``(n,)`` the place of each row among the cells part after part."""
        stops = np.cumsum([part.n_obs for part in self.parts])
        return self.joined([np.arange(stop - part.n_obs, stop) for part, stop in zip(self.parts, stops, strict=True)])

    def _readings(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Reading]]:
        """Those of each segment that has some of ``rows``, and where these are among them."""
        if len(self._segments) == 1:
            yield np.arange(len(rows)), self._segments[0].find(rows)
            return
        of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(of_row):
            place = np.flatnonzero(of_row == number)
            yield place, self._segments[number].find(rows[place] - self._starts[number])


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Cells of a collection, found but not read."""

    rows: NDArray[np.int64]
    """``(m,)`` row numbers in the collection."""
    readings: tuple[tuple[NDArray[np.int64], Reading], ...]
    """By segment: which of the m cells, in ascending order, and how to read them."""
    part: NDArray[np.int32]
    """``(m,)`` the part of the collection that each is of, by number."""

    def __len__(self) -> int:
        return len(self.rows)

    def slice(self, start: int, stop: int) -> Found:
        """Cells ``[start, stop)`` of these."""
        readings = []
        for place, reading in self.readings:
            first, last = np.searchsorted(place, [start, stop])
            if first < last:
                readings.append((place[first:last] - start, reading.slice(first, last)))
        return Found(rows=self.rows[start:stop], readings=tuple(readings), part=self.part[start:stop])

    def read_ahead(self) -> None:
        """Ask the disk for the cells, where they lie in mapped files and are not in memory."""
        for _, reading in self.readings:
            reading.read_ahead()


def _spread(pieces: Sequence[NDArray[Any]], readings: Sequence[tuple[NDArray[np.int64], Reading]]) -> NDArray[Any]:
    """What each of ``readings`` has of its cells, in the order of all."""
    if len(pieces) == 1:
        return pieces[0]
    out = np.empty(sum(map(len, pieces)), pieces[0].dtype if pieces else np.int64)
    for piece, (place, _) in zip(pieces, readings, strict=True):
        out[place] = piece
    return out


def _closed_up(slots: RowBuffers, sizes: NDArray[np.int64], n_genes: int) -> CSRRows:
    """RowBuffers as rows, without the room that was not needed."""
    starts, indices, data = slots.starts, slots.indices, slots.data
    if not all_equal(slots.sizes, sizes):
        starts = close_gaps(starts, slots.sizes, indices, data)
        indices, data = indices[: starts[-1]], data[: starts[-1]]
    return CSRRows(data=data, indices=indices, indptr=starts, n_genes=n_genes)
