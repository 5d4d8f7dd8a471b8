"""Cells and groups that are in training and in validation or test."""

import anndata as ad
import numpy as np
import pandas as pd

import scdataloader as scd
from scdataloader.reports.leaks import find_leaks
from scdataloader.sampling.splits import split_cells

GENES = [f"ENSG{i:011d}" for i in range(8)]


def collection(*parts):
    """Sources of (names, counts, columns)."""
    return scd.Collection.open(
        [
            ad.AnnData(np.array(x, np.float32), pd.DataFrame(columns, index=names), pd.DataFrame(index=GENES))
            for names, x, columns in parts
        ]
    )


def numbered(n, first=1):
    return np.arange(first, first + n)[:, None] + np.arange(8)


def leaks(cells, split):
    return find_leaks(cells, split_cells(cells, split))


def parts(*names):
    return scd.Split(by="part", values={name: name for name in names})


def test_donors_in_two_parts_are_counted_with_their_cells():
    part = ["train", "train", "val", "val", "test", "test"]
    donors = ["a", "b", "a", "a", "unknown", "c"]
    found = leaks(
        collection((list("uvwxyz"), numbered(6), {"part": part, "donor_id": donors})), parts("train", "val", "test")
    )
    (of_donors,) = (groups for groups in found["groups"] if groups["column"] == "donor_id")
    assert of_donors["n_groups"] == 3
    assert of_donors["val"] == {"groups": 1, "shared": 1, "cells": 2, "of_cells": 2}
    assert of_donors["test"] == {"groups": 1, "shared": 0, "cells": 0, "of_cells": 2}
    assert found["not_primary"] is None


def test_the_same_cell_is_found_by_name_and_counts():
    first = (["copied", "namesake", "own", "empty"], [*numbered(3), [0] * 8])
    second = (["copied", "namesake", "other", "empty"], [[*range(1, 9)], *numbered(2, 50), [0] * 8])
    marked = ({"part": part, "is_primary_data": part == "train"} for part in ("train", "val"))
    cells = collection(*((*cells, columns) for cells, columns in zip((first, second), marked, strict=True)))
    found = leaks(cells, parts("train", "val"))
    assert found["cells"] == {"sampled": 4, "of": 4, "same_name": 3, "same": 1, "n_pairs": 3, "n_compared": 3}
    assert found["not_primary"] == 4


def test_without_a_split_there_are_no_leaks():
    assert leaks(collection((list("uv"), numbered(2), {"part": "train"})), scd.Split()) is None
