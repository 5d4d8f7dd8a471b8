"""Genes of a lamindb instance: imported from a table, and used as one in curation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import anndata as ad
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scdataloader.commands.main import main
from scdataloader.curation import Curator, Outcome, Recipe
from scdataloader.genes.tables import GeneTable
from scdataloader.lamin import curate_into
from scdataloader.lamin.genes import (
    import_genes,
    n_imported_genes,
    registered_genes,
    suggest_bionty_genes,
    with_bionty_genes,
)
from tests.curation.helpers import IDS, TABLE, cells, table, written

HOOKS = """
import sys

def without_database(block):
    assert not {"lamindb", "lamindb_setup", "bionty", "django"} & set(sys.modules)
    return block
"""


@pytest.fixture
def no_genes(lamin: ModuleType):
    """The module bionty, and no genes in the instance, before and after."""
    import bionty

    bionty.Gene.objects.all().delete()
    yield bionty
    bionty.Gene.objects.all().delete()


def rows_of(organism: str) -> list[list[str]]:
    return registered_genes(organism).to_numpy().tolist()


# --- the registry -----------------------------------------------------------------------------------------------------


def test_a_table_fills_the_registry_once_and_is_read_as_it_was(no_genes: ModuleType, tmp_path: Path) -> None:
    assert re.fullmatch(r"Gene: 8 genes of human, 8 new in .* s", import_genes("human", table(tmp_path)))
    assert import_genes("Homo sapiens", table(tmp_path)) == "Gene: 8 genes of Homo sapiens, none new"
    again = tmp_path / "again.csv"
    registered_genes("9606").to_csv(again, index=False)
    assert GeneTable.read(str(again)) == GeneTable.read(table(tmp_path))
    assert n_imported_genes("human") == 8
    found = no_genes.Gene.get(ensembl_gene_id=IDS[0])
    assert (found.organism.name, found.source.name, found.synonyms) == ("human", "genes.csv", "P53|BCC7")
    assert found.uid == no_genes.Gene(ensembl_gene_id=IDS[0], organism=found.organism, _skip_validation=True).uid
    assert no_genes.Gene.get(ensembl_gene_id=IDS[6]).symbol is None
    assert list(no_genes.Gene.validate([IDS[0], "no gene"], no_genes.Gene.ensembl_gene_id, organism="human")) == [
        True,
        False,
    ]


NAMES = st.sampled_from(["", "A", "B", "a-1", "NA", "x,y", 'q"', "é"])
ROWS = st.lists(
    st.tuples(st.sampled_from(IDS), NAMES, st.lists(NAMES, max_size=3)), min_size=1, unique_by=lambda row: row[0]
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_genes_are_matched_by_the_registry_as_by_the_table_that_filled_it(no_genes, tmp_path, rows) -> None:
    no_genes.Gene.objects.all().delete()
    own, theirs = tmp_path / "own.csv", tmp_path / "theirs.csv"
    named = [(gene, symbol, "|".join(synonyms)) for gene, symbol, synonyms in rows]
    pd.DataFrame(named, columns=["gene_id", "symbol", "synonyms"]).to_csv(own, index=False)
    import_genes("human", own)
    registered_genes("human").to_csv(theirs, index=False)
    assert GeneTable.read(str(theirs)) == GeneTable.read(str(own))


def test_what_is_there_stays_and_what_was_deleted_comes_back(no_genes: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "pig.csv"
    path.write_text("gene_id,symbol,synonyms\nENSSSCG00000000001,A,\nENSSSCG00000000002.4,B,\nYAL1,C,\n")
    import_genes("pig", path)
    assert rows_of("pig") == [["ENSSSCG00000000001", "A", ""], ["ENSSSCG00000000002", "B", ""], ["YAL1", "C", ""]]
    assert no_genes.Gene.get(stable_id="YAL1").ensembl_gene_id is None
    no_genes.Gene.get(symbol="B").delete()  # into the trash
    assert len(rows_of("pig")) == 2
    more = "ENSSSCG00000000001,,other\nENSSSCG00000000002,B2,\nENSSSCG00000000003,D,d1| |d2\nENSSSCG00000000003,E,d1\n"
    path.write_text(f"gene_id,symbol,synonyms\n{more}")
    said = import_genes("pig", path)
    assert re.fullmatch(r"Gene: 4 genes of pig, 2 new in .* s; 1 have other names .*", said)
    assert rows_of("pig") == [
        ["ENSSSCG00000000001", "A", ""],
        ["ENSSSCG00000000002", "B2", ""],
        ["ENSSSCG00000000003", "D", "d1|d2|E"],
        ["YAL1", "C", ""],
    ]


def test_all_of_a_table_is_imported_or_nothing(no_genes: ModuleType, tmp_path: Path) -> None:
    from django.db.utils import IntegrityError

    import_genes("human", table(tmp_path))
    last = "ENSG00000009999"
    no_genes.Gene.objects.filter(ensembl_gene_id=IDS[0]).update(uid=no_genes.uids.ontology(last))
    path = tmp_path / "many.csv"
    path.write_text("".join(f"ENSG{i:011d},G{i}\n" for i in range(7000, 10_000)))
    with pytest.raises(IntegrityError):
        import_genes("human", path)
    assert len(rows_of("human")) == 8
    assert not no_genes.Source.filter(name="many.csv").exists()


def test_a_table_of_another_organism_is_refused(no_genes: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has genes of NCBITaxon:9606, not of mouse \(NCBITaxon:10090\)"):
        import_genes("mouse", table(tmp_path))
    with pytest.raises(LookupError, match=r"import-genes mouse genes.csv`, or over the network with bionty\.Gene\."):
        registered_genes("mouse")


# --- curating ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def curate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Outcome]]:
    """Curates a file with three symbols, one of them a synonym, in a process that must not import lamindb."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "steps_of_genes.py").write_text(HOOKS)
    path = written(tmp_path / "a.h5ad", cells(["P53", "CD4", "FRESH"]))

    def run(collection: str, **options: object) -> list[Outcome]:
        recipe = Recipe(min_gene_overlap=0.0, after=["steps_of_genes:without_database"], **options)
        return curate_into(collection, Curator(out=tmp_path / "out", recipe=recipe, processes=1), path)

    return run


@pytest.mark.filterwarnings("default")  # of libraries in processes of their own
def test_curating_by_the_genes_of_the_instance(
    no_genes: ModuleType, lamin: ModuleType, tmp_path: Path, curate, caplog
) -> None:
    caplog.set_level("INFO")
    import_genes("human", table(tmp_path))
    (first,) = curate("tests/bionty", genes={"human": "bionty"})
    assert first.status == "kept", first.reason
    assert list(ad.read_h5ad(first.output).var_names) == IDS[:2]
    (written_table,) = (tmp_path / "out" / "genes").iterdir()
    assert re.fullmatch(r"bionty-NCBITaxon_9606-[0-9a-f]{16}\.csv", written_table.name)
    assert f"genes of human: 8 from bionty, written to {written_table}" in caplog.text
    known = Recipe(min_gene_overlap=0.0, after=["steps_of_genes:without_database"], genes={"human": str(written_table)})
    assert first.recipe == known.for_file("a.h5ad").hash, "the recipe of a run can be had again without the instance"
    source = lamin.Artifact.get(key__startswith="tests/bionty/").run.transform.source_code
    assert json.loads(source)["recipe"]["genes"] == {"human": str(written_table)}
    before = first.output.stat().st_mtime_ns, written_table.stat().st_mtime_ns
    curate("tests/bionty", genes={"human": "bionty"})
    assert (first.output.stat().st_mtime_ns, written_table.stat().st_mtime_ns) == before
    (tmp_path / "genes.csv").write_text(f"{TABLE}ENSG00000000009,FRESH,\n")
    import_genes("human", tmp_path / "genes.csv")
    (second,) = curate("tests/bionty", genes={"human": "bionty"})
    assert list(ad.read_h5ad(second.output).var_names) == [*IDS[:2], "ENSG00000000009"]
    assert second.recipe != first.recipe
    assert len(list((tmp_path / "out" / "genes").iterdir())) == 2


@pytest.mark.filterwarnings("default")
def test_the_registry_is_used_on_request_only(no_genes: ModuleType, tmp_path: Path, curate, caplog) -> None:
    caplog.set_level("INFO")
    import_genes("human", table(tmp_path))
    (outcome,) = curate("tests/unbidden")
    assert outcome.status == "kept"  # by the table of the package
    assert outcome.n_genes_out == 1  # CD4, not the synonym that the registry knows
    said = "no gene table of NCBITaxon:9606, but the lamindb instance has 8 genes"
    assert caplog.text.count(said) == 1
    suggest_bionty_genes([outcome], Recipe(genes={"Homo sapiens": "genes.csv"}))
    suggest_bionty_genes([replace(outcome, organism="NCBITaxon:10090")], Recipe())
    assert caplog.text.count(said) == 1


def test_genes_that_were_saved_one_by_one_are_no_table(no_genes: ModuleType, tmp_path: Path, caplog) -> None:
    import_genes("human", table(tmp_path))
    no_genes.Gene.objects.update(source=None)
    with_bionty_genes(Recipe(genes={"human": "bionty"}), tmp_path)
    assert "only 8 genes of human, saved one by one" in caplog.text


def test_a_recipe_that_names_bionty_has_no_hash() -> None:
    with pytest.raises(ValueError, match="genes from bionty, and has no hash until"):
        _ = Recipe(genes={"human": "bionty"}).hash


def test_an_empty_registry_is_reported_in_one_line(no_genes: ModuleType, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a.h5ad", cells(["P53"]))
    (tmp_path / "curate.yaml").write_text("genes: {rabbit: bionty}\n")
    assert main(["curate", "a.h5ad", "--out", "out", "--config", "curate.yaml"]) == 2
    assert re.fullmatch(
        "error: the connected lamindb instance has no genes of rabbit; import them with .*\n",
        capsys.readouterr().err,
    )
    assert not (tmp_path / "out").exists()


def test_a_missing_instance_is_reported_in_one_line(tmp_path: Path) -> None:
    written(tmp_path / "a.h5ad", cells(["P53"]))
    path = str(Path(__file__).parents[2])
    environment = {**os.environ, "LAMIN_SETTINGS_DIR": str(tmp_path / "settings"), "PYTHONPATH": path}
    words = ["curate", "a.h5ad", "--out", "out", "--genes.human", "bionty"]
    command = [sys.executable, "-m", "scdataloader", *words]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "error: no lamindb instance is connected here" in done.stderr
    assert not (tmp_path / "out").exists()
