"""Small experiments of TileDB-SOMA whose values name their row and column."""

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import tiledbsoma
import tiledbsoma.io
from scipy.sparse import csr_matrix, random_array

TILES = {"tiledb": {"create": {"dims": {f"soma_dim_{i}": {"tile": 16} for i in (0, 1)}}}}
"""Tiles of 16 rows, so that few cells lie in several."""


def cells(n=50, n_genes=40, seed=0, offset=0):
    """Cells with layers, obsm, missing values, and a cell without counts; value = 1 + row, plus 100 * column."""
    rng = np.random.default_rng(seed)
    rows, columns = random_array((n, n_genes), density=0.3, rng=rng).nonzero()
    keep = rows != 7
    rows, columns = rows[keep], columns[keep]
    x = csr_matrix(((1 + rows + 100 * columns).astype(np.float32), (rows, columns)), (n, n_genes))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(["B", "NK", None], n), categories=["B", "NK"]),
            "donor": [f"d{i % 3}" for i in range(n)],
            "is_primary_data": rng.random(n) < 0.7,
            "score": np.where(rng.random(n) < 0.2, np.nan, rng.random(n)),
        },
        index=[f"cell {offset + i}" for i in range(n)],
    )
    var = pd.DataFrame({"length": rng.integers(9, 99, n_genes)}, index=[f"ENSG{i:011d}" for i in range(n_genes)])
    return ad.AnnData(x, obs, var, obsm={"X_pca": rng.random((n, 3), dtype=np.float32)})


def write(uri, adata, layer="raw", **layers):
    """Write an experiment; ``layers`` are further ones."""
    given = adata.copy()
    given.layers.update(layers)
    tiledbsoma.io.from_anndata(str(uri), given, "RNA", X_layer_name=layer, platform_config=TILES)
    return str(uri)


def append(uri, adata):
    """Add cells: new fragments of every array."""
    names = {"measurement_name": "RNA", "obs_field_name": "obs_id", "var_field_name": "var_id"}
    adata = ad.AnnData(adata.X, adata.obs, adata.var)
    plan = tiledbsoma.io.register_anndatas(uri, [adata], **names)
    plan.prepare_experiment(uri)
    tiledbsoma.io.from_anndata(uri, adata, "RNA", X_layer_name="raw", registration_mapping=plan)


def write_by_hand(uri, obs_ids, var_ids, x, dtype="float32"):
    """An experiment with any joinids; names of genes are in "feature_id", cells have none."""
    n_rows, n_columns = max(obs_ids) + 1, max(var_ids) + 1
    with tiledbsoma.Experiment.create(str(uri)) as made:
        ids = {"soma_joinid": pa.array(obs_ids), "donor": pa.array([f"d{i}" for i in obs_ids])}
        _table(made, "obs", ids, n_rows)
        rna = made.add_new_collection("ms").add_new_collection("RNA", tiledbsoma.Measurement)
        genes = {"soma_joinid": pa.array(var_ids), "feature_id": pa.array([f"ENSG{i:011d}" for i in var_ids])}
        _table(rna, "var", genes, n_columns)
        layers = rna.add_new_collection("X")
        array = layers.add_new_sparse_ndarray(
            "raw", type=pa.from_numpy_dtype(np.dtype(dtype)), shape=(n_rows, n_columns), platform_config=TILES
        )
        rows, columns = np.nonzero(x)
        values = x[rows, columns].astype(dtype)
        where = {"soma_dim_0": np.asarray(obs_ids)[rows], "soma_dim_1": np.asarray(var_ids)[columns]}
        array.write(pa.table({**where, "soma_data": values}))
    return str(uri)


def _table(collection, name, columns, n_rows):
    table = pa.table(columns)
    collection.add_new_dataframe(name, schema=table.schema, domain=[(0, n_rows - 1)]).write(table)
