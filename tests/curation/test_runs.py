"""Many files: in processes, once each, whatever happens to some of them."""

import csv
import os
import re
import shutil
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
from scdataloader.curation import Curator, Recipe, Rule
from scdataloader.curation.ledger import LEDGER
from scdataloader.curation.report import REPORT
from tests.curation.helpers import IDS, cells, raw, table, written

pytestmark = pytest.mark.filterwarnings("default")  # of libraries in processes of their own

REPO = Path(__file__).parents[2]


def statuses(outcomes):
    return [(Path(one.source).name, one.status) for one in outcomes]


def outputs(folder):
    """What lies in a folder of curated files, with the times of the files."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5ad")}


# --- runs -------------------------------------------------------------------------------------------------------------


def test_runs_skip_what_is_done_and_one_file_does_not_stop_the_others(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "scdataloader")
    monkeypatch.chdir(tmp_path)
    paths = raw(tmp_path / "raw")
    (tmp_path / "raw" / "bad.h5ad").write_text("no file of ours")
    twin = tmp_path / "raw" / "twin.h5ad"
    twin.write_bytes(paths[0].read_bytes())
    curator = Curator(out="out", processes=1)
    files = ["raw/*.h5ad", "raw/gone.h5ad"]
    expected = [
        ("0.h5ad", "kept"),
        ("1.h5ad", "kept"),
        ("2.h5ad", "kept"),
        ("bad.h5ad", "failed"),
        ("twin.h5ad", "dropped"),
    ]
    first = curator.run(files)
    assert statuses(first) == [*expected, ("gone.h5ad", "failed")]
    assert first[4].reason == "its content is that of raw/0.h5ad"
    assert first[5].reason == f"{tmp_path}/raw/gone.h5ad: No such file or directory"
    with Path("out/report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(Path(row["source"]).name, row["status"]) for row in rows] == statuses(first)
    assert rows[0]["cells_in"] == rows[0]["cells_out"] == "10"

    before = outputs(tmp_path / "out")
    caplog.clear()
    again = curator.run([f"{tmp_path}/raw/*.h5ad", "raw/gone.h5ad"])  # the same files, named otherwise
    assert statuses(again) == statuses(first)
    assert outputs(tmp_path / "out") == before
    assert "done before: 3 of 6 files" in caplog.text
    assert [one.n_cells_out for one in again] == [one.n_cells_out for one in first]

    os.utime(paths[1])  # touched: the content is the same
    written(paths[2], cells(IDS, seed=99))
    (tmp_path / "out" / "0.h5ad").unlink()
    curator.run(files)
    changed = outputs(tmp_path / "out")
    assert {name for name in before if changed[name] != before[name]} == {"0.h5ad", "2.h5ad"}

    # another rule concerns one file; and one that is dropped now leaves nothing of before
    rule = Rule(constants={"batch": "1"})
    Curator(out="out", recipe=Recipe(rules={"1.*": rule}), processes=1).run(files)
    once_more = outputs(tmp_path / "out")
    assert {name for name in changed if once_more[name] != changed[name]} == {"1.h5ad"}
    dropped = Curator(out="out", recipe=Recipe(min_cells_per_file=11)).run(files)
    assert {one.status for one in dropped} == {"dropped", "failed"}
    assert outputs(tmp_path / "out") == {}


def test_nothing_that_is_there_is_written_over(tmp_path):
    files = raw(tmp_path / "raw", 2)
    (tmp_path / "link").symlink_to(tmp_path / "raw")
    before = {path: path.read_bytes() for path in files}
    for out in ("raw", "link"):
        with pytest.raises(ValueError, match=r"0\.h5ad lies in .* or around it, where curated files are to go"):
            Curator(out=tmp_path / out).run(files)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.h5ad").write_text("mine")
    (tmp_path / "out" / "1.NCBITaxon_9606.h5ad").write_text("mine, too")
    outcomes = Curator(out=tmp_path / "out", progress=False).run(files)
    assert [outcome.status for outcome in outcomes] == ["failed", "failed"]
    assert "has 0.h5ad or parts of it already, which its curated.jsonl does not know" in outcomes[0].reason
    assert (tmp_path / "out" / "0.h5ad").read_text() == "mine"
    assert {path: path.read_bytes() for path in files} == before
    (tmp_path / "out" / "0.h5ad").unlink()
    again = Curator(out=tmp_path / "out", progress=False).run(files)
    assert [outcome.status for outcome in again] == ["kept", "failed"]


def test_moved_files_are_done_and_keep_their_outputs(tmp_path):
    paths = raw(tmp_path / "raw", 2)
    curator = Curator(out=tmp_path / "out", processes=1)
    curator.run(paths)
    before = outputs(tmp_path / "out")
    (tmp_path / "raw").rename(tmp_path / "data")
    (tmp_path / "data" / "1.h5ad").rename(tmp_path / "data" / "other.h5ad")
    again = curator.run(f"{tmp_path}/data/*.h5ad")
    assert outputs(tmp_path / "out") == before
    assert [one.output.name for one in again] == ["0.h5ad", "1.h5ad"]
    # with another recipe each is done again, in its place
    Curator(out=tmp_path / "out", recipe=Recipe(compression="gzip"), processes=1).run(f"{tmp_path}/data/*.h5ad")
    assert set(outputs(tmp_path / "out")) == set(before)
    # what takes the place of a file that was moved away is another one
    raw(tmp_path / "raw", 1)
    written(tmp_path / "raw" / "1.h5ad", cells(IDS, seed=50))
    assert [one.status for one in curator.run(f"{tmp_path}/raw/1.h5ad")] == ["kept"]
    assert set(outputs(tmp_path / "out")) == {*before, "1-2.h5ad"}


def test_files_with_the_same_content(tmp_path):
    (path,) = raw(tmp_path / "raw", 1)
    copy = shutil.copy(path, tmp_path / "raw" / "copy.h5ad")
    curator = Curator(out=tmp_path / "out", processes=1)
    assert [one.status for one in curator.run(copy)] == ["kept"]
    both = curator.run([path, copy])  # the one that was done goes first, whatever the order
    assert [(one.status, one.reason) for one in both] == [("dropped", f"its content is that of {copy}"), ("kept", "")]
    assert set(outputs(tmp_path / "out")) == {"copy.h5ad"}
    assert [one.status for one in curator.run(path)] == ["kept"]  # alone it is no copy
    # one that outlives the other takes its place
    assert [one.status for one in curator.run([path, copy])] == ["kept", "dropped"]
    moved = path.rename(tmp_path / "away.h5ad")
    assert [one.status for one in curator.run(copy)] == ["kept"]
    assert len(outputs(tmp_path / "out")) == 1
    moved.rename(path)
    # by rules of which each is for one of them they would come out otherwise
    recipe = Recipe(rules={"copy*": Rule(constants={"batch": "1"})})
    both = Curator(out=tmp_path / "out", recipe=recipe, processes=1).run([path, copy])
    assert [one.status for one in both] == ["kept", "failed"]
    assert f"its content is that of {path}, which another rule is for" in both[1].reason


def test_what_a_killed_run_has_replaced_is_not_taken_for_what_was_there(working):
    (path,) = raw(working / "raw", 1)
    curator = Curator(out="out", processes=1)
    curator.run(path)
    recipe = Recipe(min_cells_per_gene=1)
    code = (
        "import os\n"
        "from scdataloader.curation import Curator, Recipe, ledger\n"
        "if __name__ == '__main__':\n"
        "    noted = ledger.Ledger.note_outcomes\n"
        "    ledger.Ledger.note_outcomes = lambda self, path, all: os._exit(9) if all else noted(self, path, all)\n"
        f"    Curator(out='out', recipe=Recipe(min_cells_per_gene=1), processes=1).run({str(path)!r})\n"
    )
    (working / "killed.py").write_text(code)
    env = os.environ | {"PYTHONPATH": str(REPO)}
    assert subprocess.run([sys.executable, "killed.py"], check=False, env=env).returncode == 9
    of_other = ad.read_h5ad("out/0.h5ad").uns["curation"]["recipe"]
    assert of_other == recipe.for_file(path).hash
    (again,) = curator.run(path)
    assert ad.read_h5ad("out/0.h5ad").uns["curation"]["recipe"] == again.recipe != of_other


def test_an_output_that_was_cut_short_is_made_again(tmp_path):
    files = raw(tmp_path / "raw", 2)
    curator = Curator(out=tmp_path / "out", processes=1)
    before = [outcome.output.read_bytes() for outcome in curator.run(files)]
    (tmp_path / "out" / "1.h5ad").write_bytes(b"??")
    assert [outcome.output.read_bytes() for outcome in curator.run(files)] == before


def test_a_part_of_a_file_whose_process_was_killed_does_not_stay(working):
    mouse = [gene.replace("ENSG", "ENSMUSG") for gene in IDS]
    raw(working / "raw", 1)
    written(working / "raw" / "a.h5ad", cells([*IDS, *mouse], organism=["human", "mouse"] * 5))
    recipe = Recipe(mixed_organisms="split", after=["curate_hooks_of_runs:die_of_humans"])
    outcomes = Curator(out="out", recipe=recipe, processes=1).run("raw/a.h5ad")
    assert statuses(outcomes) == [("a.h5ad", "failed")]
    assert outputs(working / "out") == {}


def test_what_is_kept_is_registered_and_what_is_new_makes_a_version(tmp_path, lamin, caplog):
    caplog.set_level("INFO", "scdataloader")
    paths = raw(tmp_path / "raw")
    curator = Curator(out=tmp_path / "out", collection="tests/runs", processes=1)
    curator.run(paths[:2])
    curator.run(paths[:2])
    curator.run(paths)
    said = [record.getMessage() for record in caplog.records if "lamindb:tests/runs@" in record.getMessage()]
    assert [re.search(r"\(.*new", line)[0] for line in said] == [
        "(new): 2 artifacts, 2 new",
        "(as it was): 2 artifacts, 0 new",
        "(new): 3 artifacts, 1 new",
    ]
    assert len(scd.Collection.open("lamindb:tests/runs")) == 30


def test_a_collection_says_where_its_files_go(tmp_path, lamin):
    (outcome,) = Curator(collection="tests/placed", processes=1).run(raw(tmp_path / "raw", 1))
    storage = Path(lamin.settings.storage.root_as_str)
    assert outcome.output == storage / "curated" / "tests" / "placed" / "0.h5ad"
    assert len(scd.Collection.open("lamindb:tests/placed")) == 10


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "nothing says where curated files go"),
        ({"out": "x", "storage": "s3://b"}, "storage=s3://b is for what is registered"),
        *(
            ({"collection": key}, "is no key of a collection")
            for key in ("", "lamindb:a/b", "a/../b", "a//b", "/a", "a ")
        ),
    ],
)
def test_curators_that_make_no_sense(options, why):
    with pytest.raises(ValueError, match=why):
        Curator(**options)


HOOKS = """
import os, signal, time

def die(block):
    if block.n_obs == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if block.n_obs == 8:
        os._exit(3)
    return block

def linger(block):
    if block.n_obs == 7 and not os.path.exists("go on"):
        time.sleep(600)
    return block

def die_of_humans(block):
    if block.obs["organism"].iloc[0] == "human":
        os.kill(os.getpid(), signal.SIGKILL)
    return block

def disturb(block):
    path = "raw/1.h5ad"
    os.utime(path, ns=(5, 5))
    with open(path, "ab") as file:
        file.write(b" ")
    return block
"""


@pytest.fixture
def working(tmp_path, monkeypatch):
    """A working directory with hooks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "curate_hooks_of_runs.py").write_text(HOOKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("curate_hooks_of_runs", None)


def test_a_process_that_is_killed_is_a_failed_file(working):
    raw(working / "raw")
    written(working / "raw" / "0.h5ad", cells(IDS, 7))
    written(working / "raw" / "2.h5ad", cells(IDS, 8))
    curator = Curator(out="out", recipe=Recipe(after=["curate_hooks_of_runs:die"]), processes=1)
    outcomes = curator.run("raw/*.h5ad")
    assert statuses(outcomes) == [("0.h5ad", "failed"), ("1.h5ad", "kept"), ("2.h5ad", "failed")]
    assert (
        outcomes[0].reason
        == "its process was killed by SIGKILL, perhaps for want of memory: try fewer processes at once"
    )
    assert outcomes[2].reason == "its process ended with exit code 3; the traceback is on standard error"
    assert sorted(path.name for path in (working / "out").iterdir()) == ["1.h5ad", LEDGER, "report.csv"]


def test_a_file_that_changes_while_it_is_curated_fails(working):
    raw(working / "raw", 2)
    outcomes = Curator(out="out", recipe=Recipe(after=["curate_hooks_of_runs:disturb"]), processes=1).run("raw/*.h5ad")
    assert statuses(outcomes) == [("0.h5ad", "kept"), ("1.h5ad", "failed")]
    assert "changed or removed while it was curated" in outcomes[1].reason
    assert set(outputs(working / "out")) == {"0.h5ad"}


# --- the command ------------------------------------------------------------------------------------------------------


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
    assert f"2 kept, 0 dropped, 1 failed; 20 cells are kept; all of it: {working}/out/report.csv" in said.out
    assert "warning: raw/bad.h5ad failed: " in said.err
    found = ad.read_h5ad("out/1.h5ad")
    assert set(found.obs["donor_id"]) == {"d7"}
    assert list(found.var["symbol"])[:2] == ["TP53", "CD4"]
    (working / "raw" / "bad.h5ad").unlink()
    assert main([*command, "--compression", "gzip"]) == 0
    assert "done before: 2 of 2 files" in capsys.readouterr().err


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


def test_a_command_leaves_nothing_behind_to_complain_of(working):
    cells(IDS).write_zarr(working / "a.zarr")  # zarr's codecs have a semaphore, in each process
    command = [sys.executable, "-m", "scdataloader", "curate", "a.zarr", "--out", "out"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(REPO)}
    )
    assert done.stderr == ""


def test_an_interrupted_command_goes_on(working):
    raw(working / "raw", 2)
    written(working / "raw" / "1.h5ad", cells(IDS, 7))
    # a process that was started in the background of a shell, and what it starts, would not hear of an interrupt
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", f"from scdataloader.commands.main import main; {code}"]
    command += ["curate", "raw/*.h5ad", "--out", "out", "--processes", "1"]
    env = os.environ | {"PYTHONPATH": str(REPO)}
    hook = ["--after", "[curate_hooks_of_runs:linger]"]
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
        "files that are done are kept: give the same command again to go on",
    ]
    assert sorted(path.name for path in (working / "out").iterdir()) == ["0.h5ad", LEDGER, REPORT]
    assert list(pd.read_csv(working / "out" / REPORT)["source"]) == ["raw/0.h5ad"]
    (working / "curate_hooks_of_runs.py").write_text(HOOKS)  # the same, written anew
    (working / "go on").touch()
    before = outputs(working / "out")
    done = subprocess.run([*command, *hook], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    now = outputs(working / "out")
    assert set(now) == {"0.h5ad", "1.h5ad"}
    assert now["0.h5ad"] == before["0.h5ad"]
