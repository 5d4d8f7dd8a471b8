"""AnnData files for the tests of sources: in every way of storing one, with values that name their row and column."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

N_OBS, N_VARS = 61, 43


def coordinates(dtype: Any = "float32", n_obs: int = N_OBS, n_vars: int = N_VARS) -> np.ndarray:
    """Value 1 + row * n_vars + column (as far as the dtype goes), with half of it left out and some rows empty."""
    limit = min(np.finfo(dtype).max if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max, 2**11)
    x = 1 + np.arange(n_obs * n_vars).reshape(n_obs, n_vars) % (int(limit) - 1)
    x[np.random.default_rng(0).random(x.shape) < 0.5] = 0
    x[[0, 7, 8, n_obs - 1]] = 0
    return x.astype(dtype)


def make(x: Any, **layers: Any) -> ad.AnnData:
    n_obs, n_vars = x.shape
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical([f"kind {i % 3}" for i in range(n_obs)]),
            "number": np.arange(n_obs),
            "text": [f"text {i % 5}" for i in range(n_obs)],
        },
        index=[f"cell{i}" for i in range(n_obs)],
    )
    var = pd.DataFrame({"symbol": [f"G{i}" for i in range(n_vars)]}, index=[f"ENSG{i:011d}" for i in range(n_vars)])
    return ad.AnnData(x, obs=obs, var=var, layers=layers)


def stored_as(x: np.ndarray, kind: str) -> Any:
    return {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[kind](x)


H5_COMPRESSIONS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": True},
    "gzip": {"compression": "gzip"},
    "gzip+shuffle": {"compression": "gzip", "shuffle": True},
    "gzip+fletcher32": {"compression": "gzip", "fletcher32": True},
    "gzip+shuffle+fletcher32": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf"},
}
SMALL_CHUNK = 37


def write_h5ad(path: Path, adata: ad.AnnData, compression: dict[str, Any]) -> Path:
    """As anndata does it, then the arrays of X and the layers again in chunks so small that rows span several."""
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        nodes = [file["X"], *(file["layers"].values())]
        for node in nodes:
            for array in [node] if isinstance(node, h5py.Dataset) else list(node.values()):
                rewrite(array, compression)
    return path


def rewrite(array: h5py.Dataset, options: dict[str, Any], values: Any = None) -> h5py.Dataset:
    """The dataset once more, stored otherwise."""
    parent, name, attributes = array.parent, array.name.rsplit("/", 1)[1], dict(array.attrs)
    values = array[()] if values is None else values
    del parent[name]
    if options and values.size:
        chunks = (SMALL_CHUNK,) if values.ndim == 1 else (5, 9)
        options = options | {"chunks": tuple(min(pair) for pair in zip(chunks, values.shape, strict=True))}
    else:
        options = {}
    new = parent.create_dataset(name, data=values, **options)
    new.attrs.update(attributes)
    return new


ZARR_FORMATS = (
    "v2",
    "v2 gzip",
    "v2 zlib",
    "v2 none",
    "v3",
    "v3 gzip",
    "v3 none",
    "v3 blosc",
    "v3 sharded",
    "v3 sharded start",
)


def _zarr_options(how: str, ndim: int) -> dict[str, Any]:
    from numcodecs import GZip, Zlib
    from zarr.codecs import BloscCodec, GzipCodec

    chunks = (SMALL_CHUNK,) if ndim == 1 else (5, 9)
    compressors: Any = {
        "v2 gzip": GZip(),
        "v2 zlib": Zlib(),
        "v2 none": None,
        "v3 gzip": GzipCodec(),
        "v3 none": None,
        "v3 blosc": BloscCodec(),
    }.get(how, "auto")
    options = {"chunks": chunks, "compressors": compressors}
    if "sharded" in how:
        options["shards"] = tuple(4 * n for n in chunks)
    if how == "v3 sharded start":
        options["shards"] = {"shape": options["shards"], "index_location": "start"}
    return options


def write_zarr(path: Path, adata: ad.AnnData, how: str) -> Path:
    """As anndata does it, then the arrays of X and the layers again in chunks so small that rows span several."""
    before = ad.settings.zarr_write_format
    ad.settings.zarr_write_format = int(how[1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata.write_zarr(path)
    finally:
        ad.settings.zarr_write_format = before
    (path / ".zmetadata").unlink(missing_ok=True)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    names = ["X", *(f"layers/{name}" for name in root["layers"])]
    arrays = [name for name in names if isinstance(root[name], zarr.Array)]
    arrays += [f"{name}/{part}" for name in names if name not in arrays for part in ("data", "indices", "indptr")]
    for name in arrays:
        values, attributes = root[name][...], dict(root[name].attrs)
        shutil.rmtree(path / name)
        new = root.create_array(name, data=values, **_zarr_options(how, values.ndim))
        new.attrs.update(attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path, zarr_format=int(how[1]))
    return path
