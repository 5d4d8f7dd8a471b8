"""What is registered is all there, with its labels and its lineage, once; or nothing of it is."""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import anndata as ad
import pytest

from scdataloader import Collection, registry
from scdataloader.curation import Outcome, Recipe, Rule
from scdataloader.lamin.collections import resolve_lamin
from scdataloader.lamin.register import register
from tests.lamin.curated import (
    CD8,
    CELL_TYPE,
    HUMAN,
    MOUSE,
    NAIVE_CD8,
    NEURON,
    SEX,
    TISSUE,
    B,
    T,
    curated,
    failing_database,
    without_output,
)
from tests.lamin.killed import kill_at_each_step
from tests.ontology.term_tables import ontology


@pytest.fixture
def key(request) -> str:
    """Of a collection that no other test has."""
    return f"tests/{request.node.name}"


@pytest.fixture
def storage(lamin: ModuleType, request) -> Path:
    """A folder of the instance's storage that no other test has."""
    return Path(lamin.settings.storage.root_as_str) / request.node.name


def state(lamin: ModuleType) -> dict[str, int]:
    """How many records there are of everything that registering writes."""
    import bionty

    tables = [lamin.Artifact, lamin.Collection, lamin.Run, lamin.Transform, lamin.Feature, lamin.Schema, bionty.Tissue]
    links = [lamin.Collection.artifacts.through, bionty.CellType.artifacts.through, lamin.Artifact.schemas.through]
    return {table.__name__: table.objects.count() for table in [*tables, *links]}


def cell_counts(key: str, version: str = "") -> list[int]:
    """Cells of a collection's files, in order."""
    return [ad.read_h5ad(found.path).n_obs for found in resolve_lamin(f"lamindb:{key}{version}")]


def members(key: str, version: str = "") -> list[str]:
    """Keys of a collection's artifacts, in order."""
    return [found.name for found in resolve_lamin(f"lamindb:{key}{version}")]


def test_artifacts_have_labels_schema_organism_and_lineage(lamin: ModuleType, storage: Path, key: str) -> None:
    labels = {CELL_TYPE: [B, T], TISSUE: ["UBERON:0000178"], SEX: ["PATO:0000384"]}
    outcome = curated(storage / "a.h5ad", [T, T, B, "unknown"], labels=labels)
    rules = {"z*": Rule(organism="mouse"), "a*": Rule(organism="human")}
    done = register([outcome], key=key, recipe=Recipe(min_genes_per_cell=7, rules=rules))
    assert (done.n_new, done.n_members, done.is_new) == (1, 1, True)
    artifact = lamin.Artifact.get(key=f"{key}/raw/a.h5ad")
    assert artifact.path.parent.parent == outcome.output.parent / "versions"
    assert artifact.path.name == "a.h5ad"
    assert artifact.path.samefile(outcome.output), "a file in the storage stays where it lies"
    assert artifact.n_observations == 4
    assert set(artifact.cell_types.values_list("ontology_id", flat=True)) == {B, T}
    assert [found.name for found in artifact.tissues.all()] == ["blood"]
    assert [found.name for found in artifact.phenotypes.all()] == ["male"]
    assert [found.name for found in artifact.organisms.all()] == ["human"]
    assert set(artifact.features.slots["obs"].members.to_list("name")) == set(labels)
    feature = lamin.Feature.get(name=CELL_TYPE)
    assert set(lamin.Artifact.filter(cell_types__ontology_id=T, links_cell_type__feature=feature)) >= {artifact}
    recipe = json.loads(artifact.run.transform.source_code)["recipe"]
    assert recipe["min_genes_per_cell"] == 7
    assert list(recipe["rules"]) == list(rules), "of several rules, the first applies"
    assert lamin.Collection.get(key=key).run == artifact.run


def test_terms_come_with_all_that_is_above_them(lamin: ModuleType, storage: Path, key: str) -> None:
    import bionty

    from scdataloader.ontology.ontology import Ontology

    register([curated(storage / "a.h5ad", [NAIVE_CD8])], key=key, recipe=Recipe())
    record = bionty.CellType.get(ontology_id=NAIVE_CD8)
    above = Ontology.from_guide("CL").ancestors(NAIVE_CD8)
    assert sorted(record.query_parents().to_list("ontology_id")) == above


def test_terms_of_a_registered_ontology_are_saved(lamin: ModuleType, storage: Path, key: str, monkeypatch) -> None:
    import bionty

    toy = ontology({"TOY:1": [], "TOY:2": ["TOY:1"]}, name="TOY", labels={"TOY:2": "toy cell"})
    monkeypatch.setitem(registry._registered, ("ontology", "TOY"), lambda _: toy)
    register([curated(storage / "a.h5ad", ["TOY:2"])], key=key, recipe=Recipe())
    record = bionty.CellType.get(ontology_id="TOY:2")
    assert record.name == "toy cell"
    assert record.query_parents().to_list("ontology_id") == ["TOY:1"]


def test_terms_in_the_trash_are_taken_out_of_it(lamin: ModuleType, storage: Path, key: str) -> None:
    import bionty

    above, below = "CL:0000556", "CL:0000557"  # no other test has these
    register([curated(storage / "a.h5ad", [above, below])], key=key, recipe=Recipe())
    for term in (above, below):
        bionty.CellType.get(ontology_id=term).delete()  # into the trash
    assert not bionty.CellType.filter(ontology_id__in=[above, below]).exists()
    register([curated(storage / "b.h5ad", [above, below])], key=key, recipe=Recipe())
    artifact = lamin.Artifact.get(key=f"{key}/raw/b.h5ad")
    assert set(artifact.cell_types.values_list("ontology_id", flat=True)) == {above, below}


def test_again_writes_nothing(lamin: ModuleType, storage: Path, key: str) -> None:
    outcomes = [curated(storage / f"{name}.h5ad", [T, B]) for name in "ba"]
    first = register(outcomes, key=key, recipe=Recipe())
    before = state(lamin)
    again = register(outcomes, key=key, recipe=Recipe())
    assert (again.n_new, again.is_new, again.version) == (0, False, first.version)
    assert state(lamin) == before
    assert members(key) == [f"{key}/raw/b.h5ad", f"{key}/raw/a.h5ad"]


def test_changed_content_is_a_new_version_in_the_same_place(lamin: ModuleType, storage: Path, key: str) -> None:
    a, b = curated(storage / "a.h5ad", [T, B]), curated(storage / "b.h5ad", [T, B, T])
    old = register([a, b], key=key, recipe=Recipe()).version
    fresh = curated(storage / "new" / "a.h5ad", [T], source=a.source)
    fresh.output.replace(a.output)  # as a curation into the same folder does
    changed = replace(fresh, output=a.output)
    done = register([changed], key=key, recipe=Recipe())
    assert (done.n_new, done.n_members, done.is_new) == (1, 2, True)
    assert members(key) == [f"{key}/raw/a.h5ad", f"{key}/raw/b.h5ad"]
    assert cell_counts(key) == [1, 3]
    assert cell_counts(key, f"@{old}") == [2, 3]
    versions = lamin.Artifact.filter(key=f"{key}/raw/a.h5ad").order_by("id")
    assert [version.is_latest for version in versions] == [False, True]
    back = register([a], key=key, recipe=Recipe())
    assert (back.n_new, back.is_new) == (0, True)
    assert cell_counts(key) == [2, 3]


def test_who_stays_and_who_leaves(lamin: ModuleType, storage: Path, key: str) -> None:
    a, b, c, d = (curated(storage / f"{name}.h5ad", [T, B]) for name in "abcd")
    register([a, b, c], key=key, recipe=Recipe())
    register([d, without_output(a, "failed"), without_output(b, "dropped")], key=key, recipe=Recipe())
    assert members(key) == [f"{key}/raw/{name}.h5ad" for name in "acd"]


def test_a_collection_is_never_left_empty(lamin: ModuleType, storage: Path, key: str, caplog) -> None:
    outcome = curated(storage / "a.h5ad", [T])
    first = register([outcome], key=key, recipe=Recipe())
    done = register([without_output(outcome, "dropped")], key=key, recipe=Recipe())
    assert (done.version, done.n_members, done.is_new) == (first.version, 1, False)
    assert "a collection cannot be empty" in caplog.text


def test_nothing_kept_makes_no_collection(lamin: ModuleType, storage: Path, key: str) -> None:
    before = state(lamin)
    done = register([without_output(curated(storage / "a.h5ad", [T]), "dropped")], key=key, recipe=Recipe())
    assert (done.version, done.n_members, str(done)) == ("", 0, f"{key}: nothing to register")
    assert state(lamin) == before


def test_parts_of_a_split_file_take_its_place(lamin: ModuleType, storage: Path, key: str) -> None:
    whole, other = curated(storage / "both.h5ad", [T, B]), curated(storage / "z.h5ad", [T])
    register([whole, other], key=key, recipe=Recipe())
    parts = [
        curated(storage / f"{number}.h5ad", [T], source=whole.source, organism=organism)
        for number, organism in enumerate([HUMAN, MOUSE])
    ]
    register(parts, key=key, recipe=Recipe(mixed_organisms="split"))
    names = [f"{key}/raw/both.NCBITaxon_{taxon}.h5ad" for taxon in (9606, 10090)]
    assert members(key) == [*names, f"{key}/raw/z.h5ad"]
    again = curated(storage / "again" / "both.h5ad", [T, B], source=whole.source)
    register([again], key=key, recipe=Recipe())
    assert members(key) == [f"{key}/raw/both.h5ad", f"{key}/raw/z.h5ad"]


def test_each_recipe_is_a_version_of_the_transform(lamin: ModuleType, storage: Path, key: str) -> None:
    for number, recipe in enumerate([Recipe(), Recipe(n_mads=3.0), Recipe()]):
        outcome = curated(storage / f"{number}.h5ad", [T], recipe=recipe.hash)
        register([outcome], key=key, recipe=recipe)
        run = lamin.Artifact.get(key=f"{key}/raw/{number}.h5ad").run
        assert f'"n_mads": {recipe.n_mads}' in run.transform.source_code
    assert lamin.Transform.filter(key=f"curate/{key}").count() == 2


def test_the_same_file_in_two_collections_is_one_artifact(lamin: ModuleType, storage: Path, key: str) -> None:
    outcome = curated(storage / "a.h5ad", [T])
    register([outcome], key=key, recipe=Recipe())
    register([outcome], key=f"{key}/other", recipe=Recipe())
    assert members(key) == members(f"{key}/other") == [f"{key}/raw/a.h5ad"]


def test_files_elsewhere_are_copied_and_taken_back_after_an_error(
    lamin: ModuleType, storage: Path, key: str, tmp_path: Path
) -> None:
    root = Path(lamin.settings.storage.root_as_str)
    good = [curated(tmp_path / f"{name}.h5ad", [T, B]) for name in "ab"]
    gone = curated(tmp_path / "c.h5ad", [NEURON])
    gone.output.unlink()
    before, files = state(lamin), set(root.rglob("*.h5ad"))
    with pytest.raises(FileNotFoundError, match=r"c\.h5ad"):
        register([*good, gone], key=key, recipe=Recipe())
    assert state(lamin) == before
    assert set(root.rglob("*.h5ad")) == files
    assert all(outcome.output.exists() for outcome in good)
    register(good, key=key, recipe=Recipe())
    assert len(set(root.rglob("*.h5ad")) - files) == 2


def test_an_error_takes_away_what_was_linked_and_no_more(lamin: ModuleType, storage: Path, key: str) -> None:
    good, gone = (curated(storage / f"{name}.h5ad", [T, B]) for name in "ab")
    register([good], key=key, recipe=Recipe())
    files = sorted(storage.rglob("*"))
    more = curated(storage / "c.h5ad", [T, B])
    gone.output.unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.h5ad"):
        register([good, more, gone], key=key, recipe=Recipe())
    files.remove(gone.output)
    assert sorted(storage.rglob("*")) == sorted([*files, more.output])


def test_a_file_with_a_term_that_does_not_exist_is_named_and_the_others_are_registered(
    lamin: ModuleType, storage: Path, key: str
) -> None:
    outcomes = [curated(storage / f"{name}.h5ad", [label]) for name, label in (("a", B), ("b", "CL:9999999"))]
    done = register(outcomes, key=key, recipe=Recipe())
    assert (done.n_new, done.n_members) == (1, 1)
    why = done.refused[outcomes[1].source]
    assert re.match(
        r"obs\['cell_type.*'\]: CL:9999999 cannot be saved in bionty\.CellType: .*no such current term", why
    )
    # what was there of such a file stays as it was
    changed = curated(storage / "new" / "a.h5ad", ["CL:9999999"], source=outcomes[0].source)
    again = register([changed], key=key, recipe=Recipe())
    assert (again.is_new, again.n_members, list(again.refused)) == (False, 1, [changed.source])


def test_an_organism_without_a_name_goes_by_its_id(lamin: ModuleType, storage: Path, key: str) -> None:
    baboon = curated(storage / "a.h5ad", [B], organism="NCBITaxon:9555")
    assert register([baboon], key=key, recipe=Recipe()).n_new == 1
    assert len(Collection.open(f"lamindb:{key}", where={"organisms": "NCBITaxon:9555"})) == 1


def test_what_is_in_the_trash_comes_back_when_it_is_registered_again(
    lamin: ModuleType, storage: Path, key: str
) -> None:
    outcomes = [curated(storage / f"{name}.h5ad", [T, B]) for name in "ab"]
    register(outcomes, key=key, recipe=Recipe())
    first = lamin.Collection.get(key=key, is_latest=True).ordered_artifacts.first()
    first.delete(permanent=False)
    first.path.unlink()
    without = register(outcomes[1:], key=key, recipe=Recipe())
    assert (without.n_members, without.is_new) == (1, True)
    lamin.Collection.get(key=key, is_latest=True).ordered_artifacts.first().delete(permanent=False)
    assert register([], key=key, recipe=Recipe()).is_new is False
    back = register(outcomes, key=key, recipe=Recipe())
    assert (back.n_members, back.n_new) == (2, 0)
    assert len(Collection.open(f"lamindb:{key}")) == 4


def test_a_part_that_failed_stays_as_it_was(lamin: ModuleType, storage: Path, key: str) -> None:
    def parts(name: str) -> list[Outcome]:
        return [
            curated(storage / f"{name}.{organism[-4:]}.h5ad", [B], source="a.h5ad", organism=organism, content=name)
            for organism in (HUMAN, MOUSE)
        ]

    register(parts("one"), key=key, recipe=Recipe())
    human, mouse = parts("two")
    register([human, without_output(mouse, "failed")], key=key, recipe=Recipe())
    found = lamin.Collection.get(key=key, is_latest=True).ordered_artifacts.all()
    assert [artifact.extra_data["curation"]["content"] for artifact in found] == ["two", "one"]
    register([human, without_output(mouse, "dropped")], key=key, recipe=Recipe())
    assert lamin.Collection.get(key=key, is_latest=True).ordered_artifacts.count() == 1


def test_large_files_that_differ_in_the_middle_are_different(
    lamin: ModuleType, storage: Path, key: str, monkeypatch
) -> None:
    from lamindb_setup.core import hashing

    # as if 64 bytes were 50 MB, of which lamindb looks at the first and the last
    monkeypatch.setattr(hashing.hash_file, "__defaults__", (None, 64))
    first = curated(storage / "a.h5ad", [T, B])
    register([first], key=key, recipe=Recipe())
    content = bytearray(first.output.read_bytes())
    content[len(content) // 2] ^= 1
    (storage / "b.h5ad").write_bytes(content)
    second = curated(storage / "c.h5ad", [T, B])
    second = Outcome(**{**vars(second), "output": storage / "b.h5ad"})
    assert register([first, second], key=key, recipe=Recipe()).n_members == 2


def test_a_locked_database_is_told_in_one_line(lamin: ModuleType, storage: Path, key: str, monkeypatch) -> None:
    from django.db import connection

    outcome = curated(storage / "a.h5ad", [CD8])
    before = state(lamin)
    connection.cursor().execute("PRAGMA busy_timeout = 100")  # milliseconds; five seconds otherwise
    monkeypatch.setattr("scdataloader.lamin.register.collection.SECONDS_TO_WAIT", 0.2)
    database = sqlite3.connect(connection.settings_dict["NAME"])
    try:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RuntimeError, match=r"the SQLite database of the lamindb instance is locked by another"):
            register([outcome], key=key, recipe=Recipe())
    finally:
        database.close()
        connection.cursor().execute("PRAGMA busy_timeout = 5000")
    assert state(lamin) == before
    assert register([outcome], key=key, recipe=Recipe()).n_new == 1


def test_a_database_that_is_locked_for_a_while_is_waited_for(
    lamin: ModuleType, storage: Path, key: str, caplog
) -> None:
    from django.db import connection
    from django.db.utils import OperationalError

    caplog.set_level("INFO", "scdataloader")
    locked = [True]

    def lock_once(execute, sql, params, many, context):
        if sql.startswith("INSERT") and '"lamindb_collectionartifact"' in sql and locked:
            locked.clear()
            raise OperationalError("database is locked")
        return execute(sql, params, many, context)

    outcomes = [curated(storage / f"{name}.h5ad", [T, B]) for name in "ab"]
    with connection.execute_wrapper(lock_once):
        done = register(outcomes, key=key, recipe=Recipe())
    assert (done.n_new, done.n_members) == (2, 2)
    assert "the database is locked by another process; trying again" in caplog.messages
    assert len(Collection.open(f"lamindb:{key}", where={"cell_types": B})) == 2


@pytest.mark.slow
def test_killed_at_any_step_all_is_registered_or_nothing(lamin: ModuleType, storage: Path, key: str) -> None:
    kill_at_each_step(storage, key, LAMIN_CURRENT_INSTANCE=lamin.setup.settings.instance.slug)


def test_after_an_error_in_the_database_files_are_found_in_place(lamin: ModuleType, storage: Path, key: str) -> None:
    outcomes = [curated(storage / f"{name}.h5ad", [T, B]) for name in "ab"]
    before = state(lamin)
    with failing_database('INSERT INTO "lamindb_collection"'), pytest.raises(RuntimeError, match="does not answer"):
        register(outcomes, key=key, recipe=Recipe())
    after = state(lamin)
    assert {name for name in before if before[name] != after[name]} <= {"Feature", "Schema"}, "words, and no more"
    in_place = set(storage.glob("versions/*/*.h5ad"))
    assert len(in_place) == 2
    assert register(outcomes, key=key, recipe=Recipe()).n_new == 2
    assert {artifact.path for artifact in lamin.Collection.get(key=key).artifacts.all()} == in_place
