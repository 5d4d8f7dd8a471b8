"""What users write for an option, and what it means."""

from contextlib import closing

import numpy as np
import pandas as pd
import pytest
import torch

import scdataloader as scd
from scdataloader.genes.alignment import GeneAlignment
from scdataloader.testing import MemorySource, named_values
from scdataloader.training.config import DataConfig

GENES = [f"ENSG{i:011d}" for i in range(4)]


def source():
    obs = {"ct": pd.Categorical(list("abab") * 4), "donor": pd.Categorical(list("xxyyxxyy") * 2)}
    return MemorySource("cells", named_values(16, 4, seed=0), GENES, obs)


def module(**options):
    return scd.DataModule(source(), batch_size=4, **options)


def first_batch(dm):
    """The first batch of all cells in order."""
    with closing(dm.predict_dataloader()) as loader:
        return next(iter(loader))


@pytest.mark.parametrize(
    ("option", "written", "meant"),
    [
        ("labels", "ct", ["ct"]),
        ("labels", ("ct", "donor"), ["ct", "donor"]),
        ("labels", pd.Index(["ct"]), ["ct"]),
        ("hierarchies", "ct", ["ct"]),
        ("sampling", {"by": "ct", "scheme": "uniform"}, scd.Sampling(by="ct", scheme="uniform")),
        ("split", {"val": 0.25, "by": "donor"}, scd.Split(val=0.25, by="donor")),
        ("alignment", {"min_overlap": 0.5}, GeneAlignment(min_overlap=0.5)),
        ("roll_up", {"ct": {"depth": 2}}, {"ct": scd.RollUp(depth=2)}),
    ],
)
def test_what_is_written_is_turned_into_what_it_means(option, written, meant):
    assert getattr(DataConfig(source(), **{option: written}), option) == meant
    assert getattr(module(**{option: written}), option) == meant


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": {"vall": 0.1}}, r"split has no option 'vall' \(did you mean 'val'\?\).*val, test, by, seed"),
        ({"sampling": {"schema": "uniform"}}, r"sampling has no option 'schema' \(did you mean 'scheme'\?\)"),
        ({"alignment": {"colum": "x"}}, r"alignment has no option 'colum' \(did you mean 'column'\?\)"),
        ({"roll_up": {"ct": {"dept": 1}}}, r"roll_up has no option 'dept' \(did you mean 'depth'\?\)"),
        ({"labels": {"ct", "donor"}}, "labels must be a name or a list of names; got set"),
        ({"labels": [1]}, "labels must be names; got int 1"),
        ({"transforms": "log1p"}, r"as scdataloader.Log1p\(\) is; got str 'log1p'"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(options, message):
    with pytest.raises(TypeError, match=message):
        module(**options).train_dataloader()


@pytest.mark.parametrize("written", ["dense", scd.Dense, scd.Dense()])
def test_a_collate_function_is_a_name_a_class_or_an_object(written):
    batch = first_batch(module(collate=written))
    assert batch["x"].layout is torch.strided
    assert batch["x"].shape == (4, 4)


def test_an_unknown_collate_function_is_refused_with_the_nearest_name():
    with pytest.raises(LookupError, match="did you mean 'dense'"):
        module(collate="Dense").train_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"collate": "dens"}, "did you mean 'dense'"),
        ({"collate": 3}, "collate must be called with a batch and a generator; got int"),
        ({"transforms": ["log1p"]}, "got str 'log1p'"),
        ({"sampling": "no such plan"}, "no such plan"),
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"num_threads": -1}, "num_threads must be 1 or more, not -1"),
        ({"window": 0}, "window must be 1 or more, not 0"),
        ({"window": 1.5}, "window must be an integer, not 1.5"),
        ({"batch_size": "64"}, "batch_size must be an integer, not '64'"),
        ({"batch_size": True}, "batch_size must be an integer, not True"),
        ({"rank": 2, "world_size": 2}, "got 2 of 2"),
        ({"rank": 1}, "both or neither"),
    ],
)
def test_options_are_refused_before_data_is_opened(options, message):
    with pytest.raises((LookupError, TypeError, ValueError), match=message):
        scd.DataModule("no/such/file.h5ad", **options).setup("fit")


@pytest.mark.parametrize("written", [scd.Log1p(), scd.Log1p, [scd.Log1p], (scd.Log1p(),)])
def test_transforms_are_one_or_several_classes_or_objects(written):
    raw, logarithms = (first_batch(module(collate="dense", transforms=steps))["x"] for steps in (None, written))
    torch.testing.assert_close(logarithms, raw.log1p())


class Listing:
    """A collate function that returns batches of another type, one by one or many at once."""

    def __call__(self, batch, rng):
        return [torch.zeros(1)]


class ListingMany(Listing):
    def many(self, cells, batch_size):
        return [[torch.zeros(1)]] * -(-len(cells) // batch_size)


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (lambda batch, rng: [torch.zeros(1)], "collate <lambda> must return a mapping of tensors; got list"),
        (Listing(), "collate Listing must return a mapping of tensors; got list"),
        (ListingMany, "collate ListingMany must return a mapping of tensors; got list"),
        (scd.Log1p(), "collate Log1p must return a mapping of tensors; got CellBatch; use it in transforms"),
    ],
)
def test_a_collate_function_without_a_mapping_is_refused(collate, message):
    with pytest.raises(TypeError, match=message):
        first_batch(module(collate=collate))


def test_labels_of_one_name_are_one_column():
    dm = module(labels="ct")
    assert dm.classes == {"ct": 2}
    assert np.array_equal(dm.label_codes[:, 0], [0, 1, 0, 1] * 4)
