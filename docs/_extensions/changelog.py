"""The page of changes: ``CHANGELOG.md``, with the fragments of ``changes`` before its first release."""

import re
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx

MARK = "<!-- towncrier release notes start -->"
"""Where towncrier inserts a release."""


def write_page(app: Sphinx) -> None:
    """Write ``docs/project/changelog.md``, if its text has changed."""
    root = Path(app.srcdir).parent
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "Unreleased", "--date", ""]
    fragments = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    fragments = re.sub(r"^## Unreleased.*$", "## Unreleased", fragments, flags=re.MULTILINE)
    fragments = re.sub(r" \(#[\w.-]+(, #[\w.-]+)*\)$", "", fragments, flags=re.MULTILINE)
    if "No significant changes" in fragments:
        fragments = ""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8").replace(MARK, fragments.strip())
    page = Path(app.srcdir) / "project" / "changelog.md"
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", write_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
