"""Further matrices of a store: converted, read, exported, verified, appended; and what is refused."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scdataloader.collection.collection import Collection
from scdataloader.collection.extras import check_matrices, read_matrix
from scdataloader.commands.main import main
from scdataloader.errors import StoreFormatError
from scdataloader.kernels.records.encode import EITHER, encode_rows, most_words
from scdataloader.kernels.records.format import Records
from scdataloader.kernels.records.unpack import check_records, unpack_records
from scdataloader.store.convert import convert
from scdataloader.store.export import export, to_anndata
from scdataloader.store.reader import Store
from scdataloader.store.verify import verify
from scdataloader.store.writing import tasks
from scdataloader.testing import check_source
from scdataloader.testing.data import MemorySource, named_values
from scdataloader.types import CSRRows
from tests.store.conversions import here, tree, with_matrices, write_files
from tests.store.fuzz_files import sealed
from tests.store.kept_stores import MATRICES, PROTEINS, WITH_MATRICES
from tests.store.kept_stores import with_matrices as kept_adata
from tests.store.reference_store import read_store
from tests.store.store_damage import patch, reseal

DATA = Path(__file__).parent / "data" / "store_v2"
KEYS = ["layers/parts", "layers/whole", "obsm/pca", "obsm/proteins", "obsp/distances"]
ALL = {"layers": ["whole", "parts"], "obsm": ["pca", "proteins"], "obsp": ["distances"]}


def dense(matrix):
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def assert_same(found: ad.AnnData, given: ad.AnnData):
    for name, expected in given.layers.items():
        np.testing.assert_array_equal(dense(found.layers[name]), dense(expected).astype(np.float32))
    for name, expected in given.obsm.items():
        if isinstance(expected, pd.DataFrame):
            pd.testing.assert_frame_equal(found.obsm[name], expected.astype(np.float32))
        else:
            np.testing.assert_array_equal(found.obsm[name], expected)
    for name, expected in given.obsp.items():
        graph = found.obsp[name]  # entries of 0 are kept
        np.testing.assert_array_equal(graph.indptr, expected.indptr)
        np.testing.assert_array_equal(graph.indices, expected.indices)
        np.testing.assert_array_equal(graph.data, expected.data.astype(np.float32))


@pytest.mark.parametrize("layout", ["source", "shuffled", "grouped:kind"])
def test_they_come_back_from_a_store(tmp_path, out, layout):
    paths = write_files(tmp_path)
    store = convert(paths, out, layout=layout, n_processes=2, cells_per_shard=5, progress=False, **ALL)
    assert list(store.manifest.matrix_keys) == KEYS
    assert verify(out, sources=paths).unnamed == ()
    back = export(out, tmp_path / "back", form="zarr" if layout == "source" else "h5ad")
    for number, (path, exported) in enumerate(zip(paths, back, strict=True)):
        given = ad.read_h5ad(path)
        assert_same(to_anndata(store, number), given)
        assert_same(ad.read_zarr(exported) if layout == "source" else ad.read_h5ad(exported), given)
        check_source(store.sources[number])


@pytest.mark.parametrize("layout", ["source", "shuffled"])
@pytest.mark.parametrize("part", ["whole", "selected"])
def test_a_collection_reads_what_it_reads_from_the_files(tmp_path, out, layout, part):
    paths = write_files(tmp_path)
    here(paths, out, layout=layout, **ALL)
    where = None if part == "whole" else {"kind": "T cell"}
    ours, files = Collection.open(out, where=where), Collection.open(paths, where=where)
    rows = np.random.default_rng(0).integers(0, len(ours), 60)
    every = np.arange(len(ours))
    place = {
        f"{n}{s}": row for n, s, row in zip(files.obs_names(every), files.locate(every).source, every, strict=True)
    }
    names = zip(ours.obs_names(rows), ours.locate(rows).source, strict=True)
    same = np.array([place[f"{name}{source}"] for name, source in names])
    for key in KEYS[:-1]:
        there = files.locate(same)
        found, expected = whole(read_matrix(ours, key, ours.locate(rows))), whole(read_matrix(files, key, there))
        np.testing.assert_array_equal(found, expected)
        located = ours.locate(rows, [key])
        assert list(located.matrices) == [key]
        for piece in (slice(0, 60), slice(7, 23), slice(0, 0)):
            part = located.slice(piece.start, piece.stop)
            part.read_ahead()
            np.testing.assert_array_equal(whole(read_matrix(ours, key, part)), expected[piece], str(piece))


def whole(matrix):
    """A matrix as an array."""
    return matrix.to_scipy().toarray() if isinstance(matrix, CSRRows) else matrix


def test_neighbours_are_those_of_the_files_whatever_the_order(tmp_path, out):
    (path,) = write_files(tmp_path, (13,))
    given = ad.read_h5ad(path).obsp["distances"]
    for layout in ("source", "shuffled"):
        (source,) = here(path, tmp_path / f"{layout}.cells", layout=layout, **ALL).sources
        original = source.obs(["row"])["row"].to_numpy()
        rows, distances = source.neighbours(np.arange(13), 3)
        for cell in range(13):
            edges = {int(to): np.float32(given[original[cell], to]) for to in given[original[cell]].indices}
            del edges[original[cell]]
            found = {int(original[to]): d for to, d in zip(rows[cell], distances[cell], strict=True) if to >= 0}
            assert found == edges
            assert list(distances[cell]) == [*sorted(edges.values()), -1]


def test_a_store_without_them(tmp_path, out):
    paths = write_files(tmp_path)
    here(paths, out, layers=[])
    assert json.loads((out / "manifest.json").read_bytes())["matrices"] == []
    assert not (out / "matrices").exists()
    assert tree(out) == tree(here(paths, tmp_path / "other.cells").path)


def test_a_source_without_one_is_refused_by_name(tmp_path, out):
    paths = write_files(tmp_path)
    with h5py.File(paths[1], "r+") as file:
        del file["layers/parts"]
    with pytest.raises(KeyError, match=r"1\.h5ad has no matrix 'layers/parts', .*layers/whole"):
        here(paths, out, layers=["parts"])
    with pytest.raises(KeyError, match=r"0\.h5ad has no matrix 'obsm/pcs', .* 'obsm/pca'"):
        here(paths, out, obsm=["pcs"])
    with pytest.raises(TypeError, match=r"layers must be a list of names; got 'parts', use \['parts'\]"):
        here(paths, out, layers="parts")
    assert not out.exists()


def test_the_command(tmp_path, out, capsys):
    paths = write_files(tmp_path, (7,))
    options = ["--layers", "whole", "parts", "--obsm", "pca", "--obsp", "distances", "--processes", "1"]
    assert main(["convert", *paths, "--out", str(out), *options]) == 0
    assert Store.open(out).sources[0].matrix_keys == [key for key in KEYS if key != "obsm/proteins"]


# ------------------------------------------------------------------------------------------------- going on, and adding


@pytest.mark.parametrize("layout", ["source", "shuffled"])
def test_an_interrupted_conversion_keeps_finished_shards(tmp_path, out, layout, monkeypatch):
    paths, run, done = write_files(tmp_path), tasks.EncodeCells.run, []
    whole = tree(here(paths, tmp_path / "whole.cells", layout=layout, **ALL).path)

    def some(self):
        if len(done) == 9:
            raise KeyboardInterrupt
        done.append(self.path)
        run(self)

    monkeypatch.setattr(tasks.EncodeCells, "run", some)
    with pytest.raises(KeyboardInterrupt) as stopped:
        here(paths, out, layout=layout, **ALL)
    assert "9 of 30 shards are finished" in stopped.value.__notes__[0]
    with pytest.raises(ValueError, match=r"matrices is .*'layers/whole'.*, then .*'layers/parts', 'layers/whole'"):
        here(paths, out, layout=layout, layers=["whole"])
    monkeypatch.setattr(tasks.EncodeCells, "run", lambda self: (done.append(self.path), run(self)))
    here(paths, out, layout=layout, **ALL)
    assert len(done) == len(set(done)) == 30
    assert tree(out) == whole


@pytest.mark.slow
def test_a_killed_conversion_in_two_processes_is_finished_by_the_same_command(tmp_path, out):
    paths = write_files(tmp_path, (40, 30))
    code = (
        "import sys, os, signal, scdataloader.store.writing.tasks as tasks\n"
        "from scdataloader.store.convert import convert\n"
        "run = tasks.EncodeCells.run\n"
        "if __name__ == '__main__':\n"
        "    def last(self):\n"
        "        if self.path.startswith('matrices/00002'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "        run(self)\n"
        "    tasks.EncodeCells.run = last\n"
        f"    convert({paths!r}, {str(out)!r}, n_processes=1, cells_per_shard=9, layers=['whole', 'parts'],\n"
        "        obsm=['pca'])\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(StoreFormatError, match="rerun the same command"):
        Store.open(out)
    options = {"n_processes": 2, "cells_per_shard": 9, "layers": ["whole", "parts"], "obsm": ["pca"], "progress": False}
    convert(paths, out, **options)
    assert tree(out) == tree(convert(paths, tmp_path / "whole.cells", **options).path)


def test_appended_sources_get_the_matrices_of_the_store(tmp_path, out):
    paths = write_files(tmp_path, (13, 8, 6))
    here(paths[:1], out, **ALL)
    with pytest.raises(ValueError, match=r"has the further matrices layers/parts.*; got the further matrices obsm/pca"):
        here(paths[1:], out, append=True, obsm=["pca"])
    here(paths[1:2], out, append=True)
    store = here(paths, out, append=True, **ALL)
    assert not verify(out).unnamed
    for number, path in enumerate(paths):
        assert_same(to_anndata(store, number), ad.read_h5ad(path))
    plain = here(paths[:1], tmp_path / "plain.cells").path
    with pytest.raises(ValueError, match="has no further matrices, which appended cells get as well"):
        here(paths[1:], plain, append=True, obsm=["pca"])
    with pytest.raises(FileExistsError, match="its further matrices is none, not layers/whole"):
        here(paths[:1], plain, layers=["whole"])


@pytest.mark.parametrize("key", ["layers/whole/data", "obsm/pca", "obsp/distances/data"])
@pytest.mark.parametrize("layout", ["source", "shuffled"])
def test_a_source_with_another_matrix_is_converted_anew(tmp_path, out, key, layout, caplog):
    paths = write_files(tmp_path)
    here(paths, out, layout=layout, **ALL)
    with h5py.File(paths[0], "r+") as file:
        values = file[key][()]
        values.ravel()[-1] += 1  # the last cell is among the samples of the digest; the next one is not
        file[key][...] = values
    with pytest.raises(StoreFormatError, match=r"of 0\.h5ad changed since it was converted"):
        verify(out, sources=paths)
    store = here(paths, out, layout=layout, **ALL)
    assert f"{key.removesuffix('/data')} of 0.h5ad changed since it was converted" in caplog.text
    assert_same(to_anndata(store, 0), ad.read_h5ad(paths[0]))
    assert not verify(out).unnamed


def test_a_source_in_memory_with_another_matrix_is_converted_anew(out, caplog):
    genes, layer = [f"ENSG{i:011d}" for i in range(12)], named_values(9, 12, seed=1)
    for change in (0, 5):
        layer[8, 3] += change
        source = MemorySource("a", named_values(9, 12), genes, matrices={"layers/more": layer.copy()})
        store = here(source, out, layers=["more"])
    assert "layers/more of a changed since it was converted" in caplog.text
    np.testing.assert_array_equal(to_anndata(store).layers["more"].toarray(), layer)


def test_a_change_beyond_the_samples_is_found_by_the_time_of_the_file(tmp_path, out, caplog):
    (path,) = write_files(tmp_path, (200,))
    here(path, out, cells_per_shard=100, layers=["parts"])
    with h5py.File(path, "r+") as file:
        file["layers/parts"][1, 2] = 5
    store = here(path, out, layers=["parts"], cells_per_shard=100)
    assert "layers/parts of 0.h5ad changed" in caplog.text
    assert to_anndata(store, 0).layers["parts"][1, 2] == 5


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.fixture
def damaged(tmp_path, out):
    here(write_files(tmp_path, (13,)), out, **ALL)
    return out


@pytest.mark.parametrize("key", KEYS)
def test_a_damaged_record_is_refused_by_the_name_of_its_file(damaged, key):
    name = f"matrices/{KEYS.index(key):05}-00001.cells"
    at = (damaged / name).read_bytes()
    patch(damaged, name, (20, 1, at[20] ^ 1))
    source = Store.open(damaged).sources[0]
    assert len(source.read(np.arange(13))) == 13
    assert len(source.read_matrix(key, np.array([0, 8]))) == 2
    with pytest.raises(StoreFormatError, match=rf"{name} is damaged at cell 0 \(cell 4 of the store\)"):
        source.read_matrix(key, np.array([1, 4]))
    with pytest.raises(StoreFormatError, match=rf"{name}: cell 0: its checksum does not match"):
        verify(damaged)
    with pytest.raises(StoreFormatError, match=name):
        to_anndata(damaged)


def test_shards_of_other_matrices_are_refused(damaged):
    names = [damaged / f"matrices/0000{number}-00000.cells" for number in (0, 1)]
    shutil.copy(names[0], names[1])
    reseal(damaged)
    manifest = json.loads((damaged / "manifest.json").read_bytes())
    record = dict(manifest["matrices"][0]["shards"][0])
    record["file"] = {**record["file"], "path": "matrices/00001-00000.cells"}
    manifest["matrices"][1]["shards"][0] = record  # agrees with the manifest: only the values are wrong
    del manifest["manifest"]
    (damaged / "manifest.json").write_bytes(sealed(manifest))
    verify(damaged)
    shutil.copy(damaged / "shards/00000.cells", names[0])
    with pytest.raises(StoreFormatError, match=r"matrices/00000-00000.cells has .* bytes"):
        Store.open(damaged)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.update(version=1), "its keys are not those of version 1"),
        (lambda m: (m.pop("release"), m.update(version=2, matrices=[])), "it has the further matrices"),
        (lambda m: m["matrices"][0].update(key="layers/"), "'layers/' cannot be the key"),
        (lambda m: m["matrices"][0].update(key="layers/whole"), "it has the further matrices"),
        (lambda m: m["matrices"][0]["parts"].pop(), "is of 0 sources, but there are 1"),
        (lambda m: m["matrices"][0]["shards"].pop(), "other cells than those of the counts"),
        (lambda m: m["matrices"][0]["parts"][0].update(n_columns=41), "cannot have 41 columns"),
        (lambda m: m["matrices"][4]["parts"][0].update(n_columns=2), "cannot have 2 columns"),
        (lambda m: m["matrices"][3]["parts"][0].update(names=["CD3"]), "cannot have 3 columns"),
        (lambda m: m["matrices"][3]["parts"][0].update(names=[1, 2, 3]), "not text"),
        (lambda m: m["matrices"][0]["shards"][0]["file"].update(path="shards/00009.cells"), "cannot be a file"),
        (lambda m: m["matrices"][0]["shards"][0]["file"].update(path="matrices/../../a.cells"), "cannot be a file"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(damaged, change, why):
    manifest = json.loads((damaged / "manifest.json").read_bytes())
    change(manifest)
    del manifest["manifest"]
    (damaged / "manifest.json").write_bytes(sealed(manifest))
    with pytest.raises(StoreFormatError, match=why):
        Store.open(damaged)


# ---------------------------------------------------------------------------------------------------------- the format


@pytest.mark.parametrize("name", sorted(WITH_MATRICES))
def test_a_store_of_version_2_is_read_forever_and_as_the_page_says(name):
    store = Store.open(DATA / name)
    verify(DATA / name)
    for number, (source, by_page) in enumerate(zip(WITH_MATRICES[name].sources, read_store(DATA / name), strict=True)):
        given = kept_adata(source)
        assert_same(to_anndata(store, number), given)
        rows = np.asarray(by_page.obs["__row__"]) if "__row__" in by_page.obs else np.arange(len(by_page.obs))
        genes = by_page.var["__position__"].to_numpy()
        layer = [
            {int(genes[gene]): value for gene, value in cell.items()} for cell in by_page.matrices["layers/spliced"]
        ]
        assert layer == [MATRICES[source]["layers/spliced"][row] for row in rows]
        pca = [[cell.get(column, 0) for column in range(2)] for cell in by_page.matrices["obsm/pca"]]
        np.testing.assert_array_equal(
            np.array(pca, np.float32), given.obsm["pca"].to_numpy()[rows] if number == 0 else given.obsm["pca"][rows]
        )
        edges = [MATRICES[source]["obsp/distances"][row] for row in rows]
        assert by_page.matrices["obsp/distances"] == [
            {to: float(np.float32(value)) for to, value in cell.items()} for cell in edges
        ]
        assert by_page.names["obsm/pca"] == (PROTEINS if source == "brain.h5ad" else None)


@settings(max_examples=150)
@given(
    cells=st.lists(
        st.dictionaries(
            st.integers(0, 999),
            st.integers(1, 2**24).map(float) | st.floats(width=32, allow_nan=False) | st.sampled_from([float(2**31)]),
            max_size=12,
        ),
        min_size=1,
        max_size=5,
    ),
    permute=st.booleans(),
)
def test_every_float32_comes_back_whatever_the_kind_of_its_record(cells, permute):
    order = np.arange(1000, dtype=np.int32)
    order = order[::-1].copy() if permute else order
    genes = np.array([gene for cell in cells for gene in sorted(cell)], np.int32)
    values = np.array([cell[gene] for cell in cells for gene in sorted(cell)], np.float32)
    indptr = np.cumsum([0, *map(len, cells)]).astype(np.int64)
    n = len(cells)
    words, offsets = np.empty(most_words(n, len(values)), np.uint64), np.empty(n, np.int64)
    sizes = np.empty(n, np.uint32)
    n_words = encode_rows(indptr, genes, values.view(np.uint32), order, EITHER, 0, words, offsets, sizes)
    ends = np.append(offsets[1:], 8 * n_words)
    records = Records(np.arange(n), words.ctypes.data + offsets, ends - offsets, sizes.astype(np.int64))
    status = np.ones(n, np.uint8)
    check_records(records, np.full(n, 1000), np.zeros(n, np.int64), np.empty(0, np.bool_), np.zeros(2, np.int64),
                  EITHER, status)  # fmt: skip
    assert not status.any()
    starts = np.cumsum([0, *sizes]).astype(np.int64)
    found, bits = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.uint32)
    assert unpack_records(records, order, True, starts, found, bits) == (0, 0)
    for cell, first, last in zip(cells, starts[:-1], starts[1:], strict=True):
        wanted = {gene: np.float32(value) for gene, value in cell.items() if value}
        assert dict(zip(found[first:last].tolist(), bits[first:last].view(np.float32), strict=True)) == wanted
        assert (np.diff(found[first:last]) > 0).all()


def test_columns_of_other_names_are_refused(tmp_path, out):
    made = [with_matrices(ad.AnnData(sp.csr_matrix(np.ones((4, 9), np.float32)))) for _ in range(2)]
    for number, adata in enumerate(made):
        adata.var_names = [f"ENSG{i:011d}" for i in range(9)]
        adata.obs["cell"] = [f"{number}{i}" for i in range(4)]
    made[1].obsm["proteins"].columns = ["CD3", "CD4", "CD19"]
    paths = [tmp_path / f"{number}.h5ad" for number in range(2)]
    for path, adata in zip(paths, made, strict=True):
        adata.write_h5ad(path)
    here(paths, out, obsm=["proteins", "pca"])
    for data in (paths, out):
        collection = Collection.open(data)
        check_matrices(collection, ["obsm/pca"])
        with pytest.raises(ValueError, match=r"column 2 of obsm/proteins is 'CD8' in 0\.h5ad and 'CD19' in 1\.h5ad"):
            check_matrices(collection, ["obsm/proteins"])
