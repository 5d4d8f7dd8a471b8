"""Other formats than AnnData's files: read as AnnData are, or refused with advice that works."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import zarr
from scipy.io import mmwrite

from scdataloader import CellDataset, Collection, open_source
from scdataloader.errors import SourceFormatError
from scdataloader.sources.locate import expand, open_sources
from tests.sources.source_files import N_OBS, N_VARS, coordinates, make, rewrite

X = coordinates("int32")
ROWS = np.array([60, 3, 3, 0, 17])


def _cells() -> ad.AnnData:
    return make(sp.csr_matrix(X))


def write_tenx(path: Path, genomes: tuple[str, ...] = ()) -> Path:
    """As Cell Ranger writes it: since 3, or before, with a group for each genome."""
    adata, genes = _cells(), sp.csc_matrix(X.T)
    ids, symbols = (np.array(list(names), "S") for names in (adata.var_names, adata.var["symbol"]))
    with h5py.File(path, "w") as file:
        for name in genomes or ("matrix",):
            group = file.create_group(name)
            for part in ("data", "indices", "indptr"):
                group.create_dataset(part, data=getattr(genes, part), chunks=(37,), compression="gzip")
            group["shape"], group["barcodes"] = np.array(genes.shape), np.array(list(adata.obs_names), "S")
            if genomes:
                group["genes"], group["gene_names"] = ids, symbols
            else:
                group["features/id"], group["features/name"] = ids, symbols
                group["features/feature_type"] = np.array(["Gene Expression"] * N_VARS, "S")
                group["features/genome"] = np.array(["GRCh38"] * N_VARS, "S")
                group["features/_all_tag_keys"] = np.array(["genome"], "S")
    return path


def write_mtx(folder: Path, genes: str, *, packed: bool, prefix: str = "") -> Path:
    """A folder of 10x Genomics, or of STARsolo, which has the names of Cell Ranger 3 and packs nothing."""
    folder.mkdir()
    adata = _cells()
    mmwrite(folder / f"{prefix}matrix.mtx", sp.coo_matrix(X.T))
    rows = zip(adata.var_names, adata.var["symbol"], strict=True)
    (folder / f"{prefix}{genes}").write_text("".join(f"{gene}\t{symbol}\tGene Expression\n" for gene, symbol in rows))
    (folder / f"{prefix}barcodes.tsv").write_text("".join(f"{name}\n" for name in adata.obs_names))
    for file in list(folder.iterdir()) if packed else ():
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    return folder


def write_mudata(path: Path) -> Path:
    """The groups that mudata writes."""
    other = _cells()[:, :5].copy()
    other.var_names = [f"CD{i}" for i in range(5)]
    with h5py.File(path, "w") as file:
        for table in ("obs", "var"):
            ad.io.write_elem(file, table, pd.DataFrame(index=_cells().obs_names))
        for group in ("obsm", "obsmap", "obsp", "uns", "varm", "varmap", "varp", "mod"):
            file.create_group(group)
        for name, modality in (("rna", _cells()), ("prot", other)):
            ad.io.write_elem(file["mod"], name, modality)
    return path


def write_spatial(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (path / "tables").mkdir(parents=True)
        _cells().write_zarr(path / "tables" / "table")
        for group in (path, path / "tables", path / "points"):
            zarr.open_group(group, mode="a", zarr_format=3)
    return path


def write_zip(path: Path, inside: str) -> Path:
    folder = path.with_suffix("") / inside
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _cells().write_zarr(folder)
    return Path(shutil.make_archive(str(path.with_suffix("")), "zip", path.with_suffix("")))


FORMATS: dict[str, Callable[[Path], Path]] = {
    "10x v3": lambda at: write_tenx(at / "filtered.h5"),
    "10x v2": lambda at: write_tenx(at / "filtered.h5", ("mm10",)),
    "10x v2, a genome": lambda at: write_tenx(at / "filtered.h5", ("hg19", "mm10")) / "hg19",
    "mtx v3": lambda at: write_mtx(at / "outs", "features.tsv", packed=True),
    "mtx v2": lambda at: write_mtx(at / "outs", "genes.tsv", packed=False),
    "mtx of STARsolo": lambda at: write_mtx(at / "outs", "features.tsv", packed=False),
    "mtx of GEO": lambda at: write_mtx(at / "a", "features.tsv", packed=True, prefix="GSM1_") / "GSM1_matrix.mtx.gz",
    "MuData": lambda at: write_mudata(at / "a.h5mu") / "mod" / "rna",
    "SpatialData": lambda at: write_spatial(at / "a.zarr") / "tables" / "table",
    "zip": lambda at: write_zip(at / "a.zarr.zip", ""),
    "zip of a folder": lambda at: write_zip(at / "a.zip", "b.zarr") / "b.zarr",
}


@pytest.mark.parametrize("how", FORMATS)
def test_formats_are_read_by_every_entry_point(tmp_path: Path, how: str) -> None:
    path = FORMATS[how](tmp_path)
    with open_source(path) as source:
        assert source.var.index.tolist() == _cells().var_names.tolist()
        assert source.obs_names().tolist() == _cells().obs_names.tolist()
        np.testing.assert_array_equal(source.read(ROWS).to_scipy().toarray(), X[ROWS])
        assert source.name == path.relative_to(tmp_path).as_posix().removeprefix("outs/").removeprefix("a/")
    np.testing.assert_array_equal(Collection.open(str(path)).read(ROWS).to_scipy().toarray(), X[ROWS])
    np.testing.assert_array_equal([cell["X"] for cell in CellDataset(path).__getitems__(ROWS)], X[ROWS])


@pytest.mark.parametrize("how", ["10x v3", "10x v2", "mtx v3", "mtx v2"])
def test_tables_of_10x_are_those_of_scanpy(tmp_path: Path, how: str) -> None:
    path = FORMATS[how](tmp_path)
    wanted = sc.read_10x_h5(path) if path.suffix == ".h5" else sc.read_10x_mtx(path, var_names="gene_ids")
    var = open_source(path).var
    ids = wanted.var["gene_ids"] if path.suffix == ".h5" else wanted.var_names
    symbols = wanted.var_names if path.suffix == ".h5" else wanted.var["gene_symbols"]
    assert var.index.tolist() == list(ids)
    assert var["gene_symbols"].tolist() == list(symbols)
    for column in {"feature_types", "genome"} & set(wanted.var):
        assert var[column].tolist() == wanted.var[column].tolist()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda at: write_mudata(at / "a.h5mu"), r"MuData .* prot, rna; name one of them, as '(.*a.h5mu/mod/rna)'"),
        (lambda at: write_spatial(at / "a.zarr"), r"SpatialData .* table; name one .*, as '(.*a.zarr/tables/table)'"),
        (lambda at: write_tenx(at / "a.h5", ("hg19", "mm10")), r"genomes hg19, mm10; name one .*, as '(.*a.h5/hg19)'"),
        (lambda at: write_zip(at / "a.zip", "b.zarr"), r"a.zip is a zip .* name a zarr folder in it, as '(.*/b.zarr)'"),
    ],
)
def test_which_part_of_a_container(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    path = write(tmp_path)
    for opened in (open_source, Collection.open, CellDataset):
        with pytest.raises(SourceFormatError, match=message) as refused:
            opened(path)
    advised = re.search(message, str(refused.value))
    assert advised is not None
    assert open_source(advised[1]).n_obs == N_OBS  # the advice works


def test_wrong_group_in_a_file(tmp_path: Path) -> None:
    path = write_mudata(tmp_path / "a.h5mu")
    with pytest.raises(SourceFormatError, match=r"a.h5mu/rna does not exist: .* nearest are 'mod/rna'"):
        open_source(path / "rna")


def test_glob_of_groups_in_files(tmp_path: Path) -> None:
    paths = [write_mudata(tmp_path / f"{name}.h5mu") / "mod" / "rna" for name in "ab"]
    assert expand(f"{tmp_path}/*.h5mu/mod/rna") == paths


def test_loom(tmp_path: Path) -> None:
    path = tmp_path / "a.loom"
    with h5py.File(path, "w") as file:
        file["matrix"] = X.T
        for group in ("row_attrs", "col_attrs", "layers", "row_graphs", "col_graphs"):
            file.create_group(group)
        file["row_attrs/Gene"] = np.array(list(_cells().var_names), "S")
        file["col_attrs/CellID"] = np.array(list(_cells().obs_names), "S")
    try:
        import loompy  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(SourceFormatError, match=r"a.loom is a loom file.*pip install .*\[loom\]"):
            open_source(path)
        return
    source = open_source(path)
    np.testing.assert_array_equal(source.read(ROWS).to_scipy().toarray(), X[ROWS])
    assert source.var.index.tolist() == _cells().var_names.tolist()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_mudata_of_mudata(tmp_path: Path) -> None:
    mudata: Any = pytest.importorskip("mudata")
    proteins = _cells()[:, :5].copy()
    proteins.var_names = [f"protein {n}" for n in range(5)]
    both = mudata.MuData({"rna": _cells(), "prot": proteins})
    with pytest.raises(TypeError, match=r"got MuData.*modalities, such as \['rna'\]"):
        Collection.open(both)
    both.write(tmp_path / "a.h5mu")
    source = open_source(tmp_path / "a.h5mu" / "mod" / "rna")
    np.testing.assert_array_equal(source.read(ROWS).to_scipy().toarray(), X[ROWS])
    with pytest.raises(SourceFormatError, match="modalities prot, rna"):
        open_source(tmp_path / "a.h5mu")


@pytest.mark.parametrize("name", ["table.parquet", "table.csv", "table.tsv"])
def test_advice_on_tables_works_as_written(tmp_path: Path, name: str) -> None:
    frame = _cells().to_df()
    if name == "table.parquet":
        frame.to_parquet(tmp_path / name)
    else:
        frame.to_csv(tmp_path / name, sep="," if name == "table.csv" else "\t")
    with pytest.raises(
        SourceFormatError, match=r"is a (Parquet table|table of text): write it as .h5ad with"
    ) as refused:
        Collection.open(tmp_path / name)
    advised = re.search(r"with (anndata\..*\.write_h5ad\('table.h5ad'\))", str(refused.value))
    assert advised is not None
    code = f"import anndata, anndata.io, pandas; {advised[1]}"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=os.environ)
    np.testing.assert_array_equal(open_source(tmp_path / "table.h5ad").read(ROWS).to_scipy().toarray(), X[ROWS])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.rds", b"\x1f\x8b", "file of R: write it as .h5ad there"),
        ("outs.tar.gz", b"\x1f\x8b", "archive: unpack it with tar -xf"),
        ("a.h5ad", b"PK\x03\x04", "zip file, expected HDF5: unpack it with unzip"),
        ("a.zip", b"PK", "not a zip file, or damaged"),
        ("matrix.mtx", b"%%MatrixMarket", "features.tsv or genes.tsv is missing beside it"),
        ("a.loom", b"no loom", "loom file"),
    ],
)
def test_advice_on_other_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceFormatError, match=f"{name} .*{message}"):
        open_source(tmp_path / name)


@pytest.mark.parametrize("url", ["ftp://a.b/c.h5ad", "hdfs://b/c", "abfs://b/c.zarr"])
def test_urls_are_recognised_as_written(url: str | Path) -> None:
    for opened in (open_source, open_sources, CellDataset):
        with pytest.raises(ValueError, match=f"^{url} is not a path on this machine.* download .* lamindb"):
            opened(url)


def test_references_of_several_genomes(tmp_path: Path) -> None:
    """Cell Ranger puts the genome before ids and symbols; with as many underscores as align them."""
    genomes = ["GRCh38_" if number % 2 else "mm10___" for number in range(N_VARS)]
    with h5py.File(write_tenx(tmp_path / "a.h5"), "r+") as file:
        for name in ("id", "name"):
            values = [
                f"{genome}{value.decode()}"
                for genome, value in zip(genomes, file[f"matrix/features/{name}"], strict=True)
            ]
            rewrite(file[f"matrix/features/{name}"], {}, np.array(values, "S"))
    folder = write_mtx(tmp_path / "outs", "genes.tsv", packed=False)
    lines = (folder / "genes.tsv").read_text().splitlines()
    rows = (f"{genome}{line}".replace("\t", f"\t{genome}", 1) for genome, line in zip(genomes, lines, strict=True))
    (folder / "genes.tsv").write_text("\n".join(rows) + "\n")
    assert sc.read_10x_h5(tmp_path / "a.h5").var_names[0] == "mm10___G0"
    for path in (tmp_path / "a.h5", folder):
        var = open_source(path).var
        assert var.index.tolist() == _cells().var_names.tolist()
        assert var["gene_symbols"].tolist() == [f"G{number}" for number in range(N_VARS)]


def test_antibodies_of_10x_are_not_genes(tmp_path: Path) -> None:
    path = write_tenx(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        types = np.array(["Gene Expression"] * (N_VARS - 5) + ["Antibody Capture"] * 5, "S")
        rewrite(file["matrix/features/feature_type"], {}, types)
    wanted = sc.read_10x_h5(path)  # genes alone
    batch = Collection.open(path).cells(ROWS)
    np.testing.assert_array_equal(batch.x.to_scipy().toarray()[:, : N_VARS - 5], wanted.X.toarray()[ROWS])
    np.testing.assert_array_equal(batch.depth, wanted.X.toarray()[ROWS].sum(1))
    assert not batch.x.to_scipy()[:, N_VARS - 5 :].nnz


def test_damaged_10x_file(tmp_path: Path) -> None:
    path = write_tenx(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        rewrite(file["matrix/shape"], {}, np.arange(3))
    with pytest.raises(SourceFormatError, match=r"a.h5 is not a 10x .* its shape is \[0, 1, 2\]"):
        Collection.open(path)


def test_url_of_a_file_is_a_path(tmp_path: Path) -> None:
    _cells().write_h5ad(tmp_path / "a b.h5ad")
    assert open_source((tmp_path / "a b.h5ad").as_uri()).n_obs == N_OBS
