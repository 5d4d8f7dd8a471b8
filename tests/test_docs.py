"""Python code in the documentation compiles, and runs where its page says so."""

import ast
import re
import sys
from inspect import signature
from operator import attrgetter

import pytest

from tests import pages

MAX_LINES = 20


@pytest.mark.parametrize("page", [page for page in pages.pages() if pages.blocks(page)])
def test_code_compiles(page):
    for block in pages.blocks(page):
        compile(block.code, f"{page}:{block.line}", "exec")


@pytest.mark.parametrize("page", pages.pages_of("test"))
def test_code_runs(page, tmp_path, monkeypatch):
    from scdataloader import registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    pages.run(page, "test", monkeypatch)


def test_the_lines_of_models_name_what_exists():
    import scdataloader

    text = (pages.ROOT / "docs" / "howto" / "models.md").read_text(encoding="utf-8")
    calls = [
        option.value
        for line in re.findall(r"`((?:collate|sampling)=[^`]+)`", text)
        for option in ast.parse(f"f({line})", mode="eval").body.keywords
        if isinstance(option.value, ast.Call) and ast.unparse(option.value.func).startswith("scd.")
    ]
    assert len(calls) > 10
    for call in calls:
        made = attrgetter(ast.unparse(call.func).removeprefix("scd."))(scdataloader)
        signature(made).bind(*call.args, **{given.arg: given.value for given in call.keywords})


def test_names_that_the_documentation_imports_are_in_the_reference():
    sys.path.insert(0, str(pages.ROOT / "docs" / "_extensions"))
    from public import public_names

    listed = {public.name for public in public_names()}
    listed |= {"CellTrainer", "load_genes", "main"}  # made with transformers; names that scPRINT-2 imports; a program
    trees = [ast.parse(block.code) for page in pages.pages() for block in pages.blocks(page) if block.environment]
    imported = {
        alias.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("scdataloader.")
        for alias in node.names
    }
    assert len(imported) > 10
    assert imported <= listed


def test_all_other_code_that_runs_belongs_to_a_consumer():
    environments = {block.environment for page in pages.pages() for block in pages.blocks(page)}
    others = environments - {"test", None}
    assert all((pages.ROOT / "tests" / "consumers" / name / "test_docs.py").exists() for name in others), others


def test_all_code_of_a_page_runs_if_some_does():
    for page in pages.pages():
        blocks = pages.blocks(page)
        if any(block.environment for block in blocks):
            assert [block.line for block in blocks if not block.environment] == [], page


def test_examples_of_extending_are_short():
    for block in pages.blocks("docs/howto/extending.md"):
        lines = block.code.count("\n")
        assert lines <= MAX_LINES, f"the example at line {block.line} has {lines} lines"
