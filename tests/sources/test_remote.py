"""AnnData in object storage: the same as on this machine, whatever the server does; else an error, never zeros."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from scipy.sparse import csr_matrix

from benchmarks.range_server import RangeServer
from scdataloader.collection.collection import Collection
from scdataloader.errors import SourceChangedError, SourceFormatError
from scdataloader.runtime import buckets
from scdataloader.runtime.buckets import Bucket
from scdataloader.sources import open_source
from scdataloader.types import CSRRows
from tests.s3 import s3_server
from tests.sources.parquet_files import write_tahoe
from tests.sources.source_files import coordinates, make, stored_as, write_h5ad, write_zarr
from tests.sources.test_formats import FORMATS

H5AD = {
    "chunked.h5ad": {"chunks": True},
    "contiguous.h5ad": {},
    "gzip.h5ad": {"compression": "gzip"},
    "dense.h5ad": {"chunks": True},
    "flat.h5ad": {},
}
ZARR = {"v2.zarr": "v2", "v3.zarr": "v3", "sharded.zarr": "v3 sharded"}
FORMS = (*H5AD, *ZARR)
ROWS = np.array([60, 0, 9, 9, 33, 3])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    monkeypatch.setenv("SCDATALOADER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(buckets, "RETRY_S", 5)
    return tmp_path / "cache"


def write(path: Path, form: str) -> Path:
    """Write cells in one of `FORMS`."""
    adata = make(stored_as(coordinates(), "dense" if form in ("dense.h5ad", "flat.h5ad") else "csr"))
    adata.obsm["X_pca"] = np.arange(2.0 * adata.n_obs).reshape(-1, 2)
    return write_zarr(path, adata, ZARR[form]) if form in ZARR else write_h5ad(path, adata, H5AD[form])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("remote")
    for form in FORMS:
        write(made / form, form)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder) as made:
        yield made


def same(read: CSRRows, expected: CSRRows) -> None:
    for part in ("indptr", "indices", "data"):
        assert_array_equal(getattr(read, part), getattr(expected, part))


@pytest.mark.parametrize("form", FORMS)
def test_a_url_is_read_as_a_file(server: RangeServer, folder: Path, form: str) -> None:
    server.set()
    local, remote = open_source(folder / form), open_source(f"{server.url}/{form}")
    same(remote.read(ROWS), local.read(ROWS))
    same(pickle.loads(pickle.dumps(remote)).read(ROWS), local.read(ROWS))
    pd.testing.assert_frame_equal(remote.obs(["kind"]), local.obs(["kind"]))
    assert_array_equal(remote.read_matrix("obsm/X_pca", ROWS), local.read_matrix("obsm/X_pca", ROWS))
    assert remote.fingerprint == local.fingerprint
    assert str(remote.path) == f"{server.url}/{form}"


@pytest.mark.parametrize("form", ["chunked.h5ad", "sharded.zarr", "v2.zarr"])
def test_failing_answers_are_asked_again(server: RangeServer, folder: Path, form: str) -> None:
    expected = open_source(folder / form).read(ROWS)
    for seed in range(2):
        os.environ["SCDATALOADER_CACHE"] += "x"
        server.set(
            seed=seed, code_500=0.1, code_503=0.1, reset=0.1, cut=0.1, short=0.1, only="X" if "z" in form else ""
        )
        same(open_source(f"{server.url}/{form}").read(ROWS), expected)


def test_a_file_that_is_written_anew_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "contiguous.h5ad", "contiguous.h5ad")
    with path.open("ab") as file:
        file.write(bytes(4 << 20))  # so that the values are not fetched with the metadata at both ends
    with h5py.File(path, "r+") as file:
        file["X/more"] = np.zeros(1 << 19)
    with RangeServer(tmp_path) as server:
        source = open_source(f"{server.url}/contiguous.h5ad")
        os.utime(path, (1, 1))
        server.set()
        os.environ["SCDATALOADER_CACHE"] += "x"
        with pytest.raises(SourceChangedError, match=r"contiguous.h5ad"):
            pickle.loads(pickle.dumps(source)).read(ROWS)


@pytest.mark.parametrize("form", ["v2.zarr", "sharded.zarr"])
def test_a_lost_chunk_is_not_zeros(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / form, form)
    chunk = next(file for file in sorted((path / "X" / "indices").rglob("*")) if file.name == "0")
    with RangeServer(tmp_path) as server:
        source = open_source(f"{server.url}/{form}")
        chunk.unlink()
        server.set()
        os.environ["SCDATALOADER_CACHE"] += "x"
        with pytest.raises(FileNotFoundError, match="X/indices"):
            pickle.loads(pickle.dumps(source)).read(np.arange(source.n_obs))
        with pytest.raises(SourceFormatError, match=r"chunk 0 of X/indices is missing"):
            open_source(f"{server.url}/{form}")


def test_what_is_not_an_anndata(tmp_path: Path) -> None:
    (tmp_path / "page.h5ad").write_text("<html>")
    (tmp_path / "v3.zarr").mkdir()
    write(tmp_path / "whole.zarr", "v3.zarr")
    metadata = json.loads((tmp_path / "whole.zarr" / "zarr.json").read_text())
    del metadata["consolidated_metadata"]
    (tmp_path / "v3.zarr" / "zarr.json").write_text(json.dumps(metadata))
    (tmp_path / "short.h5ad").write_bytes(write(tmp_path / "a.h5ad", "chunked.h5ad").read_bytes()[:3000])
    with RangeServer(tmp_path) as server:
        for name, kind, said in (
            ("page.h5ad", SourceFormatError, "page.h5ad is not an HDF5 file.*<html>"),
            ("short.h5ad", SourceFormatError, "short.h5ad .*truncated"),
            ("none.h5ad", FileNotFoundError, "none.h5ad"),
            ("none.zarr", FileNotFoundError, "none.zarr.*zarr.json"),
            ("v3.zarr", ValueError, "v3.zarr .*consolidated"),
            ("*.h5ad", ValueError, "listed"),
        ):
            with pytest.raises(kind, match=said):
                Collection.open(f"{server.url}/{name}")


@pytest.mark.parametrize("fault", ["", "short", "code_500", "cut"])
def test_tables_of_cells_by_url(tmp_path: Path, fault: str) -> None:
    adata = make(csr_matrix(coordinates("float32")))
    path = write_tahoe(tmp_path, adata, rows=7)
    address = path.relative_to(tmp_path).as_posix()
    near = open_source(path)
    with RangeServer(tmp_path) as server:
        server.set(**({fault: 0.2} if fault else {}), seed=2)
        far = open_source(f"{server.url}/{address}")
        same(far.read(ROWS), near.read(ROWS))
        same(pickle.loads(pickle.dumps(far)).read(ROWS), near.read(ROWS))
        assert (far.fingerprint, far.name) == (near.fingerprint, near.name)
        assert far.var.equals(near.var)
        assert far.obs(far.obs_columns).equals(near.obs(near.obs_columns))
        genes = f"{server.url}/metadata/gene_metadata.parquet"
        same(
            Collection.open(f"parquet:{server.url}/{address}?genes={genes}").read(ROWS),
            Collection.open(path).read(ROWS),
        )


def test_a_table_that_is_written_anew_is_noticed(tmp_path: Path) -> None:
    adata = make(csr_matrix(coordinates("float32")))
    path = write_tahoe(tmp_path / "a", adata, rows=1)
    later = write_tahoe(tmp_path / "b", adata[::-1].copy(), rows=1)
    n_cells = 40  # enough that not all row groups are in the sample
    with RangeServer(tmp_path) as server:
        source = open_source(f"{server.url}/a/data/{path.name}")
        state = source.file_state()
        later.replace(path)
        server.set()
        assert open_source(f"{server.url}/a/data/{path.name}").file_state() != state
        source.form.file._mirror.forget_file(path.name)
        with pytest.raises(SourceChangedError, match="parquet was written"):
            source.read(np.arange(n_cells))


def test_files_of_10x_and_mudata_by_url(tmp_path: Path) -> None:
    for name in ("10x v3", "10x v2", "10x v2, a genome", "MuData"):
        (tmp_path / name).mkdir()
        path = FORMATS[name](tmp_path / name)
        with RangeServer(tmp_path / name) as server:
            far = open_source(f"{server.url}/{path.relative_to(tmp_path / name).as_posix()}")
            same(far.read(ROWS), open_source(path).read(ROWS))
            assert far.var.index.equals(open_source(path).var.index)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cells.loom", "loom file"),
        ("matrix.mtx.gz", "Matrix Market file"),
        ("sample_matrix.mtx", "Matrix Market file"),
        ("a.zarr.zip", "zip file"),
        ("archive", "SCDL archive"),
    ],
)
def test_what_is_not_read_by_url_names_the_way_out(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "header.sch").write_bytes(b"SCDL")
    said = pytest.raises(SourceFormatError, match=f"{name} is an? {kind}.*download it.*scdataloader convert")
    with RangeServer(tmp_path) as server, said:
        Collection.open(f"{server.url}/{name}")


@pytest.mark.s3
def test_globs_of_a_bucket(folder: Path, tmp_path: Path) -> None:
    with s3_server():
        bucket = Bucket.open("s3://atlas/data")
        for file in FORMATS["mtx v3"](tmp_path).iterdir():
            bucket.upload(file, f"outs/{file.name}")
        with pytest.raises(SourceFormatError, match=r"data/outs is a folder of a Matrix Market file.*download it"):
            Collection.open("s3://atlas/data/outs")
        for form in ("chunked.h5ad", "gzip.h5ad", "sharded.zarr"):
            files = [file for file in (folder / form).rglob("*") if file.is_file()] or [folder / form]
            for file in files:
                bucket.upload(file, file.relative_to(folder).as_posix())
        found = Collection.open(["s3://atlas/data/*.h5ad", "s3://atlas/data/*.zarr"])
        assert [part.source.name for part in found.parts] == ["chunked.h5ad", "gzip.h5ad", "sharded.zarr"]
        local = Collection.open([folder / "chunked.h5ad", folder / "gzip.h5ad", folder / "sharded.zarr"])
        with pytest.raises(FileNotFoundError, match=r"chunkt.h5ad .*did you mean 'chunked.h5ad'"):
            open_source("s3://atlas/data/chunkt.h5ad")
        with pytest.raises(FileNotFoundError, match=r"sharded.zar .*did you mean 'sharded.zarr'"):
            open_source("s3://atlas/data/sharded.zar")
        rows = np.array([0, 80, 182, 121])
        same(found.read(rows), local.read(rows))
        for file in (folder / "sharded.zarr").rglob("*"):
            if file.is_file():
                bucket.upload(file, f"all.zarr/dataset_0/{file.relative_to(folder / 'sharded.zarr').as_posix()}")
        with pytest.raises(SourceFormatError, match=r"s3://atlas/data/all.zarr is an unfinished collection"):
            Collection.open("s3://atlas/data/all.zarr")
        marker = {"zarr_format": 3, "node_type": "group", "attributes": {"encoding-type": "annbatch-preshuffled"}}
        bucket.replace("all.zarr/zarr.json", json.dumps(marker).encode(), None)
        found = Collection.open("s3://atlas/data/all.zarr")
        same(found.read(rows % 61), Collection.open(folder / "sharded.zarr").read(rows % 61))
