"""Curated files as `register` gets them, without the curation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scdataloader.curation import Outcome

CELL_TYPE, TISSUE, SEX = "cell_type_ontology_term_id", "tissue_ontology_term_id", "sex_ontology_term_id"
HUMAN, MOUSE = "NCBITaxon:9606", "NCBITaxon:10090"
# T cell; a kind of it; a kind of that; B cell; neuron
T, CD8, NAIVE_CD8, B, NEURON = "CL:0000084", "CL:0000625", "CL:0000900", "CL:0000236", "CL:0000540"
GENES = [f"ENSG{i:011d}" for i in range(5)]


def curated(path: Path, cell_types: Sequence[str], *, source: str = "", **changed: Any) -> Outcome:
    """Write a file with a cell for each of the cell types, and say that it was curated; the path gives counts."""
    rng = np.random.default_rng(list(str(path).encode()))
    obs = pd.DataFrame({CELL_TYPE: pd.Categorical(cell_types)}, index=[f"c{i}" for i in range(len(cell_types))])
    x = csr_matrix(rng.poisson(2.0, (len(cell_types), len(GENES))).astype(np.float32))
    path.parent.mkdir(parents=True, exist_ok=True)
    ad.AnnData(x, obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(path)
    known = {
        "source": source or f"raw/{path.name}",
        "content": hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest(),
        "recipe": "0" * 32,
        "status": "kept",
        "reason": "",
        "n_cells_in": len(cell_types),
        "n_cells_out": len(cell_types),
        "n_genes_in": len(GENES),
        "n_genes_out": len(GENES),
        "output": path,
        "labels": {CELL_TYPE: sorted(set(cell_types) - {"unknown"})},
        "organism": HUMAN,
        "seconds": 0.1,
    }
    return Outcome(**known | changed)


def without_output(outcome: Outcome, status: str) -> Outcome:
    """The same file, not kept this time."""
    return Outcome(**{**vars(outcome), "status": status, "reason": "a test", "output": None, "labels": {}})


@contextmanager
def failing_database(words: str) -> Iterator[None]:
    """Within, the database fails at what begins with these words."""
    from django.db import connection
    from django.db.utils import OperationalError

    def fail(execute, sql, params, many, context):
        if sql.startswith(words):
            raise OperationalError("a test")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(fail):
        yield
