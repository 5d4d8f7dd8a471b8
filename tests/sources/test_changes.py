"""Law R6: a file that changes after it was opened ends in an error that names it, whatever is read, in any process."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from scdataloader.errors import SourceChangedError
from scdataloader.runtime.bus_errors import IS_HANDLED
from scdataloader.sources import AnnDataSource, open_source
from tests.sources.source_files import H5_COMPRESSIONS, N_OBS, coordinates, make, stored_as, write_h5ad, write_zarr

KINDS = ("csr contiguous", "csr chunked", "csr gzip", "csr lzf", "csc contiguous", "dense contiguous", "dense gzip")
CHANGED = r"{name} (has changed since it was opened: it has|was removed after it was opened|cannot be read at byte)"
pytestmark = pytest.mark.filterwarnings("ignore:.*was transposed to CSR in memory")


def write(path: Path, how: str, factor: int = 1) -> Path:
    """Cells whose values are ``factor`` times their coordinates."""
    x = factor * coordinates()
    if path.suffix == ".zarr":
        return write_zarr(path, make(sp.csr_matrix(x), more=sp.csr_matrix(x)), how)
    kind, compression = how.split()
    adata = make(stored_as(x, kind), more=stored_as(x, kind))
    adata.obsm["X_pca"] = factor * x[:, :5]
    return write_h5ad(path, adata, H5_COMPRESSIONS[compression])


def cut(path: Path, _: Path) -> None:
    os.truncate(path, path.stat().st_size // 8)


def overwritten(path: Path, other: Path) -> None:
    """In place, with as many bytes."""
    with path.open("r+b") as file:
        file.write(other.read_bytes().ljust(path.stat().st_size, b"\0")[: path.stat().st_size])


def copied_over(path: Path, other: Path) -> None:
    """As cp does: cut to nothing, then written."""
    shutil.copyfile(other, path)


def replaced(path: Path, other: Path) -> None:
    other.replace(path)


def removed(path: Path, _: Path) -> None:
    path.unlink()


READS: dict[str, Callable[[AnnDataSource], object]] = {
    "X": lambda source: source.read(np.arange(N_OBS)),
    "layers": lambda source: source.read_matrix("layers/more", np.arange(N_OBS)),
    "obs": lambda source: source.obs(["number"]),
    "fingerprint": lambda source: source.fingerprint,
}


@pytest.mark.skipif(not IS_HANDLED, reason="the signal ends the process on this system")
@pytest.mark.parametrize("change", [cut, overwritten, copied_over, replaced, removed])
@pytest.mark.parametrize("how", KINDS)
def test_h5ad(tmp_path: Path, how: str, change: Callable[[Path, Path], None]) -> None:
    path, other = (write(tmp_path / f"{name}.h5ad", how, factor) for name, factor in (("a", 1), ("b", 2)))
    source, closed = open_source(path), open_source(path)
    for used in (source, closed):
        used.read(np.arange(3))
        used.read_matrix("obsm/X_pca", np.arange(3))
    closed.close()
    saved = pickle.dumps(source)
    change(path, other)
    for used in (source, closed, pickle.loads(saved)):
        for read in (*READS.values(), lambda source: source.read_matrix("obsm/X_pca", np.arange(N_OBS))):
            with pytest.raises(SourceChangedError, match=CHANGED.format(name="a.h5ad")):
                read(used)


def chunk(path: Path) -> Path:
    """The last chunk, or shard, of the values of X."""
    files = [file for file in (path / "X" / "data").rglob("*") if file.is_file() and file.name[0].isdigit()]
    return max(files, key=lambda file: int(file.name))


ZARR_CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "written again": lambda path, other: (shutil.rmtree(path), shutil.copytree(other, path)),
    "removed": lambda path, _: shutil.rmtree(path),
    "chunk cut": lambda path, _: os.truncate(chunk(path), 5),
    "chunk copied over": lambda path, other: shutil.copyfile(chunk(other), chunk(path)),
    "chunk replaced": lambda path, other: chunk(other).replace(chunk(path)),
    "chunk removed": lambda path, _: chunk(path).unlink(),
    "array removed": lambda path, _: shutil.rmtree(path / "X" / "data"),
}


@pytest.fixture(scope="module", params=["v2", "v3", "v3 sharded"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders, to be copied: writing one takes 30 times as long."""
    folder = tmp_path_factory.mktemp("zarr")
    return [write(folder / f"{name}.zarr", request.param, factor) for name, factor in (("a", 1), ("b", 2))]


@pytest.mark.parametrize("change", ZARR_CHANGES)
def test_zarr(tmp_path: Path, folders: list[Path], change: str) -> None:
    path, other = (shutil.copytree(folder, tmp_path / folder.name) for folder in folders)
    source, closed = open_source(path), open_source(path)
    closed.read(np.arange(3))
    closed.close()
    saved = pickle.dumps(source)
    source.read(np.arange(3))
    ZARR_CHANGES[change](path, other)
    for used in (source, closed, pickle.loads(saved)):
        with pytest.raises(SourceChangedError, match=r"a.zarr\S* (has changed|was (removed|written))"):
            used.read(np.arange(N_OBS))


def test_chunks_that_were_never_written_are_zeros(tmp_path: Path) -> None:
    """A missing file is no change."""
    x = coordinates()
    x[20:40] = 0
    path = write_zarr(tmp_path / "a.zarr", make(x), "v3")
    assert np.array_equal(open_source(path).read(np.arange(N_OBS)).to_scipy().toarray(), x)


@pytest.mark.skipif(not IS_HANDLED, reason="the signal ends the process on this system")
@pytest.mark.parametrize("change", [cut, overwritten, copied_over])
def test_a_change_during_reads(tmp_path: Path, change: Callable[[Path, Path], None]) -> None:
    """Every read returns the stored values or raises, also the one that is under way."""
    path, other = (write(tmp_path / f"{name}.h5ad", "csr contiguous", factor) for name, factor in (("a", 1), ("b", 2)))
    source, x, n_read = open_source(path), coordinates(), []
    rows = np.tile(np.arange(N_OBS), 200)
    expected = sp.csr_matrix(x[rows])

    def read_on() -> None:
        while True:
            n_read.append(abs(source.read(rows).to_scipy() - expected).sum())

    def work() -> None:
        with pytest.raises(SourceChangedError, match=CHANGED.format(name="a.h5ad")):
            read_on()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(n_read) < 4:
        threads[0].join(0.001)
    change(path, other)
    for thread in threads:
        thread.join()
    assert len(n_read) >= 4
    assert not any(n_read)
