"""AnnData in memory: the laws of a file, from every kind of matrix and object, in every entry point."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from torch.utils.data import DataLoader as TorchLoader

from scdataloader import CellDataset, Collection, DataModule, open_source
from scdataloader.errors import NotCountsError, SourceFormatError
from scdataloader.sources import AnnDataSource
from scdataloader.testing import check_source
from tests.sources.source_files import N_OBS, coordinates, make

ROWS = np.array([60, 3, 3, 0, 17])
MATRICES: dict[str, Callable[[np.ndarray], Any]] = {
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr array": sp.csr_array,
    "dense": np.asarray,
    "dense by columns": np.asfortranarray,
    "csr with 64-bit indices": lambda x: _wide(sp.csr_matrix(x)),
    "csr out of order": lambda x: _reversed(sp.csr_matrix(x)),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*stored as CSC")


def _wide(matrix: sp.csr_matrix) -> sp.csr_matrix:
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    return matrix


def _reversed(matrix: sp.csr_matrix) -> sp.csr_matrix:
    for start, stop in zip(matrix.indptr, matrix.indptr[1:], strict=False):
        matrix.indices[start:stop] = matrix.indices[start:stop][::-1].copy()
        matrix.data[start:stop] = matrix.data[start:stop][::-1].copy()
    matrix.has_sorted_indices = False
    return matrix


def _read(source: AnnDataSource, rows: np.ndarray = ROWS) -> np.ndarray:
    dense: np.ndarray = source.read(rows).to_scipy().toarray()
    return dense


@pytest.mark.parametrize("kind", ["csr", "dense"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_there_may_be_no_cells_or_no_genes(kind: str, shape: tuple[int, int]) -> None:
    source = open_source(ad.AnnData(MATRICES[kind](np.zeros(shape, np.float32))))
    assert source.read(np.arange(shape[0])).to_scipy().shape == shape
    assert source.fingerprint


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "bool", "uint16"])
def test_reads_as_anndata_slices(kind: str, dtype: str) -> None:
    x = coordinates("uint8").astype(bool) if dtype == "bool" else coordinates(dtype)
    source = open_source(make(MATRICES[kind](x)))
    check_source(source)
    np.testing.assert_array_equal(_read(source), x[ROWS])
    np.testing.assert_array_equal(_read(pickle.loads(pickle.dumps(source))), x[ROWS])
    np.testing.assert_array_equal(_read(copy.deepcopy(source)), x[ROWS])


def test_same_matrices_and_names_as_from_its_file(tmp_path: Path) -> None:
    counts, adata = coordinates(), make(sp.csr_matrix(coordinates() / 7), spliced=coordinates()[::-1].copy())
    adata.raw = ad.AnnData(sp.csr_matrix(np.hstack([counts, counts])), obs=adata.obs)
    adata.obsm["X_pca"] = np.arange(2.0 * N_OBS).reshape(N_OBS, 2)
    adata.uns["organism"] = "Homo sapiens"
    adata.write_h5ad(tmp_path / "a.h5ad")
    memory, file = open_source(adata), open_source(tmp_path / "a.h5ad")
    assert memory.counts == file.counts == "raw"
    assert memory.organism == file.organism
    assert memory.matrix_keys == file.matrix_keys
    assert memory.obs_names().tolist() == file.obs_names().tolist()
    assert memory.obs_columns == file.obs_columns
    assert memory.obs(["kind", "text"]).equals(file.obs(["kind", "text"]))
    np.testing.assert_array_equal(memory.read_matrix("obsm/X_pca", ROWS), file.read_matrix("obsm/X_pca", ROWS))
    for key in ("raw", "layers/spliced"):
        ours, theirs = (open_source(data, counts=key) for data in (adata, tmp_path / "a.h5ad"))
        np.testing.assert_array_equal(_read(ours), _read(theirs))
    with pytest.raises(KeyError, match=r"AnnData has no obs column 'kid'; the nearest are 'kind'"):
        memory.obs(["kid"])
    with pytest.raises(NotCountsError, match="AnnData: X does not hold counts"):
        open_source(adata, counts="X")


def test_views_and_backed_objects(tmp_path: Path) -> None:
    x = coordinates()
    adata = make(sp.csr_matrix(x))
    adata.raw = adata
    adata.write_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(_read(open_source(adata[5:, ::2]), np.array([3, 0])), x[5:, ::2][[3, 0]])
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    backed.obs["new"] = np.arange(N_OBS)
    source = open_source(backed)
    assert source.name == "a.h5ad"
    assert source.obs(["new"])["new"].tolist() == list(range(N_OBS))  # the table is that of the object
    for counts in ("X", "raw"):
        np.testing.assert_array_equal(_read(open_source(backed, counts=counts)), x[ROWS])
    np.testing.assert_array_equal(_read(pickle.loads(pickle.dumps(source))), x[ROWS])
    np.testing.assert_array_equal(_read(open_source(backed[7:30]), np.array([2])), x[[9]])


def test_change_is_noticed() -> None:
    adata = make(sp.csr_matrix(coordinates()))
    before = open_source(adata).fingerprint
    assert open_source(adata).fingerprint == before
    adata.X.data[0] += 1
    assert open_source(adata).fingerprint != before


def test_mixed_with_files_in_every_entry_point(tmp_path: Path) -> None:
    x = coordinates()
    first, second, third = (make(sp.csr_matrix(np.roll(x, n, axis=0))) for n in range(3))
    second.write_h5ad(tmp_path / "second.h5ad")
    data = [first, tmp_path / "second.h5ad", third]
    collection = Collection.open(data)
    assert [part.source.name for part in collection.parts] == ["AnnData 1", "second.h5ad", "AnnData 2"]
    rows = np.array([0, 60, 61, 122, 182, 5])
    wanted = np.vstack([np.roll(x, n, axis=0) for n in range(3)])[rows]
    np.testing.assert_array_equal(collection.read(rows).to_scipy().toarray(), wanted)
    cells = CellDataset([data[0], str(data[1]), third], obs_keys="kind")
    np.testing.assert_array_equal([cell["X"] for cell in cells.__getitems__(rows)], wanted)
    batches = TorchLoader(cells, batch_size=50, num_workers=1, multiprocessing_context="spawn")
    assert sum(len(batch["X"]) for batch in batches) == 3 * N_OBS
    module = DataModule(data=first, labels=["kind"], batch_size=20)
    module = copy.deepcopy(module)
    module.setup("fit")
    assert sum(len(batch["row"]) for batch in module.train_dataloader()) == 60


@pytest.mark.parametrize("data", [np.eye(3), sp.eye_array(3, format="csr"), pd.DataFrame(np.eye(3), columns=[*"abc"])])
def test_tables_and_matrices_are_not_data(data: Any) -> None:
    with pytest.raises(TypeError, match=r"data must be .* AnnData objects.*; make an AnnData of it: anndata.AnnData"):
        Collection.open(data)


def test_refused() -> None:
    adata = make(sp.csr_matrix(coordinates()))
    with pytest.raises(ValueError, match=r"AnnData 1 and AnnData 2 hold the same cells"):
        Collection.open([adata, adata])
    adata.X = np.ma.masked_array(coordinates())
    with pytest.raises(SourceFormatError, match=r"X of the AnnData of 61 cells and 43 genes is of type MaskedArray"):
        open_source(adata)
