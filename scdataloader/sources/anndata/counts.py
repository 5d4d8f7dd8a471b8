"""Which matrix of a source holds counts, judged by a sample of its values."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import NotCountsError
from scdataloader.sources.anndata.layout import MatrixLayout, Node, read_frame

logger = logging.getLogger(__name__)

Values = Literal["counts", "any"]

OR_ANY = ", or pass values='any' to read values that are not counts"
"""How advice on values that are not counts ends."""

_CANDIDATES = ("X", "layers/counts", "raw")
_WINDOW = 35_000
_PIECE = 1 << 20
"""Values that are read at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offence:
    """A value that is not a count."""

    value: Any
    """As stored."""
    row: int
    """Which cell."""
    gene: int
    """Gene number."""

    def in_words(self, gene_id: str) -> str:
        """The value and its place, for a message."""
        return f"{self.value!s} at cell {self.row}, gene {self.gene} ({gene_id})"


def first_not_count(values: NDArray[Any]) -> int | None:
    """Position of the first value that is negative, not whole or not finite, in a flat array."""
    if values.dtype.kind in "ub":
        return None
    bad = values < 0
    if values.dtype.kind == "f":
        bad = ~((values >= 0) & np.isfinite(values) & (values == np.floor(values)))
    return int(bad.argmax()) if bad.any() else None


def windows(n: int, size: int) -> Sequence[tuple[int, int]]:
    """Ranges at the start, the middle and the end of ``range(n)``, ``size`` long; all of it if it is short."""
    if n <= 3 * size:
        return [(0, n)]
    middle = (n - size) // 2
    return [(0, size), (middle, middle + size), (n - size, n)]


def find_offence(node: Node, layout: MatrixLayout) -> Offence | None:
    """The first value in a sample from start, middle and end of a matrix that is not a count."""
    if layout.kind == "dense":
        return _dense_offence(node, layout)
    data = node["data"]
    for start, stop in windows(int(data.shape[0]), _WINDOW):
        values = np.asarray(data[start:stop])
        at = first_not_count(values)
        if at is not None:
            place = start + at
            major = int(np.searchsorted(np.asarray(node["indptr"][:]), place, side="right")) - 1
            minor = int(np.asarray(node["indices"][place : place + 1])[0])
            row, gene = (major, minor) if layout.kind == "csr" else (minor, major)
            return Offence(value=values[at], row=row, gene=gene)
    return None


def in_words(root: Node, layout: MatrixLayout, wrong: Offence) -> str:
    """A value of a matrix and its place, for a message."""
    genes = read_frame(root, layout.var).index
    return wrong.in_words(str(genes[wrong.gene]) if wrong.gene < len(genes) else "beyond the gene table")


def _dense_offence(node: Node, layout: MatrixLayout) -> Offence | None:
    n_genes = max(1, layout.shape[1])
    for start, stop in windows(layout.shape[0], max(1, _WINDOW // n_genes)):
        values = np.asarray(node[start:stop])
        at = first_not_count(values.reshape(-1))
        if at is not None:
            return Offence(value=values.reshape(-1)[at], row=start + at // n_genes, gene=at % n_genes)
    return None


def has_counts(node: Node, layout: MatrixLayout) -> bool:
    """Whether any value is not zero; of a matrix that has one, a small part is read."""
    values = node if layout.kind == "dense" else node["data"]
    n_at_once = max(1, _PIECE // max(1, math.prod(values.shape[1:])))
    return any(np.any(values[start : start + n_at_once]) for start in range(0, values.shape[0], n_at_once))


def choose_matrix(
    found: dict[str, MatrixLayout],
    counts: str,
    values: Values,
    offence: Callable[[MatrixLayout], Offence | None],
    filled: Callable[[MatrixLayout], bool],
    describe: Callable[[MatrixLayout, Offence], str],
    name: str,
) -> MatrixLayout:
    """The matrix to read.

    Args:
        found: all matrices of the source.
        counts: ``auto``, or the name of one of them.
        values: whether the values have to be counts.
        offence: looks for a value that is not a count.
        filled: whether there is a value other than zero.
        describe: puts one into words.
        name: what messages call the source.

    Raises:
        KeyError: no such matrix.
        NotCountsError: the matrix, or every candidate, holds values that are not counts.
    """
    if counts == "auto":
        return _automatic(found, values, offence, filled, describe, name)
    if counts not in found:
        near = difflib.get_close_matches(counts, found, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise KeyError(f"{name} has no matrix {counts!r}: there are {', '.join(found) or 'none'}{hint}")
    layout = found[counts]
    if values == "counts":
        wrong = offence(layout)
        if wrong is not None:
            raise NotCountsError(not_counts_message(name, counts, describe(layout, wrong)))
    return layout


def not_counts_message(name: str, key: str, what: str) -> str:
    """What to say of a matrix that should have held counts."""
    return (
        f"{name}: {key} does not hold counts: {what}, where whole numbers from 0 up were expected; "
        f"name the matrix that holds them with counts=...{OR_ANY}"
    )


def _automatic(
    found: dict[str, MatrixLayout],
    values: Values,
    offence: Callable[[MatrixLayout], Offence | None],
    filled: Callable[[MatrixLayout], bool],
    describe: Callable[[MatrixLayout, Offence], str],
    name: str,
) -> MatrixLayout:
    findings, empty = [], []
    for key in _CANDIDATES:
        if key not in found:
            findings.append(f"{key}: not there")
            continue
        wrong = offence(found[key])
        if wrong is not None:
            findings.append(f"{key}: {describe(found[key], wrong)}")
        elif filled(found[key]):
            logger.info("%s: reading counts from %s", name, key)
            return found[key]
        else:
            empty.append(found[key])
    if empty:
        logger.warning("%s: reading %s, where all counts are 0; no other matrix has counts", name, empty[0].key)
        return empty[0]
    if values == "any" and found:
        key, layout = next(iter(found.items()))
        logger.info("%s: no matrix holds counts; reading %s as it is", name, key)
        return layout
    others = [key for key in found if key not in _CANDIDATES]
    raise NotCountsError(
        f"{name}: no counts found ({'; '.join(findings)}). Expected whole numbers from 0 up in X, "
        "layers/counts or raw; "
        f"name another matrix with counts=... (there are: {', '.join(others) or 'no others'}){OR_ANY}"
    )
