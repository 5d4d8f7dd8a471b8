"""Label columns, from what is written in them to current ids of their ontologies."""

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
    "name": "names made ids",
    "deprecated": "deprecated terms replaced",
    "joint": "joint labels put in order",
    "unknown": f'labels that are no terms made "{UNKNOWN}"',
}


def with_values(values: pd.Series[Any], put: Mapping[str | int, str]) -> tuple[pd.Categorical[Any], list[str | int]]:
    """A column as text, with other values in place of some, and those of them that no cell has. Missing ones stay so.

    Args:
        values: the column.
        put: {value as text: what stands in its place}.
    """
    column = values.astype("category").cat.remove_unused_categories()
    names = [label_text(label) for label in column.cat.categories]
    # the last answers the code -1 of a missing value
    lut = np.array([*(put.get(name, name) for name in names), None], dtype=object)
    return pd.Categorical(lut[column.cat.codes.to_numpy()]), [value for value in put if value not in names]


def standardised(
    values: pd.Series[Any], ontologies: Sequence[str], organism: str
) -> tuple[pd.Categorical[Any], list[str]]:
    """A column's labels as ids of current terms, and notes on what was changed, with numbers of cells.

    An id stays; a deprecated one goes to its replacement; a name or exact synonym becomes its id; what is missing, no
    term, or may be several, becomes "unknown". Terms of a joint label are taken one by one, and it is written as the
    CELLxGENE schema has it; where one of them is unknown, so is the label.

    Args:
        values: the column.
        ontologies: names of ontologies, or files; a name is looked for in each, in this order.
        organism: NCBITaxon id of the cells; ontologies of other organisms are left out.
    """
    fitting = [name for name in ontologies if name not in ONTOLOGIES or ONTOLOGIES[name].organism in {None, organism}]
    counts = label_counts([values])
    found = {label: _resolved(label, fitting) for label in counts}
    column = values.astype("category")
    # the last answers the code -1 of a missing value
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
    """The same of a label that may be joint."""
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
    """The ids that occur in a standardised column, alone or in joint labels, sorted; without "unknown"."""
    return sorted({term for label in label_counts([values]) for term in terms_in(label)})


def _notes(found: Mapping[str, tuple[str, Kind]], counts: Mapping[str, int]) -> list[str]:
    notes = []
    for kind, said in _CHANGES.items():
        cells = Counter({label: counts[label] for label, (_, other) in found.items() if other == kind})
        if cells:
            some = (f"{label!r} to {found[label][0]}" if kind != "unknown" else repr(label) for label in cells)
            notes.append(f"{said}: {len(cells):,}, of {cells.total():,} cells ({shown(some)})")
    return notes
