"""What is imported is declared in pyproject.toml, and what is declared there is imported."""

import ast
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "scdataloader"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Modules that are not called like their distribution.
MODULES = {
    "cellarium-ml": "cellarium",
    "psycopg2-binary": "psycopg2",
    "pyro-ppl": "pyro",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "scvi-tools": "scvi",
}
# Requirements that no line imports.
BOUNDS = {"aiobotocore", "s3fs"}  # they bound what lamindb requires
SERVER = {"flask", "flask-cors"}  # moto's server imports them
PLUGINS = {"hatchling", "pytest-xdist", "setuptools"}  # pytest, pip and a command of tests load them
# Environments of tests/consumers, and the modules of scdataloader.integrations that import what each offers.
CONSUMERS = {"cellarium": ["cellarium"], "frameworks": ["huggingface", "jax"], "scprint": ["scprint"], "scvi": ["scvi"]}
# Programs, and the line of the project's own files that runs or configures each of them.
PROGRAMS = {
    "import-linter": ("Makefile", "lint-imports"),
    "mypy": ("Makefile", "/mypy"),
    "myst-nb": ("docs/conf.py", '"myst_nb"'),
    "pandas-stubs": ("Makefile", "/mypy"),
    "pydata-sphinx-theme": ("docs/conf.py", '"pydata_sphinx_theme"'),
    "ruff": ("Makefile", "ruff check"),
    "sphinx": ("Makefile", "sphinx-build"),
    "sphinx-copybutton": ("docs/conf.py", '"sphinx_copybutton"'),
    "towncrier": ("pyproject.toml", "[tool.towncrier]"),
}


def distributions(extra=None):
    """Names of the distributions that the package, or one of its extras, requires, through extras of its own too."""
    requirements = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    names = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()
        if name == PROJECT["name"]:
            names = names.union(*(distributions(other) for other in extras.split(",")))
        else:
            names.add(name.lower())
    return names


def of_consumer(environment):
    """Names of the distributions that an environment of tests/consumers has beyond those of the package."""
    listed = ROOT / "tests" / "consumers" / environment / "no-deps.txt"
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    extras = re.findall(f"(?m)^EXTRAS_{environment} := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"))
    extras = [environment, *" ".join(extras).split()]
    without_deps = {re.match(r"[\w.-]+", line)[0].lower() for line in lines if line[:1].isalpha()}
    return without_deps.union(*map(distributions, extras))


def modules(names):
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def imported(tree):
    """Top-level modules of import statements, and of import_module("...") and importorskip("...")."""
    statements, calls = set(), set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                statements |= {alias.name for alias in names}
            case ast.ImportFrom(module=str(name), level=0):
                statements.add(name)
            case ast.Call(
                func=ast.Name(id=function) | ast.Attribute(attr=function), args=[ast.Constant(value=str(name)), *_]
            ) if function in ("import_module", "importorskip"):
                calls.add(name)
    return {name.partition(".")[0] for name in statements}, {name.partition(".")[0] for name in calls}


def third_party(*folders, without=None):
    """What files and folders import, by statements and by calls, beyond the standard library and our files."""
    ours = {"scdataloader", "tests", "toyplugin", "scripts", "benchmarks"}  # toyplugin is installed by tests/plugin
    ours |= {
        path.stem
        for folder in ("tests", "examples", "benchmarks", "docs/_extensions")
        for path in (ROOT / folder).glob("*.py")
    }
    paths = {
        path for name in folders for path in ((ROOT / name).rglob("*.py") if (ROOT / name).is_dir() else [ROOT / name])
    }
    statements, calls = set(), set()
    for path in paths:
        if without and path.is_relative_to(ROOT / without):
            continue
        found = imported(ast.parse(path.read_text(encoding="utf-8")))
        # scripts import each other by the names of their files, the package's files never do
        beside = set() if path.is_relative_to(PACKAGE) else {other.stem for other in path.parent.iterdir()}
        statements |= found[0] - beside
        calls |= found[1] - beside
    return statements - ours - sys.stdlib_module_names, calls - ours - sys.stdlib_module_names


@pytest.mark.parametrize(
    ("code", "statements", "calls"),
    [
        ("import a.b, c as d", {"a", "c"}, set()),
        ("from a.b import c", {"a"}, set()),
        ("from . import a\nfrom .b import c", set(), set()),
        ("def f():\n    try:\n        import a\n    except ImportError:\n        a = None", {"a"}, set()),
        ("x = import_module('a.b'); y = importlib.import_module('c')", set(), {"a", "c"}),
        ("x = pytest.importorskip('a.b', reason='c')", set(), {"a"}),
        ("x = import_module(name)\nx = open('a')", set(), set()),
    ],
)
def test_the_finder_finds(code, statements, calls):
    assert imported(ast.parse(code)) == (statements, calls)


def test_the_package_imports_what_it_requires():
    statements, _ = third_party("scdataloader", without="scdataloader/integrations")
    assert statements == modules(distributions() - BOUNDS)
    assert distributions() >= BOUNDS


def test_the_package_imports_what_its_extras_offer():
    of_integrations = {*CONSUMERS, *chain.from_iterable(CONSUMERS.values())}
    extras = set(PROJECT["optional-dependencies"]) - {"dev", "docs", "test", "test-tools"} - of_integrations
    offered = modules(set().union(*(distributions(extra) for extra in extras)))
    _, calls = third_party("scdataloader", without="scdataloader/integrations")
    assert offered <= calls
    # what only some users' files need is named by an error message, and tested
    assert calls <= offered | modules(distributions() | distributions("test"))


def test_an_integration_imports_what_its_extra_offers():
    names = {name for module in (PACKAGE / "integrations").iterdir() if (name := module.stem)[0] not in "_."}
    owners = {name: environment for environment, modules_ in CONSUMERS.items() for name in modules_}
    for name in names:
        file = f"scdataloader/integrations/{name}"
        found = set().union(*third_party(file if (ROOT / file).is_dir() else f"{file}.py"))
        offered = distributions() | (of_consumer(owners[name]) if name in owners else set())
        assert found <= modules(offered), file


@pytest.mark.parametrize("environment", sorted(CONSUMERS))
def test_a_consumer_has_an_environment_a_target_and_what_its_tests_import(environment):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert sorted(CONSUMERS) == sorted(re.search("^CONSUMERS := (.*)$", makefile, re.MULTILINE)[1].split())
    found = set().union(*third_party(f"tests/consumers/{environment}"))
    assert found <= modules(distributions() | of_consumer(environment) | distributions("test-tools"))


def test_the_tests_examples_and_benchmarks_import_what_they_require():
    found = set().union(*third_party("tests", "examples", "benchmarks", without="tests/consumers"))
    offered = distributions("test")
    # a benchmark of a consumer runs in its environment
    assert found <= modules(distributions() | offered | set().union(*map(of_consumer, CONSUMERS)))
    assert modules(offered - SERVER - PLUGINS) <= found


def test_every_program_that_is_required_is_used():
    assert distributions("dev") - distributions("test") == set(PROGRAMS)
    unused = [name for name, (file, text) in PROGRAMS.items() if text not in (ROOT / file).read_text(encoding="utf-8")]
    assert not unused
