"""Neighbours and metacells in batches: keys, alignment with the genes of a cell, resuming, and several ranks."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scdataloader as scd
from scdataloader.collection.collection import Collection
from scdataloader.loading.contents import Contents
from scdataloader.loading.loader import Loader
from scdataloader.sampling.samplers import SequentialSampler
from scdataloader.testing.data import named_values

N, G, K = 60, 40, 3


@pytest.fixture(scope="module")
def adata():
    made = ad.AnnData(sp.csr_matrix(named_values(N, G, density=0.3) % 97))
    made.var_names = [f"ENSG{i:011d}" for i in range(G)]
    cells = np.repeat(np.arange(N), 2)
    near = np.stack([np.arange(N) + 1, np.arange(N) + 2], axis=1).ravel() % N  # two of three neighbours
    made.obsp["distances"] = sp.csr_matrix((0.25 + cells % 4, (cells, near)), (N, N))
    return made


def loader(adata, collate, *, metacell=None, **options):
    contents = Contents(neighbours=K, metacell=metacell)
    return Loader(
        Collection.open([adata]), SequentialSampler(N), collate, **{"batch_size": 8, "contents": contents} | options
    )


def expected(adata, batch):
    """(B, K, G) counts of the neighbours of the cells of a batch."""
    dense = np.vstack([adata.X.toarray(), np.zeros(G)])
    rows = batch["row"].numpy()
    near = np.sort(np.stack([(rows + 1) % N, (rows + 2) % N], axis=1), axis=1)  # among equals the lower row first
    return dense[np.hstack([near, np.full((len(rows), 1), N)])]


def at_genes(dense, genes):
    chosen = np.take_along_axis(dense, np.maximum(genes, 0)[:, None, :], axis=2)
    return np.where(genes[:, None, :] < 0, 0, chosen)


@pytest.mark.parametrize("how", ["most expressed", "random expressed", "all", "given"])
def test_neighbours_are_on_the_genes_of_each_cell(adata, how):
    options = {"given": {"genes": [f"ENSG{i:011d}" for i in (7, 3, 30)]}, "all": {}}.get(how, {"n_genes": 9})
    fill = {"fill": "unexpressed"} if "expressed" in how else {}
    for batch in loader(adata, scd.SelectedGenes(how=how, **options, **fill)):
        genes, dense = batch["genes"].numpy(), expected(adata, batch)
        np.testing.assert_array_equal(batch["knn_cells"].numpy(), at_genes(dense, genes))
        own = adata.X.toarray()[batch["row"].numpy()]
        np.testing.assert_array_equal(batch["x"].numpy()[:, None, :], at_genes(own[:, None, :], genes))
        assert (batch["knn_cells_info"][:, :2] == 0.25 + batch["row"][:, None] % 4).all()
        assert (batch["knn_cells_info"][:, 2] == -1).all()
        if how == "most expressed":
            ranked = own + dense.sum(axis=1) / 2
            wanted = np.sort(np.argsort(-ranked, axis=1, kind="stable")[:, :9], axis=1)
            is_due = np.take_along_axis(ranked, wanted, axis=1) > 0
            assert [set(g[due]) <= set(f) for g, due, f in zip(wanted, is_due, genes, strict=True)] == [True] * len(own)
            assert all(len(set(row)) == 9 for row in genes)


def test_neighbours_have_all_genes_where_the_batch_does_not_select_any(adata):
    for batch in loader(adata, scd.Dense()):
        np.testing.assert_array_equal(batch["knn_cells"].numpy(), expected(adata, batch))
    for batch in loader(adata, scd.Sparse()):
        assert batch["knn_cells"].layout is torch.sparse_csr
        found = batch["knn_cells"].to_dense().numpy().reshape(-1, K, G)
        np.testing.assert_array_equal(found, expected(adata, batch))


def test_transforms_change_neighbours_as_they_change_cells(adata):
    for batch in loader(adata, scd.Dense(), transforms=[scd.Normalize(total=100.0), scd.Log1p()]):
        dense = expected(adata, batch)
        depth = np.maximum(dense.sum(axis=2, keepdims=True), 1)
        np.testing.assert_allclose(batch["knn_cells"].numpy(), np.log1p(dense * 100 / depth), rtol=1e-5)


def test_a_data_module_delivers_them_dense_on_the_device(adata):
    dm = scd.DataModule([adata], neighbours=K, batch_size=8)
    batch = next(iter(dm.train_dataloader()))
    on_device = dm.on_after_batch_transfer(batch, 0)
    np.testing.assert_array_equal(on_device["knn_cells"].numpy(), expected(adata, batch))
    assert on_device["x"].shape == (8, G)


@pytest.mark.parametrize("metacell", [None, 0.4])
def test_ranks_share_the_batches_and_a_run_resumes(adata, metacell):
    options = {"metacell": metacell, "num_threads": 2}
    keys = ("x", "depth", "is_meta") if metacell else ("x", "knn_cells", "knn_cells_info")

    def values(batch):
        return {key: batch[key].to_dense() if batch[key].is_sparse_csr else batch[key] for key in keys}

    whole = [values(batch) for batch in loader(adata, scd.Dense(), **options)]
    ranks = [
        [values(b) for b in loader(adata, scd.Dense(), batch_size=4, rank=rank, world_size=2, **options)]
        for rank in (0, 1)
    ]
    for at, one in enumerate(whole[:-1]):
        for key in keys:
            assert torch.equal(one[key], torch.cat([ranks[0][at][key], ranks[1][at][key]]))
    first = loader(adata, scd.Dense(), **options)
    batches = iter(first)
    for _ in range(3):
        next(batches)
    later = loader(adata, scd.Dense(), **options)
    later.load_state_dict(first.state_dict())
    for expected_batch, batch in zip(whole[3:], later, strict=True):
        assert all(torch.equal(expected_batch[key], values(batch)[key]) for key in keys)


def test_metacells_are_sums_in_training_alone(adata):
    dm = scd.DataModule([adata], neighbours=K, metacell=0.5, batch_size=10, collate=scd.Dense(), seed=3)
    dense, chosen = adata.X.toarray(), []
    for batch in dm.train_dataloader():
        rows, meta = batch["row"].numpy(), batch["is_meta"].numpy()
        sums = dense[rows] + meta[:, None] * (dense[(rows + 1) % N] + dense[(rows + 2) % N])
        np.testing.assert_array_equal(batch["x"].numpy(), sums)
        np.testing.assert_array_equal(batch["depth"].numpy(), sums.sum(axis=1))
        assert "knn_cells" not in batch
        chosen += meta.tolist()
    assert 0.2 < np.mean(chosen) < 0.8
    assert not any(batch["is_meta"].any() for batch in dm.predict_dataloader())


def test_training_never_reads_cells_of_another_split(adata):
    dm = scd.DataModule([adata], neighbours=K, batch_size=10, split=scd.Split(val=0.3), collate=scd.Dense())
    held, dense = set(dm.splits.val.tolist()), adata.X.toarray()
    n_left_out = 0
    for batch in dm.train_dataloader():
        for row, near, info in zip(batch["row"].tolist(), batch["knn_cells"], batch["knn_cells_info"], strict=True):
            expected = [to for to in sorted({(row + 1) % N, (row + 2) % N}) if to not in held]
            n_left_out += 2 - len(expected)
            assert (info >= 0).tolist() == [True] * len(expected) + [False] * (K - len(expected))
            np.testing.assert_array_equal(near[: len(expected)], dense[expected])
    assert n_left_out
    val = [batch["knn_cells_info"] for batch in dm.val_dataloader()]
    assert (torch.cat(val) >= 0).sum(axis=1).tolist() == [2] * len(held)


def test_options_out_of_range_are_refused(adata):
    with pytest.raises(ValueError, match=r"metacell=0\.5 needs the number of neighbours"):
        scd.DataModule([adata], metacell=0.5)
    with pytest.raises(ValueError, match=r"metacell is a probability, from 0 to 1, not 2"):
        scd.DataModule([adata], neighbours=6, metacell=2)
    with pytest.raises(ValueError, match="neighbours must be 1 or more, not 0"):
        scd.DataModule([adata], neighbours=0)
    plain = ad.AnnData(adata.X, var=adata.var)
    with pytest.raises(KeyError, match=r"AnnData.* has no graph obsp\['distances'\], which neighbours=6 needs"):
        scd.DataModule([plain], neighbours=6).setup("fit")
