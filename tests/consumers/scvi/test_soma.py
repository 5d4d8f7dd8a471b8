"""Experiments and queries of real TileDB-SOMA as data."""

import logging
import os
import pickle
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tiledbsoma
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scvi.model import SCVI

import scdataloader as scd
from scdataloader.commands.main import main
from scdataloader.errors import ForkError, NotCountsError, SourceFormatError
from scdataloader.integrations.scvi import ScviDataModule
from scdataloader.sources import open_census, open_soma
from scdataloader.sources.soma import slabs
from scdataloader.testing import check_source
from tests.consumers.scvi import soma_files
from tests.consumers.scvi.cells import cells

SHARED = Path(__file__).parents[4] / "shared" / "formats" / "soma"


@pytest.fixture(scope="module")
def adata():
    return soma_files.cells()


@pytest.fixture(scope="module")
def uri(tmp_path_factory, adata):
    """The cells with counts in the layer "raw" and their logarithms in "log", in tiles of 16."""
    return soma_files.write(tmp_path_factory.mktemp("soma") / "exp", adata, log=adata.X.log1p())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An experiment that a model can be trained on."""
    return soma_files.write(tmp_path_factory.mktemp("soma") / "trained", cells(200, 1))


def query(experiment, obs=None, var=None):
    filters = (None if each is None else tiledbsoma.AxisQuery(value_filter=each) for each in (obs, var))
    return experiment.axis_query("RNA", **dict(zip(("obs_query", "var_query"), filters, strict=True)))


def dense(source, rows=None):
    return source.read(np.arange(source.n_obs) if rows is None else np.asarray(rows)).to_scipy().toarray()


# --------------------------------------------------------------------------------------------------------- what is read


def test_an_experiment_obeys_the_laws_of_sources(uri, adata):
    expected = ad.AnnData(adata.X, adata.obs, adata.var)
    check_source(lambda: open_soma(uri), expected=expected)


def test_a_query_is_the_selected_part(uri, adata):
    keep = (adata.obs["is_primary_data"] & (adata.obs["score"] > 0.3)).to_numpy()
    genes = (adata.var["length"] > 40).to_numpy()
    filters = "is_primary_data == True and score > 0.3", "length > 40"
    with tiledbsoma.Experiment.open(uri) as experiment:
        of_query = open_soma(query(experiment, *filters))
    of_filters = open_soma(uri, obs_query=filters[0], var_query=filters[1])
    assert of_query.file.config == {}
    for source in (of_query, of_filters):  # the experiment that the query is of is closed
        check_source(source, expected=ad.AnnData(*(part[keep] for part in (adata.X, adata.obs)), adata.var)[:, genes])
    assert of_query.fingerprint == of_filters.fingerprint != open_soma(uri).fingerprint


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, 49), max_size=30), room=st.sampled_from([0, 2500, 1 << 20]))
def test_rows_are_those_written_whatever_is_kept(uri, adata, rows, room, monkeypatch):
    monkeypatch.setattr(slabs, "CACHE_BYTES", room)
    source = open_soma(uri)
    source._cache._all = [source._cache]  # no others share the room
    for _ in range(2):
        np.testing.assert_array_equal(dense(source, rows), adata.X.toarray()[rows])
        assert source._cache.n_bytes <= room


def test_a_slab_is_decoded_once_for_all_of_its_cells(uri, monkeypatch):
    read = []
    source = open_soma(uri)
    coordinates = source._coordinates
    monkeypatch.setattr(source, "_coordinates", lambda *given: read.append(given[1:]) or coordinates(*given))
    source.close()
    source.read(np.arange(49, -1, -1))
    source.read(np.array([3, 40]))
    assert read == [(0, 15), (16, 31), (32, 47), (48, 49)]


def test_a_scan_in_stored_order_decodes_each_slab_once(uri, monkeypatch):
    read = []
    source = open_soma(uri)
    coordinates = source._coordinates
    monkeypatch.setattr(source, "_coordinates", lambda *given: read.append(given[1:]) or coordinates(*given))
    source.close()
    for start in range(0, 50, 5):
        source.read(np.arange(start, start + 5))
        source.release()
    assert read == [(0, 15), (16, 31), (32, 47), (48, 49)]


def test_further_layers_and_obsm_are_read(uri, adata):
    source = open_soma(uri)
    assert source.matrix_keys == ["layers/log", "layers/raw", "obsm/X_pca"]
    rows = np.array([40, 2, 2])
    log = source.read_matrix("layers/log", rows).to_scipy().toarray()
    np.testing.assert_allclose(log, adata.X.log1p().toarray()[rows])
    np.testing.assert_array_equal(source.read_matrix("obsm/X_pca", rows), adata.obsm["X_pca"][rows])


def test_joinids_with_gaps_name_rows_and_genes(tmp_path):
    obs_ids, var_ids = [2, 3, 40, 41, 90], [1, 5, 30]
    x = np.array([[1, 0, 2], [0, 0, 0], [70_000, 3, 0], [0, 0, 65_535], [4, 5, 6]])
    source = open_soma(soma_files.write_by_hand(tmp_path / "gaps", obs_ids, var_ids, x))
    np.testing.assert_array_equal(dense(source), x)
    assert list(source.obs_names()) == list(map(str, obs_ids))
    assert source.obs(["donor"])["donor"].tolist() == [f"d{i}" for i in obs_ids]
    assert list(source.var.index) == [f"ENSG{i:011d}" for i in var_ids]
    np.testing.assert_array_equal(source.obs(["soma_joinid"])["soma_joinid"], obs_ids)
    stored = source.read_stored(np.array([3, 1, 4]))
    assert (stored.data.dtype, stored.data.max()) == (np.float32, 65_535)  # 70,000 is in another slab


def test_values_beyond_32_bits_are_read_and_not_converted(tmp_path):
    x = np.array([[1, 2], [0, 2**33]])
    uri = soma_files.write_by_hand(tmp_path / "large", [0, 1], [0, 1], x, "int64")
    assert open_soma(uri).read_stored(np.array([1])).data.tolist() == [2**33]
    with pytest.raises(scd.errors.UnsupportedDataError, match=r"8589934592.*cell 1.*ENSG00000000001"):
        scd.convert(f"soma:{uri}", tmp_path / "x.cells", n_processes=1)


def test_counts_are_found_by_their_values(uri, tmp_path, adata):
    assert open_soma(uri).counts == "layers/raw"
    other = soma_files.write(tmp_path / "exp", adata, layer="normal", umis=adata.X)
    assert open_soma(other).counts == "layers/normal"
    assert open_soma(uri, counts="layers/log", values="any").counts == "layers/log"
    with pytest.raises(NotCountsError, match=r"layers/log: .* at cell \d+, gene \d+ \(ENSG\d+\).*layers/raw"):
        open_soma(uri, counts="layers/log")


# ------------------------------------------------------------------------------------------------- writes and processes


def test_later_writes_are_seen_when_the_experiment_is_opened_again(tmp_path, adata):
    uri = soma_files.write(tmp_path / "exp", adata)
    before = open_soma(uri)
    soma_files.append(uri, soma_files.cells(20, seed=1, offset=100))
    after, then = open_soma(uri), open_soma(uri, timestamp=before.file.timestamp)
    assert (before.n_obs, after.n_obs, then.n_obs) == (50, 70, 50)
    np.testing.assert_array_equal(dense(before), adata.X.toarray())
    np.testing.assert_array_equal(dense(pickle.loads(pickle.dumps(before))), adata.X.toarray())
    assert before.fingerprint == then.fingerprint != after.fingerprint
    expected = np.vstack([adata.X.toarray(), soma_files.cells(20, seed=1).X.toarray()])
    np.testing.assert_array_equal(dense(after), expected)


def test_an_experiment_that_is_gone_ends_in_one_line(tmp_path, adata):
    uri = soma_files.write(tmp_path / "exp", adata)
    source = open_soma(uri)
    source.close()
    next((tmp_path / "exp/ms/RNA/X/raw/__fragments").glob("*/d1.tdb")).unlink()
    with pytest.raises(SourceFormatError, match=r"exp cannot be read: ") as raised:
        source.read(np.arange(3))
    assert len(str(raised.value).splitlines()) == 1
    source.close()
    shutil.rmtree(uri)
    with pytest.raises(SourceFormatError, match=r"exp cannot be read: .*does not exist"):
        source.read(np.arange(3))


def test_a_forked_process_is_refused_at_once(uri):
    source = open_soma(uri)
    source.read(np.arange(50))  # all are in memory
    child = os.fork()
    if not child:
        try:
            source.read(np.arange(50))
        except ForkError:
            os._exit(17)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17


def test_copies_read_in_other_processes(uri, adata, tmp_path):
    store = scd.convert(open_soma(uri, obs_query="donor == 'd1'"), tmp_path / "x.cells", n_processes=2)
    keep = (adata.obs["donor"] == "d1").to_numpy()
    collection = scd.Collection.open(store.path, genes=scd.GeneAlignment(vocabulary=list(adata.var_names)))
    np.testing.assert_array_equal(
        collection.read(np.arange(len(collection))).to_scipy().toarray(), adata.X.toarray()[keep]
    )


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ("?layer=spliced", KeyError, r"no layer 'spliced' of X.*layers/log, layers/raw"),
        ("?layer=rawe", KeyError, r"'rawe' of X \(did you mean 'layers/raw'\?\)"),
        ("?measurement=RNAs", KeyError, r"no measurement 'RNAs'; the nearest are 'RNA'"),
        ("?obs_query=doner == 'd1'", KeyError, r"no column .*doner.*the nearest are .*donor"),
        ("?obs_query=donor == 'nobody'", ValueError, r"selects no cells"),
        ("?var_query=length > 1000", ValueError, r"selects no genes"),
        ("?obs_query=is_primary_data", ValueError, r"not a filter of obs.*is_primary_data == True"),
        ("?obs_query=donor == 5", ValueError, r"not a filter of obs"),
        ("?genes=lenght", KeyError, r"no column 'lenght'; the nearest are 'length'"),
        ("?mesurement=RNA", ValueError, r"no option 'mesurement' \(did you mean 'measurement'\?\)"),
        ("?RNA", ValueError, r"expected 'soma:<path or URI>\?measurement="),
        ("?timestamp=yesterday", ValueError, r"milliseconds or a date.*'yesterday'"),
        ("/obs", SourceFormatError, r"is a SOMADataFrame, expected a SOMAExperiment"),
        ("/ms", SourceFormatError, r"is a SOMACollection.*such as .*/ms/RNA"),
        ("s", FileNotFoundError, r"does not exist; the nearest names .* exp"),
    ],
)
def test_a_wrong_address_is_one_line_that_says_what_to_do(uri, options, error, message):
    with pytest.raises(error, match=message) as raised:
        scd.Collection.open(f"soma:{uri}{options}")
    assert len(str(raised.value).splitlines()) == 1


def test_what_is_no_experiment_is_refused(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("TILEDB_VFS_S3_ENDPOINT_OVERRIDE", "127.0.0.1:1")  # where nothing answers
    monkeypatch.setenv("TILEDB_VFS_S3_CONNECT_MAX_TRIES", "1")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceFormatError, match="not an experiment of TileDB-SOMA; give the folder"):
        open_soma(tmp_path / "folder")
    with pytest.raises(SourceFormatError, match=r"s3://bucket/exp cannot be opened: S3") as raised:
        scd.Collection.open("soma:s3://bucket/exp")
    assert len(str(raised.value).splitlines()) == 1
    with tiledbsoma.Experiment.open(uri) as experiment:
        with pytest.raises(TypeError, match=r"axis_query.*got Measurement"):
            scd.Collection.open(experiment.ms["RNA"])
        with pytest.raises(TypeError, match="give it alone"):
            open_soma(query(experiment), obs_query="donor == 'd1'")
        with pytest.raises(ValueError, match="the query selects no cells"):
            scd.Collection.open(query(experiment, "donor == 'nobody'"))
        closed = query(experiment)
    with pytest.raises(SourceFormatError, match="open its experiment again"):
        open_soma(closed)


def test_one_of_several_measurements_has_to_be_named(tmp_path, adata):
    uri = soma_files.write(tmp_path / "two", adata)
    with tiledbsoma.Experiment.open(uri, "w") as experiment:
        experiment.ms.add_new_collection("protein", tiledbsoma.Measurement)
    with pytest.raises(ValueError, match=r"measurements RNA, protein; name one, as 'soma:.*\?measurement=RNA'"):
        scd.Collection.open(uri)
    assert len(scd.Collection.open(f"soma:{uri}?measurement=RNA")) == 50


# ------------------------------------------------------------------------------------------------------------- in use


def test_addresses_survive_yaml(uri, adata):
    filter_ = "donor in ['d1', 'd2'] and score>=0.5"
    for slashes in ("", "//"):
        address = f"soma:{slashes}{uri}?measurement=RNA&layer=raw&obs_query={filter_}"
        assert yaml.safe_load(f"data: {address}") == {"data": address}
        keep = adata.obs["donor"].isin(["d1", "d2"]) & (adata.obs["score"] >= 0.5)
        assert len(scd.Collection.open(address)) == keep.sum()
    kept = scd.Collection.open(uri, where={"donor": "d1"})  # a path is enough
    assert len(kept) == (adata.obs["donor"] == "d1").sum()


def batches(dm, steps=None, state=None):
    loader = dm.train_dataloader()
    if state is not None:
        loader.load_state_dict(state)
    out = []
    for batch in loader:
        out.append((batch["row"].tolist(), batch["x"].to_dense().tolist()))
        if len(out) == steps:
            break
    return out, loader.state_dict()


@pytest.mark.parametrize("block_size", [1, 4])
def test_a_run_resumes_in_the_middle_on_other_ranks(uri, block_size):
    def dm(batch_size, **ranks):
        sampling = scd.Sampling(by="donor", scheme="uniform", num_samples=96, block_size=block_size)
        made = scd.DataModule(f"soma:{uri}", sampling=sampling, batch_size=batch_size, seed=3, report=False, **ranks)
        made.setup("fit")
        return made

    whole, _ = batches(dm(16))
    _, state = batches(dm(16), 2)
    parts = [batches(dm(8, rank=rank, world_size=2), state=state)[0] for rank in (0, 1)]
    resumed = [(first[0] + second[0], first[1] + second[1]) for first, second in zip(*parts, strict=True)]
    assert resumed == whole[2:]


def test_single_cells_of_full_tiles_are_warned_of(tmp_path, caplog):
    n = 2100
    x = csr_matrix((np.ones(n), (np.arange(n), np.arange(n) % 5)), (n, 5), np.float32)
    var = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(5)])
    uri = str(tmp_path / "exp")
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n)])
    tiledbsoma.io.from_anndata(uri, ad.AnnData(x, obs, var), "RNA", X_layer_name="raw")

    def rows(block_size):
        sampling = scd.Sampling(num_samples=n, block_size=block_size)
        dm = scd.DataModule(f"soma:{uri}", sampling=sampling, batch_size=100, seed=0)
        dm.setup("fit")
        assert dm.collection.read_cost.is_steep
        for batch in dm.train_dataloader():
            np.testing.assert_array_equal(batch["x"].to_dense().argmax(1), batch["row"] % 5)

    with caplog.at_level(logging.WARNING, logger="scdataloader"):
        rows(64)
        assert not caplog.records
        rows(1)
    (record,) = caplog.records
    assert "cells/s" in record.getMessage()
    assert "scdataloader convert" in record.getMessage()


def test_commands_take_an_address(uri, adata, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = f"soma:{uri}?obs_query=donor == 'd0'"
    main(["inspect", address])
    n = int((adata.obs["donor"] == "d0").sum())
    assert f" {n} " in capsys.readouterr().out
    main(["convert", address, "--out", "x.cells", "--processes", "1", "--obsm", "X_pca"])
    main(["verify", "x.cells"])
    main(["export", "x.cells", "--out", "back"])
    (back,) = (ad.read_h5ad(path) for path in Path("back").rglob("*.h5ad"))
    expected = adata[adata.obs["donor"] == "d0"]
    np.testing.assert_array_equal(back.X.toarray(), expected.X.toarray())
    np.testing.assert_array_equal(back.obsm["X_pca"], expected.obsm["X_pca"])
    assert list(back.obs_names) == list(expected.obs_names)
    assert back.obs["cell_type"].astype(object).equals(expected.obs["cell_type"].astype(object))


def test_a_census_is_opened_by_organism(tmp_path, adata):
    with tiledbsoma.Collection.create(str(tmp_path / "census")) as census:
        census.add_new_collection("census_data")
    for name in ("homo_sapiens", "mus_musculus"):
        soma_files.write(tmp_path / "census" / "census_data" / name, adata)
        with tiledbsoma.open(str(tmp_path / "census" / "census_data"), "w") as organisms:
            organisms.set(name, tiledbsoma.open(f"{organisms.uri}/{name}"), use_relative_uri=True)
    source = open_census("Homo sapiens", "donor == 'd2'", census=tmp_path / "census")
    assert source.name == "homo_sapiens"
    np.testing.assert_array_equal(dense(source), adata.X.toarray()[2::3])
    with pytest.raises(KeyError, match=r"no organism 'homo sapien'; the nearest are 'homo_sapiens'"):
        open_census("homo sapien", census=tmp_path / "census")
    with pytest.raises(SourceFormatError, match=r"SOMACollection.*census_data"):
        open_soma(tmp_path / "census")


def test_scvi_trains_on_a_query(trained):
    with tiledbsoma.Experiment.open(trained) as experiment:
        selected = query(experiment, "donor == 'd2'")
        columns = ["batch", "assay"]
        dm = ScviDataModule.from_soma_query(selected, layer_name="raw", batch_column_names=columns, batch_size=32)
        model = SCVI(adata=None, registry=dm.registry, n_latent=4, n_hidden=16)
        model.train(max_epochs=1, datamodule=dm, accelerator="cpu", enable_progress_bar=False)
        latent = model.get_latent_representation(dataloader=dm.inference_dataloader())
        assert latent.shape == (selected.n_obs, 4)
    assert dm.n_batch == 4


@pytest.mark.skipif(not SHARED.exists(), reason="no experiment of tiledbsoma")
def test_the_query_of_the_original_gives_its_cells():
    truth, obs = np.load(SHARED / "truth.query.npz"), pd.read_parquet(SHARED / "truth.obs.parquet")
    filter_ = "is_primary_data == True and group in ['stem', 'immune'] and n_counts >= 500"
    source = open_soma(SHARED / "exp", obs_query=filter_, var_query="biotype == 'lncRNA'")
    place = (np.searchsorted(truth[f"{axis}_joinids"], truth[name]) for axis, name in (("obs", "row"), ("var", "col")))
    expected = csr_matrix((truth["data"], tuple(place)), shape=(len(truth["obs_joinids"]), len(truth["var_joinids"])))
    np.testing.assert_array_equal(dense(source), expected.toarray())
    for column in ("donor_id", "cell_type", "score"):
        wanted = obs[column].iloc[truth["obs_joinids"]].reset_index(drop=True).astype(object)
        assert source.obs([column])[column].astype(object).equals(wanted)
