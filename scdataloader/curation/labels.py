"""Standardise label columns: labels as written to current ids of their ontologies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from scdataloader.labels.encoder import label_counts, label_text
from scdataloader.ontology.locate import open_ontology
from scdataloader.ontology.names import MatchKind, joint_label, prefix_of, terms_in
from scdataloader.runtime.messages import shown
from scdataloader.schema import ONTOLOGIES, UNKNOWN, is_unknown

cached_ontology = cache(open_ontology)
"""`open_ontology`, once in a process."""

Kind = MatchKind | Literal["joint"]
_CHANGES: dict[Kind, str] = {
    "name": "names set to ids",
    "deprecated": "deprecated terms replaced",
    "joint": "joint labels normalised",
    "obsolete": f'deprecated terms without a replacement set to "{UNKNOWN}"',
    "unknown": f'labels that are not terms set to "{UNKNOWN}"',
}


class Term(NamedTuple):
    """What a label is replaced by."""

    term: str
    """Id of a current term, or ids of a joint label; "unknown" if there is none."""
    kind: Kind
    """What the label is."""
    consider: tuple[str, ...] = ()
    """Terms that the ontology suggests instead of an obsolete one."""


class Standardised(NamedTuple):
    """A column of standardised labels."""

    labels: pd.Categorical[Any]
    """Ids of current terms, or "unknown"."""
    notes: list[str]
    """Changes, with numbers of cells."""
    lost: dict[str, int]
    """{label that became "unknown", in quotes, with the terms that the ontology suggests instead: cells}"""


def with_values(values: pd.Series[Any], put: Mapping[str | int, str]) -> tuple[pd.Categorical[Any], list[str | int]]:
    """A column as text with some values replaced, and those of the values to replace that no cell has.

    Missing values stay missing.

    Args:
        values: the column.
        put: {value as text: its replacement}.
    """
    column = values.astype("category").cat.remove_unused_categories()
    names = [label_text(label) for label in column.cat.categories]
    # the last entry is for the code -1 of a missing value
    lut = np.array([*(put.get(name, name) for name in names), None], dtype=object)
    return pd.Categorical(lut[column.cat.codes.to_numpy()]), [value for value in put if value not in names]


def standardised(values: pd.Series[Any], ontologies: Sequence[str], organism: str) -> Standardised:
    """A column's labels as ids of current terms.

    Ids of current terms stay; deprecated ones are replaced; names and exact synonyms become ids; missing and ambiguous
    labels, and those that are not terms, become "unknown". The terms of a joint label are standardised one by one and
    written in the form of the CELLxGENE schema; if one is unknown, so is the label.

    Args:
        values: the column.
        ontologies: registered names or files; a label is looked up in each, in this order.
        organism: NCBITaxon id of the cells; ontologies of other organisms are left out.
    """
    fitting = [name for name in ontologies if name not in ONTOLOGIES or ONTOLOGIES[name].organism in {None, organism}]
    counts = label_counts([values])
    found = {label: _resolved(label, fitting) for label in counts}
    column = values.astype("category")
    # the last entry is for the code -1 of a missing value
    names = [*(label_text(label) for label in column.cat.categories), UNKNOWN]
    lut = np.array([found[name].term if name in found else UNKNOWN for name in names], dtype=object)
    lost = {_note(label, one): counts[label] for label, one in found.items() if one.term == UNKNOWN}
    return Standardised(pd.Categorical(lut[column.cat.codes.to_numpy()]), _notes(found, counts), lost)


def resolve(label: str, ontologies: Sequence[str]) -> Term:
    """The current term of a label in the first ontology that knows it."""
    prefix = prefix_of(label).lower()
    # an id is most often a term of the ontology with its prefix, so the others need not be opened
    for name in sorted(ontologies, key=lambda name: name.lower() != prefix):
        ontology = cached_ontology(name)
        match = ontology.match(label)
        if match.kind == "obsolete":
            instead = ontology.replaced_by(match.candidates[0])
            if any(instead in cached_ontology(other) for other in ontologies if instead):
                return Term(str(instead), "deprecated")
        if match.candidates:
            return Term(match.term or UNKNOWN, match.kind, match.consider)
    return Term(UNKNOWN, "unknown")


def _resolved(label: str, ontologies: Sequence[str]) -> Term:
    """The same for a label that may be joint."""
    whole, terms = resolve(label, ontologies), terms_in(label)
    if whole.term != UNKNOWN or len(terms) == 1:
        return whole
    # a word for "unknown" may be a synonym: "NA" is the nasal artery
    found = [Term(UNKNOWN, "unknown") if is_unknown(term) else resolve(term, ontologies) for term in terms]
    made, kinds = joint_label(one.term for one in found), {one.kind for one in found}
    changes: tuple[Kind, ...] = ("unknown", "obsolete", "deprecated", "name")
    kind = next((kind for kind in changes if kind in kinds), "id" if made == label else "joint")
    advice = tuple(text for one in found for text in one.consider)
    return Term(UNKNOWN, kind, advice) if kind in {"unknown", "obsolete"} else Term(made, kind)


def distinct_ids(values: pd.Series[Any]) -> list[str]:
    """Sorted ids that occur in a standardised column, alone or in joint labels; without "unknown"."""
    return sorted({term for label in label_counts([values]) for term in terms_in(label)})


def _notes(found: Mapping[str, Term], counts: Mapping[str, int]) -> list[str]:
    notes = []
    for kind, change in _CHANGES.items():
        cells = Counter({label: counts[label] for label, one in found.items() if one.kind == kind})
        if cells:
            some = (_note(label, found[label]) for label in cells)
            notes.append(f"{change}: {len(cells):,}, of {cells.total():,} cells ({shown(some)})")
    return notes


def _note(label: str, found: Term) -> str:
    to = f" to {found.term}" if found.term != UNKNOWN else ""
    advice = f" (consider {' or '.join(found.consider)})" if found.consider else ""
    return f"{label!r}{to}{advice}"
