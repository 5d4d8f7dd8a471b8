"""Median of each gene over the cells that express it, as Geneformer's sequences need it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.collection.collection import Collection
from scdataloader.kernels.tokens.medians import DIGIT, N_DIGITS, count_digits
from scdataloader.runtime.progress import Advance, cells_bar
from scdataloader.types import CellBatch

__all__ = ["compute_medians"]

_WINDOW = 4096
"""Cells read at once."""
_TOTAL = 1e4
_N_BITS = 32


def compute_medians(
    data: Any, *, rows: NDArray[np.int64] | None = None, path: str | PathLike[str] | None = None, progress: bool = True
) -> dict[str, float]:
    """The median of each gene over the cells with ``x > 0`` of ``x / total * 1e4``, as Geneformer defines it.

    The total is over all genes of the cell's source; cells of total 0 do not count. Of an even number of values it is
    the mean of the two in the middle. Exact but for values being rounded to float32 (a relative 6e-8): the cells are
    read four times, each time for 8 bits of the medians, with about 5 kB of memory per gene.

    Args:
        data: A `Collection`, or anything that `Collection.open` takes.
        rows: ``(m,)`` row numbers of the cells that count, such as those of the training split; None for all.
        path: File to write the medians to, as JSON: ``Geneformer(medians=path)`` reads it. None for none.
        progress: Whether to show the progress.

    Returns:
        {gene id: median}, of the genes that have one.

    Raises:
        FileExistsError: the file exists.
    """
    if path is not None and Path(path).exists():
        raise FileExistsError(f"{path} exists; remove it, or write the medians to another path")
    collection = data if isinstance(data, Collection) else Collection.open(data)
    chosen = np.arange(len(collection)) if rows is None else np.asarray(rows, np.int64)
    n_passes = _N_BITS // DIGIT
    with cells_bar(f"medians of genes, {n_passes} passes", n_passes * len(chosen), 0, shown=progress) as advance:
        n_values, medians = _medians(collection, chosen, advance)
    found = np.flatnonzero(n_values).tolist()
    made = {collection.vocabulary.ids[gene]: float(medians[gene]) for gene in found}
    if path is not None:
        Path(path).write_text(json.dumps(made))
    return made


def _medians(
    collection: Collection, rows: NDArray[np.int64], advance: Advance
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """``(G,)`` number of values and median of each gene."""
    n_genes = collection.n_genes
    n_values = np.zeros(n_genes, np.int64)
    # The lower and the upper of the two values in the middle: the bits that are known, and the rank among the values
    # that begin with these.
    prefixes, ranks = np.zeros((2, n_genes), np.uint64), np.zeros((2, n_genes), np.int64)
    for number, shift in enumerate(range(_N_BITS - DIGIT, -1, -DIGIT)):
        counts = np.zeros((2, n_genes, N_DIGITS), np.uint32)
        done = number * len(rows)
        for cells in _windows(collection, rows):
            x, genes = cells.x, cells.x.indices.view(np.uint32)
            count_digits(x.indptr, genes, x.data, cells.depth, _TOTAL, np.uint64(shift), prefixes, counts)
            done += len(cells)
            advance(done)
        if number == 0:
            n_values = counts[0].sum(axis=1, dtype=np.int64)
            ranks = np.stack([np.maximum(n_values - 1, 0) // 2, n_values // 2])
        is_same = prefixes[0] == prefixes[1]
        for which in range(2):
            sums = np.where(is_same[:, None], counts[0], counts[which]).cumsum(axis=1, dtype=np.int64)
            digit = np.minimum((sums <= ranks[which][:, None]).sum(axis=1), N_DIGITS - 1)
            ranks[which] -= np.where(digit > 0, sums[np.arange(n_genes), digit - 1], 0)
            prefixes[which] = prefixes[which] << np.uint64(DIGIT) | digit.astype(np.uint64)
    lower, upper = prefixes.astype(np.uint32).view(np.float32).astype(np.float64)
    return n_values, (lower + upper) / 2


def _windows(collection: Collection, rows: NDArray[np.int64]) -> Iterator[CellBatch]:
    """The cells, window by window; the next one is read meanwhile."""
    windows = [rows[start : start + _WINDOW] for start in range(0, len(rows), _WINDOW)]
    with ThreadPoolExecutor(1) as reader:
        read = [reader.submit(collection.cells, window) for window in windows[:1]]
        for following in [*windows[1:], None]:
            if not read:
                return
            cells = read.pop().result()
            if following is not None:
                read.append(reader.submit(collection.cells, following))
            yield cells
