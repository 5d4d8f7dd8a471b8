"""Many files: in processes, once each, whatever happens to some of them."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import anndata as ad
import pandas as pd
import pytest
from curation import IDS, cells, table, written
from jsonargparse import ArgumentParser

import scdataloader as scd
from scdataloader.cli import main
from scdataloader.curate import Curator, Recipe, Rule
from scdataloader.curate.ledger import LEDGER, content_of, open_ledger, stamp_of
from scdataloader.curate.outcome import Outcome
from scdataloader.curate.report import REPORT

pytestmark = pytest.mark.filterwarnings("default")  # of libraries in processes of their own

REPO = Path(__file__).parents[1]


def raw(folder, n=3):
    """Files that differ, in a folder."""
    folder.mkdir(exist_ok=True)
    return [written(folder / f"{number}.h5ad", cells(IDS, seed=number)) for number in range(n)]


def statuses(outcomes):
    return [(Path(one.source).name, one.status) for one in outcomes]


def outputs(folder):
    """What lies in a folder of curated files, with the times of the files."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5ad")}


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_the_hash_changes_with_what_decides_and_with_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    genes = table(tmp_path)
    (tmp_path / "steps_of_mine.py").write_text("def hook(block): return block\n")
    recipe = Recipe(genes={"human": genes}, after=["steps_of_mine:hook"], rules={"a*": Rule(organism="human")})
    hashes = [recipe.hash, replace(recipe, min_genes_per_cell=1).hash, recipe.for_file("x/b.h5ad").hash]
    moved = tmp_path / "elsewhere.csv"
    moved.write_text((tmp_path / "genes.csv").read_text())
    assert replace(recipe, genes={"NCBITaxon:9606": str(moved)}).hash == recipe.hash
    assert recipe.for_file("x/a.h5ad").hash == replace(recipe, rules={"*": Rule(organism="human")}).hash
    other_rule = replace(recipe, rules={**recipe.rules, "b*": Rule(organism="mouse")})
    assert other_rule.for_file("a.h5ad").hash == recipe.for_file("a.h5ad").hash
    assert other_rule.for_file("b.h5ad").hash != recipe.for_file("b.h5ad").hash
    moved.write_text(moved.read_text() + "ENSG00000000009,NEW,\n")
    hashes.append(replace(recipe, genes={"human": str(moved)}).hash)
    (tmp_path / "steps_of_mine.py").write_text("import help_of_mine\ndef hook(block): return block.copy()\n")
    hashes.append(recipe.hash)
    (tmp_path / "packed").mkdir()
    for name, text in {
        "help_of_mine.py": "import numpy\nfrom packed.further import f",
        "packed/__init__.py": "",
        "packed/further.py": "f = 2",
    }.items():
        (tmp_path / name).write_text(text)
        hashes.append(recipe.hash)
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"min_gene_overlap": 2}, ValueError, "min_gene_overlap is a share from 0 to 1, not 2"),
        ({"n_mads": 0}, ValueError, "n_mads must be positive, not 0"),
        ({"min_cells_per_gene": -1}, ValueError, "min_cells_per_gene must be 0 or more, not -1"),
        ({"max_pct_mt": 500}, ValueError, "max_pct_mt is in percent, from 0 to 100, not 500"),
        ({"genes": {"human": "a", "Homo sapiens": "b"}}, ValueError, "names an organism twice: human, Homo sapiens"),
        ({"genes": {"humn": "a"}}, ValueError, r"did you mean 'human'\?"),
    ],
)
def test_recipes_that_make_no_sense(options, error, why):
    with pytest.raises(error, match=why):
        Recipe(**options)


def test_rules_that_make_no_sense():
    with pytest.raises(ValueError, match="gives donor_id more than once"):
        Rule(columns={"a": "donor_id"}, constants={"donor_id": "1"})
    with pytest.raises(ValueError, match="unknown organism 'humn'"):
        Rule(organism="humn")
    with pytest.raises(ValueError, match="replaces values of donor_id, and gives it one value for all cells"):
        Rule(values={"donor_id": {"a": "b"}}, constants={"donor_id": "1"})
    with pytest.raises(ValueError, match="replaces a value of cluster twice, as a number and as text"):
        Rule(values={"cluster": {3: "a", "3": "b"}})


@pytest.mark.parametrize(
    ("form", "rules"),
    [
        ("yaml", "{a*: {values: {louvain: {3: T cell, 4: unknown, '5': B cell}}}}"),
        ("yaml", "\n  a*:\n    values:\n      louvain:\n        '3': T cell\n        4: unknown\n        5.0: B cell"),
        ("json", '{"a*": {"values": {"louvain": {"3": "T cell", "4": "unknown", "5": "B cell"}}}}'),
        ("word", '{"a*": {"values": {"louvain": {"3": "T cell", "4": "unknown", "5": "B cell"}}}}'),
        ("word", "{a*: {values: {louvain: {3: T cell, 4: unknown, 5: B cell}}}}"),
    ],
)
def test_values_of_a_rule_are_the_same_in_yaml_and_json_and_on_the_command_line(tmp_path, form, rules):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Recipe)
    path = tmp_path / f"curate.{form}"
    path.write_text(f'{{"rules": {rules}}}' if form == "json" else f"rules: {rules}")
    words = ["--rules", rules] if form == "word" else ["--config", str(path)]
    given = vars(parser.instantiate(parser.parse_args(words)))["rules"]
    expected = Rule(values={"louvain": {"5": "B cell", "4": "unknown", "3": "T cell"}})
    assert given == {"a*": expected}
    assert Recipe(rules=given).hash == Recipe(rules={"a*": expected}).hash
    assert Recipe(rules=given).hash != Recipe(rules={"a*": Rule()}).hash


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"genes": {"human": "gone.csv"}}, FileNotFoundError, "the recipe names gone.csv, which does not exist"),
        ({"before": ["no_such_module:f"]}, LookupError, "there is no module 'no_such_module' for the hook"),
        ({"after": ["json:no_such"]}, LookupError, "the module 'json' of the hook 'json:no_such' has no function"),
        ({"after": ["json"]}, ValueError, "a hook is named as module:function"),
        ({"labels": {"cell_type": ["CLX"]}}, ValueError, "has no ontology 'CLX' in schema"),
        ({"assays": ["no such assay"]}, ValueError, "assays name 'no such assay', which is no term of EFO"),
    ],
)
def test_what_is_wrong_for_all_files_is_told_at_once(tmp_path, options, error, why):
    with pytest.raises(error, match=why):
        Curator(out=tmp_path / "out", recipe=Recipe(**options)).run(raw(tmp_path / "raw", 1))


def test_a_rule_for_no_file_is_told(tmp_path, caplog):
    Curator(out=tmp_path / "out", recipe=Recipe(rules={"b*": Rule(organism="mouse")})).run(raw(tmp_path / "raw", 1))
    assert "the rule for 'b*' is for none of these files" in caplog.messages


def test_nothing_that_is_there_is_written_over(tmp_path):
    files = raw(tmp_path / "raw", 2)
    (tmp_path / "link").symlink_to(tmp_path / "raw")
    before = {path: path.read_bytes() for path in files}
    for out in ("raw", "link"):
        with pytest.raises(ValueError, match=r"0\.h5ad lies in .*, where curated files are to go"):
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


# --- the ledger -------------------------------------------------------------------------------------------------------


def test_a_ledger_that_was_cut_short_goes_on(tmp_path):
    path = raw(tmp_path, 1)[0]
    with open_ledger(tmp_path / "out") as ledger:
        ledger.note_content(path, [1, 2], "c" * 32)
        assert ledger.output(path) == tmp_path / "out" / "0.h5ad"
    with (tmp_path / "out" / LEDGER).open("a") as file:
        file.write('{"path": "/cut sho')
    with open_ledger(tmp_path / "out") as ledger:
        assert ledger.known(path) == (1, "c" * 32)
        assert ledger.content(path) is None  # another size
        assert ledger.output(tmp_path / "b" / "0.zarr") == tmp_path / "out" / "0-2.h5ad"
    lines = (tmp_path / "out" / LEDGER).read_text().splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [
        ["format"],
        ["content", "path", "stamp"],
        ["name", "path"],
        ["name", "path"],
    ]


def test_a_file_named_like_a_part_is_not_written_where_the_part_is(tmp_path):
    with open_ledger(tmp_path / "out") as ledger:
        names = [ledger.output(tmp_path / name).name for name in ("a.h5ad", "a.NCBITaxon_9606.h5ad")]
    assert names == ["a.h5ad", "a-NCBITaxon_9606.h5ad"]


def test_outcomes_come_back_from_the_ledger(tmp_path):
    outcome = Outcome(
        source="a.h5ad",
        content="c",
        recipe="r",
        status="kept",
        reason="",
        n_cells_in=3,
        n_cells_out=2,
        n_genes_in=5,
        n_genes_out=4,
        output=tmp_path / "out" / "a.h5ad",
        labels={"x": ["T:1"]},
        organism="NCBITaxon:9606",
        seconds=0.5,
        notes=("one", "two"),
    )
    with open_ledger(tmp_path / "out") as ledger:
        ledger.note_outcomes(tmp_path / "a.h5ad", [outcome])
        with pytest.raises(RuntimeError, match="another run is curating into"), open_ledger(tmp_path / "out"):
            pass
    (tmp_path / "out").rename(tmp_path / "moved")
    with open_ledger(tmp_path / "moved") as ledger:
        assert ledger.outcomes(tmp_path / "a.h5ad") == [replace(outcome, output=tmp_path / "moved" / "a.h5ad")]
        assert ledger.outcomes(tmp_path / "b.h5ad") == []


def test_a_folder_in_which_one_of_the_files_was_changed_is_another(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("1")
        os.utime(tmp_path / name, ns=(5, 5))
    before = stamp_of(tmp_path)
    (tmp_path / "a").write_text("2")
    os.utime(tmp_path / "a", ns=(3, 3))  # as when copied with its time
    assert stamp_of(tmp_path) != before


def test_a_ledger_of_another_release_is_refused(tmp_path):
    (tmp_path / LEDGER).write_text('{"format": 99}\n')
    with pytest.raises(RuntimeError, match="is of another release"), open_ledger(tmp_path):
        pass


def test_the_content_of_folders_is_that_of_their_files(tmp_path):
    for name, text in {"one/a/b": "x", "two/a/b": "x", "three/a/b": "y", "four/a/c": "x"}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    contents = [content_of(tmp_path / name) for name in ("one", "two", "three", "four")]
    assert contents[0] == contents[1]
    assert len(set(contents)) == 3


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
        "from scdataloader.curate import Curator, Recipe, ledger\n"
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
    command = [sys.executable, "-c", f"from scdataloader.cli import main; {code}"]
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
