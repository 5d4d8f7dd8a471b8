"""Curate a folder of CELLxGENE datasets: primary cells of 10x assays, with current terms.

    python examples/curate_cellxgene.py DOWNLOADS [--out curated] [--collection atlas/cellxgene]

Such files have Ensembl ids, raw counts in ``raw`` where ``X`` is normalised, and ontology terms in the standard
columns. They differ in the release of the terms, and the same cells occur in several datasets.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scdataloader.curation import Curator, Outcome, Recipe
from scdataloader.lamin import curate_into

RECIPE = Recipe(
    primary_only=True,
    assays=["10x transcription profiling"],
    required=["cell_type_ontology_term_id", "donor_id"],
    min_genes_per_cell=20,
    min_cells_per_file=50,
    compression="lzf",
)
"""Real atlases need several hundred genes per cell, and thousands of cells per file."""


def curate(downloads: Path, out: Path, collection: str | None = None) -> list[Outcome]:
    """Curate all files of a folder; returns the outcome of each."""
    curator, files = Curator(out=out, recipe=RECIPE), downloads / "*.h5ad"
    return curator.run(files) if collection is None else curate_into(collection, curator, files)


def main() -> None:
    """Curate, print the outcomes, and exit with 1 if a file failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("downloads", type=Path)
    parser.add_argument("--out", type=Path, default=Path("curated"))
    parser.add_argument("--collection")
    given = parser.parse_args()
    outcomes = curate(given.downloads, given.out, given.collection)
    for outcome in outcomes:
        cells = f"{outcome.n_cells_out:,} of {outcome.n_cells_in:,} cells"
        print(f"{Path(outcome.source).name}: {outcome.status}, {outcome.reason or cells}")
    sys.exit(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":  # worker processes import this file
    main()
