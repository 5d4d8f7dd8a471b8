"""Files for the tests of curation, and a short way to curate one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scdataloader.curation.file import Job, curate_file
from scdataloader.curation.recipe import Recipe
from scdataloader.curation.report import Outcome

TABLE = """\
ensembl_gene_id,symbol,synonyms
ENSG00000000001,TP53,P53|BCC7
ENSG00000000002,CD4,TWICE
ENSG00000000003,MT-ND1,ND1|SHARED
ENSG00000000004,MT-CO1,COX1|SHARED
ENSG00000000005,TWICE,
ENSG00000000006,TWICE,
ENSG00000000007,,
ENSG00000000008,ND1,
"""
IDS = [f"ENSG{i:011d}" for i in range(1, 9)]


def table(folder: Path) -> str:
    """A gene table: symbols, synonyms, a shared one of either, a gene without symbol, a synonym that is a symbol."""
    path = folder / "genes.csv"
    path.write_text(TABLE)
    return str(path)


def cells(genes: Sequence[str], n: int = 10, seed: int = 0, **obs: Any) -> ad.AnnData:
    """Human cells with counts from 0 to 4."""
    x = np.random.default_rng(seed).integers(0, 5, (n, len(genes))).astype(np.float32)
    made = ad.AnnData(csr_matrix(x), obs=pd.DataFrame(index=[f"cell{i}" for i in range(n)]))
    made.var_names = list(genes)
    for name, values in {"organism": "human", **obs}.items():
        made.obs[name] = values if isinstance(values, str) else list(values)
    return made


def written(path: Path, adata: ad.AnnData) -> Path:
    adata.write_h5ad(path)
    return path


def job(path: Path, out: Path, recipe: Recipe) -> Job:
    out.mkdir(exist_ok=True)
    own = recipe.for_file(path)
    return Job(
        path=path,
        name=path.name,
        source=str(path),
        n_bytes=1,
        content="c" * 32,
        recipe=own,
        recipe_hash=own.hash,
        output=out / path.name,
    )


def curate(path: Path, recipe: Recipe | None = None) -> list[Outcome]:
    """The outcomes of a file, curated in this process into the folder ``out`` beside it."""
    return curate_file(job(path, path.parent / "out", recipe or Recipe()), lambda _: None)


def kept(path: Path, recipe: Recipe | None = None) -> tuple[Outcome, ad.AnnData]:
    """The outcome of a file that is kept, and what was written."""
    (outcome,) = curate(path, recipe)
    assert outcome.status == "kept", outcome.reason
    assert outcome.output is not None
    return outcome, ad.read_h5ad(outcome.output)


def failed(path: Path, recipe: Recipe | None = None) -> str:
    """Why a file fails; nothing is left of it."""
    (outcome,) = curate(path, recipe)
    assert outcome.status == "failed"
    assert outcome.output is None
    assert list((path.parent / "out").iterdir()) == []
    assert "\n" not in outcome.reason
    return outcome.reason


def raw(folder: Path, n: int = 3) -> list[Path]:
    """Files that differ, in a folder."""
    folder.mkdir(exist_ok=True)
    return [written(folder / f"{number}.h5ad", cells(IDS, seed=number)) for number in range(n)]
