"""Files of anndata's earlier encodings, written by hand as they were."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from scdataloader.sources import open_source
from tests.sources.source_files import N_OBS, N_VARS, coordinates

IDS = [f"ENSG{i:011d}" for i in range(N_VARS)]
CELLS = [f"cell{i}" for i in range(N_OBS)]
CODES = np.arange(N_OBS) % 3


def records(names: list[str], **columns: np.ndarray) -> np.ndarray:
    table = np.empty(len(names), [("index", "S20"), *((key, values.dtype) for key, values in columns.items())])
    table["index"] = [name.encode() for name in names]
    for key, values in columns.items():
        table[key] = values
    return table


def sparse(parent: h5py.Group, name: str, matrix: sp.spmatrix, **attributes) -> None:
    group = parent.create_group(name)
    for part in ("data", "indices", "indptr"):
        group[part] = getattr(matrix, part)
    group.attrs.update(attributes)


def check(path: Path, expected: np.ndarray, counts: str) -> None:
    with open_source(path) as source:
        assert (source.counts, source.n_obs) == (counts, N_OBS)
        rows = np.array([3, 60, 0, 3])
        np.testing.assert_array_equal(source.read(rows).to_scipy().toarray(), expected[rows])
        assert source.obs_columns == ["kind", "number"]
        assert source.var.index.tolist() == IDS[: expected.shape[1]]
        obs = source.obs(["number", "kind"])
        assert obs.columns.tolist() == ["number", "kind"]
        assert obs["number"].tolist() == list(range(N_OBS))
        assert obs["kind"].dtype == "category"
        assert obs["kind"].tolist() == [["a", "b", "c"][code] for code in CODES]
        assert source.obs(["number"]).shape == (N_OBS, 1)
        assert source.fingerprint == source.fingerprint
        assert source.organism == "human"


@pytest.mark.parametrize("kind", ["csr", "dense"])
@pytest.mark.parametrize("where", ["X", "raw"])
def test_before_anndata_0_7(tmp_path: Path, kind: str, where: str) -> None:
    """Tables as arrays of records, categories in uns, sparse matrices marked by h5sparse, raw at the top."""
    x = coordinates()
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file["obs"] = records(CELLS, kind=CODES.astype("i1"), number=np.arange(N_OBS))
        file["var"] = records(IDS, n=np.arange(N_VARS))
        file["uns/kind_categories"] = np.array([b"a", b"b", b"c"])
        file["uns/organism"] = "human"
        main = x if where == "X" else x / 3
        if kind == "dense":
            file["X"] = main
        else:
            matrix = sp.csr_matrix(main)
            sparse(file, "X", matrix, h5sparse_format="csr", h5sparse_shape=matrix.shape)
        if where == "raw":
            matrix = sp.csr_matrix(x[:, :10])
            sparse(file, "raw.X", matrix, h5sparse_format=np.bytes_("csr"), h5sparse_shape=matrix.shape)
            file["raw.var"] = records(IDS[:10], n=np.arange(10))
    check(tmp_path / "a.h5ad", x if where == "X" else x[:, :10], where)


@pytest.mark.parametrize("where", ["X", "raw"])
def test_anndata_0_7(tmp_path: Path, where: str) -> None:
    """Dataframe encoding 0.1.0, with categories in __categories."""
    x = coordinates()
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        _frame(file, "obs", CELLS, number=np.arange(N_OBS))
        obs = file["obs"]
        obs["kind"] = CODES.astype("i1")
        obs["__categories/kind"] = np.array(["a", "b", "c"], dtype=h5py.string_dtype())
        obs["kind"].attrs["categories"] = obs["__categories/kind"].ref
        obs.attrs["column-order"] = ["kind", "number"]
        _frame(file, "var", IDS)
        file["uns/organism"] = "human"
        attributes = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
        sparse(file, "X", sp.csr_matrix(x if where == "X" else -x), shape=x.shape, **attributes)
        if where == "raw":
            _frame(file.create_group("raw"), "var", IDS[:10])
            sparse(file["raw"], "X", sp.csr_matrix(x[:, :10]), shape=(N_OBS, 10), **attributes)
    check(tmp_path / "a.h5ad", x if where == "X" else x[:, :10], where)


def _frame(parent: h5py.Group, name: str, index: list[str], **columns) -> None:
    group = parent.create_group(name)
    group["_index"] = np.array(index, dtype=h5py.string_dtype())
    for key, values in columns.items():
        group[key] = values
    group.attrs.update(
        {
            "encoding-type": "dataframe",
            "encoding-version": "0.1.0",
            "_index": "_index",
            "column-order": np.array(list(columns), dtype=h5py.string_dtype()),
        }
    )
