"""Small data sets with known structure, for the tests of this environment."""

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

GENES = [f"ENSG{i:011d}" for i in range(42)]
TYPES = np.array(["B", "NK", "T"])


def cells(n, seed, batches=("b1", "b2"), *, unlabelled=0.4, genes=GENES):
    """Cells of three types, each with 14 genes of its own; ``truth`` is the type of every cell."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(3, size=n)
    mean = (1 + 6 * np.eye(3).repeat(14, axis=1))[codes]
    counts = pd.DataFrame(rng.poisson(mean).astype(np.float32), columns=GENES)[list(genes)]
    obs = {
        "batch": rng.choice(list(batches), n),
        "cell_type": np.where(rng.random(n) < unlabelled, "Unknown", TYPES[codes]),
        "truth": TYPES[codes],
        "assay": rng.choice(["v2", "v3"], n),
        "donor": rng.choice(["d1", "d2", "d3"], n),
        "age": rng.random(n),
        "size": counts.sum(axis=1).to_numpy(),
    }
    index = [f"{seed}-{i}" for i in range(n)]
    return ad.AnnData(
        csr_matrix(counts.to_numpy()), obs=pd.DataFrame(obs, index=index), var=pd.DataFrame(index=list(genes))
    )


def data():
    """Two sources with the same genes in different order."""
    return [cells(300, 1), cells(200, 2, genes=GENES[::-1])]
