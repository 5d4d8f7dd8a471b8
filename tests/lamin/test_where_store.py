"""A condition on registries chooses the same cells of a registered store as of the collection that it was made of."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scdataloader import Collection, DataModule, Sampling
from scdataloader.commands.main import main
from scdataloader.curation import Recipe
from scdataloader.lamin.collections import resolve_lamin
from scdataloader.lamin.register import register
from tests.lamin.curated import CD8, CELL_TYPE, HUMAN, MOUSE, NAIVE_CD8, NEURON, TISSUE, B, T, curated
from tests.s3 import s3_server

KEY = "where_store/atlas"
LAYOUTS = ("source", "shuffled", f"grouped:{CELL_TYPE}")


@pytest.fixture(scope="module")
def storage(lamin: ModuleType) -> Path:
    return Path(lamin.settings.storage.root_as_str) / "where_store"


@pytest.fixture(scope="module", autouse=True)
def stores(lamin: ModuleType, storage: Path) -> dict[str, str]:
    """{layout: the store in it, as data}: versions of one artifact, of a collection that has had a newer one since.

    Two of the files have one name. Tissues are linked under a column that no file has, and one label to whole files.
    """
    made = [
        curated(storage / "x" / "a.h5ad", [T, B, CD8, "unknown", T], source="x/a.h5ad", organism=HUMAN),
        curated(storage / "y" / "a.h5ad", [NEURON, NEURON, B, T], source="y/a.h5ad", organism=MOUSE),
        curated(storage / "c.h5ad", [NAIVE_CD8, NEURON, T, NAIVE_CD8, B], organism=MOUSE),
        curated(storage / "d.h5ad", [T, T], organism=HUMAN, labels={CELL_TYPE: [T], TISSUE: ["UBERON:0000178"]}),
    ]
    register(made, key=KEY, recipe=Recipe())
    label = lamin.ULabel(name="where_store: good").save()
    for name in ("y/a", "raw/d"):
        lamin.Artifact.get(key=f"{KEY}/{name}.h5ad").ulabels.add(label)
    for number, layout in enumerate(LAYOUTS):
        assert convert(storage / f"{number}.cells", "--layout", layout) == 0
    changed = curated(storage / "new.h5ad", [NAIVE_CD8] * 3, source="x/a.h5ad", organism=HUMAN)
    register([changed, replace(made[1], status="dropped", output=None, labels={})], key=KEY, recipe=Recipe())
    return {layout: f"lamindb:{KEY}.cells@{number:04}" for number, layout in enumerate(LAYOUTS)}


def convert(out: Path, *options: str, data: str = f"lamindb:{KEY}@0000") -> int:
    return main(["convert", data, "--out", str(out), "--register", "--processes", "1", *options])


def cells(data: object, where: dict) -> list[tuple[str, str, str]] | None:
    """File, name and label of each cell, in no order of their own; None if there are none."""
    try:
        collection = Collection.open(data, where=where)
    except LookupError:
        return None
    found = []
    for part in collection.parts:
        rows = slice(None) if part.rows is None else part.rows
        names, labels = part.source.obs_names()[rows], part.source.obs([CELL_TYPE])[CELL_TYPE].iloc[rows]
        file = part.source.name.rpartition("/")[2]  # a store keeps as much of the path as told its files apart
        found += [(file, *cell) for cell in zip(names, labels, strict=True)]
    assert len(found) == len(collection)
    return sorted(found)


TERMS = [f"{term}{below}" for term in (T, CD8, NAIVE_CD8, B, NEURON) for below in ("", " and below")]
conditions = st.fixed_dictionaries(
    {},
    optional={
        "cell_types": st.lists(st.sampled_from(TERMS), min_size=1, max_size=3),
        "organisms": st.sampled_from(["human", "mouse", ["human", "mouse"]]),
        "tissues": st.just("blood"),
        "ulabels": st.just("where_store: good"),
    },
)


@given(layout=st.sampled_from(LAYOUTS), where=conditions)
@settings(max_examples=20)
def test_the_same_cells_are_chosen(stores, layout, where) -> None:
    assert cells(stores[layout], where) == cells(f"lamindb:{KEY}@0000", where)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_counts_are_read(stores, layout) -> None:
    where = {"cell_types": f"{T} and below", "organisms": "mouse"}
    stored, files = Collection.open(stores[layout], where=where), Collection.open(f"lamindb:{KEY}@0000", where=where)
    tables = [
        pd.DataFrame(collection.read(np.arange(len(collection))).to_scipy().toarray()).sort_values(by=list(range(5)))
        for collection in (stored, files)
    ]
    assert len(files) == 4
    np.testing.assert_array_equal(*tables)
    assert stored.read_cost.is_flat


def test_each_order_of_the_cells_is_another_collection(stores) -> None:
    where = {"ulabels": "where_store: good"}  # whole files, but not all of them
    prints = {Collection.open(data, where=where).fingerprint for data in stores.values()}
    assert len(prints) == len(LAYOUTS)
    assert Collection.open(f"lamindb:{KEY}@0000", where=where).fingerprint in prints


def test_stores_and_files_may_be_chosen_from_together(lamin: ModuleType, stores, storage: Path) -> None:
    register([curated(storage / "e.h5ad", [B, NEURON])], key="where_store/other", recipe=Recipe())
    where = {"cell_types": B}
    both = ["lamindb:where_store/other", stores["shuffled"]]
    assert cells(both, where) == [("a.h5ad", "c1", B), ("a.h5ad", "c2", B), ("c.h5ad", "c4", B), ("e.h5ad", "c0", B)]
    with pytest.raises(ValueError, match="hold the same cells"):
        Collection.open([stores["source"], f"lamindb:{KEY}@0000"], where=where)


def test_a_store_of_stores_and_files_has_their_labels(lamin: ModuleType, stores, storage: Path) -> None:
    more = lamin.Artifact(curated(storage / "f.h5ad", [T, B]).output).save()
    store = lamin.Artifact.filter(key=f"{KEY}.cells").order_by("id").first()
    lamin.Collection([store, more], key="where_store/nested").save()
    assert convert(storage / "nested.cells", data="lamindb:where_store/nested") == 0
    where = {"cell_types": T}
    assert cells("lamindb:where_store/nested.cells", where) == cells(stores["source"], where)


def test_files_of_the_collection_are_not_needed(stores, storage: Path) -> None:
    before = cells(stores["source"], {"cell_types": T})
    versions = storage / "x" / "versions"
    versions.rename(storage / "away")
    try:
        assert cells(stores["source"], {"cell_types": T}) == before
    finally:
        (storage / "away").rename(versions)


@pytest.mark.s3
def test_files_in_a_bucket_are_not_asked_for_again(lamin: ModuleType, storage: Path, tmp_path: Path) -> None:
    key = "where_store/bucket"
    made = [curated(tmp_path / f"{name}.h5ad", [T, B, NEURON]) for name in "mn"]
    with s3_server() as address:
        bucket = f"s3://atlas/where_store?endpoint_url={address}"
        register(made, key=key, recipe=Recipe(), storage=bucket)
        assert convert(storage / "bucket.cells", data=f"lamindb:{key}") == 0
        register(
            [curated(tmp_path / "m" / "m.h5ad", [T], source="raw/m.h5ad")], key=key, recipe=Recipe(), storage=bucket
        )
        older = storage / "older.cells"  # of files one of which is no longer the newest of its name
        assert convert(older, "--layout", "shuffled", data=f"lamindb:{key}@0000") == 0
    for version in ("0000", "0001"):
        assert [cell for *_, cell in cells(f"lamindb:{key}.cells@{version}", {"cell_types": T})] == [T, T]


def test_training_draws_only_these_cells(stores) -> None:
    dm = DataModule(
        stores["shuffled"],
        labels=[CELL_TYPE],
        where={"cell_types": [f"{T} and below"]},
        sampling=Sampling(by=CELL_TYPE, scheme="uniform", num_samples=64),
        batch_size=8,
    )
    dm.setup("fit")
    drawn = np.concatenate([batch["labels"][:, 0] for batch in dm.train_dataloader()])
    dm.teardown("fit")
    assert {dm.decoders[CELL_TYPE][code] for code in drawn.tolist()} == {T, CD8, NAIVE_CD8}


def test_inspect_says_which_version_a_store_holds(stores, capsys) -> None:
    assert main(["inspect", stores["shuffled"], "--where", f"cell_types={NEURON}"]) == 0
    shown = capsys.readouterr().out
    assert "2 sources, 3 cells" in shown
    assert f"{stores['shuffled']} holds lamindb:{KEY}@0000; the newest version is 0001\n" in shown
    assert convert(Path(resolve_lamin(stores["source"])[0].path).parent / "newest.cells", data=f"lamindb:{KEY}") == 0
    assert main(["inspect", f"lamindb:{KEY}.cells"]) == 0
    assert f"lamindb:{KEY}.cells@0003 holds lamindb:{KEY}@0001; the newest version\n" in capsys.readouterr().out
    assert cells(f"lamindb:{KEY}.cells", {"cell_types": NAIVE_CD8}) == cells(
        f"lamindb:{KEY}", {"cell_types": NAIVE_CD8}
    )
    assert len(cells(f"lamindb:{KEY}.cells", {"cell_types": NAIVE_CD8})) == 5


def test_a_path_has_no_registries(storage: Path) -> None:
    with pytest.raises(KeyError, match=r"no source has the obs column 'cell_types' of where.*lamindb:<key>"):
        Collection.open(storage / "1.cells", where={"cell_types": "CL:0000084"})


def test_a_store_that_was_moved_is_registered_where_it_is(lamin: ModuleType, storage: Path) -> None:
    key = "where_store/moved"
    register([curated(storage / "g.h5ad", [T, B])], key=key, recipe=Recipe())
    out, moved = storage / "before.cells", storage / "moved.cells"
    assert convert(out, data=f"lamindb:{key}") == 0
    out.rename(moved)
    said = f"before.cells; move it back, or register it .* convert lamindb:{key}@0000 --out"
    with pytest.raises(FileNotFoundError, match=said):
        Collection.open(f"lamindb:{key}.cells")
    for _ in range(2):
        assert convert(moved, data=f"lamindb:{key}") == 0
    assert lamin.Artifact.get(key=f"{key}.cells").path == moved
    assert cells(f"lamindb:{key}.cells@0000", {"cell_types": T}) == [("g.h5ad", "c0", T)]


def test_a_store_without_lineage_has_no_labels_until_it_is_registered(lamin: ModuleType, storage: Path) -> None:
    key = "where_store/by_hand"
    register([curated(storage / "h.h5ad", [T, B])], key=key, recipe=Recipe())
    out = storage / "by_hand.cells"
    assert main(["convert", f"lamindb:{key}", "--out", str(out), "--processes", "1"]) == 0
    lamin.Artifact(out, key=f"{key}.cells").save()
    assert len(Collection.open(f"lamindb:{key}.cells")) == 2
    assert main(["inspect", f"lamindb:{key}.cells"]) == 0
    with pytest.raises(LookupError, match=rf"collection the store '{key}\.cells' was converted from, .* --register"):
        Collection.open(f"lamindb:{key}.cells", where={"cell_types": T})
    assert convert(out, data=f"lamindb:{key}") == 0
    assert cells(f"lamindb:{key}.cells", {"cell_types": T}) == [("h.h5ad", "c0", T)]


def test_a_store_that_is_not_what_was_registered_is_refused(lamin: ModuleType, storage: Path) -> None:
    key = "where_store/changed"
    made = [curated(storage / f"{name}.h5ad", [T, B, B]) for name in "ijk"]
    register(made[:1], key=key, recipe=Recipe())
    out = storage / "changed.cells"
    assert convert(out, data=f"lamindb:{key}") == 0
    assert main(["convert", str(made[1].output), "--out", str(out), "--append", "--processes", "1"]) == 0
    said = rf"has 2 sources, but lamindb:{key}@0000, .* has 1 artifacts; convert lamindb:{key}@0000"
    with pytest.raises(ValueError, match=said):
        Collection.open(f"lamindb:{key}.cells", where={"cell_types": T})
    shutil.rmtree(out)
    assert main(["convert", str(made[2].output), "--out", str(out), "--processes", "1"]) == 0
    with pytest.raises(ValueError, match=r"source 0 of .* is k\.h5ad with 3 cells, but in .* it is i\.h5ad with 3"):
        Collection.open(f"lamindb:{key}.cells", where={"cell_types": T})


def test_the_same_counts_with_other_labels_are_another_store(storage: Path, capsys) -> None:
    key = "where_store/relabelled"
    made = curated(storage / "l.h5ad", [T, B])
    register([made], key=key, recipe=Recipe())
    out = storage / "relabelled.cells"
    assert convert(out, data=f"lamindb:{key}") == 0
    adata = ad.read_h5ad(made.output)
    adata.obs[CELL_TYPE] = pd.Categorical([B, T])
    made.output.unlink()  # the registered file is another name of it
    adata.write_h5ad(made.output)
    register([replace(made, content="1" * 32)], key=key, recipe=Recipe())
    assert convert(out, data=f"lamindb:{key}") == 2
    assert f"relabelled.cells is registered as the store of {key}@0000" in capsys.readouterr().err
    assert convert(storage / "again.cells", data=f"lamindb:{key}") == 0
    assert cells(f"lamindb:{key}.cells", {"cell_types": T}) == [("l.h5ad", "c1", T)]


def test_new_artifacts_of_a_collection_are_appended_and_registered(storage: Path, capsys) -> None:
    key = "where_store/growing"
    made = [curated(storage / f"{name}.h5ad", [T, B, CD8]) for name in ("m", "n", "o")]
    register(made[:1], key=key, recipe=Recipe())
    out = storage / "growing.cells"
    assert convert(out, data=f"lamindb:{key}") == 0
    shard = (out / "shards" / "00000.cells").stat().st_mtime_ns
    register(made[1:2], key=key, recipe=Recipe())
    assert convert(out, data=f"lamindb:{key}") == 2
    assert f"growing.cells is registered as the store of {key}@0000" in capsys.readouterr().err
    for _ in range(2):
        assert convert(out, "--append", data=f"lamindb:{key}") == 0
    assert (out / "shards" / "00000.cells").stat().st_mtime_ns == shard
    where = {"cell_types": f"{T} and below"}
    assert cells(f"lamindb:{key}.cells", where) == cells(f"lamindb:{key}", where)
    assert len(cells(f"lamindb:{key}.cells", where)) == 4
    assert main(["convert", str(made[2].output), "--out", str(out), "--append", "--processes", "1"]) == 0
    assert convert(out, "--append", data=f"lamindb:{key}") == 2
    assert "has 3 sources, but" in capsys.readouterr().err


def test_only_a_store_of_one_collection_is_registered(storage: Path, capsys) -> None:
    assert convert(storage / "0.cells", data="x.h5ad") == 2
    assert "--register expects one lamindb:<key of a collection>" in capsys.readouterr().err
