"""`scdataloader instance`, each time in a process of its own: no network, and no instance mistaken for another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.s3 import s3_server


@pytest.fixture
def instance(tmp_path: Path):
    """Runs the command in a folder, with settings that no other test sees; gives exit code, output and errors."""
    (tmp_path / "work").mkdir()
    path = str(Path(__file__).parents[2])

    def run(*words: str, cwd: Path = tmp_path / "work", user: str = "one") -> tuple[int, str, str]:
        environment = {**os.environ, "LAMIN_SETTINGS_DIR": str(tmp_path / user), "PYTHONPATH": path}
        command = [sys.executable, "-m", "scdataloader", "instance", *words]
        done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.slow
def test_from_nothing_to_terms(instance, tmp_path: Path) -> None:
    code, out, err = instance("init", "--storage", "db")
    assert (code, err) == (0, "")
    name = re.match(r"anonymous/(db-[0-9a-f]{8}) is ready", out)[1]
    assert instance("init", "--storage", "db")[1] == out, "the same call again connects"
    other = tmp_path / "other"
    other.mkdir()
    code, _, err = instance("init", "--storage", "db", "--name", name, cwd=other)
    assert code == 2
    assert f"the instance anonymous/{name} exists, with its storage in {tmp_path / 'work' / 'db'}" in err
    assert not (other / "db").exists()
    code, _, err = instance("init", "--storage", str(tmp_path / "work" / "db"), cwd=other, user="another")
    assert (code, err.count("\n")) == (2, 1)
    assert "is the storage of another instance" in err
    assert instance("connect", name, cwd=other)[0] == 0
    code, out, err = instance("import-ontologies", "Organism", "Ethnicity", cwd=other)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"Organism: 25 terms, 25 new in .* s\nEthnicity: ([0-9]+) terms, \1 new in .* s\n", out)
    assert re.fullmatch(r"Ethnicity: [0-9]+ terms, none new\n", instance("import-ontologies", "Ethnicity")[1])
    (other / "genes.csv").write_text("ENSG00000141510,TP53\n")
    code, out, err = instance("import-genes", "human", "genes.csv", cwd=other)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"Gene: 1 genes of human, 1 new in .* s\n", out)
    code, _, err = instance("import-ontologies", "Tissue", "--online")
    assert code == 2
    assert "bionty.Tissue.import_source() cannot download its terms" in err
    assert "`scdataloader instance import-ontologies Tissue`" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["connect", "nowhere"], "no lamindb instance anonymous/nowhere is known here"),
        (["import-ontologies", "Organism"], "no lamindb instance is connected here; make one with"),
        (["import-genes", "humn", "genes.csv"], "unknown organism 'humn' (did you mean 'human'?)"),
        (["import-ontologies", "Celltype"], "no registry 'Celltype' (did you mean 'CellType'?)"),
        (["init", "--storage", "s3://bucket"], "s3://bucket is not a local folder"),
        (["init", "--storage", "db", "--name", "a/b"], "'a/b' is not a valid name of an instance"),
        (
            ["init", "--storage", "db", "--db", "mysql://u:p@127.0.0.1/x"],
            "mysql://u:…@127.0.0.1/x is not the address",
        ),
        (
            ["init", "--storage", "db", "--db", "postgresql://u:p@db.lab.org/x"],
            "-L 5432:127.0.0.1:5432 db.lab.org",
        ),
        (
            ["init", "--storage", "db", "--db", "postgresql://u:p@127.0.0.1:9/x"],
            "does not answer (connection",
        ),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(instance, tmp_path: Path, words, message) -> None:
    code, out, err = instance(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.s3
def test_terms_come_from_where_bionty_has_them_online(instance, tmp_path: Path) -> None:
    """With a server on loopback in place of Amazon's, which has the table of the source that bionty uses."""
    code = (
        "import bionty\n"
        "source = bionty.Source.get(entity='bionty.Tissue', currently_used=True)\n"
        "print(f'df_{source.organism}__{source.name}__{source.version}__Tissue.parquet')\n"
    )
    table = pd.DataFrame(
        {
            "name": ["organ", "heart"],
            "definition": None,
            "synonyms": [None, "cor"],
            "parents": [[], ["UBERON:0000062"]],
        },
        index=pd.Index(["UBERON:0000062", "UBERON:0000948"], name="ontology_id"),
    )
    with s3_server():
        import boto3

        assert instance("init", "--storage", "db")[0] == 0
        environment = {**os.environ, "LAMIN_SETTINGS_DIR": str(tmp_path / "one")}
        said = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path / "work", capture_output=True, check=True
        )
        bucket = boto3.client("s3")
        bucket.create_bucket(Bucket="bionty-assets")
        name = said.stdout.decode().split()[-1]
        bucket.put_object(Bucket="bionty-assets", Key=name, Body=table.to_parquet(), ACL="public-read")
        code, out, err = instance("import-ontologies", "Tissue", "--online")
        assert code == 0, err
        assert re.search(r"^Tissue: 2 terms, 2 new in .* s$", out, re.MULTILINE)
        assert instance("import-ontologies", "Tissue", "--online")[1] == "Tissue: 2 terms, none new\n"
