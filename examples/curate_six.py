"""Curate six public files, each with its own defects, into one collection.

    python examples/curate_six.py DATA GENES [--out curated] [--collection atlas/six]

DATA contains the six files of `FILES`, GENES the gene tables of three organisms (``genes_homo_sapiens.csv.gz`` and so
on: id and symbol in the first two columns). With --collection, the files are registered in the connected lamindb
instance. Running it again skips finished files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scdataloader.curation import Curator, Outcome, Recipe, Rule
from scdataloader.lamin import curate_into

LABEL = "cell_type_ontology_term_id"
FILES = {
    "human_cd4_perturb.h5ad": "organism in uns; no cell types",
    "human_gut_scp1884.h5ad": "symbols, some with an id at the end; no organism; the authors' own cell types",
    "human_placenta_cl22.h5ad": "symbols; no organism; a deprecated term",
    "mouse_10x10k_unlabelled.h5ad": "no labels at all",
    "mouse_brain_merfish.h5ad": "ids in a column of var, numbers for names",
    "worm_l2.h5ad": "ids of another kind; the authors' own cell types",
}
"""The files and their defects."""


def recipe(genes: Path) -> Recipe:
    """The recipe, with rules for four of the files."""
    return Recipe(
        genes={
            "human": str(genes / "genes_homo_sapiens.csv.gz"),
            "mouse": str(genes / "genes_mus_musculus.csv.gz"),
            "worm": str(genes / "genes_caenorhabditis_elegans.csv.gz"),
        },
        before=["curate_six_hooks:author_labels"],
        min_counts_per_cell=1,
        rules={
            "human_gut*": Rule(organism="human", constants={"tissue_ontology_term_id": "intestine"}),
            "human_placenta*": Rule(organism="human", columns={"tissue": "tissue_ontology_term_id"}),
            "human_cd4*": Rule(constants={LABEL: "CD4-positive, alpha-beta T cell"}),
            "mouse_brain*": Rule(genes="ensembl_id"),
        },
    )


def curate(data: Path, genes: Path, out: Path, collection: str | None) -> list[Outcome]:
    """Curate the files; returns the outcome of each."""
    curator, files = Curator(out=out, recipe=recipe(genes)), [data / name for name in FILES]
    return curator.run(files) if collection is None else curate_into(collection, curator, files)


def main() -> None:
    """Curate and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("genes", type=Path)
    parser.add_argument("--out", type=Path, default=Path("curated"))
    parser.add_argument("--collection")
    given = parser.parse_args()
    for outcome in curate(given.data, given.genes, given.out, given.collection):
        name = Path(outcome.source).name
        print(f"{name}: {FILES[name]}")
        print(f"  {outcome.status} {outcome.reason}: {outcome.n_cells_out:,} of {outcome.n_cells_in:,} cells")
        for note in outcome.notes:
            print(f"  {note}")


if __name__ == "__main__":  # worker processes import this file
    main()
