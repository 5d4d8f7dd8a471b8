"""``scdataloader curate``."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import pandas as pd
import pytest

import scdataloader as scd
from scdataloader.commands.main import main
from scdataloader.curation.ledger import LEDGER
from scdataloader.curation.report import REPORT
from scdataloader.lamin import import_genes
from tests.curation.helpers import IDS, cells, raw, table, written

pytestmark = pytest.mark.filterwarnings("default")  # of libraries in worker processes

REPO = Path(__file__).parents[2]
HOOKS = """
import os, time

def linger(block):
    if block.n_obs == 7 and not os.path.exists("go on"):
        time.sleep(600)
    return block
"""


@pytest.fixture
def working(tmp_path, monkeypatch):
    """A working directory with hooks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "curate_hooks_of_commands.py").write_text(HOOKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("curate_hooks_of_commands", None)


def outputs(folder):
    """Curated files of a folder, with their times."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5ad")}


def test_without_out_files_go_to_the_folder_of_the_collection(tmp_path, lamin):
    (path,) = raw(tmp_path / "raw", 1)
    assert main(["curate", str(path), "--collection", "tests/placed", "--processes", "1"]) == 0
    storage = Path(lamin.settings.storage.root_as_str)
    assert (storage / "curated" / "tests" / "placed" / "0.h5ad").exists()
    assert len(scd.Collection.open("lamindb:tests/placed")) == 10


def test_genes_of_the_instance_without_a_collection(working, lamin):
    import bionty

    raw(working / "raw", 1)
    bionty.Gene.objects.all().delete()
    import_genes("human", table(working))
    try:
        assert main(["curate", "raw/*.h5ad", "--out", "out", "--genes.human", "bionty", "--processes", "1"]) == 0
    finally:
        bionty.Gene.objects.all().delete()
    assert list(ad.read_h5ad("out/0.h5ad").var["symbol"])[:2] == ["TP53", "CD4"]
    assert len(list(Path("out/genes").iterdir())) == 1


def test_the_command_reads_yaml_and_tells_of_all_files(working, capsys):
    raw(working / "raw", 2)
    (working / "raw" / "bad.h5ad").write_text("no file of ours")
    Path("curate.yaml").write_text(
        f"genes: {{human: {table(working)}}}\n"
        "min_genes_per_cell: 2\n"
        "out: not the one that the command line names\n"
        "rules:\n"
        '  "1*": {organism: human, constants: {donor_id: d7}}\n'
    )
    command = ["curate", "raw/*.h5ad", "--out", "out", "--config", "curate.yaml", "--processes", "1"]
    with pytest.raises(SystemExit) as done:
        main([*command, "--compression", "gzip"])
    assert done.value.code == 1
    said = capsys.readouterr()
    assert re.search(r"│ bad.h5ad +│ failed +│", said.out)
    assert f"2 kept, 0 dropped, 1 failed; 20 cells kept; full report: {working}/out/report.csv" in said.out
    assert "warning: raw/bad.h5ad failed: " in said.err
    found = ad.read_h5ad("out/1.h5ad")
    assert set(found.obs["donor_id"]) == {"d7"}
    assert list(found.var["symbol"])[:2] == ["TP53", "CD4"]
    (working / "raw" / "bad.h5ad").unlink()
    assert main([*command, "--compression", "gzip"]) == 0
    assert "finished before: 2 of 2 files" in capsys.readouterr().err


def test_lost_and_lacking_labels_are_shown(working, capsys):
    """Labels of the last schema, a column that loses all labels, and files of which one lacks a column."""
    stage, sex = "development_stage_ontology_term_id", "sex_ontology_term_id"
    Path("raw").mkdir()
    old = ["HsapDv:0000087"] * 6 + ["HsapDv:0000088"] * 3 + ["adult"]
    written(Path("raw/a.h5ad"), cells(IDS, **{stage: old, sex: "PATO:0000383"}))
    written(Path("raw/b.h5ad"), cells(IDS, seed=1, **{stage: "grown up"}))
    recipe = f"{{{stage}: [HsapDv], {sex}: [PATO]}}"
    assert main(["curate", "raw/*.h5ad", "--out", "out", "--labels", recipe, "--processes", "1"]) == 0
    shown = capsys.readouterr()
    assert f"{stage}: 14 of 20 cells became unknown: 10 'grown up', 3 'HsapDv:0000088' (consider Hs" in shown.out
    assert "), 1 'adult'" in shown.out
    assert f"warning: {stage}: all labels became unknown in raw/b.h5ad; " in shown.err
    assert f"warning: no {sex} in 1 of 2 files (raw/b.h5ad); " in shown.err
    assert set(ad.read_h5ad("out/a.h5ad").obs[stage]) == {"HsapDv:0000258", "unknown"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--min_cells_per_file", "many"], "min_cells_per_file"),
        (["--processes", "0"], "error: processes must be 1 or more, not 0"),
        (["--genes", '{"human": "gone.csv"}'], "error: the recipe names gone.csv, which does not exist"),
    ],
)
def test_wrong_options(working, capsys, options, why):
    try:
        code = main(["curate", str(raw(working / "raw", 1)[0]), "--out", "out", *options])
    except SystemExit as done:
        code = done.code
    assert code == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "error: no output: give --out"),
        (["--out", "x", "--storage", "s3://b"], "error: --storage s3://b is only used for a collection"),
    ],
)
def test_options_that_do_not_go_together(working, capsys, options, why):
    assert main(["curate", "a.h5ad", *options]) == 2
    assert why in capsys.readouterr().err


def test_a_command_leaves_nothing_behind_to_complain_of(working):
    cells(IDS).write_zarr(working / "a.zarr")  # zarr's codecs have a semaphore, in each process
    command = [sys.executable, "-m", "scdataloader", "curate", "a.zarr", "--out", "out"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(REPO)}
    )
    assert done.stderr == ""


@pytest.mark.slow
def test_an_interrupted_command_goes_on(working):
    raw(working / "raw", 2)
    written(working / "raw" / "1.h5ad", cells(IDS, 7))
    # a process that was started in the background of a shell, and what it starts, would not hear of an interrupt
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", f"from scdataloader.commands.main import main; {code}"]
    command += ["curate", "raw/*.h5ad", "--out", "out", "--processes", "1"]
    env = os.environ | {"PYTHONPATH": str(REPO)}
    hook = ["--after", "[curate_hooks_of_commands:linger]"]
    with subprocess.Popen([*command, *hook], stderr=subprocess.PIPE, text=True, env=env) as process:
        while not (working / "out" / "0.h5ad").exists():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    assert process.returncode == 130
    assert said.splitlines()[-2:] == [
        "interrupted",
        "finished files are kept: run the same command again to continue",
    ]
    assert sorted(path.name for path in (working / "out").iterdir()) == ["0.h5ad", LEDGER, REPORT]
    assert list(pd.read_csv(working / "out" / REPORT)["source"]) == ["raw/0.h5ad"]
    (working / "curate_hooks_of_commands.py").write_text(HOOKS)  # the same, written anew
    (working / "go on").touch()
    before = outputs(working / "out")
    done = subprocess.run([*command, *hook], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    now = outputs(working / "out")
    assert set(now) == {"0.h5ad", "1.h5ad"}
    assert now["0.h5ad"] == before["0.h5ad"]
