"""Label columns whose labels are terms of an ontology: from what is written in a column to an encoder."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scdataloader.collection.collection import Collection
from scdataloader.labels.encoder import LabelEncoder, label_counts
from scdataloader.labels.label_ontology import of_ids, opened, shown
from scdataloader.labels.roll_up import RollUp
from scdataloader.ontology.names import is_joint, prefix_of
from scdataloader.ontology.ontology import Ontology

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Hierarchy:
    """One label column, and the ontology that its labels are terms of."""

    encoder: LabelEncoder
    """The column's labels as codes, leaves first."""
    ontology: Ontology
    """What is above what; several ontologies stand side by side in it."""
    by_ids: bool = False
    """Whether it is of the ontologies that the labels' ids are of, and not of those that were named."""

    @classmethod
    def fit(
        cls, column: str, parts: Iterable[pd.Series[Any]], ontology: Any = None, roll_up: RollUp | None = None
    ) -> Hierarchy:
        """The hierarchy of all labels that occur in ``parts``, the column in each source.

        Labels are ids, or all of them are names or exact synonyms. Deprecated terms go to their replacement, with a
        warning that counts their cells. A joint label, of several terms, has no one place among others: it counts as
        unknown, with a warning that counts the cells.

        Args:
            column: name of the column.
            parts: its values.
            ontology: an `Ontology`, the name of one of the CELLxGENE schema ("CL"), or the path or address of a file;
                a list of these takes several side by side, as `Ontology.union` does; None takes all that the labels
                are ids of.
            roll_up: fewer classes: which terms labels go up to.

        Raises:
            ValueError: all labels are unknown or joint; some are ids and some are not; a label is no term of the
                ontology (the nearest are shown), may be several, or is deprecated without a replacement; or what
                `RollUp` refuses.
        """
        written = label_counts(parts)
        counts = {label: n_cells for label, n_cells in written.items() if not is_joint(label)}
        if not counts:
            raise ValueError(
                f"all labels of {column!r} are unknown{' or joint' if written else ''}; name a column that holds labels"
            )
        _check_form(column, counts)
        found = opened(column, counts, ontology)
        _note_joint(column, Counter(written) - Counter(counts), found)
        terms = _terms(column, counts, found)
        cells: Counter[str] = Counter()
        for label, term in terms.items():
            cells[term] += counts[label]
        if ontology is None:
            _note_several(column, cells)
        if roll_up is not None:
            classes = _rolled_up(column, cells, roll_up, found)
            terms = {label: classes[term] for label, term in terms.items()}
        encoder = _encoder(column, terms, found)
        _note_single(encoder, found)
        return cls(encoder=encoder, ontology=found, by_ids=ontology is None)

    def with_codes(self, codes: Mapping[str, int]) -> LabelEncoder:
        """The encoder with codes from outside, {term: code}, that takes this column's labels.

        Where ontologies are taken as ids say, those of the terms are taken too, even if no cell here has one of them.

        Raises:
            LookupError: a term is not in the ontology.
            ValueError: a term is an id of what the guide does not have; or the codes are not those of the terms: sorted
                leaves, then sorted inner terms.
        """
        known = {term: code for term, code in codes.items() if code >= 0}
        ontology = self.ontology
        further = [term for term in known if prefix_of(term) not in ("", *ontology.prefixes)]
        if further and self.by_ids:
            ontology = Ontology.union([ontology, of_ids(self.encoder.column, further)])
        encoder = _encoder(self.encoder.column, {term: term for term in known}, ontology)
        if encoder.encoder != known:
            raise ValueError(
                f"the codes of {encoder.column!r} must be the places of its {encoder.n_classes} sorted leaves, from 0, "
                f"and then of its {len(encoder.inner)} sorted inner terms, in {ontology!r}"
            )
        return encoder.widened(self.encoder.mapped)


class Hierarchies(Mapping[str, Hierarchy]):
    """The hierarchies of some columns of a collection, each fitted when first asked for."""

    def __init__(
        self,
        collection: Collection,
        columns: Sequence[str] | Mapping[str, Any],
        roll_up: Mapping[str, RollUp] | None = None,
        used: Sequence[str] | None = None,
    ) -> None:
        """Note what is wanted.

        Args:
            collection: The cells.
            columns: Columns that have a hierarchy; or {column: ontology}, each as in `Hierarchy.fit`.
            roll_up: {column: roll-up} of some of them.
            used: Columns that anything is done with; None is not to ask.

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
            raise ValueError(f"{without} cannot be rolled up without an ontology: name the columns in hierarchies too")
        idle = [column for column in self._ontologies if used is not None and column not in used]
        if idle:
            raise ValueError(
                f"the hierarchies of {idle} are of no use: they are no labels, and nothing is sampled by them"
            )

    def __getitem__(self, column: str) -> Hierarchy:
        if column not in self._fitted:
            ontology = self._ontologies[column]
            series = self._collection.column(column)
            self._fitted[column] = Hierarchy.fit(column, series, ontology, self._roll_up.get(column))
        return self._fitted[column]

    def __contains__(self, column: object) -> bool:
        return column in self._ontologies

    def __iter__(self) -> Iterator[str]:
        return iter(self._ontologies)

    def __len__(self) -> int:
        return len(self._ontologies)


def _rolled_up(column: str, cells: Mapping[str, int], roll_up: RollUp, ontology: Ontology) -> dict[str, str]:
    """{term: the term that it goes up to, or itself}; which go up, and to which, is said."""
    try:
        classes = roll_up.classes(ontology, cells)
    except (LookupError, ValueError) as error:
        raise ValueError(f"{column}: {error.args[0]}") from error
    up: dict[str, list[str]] = {}
    for term, to in sorted(classes.items()):
        if term != to:
            up.setdefault(to, []).append(_named(term, ontology))
    for to, terms in up.items():
        logger.info("%s: rolled up to %s: %s", column, _named(to, ontology), ", ".join(terms))
    return classes


def _note_several(column: str, cells: Mapping[str, int]) -> None:
    """Say of which ontologies the terms are, where these are several: some may have strayed in."""
    of: Counter[str] = Counter()
    for term, n_cells in cells.items():
        of[prefix_of(term)] += n_cells
    if len(of) > 1:
        each = ", ".join(f"{prefix} in {n:,} cell{'s' if n > 1 else ''}" for prefix, n in of.most_common())
        logger.info("%s: terms of several ontologies, side by side: %s", column, each)


def _note_joint(column: str, cells: Counter[str], ontology: Ontology) -> None:
    """Say which labels are left out for naming several terms."""
    if cells:
        logger.warning(
            "%s: joint labels have no one place in %s; their code is -1, in %s cells: %s",
            column,
            ontology.name,
            f"{cells.total():,}",
            shown(label for label, _ in cells.most_common()),
        )


def _note_single(encoder: LabelEncoder, ontology: Ontology) -> None:
    """Say which labels have just one class below them: all their probability is that of the class."""
    single = [
        f"{_named(inner, ontology)} above {_named(encoder.classes[codes[0]], ontology)}"
        for inner, codes in zip(encoder.inner, encoder.leaves, strict=True)
        if len(codes) == 1
    ]
    if single:
        logger.info(
            "%s: labels above a single class, from which a model that knows the hierarchy cannot tell them: %s",
            encoder.column,
            "; ".join(single),
        )


def _check_form(column: str, counts: Mapping[str, int]) -> None:
    """Refuse a mix of ids and free text."""
    ids = [label for label in counts if prefix_of(label)]
    texts = [label for label in counts if not prefix_of(label)]
    if ids and texts:
        raise ValueError(
            f"{column!r} mixes ids ({len(ids)}: {shown(ids)}) and labels that are none ({len(texts)}: {shown(texts)}); "
            "give ids throughout, or names throughout, and leave empty what is unknown"
        )


def _terms(column: str, counts: Mapping[str, int], ontology: Ontology) -> dict[str, str]:
    """{label as it is written: current term}."""
    terms, replaced = {}, []
    wrong: dict[str, str] = {}
    for label, n_cells in counts.items():
        try:
            found = _found(label, ontology)
        except LookupError as error:
            wrong[label] = str(error.args[0])
            continue
        current = ontology.current(found)
        if current is None:
            wrong[label] = (
                f"{label!r} is deprecated in {ontology.name} without a current replacement "
                f"(replaced by {ontology.replaced_by(found) or 'nothing'}); correct it, or leave it empty"
            )
            continue
        if current != found:
            n = f"{n_cells:,} cell{'s' if n_cells > 1 else ''}"
            replaced.append(f"{label} ({ontology.label(found)}) to {_named(current, ontology)}, {n}")
        terms[label] = current
    if wrong:
        others = list(wrong)[1:]
        more = f"; likewise wrong: {shown(others)}" if others else ""
        raise ValueError(f"{column}: {next(iter(wrong.values()))}{more}")
    if replaced:
        logger.warning("%s: deprecated terms go to their replacement: %s", column, "; ".join(replaced))
    return terms


def _found(label: str, ontology: Ontology) -> str:
    try:
        return ontology.find(label)
    except LookupError:
        # a name from before the term was deprecated
        for term in ontology.deprecated:
            if ontology.label(term).casefold() == f"obsolete {label}".casefold():
                return term
        raise


def _encoder(column: str, terms: Mapping[str, str], ontology: Ontology) -> LabelEncoder:
    """The encoder of {label as it is written: term}."""
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
        ontology=" ".join(filter(None, (ontology.name, ontology.version))),
    )


def _named(term: str, ontology: Ontology) -> str:
    return f"{term} ({ontology.label(term)})"
