"""SCDL archives for the tests, written byte by byte as their format is documented."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from tests.sources.source_files import coordinates

CODES = {"uint8": 1, "uint16": 2, "uint32": 3, "uint64": 4, "float16": 5, "float32": 6, "float64": 7}
N_OBS, N_VARS = (13, 9), (31, 24)
"""Cells and genes of the two blocks of `two_blocks`."""


class Never:
    """An object that must never be loaded from a pickle."""

    def __reduce__(self):
        return exec, ("raise AssertionError('a pickle of an archive was loaded')",)


def matrices(dtype: str = "float32") -> list[sp.csr_matrix]:
    """A matrix for each block; values name row and column, as far as the dtype goes."""
    limit = 255 if dtype == "uint8" else 2048
    found = [coordinates("int64", n, g) % limit for n, g in zip(N_OBS, N_VARS, strict=True)]
    return [sp.csr_matrix(x.astype(dtype)) if dtype != "float16" else _half(x) for x in found]


def _half(x: np.ndarray) -> sp.csr_matrix:
    matrix = sp.csr_matrix(x.astype(np.float32))  # scipy has no half floats
    matrix.halves = matrix.data.astype(np.float16)
    return matrix


def gene_tables(column: str | None = "var_feature_id") -> list[pd.DataFrame]:
    """Gene tables of the two blocks, of which all but the first gene are of both; the first in another order."""
    ids = [[f"ENSG{i:011d}" for i in range(g)] for g in N_VARS]
    ids[1] = ids[1][::-1]
    name = {"length": [[7 * i for i in range(g)] for g in N_VARS]} | ({} if column is None else {column: ids})
    return [pd.DataFrame({key: values[i] for key, values in name.items()}) for i in range(2)]


def cell_table() -> pd.DataFrame:
    n = sum(N_OBS)
    kinds = [f"kind {i % 3}" if i % 5 else None for i in range(n)]
    return pd.DataFrame({"kind": kinds, "number": np.arange(n)})


def write_archive(
    folder: Path,
    blocks: Sequence[sp.csr_matrix],
    var: Sequence[pd.DataFrame],
    obs: Sequence[pd.DataFrame] = (),
    *,
    indices: str = "uint16",
    indptr: str = "uint32",
) -> Path:
    """An archive of blocks, each with its gene table; the cell tables follow each other over all blocks."""
    folder.mkdir(parents=True)
    data = np.concatenate([getattr(x, "halves", x.data) for x in blocks])
    genes = np.concatenate([x.indices for x in blocks]).astype(indices)
    ends = np.cumsum([0, *(size for x in blocks for size in np.diff(x.indptr))]).astype(indptr)
    arrays = {"DATA": ("data.npy", data), "ROWPTR": ("row_ptr.npy", ends), "COLPTR": ("col_ptr.npy", genes)}
    header = struct.pack(">4s4BII", b"SCDL", 0, 1, 0, 1, 1, len(arrays))
    for name, (file, values) in arrays.items():
        values.tofile(folder / file)
        header += struct.pack(">I", len(name)) + name.encode()
        header += struct.pack(">QIB", len(values), CODES[str(values.dtype)], 0)
    (folder / "header.sch").write_bytes(header + struct.pack(">I", 0))
    (folder / "version.json").write_text(json.dumps("0.1.3"))
    (folder / "metadata.json").write_text(json.dumps({"num_rows": blocks[0].shape[0]}))  # as stale as the writer's
    _write_tables(folder / "var_features", var, [x.shape[0] for x in blocks])
    _write_tables(folder / "obs_features", obs, [len(table) for table in obs])
    return folder


def _write_tables(folder: Path, tables: Sequence[pd.DataFrame], n_rows: Sequence[int]) -> None:
    folder.mkdir()
    for i, table in enumerate(tables):
        table.to_parquet(folder / f"dataframe_{i}.parquet", index=False)
    np.save(folder / "cumulative_sum_index.npy", np.array([-1, *np.cumsum(n_rows)], np.int64))
    np.save(folder / "labels.npy", np.array([Never()], object))


def two_blocks(folder: Path, dtype: str = "float32", column: str | None = "var_feature_id", **types: str) -> Path:
    """An archive of two blocks, whose first cell table reaches into the second block."""
    cells = cell_table()
    return write_archive(
        folder, matrices(dtype), gene_tables(column), [cells[:15], cells[15:].reset_index(drop=True)], **types
    )
