"""Conversion and curation on a cluster of dask: real worker processes, and workers that lack the files."""

import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import anndata as ad
import pandas as pd
import pytest

from scdataloader.commands.main import main
from scdataloader.curation.curator import Curator
from scdataloader.errors import NotCountsError, SourceChangedError
from scdataloader.store.convert import convert
from scdataloader.store.writing.lock import ConversionStoppedError
from tests.curation.helpers import raw
from tests.store.conversions import counted, here, tree, write_files

distributed = pytest.importorskip("distributed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

WORKER = (sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1", "--no-dashboard", "--no-nanny")


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=40
    ) as made:
        yield made


def test_two_workers_write_the_same(cluster, tmp_path, capsys):
    paths = write_files(tmp_path)
    expected = tree(here(paths, tmp_path / "a.cells").path)
    of_cluster = str(tmp_path / "b.cells")
    command = ["convert", *paths, "--out", of_cluster, "--cells_per_shard", "5", "--dask", cluster.scheduler_address]
    assert main(command) == 0, capsys.readouterr().err
    assert tree(tmp_path / "b.cells") == expected


def test_an_error_of_a_worker_is_that_of_the_command(cluster, tmp_path):
    source = counted("bad", 13, 40, 0)
    source.x.data[70] = -1
    with distributed.Client(cluster) as client, pytest.raises(NotCountsError, match=r"bad: -1\.0 at cell"):
        convert([source], tmp_path / "c.cells", executor=client.get_executor(), cells_per_shard=5, progress=False)


def test_two_workers_curate_the_same(cluster, tmp_path, capsys):
    raw(tmp_path / "raw", 3)
    command = ["curate", str(tmp_path / "raw" / "*.h5ad"), "--out", str(tmp_path / "b")]
    command += ["--dask", cluster.scheduler_address]
    Curator(out=tmp_path / "a", executor=ThreadPoolExecutor(1)).run(str(tmp_path / "raw" / "*.h5ad"))
    (tmp_path / "raw" / "4.h5ad").write_text("not a file of ours")
    with pytest.raises(SystemExit, match="1"):  # a file that fails does not stop the others
        main(command)
    assert "3 kept, 0 dropped, 1 failed" in capsys.readouterr().out
    for number in range(3):
        here, there = (ad.read_h5ad(tmp_path / folder / f"{number}.h5ad") for folder in "ab")
        assert (here.X != there.X).nnz == 0
        pd.testing.assert_frame_equal(here.obs, there.obs)
        pd.testing.assert_frame_equal(here.var, there.var)
    (tmp_path / "raw" / "4.h5ad").unlink()
    assert main(command) == 0
    assert "finished before: 3 of 3 files" in capsys.readouterr().err


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(distributed.config["distributed"]["comm"]["timeouts"], "connect", "0.5s")
    command = ["convert", *write_files(tmp_path), "--out", str(tmp_path / "x.cells"), "--dask", "tcp://127.0.0.1:9"]
    assert main(command) == 2
    assert "error: no dask scheduler answers at tcp://127.0.0.1:9; " in capsys.readouterr().err
    assert not (tmp_path / "x.cells").exists()


@contextmanager
def worker_without(path):
    """A cluster whose one worker sees an empty folder in place of ``path``."""
    hide = f'mount -t tmpfs none {path} && exec "$@"'
    command = [shutil.which("unshare") or "unshare", "-rm", "sh", "-c", hide, "sh"]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let users mount")
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None, silence_logs=40) as empty,
        distributed.Client(empty) as client,
    ):
        worker = subprocess.Popen([*command, *WORKER, empty.scheduler_address], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while not client.scheduler_info()["workers"] and time.monotonic() < deadline:
                time.sleep(0.1)
            yield client
        finally:
            worker.terminate()
            worker.wait(30)


@pytest.mark.parametrize("hidden", ["sources", "store"])
def test_workers_that_lack_the_paths_are_named(tmp_path, hidden):
    (tmp_path / "sources").mkdir()
    (tmp_path / "store").mkdir()
    paths = write_files(tmp_path / "sources")
    with (
        worker_without(tmp_path / hidden) as client,
        pytest.raises((ConversionStoppedError, SourceChangedError), match=rf"/{hidden}/") as error,
    ):
        convert(paths, tmp_path / "store" / "d.cells", executor=client.get_executor(), progress=False)
    assert any("a worker may lack the path" in note for note in error.value.__notes__)


def test_a_worker_that_lacks_a_file_to_curate_is_named(tmp_path, capsys):
    raw(tmp_path / "raw", 2)
    command = ["curate", str(tmp_path / "raw" / "*.h5ad"), "--out", str(tmp_path / "out")]
    with worker_without(tmp_path / "raw") as client:
        assert main([*command, "--dask", client.scheduler.address]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: worker {socket.gethostname()} has no {tmp_path}/raw/")
