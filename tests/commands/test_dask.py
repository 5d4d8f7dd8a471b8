"""Conversion on a cluster of dask: real worker processes, and workers that lack the files."""

import shutil
import subprocess
import sys
import time

import pytest

from scdataloader.commands.main import main
from scdataloader.errors import NotCountsError, SourceChangedError
from scdataloader.store.convert import convert
from scdataloader.store.writing.lock import ConversionStoppedError
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


@pytest.mark.parametrize("hidden", ["sources", "store"])
def test_workers_that_lack_the_paths_are_named(tmp_path, hidden):
    (tmp_path / "sources").mkdir()
    (tmp_path / "store").mkdir()
    paths = write_files(tmp_path / "sources")
    hide = f'mount -t tmpfs none {tmp_path / hidden} && exec "$@"'
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
            with pytest.raises((ConversionStoppedError, SourceChangedError), match=rf"/{hidden}/") as error:
                convert(paths, tmp_path / "store" / "d.cells", executor=client.get_executor(), progress=False)
            assert any("a worker may lack the path" in note for note in error.value.__notes__)
        finally:
            worker.terminate()
            worker.wait(30)
