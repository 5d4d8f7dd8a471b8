"""AnnData files written in blocks."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scdataloader.errors import WriteError
from scdataloader.sources.anndata import writer
from scdataloader.sources.anndata.writer import Spool, new_anndata, write_anndata

X = csr_matrix(np.arange(60, dtype=np.float32).reshape(12, 5) % 7)


def tables():
    obs = pd.DataFrame({"kind": pd.Categorical(["a", "b"] * 6)}, index=[f"c{i}" for i in range(12)])
    var = pd.DataFrame(index=[f"g{i}" for i in range(5)])
    return ad.AnnData(obs=obs, var=var, obsm={"X_pca": np.ones((12, 2))}, uns={"title": "cells"})


def blocks():
    for at in range(0, X.nnz, 7):
        yield X.data[at : at + 7], X.indices[at : at + 7]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("dtype", ["float32", "uint32"])
def test_what_is_written_is_what_anndata_reads(tmp_path, suffix, dtype):
    path = tmp_path / f"a{suffix}"
    with new_anndata(path) as root:
        write_anndata(root, tables(), X.indptr, blocks(), dtype=np.dtype(dtype))
        assert not path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    found = ad.read_zarr(path) if suffix == ".zarr" else ad.read_h5ad(path)
    assert found.X.dtype == dtype
    np.testing.assert_array_equal(found.X.toarray(), X.toarray())
    pd.testing.assert_frame_equal(found.obs, tables().obs)
    assert list(found.var_names) == list(tables().var_names)
    assert list(found.obsm) == ["X_pca"]
    assert found.uns == {"title": "cells"}


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_an_exception_leaves_the_file_that_was_there(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".zarr":
        path.mkdir()
    else:
        path.write_text("before")
    with pytest.raises(ValueError, match=r"exist|already"), new_anndata(path) as root:
        [root.create_group("X") for _ in range(2)]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_disk_without_room_is_refused(tmp_path):
    with (
        pytest.raises(WriteError, match=r"cannot write a\.h5ad .* MB are free"),
        new_anndata(tmp_path / "a.h5ad", 1 << 60),
    ):
        pytest.fail("was opened")
    assert not list(tmp_path.iterdir())


def test_a_spool_gives_back_what_was_appended(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_PIECE", 4)
    with Spool(tmp_path / "a.h5ad", np.dtype(np.float32)) as spool:
        for values, genes in blocks():
            spool.append(values, genes)
        assert len(list(tmp_path.iterdir())) == 2
        values, genes = map(np.concatenate, zip(*spool.blocks(), strict=True))
    np.testing.assert_array_equal(values, X.data)
    np.testing.assert_array_equal(genes, X.indices)
    assert not list(tmp_path.iterdir())
