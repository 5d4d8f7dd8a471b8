"""Label columns whose labels are ontology terms: from the labels as written to an encoder."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scdataloader.collection.collection import Collection
from scdataloader.labels.column import label_column
from scdataloader.labels.encoder import LabelEncoder, label_counts
from scdataloader.labels.roll_up import RollUp
from scdataloader.ontology.locate import open_ontology
from scdataloader.ontology.names import is_joint, prefix_of
from scdataloader.ontology.ontology import Ontology
from scdataloader.runtime.messages import shown

__all__ = ["Hierarchies", "Hierarchy"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Hierarchy:
    """A label column and the ontology of its labels."""

    encoder: LabelEncoder
    """Codes of the labels, leaves first."""
    ontology: Ontology
    """The ontology, or the union of several."""
    by_ids: bool = False
    """Whether the ontologies are those of the labels' ids, because none was named."""

    @classmethod
    def fit(
        cls, column: str, parts: Iterable[pd.Series[Any]], ontology: Any = None, roll_up: RollUp | None = None
    ) -> Hierarchy:
        """The hierarchy of all labels that occur in ``parts``, the column in each source.

        Labels are ids, or all of them are names or exact synonyms. Deprecated terms are replaced, with a warning that
        counts their cells. A joint label, of several terms, has no single place in the hierarchy and counts as unknown,
        with a warning that counts the cells.

        Args:
            column: name of the column.
            parts: its values.
            ontology: an `Ontology`, a registered name ("CL"), or the path or URL of a file; a list of these is their
                `Ontology.union`; None takes the ontologies of the labels' ids.
            roll_up: fewer classes: the terms to which labels are rolled up.

        Raises:
            ValueError: all labels are unknown or joint; ids and names are mixed; a label is not a term of the ontology
                (the nearest are shown), is ambiguous, or is deprecated without replacement; or the ontology is not
                registered.
        """
        return cls.of_counts(column, label_counts(parts), ontology, roll_up)

    @classmethod
    def of_counts(
        cls, column: str, written: Mapping[str, int], ontology: Any = None, roll_up: RollUp | None = None
    ) -> Hierarchy:
        """As `fit`, given ``{label: cells}``, sorted, of the known labels that occur."""
        counts = {label: n_cells for label, n_cells in written.items() if not is_joint(label)}
        if not counts:
            raise ValueError(
                f"all labels of {column!r} are unknown{' or joint' if written else ''}; name a column that holds labels"
            )
        _check_form(column, counts)
        found = _open(column, counts, ontology)
        _log_joint(column, Counter(written) - Counter(counts), found)
        terms = _resolved(column, counts, found)
        cells: Counter[str] = Counter()
        for label, term in terms.items():
            cells[term] += counts[label]
        if ontology is None:
            _log_ontologies(column, cells)
        if roll_up is not None:
            classes = _rolled_up(column, cells, roll_up, found)
            terms = {label: classes[term] for label, term in terms.items()}
        encoder = _encoder(column, terms, found)
        _log_single_classes(encoder, found)
        return cls(encoder=encoder, ontology=found, by_ids=ontology is None)

    def with_codes(self, codes: Mapping[str, int]) -> LabelEncoder:
        """The encoder with given codes, ``{term: code}``, for the labels of this column.

        If the ontologies are those of the labels' ids, those of the terms are added, even if no cell has such a term.

        Raises:
            LookupError: a term is not in the ontology.
            ValueError: the ontology of a term is not registered; or the codes are not those of the terms: sorted
                leaves, then sorted inner terms.
        """
        known = {term: code for term, code in codes.items() if code >= 0}
        ontology = self.ontology
        further = [term for term in known if prefix_of(term) not in ("", *ontology.prefixes)]
        if further and self.by_ids:
            ontology = Ontology.union([ontology, _of_ids(self.encoder.column, further)])
        encoder = _encoder(self.encoder.column, {term: term for term in known}, ontology)
        if encoder.encoder != known:
            raise ValueError(
                f"the codes of {encoder.column!r} are not those of its terms in {ontology!r}; expected 0 … for its "
                f"{encoder.n_classes} sorted leaves, then for its {len(encoder.inner)} sorted inner terms"
            )
        return encoder.widened(self.encoder.mapped)


class Hierarchies(Mapping[str, Hierarchy]):
    """The hierarchies of some columns of a collection, each fitted at its first use."""

    def __init__(
        self,
        collection: Collection,
        columns: Sequence[str] | Mapping[str, Any],
        roll_up: Mapping[str, RollUp] | None = None,
        used: Sequence[str] | None = None,
    ) -> None:
        """Check the options; nothing is read yet.

        Args:
            collection: The cells.
            columns: Columns that have a hierarchy; or {column: ontology}, as in `Hierarchy.fit`.
            roll_up: {column: roll-up} of some of them.
            used: Columns that are labels or sampled by; None skips the check that each hierarchy is used.

        Raises:
            ValueError: a column is named twice, one to roll up has no hierarchy, or one is not used.
        """
        self._collection = collection
        self._ontologies = dict(columns) if isinstance(columns, Mapping) else dict.fromkeys(columns)
        self._roll_up = dict(roll_up or {})
        self._fitted: dict[str, Hierarchy] = {}
        if len(self._ontologies) < len(columns):
            raise ValueError(f"hierarchies names a column twice: {list(columns)}")
        without = [column for column in self._roll_up if column not in self._ontologies]
        if without:
            raise ValueError(f"roll_up names {without}, which have no ontology; name the columns in hierarchies too")
        idle = [column for column in self._ontologies if used is not None and column not in used]
        if idle:
            raise ValueError(
                f"hierarchies names {idle}, which are neither in labels nor in sampling.by; add them there or remove "
                "them"
            )

    def __getitem__(self, column: str) -> Hierarchy:
        if column not in self._fitted:
            ontology = self._ontologies[column]
            counts = label_column(self._collection, column).known
            self._fitted[column] = Hierarchy.of_counts(column, counts, ontology, self._roll_up.get(column))
        return self._fitted[column]

    def __contains__(self, column: object) -> bool:
        return column in self._ontologies

    def __iter__(self) -> Iterator[str]:
        return iter(self._ontologies)

    def __len__(self) -> int:
        return len(self._ontologies)


def _open(column: str, labels: Iterable[str], ontology: Any) -> Ontology:
    """The ontology of a column, or the union of several; that of the labels' ids if ``ontology`` is None."""
    if ontology is None:
        return _of_ids(column, labels)
    several = ontology if isinstance(ontology, list | tuple) else [ontology]
    if not several:
        raise ValueError(f"the hierarchy of {column!r} names no ontology; give at least one, or None to use the ids")
    try:
        return Ontology.union([open_ontology(one) for one in several])
    except LookupError as error:
        raise ValueError(f"the hierarchy of {column!r}: {error.args[0]}") from error


def _of_ids(column: str, labels: Iterable[str]) -> Ontology:
    """The union of the ontologies that are registered under the prefixes of ids."""
    by_prefix: dict[str, list[str]] = {}
    for label in labels:
        by_prefix.setdefault(prefix_of(label).lower(), []).append(label)
    if names := by_prefix.get(""):
        raise ValueError(
            f"the labels of {column!r} are names ({_quoted(names)}), from which no ontology can be inferred; name it, "
            f"as in hierarchies={{{column!r}: 'CL'}} or --hierarchies {column}=CL"
        )
    found: dict[str, Ontology] = {}  # by title, because two prefixes may belong to one ontology
    for _, ids in sorted(by_prefix.items()):
        prefix = prefix_of(ids[0])
        try:
            ontology = open_ontology(prefix)
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"labels of {column!r} are ids of {prefix} ({_quoted(ids)}): {error.args[0]}; or name a file, as in "
                f"hierarchies={{{column!r}: 'file.obo'}}"
            ) from error
        found[ontology.title] = ontology
    return Ontology.union(list(found.values()))


def _check_form(column: str, counts: Mapping[str, int]) -> None:
    """Refuse a mix of ids and names."""
    ids = [label for label in counts if prefix_of(label)]
    names = [label for label in counts if not prefix_of(label)]
    if ids and names:
        raise ValueError(
            f"{column!r} mixes ids ({len(ids)}: {_quoted(ids)}) and names ({len(names)}: {_quoted(names)}); "
            "give ids throughout or names throughout, and leave unknown labels empty"
        )


def _resolved(column: str, counts: Mapping[str, int], ontology: Ontology) -> dict[str, str]:
    """``{label as written: current term}``."""
    terms: dict[str, str] = {}
    replaced: list[str] = []
    wrong: dict[str, str] = {}
    for label, n_cells in counts.items():
        try:
            match = ontology.resolve(label)
        except LookupError as error:
            wrong[label] = str(error.args[0])
            continue
        terms[label] = str(match.term)
        if match.kind == "deprecated":
            old, new = ontology.label(match.candidates[0]), _named(terms[label], ontology)
            replaced.append(f"{label} ({old}) by {new}, {n_cells:,} cell{'s' if n_cells > 1 else ''}")
    if wrong:
        others = list(wrong)[1:]
        more = f"; also wrong: {_quoted(others)}" if others else ""
        raise ValueError(f"{column}: {next(iter(wrong.values()))}{more}")
    if replaced:
        logger.warning("%s: deprecated terms are replaced: %s", column, "; ".join(replaced))
    return terms


def _rolled_up(column: str, cells: Mapping[str, int], roll_up: RollUp, ontology: Ontology) -> dict[str, str]:
    """{term: the term to which it is rolled up, or itself}; the roll-ups are logged."""
    try:
        classes = roll_up.classes(ontology, cells)
    except (LookupError, ValueError) as error:
        raise ValueError(f"{column}: {error.args[0]}") from error
    up: dict[str, list[str]] = {}
    for term, target in sorted(classes.items()):
        if term != target:
            up.setdefault(target, []).append(_named(term, ontology))
    for target, terms in up.items():
        logger.info("%s: rolled up to %s: %s", column, _named(target, ontology), ", ".join(terms))
    return classes


def _encoder(column: str, terms: Mapping[str, str], ontology: Ontology) -> LabelEncoder:
    """The encoder of ``{label as written: term}``."""
    ids = sorted(set(terms.values()))
    above = ontology.ancestor_matrix(ids)
    np.fill_diagonal(above, val=False)
    is_inner = above.any(axis=1)
    return LabelEncoder(
        column=column,
        classes=tuple(ids[place] for place in np.flatnonzero(~is_inner)),
        inner=tuple(ids[place] for place in np.flatnonzero(is_inner)),
        leaves=tuple(tuple(np.flatnonzero(row).tolist()) for row in above[np.ix_(is_inner, ~is_inner)]),
        mapped={label: term for label, term in terms.items() if label != term},
        ontology=ontology.title,
    )


def _log_ontologies(column: str, cells: Mapping[str, int]) -> None:
    """Report the ontologies of the terms if there are several, because some may be a mistake."""
    of: Counter[str] = Counter()
    for term, n_cells in cells.items():
        of[prefix_of(term)] += n_cells
    if len(of) > 1:
        each = ", ".join(f"{prefix} in {n:,} cell{'s' if n > 1 else ''}" for prefix, n in of.most_common())
        logger.info("%s: terms of several ontologies, side by side: %s", column, each)


def _log_joint(column: str, cells: Counter[str], ontology: Ontology) -> None:
    """Report the labels that name several terms."""
    if cells:
        logger.warning(
            "%s: joint labels have no single place in %s and are encoded as -1, in %s cells: %s",
            column,
            ontology.name,
            f"{cells.total():,}",
            _quoted(label for label, _ in cells.most_common()),
        )


def _log_single_classes(encoder: LabelEncoder, ontology: Ontology) -> None:
    """Report inner labels above a single class: their probability is that of the class."""
    single = [
        f"{_named(inner, ontology)} above {_named(encoder.classes[codes[0]], ontology)}"
        for inner, codes in zip(encoder.inner, encoder.leaves, strict=True)
        if len(codes) == 1
    ]
    if single:
        logger.info(
            "%s: labels above a single class, which a model with the hierarchy cannot distinguish from it: %s",
            encoder.column,
            "; ".join(single),
        )


def _named(term: str, ontology: Ontology) -> str:
    return f"{term} ({ontology.label(term)})"


def _quoted(labels: Iterable[str]) -> str:
    return shown(map(repr, labels))
