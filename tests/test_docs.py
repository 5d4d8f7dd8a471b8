"""Python code in the documentation runs: that of Extending, block after block."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXECUTED = ("docs/extending.md", "docs/batches.md", "docs/tokens.md")
MAX_LINES = 20


def blocks(page):
    """(line, code) of each block of Python."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(1)) + 1, found[1]) for found in BLOCK.finditer(text)]


def pages():
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", [page for page in pages() if blocks(page)])
def test_code_compiles(page):
    for line, code in blocks(page):
        compile(code, f"{page}:{line}", "exec")


@pytest.mark.parametrize("page", EXECUTED)
def test_code_runs(page, tmp_path, monkeypatch):
    from scdataloader import registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    module = ModuleType(f"docs_{Path(page).stem}")  # a module, so that its classes can be pickled
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert blocks(page)
    for line, code in blocks(page):
        # line numbers of errors are those of the page
        exec(compile("\n" * (line - 1) + code, str(ROOT / page), "exec"), vars(module))


def test_examples_of_extending_are_short():
    for line, code in blocks("docs/extending.md"):
        assert code.count("\n") <= MAX_LINES, f"the example at line {line} has {code.count(chr(10))} lines"
