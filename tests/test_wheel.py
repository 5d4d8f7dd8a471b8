"""The wheel has the whole package, which runs from it in an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

ROOT = Path(__file__).parents[1]
IGNORED = {"__pycache__"}


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (made,) = folder.iterdir()
    return made


def test_the_wheel_has_the_files_of_the_package_and_no_others(wheel):
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "scdataloader").rglob("*")
        if path.is_file() and not IGNORED & set(path.parts)
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        (entries,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        assert "Requires-Python: >=3.11" in archive.read(metadata).decode()
        assert "scdataloader = scdataloader.commands.main:main" in archive.read(entries).decode()
        assert any(name.endswith("/LICENSE") for name in archive.namelist())
    assert names == files
    assert wheel.stat().st_size < 8_000_000


def test_the_command_runs_from_the_wheel(wheel, tmp_path):
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", installed, wheel)
    obs = pd.DataFrame({"cell_type": ["B cell", "T cell", "T cell"]}, index=["a", "b", "c"])
    genes = pd.DataFrame(index=["ENSG00000139618", "ENSG00000141510"])
    counts = csr_matrix(np.array([[1, 0], [0, 2], [3, 4]], np.float32))
    cells = ad.AnnData(counts, obs=obs, var=genes, uns={"organism_ontology_term_id": "NCBITaxon:9606"})
    cells.write_h5ad(empty / "three.h5ad")
    environment = os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "100", "NO_COLOR": "1"}
    options = {"cwd": empty, "env": environment}
    where = run(sys.executable, "-c", "import scdataloader; print(scdataloader.__file__)", **options)
    assert Path(where.strip()).is_relative_to(installed)
    shown = run(
        sys.executable, installed / "bin" / "scdataloader", "inspect", "three.h5ad", "--by", "cell_type", **options
    )
    assert "T cell" in shown
