"""How good cells are: the metrics of ``scanpy.pp.calculate_qc_metrics``, a block at a time, and who is an outlier."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

TWO_SIDED = ("total_counts", "n_genes_by_counts")
"""Metrics that are looked at as log1p, and of which too little is as bad as too much."""
PCT_MT = "pct_counts_mt"
IS_OUTLIER, OUTLIER_IN = "is_outlier", "outlier_in"
METRICS = (*TWO_SIDED, "total_counts_mt", PCT_MT)
"""Columns of obs that `cell_metrics` makes."""


def cell_metrics(x: csr_matrix, mitochondrial: NDArray[np.bool_]) -> pd.DataFrame:
    """Metrics of some cells, named and defined as by ``scanpy.pp.calculate_qc_metrics``.

    Args:
        x: ``(n, n_genes)`` float32 counts without stored zeros.
        mitochondrial: ``(n_genes,)`` which genes are; where none is, nothing is said of them.

    Returns:
        ``n`` rows: ``n_genes_by_counts`` int32, and as float32 ``total_counts``, ``total_counts_mt`` and
        ``pct_counts_mt``, the latter in percent, and missing for cells without any count.
    """
    total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
    metrics = {"n_genes_by_counts": np.diff(x.indptr).astype(np.int32), "total_counts": total.astype(np.float32)}
    if mitochondrial.any():
        of_mt = x @ mitochondrial.astype(np.float64)
        metrics["total_counts_mt"] = of_mt.astype(np.float32)
        with np.errstate(invalid="ignore"):  # 0 of 0
            metrics[PCT_MT] = (of_mt / total * 100).astype(np.float32)
    return pd.DataFrame(metrics)


def outliers(metrics: pd.DataFrame, n_mads: float) -> pd.Series:
    """``(n,)`` the metrics that cells are outliers in, as text: "", or several, joined by commas.

    A cell is an outlier in a metric where |x - median| > ``n_mads`` · MAD, MAD = median |x - median|: x is
    log1p(total_counts) or log1p(n_genes_by_counts), and pct_counts_mt as it is, of which too little is no fault. Where
    more than half of the cells have the same value (MAD = 0), nobody is. (Germain, Sonrel & Robinson, Genome Biology
    2020, with 5 MADs; Heumos et al., Nature Reviews Genetics 2023.)
    """
    values = {name: np.log1p(metrics[name].to_numpy(np.float64)) for name in TWO_SIDED}
    if PCT_MT in metrics:
        values[PCT_MT] = metrics[PCT_MT].to_numpy(np.float64)
    found = np.full(len(metrics), "", dtype=object)
    for name, x in values.items():
        known = x[~np.isnan(x)]
        median = np.median(known) if len(known) else 0.0
        mad = np.median(np.abs(known - median)) if len(known) else 0.0
        if mad > 0:
            distance = x - median
            is_outlier = (distance if name == PCT_MT else np.abs(distance)) > n_mads * mad
            found[is_outlier] += np.where(found[is_outlier] == "", name, "," + name)
    return pd.Series(found, index=metrics.index)
