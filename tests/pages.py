"""Python code of the documentation: which of it runs, and in which environment."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# A comment applies to the blocks between it and the next one. Blocks before any comment are only compiled.
_COMMENT_OR_BLOCK = re.compile(r"^<!-- runs in: (\w+) -->$|^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    line: int
    """Number of the first line of its code on the page."""
    environment: str | None
    """``"test"``, a folder of ``tests/consumers``, or None for code that is only compiled."""
    code: str


def pages():
    """README.md and docs/*.md, as paths from the root."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))


def blocks(page):
    """The blocks of Python of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found, environment = [], None
    for match in _COMMENT_OR_BLOCK.finditer(text):
        if match[1]:
            environment = match[1]
        else:
            found.append(Block(text.count("\n", 0, match.start(2)) + 1, environment, match[2]))
    return found


def pages_of(environment):
    """Pages with code that runs in an environment."""
    return [page for page in pages() if any(block.environment == environment for block in blocks(page))]


def run(page, environment, monkeypatch):
    """Run the code of a page that belongs to an environment, block after block, as one module."""
    module = ModuleType(f"docs_{Path(page).stem}")  # a module, so that its classes can be pickled
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks(page):
        if block.environment == environment:
            # line numbers of errors are those of the page
            exec(compile("\n" * (block.line - 1) + block.code, str(ROOT / page), "exec"), vars(module))
