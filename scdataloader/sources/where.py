"""Cells of sources selected by values of their columns of obs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.protocols import Source, SourceSelection, Where
from scdataloader.runtime.messages import shown, suggestion
from scdataloader.sources.contract import obs_of

_TRUTH = {"true": "1", "false": "0"}

logger = logging.getLogger(__name__)


def select_cells(found: Sequence[SourceSelection], where: Where) -> list[SourceSelection]:
    """The selected cells that have one of the given values in each column; sources without such a cell are left out.

    A value is compared as text, so that 1, 1.0 and "1" are one, as are True, "true" and 1.

    Raises:
        KeyError: no source has a column; suggests the nearest ones.
        LookupError: no cell has the values.
        TypeError: ``where`` is not a mapping from columns to values.
    """
    wanted = _wanted(where)
    for column in wanted:
        _check_column(column, [selection.source for selection in found])
    seen: dict[str, set[str]] = {column: set() for column in wanted}
    kept = []
    for selection in found:
        rows = _rows(selection, wanted, seen)
        if len(rows):
            everything = len(rows) == selection.source.n_obs
            kept.append(SourceSelection(source=selection.source, rows=None if everything else rows))
    for column, values in wanted.items():
        lacking = [value for value in values if _text(value) not in map(_text, seen[column])]
        if len(lacking) == len(values):
            hint = suggestion(str(lacking[0]), sorted(seen[column]))
            raise LookupError(f"no cell has {lacking[0]!r} in the obs column {column!r}, as where requires; {hint}")
        if lacking:
            logger.warning("where: no cell has %s in the obs column %r", shown(map(repr, lacking)), column)
    if not kept:
        raise LookupError(f"no cell has all of where={dict(where)}, though some have each of them")
    return kept


def _wanted(where: Any) -> dict[str, list[Any]]:
    """{column: values}."""
    if not isinstance(where, Mapping):
        raise TypeError(
            f"where must map columns of obs to values, such as {{'is_primary_data': [True]}}; got {where!r}"
        )
    wanted = {}
    for column, given in where.items():
        is_one = isinstance(given, str) or not isinstance(given, Iterable)
        wanted[column] = [given] if is_one else list(given)
        if not wanted[column]:
            raise TypeError(f"where names no value for {column!r}; give one, or remove the column")
    return wanted


def _check_column(column: str, sources: Sequence[Source]) -> None:
    lacking = [source.name for source in sources if column not in source.obs_columns]
    if len(lacking) == len(sources):
        columns = sorted({str(name) for source in sources for name in source.obs_columns})
        raise KeyError(
            f"no source has the obs column {column!r} of where; {suggestion(column, columns)} (registries apply "
            "to 'lamindb:<key>')"
        )
    if lacking:
        logger.warning("where: no cells are selected of sources without the obs column %r: %s", column, shown(lacking))


def _rows(
    selection: SourceSelection, wanted: Mapping[str, Sequence[Any]], seen: Mapping[str, set[str]]
) -> NDArray[np.int64]:
    """``(m,)`` selected cells of a source that have the values; adds the values of its columns to ``seen``."""
    source = selection.source
    if not set(wanted) <= set(source.obs_columns):
        return np.empty(0, np.int64)
    table = obs_of(source, list(wanted))
    mask = np.ones(source.n_obs, np.bool_)
    for column, values in wanted.items():
        labels = table[column].astype("category")
        seen[column].update(map(str, labels.cat.categories))
        texts = {_text(value) for value in values}
        # the last entry is that of the code -1 of missing values
        lut = np.array([*(_text(label) in texts for label in labels.cat.categories), False])
        mask &= lut[labels.cat.codes.to_numpy()]
    return np.flatnonzero(mask) if selection.rows is None else selection.rows[mask[selection.rows]]


def _text(value: object) -> str:
    """The text by which values are compared."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    text = str(value)
    return _TRUTH.get(text.lower(), text)
