"""Choose the matrix that holds counts, by a sample of its values."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import NotCountsError
from scdataloader.runtime.messages import did_you_mean
from scdataloader.sources.anndata.layout import MatrixLayout, Node, find_matrices, read_frame

logger = logging.getLogger(__name__)

Values = Literal["counts", "any"]

OR_ANY = ", or pass values='any' to read values that are not counts"
"""End of the advice on values that are not counts."""

_CANDIDATES = ("X", "layers/counts", "raw")
_WINDOW = 35_000
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


def not_counts_message(name: str, key: str, found: str) -> str:
    """The message about a matrix that should hold counts; ``found`` describes an invalid value."""
    return (
        f"{name}: {key} does not hold counts: {found}, expected whole numbers from 0 up; "
        f"name the matrix that holds them with counts=...{OR_ANY}"
    )


def choose_matrix(
    root: Node, counts: str, values: Values, name: str, node_of: Callable[[MatrixLayout], Node]
) -> MatrixLayout:
    """The matrix of counts of an AnnData.

    Args:
        root: The root group.
        counts: Key of a matrix, or "auto".
        values: Whether the values must be counts.
        name: Name of the source in messages.
        node_of: Returns the group or array of a matrix, or raises if it cannot be decoded.

    Raises:
        KeyError: there is no such matrix.
        NotCountsError: the matrix, or every candidate, holds values that are not counts.
    """
    found = find_matrices(root)
    if counts == "auto":
        return _find_counts(root, found, values, name, node_of)
    if counts not in found:
        hint = did_you_mean(counts, found)
        raise KeyError(f"{name} has no matrix {counts!r}{hint}: there are {', '.join(found) or 'none'}")
    layout = found[counts]
    if values == "counts":
        invalid = _find_invalid(node_of(layout), layout)
        if invalid is not None:
            raise NotCountsError(not_counts_message(name, counts, _described(root, layout, invalid)))
    return layout


def _find_counts(
    root: Node,
    found: dict[str, MatrixLayout],
    values: Values,
    name: str,
    node_of: Callable[[MatrixLayout], Node],
) -> MatrixLayout:
    """The first candidate with counts that are not all 0; one whose counts are all 0 only if there is no other."""
    findings, empty = [], []
    for key in _CANDIDATES:
        if key not in found:
            findings.append(f"{key}: missing")
            continue
        layout = found[key]
        node = node_of(layout)
        invalid = _find_invalid(node, layout)
        if invalid is not None:
            findings.append(f"{key}: {_described(root, layout, invalid)}")
        elif _has_counts(node, layout):
            logger.info("%s: reading counts from %s", name, key)
            return layout
        else:
            empty.append(layout)
    if empty:
        logger.warning("%s: reading %s, where all counts are 0; no other matrix has counts", name, empty[0].key)
        return empty[0]
    if values == "any" and found:
        key, layout = next(iter(found.items()))
        logger.info("%s: no matrix holds counts; reading %s without checks", name, key)
        return layout
    others = [key for key in found if key not in _CANDIDATES]
    raise NotCountsError(
        f"{name}: no counts found ({'; '.join(findings)}). Expected whole numbers from 0 up in X, "
        "layers/counts or raw; "
        f"name another matrix with counts=... (there are: {', '.join(others) or 'no others'}){OR_ANY}"
    )


def _find_invalid(node: Node, layout: MatrixLayout) -> InvalidValue | None:
    """The first value that is not a count, in a sample from the start, the middle and the end of a matrix."""
    if layout.kind == "dense":
        return _find_invalid_dense(node, layout)
    data = node["data"]
    for start, stop in _windows(int(data.shape[0]), _WINDOW):
        values = np.asarray(data[start:stop])
        at = first_not_count(values)
        if at is not None:
            place = start + at
            major = int(np.searchsorted(np.asarray(node["indptr"][:]), place, side="right")) - 1
            minor = int(np.asarray(node["indices"][place : place + 1])[0])
            row, gene = (major, minor) if layout.kind == "csr" else (minor, major)
            return InvalidValue(value=values[at], row=row, gene=gene)
    return None


def _find_invalid_dense(node: Node, layout: MatrixLayout) -> InvalidValue | None:
    n_genes = max(1, layout.shape[1])
    for start, stop in _windows(layout.shape[0], max(1, _WINDOW // n_genes)):
        values = np.asarray(node[start:stop])
        at = first_not_count(values.reshape(-1))
        if at is not None:
            return InvalidValue(value=values.reshape(-1)[at], row=start + at // n_genes, gene=at % n_genes)
    return None


def _windows(n: int, size: int) -> Sequence[tuple[int, int]]:
    """Ranges of ``size`` at the start, the middle and the end of ``range(n)``; the whole range if it is short."""
    if n <= 3 * size:
        return [(0, n)]
    middle = (n - size) // 2
    return [(0, size), (middle, middle + size), (n - size, n)]


def _described(root: Node, layout: MatrixLayout, invalid: InvalidValue) -> str:
    genes = read_frame(root, layout.var).index
    return invalid.describe(str(genes[invalid.gene]) if invalid.gene < len(genes) else "outside the gene table")


def _has_counts(node: Node, layout: MatrixLayout) -> bool:
    """Whether any value is not zero; reading stops at the first piece that has one."""
    values = node if layout.kind == "dense" else node["data"]
    n_at_once = max(1, _PIECE // max(1, math.prod(values.shape[1:])))
    return any(np.any(values[start : start + n_at_once]) for start in range(0, values.shape[0], n_at_once))
