"""check_collate and check_transform find every broken law of a collate function and of a transform."""

import random
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import scdataloader as scd
from scdataloader import Log1p, Normalize, QuantileBins
from scdataloader.testing import check_collate, check_transform, named_batch


class Good:
    """Sparse x, an obs column and two matrices, with noise and genes by id."""

    obs = ("age",)
    matrices = ("layers/spliced", "obsm/X_pca")
    densify = ("x",)

    def __init__(self, ids=None):
        self.ids = ids

    def bind(self, context):
        return type(self)(list(context.vocabulary.ids))

    def __call__(self, batch, rng):
        return {
            "x": scd.Sparse()(batch, rng)["x"],
            "names": [self.ids[gene] for gene in batch.x.indices],
            "age": torch.tensor(batch.obs["age"]),
            "pca": torch.from_numpy(batch.matrices["obsm/X_pca"].copy()),
            "spliced": torch.from_numpy(batch.matrices["layers/spliced"].data.copy()),
            "noise": torch.from_numpy(rng.random(len(batch))),
        }


class Cellwise:
    """Each cell by itself, so many at once."""

    def __call__(self, batch, rng):
        return self.many(batch, max(1, len(batch)))[0]

    def many(self, cells, batch_size):
        parts = (cells.slice(at, min(at + batch_size, len(cells))) for at in range(0, len(cells), batch_size))
        return [{"input_ids": torch.from_numpy(part.row + part.key % 7)} for part in parts]


def test_good_collates_pass():
    check_collate(Good(), obs={"age": np.arange(24.0)})
    check_collate(Cellwise())
    check_collate(lambda batch, rng: {"depth": torch.tensor(batch.depth)})


def test_values_of_wanted_columns_are_needed():
    with pytest.raises(ValueError, match=r"no values of 'age' .*obs="):
        check_collate(Good())


class ReturnsTensor(Cellwise):
    def __call__(self, batch, rng):
        return torch.zeros(len(batch))


class NumbersAsKeys(Cellwise):
    def __call__(self, batch, rng):
        return {0: torch.zeros(len(batch))}


class ChangesBatch:
    def __call__(self, batch, rng):
        np.log1p(batch.x.data, out=batch.x.data)
        return {"x": torch.tensor(batch.x.data)}


class OneBuffer:
    def __init__(self):
        self.rows = torch.zeros(8, dtype=torch.int64)

    def __call__(self, batch, rng):
        self.rows[: len(batch)] = torch.from_numpy(batch.row)
        return {"row": self.rows[: len(batch)]}


class Counts:
    n = 0

    def __call__(self, batch, rng):
        self.n += 1
        return {"n": self.n}


class OwnGenerator:
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, batch, rng):
        return {"noise": self.rng.random(3)}


class GlobalNumpy:
    def __call__(self, batch, rng):
        return {"noise": np.random.random(3)}


class GlobalTorch:
    def __call__(self, batch, rng):
        torch.rand(1)
        return {"row": torch.tensor(batch.row)}


class GlobalPython:
    def __call__(self, batch, rng):
        random.random()
        return {"row": torch.tensor(batch.row)}


class Shared:
    def __call__(self, batch, rng):
        self.batch = batch
        threading.Event().wait(0.001)
        return {"row": torch.tensor(self.batch.row)}


class TextForColumns(Good):
    obs = "age"


class TextForKeys(Good):
    matrices = "obsm/X_pca"


class OtherKeys(Good):
    densify = ("counts",)


class DenseKeys(Good):
    densify = ("age",)


class ManyOthers(Cellwise):
    def many(self, cells, batch_size):
        return [{"input_ids": batch["input_ids"] + batch_size} for batch in super().many(cells, batch_size)]


class ManyTooFew(Cellwise):
    def many(self, cells, batch_size):
        return super().many(cells, batch_size)[:1]


class BindsByChance(Good):
    def bind(self, context):
        ids = list(context.vocabulary.ids)
        random.Random().shuffle(ids)
        return type(self)(ids)


class BindsToNothing(Good):
    def bind(self, context):
        self.ids = context.vocabulary.ids


BROKEN = {
    ReturnsTensor: "mapping; got Tensor",
    NumbersAsKeys: "strings as keys",
    ChangesBatch: "the batch unchanged",
    OneBuffer: "later calls leave unchanged",
    Counts: "same result",
    OwnGenerator: "same result",
    GlobalNumpy: "same result",
    GlobalTorch: "generators unchanged",
    GlobalPython: "generators unchanged",
    Shared: "in threads",
    TextForColumns: "obs: expected a sequence",
    TextForKeys: "matrices: expected a sequence",
    OtherKeys: "densify: .*counts",
    DenseKeys: "sparse CSR tensor in 'age'",
    ManyOthers: "many.*one by one",
    ManyTooFew: "3 batches; got 1",
    BindsByChance: "bind",
    BindsToNothing: "bind.*collate function; got None",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_law_is_named(broken):
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        check_collate(broken(), obs={"age": np.arange(24.0)})


def halve(batch, rng):
    return replace(batch, x=replace(batch.x, data=batch.x.data * np.float32(0.5)))


@pytest.mark.parametrize("transform", [halve, Log1p(), Normalize(), Normalize(of="vocabulary"), QuantileBins()])
def test_a_good_transform_passes(transform):
    check_transform(transform)


def test_a_transform_is_given_small_batches():
    check_transform(halve, cells=named_batch(10, 20, with_pad=True), batch_size=4)


def shuffles_cells(batch, rng):
    return replace(batch, row=batch.row[::-1].copy())


def in_double(batch, rng):
    return replace(batch, x=replace(batch.x, data=batch.x.data.astype(np.float64)))


def drops_cells(batch, rng):
    return batch.slice(1, len(batch))


def drops_cells_of_x(batch, rng):
    return replace(batch, x=batch.x.slice(1, len(batch)))


def reverses_genes(batch, rng):
    return replace(batch, x=replace(batch.x, indices=batch.x.n_genes - 1 - batch.x.indices))


def in_place(batch, rng):
    batch.x.data[:] = 0
    return batch


def as_mapping(batch, rng):
    return {"x": batch.x}


class Centred:
    """Subtracts the mean of the batch, and yet states that it treats cells independently."""

    per_cell = True

    def __call__(self, batch, rng):
        return replace(batch, x=replace(batch.x, data=batch.x.data - batch.x.data.mean()))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (shuffles_cells, "row"),
        (in_double, "float32"),
        (drops_cells, "row"),
        (drops_cells_of_x, "8 cells; got 7"),
        (reverses_genes, "ascending gene numbers"),
        (in_place, "the batch unchanged"),
        (as_mapping, "CellBatch; got dict"),
        (Centred(), "per_cell"),
    ],
)
def test_a_broken_law_of_a_transform_is_named(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_transform(broken)
