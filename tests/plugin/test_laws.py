"""The plug-in's own tests: the laws of the protocols hold for its objects."""

import importlib

import numpy as np
import pandas as pd
import pytest

import scdataloader as scd
from scdataloader.testing import check_collate, check_sampler, check_source

AGE = np.arange(24.0)
DONOR = np.array([f"donor {number % 3}" for number in range(24)], object)


def toy(path):
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"toyplugin.{module}"), name)


@pytest.mark.parametrize("kind", ["ToySource", "RichSource"])
def test_sources(kind):
    check_source(lambda: toy(f"source:{kind}")("toy://300x50"))


def test_sampler():
    groups = [np.arange(5, 20), np.arange(30, 90)]
    rows = np.concatenate(groups)
    weights = np.zeros(100)
    for group in groups:
        weights[group] = 1 / len(group)
    check_sampler(lambda: toy("sampling:SetSampler")(groups, 4, 40, 7), rows=rows, weights=weights)


def test_collates():
    check_collate(toy("collates:RankTokens")(), batch_size=7)
    check_collate(toy("collates:WithObs")(), obs={"age": AGE, "donor": DONOR})


def test_bad_sources_break_a_law():
    for member in ("n_obs", "fingerprint", "var", "obs_columns", "obs", "obs as dict", "read", "read one less"):
        with pytest.raises(AssertionError, match=rf"bad://{member}: {member.split()[0]}"):
            check_source(toy("broken:Bad")(member))


def test_ontology():
    terms = toy("terms:open_terms")("TOY")
    assert isinstance(terms, scd.Ontology)
    assert terms.ancestors("TOY:3") == ["TOY:1", "TOY:2"]
    assert isinstance(toy("source:ToySource")("toy://9x9").obs(["cell_type"])["cell_type"].dtype, pd.CategoricalDtype)
