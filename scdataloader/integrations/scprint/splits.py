"""Splits as scDataLoader describes them: validation by cell, test in whole sources, some assays in neither."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scdataloader.collection.collection import SOURCE, Collection
from scdataloader.sampling.rows import Rows
from scdataloader.sampling.splits import Split, Splits, split_cells
from scdataloader.schema import ASSAY

logger = logging.getLogger(__name__)


def without_assays(collection: Collection, assays: Sequence[str]) -> NDArray[np.int64]:
    """Rows of the cells that are of none of the ``assays``, ascending; by the exact id."""
    rows = np.arange(len(collection))
    if not assays:
        return rows
    if not any(ASSAY in part.source.obs_columns for part in collection.parts):
        logger.warning("no source has the column %r: assays_to_drop has no effect", ASSAY)
        return rows
    is_used = [~column.isin(list(assays)).to_numpy() for column in collection.column(ASSAY)]
    return np.flatnonzero(collection.arrange(is_used))


def scdataloader_splits(collection: Collection, usable: NDArray[np.int64], *, validation: float, test: float) -> Splits:
    """Split the ``usable`` rows, by a fixed seed.

    Args:
        collection: The cells.
        usable: Rows that may train, validate or test, ascending.
        validation: Share of the cells of the collection for validation, or a number of cells, at random.
        test: Share of the cells of the collection for test, or a number of cells, as close as whole sources come.

    Raises:
        ValueError: whole sources cannot make up the test cells, or no cell is left for training.
    """
    n = len(collection)
    n_val, share = _number(validation, n), _number(test, n) / n
    is_test = np.zeros(n, np.bool_)
    groups = None
    if test:
        by_source = split_cells(collection, Split(test=share, by=SOURCE))
        is_test[by_source.test] = True
        groups = by_source.groups
    others = usable[~is_test[usable]]
    if n_val >= len(others):
        raise ValueError(
            f"validation_split={validation} and test_split={test} leave no cells for training: {len(others):,} of "
            f"{n:,} are neither test cells nor of assays_to_drop; lower them"
        )
    keys = np.random.Philox(key=np.zeros(2, np.uint64)).random_raw(n)[others]
    val = np.sort(others[np.argsort(keys, kind="stable")[:n_val]])
    train = np.setdiff1d(others, val, assume_unique=True)
    split = Split(val=n_val / n, test=share)
    train_rows, val_rows, test_rows = (Rows.of(own, n) for own in (train, val, usable[is_test[usable]]))
    return Splits(train_rows=train_rows, val_rows=val_rows, test_rows=test_rows, split=split, groups=groups)


def _number(size: float, n: int) -> int:
    """Cells of a share, or the number of cells itself."""
    return int(size if size >= 1 else size * n)
