"""A file is one file: however it is named, and wherever it is moved; its cells are never in a collection twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import scdataloader as scd
from scdataloader.curation import Curator, Outcome, Recipe
from scdataloader.lamin import curate_into
from scdataloader.lamin.collections import resolve_lamin
from scdataloader.lamin.register import register
from scdataloader.lamin.register.origin import Origin
from tests.curation.helpers import cells, table, written
from tests.lamin.curated import HUMAN, MOUSE, B, T, curated, without_output


@pytest.fixture
def key(request) -> str:
    """Of a collection that no other test has."""
    return f"files/{request.node.name}"


@pytest.fixture
def made(tmp_path: Path, monkeypatch) -> Callable[..., Outcome]:
    """Makes a curated file of the working directory; its content is named by a letter, its recipe by a digit."""
    monkeypatch.chdir(tmp_path)

    own = hashlib.blake2b(str(tmp_path).encode(), digest_size=15).hexdigest()  # no other test has these contents

    def make(source: str, content: str, recipe: str = "0", **changed) -> Outcome:
        name = f"{content}{recipe}{changed.get('organism', '')}"
        identity = {"content": f"{content}-{own}", "recipe": recipe * 32}
        return curated(tmp_path / "out" / name / "x.h5ad", [T, B], source=source, **identity, **changed)

    return make


def members(lamin: ModuleType, key: str) -> list[tuple[str, str]]:
    """Key below the collection's of each member, in order, and the letter and digit of what it is made of."""
    newest = lamin.Collection.get(key=key, is_latest=True)
    found = []
    for artifact in newest.ordered_artifacts.all():
        content, recipe, _ = Origin.read(artifact).identity
        found.append((artifact.key.removeprefix(f"{key}/"), content[0] + recipe[0]))
    return found


NAMES = [
    "raw/a.h5ad",
    "./raw/a.h5ad",
    "raw/../raw/a.h5ad",
    "{here}/raw/a.h5ad",
    "{here}/raw/../raw/a.h5ad",
    "{link}/a.h5ad",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_file_has_one_key_whatever_it_is_called(lamin, made, key, name, tmp_path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "link").symlink_to("raw")
    # to a folder above the working directory, too
    (tmp_path.parent / f"{tmp_path.name}-too").symlink_to(tmp_path)
    register([made("raw/a.h5ad", "a")], key=key, recipe=Recipe())
    called = name.format(here=tmp_path, link=f"{tmp_path}-too/raw")
    register([made(called, "b")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("raw/a.h5ad", "b0")]
    first, second = lamin.Artifact.filter(key=f"{key}/raw/a.h5ad").order_by("id")
    assert first.stem_uid == second.stem_uid, "versions of one artifact"


def test_a_file_elsewhere_goes_by_its_whole_path(lamin, made, key, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in (f"{tmp_path}/a.h5ad", "../a.h5ad"):
        register([made(name, name[0].replace(".", "b").replace("/", "a"))], key=key, recipe=Recipe())
    assert members(lamin, key) == [(f"{tmp_path}/a.h5ad"[1:], "b0")]


def test_files_of_one_name_in_two_folders_are_two(lamin, made, key, tmp_path, monkeypatch) -> None:
    for study, content in (("one", "a"), ("two", "b"), ("one", "c")):
        (tmp_path / study / "raw").mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / study)
        register([made("raw/matrix.h5ad", content)], key=key, recipe=Recipe())
    assert members(lamin, key) == [("raw/matrix.h5ad", "c0"), ("raw/matrix-2.h5ad", "b0")]


def test_files_whose_names_are_alike_are_told_apart(lamin, made, key) -> None:
    names = ["a.h5ad", "a.zarr", f"a.{HUMAN.replace(':', '_')}.h5ad", "../a.h5ad"]
    outcomes = [made(name, letter) for name, letter in zip(names, "abcd", strict=True)]
    register(outcomes, key=key, recipe=Recipe())
    for outcome in outcomes:  # none takes another's place
        register([made(outcome.source, outcome.content[0], "1")], key=key, recipe=Recipe())
    assert [made_of for _, made_of in members(lamin, key)] == ["a1", "b1", "c1", "d1"]
    assert len({name for name, _ in members(lamin, key)}) == 4


def test_a_file_that_is_moved_keeps_its_key(lamin, made, key) -> None:
    register([made("a.h5ad", "a"), made("z.h5ad", "e")], key=key, recipe=Recipe())
    register([made("b.h5ad", "a")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "a0"), ("z.h5ad", "e0")]
    register([made("c.h5ad", "a", "1")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "a1"), ("z.h5ad", "e0")]
    register([made("c.h5ad", "b", "1")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "b1"), ("z.h5ad", "e0")], "the last place that it was seen at"


def test_a_new_file_under_the_name_of_one_that_has_moved(lamin, made, key) -> None:
    register([made("a.h5ad", "a")], key=key, recipe=Recipe())
    both = [made("a.h5ad", "b"), made("b.h5ad", "a")]
    for _ in range(2):
        register(both, key=key, recipe=Recipe())
        assert members(lamin, key) == [("a.h5ad", "a0"), ("a-2.h5ad", "b0")]
    register([made("a.h5ad", "c")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "a0"), ("a-2.h5ad", "c0")]
    register([made("b.h5ad", "d")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "d0"), ("a-2.h5ad", "c0")]


def test_files_that_change_places(lamin, made, key) -> None:
    register([made("a.h5ad", "a"), made("b.h5ad", "b")], key=key, recipe=Recipe())
    register([made("a.h5ad", "b"), made("b.h5ad", "a")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "a0"), ("b.h5ad", "b0")]
    register([made("a.h5ad", "c")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "a0"), ("b.h5ad", "c0")]


def test_a_file_that_is_written_over_another_takes_its_place(lamin, made, key) -> None:
    register([made("a.h5ad", "a"), made("b.h5ad", "b")], key=key, recipe=Recipe())
    register([made("b.h5ad", "a")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "a0")]


def test_a_copy_does_not_count(lamin, made, key) -> None:
    register([made("b.h5ad", "a")], key=key, recipe=Recipe())
    twin = without_output(made("b.h5ad", "a", "1"), "dropped")
    register([made("a.h5ad", "a", "1"), twin], key=key, recipe=Recipe())
    assert members(lamin, key) == [("b.h5ad", "a1")]
    register([twin, made("a.h5ad", "a")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("b.h5ad", "a0")]


@pytest.fixture
def there(tmp_path: Path, monkeypatch) -> Callable[..., None]:
    """Makes files lie at places, with a content that a letter names as in `made`."""
    own = hashlib.blake2b(str(tmp_path).encode(), digest_size=15).hexdigest()
    monkeypatch.setattr("scdataloader.lamin.register.origin.content_of", lambda path: f"{path.read_text()}-{own}")

    def put(**contents: str) -> None:
        for name, content in contents.items():
            (tmp_path / f"{name}.h5ad").write_text(content)

    return put


def test_a_copy_that_is_changed_is_another_file(lamin, made, key, there) -> None:
    there(a="a", copy="a")
    register([made("a.h5ad", "a")], key=key, recipe=Recipe())
    register([made("copy.h5ad", "a")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "a0")]
    there(copy="b")
    register([made("copy.h5ad", "b")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "a0"), ("copy.h5ad", "b0")]
    there(a="c")
    register([made("a.h5ad", "c")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "c0"), ("copy.h5ad", "b0")]


def test_a_copy_of_what_a_file_was_before_is_another_file(lamin, made, key, there) -> None:
    there(a="a")
    register([made("a.h5ad", "a")], key=key, recipe=Recipe())
    there(a="b", backup="a")
    register([made("a.h5ad", "b")], key=key, recipe=Recipe())
    register([made("backup.h5ad", "a")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "b0"), ("backup.h5ad", "a0")]
    there(a="c", backup="d")
    register([made("a.h5ad", "c"), made("backup.h5ad", "d")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "c0"), ("backup.h5ad", "d0")]


def test_a_file_that_is_as_it_was_before_is_that_version_again(lamin, made, key, there) -> None:
    for content in "aba":
        there(a=content)
        done = register([made("a.h5ad", content)], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "a0")]
    assert done.n_new == 0


def test_two_keys_of_one_content_become_one(lamin, made, key) -> None:
    register([made("a.h5ad", "a"), made("b.h5ad", "b"), made("c.h5ad", "c")], key=key, recipe=Recipe())
    first, second, _ = lamin.Collection.get(key=key, is_latest=True).ordered_artifacts.all()
    noted = first.extra_data["curation"] | {"path": "/home/me/a.h5ad", "recipe": "1" * 32}
    lamin.Artifact.filter(id=second.id).update(extra_data={"curation": noted})
    assert members(lamin, key) == [("a.h5ad", "a0"), ("b.h5ad", "a1"), ("c.h5ad", "c0")]
    register([made("a.h5ad", "a", "2")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("a.h5ad", "a2"), ("c.h5ad", "c0")]


def test_parts_are_moved_with_their_file(lamin, made, key) -> None:
    def parts(source: str, content: str, recipe: str) -> list[Outcome]:
        return [made(source, content, recipe, organism=organism) for organism in (HUMAN, MOUSE)]

    register(parts("both.h5ad", "a", "0"), key=key, recipe=Recipe())
    names = [f"both.NCBITaxon_{taxon}.h5ad" for taxon in (9606, 10090)]
    assert members(lamin, key) == [(name, "a0") for name in names]
    register(parts("moved/there.h5ad", "a", "1"), key=key, recipe=Recipe())
    assert members(lamin, key) == [(name, "a1") for name in names]
    register([made("there.h5ad", "a", "2")], key=key, recipe=Recipe())
    assert members(lamin, key) == [("both.h5ad", "a2")]


def test_a_file_of_two_collections_is_replaced_in_either(lamin, made, key) -> None:
    for own in (key, f"{key}/other"):
        register([made("a.h5ad", "a")], key=own, recipe=Recipe())
    register([made("a.h5ad", "a", "1")], key=f"{key}/other", recipe=Recipe())
    assert len(members(lamin, f"{key}/other")) == 1
    assert members(lamin, key) == [("a.h5ad", "a0")]


@pytest.mark.slow
def test_curated_by_relative_then_absolute_path_then_moved(lamin, tmp_path, monkeypatch, key) -> None:
    monkeypatch.chdir(tmp_path)
    genes = table(tmp_path)
    Path("raw").mkdir()
    for seed in range(2):
        written(Path(f"raw/{seed}.h5ad"), cells(["TP53", "CD4"], seed=seed))

    def curate(files: str, least: int) -> list[str]:
        recipe = Recipe(genes={"human": genes}, min_genes_per_cell=least, min_cells_per_file=1)
        outcomes = curate_into(key, Curator(out="out", recipe=recipe, processes=1), files)
        assert {outcome.status for outcome in outcomes} == {"kept"}
        assert len(scd.Collection.open(f"lamindb:{key}")) == sum(outcome.n_cells_out for outcome in outcomes)
        return [outcome.source for outcome in outcomes]

    wanted = ["raw/0.h5ad", "raw/1.h5ad"]
    assert curate("raw/*.h5ad", 0) == wanted
    assert curate(f"{tmp_path}/raw/*.h5ad", 1) == [f"{tmp_path}/{name}" for name in wanted], "as the user named them"
    Path("raw").rename("moved")
    curate("moved/*.h5ad", 2)
    keys = [found.name for found in resolve_lamin(f"lamindb:{key}")]
    assert keys == [f"{key}/{name}" for name in wanted]
    for name in wanted:
        versions = lamin.Artifact.filter(key=f"{key}/{name}")
        assert len(versions) == 3
        assert len({version.stem_uid for version in versions}) == 1
