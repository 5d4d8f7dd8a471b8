"""What decides what becomes of a file: its hash, and what is refused at once."""

from dataclasses import replace

import pytest
from jsonargparse import ArgumentParser

from scdataloader.curation import Curator, Recipe, Rule
from tests.curation.helpers import raw, table


def test_the_hash_changes_with_what_decides_and_with_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    genes = table(tmp_path)
    (tmp_path / "steps_of_mine.py").write_text("def hook(block): return block\n")
    recipe = Recipe(genes={"human": genes}, after=["steps_of_mine:hook"], rules={"a*": Rule(organism="human")})
    hashes = [recipe.hash, replace(recipe, min_genes_per_cell=1).hash, recipe.for_file("x/b.h5ad").hash]
    moved = tmp_path / "elsewhere.csv"
    moved.write_text((tmp_path / "genes.csv").read_text())
    assert replace(recipe, genes={"NCBITaxon:9606": str(moved)}).hash == recipe.hash
    assert recipe.for_file("x/a.h5ad").hash == replace(recipe, rules={"*": Rule(organism="human")}).hash
    by_folder = replace(recipe, rules={"x/*": Rule(organism="human")})
    assert by_folder.for_file("x/a.h5ad").hash == recipe.for_file("x/a.h5ad").hash
    assert by_folder.for_file("y/a.h5ad").rule == Rule()
    other_rule = replace(recipe, rules={**recipe.rules, "b*": Rule(organism="mouse")})
    assert other_rule.for_file("a.h5ad").hash == recipe.for_file("a.h5ad").hash
    assert other_rule.for_file("b.h5ad").hash != recipe.for_file("b.h5ad").hash
    moved.write_text(moved.read_text() + "ENSG00000000009,NEW,\n")
    hashes.append(replace(recipe, genes={"human": str(moved)}).hash)
    (tmp_path / "steps_of_mine.py").write_text("import help_of_mine\ndef hook(block): return block.copy()\n")
    hashes.append(recipe.hash)
    (tmp_path / "packed").mkdir()
    for name, text in {
        "help_of_mine.py": "import numpy\nfrom packed.further import f",
        "packed/__init__.py": "",
        "packed/further.py": "f = 2",
    }.items():
        (tmp_path / name).write_text(text)
        hashes.append(recipe.hash)
    of_package = replace(recipe, after=["packed.further:f"])
    before = of_package.hash
    (tmp_path / "packed" / "other.py").write_text("import help_of_mine")
    hashes += [before, of_package.hash]
    (tmp_path / "help_of_mine.py").write_text("# other")
    hashes.append(of_package.hash)
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"min_gene_overlap": 2}, ValueError, "min_gene_overlap must be from 0 to 1, not 2"),
        ({"n_mads": 0}, ValueError, "n_mads must be positive, not 0"),
        ({"min_cells_per_gene": -1}, ValueError, "min_cells_per_gene must be 0 or more, not -1"),
        ({"max_pct_mt": 500}, ValueError, "max_pct_mt must be .* from 0 to 100, not 500"),
        ({"genes": {"human": "a", "Homo sapiens": "b"}}, ValueError, "names an organism twice: human, Homo sapiens"),
        ({"genes": {"humn": "a"}}, ValueError, r"did you mean 'human'\?"),
    ],
)
def test_recipes_that_make_no_sense(options, error, why):
    with pytest.raises(error, match=why):
        Recipe(**options)


def test_rules_that_make_no_sense():
    with pytest.raises(ValueError, match="makes donor_id more than once"):
        Rule(columns={"a": "donor_id"}, constants={"donor_id": "1"})
    with pytest.raises(ValueError, match="unknown organism 'humn'"):
        Rule(organism="humn")
    with pytest.raises(ValueError, match="both values and a constant for donor_id"):
        Rule(values={"donor_id": {"a": "b"}}, constants={"donor_id": "1"})
    with pytest.raises(ValueError, match="replaces a value of cluster twice, as a number and as text"):
        Rule(values={"cluster": {3: "a", "3": "b"}})


@pytest.mark.parametrize(
    ("form", "rules"),
    [
        ("yaml", "{a*: {values: {louvain: {3: T cell, 4: unknown, '5': B cell}}}}"),
        ("yaml", "\n  a*:\n    values:\n      louvain:\n        '3': T cell\n        4: unknown\n        5.0: B cell"),
        ("json", '{"a*": {"values": {"louvain": {"3": "T cell", "4": "unknown", "5": "B cell"}}}}'),
        ("word", '{"a*": {"values": {"louvain": {"3": "T cell", "4": "unknown", "5": "B cell"}}}}'),
        ("word", "{a*: {values: {louvain: {3: T cell, 4: unknown, 5: B cell}}}}"),
    ],
)
def test_values_of_a_rule_are_the_same_in_yaml_and_json_and_on_the_command_line(tmp_path, form, rules):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Recipe)
    path = tmp_path / f"curate.{form}"
    path.write_text(f'{{"rules": {rules}}}' if form == "json" else f"rules: {rules}")
    words = ["--rules", rules] if form == "word" else ["--config", str(path)]
    given = vars(parser.instantiate(parser.parse_args(words)))["rules"]
    expected = Rule(values={"louvain": {"5": "B cell", "4": "unknown", "3": "T cell"}})
    assert given == {"a*": expected}
    assert Recipe(rules=given).hash == Recipe(rules={"a*": expected}).hash
    assert Recipe(rules=given).hash != Recipe(rules={"a*": Rule()}).hash


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"genes": {"human": "gone.csv"}}, FileNotFoundError, "the recipe names gone.csv, which does not exist"),
        ({"before": ["no_such_module:f"]}, LookupError, "no module 'no_such_module' for the hook"),
        ({"after": ["json:no_such"]}, LookupError, "the module 'json' of the hook 'json:no_such' has no function"),
        ({"after": ["json"]}, ValueError, "expected module:function"),
        ({"after": [".x:f"]}, ValueError, "expected module:function"),
        ({"labels": {"cell_type": ["CLX"]}}, LookupError, "'CLX' .*registered.*'CL'"),
        ({"assays": ["no such assay"]}, ValueError, "'no such assay' is not a term of EFO"),
    ],
)
def test_what_is_wrong_for_all_files_is_told_at_once(tmp_path, options, error, why):
    with pytest.raises(error, match=why):
        Curator(out=tmp_path / "out", recipe=Recipe(**options)).run(raw(tmp_path / "raw", 1))


def test_a_rule_for_no_file_is_told(tmp_path, caplog):
    Curator(out=tmp_path / "out", recipe=Recipe(rules={"b*": Rule(organism="mouse")})).run(raw(tmp_path / "raw", 1))
    assert "the rule for 'b*' matches none of these files" in caplog.messages
