"""Choose the matrix that holds counts, by a sample of its values."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import NotCountsError, SourceFormatError
from scdataloader.runtime.messages import did_you_mean
from scdataloader.sources.anndata.layout import MatrixLayout, find_matrix, matrix_names
from scdataloader.sources.anndata.nodes import Node, read_rows
from scdataloader.sources.anndata.tables import read_index

logger = logging.getLogger(__name__)

Values = Literal["counts", "any"]

OR_ANY = ", or pass values='any' to read values that are not counts"
"""End of the advice on values that are not counts."""

_CANDIDATES = ("X", "layers/counts", "raw")
_SAMPLE = 105_000
"""Values of a matrix that are looked at before it is chosen."""
_FEW_WINDOWS, _MANY_WINDOWS = 3, 64
"""Pieces of the sample."""
_PIECE = 1 << 20
"""Values read at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InvalidValue:
    """A value that is not a count."""

    value: Any
    """The value as stored."""
    row: int
    """Row number of its cell."""
    gene: int
    """Gene number."""

    def describe(self, gene_id: str) -> str:
        """The value and where it is, for a message."""
        return f"{self.value!s} at cell {self.row}, gene {self.gene} ({gene_id})"


def first_not_count(values: NDArray[Any]) -> int | None:
    """Position of the first value of a flat array that is negative, fractional or not finite."""
    if values.dtype.kind in "ub":
        return None
    bad = values < 0
    if values.dtype.kind == "f":
        bad = ~((values >= 0) & np.isfinite(values) & (values == np.floor(values)))
    return int(bad.argmax()) if bad.any() else None


def not_counts_message(root: Node, name: str, layout: MatrixLayout, invalid: InvalidValue) -> str:
    """The message about a matrix that should hold counts and does not; names the matrices that do."""
    others = [key for key in matrix_names(root) if key != layout.key]
    return (
        f"{name}: {layout.key} does not hold counts: {_described(root, layout, invalid)}, expected whole numbers from "
        f"0 up; {_advice(root, others)}{OR_ANY}"
    )


def _advice(root: Node, others: Sequence[str]) -> str:
    """Which of the ``others`` holds counts."""
    found = next((key for key in others if _holds_counts(root, key)), None)
    if found is None:
        return f"no other matrix does (there are: {', '.join(others) or 'no others'})"
    return f"choose {found}, which does, with counts={found!r}"


def choose_matrix(root: Node, counts: str, values: Values, name: str) -> MatrixLayout:
    """The matrix of counts of an AnnData.

    Args:
        root: The root group.
        counts: Key of a matrix, or "auto".
        values: Whether the values must be counts.
        name: Name of the source in messages.

    Raises:
        KeyError: the matrix does not exist.
        NotCountsError: the matrix, or every candidate, holds values that are not counts.
        SourceFormatError: a part of it is missing or contradicts another.
    """
    names = matrix_names(root)
    if counts == "auto":
        return _find_counts(root, names, values, name)
    layout = find_matrix(root, counts) if counts in names else None
    if layout is None:
        hint = did_you_mean(counts, names)
        raise KeyError(f"{name} has no matrix {counts!r}{hint}: there are {', '.join(names) or 'none'}")
    if values == "counts":
        invalid = _find_invalid(root, layout, _FEW_WINDOWS)
        if invalid is not None:
            raise NotCountsError(not_counts_message(root, name, layout, invalid))
    return layout


def _find_counts(root: Node, names: Sequence[str], values: Values, name: str) -> MatrixLayout:
    """The first candidate with counts that are not all 0; one whose counts are all 0 only if there is no other."""
    findings, empty = [], []
    candidates = [key for key in _CANDIDATES if key in names]
    # where there is a choice, one study whose values are normalised should not be found in the middle of training
    n_windows = _MANY_WINDOWS if len(candidates) > 1 else _FEW_WINDOWS
    for key in _CANDIDATES:
        layout = find_matrix(root, key) if key in names else None
        if layout is None:
            findings.append(f"{key}: missing")
            continue
        invalid = _find_invalid(root, layout, n_windows)
        if invalid is not None:
            findings.append(f"{key}: {_described(root, layout, invalid)}")
        elif has_counts(root, layout):
            logger.info("%s: reading counts from %s", name, key)
            return layout
        else:
            empty.append(layout)
    if empty:
        logger.warning("%s: reading %s, where all counts are 0; no other matrix has counts", name, empty[0].key)
        return empty[0]
    if values == "any":
        for layout in filter(None, (find_matrix(root, key) for key in names)):
            logger.info("%s: no matrix holds counts; reading %s without checks", name, layout.key)
            return layout
    raise NotCountsError(
        f"{name}: no counts found ({'; '.join(findings)}), expected whole numbers from 0 up in X, layers/counts or "
        f"raw; {_advice(root, [key for key in names if key not in _CANDIDATES])}{OR_ANY}"
    )


def _holds_counts(root: Node, key: str) -> bool:
    """Whether a sample of a matrix holds counts, for advice: False if it cannot be read."""
    try:
        layout = find_matrix(root, key)
    except SourceFormatError:
        return False
    return layout is not None and _find_invalid(root, layout, _MANY_WINDOWS) is None and has_counts(root, layout)


def _find_invalid(root: Node, layout: MatrixLayout, n_windows: int) -> InvalidValue | None:
    """The first value that is not a count, in windows of a matrix from its start to its end."""
    columns = max(1, layout.shape[1])
    if layout.kind == "dense":
        for start, stop in _windows(layout.shape[0], n_windows, columns):
            values = read_rows(root, layout.location, start, stop).reshape(-1)
            at = first_not_count(values)
            if at is not None:
                return InvalidValue(value=values[at], row=start + at // columns, gene=at % columns)
        return None
    data, indices, indptr = (f"{layout.location}/{part}" for part in ("data", "indices", "indptr"))
    for start, stop in _windows(layout.n_values, n_windows):
        values = read_rows(root, data, start, stop)
        at = first_not_count(values)
        if at is not None:
            place = start + at
            major = int(np.searchsorted(read_rows(root, indptr, 0, None), place, side="right")) - 1
            minor = int(read_rows(root, indices, place, place + 1)[0])
            row, gene = (major, minor) if layout.kind == "csr" else (minor, major)
            return InvalidValue(value=values[at], row=row, gene=gene)
    return None


def _windows(n: int, n_windows: int, width: int = 1) -> list[tuple[int, int]]:
    """Ranges of ``range(n)``, with `_SAMPLE` values together, evenly spread from its start to its end.

    ``width`` is the number of values of each of the n. All of them are one range where they are few.
    """
    size = max(1, _SAMPLE // n_windows // width)
    if n <= n_windows * size:
        return [(0, n)]
    return [(start, start + size) for start in np.linspace(0, n - size, n_windows).astype(int).tolist()]


def _described(root: Node, layout: MatrixLayout, invalid: InvalidValue) -> str:
    genes = read_index(root, layout.var)
    return invalid.describe(str(genes[invalid.gene]) if invalid.gene < len(genes) else "outside the gene table")


def has_counts(root: Node, layout: MatrixLayout) -> bool:
    """Whether any value is not zero; reading stops at the first piece that has one."""
    is_dense, location = layout.kind == "dense", layout.location
    n, width = (layout.shape[0], layout.shape[1]) if is_dense else (layout.n_values, 1)
    values, step = location if is_dense else f"{location}/data", max(1, _PIECE // max(1, width))
    return any(np.any(read_rows(root, values, at, min(at + step, n))) for at in range(0, n, step))
