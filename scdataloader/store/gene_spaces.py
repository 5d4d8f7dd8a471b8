"""Gene spaces: lists of gene ids that sources of a store share, so that a gene has one number in all their records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.errors import StoreFormatError
from scdataloader.store.manifest import SpaceRecord
from scdataloader.store.tables import Table

GENE = "gene"
"""The one column of a gene space."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenePlaces:
    """Where the genes of a source are in its gene space, which are their numbers in records."""

    place: NDArray[np.int32]
    """``(n_genes,)`` ascending."""
    n_space: int
    """Genes of the space."""

    @classmethod
    def all_of(cls, n_space: int) -> Self:
        """Of a source that has all genes of the space."""
        return cls(place=np.arange(n_space, dtype=np.int32), n_space=n_space)

    def spread(self, values: NDArray[Any], foreign: object) -> NDArray[Any]:
        """``(n_space,)`` what ``values`` (n_genes,) has for each gene of the space; ``foreign`` for those it lacks."""
        table = np.full(self.n_space, foreign, values.dtype)
        table[self.place] = values
        return table


class GeneSpace:
    """A gene space of a store, read when its ids are first needed."""

    def __init__(self, folder: Path, record: SpaceRecord) -> None:
        self.n_genes = record.n_genes
        self._table = Table(folder, record.file)
        self._ids: pd.Index | None = None
        self._places: dict[str, GenePlaces] = {}

    def read(self) -> pd.Index:
        """``(n_genes,)`` gene ids, each once, sorted as Python sorts text.

        Raises:
            StoreFormatError: the file is damaged, or no gene space.
        """
        if self._ids is None:
            frame = self._table.read(n_rows=self.n_genes)
            ids = pd.Index(frame.get(GENE, [None]))
            refuse_unsorted(self._table, ids)
            self._ids = ids
        return self._ids

    def places(self, table: Table, name: str, ids: pd.Index) -> GenePlaces:
        """Where the genes ``ids`` of a gene table are; kept under its ``name``.

        Raises:
            StoreFormatError: some are not there, or they are not sorted; or a file is damaged.
        """
        if name not in self._places:
            refuse_unsorted(table, ids)
            place = self.read().get_indexer(ids)
            if (place < 0).any():
                missing, where = ids[int(np.argmin(place))], self._table.path
                raise StoreFormatError(
                    f"{table.path} has the gene {missing!r}, which is not in its gene space, {where.parent.name}/"
                    f"{where.name}; copy or convert the store again"
                )
            self._places[name] = GenePlaces(place=place.astype(np.int32), n_space=self.n_genes)
        return self._places[name]


def refuse_unsorted(table: Table, ids: pd.Index) -> None:
    """See that the gene ids of a table are text, each there once, and sorted as Python sorts text.

    Raises:
        StoreFormatError: they are not.
    """
    if not (set(map(type, ids)) <= {str} and ids.is_monotonic_increasing and ids.is_unique):
        raise StoreFormatError(f"{table.path} has gene ids that are no text, not sorted, or not there once")
