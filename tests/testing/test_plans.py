"""check_plan accepts every kind of `Sampling`, and finds what a broken plan does."""

import numpy as np
import pytest

import scdataloader as scd
from scdataloader.sampling.samplers import ShuffleSampler
from scdataloader.testing import MemorySource, check_plan, named_values


@pytest.fixture(scope="module")
def cells():
    genes = [f"ENSG{number:011d}" for number in range(20)]
    types = np.repeat(["a", "b", "c", "unknown"], [100, 30, 10, 20])
    source = MemorySource("mem://a", named_values(160, 20), genes, {"type": types, "age": np.arange(160) + 1.0})
    return scd.DataModule([source], split=scd.Split(val=0.2)).training_cells


PLANS = {
    "every cell once": {},
    "uniform": {"by": ["type"], "scheme": "uniform", "num_samples": 500},
    "in blocks": {"by": ["type"], "scheme": "uniform", "num_samples": 512, "block_size": 4},
    "by quota": {"by": ["type"], "scheme": "saturating", "saturation": 20, "num_samples": 500, "replacement": False},
    "by factors": {"cell_factors": ["age"], "num_samples": 500},
    "in a curriculum": {"by": ["type"], "scheme": "uniform", "num_samples": 500, "curriculum_epochs": 4},
}


@pytest.mark.parametrize("kind", PLANS)
def test_sampling(cells, kind):
    check_plan(scd.Sampling(**PLANS[kind]), cells)


class Base:
    def sampler(self, cells, *, seed, global_batch_size):
        return scd.Sampling(**PLANS["uniform"]).sampler(cells, seed=seed, global_batch_size=global_batch_size)

    def describe(self, cells):
        return scd.Sampling(**PLANS["uniform"]).describe(cells)


class AllRows(Base):
    """Draws outside of the training split."""

    def sampler(self, cells, *, seed, global_batch_size):
        return ShuffleSampler(160, seed=seed)


class ByChance(Base):
    def sampler(self, cells, *, seed, global_batch_size):
        return super().sampler(
            cells, seed=int(np.random.default_rng().integers(2**40)), global_batch_size=global_batch_size
        )


class OtherShares(Base):
    def describe(self, cells):
        return scd.Sampling(by=["type"], scheme="natural").describe(cells)


class NoSampler:
    pass


class Fails(Base):
    def sampler(self, cells, *, seed, global_batch_size):
        return cells.no_such_member


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (AllRows, "given rows alone; got row"),
        (ByChance, "made again"),
        (OtherShares, "target_shares.*of the draws for class"),
        (NoSampler, "sampler: .*SamplingPlan"),
        (Fails, r"sampler\(\) raised AttributeError"),
    ],
)
def test_a_broken_law_is_named(cells, broken, message):
    check_plan(Base(), cells)
    with pytest.raises(AssertionError, match=message):
        check_plan(broken(), cells)
