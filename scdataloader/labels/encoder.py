"""Label encoders: columns of obs as integer codes.

Codes depend on the sorted set of labels that occur and on nothing else, such as the order of files, rows or categories,
or unused categories. If labels are ontology terms (`Hierarchy`), the leaves have the first codes and are the classes;
the terms above them follow.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.ontology.graph import membership
from scdataloader.runtime.messages import shown
from scdataloader.schema import is_unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["LabelEncoder"]

_WHOLE = re.compile(r"(-?[0-9]+)\.0+")
_TRUTH = {"0": "False", "false": "False", "1": "True", "true": "True"}
_TRUTH_PAIRS = ({"0", "1"}, {"0.0", "1.0"}, {"False", "True"}, {"false", "true"}, {"FALSE", "TRUE"})
"""Spellings that stay as they are in a column without others."""

UNKNOWN = "unknown"
"""Name of the class, or of the code -1, of cells without a known label."""

_STEP = 1 << 20
"""Cells per step, because NumPy casts index arrays to 64 bits, which takes 800 MB for 10⁸ cells."""
_TABLE_LIMIT = 1 << 20
"""Largest table of joint classes, in entries, or four entries per cell; for more, sorting is cheaper."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelEncoder:
    """Maps the labels of a column to codes ``0 … n_classes - 1``; -1 is unknown, unless that is a class itself.

    `fit` sorts the classes; those of a reference, such as a trained model, can have another order.

    A label that is not a class has the code of the class that is spelt like it: ``1.0`` is ``1``, and where all classes
    are truth values, ``1`` is ``True``. With a hierarchy the codes from ``n_classes`` on are inner labels: those that
    occur and are above some class.

    Raises:
        ValueError: a class occurs twice; inner labels are not sorted or occur twice; an inner label is above no class
            or above one that does not exist; a label is mapped to neither; or unknown is a class beside inner labels.
    """

    column: str
    """Column of obs."""
    classes: tuple[str, ...]
    """Labels without other labels below them, in the order of their codes; with "unknown" if that is a class."""
    inner: tuple[str, ...] = ()
    """Labels above some of the classes, sorted; their codes follow those of the classes."""
    leaves: tuple[tuple[int, ...], ...] = ()
    """Codes of the classes below each inner label, ascending."""
    mapped: dict[str, str] = field(default_factory=dict, hash=False)
    """{label as written: label with the code} for names, deprecated ids and rolled-up terms."""
    ontology: str = ""
    """Name and release of the ontology; empty without a hierarchy."""
    encoder: dict[str, int] = field(init=False, repr=False, compare=False)
    """``{label: code}`` of classes and inner labels."""
    _are_truth: bool = field(init=False, repr=False, compare=False)
    """Whether all classes are truth values."""
    _spellings: dict[str, int] = field(init=False, repr=False, compare=False)
    """``{plain spelling: code}`` of the classes; empty if two have the same, as in old checkpoints."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", {label: code for code, label in enumerate(self.labels)})
        known = [label for label in self.classes if label != UNKNOWN]
        object.__setattr__(self, "_are_truth", _are_truth(known))
        spellings = {_plain(label, truth=self._are_truth): self.encoder[label] for label in known}
        object.__setattr__(self, "_spellings", spellings if len(spellings) == len(known) else {})
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"the classes of {self.column!r} are {self.classes[:5]} …; expected distinct labels")
        if list(self.inner) != sorted(set(self.inner)):
            raise ValueError(
                f"the inner labels of {self.column!r} are {self.inner[:5]} …; expected sorted distinct labels"
            )
        if len(self.encoder) < len(self.labels):
            raise ValueError(f"{self.column!r} has a label that is both a class and an inner label")
        if len(self.leaves) != len(self.inner) or any(
            not codes or list(codes) != sorted(set(codes) & set(range(self.n_classes))) for codes in self.leaves
        ):
            raise ValueError(
                f"the leaves of {self.column!r} are {self.leaves[:5]} …; expected for each of {len(self.inner)} inner "
                f"labels the ascending codes of the classes below it, from 0 to {self.n_classes - 1}"
            )
        if not set(self.mapped.values()) <= set(self.encoder):
            raise ValueError(f"{self.column!r} maps labels to others that are neither classes nor inner labels")
        if UNKNOWN in self.classes and self.ontology:
            raise ValueError(
                f"unknown cannot be a class of {self.column!r}, which has a hierarchy; omit one of the two"
            )

    @classmethod
    def fit(cls, column: str, parts: Iterable[pd.Series[Any]]) -> LabelEncoder:
        """The encoder of all labels that occur in ``parts``, the column in each source.

        Different spellings of one number or truth value are one class: ``1`` and ``1.0``, ``True`` and ``1``.

        Raises:
            ValueError: every label is unknown.
        """
        labels: set[str] = set()
        n_cells = 0
        for part in parts:
            names, codes = factorize(part)
            used = _used(codes, len(names))
            labels.update(name for name, occurs in zip(names, used, strict=True) if occurs)
            n_cells += len(part)
        return cls.of_labels(column, labels, n_cells)

    @classmethod
    def of_labels(cls, column: str, occurring: Iterable[str], n_cells: int) -> LabelEncoder:
        """The encoder of the labels that occur in ``n_cells`` cells; see `fit`.

        Raises:
            ValueError: every label is unknown.
        """
        labels = {label for label in occurring if not is_unknown(label)}
        if not labels:
            raise ValueError(
                f"all labels of {column!r} are unknown (missing, or words such as 'unknown' and 'nan') in {n_cells:,} "
                "cells; name a column that contains labels"
            )
        return cls(column=column, classes=tuple(sorted(_united(column, labels))))

    @property
    def n_classes(self) -> int:
        """Number of classes, without inner labels."""
        return len(self.classes)

    @property
    def unknown_code(self) -> int:
        """Code of cells without a known label."""
        return self.encoder.get(UNKNOWN, -1)

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels in the order of their codes: classes, then inner labels."""
        return self.classes + self.inner

    @property
    def decoder(self) -> dict[int, str]:
        """``{code: label}``, with ``-1: "unknown"`` last."""
        return {**dict(enumerate(self.labels)), -1: UNKNOWN}

    @property
    def hierarchy(self) -> dict[int, list[int]]:
        """``{code of an inner label: codes of its classes}``."""
        return {self.n_classes + place: list(codes) for place, codes in enumerate(self.leaves)}

    @property
    def membership(self) -> NDArray[np.bool_]:
        """``(n_inner, n_classes)`` True where the class is below the inner label: row i is code ``n_classes + i``."""
        return membership(self.n_classes, self.hierarchy)

    def knows(self, label: str) -> bool:
        """Whether a label, as written, has a code."""
        return self._code(label) >= 0

    def _code(self, label: str) -> int:
        code = self.encoder.get(self.mapped.get(label, label))
        return self._spellings.get(_plain(label, truth=self._are_truth), -1) if code is None else code

    def widened(self, mapped: Mapping[str, str]) -> LabelEncoder:
        """The encoder with further spellings, ``{label as written: label}``; labels that it knows keep their codes."""
        more = {label: to for label, to in mapped.items() if to in self.encoder and not self.knows(label)}
        return replace(self, mapped={**self.mapped, **more})

    def encode(self, values: pd.Series[Any]) -> NDArray[np.int32]:
        """``(n,)`` codes of ``values``; `unknown_code` for unknown labels and those without a code (see `unseen`)."""
        names, codes = factorize(values)
        lut = self.codes_of(names)
        out = np.empty(len(codes), dtype=np.int32)
        for part in steps(len(codes)):
            out[part] = lut[codes[part]]
        return out

    def codes_of(self, labels: Iterable[str]) -> NDArray[np.int32]:
        """``(len(labels) + 1,)`` code of each label, as `encode` gives it; the last entry is for missing labels."""
        lut = np.array([*map(self._code, labels), -1], dtype=np.int32)
        lut[lut < 0] = self.unknown_code
        return lut

    def unseen(self, values: pd.Series[Any]) -> dict[str, int]:
        """``{label: cells}`` of the labels in ``values`` that have no code and are not unknown, most cells first."""
        return self.unseen_among(label_counts([values]))

    def unseen_among(self, counts: Mapping[str, int]) -> dict[str, int]:
        """As `unseen`, given ``{label: cells}`` of the known labels that occur."""
        found = ((label, n) for label, n in counts.items() if not self.knows(label))
        return dict(sorted(found, key=lambda item: (-item[1], item[0])))

    def to_dict(self) -> dict[str, Any]:
        """The encoder as plain values, for a checkpoint."""
        state: dict[str, Any] = {"column": self.column, "classes": list(self.classes)}
        if self.ontology:
            state |= {"inner": list(self.inner), "leaves": [list(codes) for codes in self.leaves]}
            state |= {"mapped": dict(self.mapped), "ontology": self.ontology}
        return state

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> LabelEncoder:
        """The encoder of which `to_dict` returned the values."""
        return cls(
            column=state["column"],
            # as written by earlier releases, without the unknown class
            classes=(*state["classes"], *([UNKNOWN] if state.get("has_unknown_class") else ())),
            inner=tuple(state.get("inner", ())),
            leaves=tuple(map(tuple, state.get("leaves", ()))),
            mapped=dict(state.get("mapped", {})),
            ontology=state.get("ontology", ""),
        )


def label_counts(parts: Iterable[pd.Series[Any]]) -> dict[str, int]:
    """``{label: cells}``, sorted, of the known labels that occur in ``parts``, the column in each source."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(_counted(*factorize(part)))
    return dict(sorted(counts.items()))


def joint(codes: Sequence[NDArray[np.integer[Any]]], sizes: Sequence[int]) -> tuple[NDArray[np.int32], int]:
    """Joint classes of cells by several columns.

    Args:
        codes: ``(n,)`` codes of each column; -1 is unknown.
        sizes: number of classes of each column.

    Returns:
        ``(n,)`` codes of the combinations that occur, numbered in the order of their tuples of codes, -1 where any
        column is unknown; and how many combinations there are.

    Raises:
        ValueError: no column, columns of different length, or a code outside its column's classes.
    """
    if not codes or len(codes) != len(sizes) or len({len(column) for column in codes}) != 1:
        raise ValueError(
            f"need one size and equally many cells per column, not {len(sizes)} sizes for {[len(c) for c in codes]}"
        )
    for number, (column, size) in enumerate(zip(codes, sizes, strict=True)):
        if len(column) and (column.min() < -1 or column.max() >= size):
            raise ValueError(f"column {number} has codes {column.min()} to {column.max()}, outside -1 to {size - 1}")
    joined, n_classes = _compress(codes[0], sizes[0])
    for column, size in zip(codes[1:], sizes[1:], strict=True):
        # at most 2³¹ classes of cells times 2³¹ of a column: never past 63 bits
        joined, n_classes = _compress(_pair(joined, column, size), n_classes * size)
    return joined, n_classes


def narrowest(n: int) -> np.dtype[np.signedinteger[Any]]:
    """The narrowest signed type of codes -1 to ``n`` (of n labels, 0 to n - 1)."""
    return np.dtype(next(kind for kind in (np.int8, np.int16, np.int32, np.int64) if n <= np.iinfo(kind).max))


def joint_labels(columns: Sequence[pd.Series[Any]], separator: str) -> pd.Series[Any]:
    """``(n,)`` categorical labels of cells that join their labels in several columns.

    An unknown label is "unknown" in the joint one, which is that alone where all labels are unknown.
    """
    labels, codes = [], []
    for values in columns:
        names, of_cells = factorize(values)
        plain = [UNKNOWN if is_unknown(name) else name for name in names]
        # the last entry is for the code -1 of a missing label
        known, lut = np.unique(np.array([*plain, UNKNOWN], object), return_inverse=True)
        labels.append(known)
        codes.append(lut.astype(np.int32)[of_cells])
    numbers, n_joint = joint(codes, [len(known) for known in labels])
    example = np.empty(n_joint, np.int64)
    example[numbers] = np.arange(len(numbers))
    parts = [known[of_cells[example]] for known, of_cells in zip(labels, codes, strict=True)]
    names = [
        UNKNOWN if set(of_class) == {UNKNOWN} else separator.join(of_class) for of_class in zip(*parts, strict=True)
    ]
    # labels with a separator can join to the same text
    distinct, lut = np.unique(np.array(names, object), return_inverse=True)
    return pd.Series(pd.Categorical.from_codes(lut[numbers], pd.Index(distinct, dtype=object)))


def _pair(first: NDArray[np.int32], second: NDArray[np.integer[Any]], size: int) -> NDArray[np.int64]:
    out = np.empty(len(first), dtype=np.int64)
    for part in steps(len(first)):
        out[part] = first[part].astype(np.int64) * size + second[part]
        out[part][(first[part] < 0) | (second[part] < 0)] = -1
    return out


def _compress(codes: NDArray[np.integer[Any]], size: int) -> tuple[NDArray[np.int32], int]:
    """Number the codes that occur in ascending order, from 0; -1 stays."""
    if size > max(_TABLE_LIMIT, 4 * len(codes)):
        values, inverse = np.unique(codes, return_inverse=True)
        has_unknown = int(len(values) > 0 and values[0] < 0)
        return (inverse - has_unknown).astype(np.int32), len(values) - has_unknown
    used = _used(codes, size)
    lut = np.full(size + 1, -1, dtype=np.int32)
    n_used = int(np.count_nonzero(used))
    lut[:-1][used] = np.arange(n_used, dtype=np.int32)
    out = np.empty(len(codes), dtype=np.int32)
    for part in steps(len(codes)):
        out[part] = lut[codes[part]]
    return out, n_used


def factorize(values: pd.Series[Any]) -> tuple[list[str], NDArray[np.integer[Any]]]:
    """Labels, which may be repeated or unused, and the position of each cell's label in them; -1 if missing."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return [label_text(label) for label in values.cat.categories], values.cat.codes.to_numpy()
    codes, labels = pd.factorize(values)
    return [label_text(label) for label in labels], codes


def _counted(names: Sequence[str], codes: NDArray[np.integer[Any]]) -> Counter[str]:
    """Cells of each known label; ``codes`` are positions in ``names``."""
    counts = np.zeros(len(names) + 1, dtype=np.int64)
    for part in steps(len(codes)):
        counts += np.bincount(codes[part].astype(np.int64) + 1, minlength=len(names) + 1)
    found: Counter[str] = Counter()
    for name, count in zip(names, counts[1:].tolist(), strict=True):
        if count and not is_unknown(name):
            found[name] += count
    return found


def label_text(label: object) -> str:
    """A label as text.

    Whole numbers are written as integers, because one missing value turns a column of integers into floats.
    """
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    return str(label)


def _united(column: str, labels: set[str]) -> set[str]:
    """The labels without different spellings of one number or truth value, which are logged."""
    truth = _are_truth(labels)
    plain = {label: _plain(label, truth=truth) for label in labels}
    if labels & {"0", "1"} and labels & {"False", "True"} and not truth:
        others = sorted(labels - {"0", "1", "False", "True"})
        logger.warning("%s: 0 and 1 are other classes than False and True, because of %s", column, shown(others))
    if any(labels <= pair for pair in _TRUTH_PAIRS) if truth else len(set(plain.values())) == len(labels):
        return labels
    changed = (f"{label!r} as {to!r}" for label, to in sorted(plain.items()) if label != to)
    logger.info("%s: labels that differ only in spelling are one class: %s", column, shown(changed))
    return set(plain.values())


def truth_of(label: object) -> bool | None:
    """The truth value that a label is: a boolean, 0 or 1, or such a word or text; None if it is none."""
    return {"False": False, "True": True}.get(_plain(label_text(label), truth=True))


def _are_truth(labels: Iterable[str]) -> bool:
    return all(truth_of(label) is not None for label in labels)


def _plain(label: str, *, truth: bool) -> str:
    """A label without the decimals of a whole number; as "False" or "True" if it is a truth value."""
    whole = _WHOLE.fullmatch(label)
    text = whole[1] if whole else label
    return _TRUTH.get(text.lower(), text) if truth else text


def _used(codes: NDArray[np.integer[Any]], size: int) -> NDArray[np.bool_]:
    """``(size,)`` which codes occur."""
    used = np.zeros(size + 1, dtype=np.bool_)
    for part in steps(len(codes)):
        used[codes[part]] = True
    return used[:-1]


def steps(n_cells: int) -> Iterator[slice]:
    """Slices of at most about a million cells."""
    return (slice(start, start + _STEP) for start in range(0, n_cells, _STEP))
