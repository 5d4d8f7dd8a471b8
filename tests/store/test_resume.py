"""Conversions that go on, add to a store, or have to wait: what is kept, refused, and not done again."""

import concurrent.futures
import fcntl
import logging
import multiprocessing
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scdataloader.errors import StoreFormatError
from scdataloader.runtime import files
from scdataloader.store.export import to_anndata
from scdataloader.store.reader import Store
from scdataloader.store.writing import lock as claim
from scdataloader.store.writing.lock import claimed
from tests.store.conversions import Stored, check, counted, here, tree, write_files

LARGEST = (1 << 32) - 1


# --- going on ---------------------------------------------------------------------------------------------------------


def test_what_was_finished_is_kept_and_not_done_again(tmp_path, out, caplog):
    made = [counted("a", 13, 40, 0, mapped=False), counted("b", 12, 40, 1, mapped=False)]
    expected = tree(here(made, tmp_path / "whole.cells").path)
    made[1].fails_at = 9
    with pytest.raises(OSError, match="fell off the table") as failed:
        here(made, out)
    notes = " ".join(failed.value.__notes__)
    assert "while cells 8 to 10 of b were read" in notes
    assert f"5 of 6 shards are finished and kept in {out}: rerun the same command to continue" in notes
    assert not list(out.rglob("*.partial"))
    assert not list(out.rglob("*.progress"))
    assert not (out / "conversion.lock").exists()
    with pytest.raises(StoreFormatError, match="if its conversion was interrupted, rerun the same command"):
        Store.open(out)
    made[0].n_read, made[1].n_read, made[1].fails_at = 0, 0, None
    caplog.set_level(logging.INFO)
    here(made, out)
    assert (made[0].n_read, made[1].n_read) == (0, 2)
    assert tree(out) == expected
    assert "25 cells (21 of them by an earlier run)" in caplog.text


def test_a_shard_that_is_not_as_long_as_it_was_is_written_again(tmp_path, out):
    made = [counted("a", 12, 40, 0, mapped=False, fails_at=11)]
    with pytest.raises(OSError, match="table"):
        here(made, out)
    with (out / "shards" / "00000.cells").open("r+b") as file:
        file.truncate(100)
    (out / "shards" / "00001.json").write_text("{}")
    made[0].fails_at = None
    check(here(made, out), made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layout": "shuffled"}, "layout is 'shuffled', then 'source'"),
        ({"cells_per_shard": 6}, "cells_per_shard is 6, then 5"),
        ({"values": "any"}, "kind is 'float32', then 'counts'"),
    ],
)
def test_other_options_do_not_go_on(out, change, said):
    source = counted("a", 12, 40, 0, mapped=False, fails_at=11)
    with pytest.raises(OSError, match="table"):
        here([source], out)
    before = tree(out)
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        here([source], out, **change)
    assert "rerun its command to finish it, or delete the folder to discard it" in str(refused.value)
    assert tree(out) == before


def test_other_sources_do_not_go_on(out):
    made = [counted("a", 12, 40, 0, mapped=False, fails_at=11), counted("b", 6, 40, 1)]
    with pytest.raises(OSError, match="table"):
        here(made, out)
    before = tree(out)
    with pytest.raises(ValueError, match="b was a then"):
        here(made[::-1], out)
    with pytest.raises(ValueError, match="there are 1 sources, then 2"):
        here(made[:1], out)
    assert tree(out) == before


def test_a_failure_before_anything_is_finished_leaves_nothing(out):
    source = counted("a", 4, 40, 0, mapped=False, fails_at=3)
    with pytest.raises(OSError, match="table") as failed:
        here([source], out)
    assert "no files were kept" in failed.value.__notes__
    assert not out.exists()
    source.fails_at = None
    check(here([source], out), [source])
    before = tree(out)
    with pytest.raises(OSError, match="table"):
        here([counted("b", 4, 40, 1, mapped=False, fails_at=3)], out, append=True)
    assert tree(out) == before


def test_a_plan_that_is_none(out):
    out.mkdir()
    (out / "conversion.json").write_text('{"version": 7}')
    with pytest.raises(StoreFormatError, match="not a plan of a conversion of this release"):
        here([counted("a", 4, 40, 0)], out)


def test_the_same_again_is_nothing_to_do(tmp_path, out, caplog):
    paths = write_files(tmp_path)
    here(paths, out)
    before, stamps = tree(out), {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    caplog.set_level(logging.INFO)
    here(paths, out)
    assert f"{out} has all of these sources already, 21 cells; nothing to do" in caplog.text
    assert tree(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps
    for change, said in (
        ({"layout": "shuffled"}, "layout is source, not shuffled"),
        ({"values": "any"}, "values is counts, not float32"),
        ({"cells_per_shard": 7}, "5 shards, not the 4 of cells_per_shard=7"),
    ):
        with pytest.raises(FileExistsError, match=f"is a store already, and it.* {said}"):
            here(paths, out, **change)
    with pytest.raises(FileExistsError, match="number of sources is 2, not 1; add to it with append"):
        here(paths[:1], out)
    assert tree(out) == before


def test_another_seed_is_another_store(tmp_path, out):
    paths = write_files(tmp_path)
    here(paths, out, layout="shuffled", seed=3)
    for seed in (3, None):
        here(paths, out, layout="shuffled", seed=seed)
    with pytest.raises(FileExistsError, match="its seed is 3, not 4"):
        here(paths, out, layout="shuffled", seed=4)


# --- appending --------------------------------------------------------------------------------------------------------


def test_appending(tmp_path, out):
    made = [counted("a", 13, 40, 0), counted("b", 8, 40, 0), counted("c", 6, 30, 2)]
    here(made[:1], out)
    before = {name: content for name, content in tree(out).items() if name != "manifest.json"}
    store = here(made[1:], out, append=True)
    check(store, made)
    assert before.items() <= tree(out).items()
    here(made[1:], out, append=True)
    here(made[2:], out, append=True)
    here(made[:2], out, append=True)
    check(here([made[1], counted("d", 3, 20, 4), made[0]], out, append=True), [*made, counted("d", 3, 20, 4)])
    assert [source.name for source in Store.open(out).sources] == ["a", "b", "c", "d"]


def test_a_reader_sees_the_old_store_until_all_is_there(out):
    first, second = counted("a", 6, 40, 0), counted("b", 12, 40, 1, mapped=False, fails_at=11)
    here([first], out)
    with pytest.raises(OSError, match="table"):
        here([second], out, append=True)
    found = Store.open(out)
    assert [source.name for source in found.sources] == ["a"]
    np.testing.assert_array_equal(to_anndata(found).X.toarray(), first.x.toarray())
    here([first], out)  # nothing to do, whatever is unfinished
    with pytest.raises(ValueError, match=r"c was b then.*or delete its conversion.json to discard it"):
        here([counted("c", 6, 40, 1)], out, append=True)
    (out / "conversion.json").unlink()
    third = counted("c", 6, 40, 1)
    check(here([third], out, append=True), [first, third])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (
            {"sources": [2], "layout": "shuffled"},
            ValueError,
            "has the layout 'source', which appended cells get as well",
        ),
        ({"sources": [2], "values": "any"}, ValueError, "holds counts, which float32 cannot be appended to"),
    ],
)
def test_what_cannot_be_appended(out, options, error, said):
    made = [counted(name, 6, 40, seed) for seed, name in enumerate("abc")]
    here(made[:2], out)
    before = tree(out)
    with pytest.raises(error, match=said):
        here([made[i] for i in options.pop("sources")], out, append=True, **options)
    assert tree(out) == before


def test_there_has_to_be_a_store_to_append_to(out):
    with pytest.raises(FileNotFoundError, match=r"no store in .*atlas.cells to append to; leave append out"):
        here([counted("a", 6, 40, 0)], out, append=True)
    assert not out.exists()
    with pytest.raises(OSError, match="table"):
        here([counted("a", 12, 40, 0, mapped=False, fails_at=11)], out)
    with pytest.raises(FileNotFoundError, match="finish its first conversion first"):
        here([counted("b", 6, 40, 1)], out, append=True)


# --- one at a time ----------------------------------------------------------------------------------------------------


def _hold(folder, ready):
    with claimed(Path(folder)):
        ready.set()
        threading.Event().wait()


def test_one_conversion_at_a_time(out, monkeypatch):
    monkeypatch.setattr(claim, "_PATIENCE", 0.2)
    source = counted("a", 6, 40, 0)
    here([source], out)
    with claimed(out), pytest.raises(RuntimeError, match=r"another conversion.*is writing into .*atlas.cells"):
        here([counted("b", 6, 40, 1)], out, append=True)
    assert not (out / "conversion.lock").exists()
    here([counted("b", 6, 40, 1)], out, append=True)


@pytest.mark.slow
def test_a_killed_conversion_holds_no_lock(out):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(out), ready))
    holder.start()
    assert ready.wait(60)
    holder.kill()
    holder.join()
    assert (out / "conversion.lock").exists()
    here([counted("a", 6, 40, 0)], out)
    assert not (out / "conversion.lock").exists()


def test_a_task_of_an_earlier_conversion_does_not_write(out, monkeypatch):
    with claimed(out) as old:
        pass
    with pytest.raises(claim.ConversionStoppedError), old.shared():
        pass
    with claimed(out), pytest.raises(claim.ConversionStoppedError, match="has been stopped"), old.shared():
        pass
    with claimed(out) as current, current.shared():
        current.check()
        # while a task of it lives, no other one begins
        monkeypatch.setattr(claim, "_PATIENCE", 0.1)
        with pytest.raises(RuntimeError, match="task of an interrupted one"), claimed(out):
            pass


def test_where_files_cannot_be_locked_conversions_run_all_the_same(out, monkeypatch):
    def no_locks(*_):
        raise OSError(files.errno.ENOLCK, "No locks available")

    constants = {name: getattr(fcntl, name) for name in ("LOCK_EX", "LOCK_SH", "LOCK_NB")}
    monkeypatch.setattr(files, "fcntl", SimpleNamespace(**constants, flock=no_locks))
    made = [counted("a", 6, 40, 0)]
    check(here(made, out), made)


def test_an_interruption_stops_the_tasks(tmp_path, out, monkeypatch):
    """As Ctrl-C does, while the first of three shards is under way."""
    started = threading.Event()

    class Slow(Stored):
        def _read_stored(self, rows):
            if rows[0]:
                started.set()
                threading.Event().wait(0.05)
            return super()._read_stored(rows)

    def wait(*args, **kwargs):
        if started.is_set() and not raised:
            raised.append(True)
            raise KeyboardInterrupt
        return concurrent.futures.wait(*args, **kwargs | {"timeout": 0.01})

    raised = []
    source = counted("a", 300, 40, 0)
    source = Slow(source.name, source.x, source.var, source.table, mapped=False)
    monkeypatch.setattr("scdataloader.store.writing.tasks.wait", wait)
    with pytest.raises(KeyboardInterrupt) as stopped:
        here([source], out, cells_per_shard=100)
    assert "no files were kept" in stopped.value.__notes__
    assert not out.exists()
    assert source.n_read < 20
