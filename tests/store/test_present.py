"""Sources that change after, between or during conversions: what changed is named and converted anew, never mixed."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from scdataloader import Collection
from scdataloader.commands.main import main
from scdataloader.errors import SourceFormatError, StoreFormatError
from scdataloader.store.export import to_anndata
from scdataloader.store.manifest import Manifest
from scdataloader.store.verify import verify
from scdataloader.store.writing import tasks
from tests.store.conversions import counted, here, tree, write_files

LAYOUTS = ("source", "shuffled", "grouped:kind")
CASES = [*(("h5ad", layout) for layout in LAYOUTS), ("zarr", "source")]
"""Kinds of files and layouts: what changed in a file is found before the layout matters."""


def given(path):
    return ad.read_zarr(path) if str(path).endswith(".zarr") else ad.read_h5ad(path)


def change(path, what):
    """Write other labels, or the values of a few cells, in a file; or the file itself once more."""
    adata = given(path)
    if what == "obs":
        adata.obs["kind"] = adata.obs["kind"].cat.rename_categories({"T cell": "T"})
    elif what == "var":
        adata.var["symbol"] = adata.var["symbol"].str.lower()
    elif what == "X":
        adata.X.data[-3:] += 1
    write = adata.write_zarr if str(path).endswith(".zarr") else adata.write_h5ad
    write(path)


def check(store, paths):
    assert not verify(store.path, sources=paths).unnamed
    for number, path in enumerate(paths):
        found, wanted = to_anndata(store, number), given(path)
        np.testing.assert_array_equal(found.X.toarray(), wanted.X.toarray())
        pd.testing.assert_frame_equal(found.obs, wanted.obs)
        pd.testing.assert_frame_equal(found.var, wanted.var)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Zarr folders, to be copied: writing one takes 20 times as long."""
    paths = [(path, path.replace("h5ad", "zarr")) for path in write_files(tmp_path_factory.mktemp("zarr"), (13, 8, 6))]
    for path, folder in paths:
        ad.read_h5ad(path).write_zarr(folder)
    return [Path(folder) for _, folder in paths]


@pytest.fixture
def paths(request, tmp_path, folders):
    if request.param == "h5ad":
        return write_files(tmp_path, (13, 8, 6))
    return [str(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders]


@pytest.mark.parametrize(("paths", "layout"), CASES, indirect=["paths"])
@pytest.mark.parametrize("what", ["obs", "var", "X"])
def test_a_source_that_changed_is_converted_anew(paths, out, what, layout, caplog):
    here(paths, out, layout=layout)
    before = tree(out)
    change(paths[1], what)
    with pytest.raises(ValueError, match=f"has 1.* already, and {what} of it changed since"):
        here(paths, out, append=True)
    with pytest.raises(StoreFormatError, match=f"1 problem:\n  {what} of 1.* changed since it was converted"):
        verify(out, sources=paths)
    assert tree(out) == before
    check(here(paths, out, layout=layout), paths)
    assert f"{what} of {Path(paths[1]).name} changed since it was converted: converting it anew" in caplog.text
    if layout == "source":
        kept = [name for name in before if name.startswith("shards/0000") and name < "shards/00003"]
        assert all(tree(out)[name] == before[name] for name in kept)
    before = tree(out)
    here(paths, out, layout=layout)
    assert tree(out) == before


@pytest.mark.parametrize(("paths", "layout"), CASES, indirect=["paths"])
def test_a_copy_and_a_store_of_an_earlier_release_are_compared_cell_by_cell(paths, out, layout, caplog):
    caplog.set_level(logging.INFO)
    manifest = here(paths, out, layout=layout).manifest
    change(paths[2], "nothing")
    here(paths, out, layout=layout)
    assert "was written to after it was converted: comparing it" in caplog.text
    old = [replace(source, fingerprint=f"{i:032x}", file_state=None) for i, source in enumerate(manifest.sources)]
    replace(manifest, sources=tuple(old)).save(out)
    found = json.loads((out / "manifest.json").read_text())
    assert Manifest.load(out).sources == tuple(old)
    before = tree(out)
    here(paths, out, layout=layout)
    here(paths[::-1], out, append=True)
    assert tree(out) == before
    assert caplog.text.count("nothing to do") == 3
    assert found["sources"][0]["file_state"] is None
    change(paths[0], "X")
    check(here(paths, out, layout=layout), paths)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("what", ["obs", "var", "X", "nothing"])
def test_nothing_is_mixed_when_a_source_changes_between_two_tries(tmp_path, out, what, layout, monkeypatch, caplog):
    paths, run, done = write_files(tmp_path), tasks.EncodeCells.run, []

    def some(self):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(self.path)
        run(self)

    monkeypatch.setattr(tasks.EncodeCells, "run", some)
    with pytest.raises(KeyboardInterrupt):
        here(paths, out, layout=layout)
    change(paths[0], what)
    done.clear()
    monkeypatch.setattr(tasks.EncodeCells, "run", lambda self: (done.append(self.path), run(self)))
    store = here(paths, out, layout=layout)
    assert f"{'the files' if what == 'nothing' else what} of 0.h5ad changed since its conversion" in caplog.text
    assert len(done) == 4  # of the other file, the finished shard is kept
    check(store, paths)
    whole = here(paths, tmp_path / "whole.cells", layout=layout).path
    assert tree(out) == tree(whole)


def test_a_source_that_is_written_to_while_it_is_converted_is_refused(tmp_path, out, monkeypatch):
    paths, run = write_files(tmp_path), tasks.EncodeCells.run

    def meanwhile(self):
        run(self)
        if self.path.endswith("3.cells"):
            with h5py.File(paths[0], "r+") as file:
                file["X/data"][:20] = 7

    monkeypatch.setattr(tasks.EncodeCells, "run", meanwhile)
    with pytest.raises(SourceFormatError, match=r"0.h5ad.* was written to while it was converted; rerun"):
        here(paths, out)
    monkeypatch.undo()
    check(here(paths, out), paths)


@pytest.mark.parametrize("paths", ["h5ad", "zarr"], indirect=True)
def test_one_matrix_with_other_labels_is_another_source(paths, out):
    other = paths[0].replace("/0.", "/other.")
    (shutil.copytree if other.endswith("zarr") else shutil.copy)(paths[0], other)
    change(other, "obs")
    both = [paths[0], other]
    assert len(Collection.open(both)) == 26
    check(here(both, out), both)
    third = paths[0].replace("/0.", "/third.")
    (shutil.copytree if other.endswith("zarr") else shutil.copy)(paths[0], third)
    change(third, "var")
    check(here(third, out, append=True), [*both, third])


def test_other_data_of_the_same_name_never_replace_a_store(tmp_path, out):
    (path,) = write_files(tmp_path, (13,))
    here(path, out)
    before = tree(out)
    source = counted("0", 13, 40, 5)
    ad.AnnData(source.x, obs=source.table, var=source.var).write_h5ad(path)
    with pytest.raises(FileExistsError, match=r"is a store already, and it has other data: .* of 0.h5ad"):
        here(path, out)
    assert tree(out) == before


def test_the_matrix_that_was_converted_is_named(tmp_path, capsys):
    """X has counts as well, so that it is what is compared by default."""
    (path,) = write_files(tmp_path, (13,))
    adata = given(path)
    adata.layers["counts"] = adata.X * 2
    adata.write_h5ad(path)
    out = tmp_path / "layer.cells"
    here([path], out, counts="layers/counts")
    assert verify(out, sources=path, counts="layers/counts").n_cells == 13
    with pytest.raises(StoreFormatError, match=r"X of .* changed|is not in the store"):
        verify(out, sources=path)
    assert main(["verify", str(out), "--sources", str(path), "--counts", "layers/counts"]) == 0
    assert "13 cells" in capsys.readouterr().out
