"""Cells and groups, such as donors, that training shares with validation and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.labels.column import label_column
from scdataloader.protocols import HasNames
from scdataloader.schema import IS_PRIMARY, is_unknown

if TYPE_CHECKING:
    from scdataloader.collection.collection import Collection
    from scdataloader.sampling.splits import Splits

GROUP_COLUMNS = (
    "donor_id",
    "donor",
    "patient",
    "individual",
    "sample_id",
    "sample",
    "library_id",
    "batch",
    "dataset_id",
)
"""Columns of obs whose groups should not be divided, if they exist."""
N_CELLS = 2000
"""Cells of validation and test that are looked for in training."""
_MAX_PAIRS = 4096
_STEP = 1 << 20


def find_leaks(collection: Collection, splits: Splits) -> dict[str, Any] | None:
    """What validation and test share with training; None if all cells train.

    A cell of the sample counts as the same as a training cell if both have the same name and the same counts, of which
    one is positive.
    """
    rows = {"train": splits.train, "val": splits.val, "test": splits.test}
    held_out = np.sort(np.concatenate([rows["val"], rows["test"]]))
    if not len(held_out):
        return None
    existing = {column for part in collection.parts for column in part.source.obs_columns}
    by = [] if splits.split.by is None else [splits.split.by]
    columns = dict.fromkeys([*by, *(column for column in GROUP_COLUMNS if column in existing), *collection.own_columns])
    return {
        "by": splits.split.by,
        "groups": [_groups(collection, rows, column) for column in columns],
        "cells": _same_cells(collection, held_out, rows["train"]),
        "not_primary": _not_primary(collection) if IS_PRIMARY in existing else None,
    }


def _groups(collection: Collection, rows: Mapping[str, NDArray[np.int64]], column: str) -> dict[str, Any]:
    """Groups of a column in validation and test, whose ``rows`` are given, and those that are in training as well."""
    codes = _codes(collection, column)
    n = int(codes.max(initial=-1)) + 1
    in_train = np.bincount(codes[rows["train"]] + 1, minlength=n + 1)[1:] > 0
    found: dict[str, Any] = {"column": column, "n_groups": len(np.unique(codes[codes >= 0]))}
    for name in ("val", "test"):
        counts = np.bincount(codes[rows[name]] + 1, minlength=n + 1)[1:]
        shared = (counts > 0) & in_train
        found[name] = {
            "groups": int(np.count_nonzero(counts)),
            "shared": int(np.count_nonzero(shared)),
            "cells": int(counts[shared].sum()),
            "of_cells": len(rows[name]),
        }
    return found


def _codes(collection: Collection, column: str) -> NDArray[np.int64]:
    """``(n,)`` number of the label of each cell in a column; -1 for unknown, as all of them may be."""
    found = label_column(collection, column)
    known = [-1 if is_unknown(label) else number for number, label in enumerate(found.labels)]
    codes: NDArray[np.int64] = np.array([*known, -1], np.int64)[found.codes]
    return codes


def _same_cells(collection: Collection, held_out: NDArray[np.int64], train: NDArray[np.int64]) -> dict[str, int] | None:
    """How many of a sample of the cells held out are training cells as well; None if no source has names of cells."""
    if not any(isinstance(part.source, HasNames) for part in collection.parts):
        return None
    sample = held_out[np.unique(np.linspace(0, len(held_out) - 1, N_CELLS).astype(np.int64))]
    pairs = _of_same_name(collection, sample, train)
    tried = pairs[:_MAX_PAIRS]
    same = np.unique(tried[_are_equal(collection, tried), 0])
    return {
        "sampled": len(sample),
        "of": len(held_out),
        "same_name": len(np.unique(pairs[:, 0])),
        "same": len(same),
        "n_pairs": len(pairs),
        "n_compared": len(tried),
    }


def _of_same_name(collection: Collection, sample: NDArray[np.int64], train: NDArray[np.int64]) -> NDArray[np.int64]:
    """``(n, 2)`` rows of the sample and of training whose cells have the same name."""
    names = pd.Series(sample, index=pd.Index(collection.obs_names(sample)))
    pairs: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    for at in range(0, len(train), _STEP):
        rows = train[at : at + _STEP]
        found = pd.Index(collection.obs_names(rows))
        there = found.isin(names.index)
        joined = pd.DataFrame({"train": rows[there]}, index=found[there]).join(names.rename("sample"))
        pairs.append(joined[["sample", "train"]].to_numpy(np.int64))
    return np.concatenate(pairs)


def _are_equal(collection: Collection, pairs: Sequence[Any] | NDArray[np.int64]) -> NDArray[np.bool_]:
    """``(n,)`` whether the two cells of each pair have the same counts, not all of them zero."""
    first, second = (collection.read(np.ascontiguousarray(rows)).to_scipy() for rows in np.asarray(pairs).T)
    different = np.asarray(abs(first - second).sum(axis=1)).ravel() > 0
    return ~different & (np.asarray(first.sum(axis=1)).ravel() > 0)


def _not_primary(collection: Collection) -> int:
    """Cells that are marked as copies of cells of another dataset."""
    return sum(int((values.astype(str).str.lower() == "false").sum()) for values in collection.column(IS_PRIMARY))
