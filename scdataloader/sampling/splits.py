"""Splits: which cells train, which validate, which test; a pure function of the data's size, its groups and a seed."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.errors import StateMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORMAT = 1
_PARTS = ("train", "val", "test")
_TRIES = 256
"""Random orders of the groups that are tried; the first that is within 1 % is taken, else the best."""
_CLOSE = 0.01
_TOLERANCE = 0.5
"""A split by groups may miss the rows asked for by at most this share of them; a larger group than that never fits."""
_STEP = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Split:
    """How cells are shared between training, validation and test.

    Args:
        val: Share of the cells for validation, from 0 to below 1.
        test: Share of the cells for test, from 0 to below 1.
        by: Column whose groups stay whole (a donor, a dataset); None splits cell by cell.
        seed: Chooses among equally good splits; the same seed gives the same split everywhere.

    Raises:
        ValueError: a share is out of its range, or nothing is left for training.
    """

    val: float = 0.0
    test: float = 0.0
    by: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, share in (("val", self.val), ("test", self.test)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} is a share of the cells, from 0 to below 1, not {share}")
        if self.val + self.test >= 1:
            raise ValueError(
                f"val={self.val} and test={self.test} leave nothing for training; their sum must be below 1"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be from 0 to 2**64 - 1, not {self.seed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRecord:
    """What is kept of a split next to a run: enough to make it again and to tell that it is the same."""

    split: Split
    """How it was asked for."""
    n_cells: int
    """Cells that were split."""
    counts: dict[str, int]
    """Rows in train, val and test."""
    groups: dict[str, list[str]] | None
    """Names of the groups in train, val and test, sorted; None when split by cell."""
    digest: str
    """SHA-256 of the rows of the three parts."""

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> SplitRecord:
        """The record that ``dataclasses.asdict`` described."""
        return cls(**{**state, "split": Split(**state["split"])})

    def save(self, path: str | Path) -> None:
        """Write as JSON, in one step: a reader finds the old file or the new one, whole. Folders are made as needed."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> SplitRecord:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no record of a split.
        """
        try:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
            version = state.pop("format")
            if version != FORMAT:
                raise ValueError(f"{path} has format {version}, this version reads {FORMAT}")
            return cls.from_dict(state)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no record of a split, as Splits.save() writes it") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """The rows of each split: every row in exactly one, ascending."""

    train: NDArray[np.int64]
    """``(n_train,)`` rows."""
    val: NDArray[np.int64]
    """``(n_val,)`` rows."""
    test: NDArray[np.int64]
    """``(n_test,)`` rows."""
    split: Split
    """How it was asked for."""
    groups: dict[str, list[str]] | None = None
    """Names of the groups in train, val and test, sorted; None when split by cell."""

    def record(self) -> SplitRecord:
        """What to keep of this split; reads all rows for their digest."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        digest = hashlib.sha256()
        for name, rows in parts.items():
            digest.update(f"{name}:{len(rows)};".encode())
            digest.update(np.ascontiguousarray(rows, dtype="<i8").data)
        counts = {name: len(rows) for name, rows in parts.items()}
        return SplitRecord(
            split=self.split, n_cells=sum(counts.values()), counts=counts, groups=self.groups, digest=digest.hexdigest()
        )

    def save(self, path: str | Path) -> None:
        """Write the record, without the rows, as JSON."""
        self.record().save(path)

    def check(self, saved: SplitRecord) -> None:
        """Make sure that this split has the rows of a saved one.

        Raises:
            StateMismatchError: it has others; names what differs.
        """
        own = self.record()
        if own.digest == saved.digest:
            return
        raise StateMismatchError(
            f"the saved run split its {saved.n_cells:,} cells into {saved.counts} ({saved.split}), but this one splits "
            f"{own.n_cells:,} cells into {own.counts} ({own.split}) and its rows are others: use the saved run's data, "
            "in the same order, and its split"
        )


def make_splits(
    n_cells: int,
    split: Split,
    groups: NDArray[np.int32] | None = None,
    group_names: Sequence[str] | None = None,
) -> Splits:
    """Share out rows ``0 … n_cells - 1``.

    By cell the sizes are exact (rounded half up). By group, whole groups are chosen at random so that the sizes come
    close to those asked for: the first random choice within 1 % of both, else the best of many, and never further off
    than half of what is asked. Rows of no known group train. The result depends on the arguments alone: on the rows of
    each named group and on the seed, not on how the groups are numbered.

    Args:
        n_cells: number of rows.
        split: shares, column and seed.
        groups: ``(n_cells,)`` group of each row, -1 where unknown; needed where ``split.by`` names a column.
        group_names: name of each group.

    Raises:
        ValueError: a split would be empty, or no choice of groups comes close enough; names the largest groups.
    """
    if (split.by is None) != (groups is None) or (groups is None) != (group_names is None):
        raise ValueError(f"split.by={split.by!r} needs groups and group_names, and split.by=None takes neither")
    wanted = np.array([split.val, split.test]) * n_cells
    if groups is None or group_names is None:
        part = _part_of_cells(n_cells, split, np.floor(wanted + 0.5).astype(np.int64))
        return _collect(part, split, None)
    if len(groups) != n_cells or len(set(group_names)) != len(group_names):
        raise ValueError(f"need a group for each of {n_cells} cells and distinct names, not {len(groups)} groups")
    sizes = np.bincount(groups[groups >= 0], minlength=len(group_names))
    order = sorted(np.flatnonzero(sizes).tolist(), key=lambda group: group_names[group])
    names = [group_names[group] for group in order]
    part_of_group = np.zeros(len(group_names) + 1, dtype=np.int8)
    part_of_group[order] = _part_of_groups(sizes[order], n_cells, wanted, split, names)
    part = np.empty(n_cells, dtype=np.int8)
    for start in range(0, n_cells, _STEP):
        part[start : start + _STEP] = part_of_group[groups[start : start + _STEP]]
    by_part = {
        part_name: [name for name, group in zip(names, order, strict=True) if part_of_group[group] == number]
        for number, part_name in enumerate(_PARTS)
    }
    return _collect(part, split, by_part)


def _part_of_cells(n_cells: int, split: Split, sizes: NDArray[np.int64]) -> NDArray[np.int8]:
    """``(n_cells,)`` 0 train, 1 val, 2 test: the rows of the smallest random keys validate, those of the next test."""
    for name, share, size in (("val", split.val, sizes[0]), ("test", split.test, sizes[1])):
        if share > 0 and size == 0:
            raise ValueError(f"{name}={share} of {n_cells} cells is no cell; ask for a larger share or none")
    if sizes.sum() >= n_cells:
        raise ValueError(
            f"val={split.val} and test={split.test} of {n_cells} cells leave none for training; ask for less"
        )
    part = np.zeros(n_cells, dtype=np.int8)
    if not sizes.any():
        return part
    keys = _keys(n_cells, split.seed, 0)
    edges = np.cumsum(sizes)
    ordered = np.partition(keys, np.unique(edges[edges > 0]) - 1)
    # cut to size: of equal keys, one in 10¹¹ splits of 10⁸ cells, the lower row counts as the smaller
    part[np.flatnonzero(keys <= ordered[edges[1] - 1])[: edges[1]]] = 2
    if sizes[0]:
        part[np.flatnonzero(keys <= ordered[edges[0] - 1])[: edges[0]]] = 1
    return part


def _part_of_groups(
    sizes: NDArray[np.int64], n_cells: int, wanted: NDArray[np.float64], split: Split, names: Sequence[str]
) -> NDArray[np.int8]:
    """``(n_groups,)`` 0 train, 1 val, 2 test: the best of many random orders, and of the groups by size.

    Largest first finds a choice for one split whenever there is any: it takes a group that does by itself, and where
    none does, all are too small to overshoot.
    """
    best, best_miss = None, np.inf
    by_size = np.argsort(-sizes, kind="stable")
    for attempt in range(_TRIES + 1):
        order = by_size if attempt == _TRIES else np.argsort(_keys(len(sizes), split.seed, attempt), kind="stable")
        part = _fill(sizes, order, wanted)
        got = np.bincount(part, weights=sizes, minlength=3)[1:]
        miss = np.max(np.abs(got - wanted)[wanted > 0] / wanted[wanted > 0], initial=0.0)
        if miss < best_miss and got.sum() < n_cells:
            best, best_miss = part, miss
        if best_miss <= _CLOSE:
            break
    if best is None or best_miss > _TOLERANCE:
        raise ValueError(_no_choice(sizes, n_cells, wanted, split, names))
    return best


def _fill(sizes: NDArray[np.int64], order: NDArray[np.int64], wanted: NDArray[np.float64]) -> NDArray[np.int8]:
    """Give each group in turn to the emptier of val and test that it brings closer to its size, else to train."""
    part = np.zeros(len(sizes), dtype=np.int8)
    lacking = [float(rows) for rows in wanted]
    excess = [rows * _TOLERANCE for rows in lacking]
    for group, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fits = [number for number in (0, 1) if size < 2 * lacking[number] and size <= lacking[number] + excess[number]]
        if fits:
            number = max(fits, key=lambda number: lacking[number] / wanted[number])
            lacking[number] -= size
            part[group] = number + 1
        elif max(lacking) <= 0:
            break
    return part


def _no_choice(
    sizes: NDArray[np.int64], n_cells: int, wanted: NDArray[np.float64], split: Split, names: Sequence[str]
) -> str:
    largest = sorted(zip((-sizes).tolist(), names, strict=True))[:5]
    listed = ", ".join(f"{name!r} ({-size:,})" for size, name in largest)
    asked = " and ".join(
        f"{share:.0%} for {name} ({rows:,.0f} cells)"
        for name, share, rows in zip(("val", "test"), (split.val, split.test), wanted, strict=True)
        if share
    )
    return (
        f"found no way to share out the {len(sizes):,} groups of {split.by!r} so that {asked} of {n_cells:,} come "
        f"within half of what is asked and some are left for training; the largest groups are {listed}. Ask for "
        "shares that whole groups can fill, or split by a finer column, or by cell (by=None)"
    )


def _keys(n: int, seed: int, stream: int) -> NDArray[np.uint64]:
    """``(n,)`` random keys. Raw Philox output, which no version of NumPy may change, unlike its shuffles."""
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(n)


def _collect(part: NDArray[np.int8], split: Split, groups: dict[str, list[str]] | None) -> Splits:
    train, val, test = (np.flatnonzero(part == number) for number in range(3))
    return Splits(train=train, val=val, test=test, split=split, groups=groups)
