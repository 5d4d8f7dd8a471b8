"""Code of a user, for mypy: what the package returns has the types that a strict check needs. It is not run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pandas as pd
from lightning.pytorch import Trainer
from numpy.typing import NDArray

import scdataloader as scd
from scdataloader.models.classifier import LabelClassifier
from scdataloader.protocols import SamplingPlan


def train(path: str) -> None:
    """Train a classifier, and read batches of each loader."""
    sampling = scd.Sampling(by=["cell_type"], scheme="saturating", saturation=50, num_samples=10_000)
    dm = scd.DataModule(
        data=path,
        labels="cell_type",
        sampling=sampling,
        split=scd.Split(val=0.1, by="donor_id"),
        collate=scd.SelectedGenes(how="random expressed", n_genes=64),
        transforms=[scd.Normalize(), scd.Log1p()],
    )
    Trainer(max_epochs=1).fit(LabelClassifier(len(dm.genes), dm.classes), datamodule=dm)
    assert_type(dm.classes, dict[str, int])
    assert_type(dm.plan, SamplingPlan)
    for batch in dm.train_dataloader():
        assert_type(batch, Mapping[str, Any])
    for batch in dm.val_dataloader():
        assert_type(batch, Mapping[str, Any])
    assert_type(len(dm.test_dataloader()), int)
    scd.report(dm).save("report.html")


def tokens(path: str) -> scd.DataModule:
    """Data of a model of tokens."""
    return scd.DataModule(data=[path], collate=scd.tokens.Geneformer(), where={"is_primary_data": True})


def read(path: Path) -> NDArray[np.float32]:
    """Counts of cells, and their table."""
    collection = scd.Collection.open(path, genes=scd.GeneAlignment(organisms="human"))
    assert_type(collection.obs(["cell_type"]), pd.DataFrame)
    rows: scd.CSRRows = collection.read(np.arange(10))
    store: scd.Store = scd.convert(path, "out.cells")
    assert_type(len(collection) + store.n_obs, int)
    return rows.data
