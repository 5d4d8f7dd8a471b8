"""Parquet tables of cells for the tests, as those of Tahoe-100M are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

FIRST_TOKEN = 3
"""Number of the first gene; 1 is a marker."""


def write_tahoe(folder: Path, adata: ad.AnnData, *, marker: bool = True, rows: int = 20, **columns: Any) -> Path:
    """Expression data, and the gene table in "metadata", whose rows are not in the order of the numbers."""
    x = sp.csr_matrix(adata.X)
    first: tuple[list[int], list[float]] = ([1], [-2.0]) if marker else ([], [])
    genes, values = [], []
    for start, stop in zip(x.indptr[:-1], x.indptr[1:], strict=True):
        genes.append(first[0] + (x.indices[start:stop] + FIRST_TOKEN).tolist())
        values.append(first[1] + x.data[start:stop].tolist())
    table = pa.table(
        {
            "genes": pa.array(genes, pa.list_(pa.int64())),
            "expressions": pa.array(values, pa.list_(pa.float32())),
            **{name: pa.array(list(column)) for name, column in adata.obs.items()},
            "BARCODE_SUB_LIB_ID": pa.array(list(adata.obs_names)),
            **columns,
        }
    )
    (folder / "data").mkdir(parents=True)
    (folder / "metadata").mkdir()
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet", row_group_size=rows)
    var = pd.DataFrame({"gene_symbol": adata.var["symbol"].to_numpy(), "ensembl_id": list(adata.var_names)})
    var["token_id"] = np.arange(adata.n_vars) + FIRST_TOKEN
    var.iloc[::-1].to_parquet(folder / "metadata" / "gene_metadata.parquet", index=False)
    return folder / "data" / "train-00000-of-00001.parquet"
