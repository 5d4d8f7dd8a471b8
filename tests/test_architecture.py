"""The rules of imports that import-linter cannot state: what happens when the package is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "scdataloader"
FILES = sorted(PACKAGE.rglob("*.py"))
ONLY_INSIDE_FUNCTIONS = {"lamindb", "lamindb_setup", "bionty", "django"}


def imported_at_import_time(tree: ast.AST) -> set[str]:
    """Top-level names of the packages that a module imports outside any function and any `if TYPE_CHECKING`."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found |= set().union(*(imported_at_import_time(branch) for branch in node.orelse))
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
        found |= imported_at_import_time(node)
    return found


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import lamindb as ln", {"lamindb"}),
        ("from lamindb.core import MappedCollection", {"lamindb"}),
        ("try:\n    import bionty\nexcept ImportError:\n    bionty = None", {"bionty"}),
        ("class A:\n    import bionty", {"bionty"}),
        ("def f():\n    import lamindb", set()),
        ("class A:\n    def f(self):\n        import lamindb", set()),
        ("if TYPE_CHECKING:\n    import lamindb", set()),
        ("from .lamindb import x", set()),
    ],
)
def test_the_finder_finds(code, expected):
    assert imported_at_import_time(ast.parse(code)) == expected


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_lamindb_is_imported_only_inside_functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not imported_at_import_time(tree) & ONLY_INSIDE_FUNCTIONS


def test_importing_the_package_starts_no_django_and_opens_no_connection():
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES]
    modules = sorted(name.removesuffix(".__init__") for name in names if not name.endswith("__main__"))
    code = f"""
import importlib, sys

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise PermissionError(f"{{event}} {{args}}")

sys.addaudithook(refuse)
for name in {modules!r}:
    importlib.import_module(name)
loaded = sorted({ONLY_INSIDE_FUNCTIONS!r} & set(sys.modules))
assert not loaded, f"loaded at import: {{loaded}}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
