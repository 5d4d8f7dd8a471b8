"""Label columns of a collection: encoders, and the codes of every cell."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.collection.collection import Collection
from scdataloader.errors import StateMismatchError
from scdataloader.kernels.draws.classes import recode
from scdataloader.labels.column import LabelColumn, digest_of_array, is_identity, label_column
from scdataloader.labels.encoder import UNKNOWN, LabelEncoder, narrowest
from scdataloader.labels.hierarchy import Hierarchy
from scdataloader.ontology.names import is_joint
from scdataloader.runtime.arrays import Arrays, Recipe
from scdataloader.runtime.messages import shown, suggestion

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelTable:
    """Encoders of several columns, in the order of a batch's ``labels``."""

    encoders: dict[str, LabelEncoder]
    """{column: encoder}"""

    @classmethod
    def fit(
        cls,
        collection: Collection,
        columns: Sequence[str],
        hierarchies: Mapping[str, Hierarchy] | None = None,
        unknown_classes: Sequence[str] = (),
    ) -> LabelTable:
        """Encoders of all labels that occur in a collection; columns in ``hierarchies`` have leaves and inner terms.

        A column "a//b" is that of the joint labels of a and b; see `label_column`. In the columns ``unknown_classes``,
        unknown is a separate class.

        Raises:
            KeyError: a column is in no source.
            ValueError: all labels of a column are unknown, a column is named twice, a column of ``unknown_classes`` is
                not among ``columns`` or has a hierarchy, or see `Hierarchy.fit`.
        """
        if len(set(columns)) < len(columns):
            raise ValueError(f"labels names a column twice: {list(columns)}")
        for column in unknown_classes:
            if column not in columns:
                raise ValueError(
                    f"unknown_classes names {column!r}, which is not in labels; {suggestion(column, columns)}"
                )
        encoders = {column: fit_encoder(collection, column, hierarchies or {}) for column in columns}
        for column in unknown_classes:
            encoders[column] = replace(encoders[column], classes=(*encoders[column].classes, UNKNOWN))
        return cls(encoders=encoders)

    @classmethod
    def from_encoders(
        cls,
        encoders: Mapping[str, Mapping[str, int]],
        columns: Sequence[str] | None = None,
        hierarchies: Mapping[str, Hierarchy] | None = None,
    ) -> LabelTable:
        """Encoders given as {column: {label: code}}, such as those of a trained model.

        Args:
            encoders: Codes of the labels of each column; negative ones are unknown.
            columns: Columns to use, in this order; all by default.
            hierarchies: Columns whose inner terms have the codes after all leaves.

        Raises:
            KeyError: a column is missing.
            ValueError: the codes of a column are not 0 to one below the number of its labels, each once.
        """
        missing = [column for column in columns or () if column not in encoders]
        if missing:
            raise KeyError(f"the encoders lack the label columns {missing}; they have {list(encoders)}")
        table = {}
        for column in encoders if columns is None else columns:
            codes = encoders[column]
            if hierarchies is not None and column in hierarchies:
                table[column] = hierarchies[column].with_codes(codes)
                continue
            known = {label: code for label, code in codes.items() if code >= 0}
            classes = tuple(sorted(known, key=known.__getitem__))
            if sorted(known.values()) != list(range(len(known))):
                raise ValueError(
                    f"the codes of {column!r} must be 0 … {len(known) - 1} for its {len(known)} labels, each once; got "
                    f"{shown(known[label] for label in classes)}"
                )
            table[column] = LabelEncoder(column=column, classes=classes)
        return cls(encoders=table)

    def extending(self, reference: Mapping[str, Mapping[str, int]]) -> LabelTable:
        """These encoders with the codes of a reference, {column: {label: code}}.

        Classes that it lacks have the codes after its own, in the order that they have here. Columns that the reference
        lacks stay as they are.

        Raises:
            KeyError: the reference has a column that is not among these.
            ValueError: a column has a hierarchy, or see `from_encoders`.
        """
        encoders = dict(self.encoders)
        for column, known in LabelTable.from_encoders(reference).encoders.items():
            if column not in encoders:
                raise KeyError(f"the reference has codes of {column!r}, not in labels; {suggestion(column, encoders)}")
            if encoders[column].ontology:
                raise ValueError(f"{column!r} has a hierarchy, whose codes cannot be extended; leave the column out")
            new = [label for label in encoders[column].classes if not known.knows(label)]
            encoders[column] = replace(known, classes=(*known.classes, *new))
        return LabelTable(encoders=encoders)

    @property
    def hierarchical(self) -> dict[str, LabelEncoder]:
        """{column: encoder} of the columns with a hierarchy."""
        return {column: encoder for column, encoder in self.encoders.items() if encoder.ontology}

    def codes(
        self,
        collection: Collection,
        hierarchies: Mapping[str, Hierarchy] | None = None,
        *,
        absent_ok: bool = False,
    ) -> NDArray[np.signedinteger[Any]]:
        """(n, C) codes of all cells, in the narrowest type; labels without one are -1, with a warning.

        Labels of columns with a hierarchy may be spelt differently than in training: as names, or as deprecated ids.

        Raises:
            KeyError: a column is in no source, and not ``absent_ok``, which encodes it as unknown.
            ValueError: a label is not a term of its column's ontology.
        """
        n, columns, luts = len(collection), [], []
        for column, trained in self.encoders.items():
            encoder = trained
            try:
                found = label_column(collection, column)
            except KeyError:
                if not absent_ok:
                    raise
                found = LabelColumn.unknown(n)
            unseen = encoder.unseen_among(found.known)
            if unseen and hierarchies is not None and column in hierarchies:
                encoder = encoder.widened(hierarchies[column].encoder.mapped)
                # joint labels were reported when the hierarchy was fitted
                left = encoder.unseen_among(found.known)
                unseen = {label: n_cells for label, n_cells in left.items() if not is_joint(label)}
            if unseen:
                examples = ", ".join(f"{label} ({n_cells:,})" for label, n_cells in list(unseen.items())[:5])
                logger.warning(
                    "%s: %s cells have labels not seen in training; encoded as %d: %s",
                    column,
                    f"{sum(unseen.values()):,}",
                    encoder.unknown_code,
                    examples,
                )
            columns.append(found.codes)
            luts.append(encoder.codes_of(found.labels).astype(np.int64))
        return self._encoded(collection, columns, luts)

    def _encoded(
        self, collection: Collection, columns: Sequence[NDArray[Any]], luts: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.signedinteger[Any]]:
        """``(n, C)`` codes of columns by look-up tables, each column contiguous."""
        if len(columns) == 1 and is_identity(luts[0]):
            return columns[0][:, None]
        n, names = len(collection), list(self.encoders)
        dtype = narrowest(max((len(encoder.labels) for encoder in self.encoders.values()), default=0))

        def fill(arrays: Arrays) -> None:
            for codes, lut, out in zip(columns, luts, arrays["codes"].reshape(len(luts), n), strict=True):
                recode(codes, lut, out)

        recipe = Recipe(shapes={"codes": (dtype, len(columns) * n)}, fill=fill)
        kept = collection.kept.get("+".join(names), ["codes", names, list(map(digest_of_array, luts))], lambda: recipe)
        return kept.arrays["codes"].reshape(len(columns), n).T

    def to_dict(self) -> dict[str, Any]:
        """The encoders as plain values, for a checkpoint."""
        return {column: encoder.to_dict() for column, encoder in self.encoders.items()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], columns: Sequence[str]) -> LabelTable:
        """The encoders of a checkpoint.

        Args:
            state: Values that `to_dict` returned.
            columns: The columns of this run; empty for those of the checkpoint.

        Raises:
            StateMismatchError: the checkpoint has other columns.
        """
        if columns and list(state) != list(columns):
            raise StateMismatchError(
                f"the checkpoint was trained on labels {list(state)}, but this run has {list(columns)}; "
                "name the same columns in the same order, or none"
            )
        return cls(encoders={column: LabelEncoder.from_dict(kept) for column, kept in state.items()})


def fit_encoder(collection: Collection, column: str, hierarchies: Mapping[str, Hierarchy]) -> LabelEncoder:
    """The encoder of all labels of a column; see `LabelTable.fit`."""
    if column in hierarchies:
        return hierarchies[column].encoder
    return LabelEncoder.of_labels(column, label_column(collection, column).labels, len(collection))
