"""Batches with the keys of cellarium-ml; tests/consumers/cellarium trains its models on them."""

import numpy as np
import pytest
import torch

import scdataloader as scd
from scdataloader.integrations.cellarium import Cellarium, CellariumAnnDataDataModule
from scdataloader.testing import MemorySource, named_values

GENES = [f"ENSG{i:011d}" for i in range(20)]
TYPES = ["T cell", "B cell", "unknown"]
VALUES = named_values(60, 20)


def module(collate, **options):
    obs = {"type": [TYPES[i % 3] for i in range(60)], "donor": [f"d{i % 2}" for i in range(60)], "age": np.arange(60.0)}
    options = {"labels": ["donor", "type"], "unknown_classes": ["type"], "batch_size": 16} | options
    return scd.DataModule([MemorySource("cells", VALUES, GENES, obs=obs)], collate=collate, **options)


def test_keys_are_the_arguments_of_models():
    codes = {"y_n": "type", "batch_index_n": "donor", "categorical_covariate_index_nd": ["type", "donor"]}
    obs = {"cl_names_n": "type", "age_n": "age"}
    dm = module(Cellarium(codes=codes, obs=obs))
    first, second, *_ = dm.train_dataloader()
    assert set(first) == {
        *("x_ng", "var_names_g", "total_mrna_umis_n", "y_n", "y_categories", "batch_index_n"),
        *("batch_index_categories", "categorical_covariate_index_nd", "cl_names_n", "age_n", "row"),
    }
    rows = first["row"].numpy()
    assert first["x_ng"].layout is torch.sparse_csr
    np.testing.assert_array_equal(first["x_ng"].to_dense(), VALUES[rows])
    np.testing.assert_allclose(first["total_mrna_umis_n"], VALUES[rows].sum(axis=1))
    assert first["var_names_g"] is second["var_names_g"]
    assert first["var_names_g"].tolist() == GENES
    assert first["y_categories"].tolist() == ["B cell", "T cell", "unknown"]
    assert first["y_categories"][first["y_n"]].tolist() == [TYPES[row % 3] for row in rows]
    assert first["batch_index_n"].tolist() == [row % 2 for row in rows]
    assert first["y_n"].dtype is torch.int64
    assert first["categorical_covariate_index_nd"].tolist() == [
        [y, b] for y, b in zip(first["y_n"].tolist(), first["batch_index_n"].tolist(), strict=True)
    ]
    assert first["cl_names_n"].tolist() == [TYPES[row % 3] for row in rows]
    assert first["age_n"].tolist() == rows.tolist()
    ready = dm.on_after_batch_transfer(first, 0)
    np.testing.assert_array_equal(ready["x_ng"], VALUES[rows])


def test_the_registered_name_gives_counts_alone():
    batch = next(iter(module("cellarium").train_dataloader()))
    assert set(batch) == {"x_ng", "var_names_g", "total_mrna_umis_n", "row"}


def test_a_cell_without_a_label_is_refused_with_what_to_do():
    collate = Cellarium(codes={"covariates_nd": ["donor", "type"]})
    dm = module(collate, unknown_classes=None)
    with pytest.raises(ValueError, match=r"'covariates_nd' has cells without a label in 'type', .*unknown_classes"):
        list(dm.train_dataloader())


def test_a_column_that_is_not_a_label_is_refused_with_the_nearest():
    dm = module(Cellarium(codes={"y_n": "typ"}))
    with pytest.raises(KeyError, match=r"codes of 'y_n' need the label column 'typ'; .* nearest are 'type'"):
        dm.train_dataloader()


def test_the_state_of_the_module_has_what_their_hook_increments():
    dm = CellariumAnnDataDataModule(module("cellarium").data, batch_size=16)
    assert dm.state_dict()["epoch"] == 0
    assert type(dm).__qualname__ == "CellariumAnnDataDataModule"
