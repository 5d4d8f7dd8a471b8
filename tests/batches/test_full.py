"""Transforms and collates against what NumPy says of the dense batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scdataloader.batches.full import Dense, Sparse
from scdataloader.batches.selected_genes import SelectedGenes
from scdataloader.batches.transforms import Log1p, Normalize, QuantileBins, transformed
from scdataloader.collection.collection import Collection
from scdataloader.loading.loader import Loader
from scdataloader.protocols import BatchContext, Collate, Transform
from scdataloader.sampling.samplers import SequentialSampler
from scdataloader.testing import MemorySource, named_values

GENES = [f"ENSG{i:011d}" for i in range(20)]
RNG = np.random.default_rng(0)


@pytest.fixture
def batch():
    values = named_values(6, 20)
    values[2] = 0  # a cell without counts
    collection = Collection.open(
        [MemorySource("a", values, GENES), MemorySource("b", named_values(3, 8, seed=5), GENES[4:12])]
    )
    return replace(collection.cells(np.array([0, 1, 2, 7, 8, 5])), key=77)


def dense(batch):
    return batch.x.to_scipy().toarray()


def with_rows(**changed):
    """A transform that changes rows, given functions of them."""
    return lambda batch, rng: replace(
        batch, x=replace(batch.x, **{name: change(batch.x) for name, change in changed.items()})
    )


@pytest.mark.parametrize(
    "transform",
    [
        with_rows(indices=lambda x: x.indices[::-1].copy()),
        with_rows(indices=lambda x: np.zeros_like(x.indices)),
        with_rows(indices=lambda x: x.indices + 10),
        with_rows(indices=lambda x: x.indices - 1),
        with_rows(data=lambda x: x.data[:-1]),
        with_rows(n_genes=lambda x: 10),
        with_rows(indptr=lambda x: x.indptr + 1),
        with_rows(indptr=lambda x: x.indptr[[0, 2, 1, 3, 4, 5, 6]]),
        with_rows(indptr=lambda x: x.indptr[:-1]),
        with_rows(indices=lambda x: x.indices[:-1], data=lambda x: x.data[:-1]),
    ],
)
def test_rows_that_a_kernel_could_not_trust_are_refused(batch, transform):
    with pytest.raises(ValueError, match="returned"):
        transformed(batch, transform, RNG)


def test_rows_of_other_genes_pass(batch):
    half = with_rows(
        data=lambda x: x.data[x.indices < 10],
        indices=lambda x: x.indices[x.indices < 10],
        indptr=lambda x: np.concatenate([[0], np.cumsum(x.indices < 10)])[x.indptr],
        n_genes=lambda x: 10,
    )
    assert np.array_equal(dense(transformed(batch, half, RNG)), dense(batch)[:, :10])


def test_normalize_scales_by_the_depth_over_all_genes(batch):
    shallow = replace(batch, depth=batch.depth * 2)  # as where the vocabulary holds half of the counts
    expected = dense(batch) * (100 / np.where(batch.depth > 0, batch.depth * 2, 1))[:, None]
    assert np.allclose(dense(Normalize(total=100)(shallow, RNG)), expected, rtol=1e-6)


def test_normalize_scales_by_the_total_over_the_vocabulary(batch):
    totals = dense(batch).sum(axis=1, keepdims=True)
    expected = dense(batch) * 100 / np.where(totals > 0, totals, 1)
    assert np.allclose(dense(Normalize(total=100, of="vocabulary")(batch, RNG)), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="genes"):
        Normalize(of="genes")


def test_log1p_is_numpys(batch):
    assert np.array_equal(dense(Log1p()(batch, RNG)), np.log1p(dense(batch)))


def test_bins_count_zero_as_bin_zero(batch):
    bins = dense(QuantileBins(n_bins=5)(batch, RNG))
    assert np.array_equal(bins > 0, dense(batch) > 0)
    assert bins.max() == 4


@pytest.mark.parametrize(
    "bad", [lambda: Normalize(total=0), lambda: QuantileBins(n_bins=2), lambda: QuantileBins(ties="low")]
)
def test_transforms_refuse_senseless_options(bad):
    with pytest.raises(ValueError, match=r"must be positive|n_bins from 3|ties"):
        bad()


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 6, 9])
def test_batches_split_off_together_are_those_made_one_by_one(batch, batch_size, pad):
    if pad:
        batch = replace(batch, pad=np.arange(6) > 3)
    split = Sparse().many(batch, batch_size)
    single = [Sparse()(batch.slice(at, min(at + batch_size, 6)), RNG) for at in range(0, 6, batch_size)]
    assert len(split) == len(single)
    for got, expected in zip(split, single, strict=True):
        assert list(got) == list(expected)
        for key, tensor in expected.items():
            assert got[key].dtype == tensor.dtype
            assert got[key].shape == tensor.shape
            assert torch.equal(got[key].to_dense(), tensor.to_dense())
        torch._validate_sparse_csr_tensor_args(
            got["x"].crow_indices(), got["x"].col_indices(), got["x"].values(), got["x"].shape
        )


@pytest.mark.parametrize("collate", [Sparse(), Dense()], ids=repr)
def test_a_batch_of_no_cells_has_no_rows(batch, collate):
    none = collate(batch.slice(0, 0), RNG)
    assert none["x"].shape == (0, batch.x.n_genes)
    assert len(none["row"]) == 0


@pytest.mark.parametrize("batch_size", [1, 4, 5, 6, 100])
def test_dense_batches_made_together_begin_at_cache_lines(batch, batch_size):
    made = Dense().many(batch, batch_size)
    assert {batch["x"].data_ptr() % 64 for batch in made} == {0}
    assert np.array_equal(torch.cat([batch["x"] for batch in made]), dense(batch))
    made[0]["x"].fill_(-1)
    assert np.array_equal(
        torch.cat([batch["x"] for batch in made[1:]] or [torch.empty(0, 20)]), dense(batch)[batch_size:]
    )


def test_a_subclass_that_changes_single_batches_only_is_called_for_each():
    class Marked(Dense):
        def __call__(self, batch, rng):
            return {**super().__call__(batch, rng), "mark": torch.ones(len(batch))}

    class Both(Marked):
        def many(self, cells, batch_size):
            return [{**made, "many": True} for made in super().many(cells, batch_size)]

    cells = Collection.open([MemorySource("a", named_values(6, 20), GENES)])
    assert all("mark" in made for made in Loader(cells, SequentialSampler(6), Marked(), batch_size=2))
    assert all("many" in made for made in Loader(cells, SequentialSampler(6), Both(), batch_size=2))


def test_dense_and_sparse_hold_the_same(batch):
    full, sparse = Dense()(batch, RNG)["x"], Sparse()(batch, RNG)["x"]
    assert sparse.layout is torch.sparse_csr
    assert torch.equal(full, sparse.to_dense())
    assert np.array_equal(full, dense(batch))


@pytest.mark.parametrize("how", ["most expressed", "random expressed"])
@pytest.mark.parametrize("fill", ["pad", "unexpressed"])
def test_selected_values_belong_to_their_genes(batch, how, fill):
    out = SelectedGenes(how=how, n_genes=12, fill=fill)(batch, RNG)
    assert out["genes"].dtype == torch.int32
    x, genes = out["x"].numpy(), out["genes"].numpy()
    full = dense(batch)
    for row in range(6):
        real = genes[row] >= 0
        assert np.array_equal(x[row, real], full[row, genes[row, real]])
        assert not x[row, ~real].any()
        if fill == "unexpressed":
            assert batch.measured[batch.source[row], genes[row, real]].all()
            assert real.sum() == min(12, batch.measured[batch.source[row]].sum())


def test_given_genes_come_in_their_order(batch):
    collection = Collection.open([MemorySource("a", named_values(6, 20), GENES)])
    context = BatchContext(vocabulary=collection.vocabulary)
    chosen = SelectedGenes(how="given", genes=[GENES[7], GENES[3], GENES[19]]).bind(context)
    out = chosen(batch, RNG)
    assert np.array_equal(out["x"], dense(batch)[:, [7, 3, 19]])
    assert out["genes"][0].tolist() == [7, 3, 19]
    with pytest.raises(KeyError, match=r"1 of 2 given genes are not in the vocabulary.*'XIST'"):
        SelectedGenes(how="given", genes=[GENES[0], "XIST"]).bind(context)
    with pytest.raises(ValueError, match="given twice"):
        SelectedGenes(how="given", genes=[GENES[0], GENES[0]]).bind(context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "most expressed"}, "needs n_genes"),
        ({"how": "random expressed", "n_genes": 0}, "needs n_genes"),
        ({"how": "all", "n_genes": 5}, "omit n_genes"),
        ({"how": "given"}, "belong together"),
        ({"how": "all", "genes": ["A"]}, "belong together"),
    ],
)
def test_selections_that_contradict_themselves_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SelectedGenes(**options)


def test_the_protocols_fit():
    assert isinstance(Log1p(), Transform)
    assert isinstance(Dense(), Collate)
