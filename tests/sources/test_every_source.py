"""Every kind of source runs through open, inspect, training, resumption on other ranks, conversion and export.

A new source is one more entry of `SOURCES`: a function that writes `cells()` into a folder and returns the data. Where
a library is not installed, as those of TileDB-SOMA and of object storage, the entry skips.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.io import mmwrite

import scdataloader as scd
from scdataloader.commands.main import main
from tests.sources.parquet_files import write_tahoe
from tests.sources.scdl_files import write_archive
from tests.sources.source_files import coordinates, make, write_zarr

BATCH, N_DRAWS = 8, 48
STOPPED_AFTER = 2
"""Batches of all ranks before a run is stopped."""


def cells() -> ad.AnnData:
    return make(sp.csr_matrix(coordinates("float32")))


def in_memory(folder: Path) -> Any:
    return cells()


def h5ad(folder: Path) -> Any:
    cells().write_h5ad(folder / "a.h5ad", compression="gzip")
    return folder / "a.h5ad"


def zarr_folder(folder: Path) -> Any:
    return write_zarr(folder / "a.zarr", cells(), "v3 sharded")


def store(folder: Path) -> Any:
    scd.convert(cells(), folder / "a.cells", n_processes=1, progress=False)
    return folder / "a.cells"


def annbatch(folder: Path) -> Any:
    (folder / "collection.zarr").mkdir()
    for number, part in enumerate((slice(0, 40), slice(40, None))):
        write_zarr(folder / f"collection.zarr/dataset_{number}", cells()[part].copy(), "v3 sharded")
    (folder / "collection.zarr/zarr.json").write_text(
        '{"attributes": {"encoding-type": "annbatch-preshuffled"}, "zarr_format": 3, "node_type": "group"}'
    )
    return folder / "collection.zarr"


def annbatch_h5ad(folder: Path) -> Any:
    for number, part in enumerate((slice(0, 40), slice(40, None))):
        cells()[part].copy().write_h5ad(folder / f"dataset_{number}.h5ad")
    return folder


def arrayloaders(folder: Path) -> Any:
    for number, part in enumerate((slice(0, 40), slice(40, None))):
        write_zarr(folder / f"chunk_{number}.zarr", cells()[part].copy(), "v3 blosc")
    return folder


def scdl(folder: Path) -> Any:
    adata = cells()
    var = pd.DataFrame({"var_feature_id": adata.var_names, "symbol": adata.var["symbol"].to_numpy()})
    obs = adata.obs.assign(obs_feature_id=adata.obs_names).astype({"kind": str})
    return write_archive(folder / "archive", [adata.X], [var], [obs.reset_index(drop=True)])


def tenx(folder: Path) -> Any:
    adata, genes = cells(), sp.csc_matrix(cells().X.T)
    with h5py.File(folder / "filtered.h5", "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(genes, name)
        group["shape"], group["barcodes"] = np.array(genes.shape), np.array(list(adata.obs_names), "S")
        group["features/id"] = np.array(list(adata.var_names), "S")
        group["features/name"] = np.array(list(adata.var["symbol"]), "S")
    return folder / "filtered.h5"


def mtx(folder: Path) -> Any:
    adata = cells()
    mmwrite(folder / "matrix.mtx", sp.coo_matrix(adata.X.T))
    rows = zip(adata.var_names, adata.var["symbol"], strict=True)
    (folder / "features.tsv").write_text("".join(f"{gene}\t{symbol}\tGene Expression\n" for gene, symbol in rows))
    (folder / "barcodes.tsv").write_text("\n".join(adata.obs_names) + "\n")
    return folder


def loom(folder: Path) -> Any:
    loompy = pytest.importorskip("loompy")
    adata = cells()
    genes, names = {"Gene": adata.var_names.to_numpy(str)}, adata.obs_names.to_numpy(str)
    columns = {"CellID": names, "kind": adata.obs["kind"].to_numpy(str)}
    loompy.create(str(folder / "a.loom"), adata.X.T.toarray(), genes, columns)
    return folder / "a.loom"


def h5mu(folder: Path) -> Any:
    mudata = pytest.importorskip("mudata")
    proteins = cells()[:, :5].copy()
    proteins.var_names = [f"CD{number}" for number in range(5)]
    mudata.MuData({"rna": cells(), "prot": proteins}).write(folder / "a.h5mu")
    return folder / "a.h5mu" / "mod" / "rna"


def parquet(folder: Path) -> Any:
    return write_tahoe(folder, cells())


SOURCES: dict[str, Callable[[Path], Any]] = {
    function.__name__.replace("_", " "): function
    for function in (
        in_memory,
        h5ad,
        zarr_folder,
        store,
        annbatch,
        annbatch_h5ad,
        arrayloaders,
        scdl,
        tenx,
        mtx,
        loom,
        h5mu,
        parquet,
    )
}


@pytest.fixture(params=SOURCES)
def data(request, tmp_path) -> Iterator[Any]:
    (tmp_path / "data").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield SOURCES[request.param](tmp_path / "data")


def loaders(data: Any, n: int) -> list[Any]:
    """The loader of each of ``n`` ranks, of class-weighted draws where there are classes."""
    by = [column for column in ("kind",) if column in scd.Collection.open(data).parts[0].source.obs_columns]
    sampling = scd.Sampling(by=by or None, num_samples=N_DRAWS)
    modules = [
        scd.DataModule(data, labels=by, sampling=sampling, batch_size=BATCH // n, rank=rank, world_size=n)
        for rank in range(n)
    ]
    for module in modules:
        module.setup("fit")
    return [module.train_dataloader() for module in modules]


def rows_of(ranks: list[Any], n_steps: int | None = None) -> np.ndarray:
    """The drawn rows of all ranks, step by step; values are checked on the way."""
    drawn = []
    for _, batches in zip(range(n_steps or N_DRAWS), zip(*ranks, strict=True), strict=False):
        for batch in batches:
            assert (batch["x"].to_dense().sum(1) == batch["depth"]).all()
            drawn.append(np.asarray(batch["row"]))
    return np.concatenate(drawn)


def test_every_source(data, tmp_path, capsys):
    wanted = cells()
    collection = scd.Collection.open(data)
    assert np.array_equal(collection.read(np.arange(len(collection))).to_scipy().toarray(), wanted.X.toarray())
    assert collection.obs_names(np.array([50, 3])).tolist() == ["cell50", "cell3"]

    if isinstance(data, Path):
        assert main(["inspect", str(data)]) == 0
        assert f"{len(collection)} cells" in " ".join(capsys.readouterr().out.split())

    stream = rows_of(loaders(data, 1))
    assert len(stream) == N_DRAWS
    stopped = loaders(data, 2)
    assert np.array_equal(rows_of(stopped, STOPPED_AFTER), stream[: STOPPED_AFTER * BATCH])
    (resumed,) = loaders(data, 1)
    resumed.load_state_dict(stopped[0].state_dict())
    assert np.array_equal(rows_of([resumed]), stream[STOPPED_AFTER * BATCH :])

    if not (isinstance(data, Path) and data.suffix == ".cells"):
        scd.convert(data, tmp_path / "made.cells", n_processes=1, progress=False)
    made = tmp_path / "made.cells" if (tmp_path / "made.cells").exists() else data
    assert main(["export", str(made), "--out", str(tmp_path / "out")]) == 0
    exported = ad.concat([ad.read_h5ad(path) for path in sorted((tmp_path / "out").rglob("*.h5ad"))])
    exported = exported[wanted.obs_names, wanted.var_names]
    assert np.array_equal(exported.X.toarray(), wanted.X.toarray())
