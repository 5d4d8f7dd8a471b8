"""Genes that sources share, and sizes of a sample of their cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

if TYPE_CHECKING:
    from scdataloader.collection.collection import Collection

N_SHOWN = 60
"""Lists of genes that are compared, and sources whose cells are sampled."""
N_CELLS = 256
"""Cells of a source that are sampled."""
N_BINS = 40
_RUN = 32
"""Neighbouring cells of a sample: single cells of a compressed file are slow to read."""
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def gene_overlap(collection: Collection) -> dict[str, Any]:
    """Genes that each two lists of genes share; sources with the same genes have one list.

    Lists are in the order of an average-linkage clustering by Jaccard distance. Of more than `N_SHOWN` lists, those
    of most cells are compared.
    """
    groups: dict[bytes, list[int]] = {}
    for number, measured in enumerate(collection.measured):
        groups.setdefault(np.packbits(measured).tobytes(), []).append(number)
    n_cells = [part.n_obs for part in collection.parts]
    by_cells = sorted(groups.values(), key=lambda group: -sum(n_cells[number] for number in group))
    shown = by_cells[:N_SHOWN]
    genes = collection.measured[[group[0] for group in shown]].astype(np.float32)
    shared = np.rint(genes @ genes.T).astype(np.int64)
    order = _clustered(shared)
    names = [collection.parts[group[0]].source.name for group in shown]
    return {
        "names": [names[place] for place in order],
        "n_sources": [len(shown[place]) for place in order],
        "n_lists": len(by_cells),
        "shared": shared[np.ix_(order, order)].tolist(),
    }


def _clustered(shared: NDArray[np.int64]) -> list[int]:
    """Order of the lists in which similar ones are neighbours."""
    if len(shared) < 3:  # noqa: PLR2004 (nothing to arrange)
        return list(range(len(shared)))
    sizes = np.diagonal(shared)
    either = np.maximum(sizes[:, None] + sizes[None, :] - shared, 1)
    distance = 1 - shared / either
    np.fill_diagonal(distance, 0)
    return [int(place) for place in leaves_list(linkage(squareform(distance, checks=False), "average"))]


def cell_sizes(collection: Collection) -> dict[str, Any]:
    """Counts and genes per cell of a sample of each source: quantiles, and histograms on logarithmic bins.

    Of more than `N_SHOWN` sources, those of most cells are sampled.
    """
    numbers = sorted(range(len(collection.parts)), key=lambda number: -collection.parts[number].n_obs)[:N_SHOWN]
    values = [_read_sizes(collection, collection.rows_of(number, _own(collection, number))) for number in numbers]
    return {
        "names": [collection.parts[number].source.name for number in numbers],
        "n_cells": [len(depth) for depth, _ in values],
        "n_sources": len(collection.parts),
        "counts": _distributions([depth for depth, _ in values]),
        "genes": _distributions([n_genes for _, n_genes in values]),
    }


def _read_sizes(collection: Collection, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Total counts of cells, and how many genes of the vocabulary they express."""
    x, depth = collection.read_located(collection.locate(rows))
    return depth, np.diff(x.indptr)


def _distributions(of_sources: Sequence[NDArray[Any]]) -> dict[str, Any]:
    """Quantiles of the values of each source, and their histogram on bins from 1 to ``top``; 0 is in the first bin."""
    top = max(10.0, *(float(values.max(initial=0)) for values in of_sources))
    bins = np.geomspace(1, top, N_BINS + 1)
    bins[-1] = np.nextafter(top, np.inf)
    return {
        "top": top,
        "histograms": [np.histogram(np.maximum(values, 1), bins)[0].tolist() for values in of_sources],
        "quantiles": [np.rint(np.quantile(values, _QUANTILES)).astype(int).tolist() for values in of_sources],
    }


def _own(collection: Collection, number: int) -> NDArray[np.int64]:
    """Cells of the source of a part that are sampled: short runs of neighbours at even distances."""
    part = collection.parts[number]
    if part.n_obs <= N_CELLS:
        chosen = np.arange(part.n_obs)
    else:
        starts = np.linspace(0, part.n_obs - _RUN, N_CELLS // _RUN).astype(np.int64)
        chosen = np.unique((starts[:, None] + np.arange(_RUN)).ravel())
    return chosen if part.rows is None else part.rows[chosen]
