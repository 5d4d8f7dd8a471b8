"""The code in docs/howto/ontologies.md runs on a file with its columns and gives the answers in its comments."""

from __future__ import annotations

import re
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scdataloader import registry

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "ontologies.md"

COLUMNS = {
    "cell_type_ontology_term_id": ["CL:0000084", "CL:0000897", "CL:0000236", "CL:0000003"],
    "tissue": ["liver", "blood", "liver", "blood"],
    "disease_ontology_term_id": ["PATO:0000461", "MONDO:0100096", "PATO:0000461", "MONDO:0005108"],
    "cell_type": ["blood cell", "glial cell", "glia", "cell"],
}


def test_all_code_runs_and_the_answers_are_those_in_the_comments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    Path("data").mkdir()
    obs = pd.DataFrame(COLUMNS, index=list("abcd")).iloc[np.arange(240) % 4].reset_index(drop=True)
    obs.index = obs.index.astype(str)
    var = pd.DataFrame(index=[f"ENSG{number:011d}" for number in range(5)])
    ad.AnnData(csr_matrix(np.ones((240, 5), np.float32)), obs, var).write_h5ad("data/cells.h5ad")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    answers = re.findall(r"^(cl\..*?)  # ('[^']*'|\{.*?\})", "".join(blocks), flags=re.MULTILINE)
    assert len(answers) == 4
    for code, answer in answers:
        assert eval(code, names) == eval(answer)
    assert len(names["cl"].ancestors("CL:0000084")) == 9
    dm = names["dm"]
    assert dm.classes == {"cell_type_ontology_term_id": 2, "tissue": 2}
    assert names["loss"](names["logits"], names["batch"]["labels"][:, 0]) > 0
