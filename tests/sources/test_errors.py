"""Bad input: what the message says, word for word where the words matter."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from scdataloader.errors import SourceFormatError
from scdataloader.sources import open_source
from scdataloader.sources.locate import open_sources
from tests.sources.source_files import (
    H5_COMPRESSIONS,
    N_OBS,
    N_VARS,
    coordinates,
    make,
    rewrite,
    write_h5ad,
    write_zarr,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_h5ad(tmp_path / "blood.h5ad", make(sp.csr_matrix(coordinates())), {})


def test_no_such_path(path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"blod.h5ad does not exist; in .* the nearest names there are blood.h5ad"
    ):
        open_source(path.with_name("blod.h5ad"))
    with pytest.raises(FileNotFoundError, match=r"does not exist; in .* 1 other names are there"):
        open_source(path.with_name("zzz"))
    with pytest.raises(FileNotFoundError, match=r"nor does the folder .*nowhere"):
        open_source(path.parent / "nowhere" / "a.h5ad")


def test_remote_path() -> None:
    with pytest.raises(ValueError, match=r"s3://bucket/a.h5ad is not a path on this machine.*download"):
        open_source("s3://bucket/a.h5ad")
    with pytest.raises(ValueError, match=r"s3://bucket/a.h5ad is not a path on this machine.*lamindb:.*download"):
        open_sources("s3://bucket/a.h5ad")


def test_paths_may_be_strings_and_start_at_home(path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(path.parent))
    assert open_source("~/blood.h5ad").n_obs == N_OBS
    monkeypatch.chdir(path.parent)
    source = open_source("blood.h5ad")
    monkeypatch.chdir("/")
    assert len(source.read(np.array([0]))) == 1


def test_values_is_one_of_two(path: Path) -> None:
    with pytest.raises(ValueError, match="values must be 'counts' or 'any', not 'all'"):
        open_source(path, values="all")


def test_folder_that_is_not_zarr(path: Path) -> None:
    with pytest.raises(SourceFormatError, match=r"is a folder but not a zarr group .*found blood.h5ad"):
        open_source(path.parent)


def test_not_hdf5(tmp_path: Path) -> None:
    (tmp_path / "a.h5ad").write_text("gene,count\n")
    with pytest.raises(SourceFormatError, match=r"is not an HDF5 file \(it begins with b'gene,cou'\)"):
        open_source(tmp_path / "a.h5ad")
    (tmp_path / "a.h5ad").write_bytes(b"")
    with pytest.raises(SourceFormatError, match="is not an HDF5 file"):
        open_source(tmp_path / "a.h5ad")
    (tmp_path / "a.h5ad.gz").write_bytes(gzip.compress(b"gene,count\n"))
    with pytest.raises(SourceFormatError, match="is a gzip file, expected HDF5: unpack it with gunzip"):
        open_source(tmp_path / "a.h5ad.gz")


def test_not_anndata(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["matrix/data"] = [1]
    with pytest.raises(
        SourceFormatError, match=r"not an AnnData: expected obs, var .* found matrix \(obs and var missing\); .* 10x"
    ):
        open_source(tmp_path / "a.h5")


@pytest.mark.parametrize("compression", ["contiguous", "gzip"])
def test_truncated(tmp_path: Path, compression: str) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(coordinates())), H5_COMPRESSIONS[compression])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(SourceFormatError, match=r"a.h5ad is truncated \(\d+ bytes.*write the file again"):
        open_source(path)


@pytest.mark.parametrize("how", ["v2", "v3 gzip", "v3 sharded"])
def test_damaged_zarr_chunk(tmp_path: Path, how: str) -> None:
    path = write_zarr(tmp_path / "a.zarr", make(sp.csr_matrix(coordinates())), how)
    chunks = [file for file in (path / "X" / "indices").rglob("*") if file.is_file() and file.name[0].isdigit()]
    source = open_source(path)
    for file in chunks:
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(SourceFormatError, match="is damaged"):
        source.read(np.arange(N_OBS))


@pytest.mark.parametrize("compression", ["gzip", "gzip+shuffle", "gzip+fletcher32"])
def test_damaged_chunk(tmp_path: Path, compression: str) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(coordinates())), H5_COMPRESSIONS[compression])
    with open_source(path) as source:
        with h5py.File(path) as file:
            chunk = file["X/data"].id.get_chunk_info(3)
        content = bytearray(path.read_bytes())
        content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
        path.write_bytes(content)
        with pytest.raises(SourceFormatError, match=r"chunk 3 of a.h5ad: X/data is damaged \("):
            source.read(np.arange(N_OBS))


@pytest.mark.parametrize("compression", ["contiguous", "gzip"])
@pytest.mark.parametrize("wild", [-1, N_VARS, 2**31 - 1, 2**32 + 3])
def test_wild_gene_numbers(tmp_path: Path, compression: str, wild: int) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(coordinates())), H5_COMPRESSIONS[compression])
    with h5py.File(path, "r+") as file:
        indices = file["X/indices"][()].astype(np.int64)
        cell = int(np.searchsorted(file["X/indptr"][()], 50, side="right")) - 1
        indices[50] = wild
        rewrite(file["X/indices"], H5_COMPRESSIONS[compression], indices)
    with open_source(path) as source:
        with pytest.raises(SourceFormatError, match=f"is damaged: X has a gene number outside 0 to {N_VARS - 1} in"):
            source.read(np.array([2, cell]))
        source.read(np.array([cell - 1, cell + 1]))


@pytest.mark.parametrize("compression", ["contiguous", "gzip"])
@pytest.mark.parametrize(
    ("place", "value", "found"),
    [
        (0, 1, "they run from 1 to"),
        (-1, 10**6, "they run from 0 to 1000000"),
        (9, 0, "number 9 is smaller than the one before"),
    ],
)
def test_wild_offsets(tmp_path: Path, compression: str, place: int, value: int, found: str) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(coordinates())), H5_COMPRESSIONS[compression])
    with h5py.File(path, "r+") as file:
        file["X/indptr"][place] = value
    with (
        open_source(path) as source,
        pytest.raises(SourceFormatError, match=f"X/indptr is damaged: expected {N_OBS + 1} offsets.*{found}"),
    ):
        source.read(np.array([0]))


def test_wild_cell_numbers_in_csc(tmp_path: Path) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csc_matrix(coordinates())), {})
    with h5py.File(path, "r+") as file:
        file["X/indices"][7] = 10**6
    with open_source(path) as source, pytest.raises(SourceFormatError, match="expected cells 0 to 60"):
        source.read(np.array([0]))


def test_tables_that_contradict_the_matrix(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        rewrite(file["var/_index"], {}, file["var/_index"][:-1])
    with pytest.raises(SourceFormatError, match=f"var has {N_VARS - 1} rows, X is {N_OBS} cells by {N_VARS} genes"):
        open_source(path)


def test_missing_obs_column(path: Path, tmp_path: Path) -> None:
    write_zarr(tmp_path / "blood.zarr", make(sp.csr_matrix(coordinates())), "v3")
    for name in ("blood.h5ad", "blood.zarr"):
        source = open_source(tmp_path / name)
        with pytest.raises(KeyError, match=f"{name} has no obs column 'kin'; the nearest are 'kind'"):
            source.obs(["number", "kin"])
        with pytest.raises(KeyError, match=f"{name} has no obs column 'zzz'; there are 'kind', 'number', 'text'"):
            source.obs(["zzz"])


def test_obs_keeps_categories_and_order_and_reads_only_its_columns(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["obs/text"]  # named in column-order still: reading it would fail
    obs = open_source(path).obs(["number", "kind"])
    assert obs.columns.tolist() == ["number", "kind"]
    assert obs["kind"].dtype == "category"
    assert obs.index.tolist() == list(range(N_OBS))
    assert open_source(path).obs([]).shape == (N_OBS, 0)


@pytest.mark.parametrize(
    ("uns", "expected"),
    [
        ({}, None),
        ({"organism": "Homo sapiens"}, "Homo sapiens"),
        ({"organism": "human", "organism_ontology_term_id": "NCBITaxon:9606"}, "NCBITaxon:9606"),
        ({"organism": np.array(["human", "human"])}, "human"),
        ({"organism": np.array(["human", "mouse"])}, None),
        ({"organism": 5}, None),
    ],
)
def test_organism_in_uns(tmp_path: Path, uns: dict, expected: str | None) -> None:
    adata = make(sp.csr_matrix(coordinates()))
    adata.uns.update(uns)
    assert open_source(write_h5ad(tmp_path / "a.h5ad", adata, {})).organism == expected
    assert open_source(write_zarr(tmp_path / "a.zarr", adata, "v2")).organism == expected


def test_filter_that_is_not_available(tmp_path: Path) -> None:
    """In a process of its own, where hdf5plugin has not been imported and cannot be."""
    plugin = pytest.importorskip("hdf5plugin")
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(coordinates())), dict(plugin.Bitshuffle()))
    code = (
        "import sys; sys.modules['hdf5plugin'] = None; "
        f"from scdataloader.sources import open_source; open_source({str(path)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "SourceFormatError" in done.stderr
    assert "compressed with the HDF5 filter 32008" in done.stderr
    assert "install hdf5plugin" in done.stderr
    shutil.rmtree(tmp_path)
