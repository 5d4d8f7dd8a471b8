"""The quickstart, with fewer epochs and splits than `make quickstart`: a real lamindb, over an earlier run, offline."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def blood(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import blood

    return blood


def run(folder, home):
    env = {key: value for key, value in os.environ.items() if not key.startswith(("LAMIN", "AWS"))}
    env |= {"HOME": str(home), "COLUMNS": "100"}
    command = [
        sys.executable,
        str(EXAMPLES / "quickstart.py"),
        "--epochs",
        "1",
        "--splits",
        "2",
        "--folder",
        str(folder),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=folder.parent)


@pytest.mark.slow
def test_it_trains_twice_and_compares(tmp_path):
    home = tmp_path / "home"
    earlier = tmp_path / "quickstart" / "data"
    for folder in (home, earlier):
        folder.mkdir(parents=True)
    for name in (".quickstart", "data/of an earlier run"):
        (tmp_path / "quickstart" / name).touch()
    done = run(tmp_path / "quickstart", home)
    assert done.returncode == 0, done.stderr
    recall = r" +(\d\.\d\d) ± \d\.\d\d"
    (scores,) = re.findall(rf"macro-F1 +346 +209{recall}{recall}", done.stdout)
    assert max(map(float, scores)) > 0.3  # ten classes: chance is below 0.1
    (natural, uniform) = zip(
        *re.findall(rf"(?:CD19\+ B|CD34\+|CD56\+ NK) +3 +\d+{recall}{recall}", done.stdout), strict=True
    )
    assert len(natural) == 3
    assert sum(map(float, uniform)) > sum(map(float, natural))
    assert "\x1b" not in done.stdout + done.stderr
    assert re.search(r"loader: [\d,]+ cells/s", done.stdout)
    assert not (earlier / "of an earlier run").exists()
    splits = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("quickstart/*/**/splits.json"))]
    assert len(splits) == 2
    assert splits[0] == splits[1]  # both are compared on the same cells
    assert "CL:0000451" in (tmp_path / "quickstart" / "report.html").read_text()
    assert not (home / ".lamin").exists()
    following = done.stdout.split("next:\n")[1]
    paths = re.findall(r"--(?:config|ckpt_path) (\S+)", following)
    assert len(paths) == 3  # two configurations and a checkpoint
    assert all(Path(path).is_file() for path in paths)


def test_a_folder_of_the_user_is_left_alone(tmp_path):
    folder = tmp_path / "quickstart"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    done = run(folder, tmp_path)
    assert done.returncode == 1
    assert "was not written by the quickstart" in done.stderr
    assert (folder / "mine.txt").read_text() == "mine"


def test_the_counts_are_counts(blood):
    cells = blood.blood()
    assert cells.shape == (700, 765)
    assert (cells.X.data == np.round(cells.X.data)).all()
    assert cells.X.data.min() == 1
    assert cells.obs["cell_type_ontology_term_id"].value_counts().to_dict()["CL:0000895"] == 8
    assert not cells.obs["cell_type_ontology_term_id"].isna().any()


def test_what_are_no_counts_is_refused(blood):
    with pytest.raises(ValueError, match=r"value 1 would be a count of 1\.5"):
        blood.recover_counts(csr_matrix(np.log1p([[2.0, 3.0, 4.0]])))


def test_splits_have_few_training_cells_of_rare_types(blood):
    obs = blood.blood().obs
    columns = [f"split_{number}" for number in range(blood.N_SPLITS)]
    for column in columns:
        train = obs["bulk_labels"][obs[column] == "train"].value_counts()
        assert (train[list(blood.RARE)] == blood.N_RARE).all()
        parts = obs.groupby([obs["bulk_labels"].isin(blood.RARE), obs[column]], observed=True).size()
        assert "left out" not in parts[False]
        assert {"train", "val", "test", "left out"} == set(parts[True].index)
    assert len({tuple(obs[column]) for column in columns}) == blood.N_SPLITS


def test_a_wrong_term_is_refused(blood, monkeypatch):
    monkeypatch.setitem(blood.CELL_TYPES, "CD34+", ("CL:0000037", "hematopoietic precursor cell"))
    with pytest.raises(
        ValueError, match=r"CL:0000037 is 'hematopoietic stem cell' .*, not 'hematopoietic precursor cell'"
    ):
        blood.check_cell_types()


def test_the_three_datasets_differ_in_genes_and_order(blood, tmp_path):
    import anndata as ad

    paths = blood.write_datasets(tmp_path / "blood")
    parts = [ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path) for path in paths]
    assert sorted(path.suffix for path in paths) == [".h5ad", ".h5ad", ".zarr"]
    assert sum(part.n_obs for part in parts) == 700
    assert [part.n_vars for part in parts] == [765, 726, 688]
    assert not any(part.var_names.is_monotonic_increasing for part in parts)
    assert {part.uns["organism_ontology_term_id"] for part in parts} == {"NCBITaxon:9606"}
