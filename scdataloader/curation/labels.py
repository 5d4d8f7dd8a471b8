"""Standardise label columns: labels as written to current ids of their ontologies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import pandas as pd

from scdataloader.labels.encoder import is_unknown, label_counts, label_text
from scdataloader.ontology.locate import open_ontology
from scdataloader.ontology.names import MatchKind, joint_label, prefix_of, terms_in
from scdataloader.runtime.messages import shown
from scdataloader.schema import ONTOLOGIES, UNKNOWN

cached_ontology = cache(open_ontology)
"""`open_ontology`, once in a process."""

Kind = MatchKind | Literal["joint"]
_CHANGES: dict[Kind, str] = {
    "name": "names set to ids",
    "deprecated": "deprecated terms replaced",
    "joint": "joint labels normalised",
    "unknown": f'labels that are not terms set to "{UNKNOWN}"',
}


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


def standardised(
    values: pd.Series[Any], ontologies: Sequence[str], organism: str
) -> tuple[pd.Categorical[Any], list[str]]:
    """A column's labels as ids of current terms, and notes on the changes, with numbers of cells.

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
    lut = np.array([found[name][0] if name in found else UNKNOWN for name in names], dtype=object)
    return pd.Categorical(lut[column.cat.codes.to_numpy()]), _notes(found, counts)


def resolve(label: str, ontologies: Sequence[str]) -> tuple[str, MatchKind]:
    """The current term of a label in the first ontology that knows it, "unknown" if there is none; and its kind."""
    prefix = prefix_of(label).lower()
    # an id is most often a term of the ontology with its prefix, so the others need not be opened
    for name in sorted(ontologies, key=lambda name: name.lower() != prefix):
        match = cached_ontology(name).match(label)
        if match.candidates:
            return match.term or UNKNOWN, match.kind
    return UNKNOWN, "unknown"


def _resolved(label: str, ontologies: Sequence[str]) -> tuple[str, Kind]:
    """The same for a label that may be joint."""
    whole, terms = resolve(label, ontologies), terms_in(label)
    if whole[0] != UNKNOWN or len(terms) == 1:
        return whole
    # a word for "unknown" may be a synonym: "NA" is the nasal artery
    found = [(UNKNOWN, "unknown") if is_unknown(term) else resolve(term, ontologies) for term in terms]
    made, kinds = joint_label(term for term, _ in found), {kind for _, kind in found}
    changes: tuple[Kind, ...] = ("unknown", "deprecated", "name")
    kind = next((kind for kind in changes if kind in kinds), "id" if made == label else "joint")
    return UNKNOWN if kind == "unknown" else made, kind


def distinct_ids(values: pd.Series[Any]) -> list[str]:
    """Sorted ids that occur in a standardised column, alone or in joint labels; without "unknown"."""
    return sorted({term for label in label_counts([values]) for term in terms_in(label)})


def _notes(found: Mapping[str, tuple[str, Kind]], counts: Mapping[str, int]) -> list[str]:
    notes = []
    for kind, change in _CHANGES.items():
        cells = Counter({label: counts[label] for label, (_, other) in found.items() if other == kind})
        if cells:
            some = (f"{label!r} to {found[label][0]}" if kind != "unknown" else repr(label) for label in cells)
            notes.append(f"{change}: {len(cells):,}, of {cells.total():,} cells ({shown(some)})")
    return notes
