"""Conversion by processes, threads and clusters, and from the command line."""

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

import scdataloader
from scdataloader.commands.main import main
from scdataloader.store.convert import convert
from scdataloader.store.reader import Store
from tests.store.conversions import Stored, counted, here, tree, write_files


@pytest.fixture
def out(tmp_path):
    return tmp_path / "atlas.cells"


# --- executors --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of libraries in processes of their own
def test_other_executors_write_the_same(tmp_path, out):
    paths = write_files(tmp_path)
    expected = tree(here(paths, out).path)
    convert(paths, tmp_path / "b.cells", n_processes=2, cells_per_shard=5, progress=False)
    assert tree(tmp_path / "b.cells") == expected
    with ThreadPoolExecutor(3) as executor:
        convert(paths, tmp_path / "c.cells", executor=executor, cells_per_shard=5, progress=False)
    assert tree(tmp_path / "c.cells") == expected


def test_an_executor_and_a_number_of_processes(out):
    with pytest.raises(ValueError, match="not both"), ThreadPoolExecutor(1) as executor:
        convert([counted("a", 3, 5, 0)], out, executor=executor, n_processes=2)
    with pytest.raises(ValueError, match="n_processes must be 1 or more; got 0"):
        convert([counted("a", 3, 5, 0)], out, n_processes=0)


def _die(*_):
    os._exit(9)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_worker_that_is_killed(tmp_path, out, monkeypatch):
    class Deadly(Stored):
        def __reduce__(self):
            return _die, (1,)

    source = counted("a", 12, 5, 0)
    with pytest.raises(RuntimeError, match="a process of the conversion has ended: the process ended with exit code 9"):
        convert([Deadly(source.name, source.x, source.var, source.table)], out, n_processes=2, cells_per_shard=5)
    assert not out.exists()


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, out, capsys):
    paths = write_files(tmp_path)
    command = ["convert", *paths, "--out", str(out), "--processes", "1"]
    assert main(command) == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"{out}: 21 cells, [\d,]+ values, \d\.\d MB, \d\.\d\d bytes per value, in \d+\.\d s \([\d,]+ cells/s\)", said
    )
    assert main(command) == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith("21 cells; nothing to do")
    assert main(["convert", paths[0], "--out", str(out)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {out} is a store already")
    write_files(tmp_path / "more" if (tmp_path / "more").mkdir() is None else tmp_path, (0, 0, 5))
    assert main(["convert", str(tmp_path / "more" / "2.h5ad"), "--out", str(out), "--append", "--processes", "1"]) == 0
    assert Store.open(out).n_obs == 26
    assert main(["convert", "gone.h5ad", "--out", str(tmp_path / "b.cells")]) == 2
    assert "gone.h5ad does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_when_asked_for(tmp_path, out, capsys, monkeypatch, terminal):
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    command = ["convert", *write_files(tmp_path), "--out", str(out), "--processes", "1", "--layout", "shuffled"]
    assert main([*command, "--progress"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    if terminal:
        assert "converting" in shown.err
        assert "ordering" in shown.err
        assert "21/21 cells" in shown.err
    else:
        assert re.search(r"\nconverting: 21/21 cells, [\d,]+ cells/s, 0:00:00 left\n", shown.err)
        assert re.search(r"\nordering: 21/21 cells, [\d,]+ cells/s, 0:00:00 left\n", shown.err)
    assert main([*command[:-2], "--layout", "shuffled", "--out", str(tmp_path / "b.cells")]) == 0
    assert "21/21" not in capsys.readouterr().err


def test_help_names_all_options(capsys):
    with pytest.raises(SystemExit) as done:
        main(["convert", "--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--append", "--layout", "--processes", "--dask", "--cells_per_shard", "--values", "--counts"):
        assert option in shown


def test_the_command_wants_dask_for_dask(tmp_path, out, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["convert", *write_files(tmp_path), "--out", str(out), "--dask", "tcp://x:1"]) == 2
    assert "pip install 'scdataloader[dask]'" in capsys.readouterr().err


def test_an_interrupted_command_says_what_was_kept(tmp_path, out, capsys, monkeypatch):
    def interrupted(*_, **__):
        error = KeyboardInterrupt()
        error.add_note("3 of 8 shards are finished")
        raise error

    monkeypatch.setattr("scdataloader.store.convert.write_store", interrupted)
    assert main(["convert", *write_files(tmp_path), "--out", str(out)]) == 130
    assert capsys.readouterr().err.splitlines()[-2:] == ["interrupted", "3 of 8 shards are finished"]


@pytest.mark.parametrize("command", ["verify", "export"])
def test_other_commands_are_interrupted_without_a_traceback(command, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"scdataloader.commands.store.{command}", interrupted)
    assert main([command, "atlas.cells", *(["--out", "out"] if command == "export" else [])]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_convert_is_a_public_name(tmp_path, out):
    store = scdataloader.convert(write_files(tmp_path), out, n_processes=1, progress=False)
    assert isinstance(store, Store)
    assert json.loads((out / "manifest.json").read_text())["layout"] == "source"
    assert pq.read_metadata(out / "obs" / "00000.parquet").num_rows == 13
