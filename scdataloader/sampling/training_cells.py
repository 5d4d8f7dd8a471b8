"""Cells of the training split, as a sampling plan gets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.labels.encoder import LabelEncoder, joint
from scdataloader.labels.table import fit_encoder

if TYPE_CHECKING:
    import pandas as pd

    from scdataloader.collection.collection import Collection
    from scdataloader.labels.hierarchy import Hierarchy
    from scdataloader.protocols import TrainingCells

__all__ = ["CollectionCells"]


class CollectionCells:
    """Some rows of a collection as `scdataloader.protocols.TrainingCells`; everything is read on first use."""

    def __init__(
        self, collection: Collection, rows: NDArray[np.int64], hierarchies: Mapping[str, Hierarchy] | None = None
    ) -> None:
        """Wrap ``rows`` of a collection; the classes of a column in ``hierarchies`` are terms of its ontology."""
        self.rows = rows
        self.collection_size = len(collection)
        self._collection = collection
        self.hierarchies = hierarchies or {}
        self._classes: dict[tuple[str, ...], tuple[NDArray[np.int32], list[tuple[str, ...]]]] = {}

    @property
    def source_names(self) -> list[str]:
        """Names of the sources, sorted."""
        return sorted({part.source.name for part in self._collection.parts})

    @property
    def source(self) -> NDArray[np.int32]:
        """``(n,)`` index of the source of each cell in ``source_names``."""
        return self._numbers([part.source.name for part in self._collection.parts])

    @property
    def corpus_names(self) -> list[str]:
        """Names of the corpora, sorted; empty if the data are not divided into corpora."""
        return sorted(set(self._collection.corpora or ()))

    @property
    def corpus(self) -> NDArray[np.int32]:
        """``(n,)`` index of the corpus of each cell in ``corpus_names``; all 0 without corpora."""
        return self._numbers(self._collection.corpora or [""] * len(self._collection.parts))

    def _numbers(self, names: Sequence[str]) -> NDArray[np.int32]:
        """``(n,)`` place of the name of each cell among all, sorted, given the name of each part of the collection."""
        number = {name: place for place, name in enumerate(sorted(set(names)))}
        parts = zip(self._collection.parts, names, strict=True)
        per_part = [np.full(part.n_obs, number[name], np.int32) for part, name in parts]
        return np.asarray(self._collection.arrange(per_part)[self.rows])

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """``(n, len(columns))`` columns of the cell table, indexed by row number; missing where a source lacks one.

        Raises:
            KeyError: a column is in no source.
        """
        return self._collection.obs(columns).iloc[self.rows]

    def classes(self, columns: Sequence[str]) -> tuple[NDArray[np.int32], list[tuple[str, ...]]]:
        """Classes by the joint labels of ``columns``; without columns, one class of all cells.

        Returns:
            ``(n,)`` class of each cell, -1 where a label is unknown; and the labels of each class, one per column.

        Raises:
            KeyError: a column is in no source.
            ValueError: all labels of a column are unknown.
        """
        key = tuple(columns)
        if key not in self._classes:
            self._classes[key] = self._joint_classes(key)
        return self._classes[key]

    def nnz(self) -> NDArray[np.int64]:
        """``(n,)`` number of stored values of each cell, over the features that count as genes."""
        return self._collection.nnz()[self.rows]

    def _joint_classes(self, columns: Sequence[str]) -> tuple[NDArray[np.int32], list[tuple[str, ...]]]:
        if not columns:
            return np.zeros(len(self.rows), np.int32), [()]
        labels, per_column = zip(*(self._encoded(column) for column in columns), strict=True)
        codes, n_classes = joint(per_column, [len(of_column) for of_column in labels])
        # only combinations that occur have a code, so every class has a cell to take its labels from
        example = np.empty(n_classes + 1, np.int64)  # the last entry is that of unknown labels, whose code is -1
        example[codes] = np.arange(len(codes))
        return codes, [
            tuple(of_column[code[cell]] for of_column, code in zip(labels, per_column, strict=True))
            for cell in example[:-1]
        ]

    def _encoded(self, column: str) -> tuple[Sequence[str], NDArray[np.int32]]:
        """All labels of a column in the collection, and the code of each training cell."""
        series = self._collection.column(column)
        encoder: LabelEncoder = fit_encoder(column, series, self.hierarchies)
        codes = self._collection.arrange([encoder.encode(values) for values in series])
        return encoder.labels, codes[self.rows]


class SelectedCells:
    """Some of the cells of other `scdataloader.protocols.TrainingCells`."""

    def __init__(self, cells: TrainingCells, chosen: NDArray[np.int64]) -> None:
        """Choose by index among ``cells``, ascending."""
        self.rows = cells.rows[chosen]
        self.collection_size = cells.collection_size
        self.source_names, self.corpus_names = cells.source_names, cells.corpus_names
        self.hierarchies = cells.hierarchies
        self._cells, self._chosen = cells, chosen

    @property
    def source(self) -> NDArray[np.integer[Any]]:
        """``(n,)`` index of the source of each cell in ``source_names``."""
        return self._cells.source[self._chosen]

    @property
    def corpus(self) -> NDArray[np.integer[Any]]:
        """``(n,)`` index of the corpus of each cell in ``corpus_names``."""
        return self._cells.corpus[self._chosen]

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """``(n, len(columns))`` columns of the cell table.

        Raises:
            KeyError: a column is in no source.
        """
        return self._cells.obs(columns).iloc[self._chosen]

    def classes(self, columns: Sequence[str]) -> tuple[NDArray[np.int32], list[tuple[str, ...]]]:
        """``(n,)`` class of each cell, and the labels of each class of all cells.

        Raises:
            KeyError: a column is in no source.
        """
        codes, labels = self._cells.classes(columns)
        return codes[self._chosen], labels

    def nnz(self) -> NDArray[np.int64]:
        """``(n,)`` number of stored values of each cell."""
        return self._cells.nnz()[self._chosen]
