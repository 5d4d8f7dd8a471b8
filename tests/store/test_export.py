"""A store gives back what it was made of: values to the last bit, obs and var with their order and dtypes."""

import dataclasses

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdataloader.commands.main import main
from scdataloader.errors import StoreFormatError, WriteError
from scdataloader.sources import open_source
from scdataloader.store import export as exporting
from scdataloader.store.convert import convert
from scdataloader.store.export import export, to_anndata
from scdataloader.store.reader import Store
from scdataloader.store.verify import verify
from scdataloader.store.writing import lock as locking
from tests.store.stores import Given, counts, floats, given_counts, given_floats, make_store, tables

READ = {"h5ad": ad.read_h5ad, "zarr": ad.read_zarr}


def check(adata, given):
    pd.testing.assert_frame_equal(adata.obs, given.obs)
    pd.testing.assert_frame_equal(adata.var, given.var)
    assert adata.X.has_canonical_format
    assert (adata.X.data != 0).all()
    np.testing.assert_array_equal(adata.X.toarray(), given.x.toarray())


def given_huge(name, seed):
    """Counts that float32 has not."""
    obs, var = tables(3, 40, seed=seed)
    dense = np.zeros((3, 40), np.int64)
    dense[0, [3, 39]] = (1 << 24) + 1, (1 << 32) - 1
    dense[2, 5] = 65_537
    return Given(name, sp.csr_matrix(dense), obs, var)


@pytest.fixture(params=["by source", "mixed"])
def mixed(request):
    return request.param == "mixed"


@pytest.fixture
def made(tmp_path, mixed):
    given = [given_counts("a.h5ad", 9, 700, 0, per_shard=4), given_counts("b", 6, 400, 1, uns_organism="human")]
    return make_store(tmp_path / "a.cells", given, mixed=mixed), given


def test_sources_come_back_in_memory(made):
    store, given = made
    opened = Store.open(store)
    for number, item in enumerate(given):
        for source in (number, item.name):
            adata = to_anndata(opened, source)
            check(adata, item)
            assert adata.X.dtype == np.float32
    assert dict(to_anndata(opened, "b").uns) == {"organism": "human"}
    assert dict(to_anndata(opened, 0).uns) == {}


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_sources_come_back_as_files(made, tmp_path, form, monkeypatch):
    store, given = made
    monkeypatch.setattr(exporting, "_BLOCK", 150)  # some blocks of several cells, some of one
    paths = export(store, tmp_path / "new" / "out", form=form)
    assert [path.name for path in paths] == [f"a.{form}", f"b.{form}"]
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == {f"a.{form}", f"b.{form}"}
    for path, item in zip(paths, given, strict=True):
        check(READ[form](path), item)


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_float32_comes_back_bit_for_bit(tmp_path, mixed, form):
    given = given_floats("f", 8, 90, 3)
    store = make_store(tmp_path / "f.cells", [given], mixed=mixed)
    export(store, tmp_path / f"f.{form}")
    for adata in (READ[form](tmp_path / f"f.{form}"), to_anndata(store)):
        pd.testing.assert_frame_equal(adata.obs, given.obs)
        assert adata.X.dtype == np.float32
        found, expected = adata.X.toarray(), floats(8, 90, seed=3).toarray()
        assert found.view(np.uint32).tolist() == expected.view(np.uint32).tolist()


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_counts_that_float32_has_not_come_back_as_integers(tmp_path, form):
    given = given_huge("huge", 5)
    store = make_store(tmp_path / "h.cells", [given])
    (path,) = export(store, tmp_path, form=form)
    adata = READ[form](path)
    assert adata.X.dtype == np.uint32
    check(adata, given)


def test_no_cells_and_no_values(tmp_path):
    obs, var = tables(2, 5, seed=0)
    empty = Given("none", sp.csr_matrix((2, 5), dtype=np.int64), obs, var)
    store = make_store(tmp_path / "e.cells", [empty])
    for form in ("h5ad", "zarr"):
        (path,) = export(store, tmp_path, form=form)
        adata = READ[form](path)
        assert adata.shape == (2, 5)
        assert adata.X.nnz == 0


def test_a_source_is_named_by_name_or_number(made):
    store = Store.open(made[0])
    for wrong in (2, -1, "c", None):
        with pytest.raises(LookupError, match=r"name one of 0 'a.h5ad', 1 'b'"):
            to_anndata(store, wrong)


def test_names_of_files_stay_in_the_folder_and_are_told_apart(tmp_path):
    names = ["../../up", "/etc/passwd", ".hidden", "x/y.h5ad", "x_y", "X_Y"]
    given = [given_counts(name, 3, 20, seed) for seed, name in enumerate(names)]
    out = tmp_path / "deep" / "down" / "out"
    paths = export(make_store(tmp_path / "s.cells", given), out)
    assert [path.name for path in paths] == [
        "_._.._up.h5ad",
        "_etc_passwd.h5ad",
        "_hidden.h5ad",
        "x_y.h5ad",
        "x_y-1.h5ad",
        "X_Y-2.h5ad",
    ]
    assert all(path.parent == out for path in paths)


def test_nothing_is_overwritten(made, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.h5ad").write_text("mine")
    with pytest.raises(FileExistsError, match=r"b.h5ad exists already"):
        export(made[0], tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["b.h5ad"]
    assert (tmp_path / "out" / "b.h5ad").read_text() == "mine"


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_nothing_half_written_stays(made, tmp_path, form, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(exporting.OriginalSource, "blocks", fail)
    with pytest.raises(WriteError, match=r"cannot write .*: No space left on device"):
        export(made[0], tmp_path / "out", form=form)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_an_interrupted_export_is_continued(made, tmp_path, form, monkeypatch):
    out, write = tmp_path / "out", exporting._write_into

    def stop(root, original, advance):
        if original.source.number:
            raise KeyboardInterrupt
        write(root, original, advance)

    monkeypatch.setattr(exporting, "_write_into", stop)
    with pytest.raises(KeyboardInterrupt) as stopped:
        export(made[0], out, form=form)
    assert stopped.value.__notes__ == ["1 of 2 files are finished: rerun the same command to continue"]
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match=r"export.json is of an unfinished export of other data"):
        export(made[0], out, form=form, source="b")
    first = (out / f"a.{form}").stat().st_mtime_ns
    paths = export(made[0], out, form=form)
    assert paths[0].stat().st_mtime_ns == first
    assert sorted(path.name for path in out.iterdir()) == [f"a.{form}", f"b.{form}"]
    for path, given in zip(paths, made[1], strict=True):
        check(READ[form](path), given)
    with pytest.raises(FileExistsError, match="exists already"):
        export(made[0], out, form=form)


@pytest.mark.parametrize("out", ["out", "out/b.h5ad"])
def test_a_second_export_into_the_same_place_is_refused_while_the_first_runs(made, tmp_path, out, monkeypatch):
    monkeypatch.setattr(locking, "_PATIENCE", 0.1)
    target, refused = tmp_path / out, []
    source = 1 if target.suffix else None

    def second(*_):
        with pytest.raises(RuntimeError, match=r"another export.* is writing into") as error:
            export(made[0], target, source=source)
        refused.append(error)
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "_write_into", second)
    with pytest.raises(KeyboardInterrupt):
        export(made[0], target, source=source)
    assert len(refused) == 1
    assert not (tmp_path / "out").exists()


def test_a_damaged_cell_is_named_and_nothing_stays(tmp_path):
    store = make_store(tmp_path / "f.cells", [given_floats("f", 8, 90, 3)])
    shard = store / "shards" / "00000.cells"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreFormatError, match=r"00000.cells is damaged at cell 0 .*checksum"):
        export(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("out", "source", "form", "why"),
    [
        ("x.h5ad", None, None, "is one file, but there are 2 sources"),
        ("x.zarr", None, None, "is one file, but there are 2 sources"),
        ("x.h5ad", 0, "zarr", "does not end in .zarr"),
    ],
)
def test_one_file_is_for_one_source(made, tmp_path, out, source, form, why):
    with pytest.raises(ValueError, match=why):
        export(made[0], tmp_path / out, source=source, form=form)


def test_from_the_command_line(made, tmp_path, capsys):
    store, given = made
    assert main(["export", str(store), "--out", str(tmp_path / "one.zarr"), "--source", "b"]) == 0
    check(ad.read_zarr(tmp_path / "one.zarr"), given[1])
    assert main(["export", str(store), "--out", str(tmp_path / "out"), "--source", "0"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'one.zarr'}\n{tmp_path / 'out' / 'a.h5ad'}\n"
    assert main(["export", str(store), "--out", str(tmp_path / "out")]) == 2
    assert "a.h5ad exists already; remove it" in capsys.readouterr().err
    assert main(["export", str(store), "--out", str(tmp_path / "new"), "--source", "nobody"]) == 2
    assert "has no source 'nobody'; name one of" in capsys.readouterr().err


def awkward(n_cells, n_genes, seed):
    """An AnnData whose tables have columns of every kind that h5ad files have."""
    rng = np.random.default_rng(seed)
    obs, var = tables(n_cells, n_genes, seed=seed)
    obs.index.name, var.index.name = "barcode", "gene_ids"
    obs["ordered"] = pd.Categorical(rng.choice([10, 2, 30], n_cells), categories=[30, 2, 10, 7], ordered=True)
    obs["unknown"] = pd.Categorical([None] * n_cells, categories=["a"])
    obs["some"] = pd.Categorical(np.where(rng.random(n_cells) < 0.5, "x", None), categories=["y", "x"])
    obs["age"] = np.where(rng.random(n_cells) < 0.5, np.nan, 3.5)
    obs["flags"] = pd.array(rng.choice([True, False, None], n_cells), dtype="boolean")
    obs["whole"] = pd.array(rng.choice([1, 2, None], n_cells), dtype="Int32")
    var["mean"] = rng.random(n_genes)
    var["feature_type"] = pd.Categorical(rng.choice(["gene", "spike-in"], n_genes))
    x = counts(n_cells, n_genes, seed=seed)
    return ad.AnnData(x.astype(np.float32), obs=obs, var=var)


@pytest.mark.parametrize("layout", ["source", "shuffled", "grouped:kind"])
@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_there_and_back_again(tmp_path, layout, form):
    given = {f"{name}.h5ad": awkward(n, n_genes, n) for name, n, n_genes in (("a", 40, 300), ("b", 25, 200))}
    for name, adata in given.items():
        adata.copy().write_h5ad(tmp_path / name, convert_strings_to_categoricals=False)
    paths = [tmp_path / name for name in given]
    convert(paths, tmp_path / "s.cells", layout=layout, n_processes=1, cells_per_shard=16)
    verify(tmp_path / "s.cells")
    found = export(tmp_path / "s.cells", tmp_path / "out", form=form)
    assert [path.stem for path in found] == ["a", "b"]
    for path, written in zip(found, paths, strict=True):
        adata, expected = READ[form](path), ad.read_h5ad(written)
        pd.testing.assert_frame_equal(adata.obs, expected.obs)
        pd.testing.assert_frame_equal(adata.var, expected.var)
        assert (adata.X != expected.X).nnz == 0


@pytest.mark.slow
def test_real_files_there_and_back_again(tmp_path, real_data):
    paths = sorted(real_data.glob("*.h5ad"))
    store = convert(paths, tmp_path / "s.cells", layout="shuffled", n_processes=1)
    for source, path in zip(store.sources, paths, strict=True):
        adata, expected, original = to_anndata(store, source.number), ad.read_h5ad(path), open_source(path)
        matrix, _, layer = original.counts.partition("/")
        whole = expected.raw if matrix == "raw" else expected
        values = expected.layers[layer] if layer else whole.X
        pd.testing.assert_frame_equal(adata.obs, expected.obs)
        pd.testing.assert_frame_equal(adata.var, whole.var)
        assert (sp.csr_matrix(values) != adata.X).nnz == 0


def test_tables_without_any_column(tmp_path):
    given = ad.AnnData(counts(12, 30, seed=0).astype(np.float32))
    given.write_h5ad(tmp_path / "bare.h5ad")
    store = convert(tmp_path / "bare.h5ad", tmp_path / "s.cells", layout="shuffled", n_processes=1)
    adata = to_anndata(store)
    pd.testing.assert_frame_equal(adata.obs, given.obs)
    pd.testing.assert_frame_equal(adata.var, given.var)
    assert (given.X != adata.X).nnz == 0


def test_cells_without_names_come_back_numbered(tmp_path):
    given = given_counts("a", 4, 60, 5)
    given = dataclasses.replace(given, obs=given.obs.reset_index(drop=True))
    adata = to_anndata(make_store(tmp_path / "a.cells", [given]))
    assert adata.obs_names.tolist() == ["0", "1", "2", "3"]
