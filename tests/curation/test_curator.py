"""Many files: in processes, once each, whatever happens to some of them."""

import csv
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import anndata as ad
import pytest

from scdataloader.curation import Curator, Recipe, Rule, curator
from scdataloader.curation.ledger import LEDGER
from scdataloader.runtime.processes import WorkerDiedError
from tests.curation.helpers import IDS, cells, job, raw, written

pytestmark = pytest.mark.filterwarnings("default")  # of libraries in processes of their own

REPO = Path(__file__).parents[2]


def statuses(outcomes):
    return [(Path(one.source).name, one.status) for one in outcomes]


def outputs(folder):
    """What lies in a folder of curated files, with the times of the files."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5ad")}


@pytest.mark.slow
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
    # plainly texts: pandas 2 crashes on digits that look like a number with a large exponent
    assert {row[name][:3] for row in rows[:5] for name in ("content", "recipe")} == {"b2:"}

    before = outputs(tmp_path / "out")
    caplog.clear()
    again = curator.run([f"{tmp_path}/raw/*.h5ad", "raw/gone.h5ad"])  # the same files, named otherwise
    assert statuses(again) == statuses(first)
    assert outputs(tmp_path / "out") == before
    assert "finished before: 3 of 6 files" in caplog.text
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
        with pytest.raises(ValueError, match=r"0\.h5ad is in the output folder"):
            Curator(out=tmp_path / out).run(files)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.h5ad").write_text("mine")
    (tmp_path / "out" / "1.NCBITaxon_9606.h5ad").write_text("mine, too")
    outcomes = Curator(out=tmp_path / "out", progress=False).run(files)
    assert [outcome.status for outcome in outcomes] == ["failed", "failed"]
    assert "contains 0.h5ad or parts of it, which are not in its curated.jsonl" in outcomes[0].reason
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
    assert f"its content is that of {path}, to which another rule applies" in both[1].reason


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


HOOKS = """
import os, signal, time

def die(block):
    if block.n_obs == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if block.n_obs == 8:
        os._exit(3)
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
    assert "SIGKILL" in outcomes[0].reason
    assert "exit code 3" in outcomes[2].reason
    assert sorted(path.name for path in (working / "out").iterdir()) == ["1.h5ad", LEDGER, "report.csv"]


def test_a_file_that_changes_while_it_is_curated_fails(working):
    raw(working / "raw", 2)
    outcomes = Curator(out="out", recipe=Recipe(after=["curate_hooks_of_runs:disturb"]), processes=1).run("raw/*.h5ad")
    assert statuses(outcomes) == [("0.h5ad", "kept"), ("1.h5ad", "failed")]
    assert "changed or removed while it was curated" in outcomes[1].reason
    assert set(outputs(working / "out")) == {"0.h5ad"}


def test_a_defect_fails_one_file_and_processes_that_cannot_start_fail_the_run(tmp_path):
    one = job(tmp_path / "a.h5ad", tmp_path / "out", Recipe())

    def outcome(error):
        future = Future()
        future.set_exception(error)
        return curator._outcomes(one, future)

    assert [found.reason for found in outcome(AssertionError("one"))] == ["unexpected AssertionError: one"]
    assert [found.reason for found in outcome(WorkerDiedError("killed"))] == ["killed"]
    with pytest.raises(RuntimeError, match="no process"):
        outcome(RuntimeError("no process starts"))
