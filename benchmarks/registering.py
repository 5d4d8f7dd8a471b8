"""How long it takes to register curated files in lamindb, and to find that nothing has changed.

    python benchmarks/registering.py --files 500                                            # SQLite
    python benchmarks/registering.py --files 500 --db postgresql://lamin:x@127.0.0.1:5432/empty

Makes an instance in a folder of its own, and that many small curated files with labels in four columns; prints one line
of JSON. Times are in seconds, those of `register` alone: files are written before.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scdataloader.curate.outcome import Outcome
from scdataloader.curate.recipe import Recipe

LABELS = {
    "cell_type_ontology_term_id": ["CL:0000084", "CL:0000236", "CL:0000540", "CL:0000097", "CL:0000625", "CL:0000900"],
    "tissue_ontology_term_id": ["UBERON:0000955", "UBERON:0000178", "UBERON:0002048"],
    "disease_ontology_term_id": ["PATO:0000461", "MONDO:0005148"],
    "sex_ontology_term_id": ["PATO:0000383", "PATO:0000384"],
}
N_CELLS, N_GENES = 100, 200


def outcome(folder: Path, number: int) -> Outcome:
    """A curated file with some of the labels, and what its curation would say of it."""
    rng = np.random.default_rng(number)
    obs = pd.DataFrame(
        {column: pd.Categorical(rng.choice(ids, N_CELLS)) for column, ids in LABELS.items()},
        index=[f"cell{cell}" for cell in range(N_CELLS)],
    )
    x = csr_matrix(rng.poisson(1.0, (N_CELLS, N_GENES)).astype(np.float32))
    path = folder / f"{number:05d}.h5ad"
    ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"ENSG{gene:011d}" for gene in range(N_GENES)])).write_h5ad(path)
    return Outcome(
        source=f"raw/{path.name}",
        content=hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest(),
        recipe="0" * 32,
        status="kept",
        reason="",
        n_cells_in=N_CELLS,
        n_cells_out=N_CELLS,
        n_genes_in=N_GENES,
        n_genes_out=N_GENES,
        output=path,
        labels={column: sorted(obs[column].unique()) for column in LABELS},
        organism="NCBITaxon:9606",
        seconds=0.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--db", help="an empty Postgres database; default: SQLite")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        # before lamindb is imported, which reads them then
        os.environ["LAMIN_SETTINGS_DIR"] = root
        os.environ |= {"AWS_MAX_ATTEMPTS": "1", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
        os.chdir(root)
        from scdataloader.curate.register import register
        from scdataloader.instance import init

        measured: dict[str, Any] = {"files": options.files, "db": "postgres" if options.db else "sqlite"}
        start = time.perf_counter()
        init("db", db=options.db)
        measured["init_s"] = round(time.perf_counter() - start, 2)
        folder = Path("db/curated").absolute()
        folder.mkdir()
        outcomes = [outcome(folder, number) for number in range(options.files)]
        for name in ("first_s", "unchanged_s"):
            start = time.perf_counter()
            done = register(outcomes, key="my/atlas", recipe=Recipe())
            measured[name] = round(time.perf_counter() - start, 2)
        assert (done.n_members, done.n_new, done.is_new) == (options.files, 0, False)
        print(json.dumps(measured))


if __name__ == "__main__":
    main()
