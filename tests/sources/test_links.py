"""Law R5: what HDF5 or zarr resolves elsewhere is followed, or refused by name, never misread."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from scdataloader.collection.collection import Collection
from scdataloader.errors import SourceChangedError, SourceFormatError
from scdataloader.sources import open_source
from scdataloader.store.convert import convert
from tests.sources.source_files import (
    H5_COMPRESSIONS,
    N_OBS,
    N_VARS,
    coordinates,
    make,
    stored_as,
    write_h5ad,
    write_zarr,
)

X = coordinates()
OTHER = np.where(X > 0, X[::-1, ::-1].max() - X + 1, 0)
"""Other values in the same places: of the same layout in a file."""
ROWS = np.array([3, 60, 0, 3])


def adata(x: np.ndarray, kind: str = "csr") -> ad.AnnData:
    made = make(stored_as(x, kind), counts=stored_as(x, kind))
    made.raw = made.copy()
    made.obsm["pca"] = x[:, :3].astype("float32")
    made.obs["kind"] = made.obs["kind"].cat.rename_categories(lambda name: f"{name} of {x.max():.0f}")
    made.obs["number"] = made.obs["number"] + int(x.max())
    return made


def linked(folder: Path, *members: str, kind: str = "csr", compression: str = "contiguous") -> Path:
    """A file that has other values in its own bytes, and links to ``true.h5ad`` in ``members``."""
    true = write_h5ad(folder / "true.h5ad", adata(X, kind), H5_COMPRESSIONS[compression])
    path = write_h5ad(folder / "a.h5ad", adata(OTHER, kind), H5_COMPRESSIONS[compression])
    with h5py.File(path, "r+") as file:
        for member in members:
            file.move(member, f"uns/{member.replace('/', ' ')}")  # the bytes stay where they were
            file[member] = h5py.ExternalLink(true.name, f"/{member}")
    return path


@pytest.mark.filterwarnings("ignore:.*stored as CSC")
@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize("compression", ["contiguous", "chunked", "gzip"])
@pytest.mark.parametrize("key", ["X", "layers/counts", "raw"])
def test_linked_matrices_are_followed(tmp_path: Path, kind: str, compression: str, key: str) -> None:
    path = linked(tmp_path, key, kind=kind, compression=compression)
    with open_source(path, counts=key) as source:
        np.testing.assert_array_equal(source.read(ROWS).to_scipy().toarray(), X[ROWS])
        np.testing.assert_array_equal(source.read_matrix("obsm/pca", ROWS), OTHER[ROWS, :3])


@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
def test_linked_parts_of_a_matrix_are_followed(tmp_path: Path, part: str) -> None:
    with open_source(linked(tmp_path, f"X/{part}")) as source:
        expected = X if part == "data" else OTHER
        np.testing.assert_array_equal(source.read(ROWS).to_scipy().toarray(), expected[ROWS])


def test_linked_tables_and_further_matrices_are_followed(tmp_path: Path) -> None:
    with open_source(linked(tmp_path, "obs", "var", "obsm/pca", "layers/counts")) as source:
        expected = ad.read_h5ad(tmp_path / "true.h5ad")
        assert (
            source.obs(["kind", "number"]).to_numpy().tolist() == expected.obs[["kind", "number"]].to_numpy().tolist()
        )
        assert source.var.index.tolist() == expected.var_names.tolist()
        np.testing.assert_array_equal(source.read_matrix("obsm/pca", ROWS), X[ROWS, :3])
        np.testing.assert_array_equal(source.read_matrix("layers/counts", ROWS).to_scipy().toarray(), X[ROWS])
        np.testing.assert_array_equal(source.read(ROWS).to_scipy().toarray(), OTHER[ROWS])


def test_links_are_followed_by_collections_and_conversion(tmp_path: Path) -> None:
    path = linked(tmp_path, "X", "obs/kind")
    convert(path, tmp_path / "a.cells", n_processes=1)
    for collection in (Collection.open(path), Collection.open(tmp_path / "a.cells")):
        np.testing.assert_array_equal(collection.read(ROWS).to_scipy().toarray(), X[ROWS])
        assert collection.obs(["kind"])["kind"][4] == f"kind 1 of {X.max():.0f}"


def test_soft_links_lead_through_other_files(tmp_path: Path) -> None:
    path = linked(tmp_path, "layers/counts")
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = h5py.SoftLink("/layers/counts")
    with open_source(path, counts="X") as source:
        np.testing.assert_array_equal(source.read(ROWS).to_scipy().toarray(), X[ROWS])


@pytest.mark.parametrize("member", ["X", "X/indices", "obs", "obs/kind", "var/_index", "layers/counts"])
def test_links_to_nothing_are_refused(tmp_path: Path, member: str) -> None:
    path = linked(tmp_path, member)
    (tmp_path / "true.h5ad").unlink()
    with pytest.raises(SourceFormatError, match=rf"a.h5ad: {member} is a link to /{member} in true.h5ad, which cannot"):
        open_source(path, counts="layers/counts" if "layers" in member else "auto").obs(["kind"])


def test_links_to_nothing_that_are_not_needed_do_no_harm(tmp_path: Path, caplog) -> None:
    path = linked(tmp_path)
    with h5py.File(path, "r+") as file:
        for member in ("layers/other", "uns/organism", "obsm/other"):
            file[member] = h5py.ExternalLink("gone.h5ad", "/X")
    with open_source(path) as source:
        np.testing.assert_array_equal(source.read(ROWS).to_scipy().toarray(), OTHER[ROWS])
        assert source.organism is None
        assert "skipped uns['organism']" in caplog.text
        for member in ("layers/other", "obsm/other"):
            with pytest.raises(SourceFormatError, match=rf"{member} is a link to /X in gone.h5ad"):
                source.read_matrix(member, ROWS)


def virtual(path: Path, member: str) -> None:
    """Replace an array by a virtual one, of two parts in other files."""
    with h5py.File(path, "r+") as file:
        values, attributes = file[member][...], dict(file[member].attrs)
        del file[member]
        layout, middle = h5py.VirtualLayout(values.shape, values.dtype), len(values) // 2
        for name, place in (("one.h5", slice(0, middle)), ("two.h5", slice(middle, None))):
            with h5py.File(path.with_name(name), "w") as part:
                part["d"] = values[place]
            layout[place] = h5py.VirtualSource(name, "d", values[place].shape)
        file.create_virtual_dataset(member, layout, fillvalue=0).attrs.update(attributes)


def _remove(part: Path) -> None:
    part.unlink()


def _shorten(part: Path) -> None:
    with h5py.File(part, "r+") as file:
        values = file["d"][:-1]
        del file["d"]
        file["d"] = values


@pytest.mark.parametrize("member", ["X", "X/data", "obs/number", "obsm/pca"])
@pytest.mark.parametrize(("spoil", "found"), [(_remove, "is missing"), (_shorten, "has fewer values")])
def test_virtual_datasets_are_followed_only_if_all_of_their_parts_are_there(
    tmp_path: Path, member: str, spoil: Callable[[Path], None], found: str
) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", adata(X, "dense" if member == "X" else "csr"), {})
    virtual(path, member)

    def read() -> None:
        with open_source(path, counts="X") as source:
            np.testing.assert_array_equal(source.read(ROWS).to_scipy().toarray(), X[ROWS])
            assert source.obs(["number"])["number"].tolist() == list(range(int(X.max()), int(X.max()) + N_OBS))
            np.testing.assert_array_equal(source.read_matrix("obsm/pca", ROWS), X[ROWS, :3])

    read()
    with open_source(path, counts="X") as source:
        spoil(tmp_path / "two.h5")
        with pytest.raises(SourceChangedError, match=r"two\.h5 (was removed|has changed)"):
            source.read(ROWS)
    with pytest.raises(SourceFormatError, match=f"{member} is virtual, and a part of it, d of two.h5, {found}"):
        read()


def test_external_storage_is_followed_only_if_it_is_long_enough(tmp_path: Path) -> None:
    path, raw = write_h5ad(tmp_path / "a.h5ad", make(X), {}), tmp_path / "raw.bin"
    with h5py.File(path, "r+") as file:
        attributes = dict(file["X"].attrs)
        del file["X"]
        array = file.create_dataset("X", X.shape, X.dtype, external=[(str(raw), 16, X.nbytes)])
        array[...] = X
        array.attrs.update(attributes)
    with open_source(path) as source:
        np.testing.assert_array_equal(source.read(ROWS).to_scipy().toarray(), X[ROWS])
    raw.write_bytes(raw.read_bytes()[:-4])
    with pytest.raises(SourceFormatError, match=f"X has its values in .*raw.bin, which has {12 + X.nbytes} bytes"):
        open_source(path)


@pytest.mark.parametrize("member", ["obs/number", "X"])
def test_references_are_refused(tmp_path: Path, member: str) -> None:
    path = write_h5ad(tmp_path / "a.h5ad", make(X), {})
    with h5py.File(path, "r+") as file:
        attributes, shape = dict(file[member].attrs), file[member].shape
        del file[member]
        array = file.create_dataset(member, shape, h5py.ref_dtype)
        array[...] = file["var"].ref
        array.attrs.update(attributes)
    with pytest.raises(SourceFormatError, match=f"a.h5ad: {member} holds (HDF5 references|values of type object)"):
        open_source(path).obs(["number"])


def edit_consolidated(path: Path, how: str, change: Callable[[dict], None]) -> None:
    file = path / (".zmetadata" if how == "v2" else "zarr.json")
    content = json.loads(file.read_bytes())
    copies = content["metadata"] if how == "v2" else content["consolidated_metadata"]["metadata"]
    change(copies["X/data/.zarray" if how == "v2" else "X/data"])
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("how", ["v2", "v3"])
def test_consolidated_metadata_that_contradict_an_array_are_refused(tmp_path: Path, how: str) -> None:
    path = write_zarr(tmp_path / "a.zarr", make(sp.csr_matrix(X)), how)
    edit_consolidated(path, how, lambda copy: copy.update(fill_value=7))
    with pytest.raises(SourceFormatError, match=r"contradicts the metadata in X/data; .*consolidate_metadata"):
        open_source(path)
    edit_consolidated(path, how, lambda copy: copy.update(fill_value=0.0))
    with open_source(path) as source:
        np.testing.assert_array_equal(source.read(ROWS).to_scipy().toarray(), X[ROWS])
    shutil.rmtree(path / "X")
    with pytest.raises(SourceFormatError, match="lists X/indptr, which is missing"):
        open_source(path)


def test_folders_in_zarr_may_be_links(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", make(sp.csr_matrix(X)), "v3")
    (path / "X").rename(tmp_path / "elsewhere")
    (path / "X").symlink_to(tmp_path / "elsewhere")
    with open_source(path) as source:
        np.testing.assert_array_equal(source.read(ROWS).to_scipy().toarray(), X[ROWS])
        assert source.n_obs * len(source.var) == N_OBS * N_VARS


def test_the_state_of_a_folder_covers_links_in_it(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", make(sp.csr_matrix(X)), "v3")
    (path / "obs").rename(tmp_path / "elsewhere")
    (path / "obs").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(path)
    before = open_source(path).file_state()
    assert open_source(path).file_state() == before
    file = next(file for file in (tmp_path / "elsewhere" / "number").rglob("*") if file.name == "0")
    file.write_bytes(file.read_bytes() + b"\0")
    assert open_source(path).file_state() != before


@pytest.mark.parametrize(
    "member", ["obs", "obs/kind", "obs/kind/categories", "obs/_index", "var", "X", "X/data", "raw", "layers/counts"]
)
def test_files_behind_links_are_watched(tmp_path: Path, member: str) -> None:
    path, true = linked(tmp_path, member), tmp_path / "true.h5ad"
    source = open_source(path)
    before = source.file_state()
    assert open_source(path).file_state() == before
    source.obs(["kind"])
    os.utime(true, ns=(0, 10**18))
    assert open_source(path).file_state() != before
    for read in (lambda: source.obs(["kind"]), lambda: source.read(ROWS), lambda: source.fingerprint):
        with pytest.raises(SourceChangedError, match=r"true\.h5ad has changed since it was opened"):
            read()


def test_files_behind_links_through_other_files_are_watched(tmp_path: Path) -> None:
    """Those in a linked group, virtual columns and external storage; not those of uns."""
    path, true = linked(tmp_path, "obs/kind"), tmp_path / "true.h5ad"
    others = [tmp_path / name for name in ("codes.h5", "values.bin", "two.h5", "uns.h5")]
    with h5py.File(true, "r+") as file, h5py.File(others[0], "w") as second:
        file.copy("obs/kind/codes", second, "codes")
        del file["obs/kind/codes"]
        file["obs/kind/codes"] = h5py.ExternalLink("codes.h5", "codes")
    virtual(path, "X/data")
    with h5py.File(path, "r+") as file:
        number = file["obs/number"][...]
        del file["obs/number"]
        file["obs"].create_dataset(
            "number", number.shape, number.dtype, external=[(str(others[1]), 0, h5py.h5f.UNLIMITED)]
        )
        file["obs/number"][...] = number
        file["uns/elsewhere"] = h5py.ExternalLink("uns.h5", "/")
    h5py.File(others[3], "w").close()
    watched = [true, *others[:3]]
    for file in [*watched, others[3]]:
        before = open_source(path).file_state()
        os.utime(file, ns=(0, 10**18))
        assert (open_source(path).file_state() != before) == (file in watched), file


def test_labels_that_change_behind_a_link_are_noticed_by_a_resume(tmp_path: Path) -> None:
    path = linked(tmp_path, "obs")
    before = Collection.open(path).file_state
    true = ad.read_h5ad(tmp_path / "true.h5ad")
    true.obs["kind"] = true.obs["kind"].cat.rename_categories(str.upper)
    true.write_h5ad(tmp_path / "true.h5ad")
    assert Collection.open(path).file_state != before
