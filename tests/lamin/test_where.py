"""Which artifacts of lamindb, and which of their cells, a condition on registries means; against pandas by hand."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from types import ModuleType

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scdataloader import Collection, DataModule, Sampling
from scdataloader.commands.main import main
from scdataloader.curation import Recipe
from scdataloader.lamin.collections import resolve_lamin
from scdataloader.lamin.register import register
from tests.curation.helpers import IDS, kept, written
from tests.curation.helpers import cells as raw_cells
from tests.lamin.curated import CD8, CELL_TYPE, HUMAN, MOUSE, NAIVE_CD8, NEURON, B, T, curated

KEY = "where/atlas"
CELLS = {"a": [T, B, CD8, "unknown"], "b": [NEURON, NEURON, B], "c": [NAIVE_CD8, NEURON, T, NAIVE_CD8, B], "d": [T, T]}
ORGANISMS = {"a": HUMAN, "b": HUMAN, "c": MOUSE, "d": MOUSE}


@pytest.fixture(scope="module", autouse=True)
def atlas(lamin: ModuleType) -> None:
    folder = Path(lamin.settings.storage.root_as_str) / "where"
    outcomes = [curated(folder / f"{name}.h5ad", labels, organism=ORGANISMS[name]) for name, labels in CELLS.items()]
    register(outcomes, key=KEY, recipe=Recipe())


def cells(where: dict) -> list[tuple[str, str]]:
    """File and cell type of each cell."""
    collection = Collection.open(f"lamindb:{KEY}", where=where)
    names = [part.source.name.removesuffix(".h5ad") for part in collection.parts for _ in range(part.n_obs)]
    return list(zip(names, collection.obs([CELL_TYPE])[CELL_TYPE], strict=True))


@pytest.mark.parametrize(
    ("where", "labels", "organisms"),
    [
        ({"cell_types": T}, {T}, {HUMAN, MOUSE}),
        ({"cell_types": f"{T} and below"}, {T, CD8, NAIVE_CD8}, {HUMAN, MOUSE}),
        ({"cell_types": "T cell and below"}, {T, CD8, NAIVE_CD8}, {HUMAN, MOUSE}),
        ({"cell_types": "t lymphocyte and below"}, {T, CD8, NAIVE_CD8}, {HUMAN, MOUSE}),
        ({"cell_types": f"{CD8} and below"}, {CD8, NAIVE_CD8}, {HUMAN, MOUSE}),
        ({"cell_types": [NEURON, f"{CD8} and below"]}, {NEURON, CD8, NAIVE_CD8}, {HUMAN, MOUSE}),
        ({"organisms": "human"}, {T, CD8, NAIVE_CD8, B, NEURON, "unknown"}, {HUMAN}),
        ({"organisms": MOUSE, "cell_types": B}, {B}, {MOUSE}),
        (
            {"cell_types": "cell and below", "organisms": ["human", "mouse"]},
            {T, CD8, NAIVE_CD8, B, NEURON},
            {HUMAN, MOUSE},
        ),
    ],
)
def test_exactly_the_cells_that_are_asked_for(where, labels, organisms) -> None:
    every = chain.from_iterable(((name, label) for label in of_file) for name, of_file in CELLS.items())
    expected = [(name, label) for name, label in every if label in labels and ORGANISMS[name] in organisms]
    assert cells(where) == expected


def test_files_without_such_cells_are_not_opened() -> None:
    found = resolve_lamin(f"lamindb:{KEY}", {"cell_types": NEURON})
    assert [item.name for item in found] == [f"{KEY}/raw/{name}.h5ad" for name in "bc"]


def test_counts_are_those_of_the_cells() -> None:
    collection = Collection.open(f"lamindb:{KEY}", where={"cell_types": f"{T} and below"})
    files = [ad.read_h5ad(item.path) for item in resolve_lamin(f"lamindb:{KEY}")]
    expected = np.concatenate([file[file.obs[CELL_TYPE].isin([T, CD8, NAIVE_CD8])].X.toarray() for file in files])
    got = collection.read(np.arange(len(collection)))
    dense = np.zeros((len(collection), collection.n_genes), np.float32)
    dense[np.repeat(np.arange(len(collection)), np.diff(got.indptr)), got.indices] = got.data
    np.testing.assert_array_equal(dense, expected)


def test_other_cells_are_another_collection() -> None:
    prints = {
        Collection.open(f"lamindb:{KEY}", where=where).fingerprint
        for where in (None, {"cell_types": T}, {"cell_types": B}, {"organisms": "human"})
    }
    assert len(prints) == 4


def test_a_label_of_names_chooses_by_names(lamin: ModuleType) -> None:
    import bionty

    folder = Path(lamin.settings.storage.root_as_str) / "where"
    adata = ad.read_h5ad(folder / "a.h5ad")
    adata.obs["kind"] = pd.Categorical(["T cell", "B cell", "B cell", "T cell"])
    adata.write_h5ad(folder / "named.h5ad")
    feature = lamin.Feature(name="kind", dtype=bionty.CellType).save()
    artifact = lamin.Artifact(folder / "named.h5ad").save()
    records = bionty.CellType.filter(ontology_id__in=[T, B])
    artifact.cell_types.add(*records, through_defaults={"feature": feature})
    collection = Collection.open(artifact, where={"cell_types": T})
    assert collection.obs(["kind"])["kind"].tolist() == ["T cell", "T cell"]


def test_a_joint_label_is_found_by_each_of_its_terms(lamin: ModuleType) -> None:
    import bionty

    column, european, latin = "self_reported_ethnicity_ontology_term_id", "HANCESTRO:0005", "HANCESTRO:0014"
    folder = Path(lamin.settings.storage.root_as_str) / "where_joint"
    folder.mkdir()
    labels = [f"{latin},{european}", european, None, latin, f"{european} || {latin}", f"{european} || ?"]
    outcome, _ = kept(written(folder / "a.h5ad", raw_cells(IDS, 6, row=range(6), **{column: labels})))
    register([outcome], key="where/joint", recipe=Recipe())
    artifact = lamin.Artifact.get(key__startswith="where/joint/")
    assert set(artifact.ethnicities.values_list("ontology_id", flat=True)) == {european, latin}
    name = bionty.Ethnicity.get(ontology_id=european).name
    for asked, rows in [(european, [0, 1, 4]), (latin, [0, 3, 4]), (name, [0, 1, 4]), ([name, latin], [0, 1, 3, 4])]:
        collection = Collection.open("lamindb:where/joint", where={"ethnicities": asked})
        assert collection.obs(["row"])["row"].tolist() == rows


def test_a_label_of_a_whole_artifact_chooses_all_its_cells(lamin: ModuleType) -> None:
    label = lamin.ULabel(name="where: good").save()
    for name in "ab":
        lamin.Artifact.get(key=f"{KEY}/raw/{name}.h5ad").ulabels.add(label)
    assert [name for name, _ in cells({"ulabels": "where: good"})] == ["a"] * 4 + ["b"] * 3
    assert cells({"ulabels": "where: good", "cell_types": B}) == [("a", B), ("b", B)]


def test_training_draws_only_these_cells() -> None:
    dm = DataModule(
        f"lamindb:{KEY}",
        labels=[CELL_TYPE],
        where={"cell_types": [f"{T} and below"]},
        sampling=Sampling(by=CELL_TYPE, scheme="uniform", num_samples=64),
        batch_size=8,
    )
    dm.setup("fit")
    drawn = np.concatenate([batch["labels"][:, 0] for batch in dm.train_dataloader()])
    dm.teardown("fit")
    assert {dm.decoders[CELL_TYPE][code] for code in drawn.tolist()} == {T, CD8, NAIVE_CD8}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"cell_type": T}, r"no registry 'cell_type' \(did you mean 'cell_types'\?\); expected one of .*tissues"),
        ({"cell_types": "T cel"}, r"registry cell_types .* has no 'T cel'; the nearest are 'T cell'"),
        ({"cell_types": "lymphocyte"}, r"none of the 4 artifacts has 'lymphocyte' in its cell_types; .*'B cell'"),
        (
            {"cell_types": CD8, "organisms": "worm"},
            "registry organisms .* has no 'worm'|none of the 4 artifacts has 'worm'",
        ),
        (
            {"cell_types": NAIVE_CD8, "organisms": "human"},
            "none of the 4 artifacts has all of",
        ),
    ],
)
def test_what_is_not_there_is_said(where, message) -> None:
    with pytest.raises(LookupError, match=message):
        Collection.open(f"lamindb:{KEY}", where=where)


def test_names_that_are_no_registries_are_columns_of_obs() -> None:
    for where in ({CELL_TYPE: [T, B]}, {"organisms": "human", CELL_TYPE: [T, B]}):
        every = chain.from_iterable(((name, label) for label in of_file) for name, of_file in CELLS.items())
        wanted = [(name, label) for name, label in every if label in (T, B)]
        if "organisms" in where:
            wanted = [(name, label) for name, label in wanted if ORGANISMS[name] == HUMAN]
        assert cells(where) == wanted
    assert cells({"cell_types": [T, B], CELL_TYPE: B}) == cells({"cell_types": B})
    with pytest.raises(
        LookupError, match=r"no registry 'cell_type_ontology_id'.*or a column of obs \(did you mean 'cell_"
    ):
        cells({"cell_type_ontology_id": T})
    with pytest.raises(LookupError, match=f"no cell has 'CL:1' in the obs column '{CELL_TYPE}'"):
        cells({CELL_TYPE: "CL:1"})


def test_a_registry_without_hierarchy_has_nothing_below(lamin: ModuleType) -> None:
    lamin.models.Reference(name="where: a paper").save()
    with pytest.raises(ValueError, match="the labels of references have no hierarchy"):
        Collection.open(f"lamindb:{KEY}", where={"references": "where: a paper and below"})


def test_other_data_have_no_registries(tmp_path: Path) -> None:
    outcome = curated(tmp_path / "a.h5ad", [T])
    with pytest.raises(ValueError, match="names registries for data of lamindb, but columns of obs for other data"):
        Collection.open([f"lamindb:{KEY}", outcome.output], where={"cell_types": "T cell"})


@pytest.mark.parametrize("name", ["homo sapiens", "Homo_sapiens", "Human", "NCBITaxon:9606"])
def test_organisms_go_by_all_their_names(name: str) -> None:
    assert len(Collection.open(f"lamindb:{KEY}", where={"organisms": name})) == len(
        Collection.open(f"lamindb:{KEY}", where={"organisms": "human"})
    )


@pytest.mark.parametrize("where", ["T cell", {"cell_types": 3}, {"cell_types": []}, {"cell_types": ["T cell", None]}])
def test_conditions_that_are_none(where: object) -> None:
    with pytest.raises(TypeError, match="where must map a registry to a label or several"):
        Collection.open(f"lamindb:{KEY}", where=where)  # type: ignore[arg-type]


def test_inspect_takes_conditions(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--where", "cell_types=T cell and below", f"cell_types={NEURON}", "organisms=human"]
    assert main(["inspect", f"lamindb:{KEY}", *words]) == 0
    assert re.search(r"2 sources, 4 cells", capsys.readouterr().out)
    apart = [word for condition in words[1:] for word in ("--where", condition)]
    assert main(["inspect", f"lamindb:{KEY}", *apart]) == 0
    assert re.search(r"2 sources, 4 cells", capsys.readouterr().out)
    assert main(["inspect", f"lamindb:{KEY}", "--where", "organisms"]) == 2
    condition = "{cell_types: [T cell and below, neuron], organisms: human}"
    (tmp_path / "a.yaml").write_text(f"data: {{data: 'lamindb:{KEY}', where: {condition}}}")
    assert main(["inspect", "--config", str(tmp_path / "a.yaml")]) == 0
    assert "2 sources, 4 cells" in capsys.readouterr().out


def test_a_store_is_registered_next_to_its_collection(lamin: ModuleType, tmp_path: Path, capsys) -> None:
    out = Path(lamin.settings.storage.root_as_str) / "where" / "atlas.cells"
    elsewhere = ["convert", f"lamindb:{KEY}", "--out", str(tmp_path / "atlas.cells"), "--register", "--processes", "1"]
    assert main(elsewhere) == 2
    assert "is outside all storages of the lamindb instance" in capsys.readouterr().err
    assert main(["convert", str(out), "--out", str(out), "--register"]) == 2
    assert "--register expects one lamindb:<key of a collection>" in capsys.readouterr().err
    for _ in range(2):  # again, there is nothing to do
        assert main(["convert", f"lamindb:{KEY}", "--out", str(out), "--register", "--processes", "1"]) == 0
    artifact = lamin.Artifact.get(key=f"{KEY}.cells")
    assert artifact.path == out
    assert lamin.Artifact.filter(key=f"{KEY}.cells").count() == 1
    assert [found.key for found in artifact.run.input_collections.all()] == [KEY]
    stored, files = Collection.open(f"lamindb:{KEY}.cells"), Collection.open(f"lamindb:{KEY}")
    rows = np.arange(len(files))
    np.testing.assert_array_equal(stored.read(rows).data, files.read(rows).data)
