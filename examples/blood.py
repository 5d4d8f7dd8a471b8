"""700 real blood cells as three datasets with different genes, in their own lamindb instance.

The cells are part of scanpy (`scanpy.datasets.pbmc68k_reduced`, from the peripheral blood of one donor: Zheng et al.,
Nature Communications 2017). They are log-normalised, so the counts have to be recovered. No network is needed.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

COLLECTION = "quickstart/blood"
CELL_TYPES = {
    "CD14+ Monocyte": ("CL:0001054", "CD14-positive monocyte"),
    "CD19+ B": ("CL:0001201", "B cell, CD19-positive"),
    "CD34+": ("CL:0008001", "hematopoietic precursor cell"),
    "CD4+/CD25 T Reg": ("CL:0000792", "CD4-positive, CD25-positive, alpha-beta regulatory T cell"),
    "CD4+/CD45RA+/CD25- Naive T": ("CL:0000895", "naive thymus-derived CD4-positive, alpha-beta T cell"),
    "CD4+/CD45RO+ Memory": ("CL:0000897", "CD4-positive, alpha-beta memory T cell"),
    "CD56+ NK": ("CL:0000623", "natural killer cell"),
    "CD8+ Cytotoxic T": ("CL:0000794", "CD8-positive, alpha-beta cytotoxic T cell"),
    "CD8+/CD45RA+ Naive Cytotoxic": ("CL:0000900", "naive thymus-derived CD8-positive, alpha-beta T cell"),
    "Dendritic": ("CL:0000451", "dendritic cell"),
}
"""{label of the authors: (id, name) in the Cell Ontology}."""
RARE = ("CD19+ B", "CD34+", "CD56+ NK")
"""Cell types of which only `N_RARE` cells are for training, as many types of an atlas have few among many others."""
N_RARE = 3
N_SPLITS = 5

# The logarithms are stored with three decimals, which changes a count of 250 by up to 0.15.
TOLERANCE = 0.2


def recover_counts(log_normalised: csr_matrix) -> csr_matrix:
    """Recover counts from ``log1p`` of counts scaled per cell; the smallest value of a cell is a count of one.

    Raises:
        ValueError: the results are not whole numbers.
    """
    x = csr_matrix(log_normalised, copy=True)
    scaled = np.expm1(x.data.astype(np.float64))
    counts = scaled / np.repeat(np.minimum.reduceat(scaled, x.indptr[:-1]), np.diff(x.indptr))
    off = np.abs(counts - np.round(counts))
    if off.max() > TOLERANCE:
        worst = int(off.argmax())
        raise ValueError(f"not log-normalised counts: value {worst} would be a count of {counts[worst]:.3f}")
    x.data = np.round(counts).astype(np.float32)
    return x


def check_cell_types() -> None:
    """Check the ids and names of `CELL_TYPES`.

    Raises:
        ValueError: an id has another name in the Cell Ontology, or is deprecated.
    """
    from cellxgene_ontology_guide.ontology_parser import OntologyParser

    ontology = OntologyParser()
    for term, name in CELL_TYPES.values():
        if ontology.get_term_label(term) != name or ontology.is_term_deprecated(term):
            raise ValueError(f"{term} is {ontology.get_term_label(term)!r} in the Cell Ontology, not {name!r}")


def split(labels: pd.Series, seed: int) -> pd.Categorical:
    """Of each cell type 30 % for test, 10 % for validation, and the rest for training, at random.

    Of a rare type, training cells but `N_RARE` are "left out".
    """
    rng = np.random.Generator(np.random.Philox(seed))
    parts = pd.Series("train", labels.index)
    for label, cells in labels.groupby(labels):
        order = rng.permutation(cells.index)
        n_test, n_val = round(0.3 * len(order)), round(0.1 * len(order))
        parts[order[:n_test]] = "test"
        parts[order[n_test : n_test + n_val]] = "val"
        if label in RARE:
            parts[order[n_test + n_val + N_RARE :]] = "left out"
    return pd.Categorical(parts)


def blood() -> ad.AnnData:
    """700 cells x 765 genes: counts, the authors' labels, Cell Ontology ids, and five splits."""
    import scanpy as sc

    check_cell_types()
    raw = sc.datasets.pbmc68k_reduced()
    labels = raw.obs["bulk_labels"].astype(str)
    obs = pd.DataFrame(
        {
            "bulk_labels": labels.astype("category"),
            "cell_type_ontology_term_id": labels.map({label: term for label, (term, _) in CELL_TYPES.items()}),
            "phase": raw.obs["phase"],
        }
    )
    for number in range(N_SPLITS):
        obs[f"split_{number}"] = split(labels, number)
    cells = ad.AnnData(recover_counts(raw.raw.X), obs=obs, var=pd.DataFrame(index=raw.raw.var_names))
    cells.uns["organism_ontology_term_id"] = "NCBITaxon:9606"
    return cells


def write_datasets(folder: Path) -> list[Path]:
    """Write three files with a third of the cells each; they differ in their genes and in the order of genes."""
    cells = blood()
    rng = np.random.Generator(np.random.Philox(0))
    folder.mkdir(parents=True)
    paths = []
    for number, name in enumerate(("blood_a.h5ad", "blood_b.h5ad", "blood_c.zarr")):
        genes = rng.permutation(cells.n_vars)[: int(cells.n_vars * (1.0, 0.95, 0.9)[number])]
        part = cells[number::3, genes].copy()
        path = folder / name
        if path.suffix == ".zarr":
            part.write_zarr(path)
        else:
            part.write_h5ad(path, compression="gzip" if number else None)
        paths.append(path)
    return paths


def lamindb_settings(folder: Path) -> dict[str, str]:
    """Environment variables with which lamindb writes to ``folder`` only and does not use the network."""
    return {
        "LAMIN_SETTINGS_DIR": str(folder),  # instead of the home directory
        "LAMIN_CACHE_DIR": str(folder / "cache"),
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",  # a closed port
    }


def register(folder: Path) -> tuple[str, list[Path]]:
    """Create a SQLite instance of lamindb in ``folder``, write the datasets into it, and register them.

    The environment variables of `lamindb_settings` have to be set before.

    Returns:
        The instance, as in LAMIN_CURRENT_INSTANCE, and the paths of the datasets.
    """
    import lamindb_setup

    lamindb_setup.logger.set_verbosity(0)  # it colours its messages even where no terminal shows them
    before = Path.cwd()
    os.chdir(folder)  # lamindb connects the working directory to the instance
    try:
        # a known name would connect to an existing instance instead
        lamindb_setup.init(storage=str(folder / "lamindb"), name=f"quickstart-{uuid.uuid4().hex[:8]}")
    finally:
        os.chdir(before)
    import lamindb as ln

    # files in the storage of the instance are registered in place
    paths = write_datasets(folder / "lamindb" / "blood")
    artifacts = [ln.Artifact(path, description="blood cells of one donor, Zheng et al. 2017").save() for path in paths]
    ln.Collection(artifacts, key=COLLECTION).save()
    return str(ln.setup.settings.instance.slug), paths
