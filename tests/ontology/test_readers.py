"""Ontologies from a lamindb instance equal those of the guide and of an OBO file; errors name the alternatives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import httpx
import numpy as np
import pandas as pd
import pytest

from scdataloader import Ontology
from tests.s3 import s3_server

T_CELL = "CL:0000084"


pytestmark = pytest.mark.fresh_instance


@pytest.fixture(scope="module")
def guide() -> Ontology:
    return Ontology.from_guide("CL", schema_version="7.1.0")


@pytest.fixture
def registries(lamin: ModuleType) -> Iterator[ModuleType]:
    """Bionty, with empty registries; what other tests saved in the instance is there again afterwards."""
    import bionty
    from django.db import transaction

    with transaction.atomic():
        for registry in (bionty.CellType, bionty.Tissue, bionty.Disease):
            registry.parents.through.objects.all()._raw_delete("default")
            registry.objects.all()._raw_delete("default")
        yield bionty
        transaction.set_rollback(True)


def assert_same(first: Ontology, second: Ontology) -> None:
    """All queries about all current terms are equal."""
    assert first.terms == second.terms
    np.testing.assert_array_equal(first.ancestor_matrix(first.terms), second.ancestor_matrix(first.terms))
    for term in first.terms:
        for ask in ("label", "parents", "ancestors", "descendants", "depth"):
            assert getattr(first, ask)(term) == getattr(second, ask)(term), (ask, term)
        assert set(first.synonyms(term)) == set(second.synonyms(term))
        assert first.find(first.label(term)) == second.find(first.label(term)) == term
    some = first.terms[::7]
    assert first.roll_up(some, 3, ambiguous="nearest") == second.roll_up(some, 3, ambiguous="nearest")
    assert first.subgraph(some).terms == second.subgraph(some).terms
    assert first.subgraph(some).parents == second.subgraph(some).parents


def as_obo(terms: Ontology, path: Path) -> Path:
    def quoted(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"')

    lines = ["format-version: 1.2", "ontology: exported", "data-version: 1", ""]
    for term in (*terms.terms, *terms.deprecated):
        lines += ["[Term]", f"id: {term}"]
        lines += [f"name: {quoted(terms.label(term)).replace('{', chr(92) + '{')}"] if terms.label(term) != term else []
        lines += [f'synonym: "{quoted(synonym)}" EXACT []' for synonym in terms.synonyms(term)]
        if terms.is_deprecated(term):
            lines += ["is_obsolete: true"]
            lines += [f"replaced_by: {other}" for other in [terms.replaced_by(term)] if other]
        else:
            lines += [f"is_a: {parent}" for parent in terms.parents(term)]
        lines += [""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def as_table(terms: Ontology) -> pd.DataFrame:
    """The table that ``add_source`` of bionty expects."""
    return pd.DataFrame(
        {
            "ontology_id": terms.terms,
            "name": [terms.label(term) for term in terms.terms],
            "definition": "",
            "synonyms": ["|".join(terms.synonyms(term)) or None for term in terms.terms],
            "parents": [terms.parents(term) for term in terms.terms],
        }
    )


def add_source(registry, df: pd.DataFrame):
    import bionty

    entity = f"bionty.{registry.__name__}"
    # of several sources, that with the name of bionty's own is the one in use
    source = bionty.Source(entity=entity, name="cl", version="1", organism="all", currently_used=True).save()
    return registry.add_source(source, df=df)


def test_the_three_backends_give_the_same_answers(registries: ModuleType, guide: Ontology, tmp_path: Path):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    obo = Ontology.from_obo(as_obo(guide, tmp_path / "cl.obo"))
    assert_same(guide, obo)
    assert (obo.name, obo.version) == ("exported", "1")
    assert obo.deprecated == guide.deprecated
    for term in guide.deprecated:
        assert obo.replaced_by(term) == guide.replaced_by(term)
        assert obo.current(term) == guide.current(term)

    add_source(registries.CellType, as_table(guide))
    unsaved = Ontology.from_bionty(registries.CellType)
    assert registries.CellType.filter().count() == 0
    assert_same(guide, unsaved)
    assert (unsaved.name, unsaved.version) == ("bionty.CellType", "1")

    registries.CellType.import_source()
    with CaptureQueriesContext(connection) as queries:
        saved = Ontology.from_bionty("CellType")
    assert len(queries) == 2
    assert_same(guide, saved)

    own = registries.CellType(name="my cell", ontology_id=None).save()
    own.parents.add(registries.CellType.get(ontology_id=T_CELL))
    registries.CellType(name="obsolete something", ontology_id="CL:9999999").save()
    again = Ontology.from_bionty(registries.CellType)
    assert again.terms == guide.terms
    assert again.deprecated == ("CL:9999999",)
    assert again.descendants(T_CELL) == guide.descendants(T_CELL)


def test_a_registry_with_nothing_in_it_and_no_network_says_what_to_do(lamin: ModuleType, registries: ModuleType):
    with pytest.raises(
        ConnectionError, match=r"bionty.Tissue\.public\(\) cannot download.*from_guide.*add_source"
    ) as error:
        Ontology.from_bionty(registries.Tissue)
    assert "endpoint" in str(error.value)
    for wrong in (registries.Gene, "Gene", "NoRegistry", 3, lamin.ULabel):
        with pytest.raises(TypeError, match="expected a bionty registry whose records have parents"):
            Ontology.from_bionty(wrong)


def test_terms_of_two_releases_are_merged_and_the_newest_name_counts(registries: ModuleType):
    disease = registries.Disease
    old = disease(name="old name", ontology_id="MONDO:2").save()
    parent = disease(name="parent", ontology_id="MONDO:1").save()
    # bionty keeps both where a new release of its source has another name for a term in use
    new = disease(name="new name", ontology_id="MONDO:2", uid="a" * 14).save()
    old.parents.add(parent)
    new.parents.add(parent)
    terms = Ontology.from_bionty(disease)
    assert terms.terms == ("MONDO:1", "MONDO:2")
    assert terms.label("MONDO:2") == "new name"
    assert terms.parents("MONDO:2") == ["MONDO:1"]
    parent.parents.add(new)
    with pytest.raises(
        ValueError, match=r"bionty.Disease has a cycle .*: MONDO:1 \(parent\) → MONDO:2 \(new name\) → MONDO:1"
    ):
        Ontology.from_bionty(disease)


def test_a_public_table_may_lack_synonyms_names_and_parents(registries: ModuleType, monkeypatch):
    ids = pd.Index(["UBERON:1", "UBERON:2", "UBERON:3"], name="ontology_id")
    names = pd.DataFrame({"name": ["organ", "liver", np.nan]}, index=ids)
    some = names.assign(synonyms=[None, "hepar", np.nan], parents=[None, np.array(["UBERON:1"]), []])
    for table, parents, synonyms in ((names, [], ()), (some, ["UBERON:1"], ("hepar",))):
        public = SimpleNamespace(version="1", to_dataframe=lambda table=table: table)
        monkeypatch.setattr(registries.Tissue, "public", lambda public=public: public)
        terms = Ontology.from_bionty("Tissue")
        assert terms.terms == tuple(ids)
        assert terms.label("UBERON:3") == "UBERON:3"
        assert terms.parents("UBERON:2") == parents
        assert terms.synonyms("UBERON:2") == synonyms


def test_bionty_may_try_another_address_and_find_no_network_there(registries: ModuleType, monkeypatch):
    def public():
        raise httpx.ConnectError("Name or service not known")

    monkeypatch.setattr(registries.Tissue, "public", public)
    with pytest.raises(ConnectionError, match=r"bionty\.Tissue\.public\(\).*Name or service not known.*from_guide"):
        Ontology.from_bionty("Tissue")


@pytest.mark.s3
def test_an_empty_registry_is_read_from_its_public_source(registries: ModuleType, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(registries.base.settings, "_dynamicdir", tmp_path)
    source = registries.Source.get(entity="bionty.Tissue", currently_used=True)
    key = f"df_{source.organism}__{source.name}__{source.version}__Tissue.parquet"
    table = pd.DataFrame(
        {
            "ontology_id": ["UBERON:1", "UBERON:2"],
            "name": ["organ", "liver"],
            "definition": [None, None],
            "synonyms": [None, "hepar|iecur"],
            "parents": [[], ["UBERON:1", "BFO:1"]],
        }
    )
    table.to_parquet(tmp_path / "upload.parquet")
    with s3_server("bionty-assets"):
        s3 = pytest.importorskip("boto3").client("s3")
        s3.upload_file(str(tmp_path / "upload.parquet"), "bionty-assets", key, {"ACL": "public-read"})
        terms = Ontology.from_bionty(registries.Tissue)
    assert terms.ancestors(terms.find("IECUR")) == ["UBERON:1"]
    assert terms.version == source.version
    assert registries.Tissue.filter().count() == 0


WITHOUT_INSTANCE = """
import sys
from scdataloader.ontology.ontology import Ontology
from tests.s3 import s3_server
Ontology.from_guide("HsapDv")
assert not {"lamindb", "lamindb_setup", "django", "bionty", "pronto"} & set(sys.modules)
try:
    Ontology.from_bionty("CellType")
except RuntimeError as error:
    assert "bionty.CellType" in str(error) and "lamin connect" in str(error) and "from_guide" in str(error), error
else:
    raise AssertionError("read a registry without an instance")
"""


def test_without_an_instance_the_guide_works_and_bionty_says_what_to_do(tmp_path: Path):
    environment = os.environ | {"LAMIN_SETTINGS_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    code = [sys.executable, "-c", WITHOUT_INSTANCE]
    done = subprocess.run(code, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
