"""Queries of real TileDB-SOMA experiments as data."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiledbsoma
import tiledbsoma.io
from scipy.sparse import csr_matrix
from scvi.model import SCVI

import scdataloader as scd
from scdataloader.integrations.scvi import ScviDataModule
from tests.consumers.scvi.cells import cells

SHARED = Path(__file__).parents[4] / "shared" / "formats" / "soma"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Cells with counts in the layer "raw" and their logarithms in "log"."""
    uri = str(tmp_path_factory.mktemp("soma") / "experiment")
    given = cells(200, 1)
    tiledbsoma.io.from_anndata(uri, given, measurement_name="RNA", X_layer_name="raw")
    given.X = given.X.log1p()
    with tiledbsoma.Experiment.open(uri, "w") as opened:
        tiledbsoma.io.add_X_layer(opened, "RNA", "log", given.X)
    with tiledbsoma.Experiment.open(uri) as opened:
        yield opened


def query(experiment, obs=None, var=None):
    filters = (None if each is None else tiledbsoma.AxisQuery(value_filter=each) for each in (obs, var))
    return experiment.axis_query("RNA", **dict(zip(("obs_query", "var_query"), filters, strict=True)))


def test_the_cells_of_a_query_are_read(experiment):
    given = cells(200, 1)
    keep = ((given.obs["donor"] == "d2") & (given.obs["age"] > 0.3)).to_numpy()
    selected = query(experiment, "donor == 'd2' and age > 0.3")
    collection = scd.Collection.open(selected)
    assert collection.vocabulary.ids == list(given.var_names)
    x = collection.read(np.arange(len(collection))).to_scipy().toarray()
    np.testing.assert_array_equal(x, given.X.toarray()[keep])
    for column in ("batch", "age"):
        assert collection.obs([column])[column].tolist() == given.obs[column][keep].tolist()


def test_scvi_trains_on_a_query(experiment):
    selected = query(experiment, "donor == 'd2'")
    columns = ["batch", "assay"]
    dm = ScviDataModule.from_soma_query(selected, layer_name="raw", batch_column_names=columns, batch_size=32)
    model = SCVI(adata=None, registry=dm.registry, n_latent=4, n_hidden=16)
    model.train(max_epochs=1, datamodule=dm, accelerator="cpu", enable_progress_bar=False)
    latent = model.get_latent_representation(dataloader=dm.inference_dataloader())
    assert latent.shape == (selected.n_obs, 4)
    assert dm.n_batch == 4


def test_what_is_not_a_query_of_counts_is_refused(experiment):
    with pytest.raises(KeyError, match=r"no layer 'spliced' of X.*layers/log, layers/raw"):
        scd.DataModule(query(experiment), counts="layers/spliced").setup("fit")
    with pytest.raises(scd.errors.NotCountsError, match="whole numbers from 0"):
        scd.DataModule(query(experiment), counts="layers/log").setup("fit")
    with pytest.raises(ValueError, match="query has no cells"):
        scd.Collection.open(query(experiment, "donor == 'nobody'"))
    with pytest.raises(TypeError, match=r"axis_query.*got Experiment"):
        scd.Collection.open(experiment)


@pytest.mark.skipif(not SHARED.exists(), reason="no experiment of tiledbsoma")
def test_the_query_of_the_original_gives_its_cells():
    truth, obs = np.load(SHARED / "truth.query.npz"), pd.read_parquet(SHARED / "truth.obs.parquet")
    with tiledbsoma.Experiment.open(str(SHARED / "exp")) as opened:
        selected = query(
            opened,
            "is_primary_data == True and group in ['stem', 'immune'] and n_counts >= 500",
            "biotype == 'lncRNA'",
        )
        (part,) = scd.Collection.open(selected).parts
    source = part.source
    place = (np.searchsorted(truth[f"{axis}_joinids"], truth[name]) for axis, name in (("obs", "row"), ("var", "col")))
    expected = csr_matrix((truth["data"], tuple(place)), shape=(len(truth["obs_joinids"]), len(truth["var_joinids"])))
    read = source.read(np.arange(source.n_obs)).to_scipy().toarray()
    np.testing.assert_array_equal(read, expected.toarray())
    assert source.obs(["donor_id"])["donor_id"].tolist() == obs["donor_id"].iloc[truth["obs_joinids"]].tolist()
