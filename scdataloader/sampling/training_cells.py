"""Cells of the training split, as a sampling plan gets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.labels.column import digest_of_array, is_identity, label_column
from scdataloader.labels.table import fit_encoder
from scdataloader.sampling.class_index import ClassIndex, index_recipe
from scdataloader.sampling.joint_classes import CodedColumn, joint_recipe
from scdataloader.sampling.rows import Rows

if TYPE_CHECKING:
    import pandas as pd

    from scdataloader.collection.collection import Collection
    from scdataloader.labels.hierarchy import Hierarchy
    from scdataloader.protocols import TrainingCells

__all__ = ["CollectionCells"]


class CollectionCells:
    """Some rows of a collection as `scdataloader.protocols.TrainingCells`; everything is read on first use."""

    def __init__(
        self, collection: Collection, rows: Rows | NDArray[np.int64], hierarchies: Mapping[str, Hierarchy] | None = None
    ) -> None:
        """Wrap ``rows`` of a collection; the classes of a column in ``hierarchies`` are terms of its ontology."""
        self.selection = rows if isinstance(rows, Rows) else Rows.of(rows, len(collection))
        self.collection_size = len(collection)
        self._collection = collection
        self.hierarchies = hierarchies or {}
        self._classes: dict[tuple[str, ...], tuple[NDArray[np.signedinteger[Any]], list[tuple[str, ...]]]] = {}

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """``(n,)`` row numbers in the collection; `selection` has the same in less memory."""
        return np.asarray(self.selection)

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

    def classes(self, columns: Sequence[str]) -> tuple[NDArray[np.signedinteger[Any]], list[tuple[str, ...]]]:
        """Classes by the joint labels of ``columns``; without columns, one class of all cells.

        Returns:
            ``(n,)`` class of each cell, -1 where a label is unknown, in the narrowest type that holds them; and the
            labels of each class, one per column.

        Raises:
            KeyError: a column is in no source.
            ValueError: all labels of a column are unknown.
        """
        key = tuple(columns)
        if key not in self._classes:
            self._classes[key] = self._joint_classes(key)
        return self._classes[key]

    def class_index(self, columns: Sequence[str], unknown: int) -> ClassIndex:
        """Index of the `classes`, mapped if the collection keeps files; those of class -1 are of class ``unknown``."""
        codes, _ = self.classes(columns)
        key = ["index", self._key(columns), unknown]
        kept = self._collection.kept.get("+".join(columns), key, lambda: index_recipe(codes, unknown))
        return ClassIndex(**kept.arrays, n_cells=len(codes))

    def nnz(self) -> NDArray[np.int64]:
        """``(n,)`` number of stored values of each cell, over the features that count as genes."""
        return self._collection.nnz()[self.rows]

    def _joint_classes(self, columns: Sequence[str]) -> tuple[NDArray[np.signedinteger[Any]], list[tuple[str, ...]]]:
        if not columns:
            return np.zeros(len(self.selection), np.int8), [()]
        encoders = [fit_encoder(self._collection, column, self.hierarchies) for column in columns]
        found = [label_column(self._collection, column) for column in columns]
        luts = [encoder.codes_of(own.labels).astype(np.int64) for encoder, own in zip(encoders, found, strict=True)]
        coded = [
            CodedColumn(codes=own.codes, lut=lut, size=len(encoder.labels))
            for own, lut, encoder in zip(found, luts, encoders, strict=True)
        ]
        if len(coded) == 1 and self.selection.is_all and is_identity(coded[0].lut):
            codes, classes = coded[0].codes, [(code,) for code in range(coded[0].size)]
        else:
            key = ["classes", self._key(columns), list(map(digest_of_array, luts))]
            kept = self._collection.kept.get("+".join(columns), key, lambda: joint_recipe(coded, self.selection))
            codes, classes = kept.arrays["codes"], kept.about
        labels = [encoder.labels for encoder in encoders]
        return codes, [tuple(own[code] for own, code in zip(labels, joint, strict=True)) for joint in classes]

    def _key(self, columns: Sequence[str]) -> list[Any]:
        encoders = [fit_encoder(self._collection, column, self.hierarchies) for column in columns]
        return [list(columns), [encoder.to_dict() for encoder in encoders], self.selection.digest]


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

    def classes(self, columns: Sequence[str]) -> tuple[NDArray[np.signedinteger[Any]], list[tuple[str, ...]]]:
        """``(n,)`` class of each cell, and the labels of each class of all cells.

        Raises:
            KeyError: a column is in no source.
        """
        codes, labels = self._cells.classes(columns)
        return codes[self._chosen], labels

    def nnz(self) -> NDArray[np.int64]:
        """``(n,)`` number of stored values of each cell."""
        return self._cells.nnz()[self._chosen]
