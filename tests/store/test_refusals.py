"""What cannot be converted, and disks that are full: named, and with nothing broken left behind."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdataloader.errors import NotCountsError, StoreFormatError, WriteError
from scdataloader.store.convert import convert
from scdataloader.store.reader import Store
from scdataloader.store.writing import plan
from scdataloader.store.writing.plan import split_cells
from tests.store.conversions import check, counted, here, tree, write_files

LARGEST = (1 << 32) - 1


# --- bad input --------------------------------------------------------------------------------------------------------


def _bad(value, dtype=np.float64):
    source = counted("bad.h5ad", 9, 40, 0, dtype=dtype)
    source.x[7, 3] = value
    source.x = sp.csr_matrix(source.x)
    return source


@pytest.mark.filterwarnings("ignore:Changing the sparsity structure", "ignore:float64 values are rounded")
@pytest.mark.parametrize(
    ("source", "values", "error", "said"),
    [
        (lambda: _bad(-1.0), "counts", NotCountsError, "-1.0 at cell 7, gene 3 (ENSG00000000018) is not a count"),
        (lambda: _bad(0.5), "counts", NotCountsError, "0.5 at cell 7, gene 3 (ENSG00000000018) is not a count"),
        (lambda: _bad(np.nan), "counts", NotCountsError, "nan at cell 7"),
        (lambda: _bad(LARGEST + 1, np.int64), "counts", ValueError, "is larger than 4,294,967,295"),
        (lambda: _bad(1e39), "any", ValueError, "1e+39 at cell 7, gene 3 (ENSG00000000018) cannot be kept as float32"),
        (lambda: _bad((1 << 24) + 1, np.int64), "any", ValueError, "16777217 at cell 7, gene 3"),
        (lambda: _bad((1 << 53) + 1, np.int64), "any", ValueError, "whole number is larger than 9,007,199,254,740,992"),
    ],
)
def test_values_that_cannot_be_kept(out, source, values, error, said):
    with pytest.raises(error, match=f"bad.h5ad.*{re.escape(said)}"):
        here([source()], out, values=values, cells_per_shard=9)
    assert not out.exists()


def test_a_gene_number_out_of_range(out):
    source = counted("bad", 9, 40, 0)
    source.x.indices[-1] = 40
    with pytest.raises(ValueError, match=r"bad, among cells 6 to 8: cell 2 has a gene number outside 0 to 39"):
        here([source], out, cells_per_shard=9)


def test_two_sources_that_are_the_same(tmp_path, out):
    (path,) = write_files(tmp_path, (5,))
    shutil.copy(path, tmp_path / "copy.h5ad")
    with pytest.raises(ValueError, match=r"copy.h5ad and 0.h5ad hold the same cells \(fingerprint [0-9a-f]+\)"):
        here([path, tmp_path / "copy.h5ad"], out)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ({"mixed": ["a", 1, None, 2.5]}, "a: obs column 'mixed' (object) cannot be stored in parquet"),
        (
            {"when": pd.Categorical(pd.date_range("2020", periods=4))},
            "the categories of obs column 'when' are datetime",
        ),
        ({"__row__": range(4)}, "a has the obs column '__row__', a name that stores reserve; rename it"),
        ({"lists": [[1], ["a"], [], None]}, "obs column 'lists'"),
    ],
)
def test_columns_that_cannot_be_kept(out, column, said):
    source = counted("a", 4, 5, 0)
    source.table = source.table.assign(**column)
    with pytest.raises(ValueError, match=re.escape(said)):
        here([source], out)
    assert not out.exists()


@pytest.mark.parametrize("numbers", [1, range(20)[::-1]])
def test_a_gene_column_of_the_stores_own_name(out, numbers):
    """Whatever is in it: it is not taken for the store's own, which would lose it and reorder the genes."""
    source = counted("a", 4, 20, 0)
    source.var = source.var.assign(__position__=numbers)
    with pytest.raises(ValueError, match="a has the var column '__position__', a name that stores reserve; rename it"):
        here([source], out)


def test_a_cell_column_of_a_name_used_for_genes(out):
    source = counted("a", 4, 20, 0)
    source.table = source.table.assign(__position__=range(4))
    source.obs_columns.append("__position__")
    assert here([source], out).sources[0].obs(["__position__"])["__position__"].tolist() == [0, 1, 2, 3]


def test_an_obs_of_another_length(out):
    source = counted("a", 4, 5, 0)
    source.table = source.table.iloc[:3]
    with pytest.raises(TypeError, match=r"a: obs.* 4 rows; got 3 rows"):
        here([source], out)


@pytest.mark.parametrize("layout", ["shufled", "grouped:", "grouped"])
def test_a_layout_that_is_none(out, layout):
    with pytest.raises(
        ValueError, match=f"layout must be one of source, shuffled, grouped:<obs column>; got '{layout}'"
    ):
        here([counted("a", 4, 5, 0)], out, layout=layout)


def test_shards_of_no_cells(out):
    with pytest.raises(ValueError, match="cells_per_shard must be 1 or more; got 0"):
        here([counted("a", 4, 5, 0)], out, cells_per_shard=0)


def test_a_folder_of_something_else(tmp_path, out):
    out.write_text("a file")
    with pytest.raises(FileExistsError, match="is a file, but a store is a folder"):
        here([counted("a", 4, 5, 0)], out)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(FileExistsError, match=r"holds 1 other files or folders .cat.jpg., and neither"):
        here([counted("a", 4, 5, 0)], tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_damaged_store_is_not_added_to(out):
    here([counted("a", 12, 5, 0)], out)
    (out / "shards" / "00001.cells").unlink()
    with pytest.raises(StoreFormatError, match=r"00001\.cells is missing"):
        here([counted("b", 12, 5, 1)], out, append=True)


def test_shards_hold_no_more_values_than_they_can(monkeypatch):
    sizes = np.array([1, 5, 5, 1, 1, 8, 0, 2])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    assert split_cells(8, 3, offsets, 9) == [(0, 2), (2, 5), (5, 8)]
    assert split_cells(0, 3, offsets[:1], 9) == []
    monkeypatch.setattr(plan, "_MOST_VALUES", 10)
    assert split_cells(8, 8, offsets, 9) == [(0, 2), (2, 5), (5, 8)]
    assert split_cells(8, 8, None, 4) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert split_cells(3, 8, None, 40) == [(0, 1), (1, 2), (2, 3)]


# --- no room ----------------------------------------------------------------------------------------------------------

SMALL = """
import resource, sys
from pathlib import Path
from tests.store.conversions import write_files
from scdataloader.commands.main import main
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(["convert", *sys.argv[4:], "--out", sys.argv[3], "--processes", "1", "--cells_per_shard", "50"]))
"""


def _limited(folder, limit, out, *options):
    return subprocess.run(
        [sys.executable, "-c", SMALL, str(folder), str(limit), str(out), *map(str, options)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["source", "shuffled"])
def test_a_disk_that_fills_up(tmp_path, out, layout):
    """Files may not grow beyond a limit: the first shards fit, the one after them does not."""
    paths = write_files(tmp_path, (60, 300), n_genes=400)
    expected = tree(convert(paths, tmp_path / "whole.cells", layout=layout, n_processes=1, cells_per_shard=50).path)
    limit = max(len(content) for name, content in expected.items() if name.startswith("shards")) - 200
    options = ("--layout", layout, *paths)
    failed = _limited(tmp_path, limit, out, *options)
    assert failed.returncode == 2
    said = failed.stderr.splitlines()[-1]
    assert re.fullmatch(
        rf"error: cannot write {out}/\S+\.cells: File too large; (\d of 8 shards are finished and kept in "
        rf"{out}\S*: rerun the same command to continue|no files were kept)",
        said,
    )
    if "kept in" in said:
        with pytest.raises(StoreFormatError, match="is not a store"):
            Store.open(out)
        assert not list(out.rglob("*.partial"))
    convert(paths, out, layout=layout, n_processes=1, cells_per_shard=50)
    assert tree(out) == expected


SMALL_DISK = """
set -e
mount -t tmpfs -o size=96k none "$1"; shift
export out="$1" copy="$2"; shift 2
"$@" || echo "ended with $?"
find "$out" -name '*.partial' -o -name '*.progress' -o -name '*.lock' -o -name manifest.json
mount -o remount,size=10m "$(dirname "$out")"
"$@"
cp -r "$out" "$copy"
"""


@pytest.mark.slow
def test_a_disk_that_is_full_in_truth(tmp_path):
    """A small file system in memory, where the system lets a user mount one; later it is made larger."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this system lets no user mount a file system of its own")
    paths = write_files(tmp_path, (60, 300), n_genes=400)
    expected = tree(convert(paths, tmp_path / "whole.cells", n_processes=1, cells_per_shard=50).path)
    disk = tmp_path / "disk"
    disk.mkdir()
    out, copy = disk / "a.cells", tmp_path / "copy.cells"
    command = [sys.executable, "-m", "scdataloader", "convert", *paths, "--out", out, "--cells_per_shard", "50"]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", disk, out, copy, *command, "--processes", "2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ended with 2\n"
    assert re.search(
        rf"error: cannot write {out}/\S+: No space left on device; \d of 8 shards are finished and kept in",
        done.stderr,
    )
    assert "by an earlier run" in done.stderr
    assert tree(copy) == expected


@pytest.mark.slow
def test_no_room_for_the_very_first_file(tmp_path, out):
    paths = write_files(tmp_path)
    failed = _limited(tmp_path, 100, out, *paths)
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1] == f"error: cannot write {out}/conversion.json: File too large"
    assert not out.exists()


def test_no_room_for_a_table_leaves_the_old_store(tmp_path, out, monkeypatch):
    made = [counted("a", 6, 40, 0), counted("b", 6, 40, 1)]
    here(made[:1], out)
    before = tree(out)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("scdataloader.store.tables.opened_atomically", full)
        with pytest.raises(WriteError, match=r"cannot write \S+: No space left on device; no files were kept") as error:
            here(made[1:], out, append=True)
    assert error.value.errno == 28
    assert tree(out) == before
    with monkeypatch.context() as patched:
        patched.setattr("scdataloader.store.manifest.Manifest.save", full)
        with pytest.raises(WriteError, match=r"2 of 2 shards are finished and kept"):
            here(made[1:], out, append=True)
    assert [source.name for source in Store.open(out).sources] == ["a"]
    check(here(made[1:], out, append=True), made)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"cannot write .*/file/a.cells: Not a directory"):
        here([counted("a", 6, 40, 0)], tmp_path / "file" / "a.cells")
