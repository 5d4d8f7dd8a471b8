"""Bad input: what the message says, word for word where the words matter."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
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
    stored_as,
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
    with pytest.raises(ValueError, match=r"ftp://bucket/a.h5ad is not a path on this machine.*download"):
        open_source("ftp://bucket/a.h5ad")
    with pytest.raises(ValueError, match=r"ftp://bucket/a.h5ad is not a path on this machine.*download"):
        open_sources("ftp://bucket/a.h5ad")


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
        SourceFormatError, match=r"not an AnnData: expected obs, var .* found matrix \(obs and var missing\); write it"
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
    for file in chunks:
        file.write_bytes(file.read_bytes()[:-9])
    source = open_source(path)
    with pytest.raises(SourceFormatError, match="is damaged"):
        source.read(np.arange(N_OBS))


@pytest.mark.parametrize("compression", ["gzip", "gzip+shuffle", "gzip+fletcher32", "lzf"])
def test_damaged_chunk(tmp_path: Path, compression: str) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(coordinates())), H5_COMPRESSIONS[compression])
    with open_source(path) as source:
        with h5py.File(path) as file:
            chunk = file["X/data"].id.get_chunk_info(3)
        content, before = bytearray(path.read_bytes()), path.stat()
        content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # damaged by the disk: no time has changed
        with pytest.raises(SourceFormatError, match=r"a.h5ad: X/data is damaged \("):
            source.read(np.arange(N_OBS))
    with pytest.raises(SourceFormatError, match=r"a.h5ad is damaged: X/data cannot be read \("):
        open_source(path)


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
        (-1, 0, "they run from 0 to 0"),
        (9, 0, "number 9 is smaller than the one before"),
    ],
)
def test_wild_offsets(tmp_path: Path, compression: str, place: int, value: int, found: str) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csr_matrix(coordinates())), H5_COMPRESSIONS[compression])
    with h5py.File(path, "r+") as file:
        file["X/indptr"][place] = value
    with pytest.raises(SourceFormatError, match=f"expected {N_OBS + 1} offsets.*{found}"), open_source(path) as source:
        source.read(np.array([0]))


def test_wild_cell_numbers_in_csc(tmp_path: Path) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(sp.csc_matrix(coordinates())), {})
    with h5py.File(path, "r+") as file:
        file["X/indices"][7] = 10**6
    with open_source(path) as source, pytest.raises(SourceFormatError, match="expected cells 0 to 60"):
        source.read(np.array([0]))


HUGE = 2**40
ROWS, COLUMNS = f"obs has {N_OBS} rows", f"var has {N_VARS} rows"


@pytest.mark.parametrize("key", ["X", "layers/umi", "raw"])
@pytest.mark.parametrize(
    ("kind", "member", "axis", "size", "found"),
    [
        ("dense", "", 0, HUGE, f"{ROWS}, .* is {HUGE} cells by {N_VARS} genes"),
        ("dense", "", 1, 2**31, f"{N_VARS} rows, .* is {N_OBS} cells by {2**31} genes"),
        ("csr", "", 0, HUGE, f"expected {HUGE + 1} offsets in .*found {N_OBS + 1} of them"),
        ("csr", "", 1, 2**31, f"{N_VARS} rows, .* is {N_OBS} cells by {2**31} genes"),
        ("csc", "", 0, HUGE, f"{ROWS}, .* is {HUGE} cells by {N_VARS} genes"),
        ("csr", "/data", 0, HUGE, f"/data has {HUGE} values, .*/indices"),
        ("csc", "/indices", 0, HUGE, f"/indices {HUGE}"),
        ("csr", "/indptr", 0, HUGE, f"found {HUGE} of them"),
    ],
)
def test_declared_sizes_of_a_matrix_are_refused_before_anything_is_read(
    tmp_path: Path, key: str, kind: str, member: str, axis: int, size: int, found: str
) -> None:
    made = make(stored_as(coordinates(), kind), umi=stored_as(coordinates(), kind))
    made.raw = made.copy()
    path = write_h5ad(tmp_path / "a.h5ad", made, {})
    declare(path, ("raw/X" if key == "raw" else key) + member, axis, size)
    with pytest.raises(SourceFormatError, match=f"a.h5ad .*{found}"):
        open_source(path, counts=key)


@pytest.mark.parametrize(
    ("member", "size", "found"),
    [
        ("var/_index", N_VARS - 1, f"var has {N_VARS - 1} rows, X is {N_OBS} cells by {N_VARS} genes"),
        ("obs/_index", HUGE, f"obs has {HUGE} rows, X is {N_OBS} cells by {N_VARS} genes"),
        ("obs/number", HUGE, f"obs/number has {HUGE} values, {ROWS}"),
        ("obs/kind/codes", N_OBS + 1, f"obs/kind has {N_OBS + 1} values, {ROWS}"),
        ("obsm/pca", HUGE, f"{ROWS}, obsm/pca is {HUGE} cells by 3 columns"),
    ],
)
def test_declared_sizes_of_tables_are_refused_before_anything_is_read(
    tmp_path: Path, member: str, size: int, found: str
) -> None:
    made = make(sp.csr_matrix(coordinates()))
    made.obsm["pca"] = coordinates()[:, :3]
    path = write_h5ad(tmp_path / "a.h5ad", made, {})
    declare(path, member, 0, size)
    with pytest.raises(SourceFormatError, match=f"a.h5ad contradicts itself: {found}"):
        check_tables(path)


def check_tables(path: Path) -> None:
    with open_source(path) as source:
        source.obs(["kind", "number"])
        source.read_matrix("obsm/pca", np.arange(N_OBS))


def declare(path: Path, member: str, axis: int, size: int) -> None:
    """State another size of an array, of which little is stored, or of a sparse matrix."""
    with h5py.File(path, "r+") as file:
        node = file[member]
        attributes, shape = dict(node.attrs), list(node.attrs.get("shape", getattr(node, "shape", ())))
        shape[axis] = size
        if isinstance(node, h5py.Group):
            node.attrs["shape"] = shape
            return
        dtype = node.dtype
        del file[member]
        file.create_dataset(member, shape, dtype, chunks=tuple(min(n, 1024) for n in shape)).attrs.update(attributes)


@pytest.mark.parametrize("write", ["h5ad", "zarr"])
@pytest.mark.parametrize(
    "member",
    [
        *("X/data", "X/indices", "X/indptr", "layers/umi/indptr", "raw/X/data", "raw/var"),
        *("obs/_index", "var/_index", "obs/number", "obs/kind/codes", "obs/kind/categories"),
    ],
)
def test_a_missing_part_is_named(tmp_path: Path, member: str, write: str) -> None:
    made = make(sp.csr_matrix(coordinates()), umi=sp.csr_matrix(coordinates()))
    made.raw = made.copy()
    path = tmp_path / f"half.{write}"
    if write == "h5ad":
        with h5py.File(write_h5ad(path, made, {}), "r+") as file:
            del file[member]
    else:
        shutil.rmtree(write_zarr(path, made, "v3") / member)
    counts = {"l": "layers/umi", "r": "raw"}.get(member[0], "auto")
    named = member.removesuffix("/categories")
    found = rf"half\.{write}.* ({named} (is missing|cannot be read)|\({member} is missing|lists {member}\S*, which is)"
    with pytest.raises(SourceFormatError, match=found), open_source(path, counts=counts) as source:
        source.obs(["kind", "number"])


@pytest.mark.parametrize("attribute", ["shape", "encoding-type"])
def test_a_missing_attribute_is_named(path: Path, attribute: str) -> None:
    with h5py.File(path, "r+") as file:
        del file["X"].attrs[attribute]
    with pytest.raises(ValueError, match=r"blood.h5ad.*X does not state its shape|blood.h5ad: no counts found"):
        open_source(path)


@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
def test_arrays_and_chunks_that_were_never_written_are_refused(tmp_path: Path, part: str) -> None:
    """Their zeros would be read as cells of another content."""
    made = make(sp.csr_matrix(coordinates()))
    path = write_h5ad(tmp_path / "a.h5ad", made, {})
    for options in ({}, {"chunks": (37,)}):
        with h5py.File(path, "r+") as file:
            values = file["X"][part][...]
            del file["X"][part]
            file["X"].create_dataset(part, values.shape, values.dtype, **options)
        with pytest.raises(SourceFormatError, match=f"X/{part} was never written"):
            open_source(path)
    path = write_zarr(tmp_path / "a.zarr", made, "v3")
    (path / "X" / part / "c" / "1").unlink()
    with (
        pytest.raises(SourceFormatError, match=rf"chunk 1 of a.zarr: X/{part} is missing|expected {N_OBS + 1} offsets"),
        open_source(path) as source,
    ):
        source.read(np.arange(N_OBS))


@pytest.mark.parametrize("form", ["v2", "v3", "v3 sharded", "zip"])
@pytest.mark.parametrize("part", ["data", "indices"])
@pytest.mark.parametrize("counts", ["auto", "X"])
def test_a_lost_chunk_is_not_taken_for_zeros(tmp_path: Path, form: str, part: str, counts: str) -> None:
    """Not even if it is the only one of an array, and another matrix has counts."""
    x = sp.csr_matrix(coordinates())
    path = write_zarr(tmp_path / "a.zarr", make(x, counts=x), "v3" if form == "zip" else form)
    folder = path / "X" / part
    stored = [file for file in folder.rglob("*") if file.is_file() and file.name.isdigit()]
    stored.sort(key=lambda file: int(file.name))
    for lost in (stored[:1], stored[-1:], stored):
        broken = tmp_path / "broken.zarr"
        shutil.copytree(path, broken)
        for file in lost:
            (broken / file.relative_to(path)).unlink()
        if form == "zip":
            shutil.make_archive(str(broken), "zip", broken)
        with pytest.raises(SourceFormatError, match=rf"broken\.zarr.*: chunk \d+ of X/{part} is missing; download"):
            open_source(broken.with_name("broken.zarr.zip") if form == "zip" else broken, counts=counts)
        shutil.rmtree(broken)


@pytest.mark.parametrize("form", ["v2", "v3", "zip"])
@pytest.mark.parametrize("table", ["obs", "var"])
def test_lost_names_are_not_taken_for_empty_ones(tmp_path: Path, form: str, table: str) -> None:
    path = write_zarr(tmp_path / "a.zarr", make(sp.csr_matrix(coordinates())), "v3" if form == "zip" else form)
    index = path / table / "_index"
    shutil.rmtree(index / "c") if (index / "c").exists() else (index / "0").unlink()
    if form == "zip":
        shutil.make_archive(str(path), "zip", path)
        path = path.with_name("a.zarr.zip")
    with pytest.raises(SourceFormatError, match=rf"a\.zarr.*: chunk 0 of {table}/_index is missing; download"):
        open_source(path)


def test_zeros_that_zarr_does_not_write_are_not_lost(tmp_path: Path) -> None:
    """All gene numbers of a matrix of one gene, and matrices without values."""
    for n_values in (0, N_OBS):
        x = sp.csr_matrix((np.arange(N_OBS) < n_values).astype("float32")[:, None])
        path = write_zarr(tmp_path / f"{n_values}.zarr", ad.AnnData(x), "v3")
        with open_source(path) as source:
            np.testing.assert_array_equal(source.read(np.arange(N_OBS)).to_scipy().toarray(), x.toarray())


@pytest.mark.parametrize("how", ["categorical", "bytes", "fixed bytes"])
@pytest.mark.parametrize("table", ["obs", "var"])
def test_an_index_may_be_a_categorical_or_bytes(path: Path, how: str, table: str) -> None:
    with open_source(path) as source:
        expected = source.obs_names().tolist(), source.var.index.tolist()
    with h5py.File(path, "r+") as file:
        names = file[f"{table}/_index"].asstr()[...]
        del file[f"{table}/_index"]
        if how == "categorical":
            ad.io.write_elem(file[table], "_index", pd.Categorical(names))
        elif how == "bytes":
            file[table].create_dataset("_index", data=names, dtype=h5py.string_dtype("ascii"))
        else:
            file[table]["_index"] = names.astype("S20")
    with open_source(path) as source:
        assert (source.obs_names().tolist(), source.var.index.tolist()) == expected
        assert not isinstance(source.var.index, pd.CategoricalIndex)


def test_labels_may_be_bytes(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["obs/text"]
        file["obs/text"] = np.array([f"text {i}" for i in range(N_OBS)], "S9")
        categories = file["obs/kind/categories"]
        rewrite(categories, {}, categories.asstr()[...].astype("S9")).attrs["encoding-type"] = "array"
    obs = open_source(path).obs(["text", "kind"])
    assert obs["text"][:2].tolist() == ["text 0", "text 1"]
    assert obs["kind"].cat.categories.tolist() == ["kind 0", "kind 1", "kind 2"]


def test_uns_that_cannot_be_read_is_skipped(path: Path, caplog) -> None:
    with h5py.File(path, "r+") as file:
        file["uns/organism_ontology_term_id"] = "NCBITaxon:9606"
        file["uns/organism_ontology_term_id"].attrs.update({"encoding-type": "new", "encoding-version": "9"})
        file["uns/organism"] = "human"
    assert open_source(path).organism == "human"
    assert "skipped uns['organism_ontology_term_id']: " in caplog.text
    assert "encoding_type='new'" in caplog.text


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
