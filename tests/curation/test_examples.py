"""The example scripts: six real files, each wrong in its own way, and a folder as CELLxGENE has it."""

import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdataloader as scd

EXAMPLES = Path(__file__).parents[2] / "examples"
LABEL = "cell_type_ontology_term_id"

pytestmark = [
    pytest.mark.filterwarnings("default"),  # of libraries in processes of their own
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def curate_six(real_data, tmp_path_factory):
    """Curates the six files, into one folder for all tests, and perhaps into a collection."""
    sys.path.insert(0, str(EXAMPLES))
    from curate_six import curate

    out = tmp_path_factory.mktemp("six")
    yield lambda collection: curate(real_data, real_data.parent / "genes", out, collection)
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def six(curate_six):
    """What becomes of the six files."""
    return {Path(one.source).name: one for one in curate_six(None)}


def test_the_six_files_are_kept(six):
    assert [(name, one.status, one.organism) for name, one in six.items()] == [
        ("human_cd4_perturb.h5ad", "kept", "NCBITaxon:9606"),
        ("human_gut_scp1884.h5ad", "kept", "NCBITaxon:9606"),
        ("human_placenta_cl22.h5ad", "kept", "NCBITaxon:9606"),
        ("mouse_10x10k_unlabelled.h5ad", "kept", "NCBITaxon:10090"),
        ("mouse_brain_merfish.h5ad", "kept", "NCBITaxon:10090"),
        ("worm_l2.h5ad", "kept", "NCBITaxon:6239"),
    ]
    assert [one.n_cells_in - one.n_cells_out for one in six.values()] == [0, 0, 0, 1, 0, 0]  # one is all zero


def test_what_was_wrong_with_each_is_mended(six):
    found = {name: ad.read_h5ad(one.output) for name, one in six.items()}
    for name, prefix in (("human_gut_scp1884", "ENSG"), ("mouse_brain_merfish", "ENSMUSG"), ("worm_l2", "WBGene")):
        assert found[f"{name}.h5ad"].var_names.str.startswith(prefix).all()
    gut = found["human_gut_scp1884.h5ad"]
    assert set(gut.obs[LABEL][gut.obs["Celltype"] == "T cells CD4 FOSB"]) == {"CL:0000624"}
    assert set(gut.obs[LABEL][gut.obs["Celltype"] == "T cells OGT"]) == {"CL:0000084"}
    assert set(gut.obs["tissue_ontology_term_id"]) == {"UBERON:0000160"}
    placenta = found["human_placenta_cl22.h5ad"]
    assert "CL:0000003" not in set(placenta.obs[LABEL])
    assert set(found["worm_l2.h5ad"].obs[LABEL]) == {"CL:0000540", "CL:0000101", "CL:0000099"}
    assert LABEL not in found["mouse_10x10k_unlabelled.h5ad"].obs


def test_counts_are_those_of_the_files(six, real_data):
    before = ad.read_h5ad(real_data / "mouse_brain_merfish.h5ad")
    after = ad.read_h5ad(six["mouse_brain_merfish.h5ad"].output)
    before.var_names = before.var["ensembl_id"].astype(str)
    np.testing.assert_array_equal(after.X.toarray(), before[:, after.var_names].X.toarray())


def test_they_are_one_collection(six):
    collection = scd.Collection.open([one.output for one in six.values()])
    assert len(collection) == sum(one.n_cells_out for one in six.values())
    assert [part.genes.n_dropped for part in collection.parts] == [0] * 6


def test_they_are_a_collection_of_lamindb(six, curate_six, lamin):
    again = curate_six("tests/six")  # nothing is left to do but to register
    assert [one.output for one in again] == [one.output for one in six.values()]
    collection = scd.Collection.open("lamindb:tests/six", where={"cell_types": "T cell and below"})
    assert 500 < len(collection) < 1000
    assert {part.organism for part in collection.parts} == {"NCBITaxon:9606"}
    assert len(lamin.Collection.get(key="tests/six").ordered_artifacts.all()) == 6


def cellxgene(folder):
    """Three datasets of blood cells: an old one, one with the cells of another, one of another assay."""
    from blood import blood

    folder.mkdir()
    cells = blood()
    genes = pd.Index([f"ENSG{number:011d}" for number in range(cells.n_vars)])
    cells.var = pd.DataFrame({"feature_name": cells.var_names, "feature_is_filtered": False}, index=genes)
    cells.obs["donor_id"], cells.obs["is_primary_data"] = "d1", True
    cells.obs["assay_ontology_term_id"], cells.obs["disease_ontology_term_id"] = "EFO:0009899", "PATO:0000461"
    cells.uns["schema_version"] = "5.2.0"
    counts = cells.copy()
    cells.X = cells.X.log1p()
    cells.raw = counts
    old = cells[:400].copy()
    old.obs[LABEL] = old.obs[LABEL].replace("CL:0001201", "CL:0000003").replace("CL:0000623", "unknown")
    old.write_h5ad(folder / "old.h5ad")
    again = cells[:300].copy()
    again.obs["is_primary_data"] = False
    again.write_h5ad(folder / "again.h5ad")
    other = cells[400:].copy()
    other.obs["assay_ontology_term_id"] = ["EFO:0008931", *["EFO:0009922"] * 299]
    del other.obs["disease_ontology_term_id"]
    other.write_h5ad(folder / "other.h5ad")
    return counts


def test_a_folder_as_cellxgene_has_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    counts = cellxgene(tmp_path / "downloads")
    command = [sys.executable, str(EXAMPLES / "curate_cellxgene.py"), str(tmp_path / "downloads")]
    env = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "again.h5ad: dropped, 0 cells are left, fewer than the minimum of 50; cells of non-primary data, dropped: 300",
        "old.h5ad: kept, 400 of 400 cells",
        "other.h5ad: kept, 299 of 300 cells",
    ]
    old = ad.read_h5ad(tmp_path / "out" / "old.h5ad")
    expected = counts[old.obs_names].obs[LABEL].replace("CL:0001201", "CL:0000000").replace("CL:0000623", "unknown")
    assert old.obs[LABEL].tolist() == expected.tolist()
    np.testing.assert_array_equal(old.X.toarray(), counts[old.obs_names].X.toarray())
    assert old.var["symbol"].tolist() == counts.var["feature_name"].tolist()
    assert "pct_counts_mt" in old.obs
