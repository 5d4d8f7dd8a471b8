"""Data of the tests on several ranks."""

import anndata as ad
import numpy as np
import pytest

from scdataloader.testing import named_values


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A folder of two files with 107 cells."""
    folder = tmp_path_factory.mktemp("cells")
    genes = [f"ENSG{i:011d}" for i in range(30)]
    for seed, n in enumerate((60, 47)):
        adata = ad.AnnData(named_values(n, 30, seed=seed), {"type": np.array(["B cell", "T cell"])[np.arange(n) % 2]})
        adata.var_names = genes
        adata.write_h5ad(folder / f"{seed}.h5ad")
    return folder
