"""Splits into training, validation and test cells: a pure function of the number of cells, their groups and a seed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.errors import StateMismatchError
from scdataloader.kernels.draws.random import seed_of
from scdataloader.labels.table import LabelTable
from scdataloader.runtime.messages import counted, did_you_mean, shown, suggestion
from scdataloader.sampling.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from scdataloader.collection.collection import Collection
    from scdataloader.labels.encoder import LabelEncoder

__all__ = ["Split", "SplitRecord", "Splits", "make_splits"]

logger = logging.getLogger(__name__)

FORMAT = 1
_PARTS = ("train", "val", "test")
_NAMES_OF_PARTS = frozenset({*_PARTS, "training", "valid", "validation", "dev", "testing", "holdout"})
_NOWHERE = len(_PARTS)
"""The number of cells that are in no part."""
_TRIES = 256
"""Random orders of the groups that are tried; the first one within 1 % is used, or else the best."""
_CLOSE = 0.01
_TOLERANCE = 0.5
"""Maximum deviation of a split by groups from its target size, as a share of that size."""
_STEP = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Split:
    """Shares of the cells for training, validation and test; or a column that says which cell is in which.

    Args:
        val: Share of the cells for validation, from 0 to below 1.
        test: Share of the cells for test, from 0 to below 1.
        by: Column whose groups are not divided (donor, dataset); "source" is the source of a cell, unless obs has a
            column of that name; "a//b" are the joint labels of a and b. None splits cell by cell.
        seed: Seed of the split; the same seed gives the same split on every machine and rank.
        values: Instead of shares, the values of the column ``by`` for each part, one or a list:
            {"train": "train", "val": ["val", "dev"], "test": "holdout"}. Cells of other values are in no part; without
            "train", they train.

    Raises:
        ValueError: a share is out of its range, nothing is left for training, or options exclude each other.
    """

    val: float = 0.0
    test: float = 0.0
    by: str | None = None
    seed: int = 0
    # strings first: the command line takes the first type that fits
    values: dict[str, list[str | bool | float] | str | bool | float] | None = None

    def __post_init__(self) -> None:
        for name, share in (("val", self.val), ("test", self.test)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be a share of the cells, from 0 to below 1, not {share}")
        if self.val + self.test >= 1:
            raise ValueError(
                f"val={self.val} and test={self.test} leave no cells for training; their sum must be below 1"
            )
        object.__setattr__(self, "seed", seed_of(self.seed))
        if self.values is not None:
            self._check_values(self.values)

    def _check_values(self, values: Mapping[str, Any]) -> None:
        unknown = [part for part in values if part not in _PARTS]
        if unknown:
            raise ValueError(
                f"values has no part {unknown[0]!r}{did_you_mean(unknown[0], _PARTS)}; parts are {', '.join(_PARTS)}"
            )
        if self.by is None or self.val or self.test:
            raise ValueError(
                f"values are those of a column and replace shares, but by={self.by!r}, val={self.val} and "
                f"test={self.test}; name the column in by, and leave out val and test"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRecord:
    """Description of a split that is saved with a run, to make the split again and to compare it."""

    split: Split
    """The options."""
    n_cells: int
    """Number of cells in train, val and test."""
    counts: dict[str, int]
    """Rows in train, val and test."""
    groups: dict[str, list[str]] | None
    """Names of the groups in train, val and test, sorted; None if split by cell."""
    digest: str
    """SHA-256 of the rows in train, val and test."""

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> SplitRecord:
        """The record from the output of ``dataclasses.asdict``."""
        return cls(**{**state, "split": Split(**state["split"])})

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically: a reader finds the old file or the new one. Creates folders as needed."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> SplitRecord:
        """Read the output of `save`.

        Raises:
            ValueError: the file is not a record of a split.
        """
        try:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
            version = state.pop("format")
            if version != FORMAT:
                raise ValueError(f"{path} has format {version}, but this version reads format {FORMAT}")
            return cls.from_dict(state)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a record of a split as written by Splits.save()") from error


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Rows of each split, ascending: every row is in one, or in none if it has none of the values of a column."""

    train_rows: Rows
    """Training rows."""
    val_rows: Rows
    """Validation rows."""
    test_rows: Rows
    """Test rows."""
    split: Split
    """The options."""
    groups: dict[str, list[str]] | None = None
    """Names of the groups in train, val and test, sorted; None if split by cell."""

    @property
    def train(self) -> NDArray[np.int64]:
        """``(n_train,)`` training rows as an array, made at each use."""
        return np.asarray(self.train_rows)

    @property
    def val(self) -> NDArray[np.int64]:
        """``(n_val,)`` validation rows as an array, made at each use."""
        return np.asarray(self.val_rows)

    @property
    def test(self) -> NDArray[np.int64]:
        """``(n_test,)`` test rows as an array, made at each use."""
        return np.asarray(self.test_rows)

    def record(self) -> SplitRecord:
        """The record of this split; reads all rows for their digest."""
        parts = {"train": self.train_rows, "val": self.val_rows, "test": self.test_rows}
        digest = hashlib.sha256()
        for name, rows in parts.items():
            digest.update(f"{name}:{len(rows)};".encode())
            for some in rows.steps():
                digest.update(np.ascontiguousarray(some, dtype="<i8").data)
        counts = {name: len(rows) for name, rows in parts.items()}
        return SplitRecord(
            split=self.split, n_cells=sum(counts.values()), counts=counts, groups=self.groups, digest=digest.hexdigest()
        )

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, without the rows."""
        self.record().save(path)

    def check(self, saved: SplitRecord) -> None:
        """Compare the rows with those of a saved split.

        Raises:
            StateMismatchError: they differ.
        """
        own = self.record()
        if own.digest == saved.digest:
            return
        raise StateMismatchError(
            f"the saved run split its {saved.n_cells:,} cells into {saved.counts} ({saved.split}), but this run splits "
            f"{own.n_cells:,} cells into {own.counts} ({own.split}), with different rows; use the data of the saved "
            "run, in the same order, and its split"
        )


def make_splits(
    n_cells: int,
    split: Split,
    groups: NDArray[np.int32] | None = None,
    group_names: Sequence[str] | None = None,
) -> Splits:
    """Split rows ``0 … n_cells - 1``.

    By cell the sizes are exact (rounded half up). By group, whole groups are chosen at random so that the sizes are
    close to their targets: the first random choice within 1 % of both, or else the best of many, and never off by more
    than half of the target. Rows of unknown group train. The result depends on the rows of each named group and on the
    seed, not on the numbers of the groups.

    Args:
        n_cells: Number of rows.
        split: Shares, column and seed.
        groups: ``(n_cells,)`` group of each row, -1 for unknown; required if ``split.by`` names a column.
        group_names: Name of each group.

    Raises:
        ValueError: a split would be empty, or no choice of groups is close enough; names the largest groups.
    """
    if (split.by is None) != (groups is None) or (groups is None) != (group_names is None):
        raise ValueError(f"split.by={split.by!r}: a column needs groups and group_names, and None needs neither")
    target = np.array([split.val, split.test]) * n_cells
    if groups is None or group_names is None:
        part = _part_of_cells(n_cells, split, np.floor(target + 0.5).astype(np.int64))
        return _collect(part, split, None)
    if len(groups) != n_cells or len(set(group_names)) != len(group_names):
        raise ValueError(f"need one group per cell and distinct names, not {len(groups)} groups for {n_cells} cells")
    sizes = np.bincount(groups[groups >= 0], minlength=len(group_names))
    order = sorted(np.flatnonzero(sizes).tolist(), key=lambda group: group_names[group])
    names = [group_names[group] for group in order]
    part_of_group = np.zeros(len(group_names) + 1, dtype=np.int8)
    part_of_group[order] = _part_of_groups(sizes[order], n_cells, target, split, names)
    part = np.empty(n_cells, dtype=np.int8)
    for start in range(0, n_cells, _STEP):
        part[start : start + _STEP] = part_of_group[groups[start : start + _STEP]]
    by_part = {
        part_name: [name for name, group in zip(names, order, strict=True) if part_of_group[group] == number]
        for number, part_name in enumerate(_PARTS)
    }
    return _collect(part, split, by_part)


def split_cells(collection: Collection, split: Split) -> Splits:
    """Split the cells of a collection, by cell, by the groups of a column or by its values.

    Raises:
        KeyError: the column is in no source.
        ValueError: a split would be empty, no choice of groups is close enough, or the column lacks a value.
    """
    if split.by is None:
        return make_splits(len(collection), split)
    table = LabelTable.fit(collection, [split.by])
    groups, encoder = table.codes(collection)[:, 0], table.encoders[split.by]
    if split.values is None:  # noqa: PD011 (not of pandas)
        if len(encoder.classes) > 1 and _NAMES_OF_PARTS.issuperset(map(str.lower, encoder.classes)):
            stated = "the values of %r are %s, but it is split by shares; to take each part as stated, set values"
            logger.warning(stated, split.by, shown(encoder.classes))
        return make_splits(len(collection), split, groups, encoder.classes)
    return _by_values(split, split.values, groups, encoder)


def _by_values(split: Split, values: Mapping[str, Any], groups: NDArray[np.int32], encoder: LabelEncoder) -> Splits:
    """The split by the values of a column."""
    # the last entry is for unknown labels
    part_of_label = np.full(encoder.n_classes + 1, _NOWHERE if "train" in values else 0, np.int8)
    taken: dict[int, Any] = {}
    for name, given in values.items():
        for value in given if isinstance(given, list | tuple) else [given]:
            code = int(encoder.encode(pd.Series([value], dtype=object))[0])
            if code < 0:
                raise ValueError(
                    f"the column {split.by!r} has no value {value!r}, which the split has for {name}; "
                    f"{suggestion(str(value), encoder.classes)}"
                )
            if code in taken:
                raise ValueError(f"the split has the value {value!r} of {split.by!r} for {taken[code]} and for {name}")
            taken[code] = name
            part_of_label[code] = _PARTS.index(name)
    part = part_of_label[groups]
    n_nowhere = int(np.count_nonzero(part == _NOWHERE))
    if n_nowhere:
        logger.info("split by %r: %s are in no part", split.by, counted(n_nowhere, "cell"))
    if not (part == 0).any():
        raise ValueError(f"the split by {split.by!r} leaves no cells for training; its values are {values}")
    names = {
        name: [label for label, of_label in zip(encoder.classes, part_of_label[:-1], strict=True) if of_label == number]
        for number, name in enumerate(_PARTS)
    }
    return _collect(part, split, names)


def _part_of_cells(n_cells: int, split: Split, sizes: NDArray[np.int64]) -> NDArray[np.int8]:
    """``(n_cells,)`` 0 train, 1 val, 2 test: rows with the smallest random keys validate, the next ones test."""
    for name, share, size in (("val", split.val, sizes[0]), ("test", split.test, sizes[1])):
        if share > 0 and size == 0:
            raise ValueError(f"{name}={share} of {n_cells} cells is less than one cell; use a larger share, or 0")
    if sizes.sum() >= n_cells:
        raise ValueError(
            f"val={split.val} and test={split.test} of {n_cells} cells leave none for training; lower them"
        )
    part = np.zeros(n_cells, dtype=np.int8)
    edges = np.cumsum(sizes)
    # cut to size: of equal keys (one in 10¹¹ splits of 10⁸ cells) the lower row counts as the smaller
    for number, edge in ((2, int(edges[1])), (1, int(edges[0]))):
        if edge:
            last, left, at = _key_at(n_cells, split.seed, edge), edge, 0
            for keys in _key_steps(n_cells, split.seed):
                rows = np.flatnonzero(keys <= last)[:left]
                part[at + rows] = number
                at, left = at + len(keys), left - len(rows)
    return part


def _key_at(n: int, seed: int, place: int) -> np.uint64:
    """The key at ``place``, counted from 1, of the ``n`` keys of cells in ascending order."""
    counts = np.zeros(1 << 16, np.int64)
    for keys in _key_steps(n, seed):
        counts += np.bincount((keys >> np.uint64(48)).astype(np.int64), minlength=len(counts))
    below = np.cumsum(counts)
    top = int(np.searchsorted(below, place))
    place -= int(below[top] - counts[top])
    near = np.concatenate([keys[(keys >> np.uint64(48)) == top] for keys in _key_steps(n, seed)])
    return np.uint64(np.partition(near, place - 1)[place - 1])


def _key_steps(n: int, seed: int) -> Iterator[NDArray[np.uint64]]:
    """The random keys of ``n`` cells, in steps; see `_keys`."""
    source = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64))
    for start in range(0, n, _STEP):
        yield source.random_raw(min(_STEP, n - start))


def _part_of_groups(
    sizes: NDArray[np.int64], n_cells: int, target: NDArray[np.float64], split: Split, names: Sequence[str]
) -> NDArray[np.int8]:
    """``(n_groups,)`` 0 train, 1 val, 2 test: the best of many random orders and of the order by size.

    The order by size finds a choice for one split whenever there is one: either a single group is large enough, or all
    groups are too small to overshoot.
    """
    best, best_miss = None, np.inf
    by_size = np.argsort(-sizes, kind="stable")
    for attempt in range(_TRIES + 1):
        order = by_size if attempt == _TRIES else np.argsort(_keys(len(sizes), split.seed, attempt), kind="stable")
        part = _fill(sizes, order, target)
        got = np.bincount(part, weights=sizes, minlength=3)[1:]
        miss = np.max(np.abs(got - target)[target > 0] / target[target > 0], initial=0.0)
        if miss < best_miss and got.sum() < n_cells:
            best, best_miss = part, miss
        if best_miss <= _CLOSE:
            break
    if best is None or best_miss > _TOLERANCE:
        raise ValueError(_no_choice(sizes, n_cells, target, split, names))
    return best


def _fill(sizes: NDArray[np.int64], order: NDArray[np.int64], target: NDArray[np.float64]) -> NDArray[np.int8]:
    """Assign each group to the emptier of val and test that it brings closer to its target, or else to train."""
    part = np.zeros(len(sizes), dtype=np.int8)
    lacking = [float(rows) for rows in target]
    excess = [rows * _TOLERANCE for rows in lacking]
    for group, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fits = [number for number in (0, 1) if size < 2 * lacking[number] and size <= lacking[number] + excess[number]]
        if fits:
            number = max(fits, key=lambda number: lacking[number] / target[number])
            lacking[number] -= size
            part[group] = number + 1
        elif max(lacking) <= 0:
            break
    return part


def _no_choice(
    sizes: NDArray[np.int64], n_cells: int, target: NDArray[np.float64], split: Split, names: Sequence[str]
) -> str:
    largest = sorted(zip((-sizes).tolist(), names, strict=True))[:5]
    listed = ", ".join(f"{name!r} ({-size:,})" for size, name in largest)
    shares = " and ".join(
        f"{share:.0%} for {name} ({rows:,.0f} cells)"
        for name, share, rows in zip(("val", "test"), (split.val, split.test), target, strict=True)
        if share
    )
    return (
        f"the {counted(len(sizes), 'group')} of {split.by!r} cannot be split into {shares} of {n_cells:,}, within "
        f"half of each and with some left for training; the largest groups are {listed}. Use shares that whole groups "
        "can fill, a finer column, or a split by cell (by=None)"
    )


def _keys(n: int, seed: int, stream: int) -> NDArray[np.uint64]:
    """``(n,)`` random keys. Raw Philox output, which no version of NumPy may change, unlike its shuffles."""
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(n)


def _collect(part: NDArray[np.int8], split: Split, groups: dict[str, list[str]] | None) -> Splits:
    train, val, test = (Rows(len(part), part == number) for number in range(3))
    return Splits(train_rows=train, val_rows=val, test_rows=test, split=split, groups=groups)
